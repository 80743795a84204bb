"""Names of classes and files as people and tools write them."""

from __future__ import annotations

import unicodedata

BACKGROUND_NAMES = frozenset(("background", "_background_", "__background__"))
"""Folded names that tools give to what is no object."""
IGNORE_NAMES = frozenset(("ignore", "_ignore_", "__ignore__"))
"""Folded names that tools give to pixels that do not count."""


def folded(name: str) -> str:
    """``name`` without what people do not see: letter case and Unicode form (``é`` is one character
    or two).
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
