from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_graphs import make
from torch import nn

from trainer.export.golden import golden_image, with_labels, write_golden
from trainer.nets.graphs import SegmenterGraph
from trainer.nets.pixel_graph import PixelGraph

LIMITS = {"min_side": 32, "max_side": 4096, "max_pixels": 4_194_304}


class Session:
    """The module itself in the place of onnxruntime."""

    def __init__(self, graph: PixelGraph) -> None:
        self.graph = graph

    def run(self, names, inputs):
        with torch.inference_mode():
            return [values.numpy() for values in self.graph(torch.from_numpy(inputs["image"]))]


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        (LIMITS, (96, 128)),
        (LIMITS | {"max_side": 100}, (96, 100)),
        (LIMITS | {"min_side": 128}, (128, 128)),
        (LIMITS | {"max_pixels": 2000}, (32, 32)),
    ],
)
def test_the_image_is_made_within_the_limits_and_always_the_same(
    limits: dict[str, int], size: tuple[int, int]
) -> None:
    image = golden_image(limits)
    assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
    assert image.std() > 20
    np.testing.assert_array_equal(image, golden_image(limits))


def test_what_a_segmenter_says(tmp_path: Path) -> None:
    brightest = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        brightest.weight.copy_(torch.eye(4, 3)[..., None, None])
    graph = SegmenterGraph(brightest)
    golden = write_golden(tmp_path, graph, Session(graph), LIMITS)
    with (
        Image.open(tmp_path / golden["image"]) as picture,
        Image.open(tmp_path / golden["output"]) as output,
    ):
        pixels, mask = np.asarray(picture), np.asarray(output)
        assert output.mode == "L"
    np.testing.assert_array_equal(pixels, with_labels(golden_image(LIMITS), graph))
    with torch.inference_mode():
        expected = dict(zip(graph.outputs, graph(torch.from_numpy(pixels[None].copy()))))
    np.testing.assert_array_equal(mask, expected["mask"][0])
    assert len(np.unique(mask)) > 1
    np.testing.assert_allclose(golden["scores"], expected["scores"][0], atol=1e-6)


def test_a_segmenter_that_sees_background_everywhere_is_shown_its_classes() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(3, 4, 5, stride=4, padding=2)
    with torch.no_grad():
        net.bias.copy_(torch.tensor([3.0, 0, 0, 0]))
    graph = SegmenterGraph(net, flip=True)
    image = golden_image(LIMITS)
    moved = with_labels(image, graph)
    with torch.inference_mode():
        before, after = (
            graph(torch.from_numpy(pixels[None].copy()))[0].unique() for pixels in (image, moved)
        )
    assert (len(before), len(after)) == (1, 4)
    assert (moved.shape, moved.dtype) == (image.shape, np.uint8)
    assert all(p.grad is None for p in net.parameters())


def test_a_segmenter_with_doubt_says_how_much_of_the_image_is_wrong(tmp_path: Path) -> None:
    graph = make("segmenter")
    graph.add_doubt(np.linspace(0.6, 0.1, 256).tolist())
    golden = write_golden(tmp_path, graph, Session(graph), LIMITS)
    assert 0.1 < golden["doubt"] < 0.6
    with Image.open(tmp_path / golden["image"]) as picture, torch.inference_mode():
        confidence, doubt = graph(torch.from_numpy(np.array(picture)[None]))[2:]
    levels = confidence[0, ::4, ::4].numpy().astype(int)
    assert doubt.shape == (1, 1)
    np.testing.assert_allclose(doubt[0], (0.6 - levels / 255 / 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(golden["doubt"], doubt[0], atol=1e-6)


def test_what_a_cam_model_says(tmp_path: Path) -> None:
    graph = make("cam")
    golden = write_golden(tmp_path, graph, Session(graph), LIMITS)
    with Image.open(tmp_path / golden["output"]) as output:
        maps = np.asarray(output)
    with torch.inference_mode():
        expected = graph(torch.from_numpy(golden_image(LIMITS)[None]))[0][0].numpy()
    np.testing.assert_allclose(maps.reshape(expected.shape) / 255, expected, atol=0.5 / 255 + 1e-6)
