"""TLS of both ports. The files may change while the server runs; the next connection uses the new ones."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from serving.config import AccessConfig
from serving.errors import StartError
from serving.watched import Watched


class Certificates:
    """The server's certificate and key, and who may sign its clients' certificates.

    Raises:
        StartError: a file is missing, no PEM, or key and certificate do not belong together.
    """

    def __init__(self, config: AccessConfig) -> None:
        self._config = config
        paths = [path for path in (config.cert, config.key, config.client_ca) if path]
        self._configuration = Watched(paths, self._read)
        self._given = self._configuration.value
        self._context = Watched(paths, self._read_context)

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC port."""
        mutual = self._config.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._given, self._changed, mutual)

    def context(self) -> ssl.SSLContext:
        """For a connection of the HTTP port, whose callers need no certificate: probes have none."""
        return self._context.value

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        newest = self._configuration.value
        if newest is self._given:
            return None
        self._given = newest
        return newest

    def _read(self) -> grpc.ServerCertificateConfiguration:
        self._read_context()
        cert, key, client_ca = (_bytes(path) for path in (self._config.cert, self._config.key, self._config.client_ca))
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)

    def _read_context(self) -> ssl.SSLContext:
        """Also the check of the files: gRPC itself says nothing of a bad one but refuses every caller."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        config = self._config
        if not config.cert or not config.key:
            raise StartError("TLS needs a certificate and its key", "both files", "--tls-cert CERT --tls-key KEY")
        try:
            # A key with a password would ask for it on the terminal.
            context.load_cert_chain(config.cert, config.key, password=lambda: "")
            if config.client_ca:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(config.client_ca)
        except (OSError, ValueError) as error:
            files = ", ".join(str(path) for path in (config.cert, config.key, config.client_ca) if path)
            raise StartError(
                f"the TLS files do not load: {error}", f"PEM files that belong together, without password: {files}"
            ) from error
        return context


def _bytes(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None
