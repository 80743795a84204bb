"""deploy/ and the Dockerfile say what the code does: options, ports, users, figures, and time
enough to end cleanly.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from serving.cli import app
from serving.config import ServerConfig
from serving.rpc.guard import check_exposure
from serving.settings import read_config
from serving.telemetry.metrics import COUNTERS, GAUGES, Telemetry

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = ROOT / "deploy" / "kubernetes"
LABEL = {"app.kubernetes.io/name": "wsss-serving"}
# The first is the oldest that takes a sleep before a container ends without a feature gate.
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]


def documents(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> dict[tuple[str, str], Any]:
    listed = documents(KUBERNETES / "base" / "kustomization.yaml")[0]["resources"]
    found = [document for name in listed for document in documents(KUBERNETES / "base" / name)]
    return {(document["kind"], document["metadata"]["name"]): document for document in found}


@pytest.fixture(scope="module")
def pod() -> Any:
    return manifests()["Deployment", "wsss-serving"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: Any) -> Any:
    (found,) = pod["containers"]
    return found


@pytest.fixture(scope="module")
def settings() -> ServerConfig:
    return read_config(KUBERNETES / "base" / "serving.toml")


def options(arguments: list[str]) -> set[str]:
    command, *words = arguments
    assert command == "serve"
    known = {
        option
        for parameter in get_command(app).commands[command].params
        for option in parameter.opts
    }
    used = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert used <= known
    return used


def test_every_file_parses_and_base_lists_all_of_its_own() -> None:
    for path in KUBERNETES.rglob("*.yaml"):
        for document in documents(path):
            assert isinstance(document, dict), path
    base = {path.name for path in (KUBERNETES / "base").glob("*.yaml")} - {"kustomization.yaml"}
    assert base == set(documents(KUBERNETES / "base" / "kustomization.yaml")[0]["resources"])


def merged(base: Any, patch: Any) -> Any:
    """A strategic merge as far as ``tls`` needs one: mappings by key, where null removes; lists of
    mappings by name or path; everything else is replaced.
    """
    if isinstance(base, dict) and isinstance(patch, dict):
        both = base | {key: merged(base.get(key), value) for key, value in patch.items()}
        return {key: value for key, value in both.items() if value is not None}
    if isinstance(base, list) and isinstance(patch, list) and isinstance(patch[0], dict):
        key = "mountPath" if "mountPath" in patch[0] else "name"
        changes = {one[key]: one for one in patch}
        items = [merged(one, changes.pop(one[key], {})) for one in base]
        return items + list(changes.values())
    return patch


def with_tls() -> dict[tuple[str, str], Any]:
    """What ``kubectl apply -k deploy/kubernetes/tls`` applies."""
    (patch,) = documents(KUBERNETES / "tls" / "deployment.yaml")
    name = ("Deployment", "wsss-serving")
    return manifests() | {name: merged(manifests()[name], patch)}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("variant", [manifests, with_tls])
def test_kubernetes_knows_every_field(variant: Any, version: str) -> None:
    for manifest in variant().values():
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"spec": {"replica": 2}}, "'replica' was unexpected"),
        ({"spec": {"minReadySeconds": "soon"}}, "'soon' is not of type"),
    ],
)
def test_kubernetes_refuses_what_it_does_not_know(change: Any, text: str) -> None:
    wrong = merged(manifests()["Deployment", "wsss-serving"], change)
    with pytest.raises(kubernetes_validate.ValidationError, match=text):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_the_settings_are_known_and_safe_without_insecure(
    settings: ServerConfig, container: Any
) -> None:
    assert not settings.access.insecure
    check_exposure(settings)
    assert options(container["args"]) == {"--config"}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert container["args"][-1] in mounts
    assert str(settings.repository) in mounts
    assert mounts[str(settings.repository)]["readOnly"]
    assert str(settings.access.tokens.parent) in mounts
    assert "subPath" not in mounts[str(settings.access.tokens.parent)], (
        "a file mounted alone is never renewed"
    )


def test_ports_agree(settings: ServerConfig, container: Any) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": settings.network.port, "http": settings.network.http_port}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]
        assert asked.get("grpc", {}).get("port", ports["grpc"]) == ports["grpc"]
        assert asked.get("httpGet", {"port": "http"})["port"] == "http"
        assert asked.get("httpGet", {"path": "/readyz"})["path"] in ("/healthz", "/readyz")
    for (kind, _), manifest in manifests().items():
        if kind == "Service":
            assert [(p["port"], p["targetPort"]) for p in manifest["spec"]["ports"]] == [
                (settings.network.port, "grpc")
            ]


def test_there_is_time_enough_to_end(settings: ServerConfig, pod: Any, container: Any) -> None:
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = before + settings.shutdown.lame_duck + settings.shutdown.grace
    assert needed < pod["terminationGracePeriodSeconds"]
    probe = container["readinessProbe"]
    assert settings.shutdown.lame_duck > probe["periodSeconds"] * probe.get("failureThreshold", 3)
    assert settings.connections.max_age > 0


def test_the_pod_may_do_nothing_that_it_does_not_need(pod: Any, container: Any) -> None:
    user = re.search(r"^USER (\d+):\1$", dockerfile("serving"), re.MULTILINE)
    assert user
    context = pod["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] == int(user[1])
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}
    assert {volume["name"] for volume in pod["volumes"]} == {
        mount["name"] for mount in container["volumeMounts"]
    }


def test_everything_selects_the_pods() -> None:
    found = manifests()
    deployment = found["Deployment", "wsss-serving"]["spec"]
    assert deployment["selector"]["matchLabels"] == LABEL
    assert deployment["template"]["metadata"]["labels"] == LABEL
    assert found["Service", "wsss-serving"]["spec"]["selector"] == LABEL
    assert found["Service", "wsss-serving-pods"]["spec"]["selector"] == LABEL
    assert found["Service", "wsss-serving-pods"]["spec"]["clusterIP"] == "None"
    assert found["PodDisruptionBudget", "wsss-serving"]["spec"]["selector"]["matchLabels"] == LABEL
    policy = found["NetworkPolicy", "wsss-serving"]["spec"]
    assert policy["podSelector"]["matchLabels"] == LABEL
    assert policy["egress"] == []
    target = found["HorizontalPodAutoscaler", "wsss-serving"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in found
    (monitor,) = documents(KUBERNETES / "podmonitor.yaml")
    assert monitor["spec"]["selector"]["matchLabels"] == LABEL


def test_figures_exist() -> None:
    """Every metric that a manifest names is one that the server has."""
    own = {metric.name for metric in Telemetry().registry.collect()}
    own |= {name for name, _, _ in (*GAUGES, *COUNTERS)} | {"wsss_model_ready", "wsss_model_info"}
    metric = manifests()["HorizontalPodAutoscaler", "wsss-serving"]["spec"]["metrics"][0]["pods"][
        "metric"
    ]["name"]
    (rule,) = documents(KUBERNETES / "prometheus-adapter.yaml")[0]["rules"]["custom"]
    assert rule["name"]["as"] == metric
    named = set()
    for path in (KUBERNETES / "prometheus-adapter.yaml", KUBERNETES / "prometheus-alerts.yaml"):
        expressions = re.sub(r"\{\{|summary:.*", "", path.read_text())
        named |= set(re.findall(r"\bwsss_[a-z_]+", expressions))
    assert metric in named
    assert {re.sub(r"_total$", "", name) for name in named} <= own


def test_tls_changes_what_tls_needs(container: Any) -> None:
    patch, base = documents(KUBERNETES / "tls" / "deployment.yaml")[0], container
    (changed,) = patch["spec"]["template"]["spec"]["containers"]
    assert changed["name"] == base["name"]
    assert options(changed["args"]) == {"--config", "--tls-cert", "--tls-key"}
    folder = changed["volumeMounts"][0]["mountPath"]
    files = [argument.partition("=")[2] for argument in changed["args"] if "tls-" in argument]
    assert files == [f"{folder}/tls.crt", f"{folder}/tls.key"]
    assert "subPath" not in changed["volumeMounts"][0]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert changed[probe]["httpGet"]["scheme"] == "HTTPS"
    assert changed["readinessProbe"]["grpc"] is None, "the kubelet speaks no TLS to gRPC"


def dockerfile(target: str) -> str:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    (stage,) = (stage for stage in stages if stage.startswith(f"base AS {target}\n"))
    return stage


def test_the_image_starts_and_asks_for_its_health_with_options_that_exist() -> None:
    stage = dockerfile("serving")
    arguments = json.loads(re.search(r"^CMD (\[.*\])$", stage, re.MULTILINE)[1])
    used = dict(zip(arguments[1::2], arguments[2::2]))
    assert options(arguments) == {"--repository", "--host", "--port", "--http-port", "--insecure"}
    assert f"EXPOSE {used['--port']} {used['--http-port']}\n" in stage
    health = json.loads(re.search(r"HEALTHCHECK .*CMD (\[.*\])$", stage, re.MULTILINE)[1])
    parameters = {
        parameter.name: parameter for parameter in get_command(app).commands[health[1]].params
    }
    assert parameters["address"].default == f"127.0.0.1:{used['--port']}"
    assert parameters["tls_ca"].envvar == "WSSS_TLS_CA"
