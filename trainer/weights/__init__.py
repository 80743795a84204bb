"""Weight files: read, recognised, loaded into networks, kept in the cache, written."""
