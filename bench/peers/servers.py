"""Start other servers, each from its own environment (``setup.sh``), on this machine only, for the
length of a ``with`` block.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from serving.bench.load import OPTIONS
from serving.bench.target import Running, ended, free_port
from wsss.inference import open_inference_pb2 as pb
from wsss.inference import open_inference_pb2_grpc

HERE = Path(__file__).parent
START_SECONDS = 90.0
END_SECONDS = 30.0


class PeerError(Exception):
    """The peer is not set up or does not start."""


@contextmanager
def triton(folder: Path, repository: Path, model: str) -> Iterator[Running]:
    """Run NVIDIA Triton on a repository whose ``config.pbtxt`` files name the backend onnxruntime;
    ``model`` is one of its models.
    """
    home = environment(folder, "triton")
    site = next(home.glob("lib/python3*/site-packages"))
    inside = site / "pytriton" / "tritonserver"
    with tempfile.TemporaryDirectory() as folder_name:
        backends = Path(folder_name, "backends")
        shutil.copytree(inside / "backends" / "python", backends / "python")
        shutil.copytree(HERE / "triton_backend", backends / "onnxruntime")
        port = free_port()
        command = [
            str(inside / "bin" / "tritonserver"),
            *("--model-repository", str(repository), "--backend-directory", str(backends)),
            *(
                "--disable-auto-complete-config",
                "--allow-http",
                "false",
                "--allow-metrics",
                "false",
            ),
            *("--grpc-address", "127.0.0.1", "--grpc-port", str(port), "--log-info", "false"),
        ]
        variables = {
            "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(home),
            "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        }
        with running("triton", command, variables, Path(folder_name), port, model) as started:
            yield started


@contextmanager
def mlserver(folder: Path, graph: Path, name: str) -> Iterator[Running]:
    """Run MLServer with one graph, as its user would write it.

    The model runs in MLServer's own process. Its default, a separate worker, gets every tensor
    through a pipe, which is slower, and does not start with uvloop 0.22.
    """
    home = environment(folder, "mlserver")
    with tempfile.TemporaryDirectory() as folder_name:
        port = free_port()
        settings = {
            "host": "127.0.0.1",
            "grpc_port": port,
            "http_port": free_port(),
            "metrics_port": free_port(),
        }
        Path(folder_name, "settings.json").write_text(
            json.dumps(settings | {"debug": False, "parallel_workers": 0})
        )
        model = {
            "name": name,
            "implementation": "mlserver_runtime.OnnxModel",
            "parameters": {"uri": str(graph)},
        }
        Path(folder_name, "model-settings.json").write_text(json.dumps(model))
        shutil.copy(HERE / "mlserver_runtime.py", folder_name)
        command = [str(home / "bin" / "mlserver"), "start", folder_name]
        with running(
            "mlserver", command, {"PYTHONPATH": folder_name}, Path(folder_name), port, name
        ) as started:
            yield started


def perf_analyzer(
    folder: Path, address: str, model: str, options: Sequence[str], seconds: float
) -> float:
    """Requests a second by NVIDIA's own load generator; NaN if it gave up.

    Raises:
        PeerError: it is not set up.
    """
    home = environment(folder, "perf_analyzer")
    with tempfile.TemporaryDirectory() as folder_name:
        table = Path(folder_name, "table.csv")
        window = str(int(1000 * seconds / 3))
        command = [
            *(str(home / "run"), "-m", model, "-i", "grpc", "-u", address, *options),
            # Until three windows in a row agree; on a machine with other work, figures that differ
            # twofold are stable enough.
            *("-p", window, "-r", "10", "-s", "100", "-f", str(table)),
        ]
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=20 * seconds + 60, check=False
        )
        if process.returncode or not table.exists():
            print(
                f"perf_analyzer: {(process.stderr or process.stdout).strip()[-300:]}",
                file=sys.stderr,
            )
            return math.nan
        with table.open() as lines:
            return float(next(csv.DictReader(lines))["Inferences/Second"])


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its children."""
    parents: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = stat.read_text().rpartition(")")[2].split()
            child = int(stat.parent.name)
            parents.setdefault(int(words[1]), []).append(child)
            ticks[child] = int(words[11]) + int(words[12])
    family = [pid]
    for member in family:
        family += parents.get(member, [])
    return sum(ticks.get(member, 0) for member in family) / os.sysconf("SC_CLK_TCK")


def environment(folder: Path, name: str) -> Path:
    """Where ``setup.sh`` put a peer.

    Raises:
        PeerError: it did not.
    """
    if not (folder / name / "ready").exists():
        raise PeerError(f"{name} is not set up in {folder}: run bench/peers/setup.sh {folder}")
    return (folder / name).resolve()


@contextmanager
def running(
    name: str, command: list[str], variables: dict[str, str], folder: Path, port: int, model: str
) -> Iterator[Running]:
    """Run a process that serves a model on a gRPC port, until the end of the block.

    Raises:
        PeerError: it ended or was not ready in time.
    """
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    log = folder / "log"
    address = f"127.0.0.1:{port}"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, cwd=folder, env=inherited | variables, stdout=output, stderr=output, text=True
        ) as process,
        ended(process, END_SECONDS),
    ):
        try:
            wait_until_ready(address, process, model)
        except PeerError as error:
            raise PeerError(f"{name}: {error}: {log.read_text()[-2000:]}") from error
        yield Running(address, process=process)


def wait_until_ready(address: str, process: subprocess.Popen[str], model: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with grpc.insecure_channel(address, options=OPTIONS) as channel:
            service = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            with contextlib.suppress(grpc.RpcError):
                if service.ModelReady(pb.ModelReadyRequest(name=model), timeout=2).ready:
                    return
        time.sleep(0.2)
    raise PeerError(
        "it ended" if process.poll() is not None else f"not ready after {START_SECONDS:g} s"
    )
