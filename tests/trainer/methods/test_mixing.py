"""Mixing, FMix masks, and the three methods built on them."""

import random
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from golden import U

from trainer.errors import ConfigError
from trainer.methods import fmix_cam, manifold_mixup_cam, mixup_cam
from trainer.methods.mixing import Mixture, binarise, draw, low_frequency_field, mix
from trainer.nets import build_backbone
from trainer.nets.resnet38 import ResNet38

IMAGES = torch.randn(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))
TAGS = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
BATCH = {"image": IMAGES, "tags": TAGS}
MIXING_ENTROPIES = get_args(get_type_hints(mixup_cam.Config)["entropy"])


def resnet18():
    torch.manual_seed(0)
    return build_backbone("resnet18", 16, bn="frozen")


def test_all_of_oneself_is_the_identity():
    assert torch.equal(mix(IMAGES, 1.0, torch.tensor([2, 0, 1])), IMAGES)
    assert torch.equal(mix(IMAGES, 0.0, torch.tensor([2, 0, 1])), IMAGES[[2, 0, 1]])


def test_mixed_labels_give_the_mixed_losses():
    loss = torch.nn.functional.multilabel_soft_margin_loss
    x, y = 4 * U((3, 20), 1) - 2, (U((3, 20), 2) > 0.8).double()
    perm = torch.tensor([1, 2, 0])
    assert loss(x, y).item() == pytest.approx(0.864687631676, rel=1e-9)
    torch.testing.assert_close(
        0.3 * loss(x, y) + 0.7 * loss(x, y[perm]), loss(x, mix(y, 0.3, perm))
    )


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (0.5, [[0.5, 0.5, None], [0.0, None, 0.5]]),
        # An image without a share leaves no trace, not even of what it does not know.
        (1.0, [[1.0, 0.0, None], [0.0, 1.0, 0.0]]),
        (0.0, [[0.0, 1.0, 0.0], [0.0, None, 1.0]]),
    ],
)
def test_what_a_part_does_not_know_the_mixture_does_not_know(lam, expected):
    tags = torch.tensor([[1.0, 0, torch.nan], [0, 1, 0], [0, torch.nan, 1]])
    mixed = Mixture(torch.tensor([1, 2, 0]), torch.full((3,), lam)).tags(tags)
    rows = [[None if entry != entry else entry for entry in row] for row in mixed.tolist()]
    assert rows[:2] == expected


@pytest.mark.parametrize("entropy", MIXING_ENTROPIES)
@pytest.mark.parametrize("con_weights", ["mixed", "present"])
def test_every_term_of_a_mixed_batch_is_finite_with_unknown_classes(entropy, con_weights):
    config = mixup_cam.Config(entropy=entropy, con_weights=con_weights)
    method = mixup_cam.MixupCam(config, resnet18(), 4).train()
    tags = TAGS.clone()
    tags[:, 0], tags[1] = torch.nan, torch.nan
    terms = method.loss({"image": IMAGES, "tags": tags}, np.random.default_rng(0))
    assert set(terms) == {"cls", "ent", "con"}
    assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_draw_is_a_permutation_and_beta_shares(per_sample):
    rng = np.random.default_rng(0)
    drawn = [draw(torch.zeros(6, 1), 0.2, per_sample, rng) for _ in range(400)]
    assert all(sorted(m.perm.tolist()) == list(range(6)) for m in drawn)
    shares = torch.stack([m.lam for m in drawn]).double()
    assert bool((shares == shares[:, :1]).all()) != per_sample
    assert shares.mean().item() == pytest.approx(0.5, abs=0.07)
    assert shares[:, 0].var().item() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.02)


def test_fields_of_the_released_code_are_golden():
    field = low_frequency_field((8, 8), 3, "reference", np.random.RandomState(0))
    first = "0.931692 0.692512 0.397818 0.220236 0.263793 0.502973 0.797667 0.975249"
    second = "0.797396 0.445218 0.149766 0.084112 0.286716 0.638895 0.934347 1.0"
    assert field[0] == pytest.approx([float(v) for v in first.split()], abs=1e-6)
    assert field[1] == pytest.approx([float(v) for v in second.split()], abs=1e-6)
    odd = (
        "0.002481 0.150308 0.406919 0.690843 0.911935 1.0 0.927079 0.716322 0.434645 0.171477"
        " 0.010372"
    )
    field = low_frequency_field((8, 11), 3, "reference", np.random.RandomState(1))
    assert field[0] == pytest.approx([float(v) for v in odd.split()], abs=1e-6)


def test_a_whole_sample_of_the_released_code_is_golden():
    lam = 0.44912526447830964
    for shape, expected in (((300, 300), 0.4491333 * 90000), ((33, 40), 593.0)):
        state = np.random.RandomState(0)
        state.beta(1, 1)
        np.random.seed(0)
        # scipy's Beta draw takes what numpy's does from the stream; the value is the spec's.
        np.random.beta(1, 1)
        mask = binarise(
            low_frequency_field(shape, 3, "reference", np.random), lam, 0, random.Random(0)
        )
        assert mask.sum() == pytest.approx(expected, abs=0.01)
        assert set(np.unique(mask)) == {0, 1}


def test_a_soft_mask_is_golden():
    mask = binarise(U((6, 6), 61).numpy(), 0.5, 0.1)
    assert mask.sum() == pytest.approx(18)
    assert mask[0] == pytest.approx([0, 0.6, 0, 0, 0.4, 0])


@pytest.mark.parametrize("mode", ["reference", "isotropic"])
@pytest.mark.parametrize("shape", [(32, 48), (33, 47)])
def test_masks_hold_their_share(mode, shape):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        lam = float(rng.random())
        field = low_frequency_field(shape, 3, mode, rng)
        assert field.shape == shape
        assert (field.min(), field.max()) == (0, 1)
        assert abs(binarise(field, lam, 0, rng).mean() - lam) * field.size < 1
    assert binarise(field, 0.0).sum() == 0
    assert binarise(field, 1.0).sum() == field.size


def test_only_the_papers_field_varies_freely_across_the_width():
    def harmonics(mode: str) -> int:
        field = low_frequency_field((32, 32), 3, mode, np.random.default_rng(0))  # type: ignore[arg-type]
        spectrum = np.abs(np.fft.rfft(field, axis=1)).max(0)
        return int((spectrum > 1e-9 * spectrum.max()).sum())

    assert harmonics("reference") == 2
    assert harmonics("isotropic") > 10


def test_a_field_needs_two_pixels():
    with pytest.raises(ConfigError, match="1x4"):
        low_frequency_field((1, 4), 3, "reference", np.random.default_rng(0))


@pytest.mark.parametrize("backbone", [ResNet38, resnet18])
def test_mixing_at_the_image_is_mixup_and_nothing_mixed_changes_nothing(backbone):
    method = manifold_mixup_cam.ManifoldMixupCam(manifold_mixup_cam.Config(), backbone(), 4).eval()
    perm = torch.tensor([2, 0, 1])
    mixture, alone = Mixture(perm, torch.full((3,), 0.3)), Mixture(perm, torch.ones(3))
    with torch.inference_mode():
        plain = method.features(IMAGES)
        deep = [method.features_mixed_at(depth, IMAGES, mixture) for depth in method.depths]
        torch.testing.assert_close(deep[0], method.features(mixture.maps(IMAGES)))
        for depth in method.depths:
            torch.testing.assert_close(method.features_mixed_at(depth, IMAGES, alone), plain)
        assert torch.equal(method.features(IMAGES), plain)
    assert not any(torch.allclose(a, b) for n, a in enumerate(deep) for b in [plain, *deep[:n]])


def test_depths_of_each_backbone():
    names = manifold_mixup_cam.depths
    assert names(ResNet38()) == ["image", "b2_2", "b3_2", "b4_5", "b5_2", "b6"]
    assert names(resnet18()) == ["image", "stage1", "stage2", "stage3"]
    few = manifold_mixup_cam.ManifoldMixupCam(
        manifold_mixup_cam.Config(eligible="original"), resnet18(), 4
    )
    assert few.depths == ["image", "stage1", "stage2"]


def test_terms_are_weighted_and_switch_off():
    def terms(**knobs):
        torch.manual_seed(1)
        method = mixup_cam.MixupCam(mixup_cam.Config(**knobs), resnet18(), 4)
        return method.loss(BATCH, np.random.default_rng(0))

    usual, double = terms(), terms(w_ent=0.04, w_con=4e-4)
    assert list(usual) == ["cls", "ent", "con"]
    torch.testing.assert_close(double["ent"], 2 * usual["ent"])
    torch.testing.assert_close(double["con"], 2 * usual["con"])
    assert list(terms(w_ent=0.0, w_con=0.0)) == ["cls"]
    assert not terms(entropy="mva_bug")["ent"].requires_grad
    assert terms(entropy="mva")["ent"].requires_grad
    assert terms(entropy="vector")["ent"].requires_grad
    assert terms(con_weights="present")["con"] > usual["con"]


def test_images_of_fmix_come_from_one_partner_or_the_other():
    method = fmix_cam.FmixCam(fmix_cam.Config(), resnet18(), 4)
    seen = []
    method.features = lambda images: seen.append(images) or torch.ones(3, 512, 2, 2)  # type: ignore[method-assign,func-returns-value]
    method.loss(BATCH, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    mixture = draw(IMAGES, 1.0, False, rng)
    own, other = seen[0] == IMAGES, seen[0] == IMAGES[mixture.perm]
    assert (own | other).all()
    different = IMAGES[mixture.perm] != IMAGES
    share = own[different].float().mean().item()
    assert share == pytest.approx(mixture.lam[0].item(), abs=2e-3)


@pytest.mark.parametrize(
    ("config", "knobs"),
    [
        (mixup_cam.Config, {"alpha": 0.0}),
        (mixup_cam.Config, {"w_ent": -1.0}),
        (fmix_cam.Config, {"per_sample": True}),
        (fmix_cam.Config, {"softness": 0.7}),
    ],
)
def test_impossible_knobs_are_refused(config, knobs):
    with pytest.raises(ConfigError):
        config(**knobs)


@pytest.mark.parametrize("module", [mixup_cam, fmix_cam, manifold_mixup_cam])
def test_a_data_set_of_one_class_can_be_mixed(module):
    """Stated: labels of two images of the one class mix to 1, so mixing only changes the images."""
    torch.manual_seed(0)
    name = next(n for n in vars(module) if n.endswith("Cam") and n not in ("MixedCam", "Cam"))
    method = getattr(module, name)(module.Config(), build_backbone("resnet18"), 1).train()
    tags = torch.ones(4, 1)
    batch = {"image": torch.randn(4, 3, 64, 64), "tags": tags}
    terms = method.loss(batch, np.random.default_rng(0))
    assert all(torch.isfinite(term) for term in terms.values())
    assert torch.equal(
        draw(torch.zeros(4, 3, 8, 8), 0.2, False, np.random.default_rng(0)).tags(tags), tags
    )
