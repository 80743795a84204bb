"""Data sets: one description for every format, pixels, and batches."""
