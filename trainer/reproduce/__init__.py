"""The tables of the papers, row by row as commands, and what comes out of them here."""
