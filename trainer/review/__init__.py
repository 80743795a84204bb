"""Ask a person for the few masks that help most, and read the answers."""
