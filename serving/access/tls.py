"""Checks of the server's TLS files. Light to import, because the probe process needs it too."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from serving.config import AccessConfig
from serving.errors import StartError

PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# DER tags: the optional version field of a certificate, and the older of the two time formats.
VERSION, UTC_TIME = 0xA0, 0x17


def tls_files(config: AccessConfig) -> list[Path]:
    """The files that the settings name; empty without TLS."""
    return [path for path in (config.cert, config.key, config.client_ca) if path]


def server_context(config: AccessConfig) -> ssl.SSLContext:
    """The context of the HTTP port. Clients need no certificate. With a client authority, a
    certificate that is shown is checked.

    This is also the check of the files: gRPC accepts bad ones without a word.

    Raises:
        StartError: a file is missing or is not PEM, or the key does not match the certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not config.cert or not config.key:
        raise StartError(
            "TLS needs a certificate and its key", "both files", "--tls-cert CERT --tls-key KEY"
        )
    try:
        # Without this callback OpenSSL would ask for the password on the terminal.
        context.load_cert_chain(config.cert, config.key, password=lambda: "")
        if config.client_ca:
            context.load_verify_locations(config.client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ValueError) as error:
        files = ", ".join(map(str, tls_files(config)))
        raise StartError(
            f"the TLS files do not load: {error}", f"matching PEM files without a password: {files}"
        ) from error
    return context


def check_dates(config: AccessConfig) -> None:
    """Check that the server's certificates are valid today, and at least one certificate of the
    client authority.

    Raises:
        StartError: a certificate has expired, is not valid yet, or cannot be read.
    """
    if config.cert and (faults := [fault for fault in _date_faults(config.cert) if fault]):
        raise _outdated(config.cert, faults[0])
    if config.client_ca and all(faults := _date_faults(config.client_ca)):
        raise _outdated(config.client_ca, faults[0] if faults else "is missing")


def _outdated(path: Path, fault: str) -> StartError:
    return StartError(
        f"the certificate in {path} {fault}",
        "a certificate that is valid now",
        "put a new one in its place; the server picks it up without a restart",
    )


def _date_faults(path: Path) -> list[str]:
    """One entry per certificate of a file: the fault of its dates, or an empty text."""
    now = datetime.now(UTC)
    try:
        blocks = PEM.findall(path.read_text(encoding="utf-8", errors="replace"))
        dates = [_validity(ssl.PEM_cert_to_DER_cert(block)) for block in blocks]
    except (OSError, ValueError, IndexError, StopIteration) as error:
        raise StartError(f"{path} cannot be read: {error}", "PEM certificates") from error
    return [
        f"is not valid before {begin}" if now < begin else f"has expired on {end}" * (now > end)
        for begin, end in dates
    ]


# The standard library verifies certificates but does not tell the dates of one that it does not
# connect to. These few lines of DER save a dependency on `cryptography`.
def _validity(der: bytes) -> tuple[datetime, datetime]:
    """First and last moment of a certificate (RFC 5280, section 4.1)."""
    _, certificate = next(_items(der))
    _, body = next(_items(certificate))
    fields = [item for item in _items(body) if item[0] != VERSION]
    # Serial number, algorithm, issuer, validity.
    begin, end = (_time(*item) for item in _items(fields[3][1]))
    return begin, end


def _time(tag: int, text: bytes) -> datetime:
    form = "%y%m%d%H%M%SZ" if tag == UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC)


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each DER element."""
    at = 0
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(data[at : at + count], "big"), at + count
        yield tag, data[at : at + size]
        at += size
