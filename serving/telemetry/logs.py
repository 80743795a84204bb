"""Log lines as text or as JSON objects, with the id of the request that they belong to.

Lines hold names, sizes, codes and times of a request, never pixels or tokens.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from serving.config import LogFormat, LogLevel

# Metadata key of the id, in the request and in the reply.
REQUEST_ID_KEY = "x-request-id"
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
# Ids that are safe in a log line and in a header.
SOUND_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def configure(
    format: LogFormat = "text", level: LogLevel = "info", stream: TextIO | None = None
) -> None:
    """Send every log line of this process to ``stream``, standard error by default."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The caller's id of a request if it is a safe one, otherwise a new id."""
    caller_id = next((value for key, value in metadata if key == REQUEST_ID_KEY), "")
    if isinstance(caller_id, str) and SOUND_ID.fullmatch(caller_id):
        return caller_id
    return uuid.uuid4().hex[:16]


class TextFormatter(logging.Formatter):
    """``TIME LEVEL LOGGER: MESSAGE key=value ...``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, followed by the traceback of an exception."""
        time = (
            datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        )
        fields = "".join(f" {key}={_word(value)}" for key, value in _fields(record).items())
        line = f"{time} {record.levelname} {record.name}: {_one_line(record.getMessage())}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time``, ``level``, ``logger``, ``message``, extra fields,
    ``exception``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message and the traceback hold."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of ``extra={"fields": {...}}``, and the request's id."""
    fields = dict(getattr(record, "fields", {}))
    if REQUEST_ID.get():
        fields.setdefault("request_id", REQUEST_ID.get())
    return fields


def _word(value: object) -> str:
    text = f"{value:.6f}" if isinstance(value, float) else str(value)
    return json.dumps(text) if not text or re.search(r'[\s"=]', text) else text


def _one_line(text: str) -> str:
    return text.replace("\n", "; ")
