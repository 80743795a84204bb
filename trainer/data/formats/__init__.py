"""One file a data format, reading and writing together."""
