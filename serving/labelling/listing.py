"""Which files of a folder are labelled, and which are not, each with the reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serving.images.decoding import EXTENSIONS
from serving.labelling.ledger import holds_labels

UNREADABLE_KINDS = {
    **dict.fromkeys((".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl"), ""),
    **dict.fromkeys((".psd", ".svg", ".tga", ".ppm", ".pgm", ".pnm", ".exr", ".hdr", ".ico"), ""),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".raw"), ""),
}
