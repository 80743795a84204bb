"""The process that answers probes: what it says, how long it lives."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http import HTTPStatus
from multiprocessing import Pipe
from pathlib import Path

import pytest
from configs import configured
from http_calls import fetch, is_closed

from serving.telemetry import heads, probes
from serving.telemetry.port import Entrance, Port, _host, _site
from serving.telemetry.probes import STALLED, STATE, Probes

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def state():
    return mmap.mmap(-1, STATE.size)


@pytest.mark.parametrize(
    ("late", "ready", "healthz", "readyz"),
    [
        (0, True, 200, 200),
        (0, False, 200, 503),
        (STALLED + 1, True, 503, 503),
        (STALLED + 1, False, 503, 503),
    ],
)
def test_probes_tell_readiness_and_a_loop_that_stands_still(state, late, ready, healthz, readyz):
    STATE.pack_into(state, 0, time.monotonic() - late, ready, False)
    ours, theirs = Pipe()
    answer = Probes(state, theirs, None).answer
    assert (answer("/healthz", {})[0], answer("/readyz", {})[0]) == (healthz, readyz)
    assert answer("/nothing", {})[0] == HTTPStatus.NOT_FOUND
    ours.close()
    theirs.close()


def test_a_page_that_comes_too_late_is_not_given_to_the_next(state, monkeypatch):
    monkeypatch.setattr(probes, "PAGE_TIMEOUT", 0.05)
    STATE.pack_into(state, 0, time.monotonic(), True, False)
    ours, theirs = Pipe()
    answer = Probes(state, theirs, None).answer
    assert answer("/metrics", {})[0] == HTTPStatus.SERVICE_UNAVAILABLE
    assert ours.recv_bytes() == b""
    ours.send_bytes(b"text/plain\nold")

    def give():
        assert ours.recv_bytes() == b"x"
        ours.send_bytes(b"text/plain; x\nnew")

    monkeypatch.setattr(probes, "PAGE_TIMEOUT", 10)
    giver = threading.Thread(target=give)
    giver.start()
    assert answer("/metrics", {"Accept": "x"}) == (HTTPStatus.OK, b"new", "text/plain; x")
    giver.join()
    ours.close()
    theirs.close()


def test_a_connection_that_dribbles_is_closed(state, monkeypatch):
    monkeypatch.setattr(heads, "HEAD_SECONDS", 0.4)
    STATE.pack_into(state, 0, time.monotonic(), True, False)
    ours, theirs = Pipe()
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    loop = asyncio.new_event_loop()
    serving = loop.create_task(Port(Probes(state, theirs, None).answer).serve(listening))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    with socket.create_connection(address) as slow:
        slow.settimeout(0.05)
        ended = time.monotonic() + 10
        while not is_closed(slow):
            assert time.monotonic() < ended
            with contextlib.suppress(OSError):
                slow.sendall(b"G")
    assert fetch(f"{address[0]}:{address[1]}", "/readyz")[0] == 200
    loop.call_soon_threadsafe(serving.cancel)
    loop.call_soon_threadsafe(loop.call_later, 0.2, loop.stop)
    while loop.is_running():
        time.sleep(0.01)
    loop.close()
    listening.close()
    ours.close()
    theirs.close()


def children(pid):
    """Processes that answer probes for ``pid``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"serving.telemetry.probes" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_who_cannot_come_in_is_told_so_when_the_server_is_behind():
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.setblocking(False)
    # Nobody reads its other end, so that it is full after a few callers.
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    gate = Port(
        lambda *_: (HTTPStatus.OK, b"", "text/plain"), entrance=Entrance(channel, 512, 512, 60)
    )

    async def first_line(address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /v1/models HTTP/1.1\r\n\r\n")
        try:
            async with asyncio.timeout(1):
                return (await reader.readline()).decode() or "closed"
        except TimeoutError:
            return "waits"
        finally:
            writer.close()

    async def lines():
        listening = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.ensure_future(gate.serve(listening))
        result = await asyncio.gather(*(first_line(listening.getsockname()) for _ in range(30)))
        serving.cancel()
        listening.close()
        await asyncio.gather(*gate._tasks)
        return result

    with channel, other:
        assert set(asyncio.run(lines())) == {"waits", "HTTP/1.1 503 Service Unavailable\r\n"}


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_what_counts_as_one_address(one, other, is_same):
    sites = [_site(_host((address, 1))) for address in (one, other)]
    assert (sites[0] == sites[1]) is is_same


def test_it_ends_with_the_server_even_if_that_is_killed(repository):
    command = [
        sys.executable,
        "-m",
        "serving.cli",
        "serve",
        "--repository",
        str(repository),
        "--port",
        "0",
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [*command, "--http-port", str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout.readline().startswith("serving ")
        assert fetch(f"127.0.0.1:{port}", "/readyz")[0] == 200
        assert "process_resident_memory_bytes" in fetch(f"127.0.0.1:{port}", "/metrics")[1]
        (child,) = children(server.pid)
        os.kill(child, signal.SIGTERM)
        time.sleep(0.2)
        assert fetch(f"127.0.0.1:{port}", "/readyz")[0] == 200, (
            "who ends the group ends the server, which drains"
        )
    finally:
        server.kill()
        server.communicate()
    ended = time.monotonic() + 10
    while (
        Path(f"/proc/{child}/cmdline").exists()
        and b"probes" in Path(f"/proc/{child}/cmdline").read_bytes()
    ):
        assert time.monotonic() < ended, "it outlived the server"
        time.sleep(0.05)


def test_its_death_is_told(repository, run_server, caplog):
    # Those of servers that other tests started may still be ending.
    before = {*children(os.getpid())}
    with run_server(configured(repository, network__http_port=0)) as server:
        (child,) = {*children(os.getpid())} - before
        os.kill(child, signal.SIGKILL)
        ended = time.monotonic() + 10
        while "probe process ended with code -9" not in caplog.text and time.monotonic() < ended:
            time.sleep(0.05)
        assert "probe process ended with code -9" in caplog.text
        assert server.address
