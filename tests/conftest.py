"""Being here puts this folder on the import path, so that every test can use ``golden``."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _log_handlers():
    """Log handlers end with their test: a server's would write to a stream that is closed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
