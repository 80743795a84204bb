"""What ``bench/serve.py`` measures beyond ``wsss-serving bench``: the wait for a batch, sizes
rounded up, labelling a folder, and probes during large messages.

The sides of a ratio take turns within a round, so that other work on the machine affects both.
"""

from __future__ import annotations

import http.client
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.bench import Experiment, Figure, Round, load, target
from serving.bench.load import Request
from serving.bench.setting import WARM_SECONDS, Setting
from serving.bench.target import INFER, SEGMENT, Running, Target, infer_message
from serving.client.connection import open_channel
from serving.config import EngineConfig
from serving.engines import Plan
from serving.errors import BenchError
from serving.labelling import label
from serving.labelling.labeller import LabelConfig
from serving.repository.loading import open_engine
from serving.scheduling.cpus import available_cpus
from wsss.v1 import segmentation_pb2 as pb

DELAY_MS = 5.0
STALL_SECONDS = 0.02
BUCKET = 16
LARGE = 48 * 2**20
PROBE_SECONDS = 0.02


def waiting(setting: Setting) -> Iterator[Round]:
    """Measure whether a request ever waits longer for its batch than the delay and one run.

    There are as many callers as a batch takes, all with the same request, so whatever waits when a
    worker is free fits into its run.
    """
    config, request = setting.config, setting.target.request()
    request = replace(request, messages=request.messages[:1], timed=True)
    with setting.server(
        f"schedule.max_batch={config.callers}", f"schedule.max_delay_ms={DELAY_MS}"
    ) as running:
        setting.warm(running)
        replies = setting.closed(running, config.callers, request, config.rounds * config.seconds)
        late = np.subtract(replies.queued, DELAY_MS / 1e3 + max(replies.ran))
        yield {
            "batch-wait": 1e3 * float(late.max()),
            "requests": len(late),
            "stalls": int((late > STALL_SECONDS).sum()),
            "longest_wait_ms": 1e3 * max(replies.queued),
            "longest_run_ms": 1e3 * max(replies.ran),
        }


def buckets(setting: Setting) -> Iterator[Round]:
    """Compare a server that rounds the sizes of images up and batches those that are then equal
    with one that does not.
    """
    callers = 4 * setting.config.callers
    with (
        setting.server(f"schedule.bucket={BUCKET}", "schedule.max_batch=4") as rounded,
        setting.server() as exact,
    ):
        for running in (rounded, exact):
            setting.closed(running, callers, seconds=WARM_SECONDS)
        for _ in range(setting.config.rounds):
            rates = [setting.closed(running, callers).rate for running in (rounded, exact)]
            yield {
                "rounded-sizes": rates[0] / rates[1],
                "buckets_per_second": rates[0],
                "exact_per_second": rates[1],
            }


def labelling(setting: Setting) -> Iterator[Round]:
    """Compare ``wsss-serving label`` with the bare loop in one process per processor."""
    seconds, images, processes = setting.config.seconds, setting.target.images, available_cpus()
    with tempfile.TemporaryDirectory() as folder, _processes(processes) as pool:
        source = Path(folder, "images")
        source.mkdir()
        count = min(
            setting.config.count, int(setting.raw().rate * processes * seconds) + 2 * processes
        )
        for number in range(count):
            (source / f"{number}.jpg").write_bytes(images[number % len(images)])
        for number in range(setting.config.rounds):
            loops = [
                pool.submit(_raw_worker, setting.target, setting.config.engine, seconds)
                for _ in range(processes)
            ]
            raw = sum(loop.result() for loop in loops)
            setting.step()
            labelled = _label_rate(setting, source, Path(folder, f"masks{number}"))
            setting.step()
            yield {
                "labelling": labelled / raw,
                "loops_per_second": raw,
                "labelled_per_second": labelled,
            }


def _label_rate(setting: Setting, source: Path, masks: Path) -> float:
    """Images a second from the first to the last. Loading the model does not count, as in the
    loop.
    """
    times: list[float] = []
    card, settings = setting.target.card, setting.config
    config = LabelConfig(
        source, masks, settings.repository, card.name, card.version, engine=settings.engine
    )
    summary = label.label(config, lambda done, total: times.append(time.perf_counter()))
    if summary.failed:
        raise BenchError(
            f"{summary.failed} of {summary.images} images cannot be labelled",
            "images without fault",
        )
    return (len(times) - 1) / (times[-1] - times[0])


def probes(setting: Setting) -> Iterator[Round]:
    """Measure how late probes are, by HTTP and by gRPC, while two callers send 48 MB at a time."""
    config = setting.config
    limits = (f"limits.{name}={2 * LARGE}" for name in ("max_bytes", "max_message_bytes"))
    with setting.server(*limits) as running, _processes(2) as pool:
        large = _large(setting.target, LARGE)
        for _ in range(config.rounds):
            seconds = config.seconds + 2 * WARM_SECONDS
            floods = [
                pool.submit(load.closed, running.address, large, 1, seconds, config.count)
                for _ in range(2)
            ]
            time.sleep(WARM_SECONDS)
            http_waits, grpc_waits = _probe(running, config.seconds)
            answered = sum(flood.result().codes["OK"] for flood in floods)
            setting.step()
            yield {
                "probe-wait": 1e3 * float(np.quantile(http_waits, 0.99)),
                "http_longest_ms": 1e3 * max(http_waits),
                "grpc_p99_ms": 1e3 * float(np.quantile(grpc_waits, 0.99)),
                "large_messages": answered,
            }


def _probe(running: Running, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds that each probe took, by HTTP and by gRPC."""
    waits: tuple[list[float], list[float]] = ([], [])
    ends = time.perf_counter() + seconds
    with open_channel(running.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        while time.perf_counter() < ends:
            began = time.perf_counter()
            connection = http.client.HTTPConnection(
                "127.0.0.1", running.http_port, timeout=load.TIMEOUT
            )
            connection.request("GET", "/readyz")
            ready = connection.getresponse().status == 200
            connection.close()
            waits[0].append(time.perf_counter() - began)
            began = time.perf_counter()
            ready &= check(health_pb2.HealthCheckRequest(), timeout=load.TIMEOUT).status == 1
            waits[1].append(time.perf_counter() - began)
            if not ready:
                raise BenchError("the server reports that it is not ready", "ready under load too")
            time.sleep(PROBE_SECONDS)
    return waits


def _processes(number: int) -> ProcessPoolExecutor:
    # gRPC does not survive a fork.
    return ProcessPoolExecutor(number, mp_context=multiprocessing.get_context("spawn"))


def _raw_worker(requests: Target, config: EngineConfig, seconds: float) -> float:
    """The rate of the loop without a server; runs in its own process with its own engine."""
    engine = open_engine(requests.card, Plan(), config)
    requests.work(engine)(0)
    return target.raw_loop(requests, engine, seconds).rate


def _large(requests: Target, size: int) -> Request:
    """A request of about ``size`` bytes: one picture of pixels, or a batch of the tensors."""
    card, inputs = requests.card, requests.inputs
    if inputs is not None:
        batch = max(1, size // sum(values.nbytes for values in inputs.values()))
        repeated = {name: np.repeat(values, batch, axis=0) for name, values in inputs.items()}
        return Request(INFER, (infer_message(card.name, repeated),))
    side = int((size / 3) ** 0.5)
    raw = pb.RawImage(height=side, width=side, pixels=bytes(3 * side * side))
    message = pb.SegmentRequest(image=pb.Image(raw=raw), model=card.name, version=card.version)
    return Request(SEGMENT, (message.SerializeToString(),))


WAITING = Experiment(
    waiting,
    {
        "batch-wait": Figure(
            "longest wait for a batch, beyond its delay and one run", most=20.0, unit=" ms"
        )
    },
    (2, 0),
)
ROUNDED = Experiment(
    buckets,
    {
        "rounded-sizes": Figure(
            "images of several sizes: requests a second rounded up and batched / as they are",
            least=1.0,
        )
    },
    (2, 2),
)
LABELLING = Experiment(
    labelling,
    {
        "labelling": Figure(
            "labelling a folder: images a second / of a bare loop on each processor", least=0.9
        )
    },
    (1, 2),
)
PROBES = Experiment(
    probes,
    {"probe-wait": Figure("p99 of /readyz while messages of 48 MB flow", most=50.0, unit=" ms")},
    (0, 1),
)
