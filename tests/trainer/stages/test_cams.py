import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import U
from PIL import Image
from tiny_nets import TinyBackbone, pictures

from trainer.data.dataset import Record
from trainer.data.pixels import read_image
from trainer.data.sizes import working_size
from trainer.data.transforms import MEAN, STD
from trainer.errors import ConfigError, DataError, TrainingError
from trainer.maps.camfile import cam_path, read_cam, stride4, write_cam
from trainer.maps.departures import DepartureMaps
from trainer.maps.protocols import PROTOCOLS, CamsConfig, Protocol, merge, protocol_of, usable_views
from trainer.methods.cam import Cam, Config
from trainer.run import Output
from trainer.stages import cams
from trainer.stages.cams import make_cams
from trainer.training.inference import Budget, Views, equal_size_batches, in_parts, iterate_views

SIZE, PRESENT = (37, 53), [2, 14]
SCALES = (1, 0.5, 1.5, 2)
QUIET = CamsConfig(workers=0, min_cells=0)


def golden_maps(stride: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """m_{k,f} of spec 7, present classes only; the mirror image's map is still mirrored."""
    pairs = []
    for k, scale in enumerate(SCALES):
        h, w = (-(-round(side * scale) // stride) for side in SIZE)
        pairs.append(tuple(F.relu(3 * U((20, h, w), 200 + 2 * k + f) - 1)[PRESENT] for f in (0, 1)))
    return pairs  # type: ignore[return-value]


def near(value: torch.Tensor, expected: float) -> bool:
    return value.item() == pytest.approx(expected, rel=1e-6)


def histogram(maps: torch.Tensor, beta: float) -> list[int]:
    stack = torch.cat([torch.full((1, *SIZE), beta, dtype=maps.dtype), maps])
    return stack.argmax(0).flatten().bincount(minlength=3).tolist()


def test_golden_psa():
    maps = golden_maps(8)
    assert [m.shape[1:] for m, _ in maps] == [(5, 7), (3, 4), (7, 10), (10, 14)]
    merged = merge(maps, SIZE, PROTOCOLS["psa"], full=True)
    assert merged.shape == (2, *SIZE)
    assert near(merged[0, 10, 20], 0.574936308)
    assert near(merged[1, 36, 52], 0.912447118)
    assert near(merged.mean(), 0.586240818)
    assert histogram(merged, 0.2) == [0, 868, 1093]


def test_golden_seam():
    merged = merge(golden_maps(8), SIZE, PROTOCOLS["seam"], full=True)
    assert near(merged[0, 10, 20], 0.437970523)
    assert near(merged[1, 36, 52], 0.892174973)
    assert near(merged.mean(), 0.471155124)
    assert histogram(merged, 0.26) == [61, 727, 1173]


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("irn", (0.915478594, 0.697390433), (0.866178178, 0.693019001, 0.697963000)),
        ("vwe", (0.839519595, 0.720367702), (0.787462746, 0.630780121, 0.711216612)),
    ],
)
def test_golden_irn_and_vwe(name, low, high):
    maps = golden_maps(16)
    assert [m.shape[1:] for m, _ in maps] == [(3, 4), (2, 2), (4, 5), (5, 7)]
    small = merge(maps, stride4(SIZE), PROTOCOLS[name])
    assert small.shape == (2, 10, 14)
    assert near(small[0, 4, 5], low[0])
    assert near(small.mean(), low[1])
    full = merge(maps, SIZE, PROTOCOLS[name], full=True)
    assert near(full[0, 10, 20], high[0])
    assert near(full[1, 36, 52], high[1])
    assert near(full.mean(), high[2])


def test_empty_maps_stay_empty():
    nothing = [(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))]
    for protocol in PROTOCOLS.values():
        assert merge(nothing, (10, 14), protocol).clamp(0, 1).max() == 0


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("psa", [(37, 53), (18, 26), (56, 80), (74, 106)]),
        ("irn", [(37, 53), (18, 26), (56, 80), (74, 106)]),
        ("mva", [(37, 53), (18, 26), (55, 79), (74, 106)]),
        ("seam", [(18, 26), (37, 53), (56, 80), (74, 106)]),
    ],
)
def test_sizes_of_the_views(name, sizes):
    views = PROTOCOLS[name].views
    assert [views.size(*SIZE, scale) for scale in views.scales] == sizes
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    assert [tuple(views.make(pixels, scale).shape) for scale in views.scales] == [
        (3, *size) for size in sizes
    ]


def test_scale_1_is_untouched_and_filters_differ():
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    psa, mva = PROTOCOLS["psa"].views, PROTOCOLS["mva"].views
    expected = (pixels / 255.0 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(psa.make(pixels, 1.0).permute(1, 2, 0).numpy(), expected, atol=2e-6)
    assert not torch.equal(psa.make(pixels, 2.0), mva.make(pixels, 2.0))
    assert psa.size(3, 2, 0.1) == (1, 1)


def test_a_protocol_fits_the_backbone_and_scales_can_be_changed():
    assert protocol_of(CamsConfig(), "resnet50", "cam") == ("irn", PROTOCOLS["irn"])
    assert protocol_of(CamsConfig(), "resnet38", "cam") == ("psa", PROTOCOLS["psa"])
    assert protocol_of(CamsConfig(protocol="vwe"), "resnet38", "cam")[1].mirror == "max_small"
    _, own = protocol_of(CamsConfig(protocol="mva", scales=(1.0, 0.25)), "resnet38", "cam")
    assert own == Protocol(Views((1.0, 0.25), "trunc", "lanczos"), pad=True)


class Strided:
    """As much of a backbone as the choice of views reads."""

    def __init__(self, stride: int) -> None:
        self.top, self.strides = "top", {"top": stride}


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 500), (500, 112), (482, 400)])
def test_full_size_photographs_keep_every_published_view(name, stride, size):
    published = PROTOCOLS[name].views
    views = usable_views(published, CamsConfig().min_cells, Strided(stride))
    assert views.usable(*size) == published.scales


@pytest.mark.parametrize(
    ("size", "stride", "min_cells", "kept"),
    [
        ((320, 240), 16, 16, (1.0, 1.5, 2.0)),
        ((240, 320), 8, 16, (0.5, 1.0, 1.5, 2.0)),
        ((224, 200), 16, 16, (1.5, 2.0)),
        ((96, 96), 16, 16, (2.0,)),
        ((9, 5), 16, 16, (2.0,)),
        ((320, 240), 16, 10, (0.5, 1.0, 1.5, 2.0)),
        ((320, 240), 16, 11, (1.0, 1.5, 2.0)),
        ((9, 5), 16, 0, (0.5, 1.0, 1.5, 2.0)),
    ],
)
def test_views_with_too_few_cells_are_left_out(size, stride, min_cells, kept):
    views = usable_views(PROTOCOLS["seam"].views, min_cells, Strided(stride))
    assert views.usable(*size) == kept
    for scale in views.scales[:-1]:
        cells = max(-(-side // stride) for side in views.size(*size, scale))
        assert (scale in kept) == (cells >= min_cells)


def test_a_number_of_cells_below_0_is_refused():
    with pytest.raises(ConfigError, match="min_cells"):
        CamsConfig(min_cells=-1)


def test_maps_are_the_merge_of_the_views_that_stay(tmp_path):
    # At stride 4 the half view of 44 pixels has 6 cells, the others 11, 17 and 22.
    data, stage = pictures(tmp_path / "data"), Output(tmp_path / "cams")
    config = CamsConfig(workers=0, min_cells=12)
    make_cams(tiny_cam(), data.subset("all"), stage, PROTOCOLS["seam"], config, "cpu")
    stays = Protocol(Views((1.5, 2.0)), normalise="minmax")
    for record in data.subset("all"):
        maps = read_cam(cam_path(stage.folder, record.id)).maps
        expected = one_by_one(tiny_cam().eval(), record, stays).numpy()
        np.testing.assert_allclose(maps, expected, atol=2e-3)


def tiny_cam() -> Cam:
    torch.manual_seed(0)
    return Cam(Config(), TinyBackbone(), 3)


def one_by_one(method: Cam, record: Record, protocol: Protocol) -> torch.Tensor:
    """As the released scripts do: one image, one scale, one flip at a time, with Pillow and NCHW
    memory.
    """
    pixels = read_image(record.image)
    height, width = pixels.shape[:2]
    pairs = []
    for scale in protocol.views.scales:
        h, w = protocol.views.size(height, width, scale)
        filters = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
        resized = Image.fromarray(pixels).resize((w, h), filters[protocol.views.filter])
        image = (np.asarray(resized) / 255.0 - np.array(MEAN)) / np.array(STD)
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).astype("float32"))
        with torch.no_grad():
            pairs.append(
                tuple(
                    method.cams(view[None])[0, list(record.tags)]
                    for view in (tensor, tensor.flip(2))
                )
            )
    return merge(pairs, stride4((height, width)), protocol).clamp(0, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_batches_equal_one_image_one_scale_one_flip(tmp_path, monkeypatch, name):
    data = pictures(tmp_path / "data")
    records, written = data.subset("all"), {}

    def write(path, tags, maps, *rest):
        written[path.stem] = (tags, maps)
        write_cam(path, tags, maps, *rest)

    # The files are rounded to float16.
    monkeypatch.setattr(cams, "write_cam", write)
    make_cams(tiny_cam(), records, Output(tmp_path / "cams"), PROTOCOLS[name], QUIET, "cpu")
    assert set(written) == set(data.records)
    reference = tiny_cam().eval()
    for record in records:
        tags, maps = written[record.id]
        assert tags == list(record.tags)
        assert maps.max() > 0.5
        np.testing.assert_allclose(
            maps, one_by_one(reference, record, PROTOCOLS[name]).numpy(), atol=1e-4
        )


@pytest.mark.parametrize("workers", [0, 1])
def test_files_are_written_kept_and_repaired(tmp_path, workers):
    data = pictures(tmp_path / "data")
    untagged = Record("untagged", data.records["p0"].image, ())
    records, stage = [*data.subset("all"), untagged], Output(tmp_path / "cams")
    config = CamsConfig(workers=workers)
    make_cams(tiny_cam(), records, stage, PROTOCOLS["psa"], config, "cpu")
    assert stage.outputs == {"count": 7, "made": 7}
    files = {r.id: cam_path(stage.folder, r.id) for r in records}
    assert {p.stem for p in stage.folder.iterdir()} == {*data.records, "untagged"}
    assert read_cam(files["untagged"]).maps.shape == (0, *stride4((44, 36)))
    cam = read_cam(files["p1"])
    assert cam.classes.tolist() == [1]
    assert cam.size == (36, 44)
    assert cam.maps.shape == (1, *stride4((36, 44)))
    assert 0.9 < cam.maps.max() <= 1
    before = {i: files[i].read_bytes() for i in data.records}
    files["p2"].unlink()
    files["p3"].write_bytes(before["p3"][:100])
    kept = files["p4"].stat().st_mtime_ns
    make_cams(tiny_cam(), records, stage, PROTOCOLS["psa"], config, "cpu")
    assert stage.outputs == {"count": 7, "made": 2}
    assert files["p4"].stat().st_mtime_ns == kept
    for i in ("p2", "p3"):
        np.testing.assert_allclose(
            read_cam(files[i]).maps, np.load(io.BytesIO(before[i]))["maps"], atol=2e-3
        )


def test_a_killed_stage_ends_with_the_stability_of_all_images(tmp_path):
    records, folder = pictures(tmp_path / "data").subset("all"), tmp_path / "cams"
    make_cams(tiny_cam(), records, whole := Output(folder), PROTOCOLS["psa"], QUIET, "cpu")
    each = [read_cam(cam_path(folder, record.id)).agreement for record in records]
    assert whole.metrics["stability"] == round(float(np.median(each)), 3)
    assert len(set(each)) == len(each)
    cam_path(folder, "p2").unlink()
    for count in (1, 0):
        make_cams(tiny_cam(), records, again := Output(folder), PROTOCOLS["psa"], QUIET, "cpu")
        assert again.outputs["made"] == count
        assert again.metrics == whole.metrics


def test_departures_are_asked_for_where_maps_are_missing(tmp_path, monkeypatch):
    records, folder, calls = pictures(tmp_path / "data").subset("all"), tmp_path / "cams", []

    def departures(missing):
        calls.append([record.id for record in missing])
        return DepartureMaps()

    rest = (PROTOCOLS["psa"], QUIET, "cpu", (), departures)
    make_cams(tiny_cam(), records, Output(folder), *rest)
    cam_path(folder, "p2").unlink()
    make_cams(tiny_cam(), records, Output(folder), *rest)
    assert calls == [[record.id for record in records], ["p2"]]


def test_departures_of_images_that_may_show_their_class(tmp_path, monkeypatch):
    maps = SimpleNamespace(maps=lambda records: [(record, np.ones((2, 2))) for record in records])
    for name, value in (("learn", maps), ("departing_classes", {1: 0.95})):
        monkeypatch.setattr(cams, name, lambda *_, value=value: value)
    for name in ("build_backbone", "load_backbone"):
        monkeypatch.setattr(cams, name, lambda *_: None)
    records = [
        Record(name, tmp_path / name, tags, None, unknown)
        for name, tags, unknown in (("shows", (1,), ()), ("other", (0,), ()), ("may", (0,), (1,)))
    ]
    context = SimpleNamespace(
        configs=SimpleNamespace(cams=QUIET),
        dataset=SimpleNamespace(classes=("bolt", "crack")),
        initial=SimpleNamespace(path=tmp_path),
        backbone="",
        training=records,
        tagged=records,
        device="cpu",
    )
    result = cams._departures(context, Output(tmp_path), records)
    assert (result.maps.keys(), [*result.classes]) == ({"shows", "may"}, [1])


def test_images_without_a_class_cost_the_network_nothing(tmp_path, monkeypatch, capsys):
    data = pictures(tmp_path / "data")
    records = data.subset("all")
    free = [Record(f"free {r.id}", r.image, ()) for r in records]
    mixed = [record for pair in zip(free, records) for record in pair]
    method, seen = tiny_cam(), []
    monkeypatch.setattr(method, "cams", lambda x: seen.append(len(x)) or Cam.cams(method, x))
    stage, alone = Output(tmp_path / "cams"), Output(tmp_path / "alone")
    make_cams(method, mixed, stage, PROTOCOLS["psa"], QUIET, "cpu")
    # Each view of each image and its mirror.
    assert sum(seen) == len(records) * len(SCALES) * 2
    assert "cams 12/12 (100%)" in capsys.readouterr().err
    make_cams(method, records, alone, PROTOCOLS["psa"], QUIET, "cpu")
    for record in records:
        files = [cam_path(output.folder, record.id).read_bytes() for output in (stage, alone)]
        assert files[0] == files[1]
    for record in free:
        assert read_cam(cam_path(stage.folder, record.id)).maps.shape[0] == 0


def test_images_without_a_class_need_no_network_at_all(tmp_path, monkeypatch):
    free = [Record(r.id, r.image, ()) for r in pictures(tmp_path / "data").subset("all")]
    method, stage = tiny_cam(), Output(tmp_path / "cams")
    monkeypatch.setattr(method, "cams", lambda x: pytest.fail("the network ran"))
    make_cams(method, free, stage, PROTOCOLS["psa"], QUIET, "cpu")
    assert stage.outputs == {"count": 6, "made": 6}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_the_users_error_and_the_rest_is_kept(tmp_path, workers):
    data = pictures(tmp_path / "data")
    cut = data.records["p3"].image
    Image.open(cut).save(cut, "JPEG", quality=95)
    cut.write_bytes(cut.read_bytes()[:1500])
    stage = Output(tmp_path / "cams")
    with pytest.raises(DataError, match=r"p3\.png cannot be read") as caught:
        make_cams(
            tiny_cam(),
            data.subset("all"),
            stage,
            PROTOCOLS["psa"],
            CamsConfig(batch=1, workers=workers),
            "cpu",
        )
    assert "wsss-trainer check" in caught.value.hint
    # Of the same size as p3, and so just before it.
    assert [p.name for p in stage.folder.iterdir()] == ["p0.npz"]


def test_batches_are_of_one_size_largest_first(tmp_path):
    data = pictures(tmp_path, count=7)
    big = tmp_path / "big.png"
    Image.new("RGB", (90, 80)).save(big)
    records = [*data.subset("all"), Record("big", big, (0,))]
    batches = equal_size_batches(records, Views(), Budget(images=3))
    assert [r.id for r in batches[0]] == ["big"]
    assert sorted(len(b) for b in batches) == [1, 1, 3, 3]
    for batch in batches:
        assert len({read_image(r.image).shape for r in batch}) == 1


def test_a_view_is_never_larger_than_the_budget(tmp_path):
    data = pictures(tmp_path, count=3)
    height, width = read_image(data.records["p0"].image).shape[:2]
    budget = Budget(pixels=height * width)
    batches = list(iterate_views(data.subset("all"), Views(scales=(1.0, 2.0)), budget, 0))
    for batch in batches:
        assert batch.size == read_image(batch.records[0].image).shape[:2]
        assert len(batch.records) == 1
        assert max(x.shape[2] * x.shape[3] for x in batch.images) <= budget.pixels
        small, large = batch.images
        assert (small.shape[2], small.shape[3]) == batch.working
        assert (large.shape[2], large.shape[3]) == tuple(2 * side for side in batch.working)


@pytest.mark.parametrize("size", [(3000, 4000), (40, 4000), (4000, 1), (10_000, 10_000), (37, 50)])
def test_the_working_size_fits_and_keeps_the_shape(size):
    for scale, canvas in ((1.0, 1), (2.0, 1), (0.5, 1), (1.0, 512)):
        height, width = working_size(size, 1_000_000, scale, canvas)
        assert max(height, canvas) * max(width, canvas) * max(1, scale) ** 2 <= 1_000_000
        assert (
            (height, width) == size
            or min(size) < 100
            or height / width == pytest.approx(size[0] / size[1], rel=0.02)
        )


def test_parts_of_a_batch_give_what_the_batch_gives():
    images, seen = torch.rand(5, 3, 4, 6), []

    def network(part):
        seen.append(len(part))
        return part.sum((2, 3))

    assert torch.equal(in_parts(network, images, 50), images.sum((2, 3)))
    assert seen == [2, 2, 1]
    assert torch.equal(in_parts(network, images, 1), images.sum((2, 3)))


def test_maps_of_a_large_image_have_their_size_and_look_alike(tmp_path):
    data = pictures(tmp_path / "data", count=2, size=(80, 98))
    maps = {}
    for pixels in (4_000_000, 10_000):
        stage = Output(tmp_path / str(pixels))
        config = CamsConfig(workers=0, pixels=pixels, min_cells=0)
        make_cams(tiny_cam(), data.subset("all"), stage, PROTOCOLS["psa"], config, "cpu")
        maps[pixels] = [read_cam(cam_path(stage.folder, i)) for i in data.records]
    for whole, small in zip(*maps.values()):
        assert whole.size == small.size
        assert whole.maps.shape == small.maps.shape


def test_maps_that_are_not_finite_are_an_error(tmp_path):
    data = pictures(tmp_path / "data", count=1)
    method = tiny_cam()
    with torch.no_grad():
        next(method.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="NaN or inf"):
        make_cams(
            method,
            data.subset("all"),
            Output(tmp_path / "cams"),
            PROTOCOLS["psa"],
            CamsConfig(workers=0),
            "cpu",
        )


def test_bf16_maps_are_close(tmp_path):
    data = pictures(tmp_path / "data", count=2)
    folders = {}
    for precision in ("fp32", "bf16"):
        folders[precision] = Output(tmp_path / precision)
        config = CamsConfig(precision=precision, workers=0)  # type: ignore[arg-type]
        make_cams(
            tiny_cam(), data.subset("all"), folders[precision], PROTOCOLS["psa"], config, "cpu"
        )
    for i in data.records:
        exact, low = (read_cam(cam_path(f.folder, i)).maps for f in folders.values())
        np.testing.assert_allclose(low, exact, atol=0.05)
