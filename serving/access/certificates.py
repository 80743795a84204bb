"""TLS of the gRPC port. The files may change while the server runs; the next connection uses the
new ones.
"""

from __future__ import annotations

from pathlib import Path

import grpc

from serving.access.tls import server_context, tls_files
from serving.access.watched import Watched
from serving.config import AccessConfig


class Certificates:
    """The server's certificate and key, and who may sign its clients' certificates.

    Raises:
        StartError: a file is missing, no PEM, or key and certificate do not belong together.
    """

    def __init__(self, config: AccessConfig) -> None:
        self._config = config
        self._configuration = Watched(tls_files(config), self._read)
        self._given = self._configuration.value

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC port."""
        mutual = self._config.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._given, self._changed, mutual)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        newest = self._configuration.value
        if newest is self._given:
            return None
        self._given = newest
        return newest

    def _read(self) -> grpc.ServerCertificateConfiguration:
        server_context(self._config)
        cert, key, client_ca = (
            _bytes(path) for path in (self._config.cert, self._config.key, self._config.client_ca)
        )
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)


def _bytes(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None
