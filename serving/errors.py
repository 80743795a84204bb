"""Errors that a user or a caller can act on.

The command line prints them without a traceback and exits with ``exit_code``. Those below
:class:`RequestError` may travel to a client: their text never holds a path, a key or a trace.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Of a list of names in an error; other texts may be twice as long. gRPC refuses metadata of more
# than 16 KiB in all.
LONGEST = 200


class ServingError(Exception):
    """Something that the user gave, and can change.

    Args:
        found: what is wrong, naming the file, field or value.
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


class RepositoryError(ServingError):
    """The model repository, a card or a graph file is missing, damaged or not as the card says."""


class EngineError(RepositoryError):
    """The engine asked for cannot run the model here: its library or device is missing, or it does
    not take the graph.
    """


class ConfigError(ServingError):
    """A setting, or the file of settings, is not as expected."""


class StartError(ServingError):
    """The server cannot start, for example because the port is taken."""


class LabelError(ServingError):
    """A folder cannot be labelled as asked."""


class MaskChanged(LabelError):
    """A mask was corrected by somebody, or put there: it is not written over."""


class TargetError(ServingError):
    """An output would lie in, hold or replace something that is not ours."""


class BenchError(ServingError):
    """Nothing can be measured as asked."""


class OutputError(ServingError):
    """The graph's output is not what its card promises: a fault of the model, never of the
    image.
    """


class RequestError(ServingError):
    """One request cannot be answered. Its texts are cut to what fits into the metadata of a gRPC
    reply.

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
    """A request field has a value that means nothing here."""

    reason = "INVALID_FIELD"


class ImageError(RequestError):
    """The bytes are no image, or a damaged one."""

    reason = "IMAGE_UNREADABLE"


class ImageTooLarge(ImageError):
    """The image has more bytes or pixels, or is more elongated, than the limit allows."""

    reason = "IMAGE_TOO_LARGE"


class MaskTooComplex(RequestError):
    """The mask is too ragged for the encoding asked for; any other encoding holds it."""

    code = "FAILED_PRECONDITION"
    reason = "MASK_TOO_COMPLEX"


class ModelNotFound(RequestError):
    """No model of this name or version is served. ``metadata["known"]`` lists those that are."""

    code = "NOT_FOUND"
    reason = "MODEL_NOT_FOUND"


class WrongModelKind(RequestError):
    """The model exists and cannot do this. ``metadata["usable"]`` lists those that can."""

    code = "FAILED_PRECONDITION"
    reason = "WRONG_MODEL_KIND"


class ModelRefused(RequestError):
    """A model that should be loaded is not sound. The server keeps what it served before."""

    code = "FAILED_PRECONDITION"
    reason = "MODEL_REFUSED"


class TokenMissing(RequestError):
    """The server asks for a token and the call carries none."""

    code = "UNAUTHENTICATED"
    reason = "TOKEN_MISSING"


class TokenUnknown(RequestError):
    """The call carries a token that the server does not know."""

    code = "UNAUTHENTICATED"
    reason = "TOKEN_UNKNOWN"


class PermissionDenied(RequestError):
    """The caller is known and may not do this. ``metadata["role"]`` is what it lacks."""

    code = "PERMISSION_DENIED"
    reason = "ROLE_MISSING"


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
    """As many requests of all models are under way as may be."""

    reason = "SERVER_FULL"


class OutOfMemory(RetryLater):
    """The device has no memory left for the run."""

    code = "RESOURCE_EXHAUSTED"
    reason = "OUT_OF_MEMORY"


class MemoryFull(RetryLater):
    """The requests under way take all the memory that they may."""

    code = "RESOURCE_EXHAUSTED"
    reason = "MEMORY_FULL"


class TooManyStreams(RetryLater):
    """As many streams, or watches of the health service, are open as may be."""

    code = "RESOURCE_EXHAUSTED"
    reason = "STREAMS_FULL"


class CallerBusy(RetryLater):
    """The caller itself has as many requests under way, or streams open, as one caller may."""

    code = "RESOURCE_EXHAUSTED"
    reason = "CALLER_LIMIT"


class StreamIdle(RetryLater):
    """Nothing came on a stream for so long that the server ended it; a new one may be opened at
    once.
    """

    reason = "STREAM_IDLE"


class DeadlineMissed(RequestError):
    """The caller's deadline passed, or would have, before the engine could start."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class ServerUnavailable(RetryLater):
    """The server cannot be reached, is shutting down, or is still loading the model."""

    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class ServerFault(RequestError):
    """The server failed; ``metadata["id"]`` finds the trace in its log."""

    code = "INTERNAL"
    reason = "INTERNAL"


def nearest(name: str, names: Iterable[str]) -> str:
    """The names that exist, and the one most like ``name``."""
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
    return text if len(text) <= 2 * LONGEST else f"{text[: 2 * LONGEST]}..."
