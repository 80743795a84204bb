"""One file a stage of a run, called as in ``manifest.json``."""
