"""From an ONNX graph to a TensorRT plan, and from a plan to an engine.

The network is strongly typed: each layer computes in the types of the graph, the only way that
TensorRT 11 knows. Half precision therefore comes from the exported half-precision graph, not from
TensorRT 10's flags.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.card import Card
from serving.config import EngineConfig
from serving.engines import Stop, Stopped
from serving.engines.cache import cache_folder, digest, engine_key, load, store
from serving.engines.cuda import Device
from serving.engines.profiles import Profile
from serving.errors import EngineError

log = logging.getLogger(__name__)

MEGABYTE = 1 << 20
WORKSPACE_MB = 2048
SECONDS_BETWEEN_LINES = 5.0


def find_engine(
    trt: Any,
    card: Card,
    graph: str,
    config: EngineConfig,
    device: Device,
    profiles: list[Profile],
    stop: Stop,
) -> Any:
    """The engine of a model, from the cache or newly built from ``graph``, one of its files.

    Raises:
        EngineError: TensorRT does not take the graph, or the build fails.
        Stopped: ``stop`` was requested.
    """
    logger = make_logger(trt)
    folder = cache_folder(config)
    options = {"workspace_mb": config.memory_mb or WORKSPACE_MB, "tf32": config.precision != "fp32"}
    key = engine_key(card, graph, f"tensorrt {trt.__version__}", device, profiles, options)
    path = folder / f"{card.name}-{digest(key)}.plan"
    plan = load(path, key)
    if plan is not None:
        engine = open_plan(trt, plan, logger)
        if engine is not None:
            log.info("%s: TensorRT engine from the cache, %s", card.name, path.name)
            return engine
        log.warning("TensorRT does not load %s; building it again", path)
    plan = build_plan(
        trt, card.folder / graph, profiles, options, timing_path(folder, trt, device), logger, stop
    )
    engine = open_plan(trt, plan, logger)
    if engine is None:
        raise EngineError(
            f"TensorRT does not load its own engine of {card.name}", hint="see the log"
        )
    store(path, key, plan)
    return engine


def open_plan(trt: Any, plan: bytes, logger: Any) -> Any:
    """The engine of a plan; None if TensorRT does not take it."""
    return trt.Runtime(logger).deserialize_cuda_engine(plan)


def build_plan(
    trt: Any,
    graph: Path,
    profiles: Iterable[Profile],
    options: dict[str, Any],
    timings: Path,
    logger: Any,
    stop: Stop,
) -> bytes:
    """Build a plan and log the progress; raises like :func:`find_engine`."""
    builder = trt.Builder(logger)
    # The parser owns the weights until the engine is built.
    network, _parser = _parse(trt, builder, graph, logger)
    settings = builder.create_builder_config()
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options["workspace_mb"] * MEGABYTE)
    if not options["tf32"]:
        settings.clear_flag(trt.BuilderFlag.TF32)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name in shapes.low:
            profile.set_shape(name, shapes.low[name], shapes.best[name], shapes.high[name])
        settings.add_optimization_profile(profile)
    timing_key = {"timings": timings.name}
    timing = settings.create_timing_cache(load(timings, timing_key) or b"")
    # Timings of another device or version would choose slow kernels.
    settings.set_timing_cache(timing, ignore_mismatch=False)
    monitor = make_monitor(trt, graph.parent.parent.name, stop)
    settings.progress_monitor = monitor
    began = time.monotonic()
    plan = builder.build_serialized_network(network, settings)
    if stop.requested:
        raise Stopped
    if plan is None:
        raise EngineError(f"TensorRT cannot build {graph}", hint="the log says why")
    log.info("%s: TensorRT engine built in %.0f s", graph, time.monotonic() - began)
    store(timings, timing_key, bytes(settings.get_timing_cache().serialize()))
    return bytes(plan)


def _parse(trt: Any, builder: Any, graph: Path, logger: Any) -> tuple[Any, Any]:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        faults = "; ".join(
            str(parser.get_error(index).desc()) for index in range(parser.num_errors)
        )
        raise EngineError(
            f"TensorRT does not take {graph}: {faults}", "a graph of operators that it has"
        )
    return network, parser


def timing_path(folder: Path, trt: Any, device: Device) -> Path:
    """The cache of kernel timings for this device and version."""
    key = {"library": trt.__version__, **asdict(device)}
    return folder / f"timings-{digest(key)}.cache"


def make_logger(trt: Any) -> Any:
    """A TensorRT logger that writes to ours."""
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.log(levels.get(severity, logging.DEBUG), "TensorRT: %s", message)

    return Logger()


def make_monitor(trt: Any, name: str, stop: Stop) -> Any:
    """A monitor that logs the progress of a build, and ends it when ``stop`` is requested."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._outer = ""
            self._told = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            if parent_phase is None:
                self._outer = phase_name

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if phase_name == self._outer and now - self._told >= SECONDS_BETWEEN_LINES:
                self._told = now
                steps = self._steps[phase_name]
                log.info(
                    "%s: TensorRT builds, %s, step %d of %d", name, phase_name, step + 1, steps
                )
            return not stop.requested

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
