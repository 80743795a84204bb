"""Errors that a user can act on. The command line prints them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can change; the command exits with code 2.

    Args:
        found: what is wrong, with the file, knob or value.
        expected: what would be right.
        hint: what to type or do next.
    """

    exit_code = 2

    def __init__(self, found: str, expected: str = "", hint: str = "") -> None:
        super().__init__(found)
        self.found = found
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.found]
        if self.expected:
            lines.append(f"expected: {self.expected}")
        if self.hint:
            lines.append(f"try: {self.hint}")
        return "\n".join(lines)


class DataError(UserError):
    """A data set, image, mask, tag file or list is not what it should be."""


class ConfigError(UserError):
    """An unknown or impossible method, backbone, knob or preset."""


class WeightsError(UserError):
    """A weight or checkpoint file is missing, damaged or belongs to something else."""


class RunError(UserError):
    """The run directory is in use, incomplete or belongs to another run."""


class TargetError(UserError):
    """An output would lie in, hold or replace something that is not ours."""


class TrainingError(UserError):
    """Training cannot go on, for example because the loss is not finite."""


class ExportError(UserError):
    """The exported graph and the model compute different values."""


def one_of(name: str, options: Iterable[str], what: str) -> None:
    """Check that ``name`` is one of ``options``; ``what`` says of what, for the message.

    Raises:
        ConfigError: it is none of them.
    """
    options = list(options)
    if name not in options:
        raise ConfigError(f"{what} {name!r} does not exist", nearest(str(name), options))


def explained(error: BaseException) -> UserError | None:
    """What a user can do about an exception of Python, NumPy or torch that a knob or the machine
    causes; None for any other exception.
    """
    link: BaseException | None = error
    # A chain of causes can close into a circle.
    ids: set[int] = set()
    while link is not None and id(link) not in ids:
        ids.add(id(link))
        text = str(link)
        for words, problem, hint in CAUSES:
            if words in text or (words == "MemoryError" and isinstance(link, MemoryError)):
                detail = text.splitlines()[0] if text else "MemoryError"
                return RunError(f"{problem}: {detail}", "", hint)
        link = link.__cause__ or link.__context__
    return None


_SMALLER = "a smaller batch, crop or number of pixels (--set SECTION.KEY=VALUE), or fewer workers"
_AGAIN = "its own error stands elsewhere in this output; the same command goes on"
# Of gloo, whose message depends on whether it was reading, writing or idle.
_CLOSED = ("Connection closed by peer", "Connection reset by peer", "writev [", "Socket closed")
# By their words, because these exceptions have no class of their own.
CAUSES = (
    ("can't allocate memory", "not enough memory", _SMALLER),
    ("out of memory", "not enough memory", _SMALLER),
    ("Unable to allocate", "not enough memory", _SMALLER),
    ("MemoryError", "not enough memory", _SMALLER),
    ("DataLoader worker", "a loader process ended, perhaps for lack of memory", _SMALLER),
    *((words, "another process of this run has ended", _AGAIN) for words in _CLOSED),
    (
        "Expected more than 1 value per channel",
        "batch norm cannot learn from a single value",
        "a larger crop or batch, fewer parts (accumulate), or bn=frozen",
    ),
)
"""Words of an exception's message, their meaning, and what to do."""


def nearest(name: str, options: Iterable[str]) -> str:
    """A sentence that lists ``options``, and first the one that is most like ``name``."""
    options = list(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    listing = ", ".join(options)
    return f"did you mean {close[0]!r}? known: {listing}" if close else f"known: {listing}"


def some(names: Iterable[object], limit: int = 5) -> str:
    """The first ``limit`` names, and how many more there are."""
    # File names need not be UTF-8, messages are.
    texts = [str(name).encode(errors="backslashreplace").decode() for name in names]
    rest = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {rest} more" if rest > 0 else "")
