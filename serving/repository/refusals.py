"""Versions of models that are not served, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from serving.errors import RepositoryError
from serving.repository.watch import Signature

Key = tuple[str, int]
LONGEST_REASON = 500


@dataclass(frozen=True)
class Refusal:
    """Why a version with these files is refused. Holds texts, because an exception keeps its frames
    alive.
    """

    signature: Signature
    found: str
    expected: str
    hint: str


class Refusals(dict[Key, Refusal]):
    """Refusals by name and version, for the repository at ``root``."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._roots = (root, root.resolve())

    def note(self, key: Key, signature: Signature, error: RepositoryError) -> None:
        """Refuse a version as long as its files do not change."""
        self[key] = Refusal(signature, error.found, error.expected, error.hint)

    def forget(self, name: str) -> None:
        """Give every version of a model another chance."""
        for key in [key for key in self if key[0] == name]:
            del self[key]

    def error(self, name: str = "") -> RepositoryError | None:
        """The error of the lowest refused version, of this model or of any."""
        for key in sorted(self):
            if name in ("", key[0]):
                return RepositoryError(self[key].found, self[key].expected, self[key].hint)
        return None

    def reason(self, key: Key) -> str:
        """Why a version is refused, or empty. For callers: without paths outside the repository."""
        if key not in self:
            return ""
        refusal = self[key]
        text = (
            f"{refusal.found}, expected {refusal.expected}" if refusal.expected else refusal.found
        )
        for root in self._roots:
            text = text.replace(f"{root}/", "")
        return re.sub(r"(?<!\w)(/[\w.@+-]+){2,}", "(path)", text)[:LONGEST_REASON]
