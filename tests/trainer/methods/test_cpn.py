import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import U
from tiny_nets import Staged, pictures

from trainer.data.transforms import sample_rng
from trainer.errors import ConfigError
from trainer.maps.protocols import PROTOCOLS
from trainer.methods.base import Method
from trainer.methods.cam import Cam
from trainer.methods.cam import Config as CamConfig
from trainer.methods.cpn import (
    PRESETS,
    PROTOCOL,
    Config,
    Cpn,
    cpn_loss,
    grid_cells,
    grid_mask,
    hidden_segments,
    random_grid_mask,
    segment_masks,
    strongest,
)
from trainer.methods.recipes import ClassifyConfig
from trainer.methods.samples import make_sample
from trainer.methods.seam import resized
from trainer.options import Options, make_configs
from trainer.run import Metrics, Output
from trainer.stages import classify

HEADS = {"f8_3.weight", "f8_4.weight", "f9.weight", "f10.weight"}
TERMS = ["cls", "min", "tcp", "tcp_refined", "cpcr"]
QUICK = ClassifyConfig(
    epochs=2, batch=2, crop=32, resize=(32, 48), workers=0, precision="fp32", lr=1e-2, momentum=0.9
)


def make(**changes: object) -> Cpn:
    torch.manual_seed(0)
    return Cpn(Config(**{"grid": (8, 16), **changes}), Staged(("stage2", "stage3", "stage4")), 3)  # type: ignore[arg-type]


def batch(patches: str = "grid") -> list:
    draw = torch.Generator().manual_seed(1)
    images, tags = torch.randn(2, 3, 50, 41, generator=draw), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    blocks = (
        torch.arange(20).reshape(5, 4).repeat_interleave(10, 0).repeat_interleave(11, 1)[:, :41]
    )
    segments = torch.stack([blocks, blocks % 7])
    extra = {"segments": segments} if patches == "superpixel" else {}
    return [{"image": images, "tags": tags, **extra}, np.random.default_rng(0)]


def reached(method: Cpn, *names: str) -> set[str]:
    """Parameters that these terms of the loss move."""
    terms = method.train().loss(*batch())
    method.zero_grad()
    torch.stack([terms[name] for name in names]).sum().backward()
    return {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}


def golden() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    maps = [U((2, 21, 24, 24), 21 + i) for i in range(6)]
    maps[::2] = [4 * x - 2 for x in maps[::2]]
    tags = torch.zeros(2, 20, dtype=torch.float64)
    tags[0, [2, 14]] = tags[1, 7] = 1
    return (
        [x.requires_grad_() for x in maps],
        torch.tensor([0.25, 0.625], dtype=torch.float64),
        tags,
    )


def golden_terms(**changes: bool) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    maps, lam, tags = golden()
    return cpn_loss(list(zip(maps[::2], maps[1::2])), lam, tags, **changes), maps


def norms(maps: list[torch.Tensor]) -> list[float]:
    return [0.0 if x.grad is None else x.grad.norm().item() for x in maps]


def test_golden_loss():
    terms, maps = golden_terms()
    assert list(terms) == TERMS
    expected = [0.692468729, 0.224332266, 0.023505970, 0.022539878, 0.502320637]
    assert [t.item() for t in terms.values()] == pytest.approx(expected, rel=1e-6)
    total = torch.stack(list(terms.values())).sum()
    assert total.item() == pytest.approx(1.465167480, rel=1e-6)
    total.backward()
    assert norms(maps) == pytest.approx(
        [0.004183607, 0.023159626, 0.001100629, 0.038381178, 0.001096118, 0.028985705], rel=1e-6
    )
    assert all(not x.grad[:, 0].any() for x in maps)  # type: ignore[index]


def test_the_paper_stops_the_gradient_of_the_pair():
    values = {}
    for detach in (False, True):
        terms, maps = golden_terms(detach_pair=detach)
        terms["tcp_refined"].backward()
        values[detach] = (terms["tcp_refined"].item(), [n > 0 for n in norms(maps)])
    assert values[True][0] == values[False][0]
    assert values[False][1] == [False, True, False, True, False, True]
    assert values[True][1] == [False, True, False, False, False, False]


def test_the_paper_has_neither_min_pooling_nor_one_hot():
    terms, _ = golden_terms(min_pooling=False, onehot=False)
    assert list(terms) == [name for name in TERMS if name != "min"]
    both, _ = golden_terms()
    assert terms["cls"].item() == both["cls"].item()
    assert terms["cpcr"].item() != both["cpcr"].item()


def test_which_term_moves_what():
    method = make()
    backbone = {f"backbone.{name}" for name, _ in method.backbone.named_parameters()}
    assert reached(method, "cls") == reached(method, "tcp") == backbone | {"fc8.weight"}
    for term in ("min", "tcp_refined", "cpcr"):
        assert reached(method, term) == HEADS
    assert reached(make(prcm="off"), "cpcr") == HEADS - {"f10.weight"}


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((224, 448), [(448, 0, 1.0), (224, 2, 0.5), (224, 3, 0.25)]),
        ((56, 112), [(112, 7, 9 / 16), (56, 23, 41 / 64), (56, 27, 37 / 64)]),
    ],
)
def test_golden_grids(sides, expected):
    for seed, (side, hidden, share) in enumerate(expected):
        stream = random.Random(seed)
        assert stream.choice(sides) == side
        cells = (448 // side) ** 2
        mask, lam = grid_mask((448, 448), side, np.array([stream.random() for _ in range(cells)]))
        assert lam == share
        assert mask.mean() == share
        assert (mask[::side, ::side] == 0).sum() == hidden


def test_cells_are_clipped_and_row_by_row():
    assert grid_cells((5, 8), 3) == (2, 3)
    mask, lam = grid_mask((5, 8), 3, np.array([0.9, 0.5, 0.9, 0.1, 0.6, 0.2]))
    assert mask.shape == (5, 8)
    assert lam == 0.5
    assert mask[[0, 0, 0, 4, 4, 4], [2, 3, 7, 0, 5, 6]].tolist() == [1, 0, 1, 0, 1, 0]


def test_a_cell_larger_than_the_crop_is_one_cell():
    masks = [random_grid_mask((20, 30), (64,), sample_rng(0, 0, i)) for i in range(20)]
    assert {lam for _, lam in masks} == {0.0, 1.0}
    assert all((mask == lam).all() for mask, lam in masks)


def test_half_of_the_cells_are_hidden_and_every_side_is_drawn():
    draws = [random_grid_mask((32, 32), (4, 32), sample_rng(0, 0, i))[1] for i in range(300)]
    assert np.mean(draws) == pytest.approx(0.5, abs=0.05)
    assert sum(lam in (0, 1) for lam in draws) == pytest.approx(150, abs=40)


@pytest.mark.parametrize(("draw", "share"), [("independent", 0.5), ("replacement", 0.393)])
def test_the_share_of_hidden_segments(draw, share):
    rng = np.random.default_rng(0)
    drawn = [hidden_segments(214, draw, rng) for _ in range(200)]
    assert all(len(flags) == 215 and not flags[0] for flags in drawn)
    assert np.mean([flags[1:].mean() for flags in drawn]) == pytest.approx(share, abs=0.01)
    assert hidden_segments(0, draw, rng).tolist() == [False]
    assert {hidden_segments(1, draw, rng).sum() for _ in range(50)} == {0, 1}


def test_segments_are_hidden_whole_and_padding_never():
    segments = torch.tensor(
        [[[0, 0, 1, 2], [0, 0, 1, 3]], [[1, 1, 1, 1], [1, 1, 1, 1]], [[0, 0, 0, 0], [0, 0, 0, 0]]]
    )
    hidden = [np.array([False, True, False, True]), np.array([False, True]), np.array([False])]
    mask, lam = segment_masks(segments, hidden)
    assert mask[0].tolist() == [[1, 1, 0, 1], [1, 1, 0, 0]]
    assert lam.tolist() == [0.25, 0, 1]
    assert not mask[1].any()
    assert mask[2].all()


def test_channels_of_absent_classes_may_be_left_out():
    rest = U((2, 5, 6, 6), 3) * 2 - 1.6
    full = torch.cat([rest, torch.zeros(2, 1, 6, 6)], 1)
    assert (rest.amax(1) < 0).any()
    assert torch.equal(strongest(rest, True), strongest(full, False)[:, :5])


@pytest.mark.parametrize(
    "tags", [[[1.0, 0, 1], [0, 1, 0]], [[1.0, 1, 1], [0, 1, 0]], [[0.0, 0, 0], [0, 0, 1]]]
)
def test_the_loss_is_that_of_its_maps(tags, monkeypatch):
    method, images = make(loss_stride=1, grid=(50,)), batch()[0]["image"]
    there = torch.tensor(tags)
    monkeypatch.setattr(
        "trainer.methods.cpn.random_grid_mask", lambda *_: (np.ones((50, 41), np.float32), 0.75)
    )
    terms = method.eval().loss({"image": images, "tags": there}, np.random.default_rng(0))
    maps = [
        [resized(x, (50, 41)) for x in method.maps(view)] for view in (images, images, 0 * images)
    ]
    expected = cpn_loss(maps, torch.tensor([0.75, 0.75]), there)  # type: ignore[arg-type]
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(
        {k: v.item() for k, v in expected.items()}
    )


class Watched(Cpn):
    """Remembers what its network saw."""

    def maps(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append(images)
        return super().maps(images)


@pytest.mark.parametrize("patches", ["grid", "superpixel"])
def test_the_pair_is_complementary(patches, monkeypatch):
    torch.manual_seed(0)
    method = Watched(Config(patches=patches, grid=(10,)), Staged(("stage2", "stage3", "stage4")), 3)
    method.seen = []  # type: ignore[assignment]
    shares: list[torch.Tensor] = []

    def loss(maps: object, lam: torch.Tensor, *rest: object) -> dict[str, torch.Tensor]:
        shares.append(lam)
        return {}

    monkeypatch.setattr("trainer.methods.cpn.complement", loss)
    views, rng = batch(patches)
    images = views["image"]
    method.loss(views, rng)
    whole, one, other = method.seen  # type: ignore[misc]
    assert torch.equal(whole, images)
    assert torch.equal(one + other, images)
    counted = torch.ones(2, 50, 41, dtype=torch.bool)
    if patches == "superpixel":
        counted = views["segments"] > 0
    visible = ((one != 0).any(1) & counted).sum((1, 2)) / counted.sum((1, 2))
    hidden = ((other != 0).any(1) & counted).sum((1, 2)) / counted.sum((1, 2))
    torch.testing.assert_close(visible + hidden, torch.ones(2))
    # Cells of the last column are clipped, and lam counts cells.
    torch.testing.assert_close(shares[0], visible, atol=0.1 if patches == "grid" else 1e-6, rtol=0)
    assert ((visible > 0) & (visible < 1)).all()


@pytest.mark.parametrize("draw", ["independent", "replacement"])
@pytest.mark.parametrize("patches", ["grid", "superpixel"])
def test_loss_is_finite_and_repeats(patches, draw):
    losses = []
    for _ in range(2):
        method = make(patches=patches, draw=draw).train()
        terms = method.loss(*batch(patches))
        torch.stack(list(terms.values())).sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())
        losses.append({k: v.item() for k, v in terms.items()})
    assert list(losses[0]) == TERMS
    assert losses[0] == losses[1]
    assert np.isfinite(list(losses[0].values())).all()


def test_an_empty_half_is_no_trouble():
    method = make(grid=(500,)).train()
    views, _ = batch()
    for seed in range(6):
        terms = method.loss(views, np.random.default_rng(seed))
        torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())


def test_impossible_settings_are_user_errors():
    for knob, value in (
        ("grid", ()),
        ("grid", (56, 0)),
        ("segments", 1),
        ("segments", 10_001),
        ("ohem", 0.0),
    ):
        with pytest.raises(ConfigError, match=knob):
            make(**{knob: value})
    with pytest.raises(ConfigError, match="no super-pixels"):
        make(patches="superpixel").loss(*batch())


def test_presets_and_published_training():
    assert PROTOCOL in PROTOCOLS
    options = Options(Path("data"), Path("run"), method="cpn", backbone="resnet38")
    configs = {name: make_configs(replace(options, preset=name)) for name in (None, *PRESETS)}
    plain, code, paper = (configs[name].method for name in (None, "code", "paper"))
    assert plain == Config()
    assert (code.grid, code.segments, code.draw, code.onehot) == (
        (224, 448),
        300,
        "replacement",
        True,
    )
    assert (paper.grid, paper.min_pooling, paper.detach_pair, paper.onehot) == (
        (56, 112),
        False,
        True,
        False,
    )
    trained = configs[None].classify
    assert (trained.lr, trained.batch, trained.epochs, trained.resize) == (0.01, 4, 8, (448, 768))
    set_by_hand = make_configs(
        replace(options, settings=("method.grid=28", "method.patches=superpixel"))
    )
    assert set_by_hand.method == Config(grid=(28,), patches="superpixel")


def trained(module: Method, root: Path) -> Output:
    data, stage = pictures(root / "data"), Output(root / "classify")
    stage.folder.mkdir(exist_ok=True)
    metrics = Metrics(root / "metrics.csv", "classify")
    records = data.subset("all")
    needs = module.needs(root)
    classify.classify(
        module, data, records, records[:3], QUICK, stage, metrics, 0, {}, "cpu", needs
    )
    return stage


def test_training_on_superpixels(tmp_path):
    method = make(patches="superpixel", segments=9)
    stage = trained(method, tmp_path)
    folder = tmp_path / "superpixels" / "9"
    assert len(list(folder.iterdir())) == 6
    assert np.isfinite(stage.metrics["loss_tcp"])
    record = pictures(tmp_path / "data").subset("all")[0]
    sample = make_sample(record, sample_rng(0, 0, 0), QUICK, 3, method.needs(tmp_path))
    assert sample["tags"].tolist() == [1, 0, 0]
    assert (sample["segments"].shape, sample["segments"].dtype) == ((32, 32), torch.int64)
    plain = make_sample(record, sample_rng(0, 0, 0), QUICK, 3)
    assert torch.equal(sample["image"], plain["image"])


@pytest.mark.parametrize("method", ["grid", "cam"])
def test_others_need_no_superpixels(method, tmp_path):
    trained(make() if method == "grid" else Cam(CamConfig(), Staged(), 3), tmp_path)
    assert not (tmp_path / "superpixels").exists()


@pytest.mark.parametrize("side", [50, 64, 1000])
def test_an_image_smaller_than_a_patch_is_hidden_whole_or_not_at_all(side):
    """Stated: where one cell covers the crop, lam is 0 or 1, and the losses stay finite."""
    method = make(grid=(side,)).train()
    seen = set()
    for seed in range(6):
        _, share = random_grid_mask((50, 41), (side,), np.random.default_rng(seed))
        seen.add(share)
        terms = method.loss(batch()[0], np.random.default_rng(seed))
        assert all(torch.isfinite(term) for term in terms.values())
    assert seen == {0.0, 1.0}


@pytest.mark.parametrize(
    ("crop", "sides"), [(448, (56, 112)), (256, (32, 64)), (224, (28, 56)), (3, (1, 1))]
)
def test_cells_are_in_proportion_to_the_crop(crop, sides, monkeypatch):
    drawn: list[tuple[int, ...]] = []

    def mask(size: tuple[int, int], sides: tuple[int, ...], *_: object) -> tuple[object, float]:
        drawn.append(sides)
        return np.ones(size, np.float32), 1.0

    monkeypatch.setattr("trainer.methods.cpn.random_grid_mask", mask)
    images = torch.zeros(1, 3, crop, crop)
    for grid in ("auto", (9, 11)):
        make(grid=grid).masks(images, np.random.default_rng(0), None)
    assert drawn == [sides, (9, 11)]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_the_hidden_share_is_a_knob(share):
    images, segments = torch.zeros(40, 3, 64, 64), torch.arange(1, 65).repeat_interleave(64)
    for patches in ("grid", "superpixel"):
        method = make(patches=patches, grid=(8,), hidden=share)
        ids = segments.view(1, 64, 64).expand(40, -1, -1)
        mask, lam = method.masks(images, np.random.default_rng(0), ids)
        assert 1 - mask.mean().item() == pytest.approx(share, abs=0.05)
        torch.testing.assert_close(lam, mask.mean((1, 2, 3)))
    draws = [hidden_segments(200, "replacement", np.random.default_rng(i), share) for i in range(9)]
    assert np.mean([d.mean() for d in draws]) == pytest.approx(1 - np.exp(-share), abs=0.03)


def test_losses_are_weighted_and_switch_off():
    usual = make().loss(*batch())
    changed = make(w_cls=2.0, w_tcp=3.0, w_cpcr=0.5).loss(*batch())
    factors = {"cls": 2, "min": 2, "tcp": 3, "tcp_refined": 3, "cpcr": 0.5}
    for name, factor in factors.items():
        torch.testing.assert_close(changed[name], factor * usual[name])
    assert list(make(w_cpcr=0.0).loss(*batch())) == TERMS[:-1]
    assert list(make(w_tcp=0.0, min_pooling=False).loss(*batch())) == ["cls", "cpcr"]


def test_alpha_raises_the_background_that_is_compared():
    maps, lam, tags = golden()
    pairs = list(zip(maps[::2], maps[1::2]))
    plain, raised = (cpn_loss(pairs, lam, tags, alpha=alpha) for alpha in (1.0, 2.0))
    assert raised["cpcr"] != plain["cpcr"]
    assert {k: v for k, v in raised.items() if k != "cpcr"} == {
        k: v for k, v in plain.items() if k != "cpcr"
    }


def test_few_classes_count_as_many_entries_as_published():
    """The classes that a data set of six lacks are zeros in one of twenty: the loss is the same."""
    maps, lam, tags = golden()
    tags[:, 6:] = 0
    few = [(cam[:, :7], rv[:, :7]) for cam, rv in zip(maps[::2], maps[1::2])]
    six = cpn_loss(few, lam, tags[:, :6])
    twenty = cpn_loss(list(zip(maps[::2], maps[1::2])), lam, tags)
    torch.testing.assert_close(six["cpcr"], twenty["cpcr"])


@pytest.mark.parametrize(
    ("knob", "value"), [("hidden", 0.0), ("hidden", 1.0), ("alpha", 0.0), ("w_tcp", -1.0)]
)
def test_impossible_shares_and_weights(knob, value):
    with pytest.raises(ConfigError, match=knob):
        make(**{knob: value})
    with pytest.raises(ConfigError, match="not all of them 0"):
        make(w_cls=0.0, w_tcp=0.0, w_cpcr=0.0)
