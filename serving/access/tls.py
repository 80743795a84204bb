"""The server's TLS files, checked. Light to import: the process that answers probes needs it
too.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from serving.config import AccessConfig
from serving.errors import StartError


def tls_files(config: AccessConfig) -> list[Path]:
    """Those that the settings name; none without TLS."""
    return [path for path in (config.cert, config.key, config.client_ca) if path]


def server_context(config: AccessConfig) -> ssl.SSLContext:
    """For a port whose callers need no certificate. Also the check of the files: gRPC says nothing
    of bad ones.

    Raises:
        StartError: a file is missing, no PEM, or key and certificate do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not config.cert or not config.key:
        raise StartError(
            "TLS needs a certificate and its key", "both files", "--tls-cert CERT --tls-key KEY"
        )
    try:
        # A key with a password would ask for it on the terminal.
        context.load_cert_chain(config.cert, config.key, password=lambda: "")
        if config.client_ca:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(config.client_ca)
    except (OSError, ValueError) as error:
        files = ", ".join(map(str, tls_files(config)))
        raise StartError(
            f"the TLS files do not load: {error}",
            f"PEM files that belong together, without password: {files}",
        ) from error
    return context
