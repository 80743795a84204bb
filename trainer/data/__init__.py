"""Data sets: one description for every format, the readers, the check."""
