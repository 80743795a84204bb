"""Which engine runs a model: the configured one, or with ``auto`` the fastest that is correct."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace

from serving.card import Card
from serving.config import EngineConfig, EngineName
from serving.engines import Engine, Plan, Stop
from serving.errors import EngineError
from serving.repository.agreement import MIN_EQUAL, agreement
from serving.repository.soundness import check_promise

log = logging.getLogger(__name__)

GPU: tuple[EngineName, ...] = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")
TENSORRT_SIDE = 1024


def resolve(card: Card, config: EngineConfig) -> EngineName:
    """The configured engine of a model; ``auto`` becomes the CUDA provider if that is there."""
    name = config.name_for(card.name)
    if name != "auto":
        return name
    import onnxruntime

    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return "onnxruntime-cuda" if has_cuda else "auto"


def on_processors(card: Card, config: EngineConfig) -> EngineConfig:
    """The settings, with ONNX Runtime on the processors in place of a GPU."""
    if resolve(card, config) not in GPU:
        return config
    return replace(config, name="onnxruntime", models={})


def limited(card: Card, config: EngineConfig) -> Card:
    """The card with the limits of the settings, to which larger images are scaled or cut."""
    side = config.max_side or (TENSORRT_SIDE if "tensorrt" in config.name_for(card.name) else 0)
    if card.kind == "tensor" or not side or side >= card.max_side:
        return card
    side = max(side, card.min_side)
    return replace(
        card, max_side=side, max_pixels=min(card.max_pixels, side * side), side=min(card.side, side)
    )


def choose_engine(card: Card, plan: Plan, config: EngineConfig, stop: Stop | None = None) -> Engine:
    """The engine of a model, loaded.

    Args:
        card: of a verified model, with the limits of :func:`limited`.
        stop: ends a build that takes minutes.

    Raises:
        EngineError: the configured engine cannot run it here; no other takes its place.
        RepositoryError: the graph does not load.
        Stopped: ``stop`` was requested.
    """
    name = resolve(card, config)
    if name == "auto":
        return _fastest(card, plan, config)
    if name == "openvino":
        if not _has_openvino():
            raise EngineError("openvino is not installed", hint="pip install 'wsss[openvino]'")
        from serving.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(card, plan, exact=config.precision == "fp32")
    if name == "tensorrt":
        from serving.engines.tensorrt import TensorRtEngine

        return TensorRtEngine(card, plan, config, stop)
    if name in GPU:
        from serving.engines.onnxruntime_gpu import OnnxRuntimeGpuEngine

        return OnnxRuntimeGpuEngine(card, plan, replace(config, models={card.name: name}))
    from serving.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(card, plan.threads)


def _fastest(card: Card, plan: Plan, config: EngineConfig) -> Engine:
    """OpenVINO in bfloat16 if its masks agree with ONNX Runtime's, otherwise ONNX Runtime."""
    from serving.engines.onnxruntime import OnnxRuntimeEngine

    exact = OnnxRuntimeEngine(card, plan.threads)
    if config.precision == "fp32" or card.kind == "tensor" or not _has_openvino():
        return exact
    fast, reason = _openvino(card, plan, exact)
    if fast:
        exact.close()
        log.info("model %s runs on %s", card.name, fast.description)
        return fast
    log.info("model %s runs on %s, not on OpenVINO: %s", card.name, exact.description, reason)
    return exact


def _openvino(card: Card, plan: Plan, exact: Engine) -> tuple[Engine | None, str]:
    """The engine if it agrees with ``exact``, otherwise the reason against it."""
    from serving.engines.openvino import OpenVinoEngine

    try:
        fast = OpenVinoEngine(card, plan)
        if fast.precision != "bf16":
            return None, "these processors do not multiply in bfloat16"
        check_promise(card, fast)
        share = agreement(card, fast, exact)
    # A failure here decides against OpenVINO; the other library runs the graph.
    except Exception as error:
        return None, str(error).splitlines()[0]
    if share < MIN_EQUAL:
        return None, f"{share:.2%} of pixels are equal, {MIN_EQUAL:.1%} are required"
    fast.description += f", {share:.2%} of pixels as onnxruntime fp32"
    return fast, ""


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None
