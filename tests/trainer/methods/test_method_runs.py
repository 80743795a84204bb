"""What every method promises in a training and in an exported graph: ``trainer.methods`` is read
for names.
"""

import signal
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_methods import CLASSES, batch, make, own_inputs

from trainer.data.dataset import Record
from trainer.data.loader import Batch, Samples
from trainer.data.transforms import Rng
from trainer.export.onnx_graph import to_onnx
from trainer.interrupt import Interrupted
from trainer.maps.protocols import CamsConfig, protocol_of
from trainer.methods.base import Method
from trainer.methods.registry import method_classes, method_names
from trainer.nets.graphs import CamGraph
from trainer.run import Metrics
from trainer.training.loop import Trainer
from trainer.training.optimiser import Training

RECORDS = [Record(id=f"r{i}", image=Path(), tags=(i % CLASSES,)) for i in range(4)]
TRAINING = Training(epochs=2, batch=2, lr=1e-3, momentum=0.9, precision="fp32", workers=0)

# Methods that inherit their maps have the same graph: one of them is exported, since a trace takes
# seconds.
DIFFERENT_MAPS = {
    method_classes(name)[0].cams_and_logits: name for name in reversed(method_names())
}.values()


def trained(name: str, folder: Path, stop_at: int = 0) -> dict[str, torch.Tensor]:
    """Weights after four steps; with ``stop_at`` SIGTERM comes in that step."""
    method, steps = make(name), [0]

    def sample(record: Record, rng: Rng) -> dict[str, torch.Tensor]:
        image = torch.from_numpy(rng.standard_normal((3, 64, 64)).astype(np.float32))
        tags = torch.zeros(CLASSES)
        tags[list(record.tags)] = 1
        return {"image": image, "tags": tags, **own_inputs()}

    def loss(module: Method, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        steps[0] += 1
        if steps[0] == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return module.loss(batch, rng)

    groups, metrics = method.param_groups(1e-3, 1e-4), Metrics(folder / "metrics.csv", "classify")
    samples = Samples(RECORDS, sample, 0)
    Trainer(method, loss, groups, samples, TRAINING, folder, metrics, 0, "cpu").run()
    return method.state_dict()


@pytest.mark.parametrize("name", method_names())
def test_a_resumed_training_equals_an_unbroken_one(name, tmp_path):
    whole = trained(name, tmp_path / "whole")
    with pytest.raises(Interrupted):
        trained(name, tmp_path / "broken", stop_at=2)
    resumed = trained(name, tmp_path / "broken")
    assert [key for key, value in whole.items() if not torch.equal(resumed[key], value)] == []


@pytest.mark.parametrize("name", sorted(DIFFERENT_MAPS))
def test_the_exported_graph_gives_the_methods_maps(name):
    method = make(name).eval()
    _, protocol = protocol_of(CamsConfig(scales=(1.0,)), "resnet18", name)
    graph = CamGraph(
        method,
        protocol.views.scales,
        mirror_max=protocol.mirror == "max_small",
        minmax=protocol.normalise == "minmax",
    )
    session = onnxruntime.InferenceSession(
        to_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    pixels = ((batch((70, 52))["image"].permute(0, 2, 3, 1) * 40 + 128).clamp(0, 255)).to(
        torch.uint8
    )
    got = dict(zip(graph.outputs, session.run(None, {"image": pixels.numpy()})))
    with torch.inference_mode():
        true = dict(zip(graph.outputs, graph(pixels)))
    assert got["cam"].shape == (2, CLASSES, 18, 13)
    np.testing.assert_allclose(got["cam"], true["cam"].numpy(), atol=1e-4)
    np.testing.assert_allclose(got["scores"], true["scores"].numpy(), atol=1e-4)
