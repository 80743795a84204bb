"""Errors that a user can act on. The command line prints them without a traceback and exits with
code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user gave, and can change.

    Args:
        found: what is wrong, naming the file, knob or value.
        expected: what would have been right.
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
    """The exported graph differs from the model that it was made from."""


def one_of(name: str, known: Iterable[str], what: str) -> None:
    """Raise ConfigError where ``name`` is none of those that are ``known``; ``what`` says of
    what.
    """
    known = list(known)
    if name not in known:
        raise ConfigError(f"{what} {name!r} does not exist", nearest(str(name), known))


def explained(error: BaseException) -> UserError | None:
    """What a user can do about an exception of Python, NumPy or torch that knobs or the machine
    cause; None for any other.
    """
    seen: BaseException | None = error
    before: set[int] = set()
    while seen is not None and id(seen) not in before:
        before.add(id(seen))
        text = str(seen)
        for words, found, hint in CAUSES:
            if words in text or (words == "MemoryError" and isinstance(seen, MemoryError)):
                detail = text.splitlines()[0] if text else "MemoryError"
                return RunError(f"{found}: {detail}", "", hint)
        seen = seen.__cause__ or seen.__context__
    return None


_SMALLER = "a smaller batch, crop or number of pixels (--set SECTION.KEY=VALUE), or fewer workers"
CAUSES = (
    ("can't allocate memory", "not enough memory", _SMALLER),
    ("out of memory", "not enough memory", _SMALLER),
    ("Unable to allocate", "not enough memory", _SMALLER),
    ("MemoryError", "not enough memory", _SMALLER),
    ("DataLoader worker", "a loader process ended, killed perhaps for memory", _SMALLER),
    (
        "Expected more than 1 value per channel",
        "batch norm cannot learn from a single value",
        "a larger crop or batch, fewer parts (accumulate), or bn=frozen",
    ),
)
"""Words of a message, what they mean, what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The sentence that names what is known, the closest match to ``name`` first."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listing = ", ".join(known)
    return f"did you mean {close[0]!r}? known: {listing}" if close else f"known: {listing}"
