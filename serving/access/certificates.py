"""TLS of the gRPC port. When the files change, new connections use the new certificate."""

from __future__ import annotations

import logging
from functools import partial

import grpc

from serving.access.tls import check_dates, server_context, tls_files
from serving.access.watched import Watched
from serving.config import AccessConfig
from serving.errors import StartError

log = logging.getLogger(__name__)


class Certificates:
    """The server's certificate and key, and the authority that signs client certificates.

    Raises:
        StartError: a file is missing or is not PEM, or the key does not match the certificate.
    """

    def __init__(self, config: AccessConfig) -> None:
        self._config = config
        accept = partial(check_dates, config)
        self._configuration = Watched(tls_files(config), self._read, accept)
        try:
            accept()
        except StartError as error:
            log.warning("clients will refuse to connect: %s", error)
        self._given = self._configuration.value

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for a gRPC port."""
        mutual = self._config.client_ca is not None
        return grpc.dynamic_ssl_server_credentials(self._given, self._changed, mutual)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        # gRPC calls this for every new connection. None tells it to keep the current certificate.
        newest = self._configuration.value
        if newest is self._given:
            return None
        self._given = newest
        return newest

    def _read(self) -> grpc.ServerCertificateConfiguration:
        cert, key, client_ca = self._contents()
        server_context(self._config)
        # The check above reads the files a second time. A renewal between the two reads would hand
        # gRPC a certificate that nobody checked.
        if self._contents() != [cert, key, client_ca]:
            raise StartError("the TLS files changed while they were read", "files that are whole")
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)

    def _contents(self) -> list[bytes | None]:
        return [
            path.read_bytes() if path and path.is_file() else None
            for path in (self._config.cert, self._config.key, self._config.client_ca)
        ]
