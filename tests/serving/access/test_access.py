"""TLS, tokens, roles, and the doors that stay shut."""

from __future__ import annotations

import dataclasses
import datetime
import json
import ssl
import sys
import threading
import time

import grpc
import oip_calls
import pytest
import trustme
from configs import configured
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from http_calls import fetch, is_closed
from oip_calls import code, sums
from PIL import Image
from servers import until

from serving.access import tokens as tokens_module
from serving.access import watched
from serving.access.certificates import Certificates
from serving.access.tls import check_dates
from serving.cli import main
from serving.config import ServerConfig
from serving.errors import StartError
from serving.rpc import guard
from serving.server import Server
from serving.settings import set_values
from serving.telemetry.port import MAX_SILENT
from wsss.inference import open_inference_pb2 as pb
from wsss.inference import open_inference_pb2_grpc
from wsss.v1 import segmentation_pb2, segmentation_pb2_grpc


@pytest.fixture
def keys(tmp_path):
    """Writes certificate and key that an authority signed; returns the authority."""
    authority = trustme.CA()

    def write(name="server", signed_by=authority):
        issued = signed_by.issue_cert("127.0.0.1", "localhost")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        tmp_path.joinpath(f"{name}.crt").write_bytes(
            b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        )
        return signed_by

    write()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    write.authority = authority
    write.folder = tmp_path
    return write


def secure(keys, **settings):
    return {
        "access__cert": keys.folder / "server.crt",
        "access__key": keys.folder / "server.key",
        **settings,
    }


def trusting(authority, **files):
    return grpc.ssl_channel_credentials(authority.cert_pem.bytes(), **files)


def live(address, credentials, **options):
    with grpc.secure_channel(address, credentials) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        return code(stub.ServerMetadata, pb.ServerMetadataRequest(), **options)[0]


def test_tls_on_both_ports_and_a_new_certificate_without_a_restart(repository, run_server, keys):
    config = configured(repository, **secure(keys, network__http_port=0))
    with run_server(config) as server:
        context = ssl.create_default_context(cadata=keys.authority.cert_pem.bytes().decode())
        assert live(server.address, trusting(keys.authority)) == "OK"
        assert fetch(server.http_address, "/healthz", context) == (200, "ok\n")
        with grpc.insecure_channel(server.address) as channel:
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert code(stub.ServerLive, pb.ServerLiveRequest())[0] == "UNAVAILABLE"
        other = trustme.CA()
        keys(signed_by=other)
        assert live(server.address, trusting(other)) == "OK"
        assert live(server.address, trusting(keys.authority)) == "UNAVAILABLE"
        renewed = ssl.create_default_context(cadata=other.cert_pem.bytes().decode())
        assert fetch(server.http_address, "/healthz", renewed)[0] == 200
        (keys.folder / "server.key").write_text("no key")
        assert live(server.address, trusting(other)) == "OK", "a bad change is not taken"
        assert fetch(server.http_address, "/healthz", renewed)[0] == 200


DAY = datetime.timedelta(days=1)


def dated(keys, begin, end):
    """Exchange the server's certificate for one of other dates, in days from now."""
    now = datetime.datetime.now(datetime.UTC)
    issued = keys.authority.issue_cert(
        "127.0.0.1", not_before=now + begin * DAY, not_after=now + end * DAY
    )
    issued.private_key_pem.write_to_path(keys.folder / "server.key")
    keys.folder.joinpath("server.crt").write_bytes(issued.cert_chain_pems[0].bytes())


@pytest.mark.parametrize(("begin", "end", "fault"), [(-9, -1, "has expired"), (1, 9, "not valid")])
def test_a_certificate_of_another_time_warns_and_replaces_no_good_one(
    repository, run_server, keys, caplog, monkeypatch, begin, end, fault
):
    monkeypatch.setattr(watched, "RETRY_SECONDS", 0.1)
    config = configured(repository, **secure(keys, network__http_port=0))
    context = ssl.create_default_context(cadata=keys.authority.cert_pem.bytes().decode())
    with run_server(config) as server:
        assert "will refuse" not in caplog.text
        assert fetch(server.http_address, "/healthz", context)[0] == 200
        dated(keys, begin, end)
        for _ in range(2):
            assert live(server.address, trusting(keys.authority)) == "OK"
            assert fetch(server.http_address, "/healthz", context)[0] == 200
            time.sleep(0.2)
        assert caplog.text.count(fault) == 1, "once, however often it is looked at"
        dated(keys, -1, 9)
        assert live(server.address, trusting(keys.authority)) == "OK"
    caplog.clear()
    dated(keys, begin, end)
    with run_server(config) as server:
        assert "clients will refuse to connect" in caplog.text
        assert fault in caplog.text
        assert live(server.address, trusting(keys.authority)) == "UNAVAILABLE"
        dated(keys, -1, 9)
        assert live(server.address, trusting(keys.authority)) == "OK"


def test_a_certificate_is_taken_once_its_time_has_come(keys, monkeypatch):
    monkeypatch.setattr(watched, "RETRY_SECONDS", 0.0)
    access = configured(keys.folder, **secure(keys)).access
    certificates = Certificates(access)
    dated(keys, 1, 9)
    assert certificates._changed() is None
    monkeypatch.setattr(certificates._configuration, "_accept", lambda: None)
    assert certificates._changed() is not None


def test_of_those_who_sign_callers_one_must_be_valid(keys):
    old = trustme.CA()
    access = configured(keys.folder, **secure(keys)).access
    bundle = keys.folder / "bundle.crt"
    now = datetime.datetime.now(datetime.UTC)
    expired = old.issue_cert("old", not_before=now - 9 * DAY, not_after=now - DAY)
    bundle.write_bytes(expired.cert_chain_pems[0].bytes())
    access = dataclasses.replace(access, client_ca=bundle)
    with pytest.raises(StartError, match="has expired"):
        check_dates(access)
    bundle.write_bytes(bundle.read_bytes() + b"remarks\n" + old.cert_pem.bytes())
    check_dates(access)
    for text in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        bundle.write_bytes(text)
        with pytest.raises(StartError):
            check_dates(access)


def test_mutual_tls_asks_grpc_callers_and_no_probe(repository, run_server, keys):
    clients = trustme.CA()
    clients.cert_pem.write_to_path(keys.folder / "clients.crt")
    config = configured(
        repository,
        **secure(keys, access__client_ca=keys.folder / "clients.crt", network__http_port=0),
    )
    with run_server(config) as server:
        assert live(server.address, trusting(keys.authority)) == "UNAVAILABLE"
        for authority, expected in ((clients, "OK"), (trustme.CA(), "UNAVAILABLE")):
            own = authority.issue_cert("client")
            files = {
                "private_key": own.private_key_pem.bytes(),
                "certificate_chain": own.cert_chain_pems[0].bytes(),
            }
            assert live(server.address, trusting(keys.authority, **files)) == expected
        context = ssl.create_default_context(cadata=keys.authority.cert_pem.bytes().decode())
        assert fetch(server.http_address, "/readyz", context) == (200, "ready\n")


@pytest.fixture
def tokens(tmp_path):
    """A token file, and the token of each role."""
    made = {role: tokens_module.new_token(f"the-{role}", [role]) for role in tokens_module.ROLES}
    path = tmp_path / "tokens"
    path.write_text("# callers\n\n" + "\n".join(line for _, line in made.values()) + "\n")
    return path, {role: token for role, (token, _) in made.items()}


def bearer(token):
    return (("authorization", f"Bearer {token}"),)


def test_tokens_and_roles(tmp_path, run_server, tokens, server):
    path, secret = tokens
    config = configured(
        oip_repository(tmp_path),
        access__tokens=path,
        models__control="explicit",
        network__http_port=0,
    )
    with run_server(config) as guarded, oip_calls.stub(guarded.address) as calls:
        load, unload = calls.RepositoryModelLoad, calls.RepositoryModelUnload
        named = pb.RepositoryModelLoadRequest(model_name="sums")
        assert code(load, named, metadata=bearer(secret["control"]))[0] == "OK"
        assert code(calls.ModelInfer, sums(), metadata=bearer(secret["infer"]))[0] == "OK"
        assert code(calls.ModelInfer, sums())[:2] == ("UNAUTHENTICATED", "TOKEN_MISSING")
        assert code(calls.ModelInfer, sums(), metadata=bearer("x" * 43))[:2] == (
            "UNAUTHENTICATED",
            "TOKEN_UNKNOWN",
        )
        assert code(calls.ModelInfer, sums(), metadata=bearer(secret["control"]))[:2] == (
            "PERMISSION_DENIED",
            "ROLE_MISSING",
        )
        for call, request in (
            (load, named),
            (unload, pb.RepositoryModelUnloadRequest(model_name="sums")),
        ):
            status, reason, text = code(call, request, metadata=bearer(secret["infer"]))
            assert (status, reason) == ("PERMISSION_DENIED", "ROLE_MISSING")
            assert "the role control" in text
        streamed = code(
            lambda request, timeout: list(calls.ModelStreamInfer(iter([request]))), sums()
        )
        assert streamed[0] == "UNAUTHENTICATED"
        with grpc.insecure_channel(guarded.address) as channel:
            ours = segmentation_pb2_grpc.SegmentationStub(channel)
            listing = segmentation_pb2.ListModelsRequest()
            assert code(ours.ListModels, listing)[0] == "UNAUTHENTICATED"
            assert code(ours.ListModels, listing, metadata=bearer(secret["infer"]))[0] == "OK"
            assert (
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
                == 1
            )
            reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
            with pytest.raises(grpc.RpcError):
                next(reflect(iter(asked)))
            assert next(
                reflect(iter(asked), metadata=bearer(secret["metrics"]))
            ).list_services_response.service
        assert fetch(guarded.http_address, "/metrics")[0] == 401
        assert fetch(guarded.http_address, "/metrics", token=secret["infer"])[0] == 403
        page = fetch(guarded.http_address, "/metrics", token=secret["metrics"])[1]
        assert 'code="UNAUTHENTICATED",model="",reason="TOKEN_MISSING"' in page
        assert not any(token in page for token in secret.values())
        assert fetch(guarded.http_address, "/readyz") == (200, "ready\n")
        path.write_text(path.read_text().replace("the-infer infer", "the-infer metrics"))
        assert (
            code(calls.ModelInfer, sums(), metadata=bearer(secret["infer"]))[0]
            == "PERMISSION_DENIED"
        )
        path.write_text("not a line\n")
        assert (
            code(calls.ServerLive, pb.ServerLiveRequest(), metadata=bearer(secret["infer"]))[0]
            == "PERMISSION_DENIED"
        )


def oip_repository(tmp_path):
    import tiny_models

    tiny_models.export(tmp_path / "models", "sums", "tensor")
    return tmp_path / "models"


def test_what_would_open_a_door_by_accident_does_not_start(repository, keys, tokens, caplog):
    path, _ = tokens

    def check(*texts):
        guard.check_exposure(set_values(ServerConfig(repository), texts))

    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check(f"network.host={host}")
    for host in ("0.0.0.0", "::", "192.168.1.5", "some.host"):
        with pytest.raises(StartError, match="anyone could call"):
            check(f"network.host={host}")
        check(f"network.host={host}", "access.insecure=true")
    check("network.host=0.0.0.0", f"access.tokens={path}")
    assert "unencrypted" in caplog.text
    tls = (f"access.cert={keys.folder / 'server.crt'}", f"access.key={keys.folder / 'server.key'}")
    check("network.host=0.0.0.0", *tls)
    with pytest.raises(StartError, match="load and unload"):
        check("network.host=0.0.0.0", "models.control=explicit", *tls)
    check("models.control=explicit")


def test_bad_files_are_told_before_the_start(repository, keys, tmp_path):
    keys("other")
    folder = keys.folder
    (folder / "junk").write_text("junk")
    for settings, told in (
        ({"access__cert": folder / "server.crt"}, "certificate and its key"),
        (
            {"access__cert": folder / "server.crt", "access__key": folder / "other.key"},
            "do not load",
        ),
        ({"access__cert": folder / "junk", "access__key": folder / "server.key"}, "do not load"),
        (secure(keys, access__client_ca=folder / "junk"), "do not load"),
        (secure(keys, access__client_ca=folder / "none"), "do not load"),
        ({"access__tokens": folder / "none"}, "cannot be read"),
        ({"access__tokens": folder / "junk"}, "a bad line in the token file"),
    ):
        with pytest.raises(StartError, match=told):
            Server(configured(repository, **settings))


def test_a_new_token_and_bad_roles():
    token, line = tokens_module.new_token("me", ["infer", "metrics"])
    assert token not in line
    assert len(token) >= 43
    for name, roles in (("me", ["root"]), ("my name", ["infer"]), ("me", [])):
        with pytest.raises(StartError):
            tokens_module.new_token(name, roles)


def test_comparing_takes_every_entry(monkeypatch, tokens):
    path, secret = tokens
    seen = []
    original = tokens_module.hmac.compare_digest
    monkeypatch.setattr(
        tokens_module.hmac, "compare_digest", lambda a, b: seen.append(a) or original(a, b)
    )
    tokens_module.Tokens(path).caller(f"bearer {secret['infer']}")
    assert len(seen) == len(tokens_module.ROLES)


def test_the_probe_port_limits_its_callers_and_answers_while_the_loop_stands_still(
    repository, run_server
):
    import asyncio
    import socket

    with run_server(configured(repository, network__http_port=0)) as server:
        host, port = server.http_address.split(":")
        assert fetch(server.http_address, "/nothing")[0] == 404
        assert "wsss_ready 1.0" in fetch(server.http_address, "/metrics")[1]
        silent = [socket.create_connection((host, int(port))) for _ in range(MAX_SILENT + 20)]
        # The oldest, long before their time is over.
        until(lambda: all(map(is_closed, silent[:20])), 5)
        # They do not keep probes out.
        assert fetch(server.http_address, "/readyz")[0] == 200
        for connection in silent:
            connection.close()
        asyncio.run_coroutine_threadsafe(_block(2.0), server.loop)
        began = time.monotonic()
        while True:
            try:
                assert fetch(server.http_address, "/readyz")[0] == 200
                break
            except OSError:
                time.sleep(0.05)
        assert time.monotonic() - began < 1.5, "the loop was not waited for"


async def _block(seconds):
    time.sleep(seconds)


def test_the_command_lines_of_tokens_and_tls(repository, run_server, keys, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["wsss-serving", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    path, image, mask = (keys.folder / name for name in ("tokens", "image.png", "mask.png"))
    Image.new("RGB", (20, 20), (255, 0, 0)).save(image)
    code, out, _ = run(
        "token", "me", "--role", "infer", "--role", "metrics", "--file", path, "--json"
    )
    assert code == 0
    made = json.loads(out)
    assert path.read_text() == made["line"] + "\n"
    assert made["token"] not in path.read_text()
    assert "token: " in run("token", "you", "--role", "infer")[1]
    assert run("token", "a b", "--role", "infer")[0] == 2
    assert run("token", "me", "--role", "root")[0] == 2
    assert run("token", "me", "--role", "infer", "--file", keys.folder / "no" / "file")[0] == 2
    with run_server(configured(repository, **secure(keys, access__tokens=path))) as server:
        ca = keys.folder / "ca.crt"
        assert run("health", "--address", server.address, "--timeout", 1)[0] == 1
        assert run("health", "--address", server.address, "--tls-ca", ca)[0] == 0
        monkeypatch.setenv("WSSS_TLS_CA", str(ca))
        assert run("health", "--address", server.address)[0] == 0
        code, _, err = run("segment", image, mask, "--address", server.address)
        assert (code, "no token" in err) == (2, True)
        assert (
            run("segment", image, mask, "--address", server.address, "--token", made["token"])[0]
            == 0
        )
        assert mask.exists()
        assert made["token"] not in capsys.readouterr().err
    assert run("health", "--tls-ca", keys.folder / "none")[0] == 2
    monkeypatch.delenv("WSSS_TLS_CA")
    assert run("health", "--tls-cert", keys.folder / "server.crt")[0] == 2


def test_one_caller_may_not_take_every_place(repository, run_server, tokens, monkeypatch):
    path, secret = tokens
    config = configured(repository, access__tokens=path, limits__max_per_caller=2)
    path.write_text(path.read_text().replace("the-metrics metrics", "other infer"))
    with run_server(config) as server, grpc.insecure_channel(server.address) as channel:
        stub = segmentation_pb2_grpc.SegmentationStub(channel)
        engine = server.models.find("colours", 0, None).engine
        go, run = threading.Event(), engine.run
        monkeypatch.setattr(engine, "run", lambda *arguments: go.wait(20) and run(*arguments))
        raw = segmentation_pb2.RawImage(height=9, width=9, pixels=bytes(243))
        request = segmentation_pb2.SegmentRequest(
            model="colours", image=segmentation_pb2.Image(raw=raw)
        )
        waiting = [
            stub.Segment.future(request, timeout=20, metadata=bearer(secret["infer"]))
            for _ in range(2)
        ]
        while server.models.find("colours", 0, None).batcher.statistics().admitted < 2:
            time.sleep(0.01)
        assert code(stub.Segment, request, metadata=bearer(secret["infer"]))[:2] == (
            "RESOURCE_EXHAUSTED",
            "CALLER_LIMIT",
        )
        other = stub.Segment.future(request, timeout=20, metadata=bearer(secret["metrics"]))
        while server.models.find("colours", 0, None).batcher.statistics().admitted < 3:
            time.sleep(0.01)
        go.set()
        assert all(call.result().mask.png for call in (*waiting, other))
        assert code(stub.Segment, request, metadata=bearer(secret["infer"]))[0] == "OK"
        listing = segmentation_pb2.ListModelsRequest()
        assert stub.ListModels(listing, metadata=bearer(secret["infer"])).limits.max_per_caller == 2


def test_without_tokens_a_caller_is_its_certificate_or_its_address(
    repository, run_server, keys, caplog
):
    caplog.set_level("DEBUG")
    clients = trustme.CA()
    clients.cert_pem.write_to_path(keys.folder / "clients.crt")
    own = clients.issue_cert("somewhere", common_name="annotator")
    files = {
        "private_key": own.private_key_pem.bytes(),
        "certificate_chain": own.cert_chain_pems[0].bytes(),
    }
    with run_server(
        configured(repository, **secure(keys, access__client_ca=keys.folder / "clients.crt"))
    ) as server:
        assert live(server.address, trusting(keys.authority, **files)) == "OK"
    with run_server(configured(repository)) as server, oip_calls.stub(server.address) as calls:
        assert code(calls.ServerMetadata, pb.ServerMetadataRequest())[0] == "OK"
        assert calls.ServerLive(pb.ServerLiveRequest()).live
    callers = [
        record.fields["caller"] for record in caplog.records if record.name == "serving.requests"
    ]
    assert callers == ["annotator", "ipv4:127.0.0.1"]
