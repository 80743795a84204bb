"""Limits, tokens, connections and the end of the server hold for HTTP as for gRPC."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import numpy as np
import pytest
import trustme
from configs import configured
from http_calls import ask, fetch, is_closed
from PIL import Image
from servers import admitted, held, running, until

from serving.access import tokens as tokens_module
from serving.http import protocol
from serving.images import masks

SEGMENT = "/v1/models/colours/segment"
PNG = masks.encode_rgb(np.full((9, 11, 3), 200, np.uint8))
HEAD = f"POST {SEGMENT} HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n".encode()


def connect(server, source="127.0.0.1"):
    host, port = server.http_address.split(":")
    address = (host, int(port))
    return closing(socket.create_connection(address, timeout=120, source_address=(source, 0)))


@pytest.fixture(scope="module")
def api(repository):
    """A server with the HTTP API."""
    with running(configured(repository, network__http_port=0)) as started:
        yield started


def answer(connection):
    """Status and body of a reply on a socket."""
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    return reply.status, reply.read().decode()


def test_a_full_queue_is_429_with_the_time_to_come_back(repository, run_server):
    config = configured(repository, network__http_port=0, schedule__queue=1, schedule__workers=1)
    with run_server(config) as server, held(server) as go, ThreadPoolExecutor() as pool:
        first = pool.submit(ask, server.http_address, SEGMENT, PNG)
        until(lambda: admitted(server) == 1)
        refused = ask(server.http_address, SEGMENT, PNG)
        assert (refused.status, refused.json["reason"]) == (429, "QUEUE_FULL")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json["retry_after"] > 0
        go.set()
        assert first.result().status == 200


def test_a_caller_who_leaves_ends_its_run_and_leaves_nothing(repository, run_server):
    with run_server(configured(repository, network__http_port=0)) as server, held(server):
        with connect(server) as caller:
            length = f"content-length: {len(PNG)}\r\n\r\n".encode()
            caller.sendall(HEAD + length + PNG)
            until(lambda: admitted(server) == 1)
        until(lambda: admitted(server) == 0)
        until(lambda: server._calls.in_flight == 0)
        assert 'code="CANCELLED"' in fetch(server.http_address, "/metrics")[1]


@pytest.mark.parametrize(
    ("head", "body", "status"),
    [
        (b"content-length: 10000000000\r\n\r\n", b"x" * 100_000, 413),
        (b"transfer-encoding: chunked\r\n\r\n", b"186a0\r\n" + b"x" * 100_000 + b"\r\n", 413),
        (b"content-length: 1000\r\n\r\n", b"x", 408),
    ],
    ids=["too long by its head", "too long by its chunks", "too slow"],
)
def test_a_body_is_refused_before_its_end(repository, run_server, head, body, status):
    config = configured(
        repository, network__http_port=0, limits__max_bytes=50_000, limits__idle_seconds=0.5
    )
    with run_server(config) as server, connect(server) as caller:
        caller.sendall(HEAD + head + body)
        code, text = answer(caller)
        assert code == json.loads(text)["status"] == status
        until(lambda: is_closed(caller))
        assert server._calls.in_flight == 0
        assert server._calls._memory.taken == 0


def test_what_is_no_http_is_closed_and_harms_nobody(repository, run_server):
    config = configured(repository, network__http_port=0)
    with run_server(config) as server:
        for data in (
            b"\x16\x03\x01" * 9 + b"\n",
            b"GET\n\n",
            b"x" * 40_000,
            b"GET / HTTP/9\r\n\r\n",
        ):
            with connect(server) as caller:
                caller.sendall(data)
                until(lambda: is_closed(caller))
        huge = b"x: " + b"y" * 100_000 + b"\r\n\r\n"
        with connect(server) as caller:
            caller.sendall(HEAD + huge)
            code, text = answer(caller)
            assert code == json.loads(text)["status"] == 400
        assert ask(server.http_address, SEGMENT, PNG).status == 200


@pytest.mark.parametrize(
    ("begin", "status"),
    [
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n", 408),
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n", 200),
    ],
    ids=["head", "body that nobody reads"],
)
def test_a_caller_who_sends_now_and_then_loses_its_place(
    repository, run_server, monkeypatch, begin, status
):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    config = configured(repository, network__http_port=0, http__connections=1)
    with run_server(config) as server, connect(server) as caller:
        caller.sendall(begin)

        def is_over():
            time.sleep(0.05)
            try:
                caller.sendall(b"a")
            except OSError:
                return True
            return ask(server.http_address, "/v1/models").status == 200

        until(is_over, 20)
        code, text = answer(caller)
        assert code == status
        if status == 408:
            assert json.loads(text)["reason"] == "BODY_LATE"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n\x00\x01\x02\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"content-length: 5\r\n\r\n12345\x00\x01\r\n\r\n",
    ],
)
def test_nonsense_after_a_head_is_no_news_for_the_log(repository, run_server, data, caplog):
    with run_server(configured(repository, network__http_port=0)) as server:
        with connect(server) as caller:
            caller.sendall(data)
            assert answer(caller)[0] in (200, 400)
            until(lambda: is_closed(caller))
        until(lambda: server._calls.in_flight == 0)
        assert ask(server.http_address, SEGMENT, PNG).status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_one_connection_carries_many_requests_and_probes_are_elsewhere(repository, run_server):
    with run_server(configured(repository, network__http_port=0)) as server:
        host, port = server.http_address.split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        headers = {"content-type": "image/png"}
        for _ in range(3):
            connection.request("POST", SEGMENT, PNG, headers)
            reply = connection.getresponse()
            assert (reply.status, reply.read()[:4]) == (200, b"\x89PNG")
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        assert (reply.status, reply.headers["location"]) == (307, "/readyz")
        assert reply.headers["connection"] == "close"
        connection.close()


def test_too_many_connections_are_told_so_and_probes_still_answer(repository, run_server):
    config = configured(repository, network__http_port=0, http__connections=3, http__per_address=3)
    with run_server(config) as server:
        callers = [connect(server) for _ in range(5)]
        replies = []
        for entered in callers:
            caller = entered.__enter__()
            caller.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            replies.append(answer(caller))
        assert [status for status, _ in replies] == [200, 200, 200, 429, 429]
        problem = json.loads(replies[-1][1])
        assert problem["detail"] == "3 connections of this caller are open already"
        with connect(server, "127.0.0.2") as other:
            other.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            status, text = answer(other)
        assert (status, json.loads(text)["detail"]) == (503, "3 connections are open already")
        assert fetch(server.http_address, "/readyz")[0] == 200
        for entered in callers:
            entered.__exit__(None, None, None)
        until(lambda: ask(server.http_address, "/v1/models").status == 200)


def test_one_address_cannot_hold_all_connections(repository, run_server):
    config = configured(repository, network__http_port=0, http__connections=4)
    request = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
    with run_server(config) as server, ExitStack() as stack:
        statuses = []
        for source in ["127.0.0.1"] * 3 + ["127.0.0.2"]:
            caller = stack.enter_context(connect(server, source))
            caller.sendall(request)
            statuses.append(answer(caller)[0])
        assert statuses == [200, 200, 429, 200]
        assert fetch(server.http_address, "/readyz")[0] == 200


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET http://x/v1/models HTTP/1.1", 200),
        (b"GET HTTPS://other.example:1/v1/models/?a=/ HTTP/1.1", 200),
        (b"GET http://x HTTP/1.1", 200),
        (b"GET http://x?a=b HTTP/1.1", 200),
        (b"GET http://x/readyz HTTP/1.1", 200),
        (b"HEAD http://x/healthz/?a HTTP/1.1", 200),
        (b"GET /v1/models/ HTTP/1.1", 200),
        (b"GET /http://x/v1/models HTTP/1.1", 404),
        (b"GET ftp://x/v1/models HTTP/1.1", 404),
    ],
)
def test_a_request_line_may_name_the_host_and_end_in_a_slash(api, line, status):
    with connect(api) as caller:
        caller.sendall(line + b"\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert caller.recv(100).split()[1] == str(status).encode()


@pytest.mark.parametrize("line", [f"POST {SEGMENT}", "GET /v1/models", "GET /openapi.json"])
def test_a_request_of_two_lengths_is_refused_and_ends_its_connection(api, line):
    with connect(api) as caller:
        lengths = "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        caller.sendall(f"{line} HTTP/1.1\r\nhost: x\r\n{lengths}".encode())
        status, text = answer(caller)
        assert (status, json.loads(text)["detail"]) == (
            400,
            "content-length beside transfer-encoding",
        )
        until(lambda: is_closed(caller))


def test_a_slash_at_the_end_sends_no_picture_elsewhere(api):
    assert ask(api.http_address, f"{SEGMENT}/", PNG).body[:4] == b"\x89PNG"


@pytest.fixture
def tokens(tmp_path):
    """A token file, and the token of each role."""
    made = {role: tokens_module.new_token(f"the-{role}", [role]) for role in tokens_module.ROLES}
    path = tmp_path / "tokens"
    path.write_text("\n".join(line for _, line in made.values()) + "\n")
    return path, {role: token for role, (token, _) in made.items()}


def test_tokens_and_roles(repository, run_server, tokens):
    path, secret = tokens
    config = configured(repository, network__http_port=0, access__tokens=path)
    with run_server(config) as server:

        def status(token):
            headers = {"authorization": f"Bearer {token}"} if token else {}
            reply = ask(server.http_address, SEGMENT, PNG, headers)
            return reply.status, reply.headers.get("www-authenticate")

        assert status("") == (401, "Bearer")
        assert status("x" * 43) == (401, "Bearer")
        assert status(secret["metrics"]) == (403, None)
        assert status(secret["infer"]) == (200, None)
        assert ask(server.http_address, "/v1/models").status == 401
        assert ask(server.http_address, "/openapi.json").status == 200
        page = fetch(server.http_address, "/metrics", token=secret["metrics"])[1]
        assert 'reason="TOKEN_MISSING",rpc="POST /v1/models/{name}/segment"' in page


def test_tls_and_client_certificates(repository, run_server, tmp_path):
    authority, clients = trustme.CA(), trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(tmp_path / "key")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    clients.cert_pem.write_to_path(tmp_path / "clients")
    config = configured(
        repository,
        network__http_port=0,
        access__cert=tmp_path / "cert",
        access__key=tmp_path / "key",
        access__client_ca=tmp_path / "clients",
    )
    with run_server(config) as server:
        context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
        assert fetch(server.http_address, "/readyz", context)[0] == 200
        code, text = fetch(server.http_address, "/v1/models", context)
        assert (code, "CERTIFICATE_MISSING" in text) == (401, True)
        clients.issue_cert("me", common_name="annotator").configure_cert(context)
        assert fetch(server.http_address, "/v1/models", context)[0] == 200


def test_the_share_of_a_caller_counts_both_ways_of_calling(repository, run_server):
    from serving.client import Client
    from serving.errors import CallerBusy

    config = configured(repository, network__http_port=0, limits__max_per_caller=1)
    with run_server(config) as server, held(server) as go, ThreadPoolExecutor() as pool:
        first = pool.submit(ask, server.http_address, SEGMENT, PNG)
        until(lambda: admitted(server) == 1)
        with Client(server.address, retries=0) as client, pytest.raises(CallerBusy):
            client.segment(PNG, "colours")
        go.set()
        assert first.result().status == 200


def test_the_end_finishes_what_it_has_and_refuses_what_is_new(repository, run_server):
    config = configured(repository, network__http_port=0, schedule__workers=1)
    with run_server(config) as server, held(server) as go, ThreadPoolExecutor() as pool:
        waiting = [pool.submit(ask, server.http_address, SEGMENT, PNG) for _ in range(3)]
        until(lambda: admitted(server) == 3)
        stop = server.stop
        ending = asyncio.run_coroutine_threadsafe(stop(), server.loop)
        until(server._calls.ending.is_set)
        refused = ask(server.http_address, SEGMENT, PNG)
        assert (refused.status, refused.json["reason"]) == (503, "UNAVAILABLE")
        assert "retry-after" in refused.headers
        go.set()
        assert [reply.result().status for reply in waiting] == [200] * 3
        assert ending.result(30)

        async def once():
            return True

        server.stop = once


def test_a_thousand_connections_are_answered_or_told_to_come_back(repository, run_server):
    with run_server(configured(repository, network__http_port=0)) as server:

        async def one():
            host, port = server.http_address.split(":")
            try:
                reader, writer = await asyncio.open_connection(host, int(port))
                length = f"content-length: {len(PNG)}\r\nconnection: close\r\n\r\n".encode()
                writer.write(HEAD + length + PNG)
                status = (await reader.read()).split(b" ")[1:2]
            except OSError:
                return b"closed"
            writer.close()
            return status[0] if status else b"closed"

        async def every():
            # As many at once as the descriptors of this process allow.
            statuses = []
            for _ in range(5):
                statuses += await asyncio.gather(*(one() for _ in range(200)))
            return statuses

        statuses = asyncio.run(every())
        assert set(statuses) <= {b"200", b"429", b"503", b"closed"}
        assert statuses.count(b"200") > 100
        assert statuses.count(b"closed") < 20
        until(lambda: server._calls.in_flight == 0)
        assert server._calls._memory.taken == 0
        assert ask(server.http_address, SEGMENT, PNG).status == 200


def test_a_picture_of_the_page_is_read_as_over_grpc(repository, run_server, tmp_path):
    """Every kind of file that gRPC takes."""
    import io

    with run_server(configured(repository, network__http_port=0)) as server:
        for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF"):
            file = io.BytesIO()
            Image.fromarray(np.full((9, 11, 3), 200, np.uint8)).save(file, kind)
            headers = {"content-type": f"image/{kind.lower()}"}
            assert ask(server.http_address, SEGMENT, file.getvalue(), headers).status == 200
