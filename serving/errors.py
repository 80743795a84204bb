"""Errors that a user or a caller can act on.

The command line prints them without a traceback and exits with ``exit_code``. Texts of
:class:`RequestError` travel to clients: they never hold a path, a key or a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Characters of a list of names; other texts may be twice as long. gRPC refuses more than 16 KiB of
# metadata in all.
LONGEST = 200


class ServingError(Exception):
    """Something that the user gave and can change.

    Args:
        found: what is wrong, naming the file, field or value.
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


class RepositoryError(ServingError):
    """The model repository, a card or a graph file is missing, damaged or not as the card says."""


class EngineError(RepositoryError):
    """The chosen engine cannot run the model: a library or device is missing, or the graph is
    refused.
    """


class ConfigError(ServingError):
    """A setting, or the settings file, is wrong."""


class StartError(ServingError):
    """The server cannot start, for example because the port is taken."""


class LabelError(ServingError):
    """A folder cannot be labelled this way."""


class MaskChanged(LabelError):
    """A mask was edited or comes from elsewhere; it is not overwritten."""


class TargetError(ServingError):
    """An output would be inside, contain or replace something that is not ours."""


class BenchError(ServingError):
    """Nothing can be measured this way."""


class OutputError(ServingError):
    """The graph's output differs from its card: a fault of the model, not of the image."""


class RequestError(ServingError):
    """One request cannot be answered. Texts are cut to fit into gRPC metadata.

    Attributes:
        code: name of the gRPC status code.
        reason: stable identifier for programs, ``ErrorInfo.reason`` on the wire.
        field: request field at fault, or empty.
        metadata: facts for programs, such as a limit; ``ErrorInfo.metadata`` on the wire.
    """

    code = "INVALID_ARGUMENT"
    reason = "INVALID_REQUEST"

    def __init__(
        self,
        found: str,
        expected: str = "",
        hint: str = "",
        *,
        field: str = "",
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(short(found), short(expected), hint)
        self.field = short(field)
        self.metadata = {key: short(value) for key, value in (metadata or {}).items()}


class FieldError(RequestError):
    """A request field has an invalid value."""

    reason = "INVALID_FIELD"


class ImageError(RequestError):
    """The bytes are not an image, or the image is damaged."""

    reason = "IMAGE_UNREADABLE"


class ImageTooLarge(ImageError):
    """The image exceeds a limit of bytes, pixels or aspect ratio."""

    reason = "IMAGE_TOO_LARGE"


class MaskTooComplex(RequestError):
    """The mask is too ragged for the chosen encoding; the other encodings can hold it."""

    code = "FAILED_PRECONDITION"
    reason = "MASK_TOO_COMPLEX"


class ModelNotFound(RequestError):
    """No model of this name or version is served. ``metadata["known"]`` lists the others."""

    code = "NOT_FOUND"
    reason = "MODEL_NOT_FOUND"


class WrongModelKind(RequestError):
    """The model cannot do this. ``metadata["usable"]`` lists the models that can."""

    code = "FAILED_PRECONDITION"
    reason = "WRONG_MODEL_KIND"


class ModelRefused(RequestError):
    """The model to load is not sound. The server keeps serving the previous version."""

    code = "FAILED_PRECONDITION"
    reason = "MODEL_REFUSED"


class TokenMissing(RequestError):
    """The server needs a token and the call carries none."""

    code = "UNAUTHENTICATED"
    reason = "TOKEN_MISSING"


class TokenUnknown(RequestError):
    """The server does not know the token."""

    code = "UNAUTHENTICATED"
    reason = "TOKEN_UNKNOWN"


class PermissionDenied(RequestError):
    """The caller lacks the role in ``metadata["role"]``."""

    code = "PERMISSION_DENIED"
    reason = "ROLE_MISSING"


class CertificateMissing(RequestError):
    """The server wants a certificate that its authority signed, and the HTTP call has none."""

    code = "UNAUTHENTICATED"
    reason = "CERTIFICATE_MISSING"


class MediaTypeRefused(RequestError):
    """The body of an HTTP request is said to be something else than the path takes."""

    reason = "MEDIA_TYPE"


class PathNotFound(RequestError):
    """The HTTP API has no such path."""

    code = "NOT_FOUND"
    reason = "PATH_NOT_FOUND"


class MethodNotAllowed(RequestError):
    """The path of the HTTP API exists and takes another method."""

    code = "UNIMPLEMENTED"
    reason = "METHOD_NOT_ALLOWED"


class RetryLater(RequestError):
    """The same request may succeed in ``retry_after`` seconds."""

    code = "UNAVAILABLE"
    reason = "RETRY_LATER"

    def __init__(
        self, found: str, expected: str = "", hint: str = "", *, retry_after: float = 1.0
    ) -> None:
        super().__init__(
            found, expected, hint, metadata={"retry_after_seconds": f"{retry_after:.3f}"}
        )
        self.retry_after = retry_after


class Overloaded(RetryLater):
    """The queue of the model is full."""

    code = "RESOURCE_EXHAUSTED"
    reason = "QUEUE_FULL"


class ServerFull(Overloaded):
    """The server has as many requests in progress as it allows."""

    reason = "SERVER_FULL"


class OutOfMemory(RetryLater):
    """The device has no memory left for the run."""

    code = "RESOURCE_EXHAUSTED"
    reason = "OUT_OF_MEMORY"


class MemoryFull(RetryLater):
    """The requests in progress use all of the memory that they may."""

    code = "RESOURCE_EXHAUSTED"
    reason = "MEMORY_FULL"


class TooManyStreams(RetryLater):
    """The server has as many streams, or health watches, open as it allows."""

    code = "RESOURCE_EXHAUSTED"
    reason = "STREAMS_FULL"


class CallerBusy(RetryLater):
    """The caller has as many requests in progress, or streams open, as one caller may."""

    code = "RESOURCE_EXHAUSTED"
    reason = "CALLER_LIMIT"


class StreamIdle(RetryLater):
    """The server ended a stream without messages; a new one may be opened at once."""

    reason = "STREAM_IDLE"


class DeadlineMissed(RequestError):
    """The caller's deadline passed, or would pass before the answer."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class BodyLate(DeadlineMissed):
    """The head or the body of an HTTP request did not arrive in time."""

    reason = "BODY_LATE"


class ServerUnavailable(RetryLater):
    """The server is unreachable, shutting down, or still loading the model."""

    reason = "UNAVAILABLE"


class ServerFault(RequestError):
    """The server failed; ``metadata["id"]`` finds the traceback in its log."""

    code = "INTERNAL"
    reason = "INTERNAL"


def nearest(name: str, names: Iterable[str]) -> str:
    """The names that exist, and the one most similar to ``name``."""
    names = list(names)
    close = difflib.get_close_matches(name[:LONGEST], names, n=1, cutoff=0.5)
    listing = ", ".join(names)
    if len(listing) > LONGEST:
        listing = listing[:LONGEST].rpartition(", ")[0]
        listing += f" and {len(names) - listing.count(', ') - 1} more"
    listing = f"one of: {listing or 'none is there'}"
    return f"{listing}; nearest: {close[0]}" if close else listing


def short(text: str) -> str:
    """A text cut to a few lines."""
    # Errors travel in headers, where a letter beyond ASCII takes up to 12 bytes. From 8 kB on,
    # gRPC drops replies at random.
    cut = text[: 2 * LONGEST].encode(errors="ignore")[: 4 * LONGEST].decode(errors="ignore")
    return text if cut == text else f"{cut}..."
