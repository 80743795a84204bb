"""One file a method, named after it. See ``base`` for what a method offers."""
