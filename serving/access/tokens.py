"""Callers, their tokens and their roles. Light to import: the process that answers probes needs it
too.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.access.watched import Watched
from serving.errors import PermissionDenied, StartError, TokenMissing, TokenUnknown

ROLES = ("infer", "control", "metrics")
SCHEME = "bearer "


@dataclass(frozen=True)
class Caller:
    """Whose token a call carries, and what it may do."""

    name: str
    roles: frozenset[str]


class Tokens:
    """The callers of a token file. A line is ``NAME ROLE[,ROLE] SHA-256 of the token in
    hexadecimal``; # comments.

    The file holds no token itself: who reads it cannot call. ``wsss-serving token`` makes token and
    line.

    Raises:
        StartError: no such file, or a line of another form.
    """

    def __init__(self, path: Path) -> None:
        self._entries = Watched([path], lambda: _read_tokens(path))

    def caller(self, header: str) -> Caller:
        """The caller of an ``authorization`` header.

        Raises:
            TokenMissing, TokenUnknown: no token, or one that is not in the file.
        """
        if not header.lower().startswith(SCHEME):
            raise TokenMissing(
                "no token", "authorization: Bearer TOKEN", "--token TOKEN, or WSSS_TOKEN"
            )
        digest = _digest(header[len(SCHEME) :].strip())
        match = None
        # All of them, so that the time taken tells nothing.
        for entry, caller in self._entries.value:
            if hmac.compare_digest(entry, digest):
                match = caller
        if match is None:
            raise TokenUnknown("the token is not known here", "one of the server's token file")
        return match


def new_token(name: str, roles: Sequence[str]) -> tuple[str, str]:
    """A new token, and its line for the token file.

    Raises:
        StartError: a role that there is not, or a name with white space.
    """
    token = secrets.token_urlsafe(32)
    line = f"{name} {','.join(roles)} {_digest(token)}"
    _token_line(line)
    return token, line


def add_token(path: Path, line: str) -> None:
    """Add a line to a token file, or begin one.

    Raises:
        StartError: the file is there and holds something else.
        OSError: it cannot be written.
    """
    if path.exists():
        _read_tokens(path)
        text = path.read_text(encoding="utf-8")
        line = line if text.endswith("\n") or not text else f"\n{line}"
    with path.open("a", encoding="utf-8") as lines:
        lines.write(f"{line}\n")


def allow(caller: Caller, role: str) -> None:
    """Refuse a caller without the role.

    Raises:
        PermissionDenied: it has not.
    """
    if role not in caller.roles:
        roles = ", ".join(sorted(caller.roles))
        raise PermissionDenied(
            f"{caller.name!r} has the roles: {roles}", f"the role {role}", metadata={"role": role}
        )


def _read_tokens(path: Path) -> list[tuple[str, Caller]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise StartError(
            f"{path} cannot be read: {error}", "a token file", "wsss-serving token --help"
        ) from error
    return [
        _token_line(line) for line in lines if line.strip() and not line.lstrip().startswith("#")
    ]


def _token_line(line: str) -> tuple[str, Caller]:
    words = line.split()
    roles = words[1].split(",") if len(words) == 3 else []
    if (
        not roles
        or not set(roles) <= set(ROLES)
        or len(words[2]) != 64
        or set(words[2].lower()) - set("0123456789abcdef")
    ):
        raise StartError(
            f"a line of the token file has {len(words)} words or a role or hash of another form",
            f"NAME ROLE[,ROLE] SHA256, roles: {', '.join(ROLES)}",
            "wsss-serving token NAME --role infer --file FILE",
        )
    return words[2].lower(), Caller(words[0], frozenset(roles))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
