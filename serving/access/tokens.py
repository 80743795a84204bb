"""Callers, their tokens and their roles. Light to import: the probe process needs it too."""

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
    """The owner of a token, and what the token allows."""

    name: str
    roles: frozenset[str]


class Tokens:
    """The callers in a token file.

    Each line is ``NAME ROLE[,ROLE] SHA256``, with the SHA-256 of the token in hexadecimal; ``#``
    starts a comment. The file holds hashes only, so a reader of the file cannot call.
    ``wsss-serving token`` makes a token and its line.

    Raises:
        StartError: the file is missing, or a line has another form.
    """

    def __init__(self, path: Path) -> None:
        self._entries = Watched([path], lambda: _read_tokens(path))

    def caller(self, header: str) -> Caller:
        """The caller of an ``authorization`` header.

        Raises:
            TokenMissing: the header carries no bearer token.
            TokenUnknown: the token is not in the file.
        """
        if not header.lower().startswith(SCHEME):
            raise TokenMissing(
                "no token", "authorization: Bearer TOKEN", "--token TOKEN or WSSS_TOKEN=TOKEN"
            )
        digest = _digest(header[len(SCHEME) :].strip())
        match = None
        # Compare with every entry, so that the response time reveals nothing about the tokens.
        for entry, caller in self._entries.value:
            if hmac.compare_digest(entry, digest):
                match = caller
        if match is None:
            raise TokenUnknown("unknown token", "a token from the server's token file")
        return match


def new_token(name: str, roles: Sequence[str]) -> tuple[str, str]:
    """A new token, and its line for the token file.

    Raises:
        StartError: an unknown role, or a name with white space.
    """
    if len(name.split()) != 1 or name.startswith("#"):
        raise StartError(f"the name {name!r} does not fit into a token file", "a single word")
    token = secrets.token_urlsafe(32)
    line = f"{name} {','.join(roles)} {_digest(token)}"
    _token_line(line)
    return token, line


def add_token(path: Path, line: str) -> None:
    """Append a line to a token file, which is created if needed.

    Raises:
        StartError: the file exists and is not a token file.
        OSError: it cannot be written.
    """
    # Refuse to append to a file that was named by mistake.
    if path.exists():
        _read_tokens(path)
        text = path.read_text(encoding="utf-8")
        line = line if text.endswith("\n") or not text else f"\n{line}"
    with path.open("a", encoding="utf-8") as lines:
        lines.write(f"{line}\n")


def allow(caller: Caller, role: str) -> None:
    """Check a caller's role.

    Raises:
        PermissionDenied: the caller lacks it.
    """
    if role not in caller.roles:
        roles = ", ".join(sorted(caller.roles))
        raise PermissionDenied(
            f"{caller.name!r} has the roles {roles}", f"the role {role}", metadata={"role": role}
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
            f"a bad line in the token file: {len(words)} words, or an unknown role or hash",
            f"NAME ROLE[,ROLE] SHA256 with the roles {', '.join(ROLES)}",
            "wsss-serving token NAME --role infer --file FILE",
        )
    return words[2].lower(), Caller(words[0], frozenset(roles))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
