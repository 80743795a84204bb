"""Data sets: one description for every format, the readers, the synthetic scenes, the check."""
