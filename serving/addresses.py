"""How host names and addresses are read, alike for both ports and for clients. Light to import."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from typing import Any

# One IPv6 socket with dual stack serves IPv4 too.
ANY = "::"
WRITTEN_ANY = ("", "*", "0.0.0.0", ANY)
LOOPBACK = ("127.0.0.1", "::1")
# Errors for an address that this machine lacks, and for a switched-off address family.
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def bare(host: str) -> str:
    """A host without brackets, with every spelling of "all interfaces" as ``::``."""
    host = host.strip()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return ANY if host in WRITTEN_ANY else host


def joined(host: str, port: int) -> str:
    """``HOST:PORT`` as a user types it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listening host."""
    host = bare(host)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listening(host: str, port: int, backlog: int = 128) -> list[socket.socket]:
    """Listening sockets on one port, on the same addresses as gRPC: IPv4 and IPv6 for all
    interfaces and for ``localhost``.

    Args:
        port: 0 takes a free one.
        backlog: connections that may wait to be accepted.

    Raises:
        OSError: the port is taken or not allowed, or the address is not of this machine.
    """
    host = bare(host)
    if host == ANY and socket.has_dualstack_ipv6():
        server = socket.create_server(
            (ANY, port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
        )
        return [server]
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, address in _resolved("0.0.0.0" if host == ANY else host, port):
        # Port 0 was resolved by the first socket; the others must listen on the same port.
        if sockets:
            address = (address[0], sockets[0].getsockname()[1], *address[2:])
        try:
            sockets.append(socket.create_server(address, family=family, backlog=backlog))
        except OSError as error:
            if error.errno not in ABSENT:
                for server in sockets:
                    server.close()
                raise
            absent = error
    if absent and not sockets:
        raise absent
    return sockets


def is_local(target: str) -> bool:
    """Whether a target in any of gRPC's forms is on this machine. No name is resolved."""
    if target.startswith("unix"):
        return True
    address = re.sub(r"^(ipv4:|ipv6:|dns:(//[^/]*/)?|passthrough:///)", "", target)
    host = re.sub(r":\d*$", "", address) if address.count(":") == 1 or "]" in address else address
    host = bare(host)
    if host in (ANY, "localhost", socket.gethostname()) or host.endswith(".localhost"):
        return True
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        # Only an address of this machine can be bound, and binding sends no packet.
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except (ValueError, OSError):
        return False
    return True


def _resolved(host: str, port: int) -> list[tuple[int, Any]]:
    """Family and address of each meaning of a host."""
    hosts = LOOPBACK if host == "localhost" else (host,)
    entries = [
        entry for one in hosts for entry in socket.getaddrinfo(one, port, type=socket.SOCK_STREAM)
    ]
    return list(dict.fromkeys((family, address) for family, _, _, _, address in entries))
