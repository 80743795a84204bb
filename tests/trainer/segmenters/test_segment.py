"""Training, loading and predicting with a segmenter; what tells one from another is in
test_segmenters.py.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_nets import TinyBackbone, pictures

from trainer.data.dataset import Record, read_index_png
from trainer.data.palette import write_index_png
from trainer.data.pixels import read_image
from trainer.data.sizes import enlarged
from trainer.errors import ConfigError, DataError, WeightsError
from trainer.maps.camfile import cam_path, read_cam, stride4, upsample_cam
from trainer.nets.aspp import AsppSegmenter
from trainer.refine.crf import DenseCrf, unary_from_softmax
from trainer.run import Metrics, Output
from trainer.segmenters import make_segmenter, training
from trainer.segmenters import prediction as segment
from trainer.segmenters.aspp import Aspp
from trainer.segmenters.config import PRESETS, SegmentConfig
from trainer.segmenters.prediction import crf_picture, predict
from trainer.training.inference import Views

QUICK = SegmentConfig(
    epochs=1, batch=2, crop=32, workers=0, precision="fp32", rates=(1, 2), momentum=0.9
)
RNG = np.random.default_rng(0)


def tiny(classes: int = 3) -> AsppSegmenter:
    torch.manual_seed(0)
    return AsppSegmenter(TinyBackbone(), classes + 1, (1, 2))


def aspp(config: SegmentConfig, backbone: str = "resnet18") -> Aspp:
    return Aspp(config, backbone, 3)


def test_a_mask_of_another_size_is_refused(tmp_path):
    data = pictures(tmp_path, count=1)
    record = data.subset("all")[0]
    write_index_png(tmp_path / "masks" / "p0.png", np.zeros((5, 9), np.uint8))
    read = partial(training.read_pseudo_mask, folder=tmp_path / "masks")
    with pytest.raises(DataError, match="mask of 'p0' is 9x5, its image 36x44"):
        training.make_sample(record, RNG, aspp(QUICK), read)


def test_masks_are_looked_at_before_the_training(tmp_path):
    data = pictures(tmp_path, count=4)
    for record in data.subset("all"):
        write_index_png(tmp_path / "masks" / f"{record.id}.png", data.read_mask(record))
    training.check_masks(data.subset("all"), tmp_path / "masks")
    (tmp_path / "masks" / "p1.png").unlink()
    (tmp_path / "masks" / "p2.png").write_bytes(b"PNG")
    write_index_png(tmp_path / "masks" / "p3.png", np.zeros((5, 9), np.uint8))
    with pytest.raises(DataError, match="3 of 4 masks cannot be trained on") as caught:
        training.check_masks(data.subset("all"), tmp_path / "masks")
    for part in ("p1.png is missing", "p2.png", "the mask of 'p3' is 9x5, its image 36x44"):
        assert part in caught.value.found
    assert "new --run" in caught.value.hint


def test_a_mask_that_is_damaged_or_of_other_classes_is_refused(tmp_path):
    record = pictures(tmp_path, count=1).subset("all")[0]
    read = partial(training.read_pseudo_mask, folder=tmp_path / "masks")
    write_index_png(tmp_path / "masks" / "p0.png", np.full((44, 36), 4, np.uint8))
    with pytest.raises(DataError, match="mask of 'p0' has the label 4") as caught:
        training.make_sample(record, RNG, aspp(QUICK), read)
    assert "0 to 3" in caught.value.expected
    (tmp_path / "masks" / "p0.png").write_bytes(b"PNG")
    with pytest.raises(DataError, match=r"p0\.png"):
        training.make_sample(record, RNG, aspp(QUICK), read)


def naive(net: AsppSegmenter, pixels: np.ndarray, config: SegmentConfig) -> np.ndarray:
    """Mean soft-max over scales and the mirror image, one view at a time."""
    chances = []
    for scale in config.scales:
        view = Views(config.scales).make(pixels, scale)[None].contiguous()
        for flipped in (False, True) if config.flip else (False,):
            with torch.no_grad():
                logits = net(view.flip(3) if flipped else view)
            chance = F.interpolate(logits, pixels.shape[:2], mode="bilinear").softmax(1)
            chances.append(chance.flip(3) if flipped else chance)
    return torch.stack(chances).mean(0)[0].numpy()


@pytest.mark.parametrize("flip", [True, False])
def test_predictions_are_the_merged_views_of_one_image_at_a_time(tmp_path, flip):
    data = pictures(tmp_path / "data")
    net, config = tiny(), replace(QUICK, scales=(0.5, 1.0, 1.25), flip=flip)
    net.aspp.c0.weight.data.normal_(std=0.5)
    predict(aspp(config), net, data.subset("all"), tmp_path / "out", "test", "cpu")
    assert {p.stem for p in (tmp_path / "out").iterdir()} == set(data.records)
    kinds = set()
    for record in data.subset("all"):
        label, pixels = (
            read_index_png(tmp_path / "out" / f"{record.id}.png"),
            read_image(record.image),
        )
        assert label.shape == pixels.shape[:2]
        assert (label == naive(net, pixels, config).argmax(0)).mean() > 0.999
        kinds |= set(np.unique(label))
    assert kinds <= {0, 1, 2, 3}
    assert len(kinds) > 1


def test_crf_follows_the_soft_max_of_the_merged_views(tmp_path):
    data = pictures(tmp_path / "data")
    net, config = tiny(), replace(QUICK, scales=(1.0,), flip=False, crf="P3")
    net.aspp.c0.weight.data.normal_(std=0.5)
    predict(aspp(config), net, data.subset("all"), tmp_path / "out", "test", "cpu")
    for record in data.subset("all"):
        pixels = read_image(record.image)
        q = DenseCrf(pixels, (3, 1), (4, 67, 3)).infer(
            unary_from_softmax(naive(net, pixels, config)), 10
        )
        assert (read_index_png(tmp_path / "out" / f"{record.id}.png") == q.argmax(0)).mean() > 0.999
    with pytest.raises(ConfigError, match="unknown CRF preset 'P9'"):
        replace(QUICK, crf="P9")


def test_images_are_looked_at_in_the_wanted_size(tmp_path):
    data = pictures(tmp_path / "data")
    net, config = tiny(), replace(QUICK, scales=(1.0,), flip=False, side=64)
    net.aspp.c0.weight.data.normal_(std=0.5)
    predict(aspp(config), net, data.subset("all"), tmp_path / "out", "test", "cpu")
    for record in data.subset("all"):
        pixels = read_image(record.image)
        height, width = (round(side * 64 / max(pixels.shape)) for side in pixels.shape[:2])
        large = np.asarray(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        )
        mask = enlarged(naive(net, large, config).argmax(0), pixels.shape[:2])
        ours = read_index_png(tmp_path / "out" / f"{record.id}.png")
        assert (ours == mask).mean() > 0.999


def test_a_training_view_has_the_wanted_size(tmp_path):
    record = pictures(tmp_path, count=1).subset("all")[0]
    config = replace(QUICK, side=22, scale=(1.0, 1.0), crop=64)
    labels = training.make_sample(record, RNG, aspp(config), lambda _: np.ones((44, 36), np.uint8))
    rows, columns = (labels["label"] == 1).numpy().nonzero()
    assert (int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1) == (22, 18)


def test_classes_under_their_verdict_are_in_no_mask(tmp_path):
    data = pictures(tmp_path / "data")
    net, config = tiny(), replace(QUICK, scales=(1.0,), flip=False)
    net.aspp.c0.weight.data.normal_(std=0.5)
    images, least = data.subset("all"), [0.0, 1.1, 0.6]
    predict(aspp(config), net, images, tmp_path / "out", "test", "cpu", least=least)
    shown = set()
    for record in images:
        chance = naive(net, read_image(record.image), config)
        for k, value in enumerate(least):
            if chance[k + 1].max() < value:
                chance[k + 1] = 0
        mask = read_index_png(tmp_path / "out" / f"{record.id}.png")
        assert (mask == chance.argmax(0)).mean() > 0.999
        shown |= set(np.unique(mask))
    assert 2 not in shown
    assert len(shown) > 1


def test_the_verdict_is_learned_from_the_tags_of_training_images(tmp_path):
    data = pictures(tmp_path / "data", count=12)
    net, config = tiny(), replace(QUICK, scales=(1.0,), flip=False)
    least = segment.verdict(aspp(config), net, data, data.subset("all"), "verdict", "cpu")
    assert len(least) == 3
    # At least what all other labels together have.
    assert all(0.5 <= value <= 1 for value in least)


def test_tags_of_a_view_are_what_it_shows_and_what_it_cannot():
    label = torch.zeros(6, 6, dtype=torch.uint8)
    label[0, 0], label[1] = 2, 255
    tags = training.visible_tags(label, Record("a", Path("a"), (0, 1), unknown=(3,)), 5)
    # The view may have missed class 0, and nobody knows about class 3.
    torch.testing.assert_close(tags, torch.tensor([torch.nan, 1, 0, torch.nan, 0]), equal_nan=True)


def test_the_tag_loss_lifts_what_is_there_and_lowers_what_is_not(tmp_path):
    data = pictures(tmp_path / "data", count=2)
    segmenter = aspp(replace(QUICK, tag_loss=2.0))
    samples = [
        training.make_sample(record, RNG, segmenter, data.read_mask)
        for record in data.subset("all")
    ]
    batch = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    net = tiny()
    terms = segmenter.loss(net, batch, RNG)
    assert set(terms) == {"ce", "tags"}
    logits = net(batch["image"])
    wins = logits[:, 1:] - logits[:, :1]
    pooled = torch.log(torch.exp(4 * wins.flatten(2)).mean(2)) / 4
    known = ~batch["tags"].isnan()
    signs = torch.where(batch["tags"] == 1, 1.0, -1.0)
    expected = 2 * F.softplus(-signs * pooled)[known].mean()
    torch.testing.assert_close(terms["tags"], expected, rtol=1e-4, atol=1e-5)
    assert set(aspp(QUICK).loss(net, batch, RNG)) == {"ce"}


def test_predictions_that_are_there_are_kept(tmp_path):
    data, out = pictures(tmp_path / "data"), tmp_path / "out"
    predict(aspp(QUICK), tiny(), data.subset("all"), out, "test", "cpu")
    kept = (out / "p1.png").stat().st_mtime_ns
    whole = (out / "p2.png").read_bytes()
    (out / "p2.png").write_bytes(whole[:20])
    predict(aspp(QUICK), tiny(), data.subset("all"), out, "test", "cpu")
    assert (out / "p1.png").stat().st_mtime_ns == kept
    assert read_index_png(out / "p2.png").shape == (36, 44)


@pytest.mark.parametrize("kind", ["raw", "meansub_wrap", "denormalised"])
def test_what_the_crf_sees(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    seen = crf_picture(pixels, kind)
    assert (seen.dtype, seen.shape) == (np.uint8, pixels.shape)
    if kind == "raw":
        assert np.array_equal(seen, pixels)
    elif kind == "meansub_wrap":
        shifted = pixels[..., ::-1].astype(float) - (104.008, 116.669, 122.675)
        wrapped = [int(v) % 256 for v in shifted.ravel()]
        assert seen.ravel().tolist() == wrapped
    else:
        assert set(np.unique(pixels.astype(int) - seen)) == {0, 1}


PRESET_OF = {
    "aspp": QUICK,
    "deeplab-v2-r101": replace(
        PRESETS["deeplab-v2-r101"],
        epochs=1,
        updates=0,
        batch=2,
        crop=33,
        width=1 / 16,
        workers=0,
        precision="fp32",
    ),
    "largefov-r38": replace(
        PRESETS["largefov-r38"],
        epochs=1,
        updates=0,
        batch=4,
        crop=32,
        width=1 / 16,
        workers=0,
        precision="fp32",
    ),
}


@pytest.fixture(scope="module", params=PRESET_OF)
def trained(request, tmp_path_factory):
    """A segment stage of one epoch for each segmenter, its identity and what it learnt."""
    root = tmp_path_factory.mktemp("segment")
    data, stage = pictures(root / "data", count=4), Output(root / "segment")
    stage.folder.mkdir()
    identity = {"method": "cam", "backbone": "resnet18", "classes": list(data.classes)}
    segmenter = make_segmenter(PRESET_OF[request.param], "resnet18", 3)
    torch.manual_seed(0)
    network = segmenter.build()
    start = {k: v.clone() for k, v in network.state_dict().items()}
    metrics = Metrics(root / "metrics.csv", "segment")
    training.train_segmenter(
        segmenter, network, data.subset("all"), data.read_mask, stage, metrics, 0, identity, "cpu"
    )
    return root, stage, identity, start, network, segmenter


def test_training_writes_weights_that_load(trained):
    root, stage, identity, start, network, segmenter = trained
    assert stage.outputs == {"count": 1, "weights": "model.pt", "images": 4}
    assert stage.metrics["loss"] > 0
    assert [p.name for p in stage.folder.iterdir()] == ["model.pt"]
    assert "loss_ce" in (root / "metrics.csv").read_text()
    moved = [k for k, v in start.items() if not torch.equal(v, network.state_dict()[k])]
    assert moved
    found, again, said = segment.load(
        stage.folder / "model.pt", {"classes": identity["classes"], "backbone": "resnet18"}
    )
    assert type(found) is type(segmenter)
    assert said["network"] == segmenter.config.network
    assert not again.training
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in network.state_dict().items())


def test_what_is_loaded_predicts_as_what_was_trained(trained, tmp_path):
    _, stage, _, _, network, segmenter = trained
    records = pictures(tmp_path / "data", count=3).subset("all")
    quick = replace(segmenter.config, scales=(1.0,), crf="none")
    found, again, _ = segment.load(stage.folder / "model.pt", {}, quick)
    assert found.config == quick
    predict(found, again, records, tmp_path / "a", "test", "cpu")
    predict(make_segmenter(quick, "resnet18", 3), network, records, tmp_path / "b", "test", "cpu")
    for record in records:
        a, b = (read_index_png(tmp_path / side / f"{record.id}.png") for side in "ab")
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("key", "value"), [("classes", ["c0", "c1"]), ("backbone", "resnet34"), ("method", "seam")]
)
def test_weights_of_something_else_are_refused(trained, key, value):
    with pytest.raises(WeightsError, match=f"made with {key}") as caught:
        segment.load(trained[1].folder / "model.pt", {key: value})
    assert str(value) in caught.value.expected


def test_probabilities_are_kept_as_maps_of_the_classes_that_are_somewhere_likely(tmp_path):
    data = pictures(tmp_path / "data")
    net, config = tiny(), replace(QUICK, scales=(1.0,), flip=False)
    net.aspp.c0.weight.data.normal_(std=0.5)
    # The last class is nowhere.
    net.aspp.c0.bias.data[3] = -100
    records, maps = data.subset("all"), tmp_path / "maps"
    predict(aspp(config), net, records, tmp_path / "out", "test", "cpu", maps=maps)
    sure = 0
    for record in records:
        cam = read_cam(cam_path(maps, record.id))
        chance = naive(net, read_image(record.image), config)
        assert cam.size == chance.shape[1:]
        assert cam.maps.shape[1:] == stride4(cam.size)
        assert cam.classes.tolist() == [k for k in range(3) if chance[k + 1].max() >= 0.01]
        assert 2 not in cam.classes
        for k, values in zip(cam.classes, cam.maps, strict=True):
            full = upsample_cam(values[None], cam.size)[0]
            assert np.abs(full - chance[k + 1]).mean() < 0.05
            assert abs(values.mean() - chance[k + 1].mean()) < 0.02
            sure += int(values.max() > 0.5)
    assert sure
    # Where the mask alone is whole, the image is predicted again.
    cam_path(maps, "p1").unlink()
    predict(aspp(config), net, records, tmp_path / "out", "test", "cpu", maps=maps)
    assert cam_path(maps, "p1").exists()
