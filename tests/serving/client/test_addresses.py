"""One meaning of an address for both ports and for callers, and no way to this machine by a
proxy.
"""

from __future__ import annotations

import socket

import pytest
from configs import configured
from typer.testing import CliRunner

from serving import addresses
from serving.addresses import bare, is_local, is_loopback
from serving.cli import app
from serving.client import Client
from serving.client.connection import bearer
from serving.config import NetworkConfig, ServerConfig
from serving.errors import ConfigError, StartError
from serving.server import Server, check_port

BOTH = {"127.0.0.1", "::1"}
PROXY = "http://127.0.0.1:9"


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


def answering(port):
    """The loopback addresses on which a port takes connections."""
    found = set()
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as caller:
            if caller.connect_ex((host, port)) == 0:
                found.add(host)
    return found


@ipv6
@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, BOTH) for host in ("::", "[::]", "*", "0.0.0.0", "localhost")),
        *((host, {"::1"}) for host in ("::1", "[::1]")),
        ("127.0.0.1", {"127.0.0.1"}),
    ],
)
def test_both_ports_listen_on_the_same_addresses(repository, run_server, host, expected):
    settings = {"network__host": host, "network__http_port": 0, "access__insecure": True}
    with run_server(configured(repository, **settings)) as server:
        for address in (server.address, server.http_address):
            assert answering(int(address.rpartition(":")[2])) == expected
        with Client(server.address) as client:
            assert client.list_models()


def test_without_ipv6_every_interface_is_those_of_ipv4(monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    (listening,) = addresses.listening("*", 0)
    with listening:
        assert listening.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a" * 80, "ä..ö", "[::1"])
def test_an_address_of_no_use_is_said(host):
    with pytest.raises(StartError, match="cannot listen on"):
        check_port(host, 0)


def test_a_door_is_as_open_as_its_address_means():
    loopback = {"localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]", " 127.0.0.1 "}
    assert all(is_loopback(host) for host in loopback)
    for host in ("*", "", "::", "[::]", "0.0.0.0", "192.168.1.5", "some.host"):
        assert not is_loopback(host)
        with pytest.raises(StartError, match="anyone could call"):
            Server(ServerConfig(network=NetworkConfig(host=host)))
    assert {bare(host) for host in ("*", "", "::", "[::]", "0.0.0.0")} == {"::"}


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:8500", True),
        ("127.0.0.1", True),
        ("localhost:8500", True),
        ("models.localhost:8500", True),
        ("[::1]:8500", True),
        ("[::]:8500", True),
        ("0.0.0.0:8500", True),
        ("dns:localhost:8500", True),
        ("dns:///localhost:8500", True),
        ("dns://8.8.8.8/localhost:8500", True),
        ("ipv4:127.0.0.1:8500", True),
        ("ipv6:[::1]:8500", True),
        ("unix:/run/wsss", True),
        ("unix-abstract:wsss", True),
        (f"{socket.gethostname()}:8500", True),
        ("192.0.2.1:8500", False),
        ("[2001:db8::1]:8500", False),
        ("models.example:8500", False),
        ("localhost.example:8500", False),
        ("dns:///models.example:8500", False),
        ("", True),
    ],
)
def test_what_is_this_machine(monkeypatch, target, local):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    if "::1" not in target or has_ipv6():
        assert is_local(target) is local


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"])
def test_this_machine_is_never_asked_by_a_proxy(server, monkeypatch, name):
    monkeypatch.setenv(name, PROXY)
    port = server.address.rpartition(":")[2]
    done = CliRunner().invoke(app, ["health", "--address", server.address])
    assert (done.exit_code, done.output) == (0, "SERVING\n")
    for address in (server.address, f"localhost:{port}"):
        with Client(address, retries=0, timeout=10) as client:
            assert client.list_models()


def test_other_machines_are_asked_by_the_proxy_unless_no_proxy_names_them(server, monkeypatch):
    """The proxy is a server of ours, and the other machine one that there is not."""
    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.setattr("serving.client.connection.is_local", lambda address: False)
    done = CliRunner().invoke(app, ["health", "--address", server.address, "--timeout", "3"])
    assert done.exit_code == 1
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    done = CliRunner().invoke(app, ["health", "--address", server.address, "--timeout", "10"])
    assert done.exit_code == 0


@pytest.mark.parametrize("token", ["abc\n", " abc\r\n", "abc"])
def test_white_space_around_a_token_is_no_part_of_it(token):
    assert bearer(token) == (("authorization", "Bearer abc"),)
    assert bearer(" \n") == ()


@pytest.mark.parametrize("token", ["a\nb", "a b", "ü", "a\0b", "a\x7fb"])
def test_a_token_that_no_header_may_have_is_refused(server, token, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="the token contains"):
        Client(server.address, token=token)
    monkeypatch.setenv("WSSS_TOKEN", token.replace("\0", "\t"))
    arguments = ["segment", "a.png", str(tmp_path / "b.png"), "--address", server.address]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ConfigError)
