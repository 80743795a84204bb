from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_graphs import CLASSES, TinyMethod, make
from torch import nn

from trainer.errors import ConfigError, ExportError
from trainer.export import onnx_graph, publish
from trainer.export.card import card_from_manifest
from trainer.export.publish import export_model
from trainer.maps.camfile import stride4
from trainer.maps.protocols import PROTOCOLS, merge
from trainer.methods.registry import build_method, declaration
from trainer.nets.graphs import CamGraph, SegmenterGraph
from trainer.nets.pixel_graph import PixelGraph
from trainer.nets.resampling import resize_bicubic, scaled_size
from trainer.training.inference import with_mirror

Pixels = npt.NDArray[np.uint8]


class RandomMethod(TinyMethod):
    def cams_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps, logits = super().cams_and_logits(images)
        return maps + torch.rand_like(maps), logits


class BranchingMethod(TinyMethod):
    def cams_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps, logits = super().cams_and_logits(images)
        return (maps * 2, logits) if bool(maps.sum() > 3) else (maps, logits)


def scene(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth patches, an edge and some grain: an image, as far as a two-layer network can tell."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int64)
    pixels = pixels + rng.integers(-8, 9, pixels.shape)
    pixels[:, width // 2 :] //= 2
    return np.clip(pixels, 0, 255).astype(np.uint8)


IMAGES = [scene(40, 56), scene(37, 53, 1), scene(40, 56, 2)]


def fields(**changes: Any) -> dict[str, Any]:
    given = {
        "classes": CLASSES,
        "palette": [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]],
        "input": {"min_side": 32, "max_side": 4096, "max_pixels": 1 << 22},
        "thresholds": {"background": 0.3, "score": 0.5},
        "supervision": "ImageNet tags",
        "source": {
            "run": "r",
            "method": "cam",
            "backbone": "tiny",
            "seed": 0,
            "commit": None,
            "data_fingerprint": "f",
        },
        "metrics": {"val": {"miou": 0.5}},
    }
    return given | changes


@pytest.fixture(scope="module")
def traced() -> Callable[[str], onnx.ModelProto]:
    """Traces are slow: one of each kind serves all tests. Copies, so that no test sees
    another's.
    """
    known: dict[str, onnx.ModelProto] = {}

    def get(kind: str) -> onnx.ModelProto:
        if kind not in known:
            known[kind] = onnx_graph.to_onnx(make(kind))
        model = onnx.ModelProto()
        model.CopyFrom(known[kind])
        return model

    return get


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, traced: Callable[[str], onnx.ModelProto]) -> None:
    """``export_model`` with the remembered trace of ``make(kind)``; all the rest is real."""
    monkeypatch.setattr(publish, "to_onnx", lambda graph: traced(graph.kind))


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def pbtxt(text: str) -> dict[str, Any]:
    """A light parse of protobuf text: messages become dicts, repeated fields lists."""
    tokens = re.findall(r'"[^"]*"|[\w.-]+|[{}\[\]:,]', text)

    def value() -> Any:
        token = tokens.pop(0)
        if token == "{":
            return message("}")
        if token == "[":
            items = []
            while tokens[0] != "]":
                items.append(value())
                if tokens[0] == ",":
                    tokens.pop(0)
            tokens.pop(0)
            return items
        return int(token) if re.fullmatch(r"-?\d+", token) else token.strip('"')

    def message(end: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while tokens and tokens[0] != end:
            key = tokens.pop(0)
            if tokens[0] == ":":
                tokens.pop(0)
            assert key not in found
            found[key] = value()
        if end:
            tokens.pop(0)
        return found

    return message("")


@pytest.mark.parametrize("kind", ["cam", "segmenter", "segmenter multi"])
def test_graph_equals_pytorch_at_any_size_and_batch(
    kind: str, traced: Callable[[str], onnx.ModelProto]
) -> None:
    graph, model = make(kind), traced(kind)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert {n.op_type for n in model.graph.node}.isdisjoint(
        {"BatchNormalization", "SplitToSequence", "SequenceAt"}
    )
    for count, height, width in ((1, 33, 50), (3, 64, 48), (1, 100, 100), (2, 47, 90)):
        batch = np.stack([scene(height, width, seed) for seed in range(count)])
        got = dict(zip(graph.outputs, session.run(None, {"image": batch})))
        with torch.inference_mode():
            true = dict(zip(graph.outputs, (t.numpy() for t in graph(torch.from_numpy(batch)))))
        for name, (dtype, _) in graph.outputs.items():
            assert got[name].dtype == dtype
            assert got[name].shape == true[name].shape
        assert np.abs(got["scores"] - true["scores"]).max() < 1e-5
        if kind == "cam":
            assert got["cam"].shape == (count, 3, (height - 1) // 4 + 1, (width - 1) // 4 + 1)
            assert np.abs(got["cam"] - true["cam"]).max() < 1e-4
        else:
            assert (got["mask"] == true["mask"]).mean() > 0.999
            assert np.abs(got["confidence"].astype(int) - true["confidence"]).max() <= 1


def test_weights_are_stored_once_whatever_the_number_of_scales(
    traced: Callable[[str], onnx.ModelProto],
) -> None:
    model = traced("cam")
    held = sum(np.prod(t.dims) for t in model.graph.initializer if t.name.startswith("net/"))
    assert held <= sum(p.numel() for p in TinyMethod().parameters()) + 32
    assert sum(n.op_type == "Conv" for n in model.graph.node) == 2 * 3
    assert not any(n.metadata_props or n.doc_string for n in model.graph.node)
    assert str(Path(publish.__file__).parents[1]) not in str(model)


@pytest.mark.parametrize("name", ["psa", "seam", "vwe"])
def test_cam_graph_is_the_protocol_of_the_cams_stage(name: str) -> None:
    protocol = PROTOCOLS[name]
    method = TinyMethod()
    graph = CamGraph(
        method,
        (1.0, 0.5),
        mirror_max=protocol.mirror == "max_small",
        minmax=protocol.normalise == "minmax",
    )
    image = torch.from_numpy(IMAGES[1])[None]
    views = graph.views(image)
    assert [tuple(v.shape) for v in views] == [(2, 3, 37, 53), (2, 3, 18, 26)]
    with torch.inference_mode():
        maps = [method.cams_and_logits(with_mirror(v[:1]))[0] for v in views]
        true = merge([(m[0], m[1]) for m in maps], stride4((37, 53)), protocol)
        cam, scores = graph(image)
        logits = method.cams_and_logits(views[0][:1])[1]
    assert torch.allclose(cam[0], true.clamp_min(0), atol=1e-5)
    assert torch.allclose(scores, logits.sigmoid())
    assert cam.amax() <= 1
    assert cam.amin() >= 0


def test_cam_graph_leaves_out_the_views_that_the_cams_stage_leaves_out() -> None:
    scales = (0.5, 1.0, 2.0)
    graph = CamGraph(TinyMethod(), scales, min_cells=14)
    assert "without views of under 14 cells" in graph.protocol()
    session = onnxruntime.InferenceSession(
        onnx_graph.to_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for image, kept in (
        (scene(37, 56), (1.0, 2.0)),
        (scene(56, 37), (1.0, 2.0)),
        (scene(37, 48), (2.0,)),
        (scene(120, 60), scales),
        (scene(28, 20), (2.0,)),
    ):
        views = dict(zip(scales, graph.views(torch.from_numpy(image)[None])))
        size = (image.shape[0], image.shape[1])
        with torch.inference_mode():
            maps = [graph.net.cams_and_logits(views[scale])[0] for scale in kept]  # type: ignore[operator]
        true = merge([(m[0], m[1]) for m in maps], stride4(size), PROTOCOLS["psa"])
        (cam,) = session.run(["cam"], {"image": image[None]})
        np.testing.assert_allclose(cam[0], true.numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["segmenter", "segmenter multi"])
def test_segmenter_graph_is_the_mean_of_probabilities(kind: str) -> None:
    graph, image = make(kind), torch.from_numpy(IMAGES[1])[None]
    with torch.inference_mode():
        chances, small = [], []
        for view in graph.views(image):
            logits = graph.net(view)
            for i, one in enumerate(logits):
                chance = F.interpolate(
                    one[None], (37, 53), mode="bilinear", align_corners=False
                ).softmax(1)
                chances.append(chance.flip(3) if i else chance)
                small.append(
                    F.interpolate(one[None].softmax(1), (10, 14), mode="bilinear").flip(
                        3 if i else ()
                    )
                )
        mean = torch.stack(chances).mean(0)
        mask, scores, confidence = graph(image)
    assert (mask == mean.argmax(1)).float().mean() > 0.999
    assert (confidence.int() - (mean.amax(1) * 255).round().int()).abs().max() <= 1
    assert torch.allclose(scores, torch.stack(small).mean(0)[:, 1:].amax((2, 3)), atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.5, 2.0])
def test_resize_is_pillows(scale: float) -> None:
    pixels = IMAGES[1]
    size = (round(53 * scale), round(37 * scale))
    true = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), np.float32)
    got = resize_bicubic(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), scale).clamp(
        0, 255
    )
    # Pillow rounds after each of its two passes.
    assert np.abs(got[0].permute(1, 2, 0).numpy() - true).max() <= 1.6


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2])
def test_scaled_size_rounds_half_to_even(scale: float) -> None:
    assert [scaled_size(n, scale) for n in range(1, 700)] == [
        round(n * scale) for n in range(1, 700)
    ]


@pytest.mark.parametrize("scales", [(), (1, 1), (0.01, 1), (8,), (float("nan"), 1)])
def test_bad_scales(scales: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="scales"):
        SegmenterGraph(nn.Identity(), scales)


def test_cam_scores_need_scale_one() -> None:
    with pytest.raises(ConfigError, match="lack 1"):
        CamGraph(TinyMethod(), (0.5, 2))


@pytest.mark.usefixtures("quick")
def test_published_files_and_card(tmp_path: Path) -> None:
    report = export_model(make("cam"), fields(), tmp_path / "exported", "pets-cam", IMAGES)
    folder = tmp_path / "exported" / "pets-cam"
    assert everything(tmp_path / "exported") == [
        "pets-cam",
        "pets-cam/1",
        "pets-cam/1/golden_image.png",
        "pets-cam/1/golden_output.png",
        "pets-cam/1/model.json",
        "pets-cam/1/model.onnx",
        "pets-cam/config.pbtxt",
    ]
    assert (report.path, report.version, report.kind) == (folder / "1", 1, "cam")
    graph = (folder / "1" / "model.onnx").read_bytes()
    card = json.loads((folder / "1" / "model.json").read_text())
    names = ("golden_image.png", "golden_output.png", "model.onnx")
    digests = {
        name: hashlib.sha256((folder / "1" / name).read_bytes()).hexdigest() for name in names
    }
    assert card.pop("sha256") == digests
    assert list(card.pop("golden")) == ["image", "output", "scores"]
    assert card.pop("parity")["images"] == 5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", card.pop("created"))
    assert "scales 1, 0.5 x flip" in card.pop("protocol")
    assert card == {
        "format": 1,
        "name": "pets-cam",
        "version": 1,
        "kind": "cam",
        "graph": "model.onnx",
        "opset": 18,
        "labels": ["background", "cat", "dog", "cow"],
        "outputs": [
            {"name": "cam", "dtype": "float32", "shape": ["N", 3, "h", "w"]},
            {"name": "scores", "dtype": "float32", "shape": ["N", 3]},
        ],
        "scales": [1.0, 0.5],
        "flip": True,
        **fields(),
        "input": {
            "name": "image",
            "dtype": "uint8",
            "layout": "NHWC",
            "color": "RGB",
            **fields()["input"],
        },
    }
    assert onnx.load_from_string(graph).opset_import[0].version == card["opset"]


@pytest.mark.usefixtures("quick")
def test_triton_config(tmp_path: Path) -> None:
    export_model(make("segmenter"), fields(), tmp_path, "pets", IMAGES)
    assert pbtxt((tmp_path / "pets" / "config.pbtxt").read_text()) == {
        "name": "pets",
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "max_batch_size": 8,
        "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}],
        "output": [
            {"name": "mask", "data_type": "TYPE_UINT8", "dims": [-1, -1]},
            {"name": "scores", "data_type": "TYPE_FP32", "dims": [3]},
            {"name": "confidence", "data_type": "TYPE_UINT8", "dims": [-1, -1]},
        ],
        "version_policy": {"latest": {"num_versions": 1}},
        "dynamic_batching": {},
    }


def test_doubt_of_an_exported_segmenter(tmp_path: Path) -> None:
    """One export through all its steps: graph, parity, card, Triton's configuration, float16."""
    graph = make("segmenter multi")
    graph.add_doubt(np.linspace(0.5, 0.01, 256).tolist())
    about = {"from": "pseudo masks of train", "held_out": {"images": 3}, "wrong": [[0, 0.5]]}
    report = export_model(graph, fields(doubt=about), tmp_path, "pets", IMAGES, half=True)
    for parity in (report.parity, report.half_parity):
        assert parity is not None
        assert parity.max_abs_doubt is not None
        assert 0 <= parity.max_abs_doubt < 1e-2
    card = json.loads((report.path / "model.json").read_text())
    assert card["doubt"] == about
    assert card["outputs"][-1] == {"name": "doubt", "dtype": "float32", "shape": ["N", 1]}
    assert 0.01 < card["golden"]["doubt"] < 0.5
    config = pbtxt((tmp_path / "pets" / "config.pbtxt").read_text())
    assert config["output"][-1] == {"name": "doubt", "data_type": "TYPE_FP32", "dims": [1]}
    session = onnxruntime.InferenceSession(str(report.path / "model.onnx"))
    batch = np.stack([IMAGES[0], IMAGES[2]])
    confidence, doubt = session.run(["confidence", "doubt"], {"image": batch})
    levels = confidence[:, ::4, ::4].astype(int)
    assert doubt.shape == (2, 1)
    np.testing.assert_allclose(
        doubt[:, 0], np.linspace(0.5, 0.01, 256)[levels].mean((1, 2)), rtol=1e-5
    )
    # A graph that was not calibrated has neither.
    assert set(make("segmenter multi").outputs) == {"mask", "scores", "confidence"}


@pytest.mark.usefixtures("quick")
def test_versions_rise_and_are_never_overwritten(tmp_path: Path) -> None:
    def publish(version: int | None = None) -> int:
        return export_model(
            make("segmenter"), fields(), tmp_path, "pets", IMAGES[:1], version
        ).version

    (tmp_path / "pets" / "notes").mkdir(parents=True)
    assert [publish(), publish(), publish(12), publish()] == [1, 2, 12, 13]
    before = (tmp_path / "pets" / "2" / "model.json").read_bytes()
    with pytest.raises(ConfigError, match="published already"):
        publish(2)
    with pytest.raises(ConfigError, match="version 0"):
        publish(0)
    assert (tmp_path / "pets" / "2" / "model.json").read_bytes() == before
    assert (tmp_path / "pets" / "config.pbtxt").exists()


@pytest.mark.usefixtures("quick")
def test_two_exports_at_once_cannot_take_the_same_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(make("segmenter"), fields(), tmp_path, "pets", IMAGES[:1])
    original = (tmp_path / "pets" / "1" / "model.json").read_bytes()
    monkeypatch.setattr(publish, "free_version", lambda model, version: 1)
    with pytest.raises(ExportError, match="in the meantime"):
        export_model(make("segmenter"), fields(), tmp_path, "pets", IMAGES[:1])
    assert (tmp_path / "pets" / "1" / "model.json").read_bytes() == original
    files = ("golden_image.png", "golden_output.png", "model.json", "model.onnx")
    assert everything(tmp_path) == [
        "pets",
        "pets/1",
        *(f"pets/1/{file}" for file in files),
        "pets/config.pbtxt",
    ]


@pytest.mark.parametrize(
    ("kind", "figure"), [("cam", "largest CAM difference"), ("segmenter", "label pixels equal")]
)
@pytest.mark.usefixtures("quick")
def test_refuses_a_graph_of_other_weights(kind: str, figure: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=figure) as caught:
        export_model(make(kind, seed=1), fields(), tmp_path, "pets", IMAGES)
    assert "limit" in caught.value.found
    assert everything(tmp_path) == []


def test_refuses_randomness(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"largest CAM difference [01].*limit 0\.001"):
        export_model(CamGraph(RandomMethod(), (1,), False), fields(), tmp_path, "pets", IMAGES[:1])
    assert everything(tmp_path) == []


def test_refuses_data_dependent_branches(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be exported"):
        export_model(
            CamGraph(BranchingMethod(), (1,), False), fields(), tmp_path, "pets", IMAGES[:1]
        )
    assert everything(tmp_path) == []


class Tampered:
    """An engine that returns the right tensors, one of them changed."""

    def __init__(self, path: Path, change: Callable[[dict[str, Any]], None]) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.change = change

    def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
        result = dict(zip(names, self.session.run(names, feed)))
        self.change(result)
        return list(result.values())


def flip_pixels(share: float) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        flat = result["mask"].reshape(-1)
        flat[: round(share * flat.size)] ^= 1

    return change


def add(name: str, value: float) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        result[name].reshape(-1)[0] += value

    return change


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("cam", add("cam", 2e-3), "largest CAM difference 0.002 "),
        ("cam", add("scores", 2e-3), "largest score difference 0.002 "),
        ("cam", add("cam", float("nan")), "largest CAM difference nan"),
        ("segmenter", flip_pixels(0.004), r"99.\d+% of label pixels equal"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_limits(
    kind: str,
    change: Callable[[dict[str, Any]], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainer.export.parity.open_graph", lambda path: Tampered(path, change))
    with pytest.raises(ExportError, match=message):
        export_model(make(kind), fields(), tmp_path, "pets", IMAGES)
    assert everything(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "change"), [("cam", add("cam", 5e-4)), ("segmenter", flip_pixels(0.0005))]
)
@pytest.mark.usefixtures("quick")
def test_within_limits(
    kind: str,
    change: Callable[[dict[str, Any]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainer.export.parity.open_graph", lambda path: Tampered(path, change))
    parity = export_model(make(kind), fields(), tmp_path, "pets", [scene(64, 64)]).parity
    if kind == "cam":
        assert parity.max_abs_cam == pytest.approx(5e-4, rel=0.05)
    else:
        assert parity.equal_pixels == pytest.approx(1 - 4 / 4096)


@pytest.mark.parametrize(
    "stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
@pytest.mark.parametrize("moment", ["model.onnx", "model.json", "config.pbtxt"])
@pytest.mark.parametrize("published", [0, 1])
@pytest.mark.usefixtures("quick")
def test_nothing_is_half_published(
    stop: BaseException,
    moment: str,
    published: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(published):
        export_model(make("segmenter"), fields(), tmp_path, "pets", IMAGES[:1])
    before = everything(tmp_path)

    def interrupted(write: Any) -> Any:
        def call(self: Path, data: Any, **options: Any) -> int:
            write(self, data[: len(data) // 2], **options)
            if self.name == moment:
                raise stop
            return int(write(self, data, **options))

        return call

    monkeypatch.setattr(Path, "write_bytes", interrupted(Path.write_bytes))
    monkeypatch.setattr(Path, "write_text", interrupted(Path.write_text))
    wanted = KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else ExportError
    with pytest.raises(wanted) as caught:
        export_model(make("segmenter"), fields(), tmp_path, "pets", IMAGES[:1])
    assert isinstance(caught.value, KeyboardInterrupt) or "no space left" in caught.value.found
    assert everything(tmp_path) == before


@pytest.mark.usefixtures("quick")
def test_repository_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "exported").write_text("a file")
    with pytest.raises(ExportError, match="cannot be written"):
        export_model(make("segmenter"), fields(), tmp_path / "exported", "pets", IMAGES[:1])


@pytest.mark.parametrize(
    "name", ["", "a b", "../up", "a/b", "-x", "ä", "pets.v1", ".hidden", "n" * 101, "pets\n"]
)
def test_bad_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="letters"):
        export_model(make("segmenter"), fields(), tmp_path, name, IMAGES)


@pytest.mark.parametrize(
    ("change", "images", "message"),
    [
        ({}, [], "no image"),
        ({}, [np.zeros((8, 8, 3), np.float32)], "float32"),
        ({}, [np.zeros((8, 8), np.uint8)], r"\[8, 8\]"),
        ({"palette": [[0, 0, 0]]}, IMAGES, "1 colours"),
        ({"kind": "cam"}, IMAGES, "kind 'cam'"),
    ],
)
def test_bad_request(
    change: dict[str, Any], images: list[Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export_model(make("segmenter"), fields(**change), tmp_path, "pets", images)


def test_card_that_lacks_fields(tmp_path: Path) -> None:
    short = fields()
    del short["source"], short["metrics"]
    with pytest.raises(ConfigError, match="lacks source, metrics"):
        export_model(make("segmenter"), short, tmp_path, "pets", IMAGES)


@pytest.mark.usefixtures("quick")
def test_card_of_another_class_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 classes for a network of 3"):
        export_model(
            make("cam"),
            fields(classes=["a", "b"], palette=[[0, 0, 0]] * 3),
            tmp_path,
            "pets",
            IMAGES,
        )


def test_the_given_module_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = make("segmenter").to(torch.float64)
    seen: list[PixelGraph] = []

    def stop(given: PixelGraph) -> None:
        seen.append(given)
        raise ExportError("enough")

    monkeypatch.setattr(publish, "to_onnx", stop)
    with pytest.raises(ExportError, match="enough"):
        export_model(graph, fields(), tmp_path, "pets", IMAGES)
    assert next(graph.parameters()).dtype == torch.float64
    assert next(seen[0].parameters()).dtype == torch.float32


def manifest() -> dict[str, Any]:
    return {
        "seed": 3,
        "method": "cam",
        "backbone": "mobilenet_v2",
        "supervision": "ImageNet tags",
        "commit": "abc",
        "data": {"classes": ["cat", "dog"], "fingerprint": "0123"},
    }


def test_card_from_manifest() -> None:
    measured = {
        "miou": 0.4,
        "threshold": 0.3,
        "threshold_from": "train",
        "protocol": "p",
        "confusion": [[1]],
        "sweep": {},
    }
    evaluation = {
        "cam": {
            "train": measured | {"threshold": 0.2, "threshold_from": "label_free"},
            "val": measured,
        },
        "segment": {"val": {"miou": 0.6, "threshold": None, "threshold_from": None, "worst": []}},
    }
    card = card_from_manifest(manifest(), "cam", "photos", evaluation)
    assert card["thresholds"] == {"background": 0.3, "score": 0.5}
    assert card["palette"] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert card["metrics"]["val"] == {
        "miou": 0.4,
        "threshold": 0.3,
        "threshold_from": "train",
        "protocol": "p",
    }
    assert card["source"] == {
        "run": "photos",
        "method": "cam",
        "backbone": "mobilenet_v2",
        "seed": 3,
        "commit": "abc",
        "data_fingerprint": "0123",
    }
    other = card_from_manifest(
        manifest(),
        "segmenter",
        "photos",
        evaluation,
        {"min_side": 8, "max_side": 9, "max_pixels": 81},
    )
    assert other["thresholds"]["background"] is None
    assert other["metrics"] == {"val": {"miou": 0.6, "threshold": None, "threshold_from": None}}
    assert other["input"] == {"min_side": 8, "max_side": 9, "max_pixels": 81}


@pytest.mark.parametrize(
    "evaluation", [None, {}, {"cam": {"val": {"threshold": 0.4, "threshold_from": "oracle"}}}]
)
def test_card_has_no_threshold_that_saw_the_truth(evaluation: dict[str, Any] | None) -> None:
    card = card_from_manifest(manifest(), "cam", "photos", evaluation)
    assert card["thresholds"]["background"] is None
    assert not set(publish.FIELDS) - set(card)


@pytest.mark.parametrize("kind", ["segmenter", "cam"])
def test_a_half_precision_graph_beside_the_other(tmp_path: Path, kind: str) -> None:
    report = export_model(make(kind), fields(), tmp_path, "pets", IMAGES, half=True)
    card = json.loads((report.path / "model.json").read_text())
    assert (card["graph"], card["half_graph"]) == ("model.onnx", "model.fp16.onnx")
    for file, digest in card["sha256"].items():
        assert hashlib.sha256((report.path / file).read_bytes()).hexdigest() == digest
    assert report.half_parity
    assert card["half_parity"] == vars(report.half_parity)
    assert card["parity"] == vars(report.parity)
    full, half = (onnx.load(report.path / card[key]) for key in ("graph", "half_graph"))
    assert [(o.name, o.type) for o in full.graph.output] == [
        (o.name, o.type) for o in half.graph.output
    ]
    inside, outside = (
        {t.data_type for t in half.graph.initializer if t.name.startswith("net/") is inner}
        for inner in (True, False)
    )
    assert onnx.TensorProto.FLOAT16 in inside
    assert onnx.TensorProto.FLOAT not in inside
    assert onnx.TensorProto.FLOAT16 not in outside | {t.data_type for t in full.graph.initializer}


def test_a_network_that_does_not_bear_half_precision_is_refused(tmp_path: Path) -> None:
    graph = make("segmenter")
    with torch.no_grad():
        body = graph.net
        assert isinstance(body, nn.Sequential)
        # The same in float32, and beyond the largest number of float16 between the last two layers.
        norm, last = body[4], body[6]
        norm.weight *= 1e6
        norm.bias *= 1e6
        last.weight *= 1e-6
    with pytest.raises(
        ExportError,
        match=r"the float16 graph of 'pets' differs from PyTorch: .*\n.*\ntry: leave --prec",
    ):
        export_model(graph, fields(), tmp_path, "pets", IMAGES[:1], half=True)
    assert everything(tmp_path) == []


@pytest.mark.parametrize("pooling", ["gap", "gmp", "hspp", "lse", "topk"])
def test_every_pooling_counts_the_cells_of_the_image_at_hand(pooling: str) -> None:
    torch.manual_seed(0)
    config = declaration("cam").config(pooling=pooling, hspp_bins="adaptive")
    graph = CamGraph(build_method("cam", config, "resnet18", {}, 3), (1.0,), flip=False)
    session = onnxruntime.InferenceSession(
        onnx_graph.to_onnx(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for height, width in ((64, 96), (150, 90), (200, 320)):
        image = scene(height, width, 1)[None]
        with torch.inference_mode():
            expected = graph(torch.from_numpy(image))[1].numpy()
        np.testing.assert_allclose(session.run(["scores"], {"image": image})[0], expected, 1e-4)
