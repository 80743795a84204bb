"""One file a format, reading and writing together. ``base`` says what a format is."""
