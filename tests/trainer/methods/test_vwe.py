import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import U
from tiny_nets import TinyBackbone

from trainer import config as knobs
from trainer.errors import ConfigError
from trainer.methods.vwe import (
    PRESETS,
    Config,
    Vwe,
    by_own_maximum,
    encode,
    frequencies,
    word_labels,
)
from trainer.options import method_preset

HEADS = ("classifier", "word", "w2i", "codebook")
PAPER = knobs.replace(Config(), method_preset("vwe", "paper")["method"], "method")


def tiny(**changes: object) -> Vwe:
    torch.manual_seed(0)
    return Vwe(knobs.replace(Config(words=12), changes, "method"), TinyBackbone(), 3)


def images() -> torch.Tensor:
    return (4 * U((2, 3, 33, 38), 1) - 2).float()


def terms(method: Vwe) -> dict[str, torch.Tensor]:
    tags = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    return method.loss({"image": images(), "tags": tags}, np.random.default_rng(0))


def reached(method: Vwe, term: str) -> set[str]:
    """The parts of the method whose parameters get a gradient from one term of the loss."""
    method.zero_grad()
    terms(method)[term].backward()
    return {
        n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None and p.grad.any()
    }


def test_golden_g11():
    f, codebook = F.relu(2 * U((2, 16, 9, 11), 41) - 0.5), U((12, 16), 42) - 0.5
    p = encode(f, codebook)
    assert p.dtype == torch.float64
    assert p.shape == (2, 12, 9, 11)
    assert p[0, 3, 4, 5].item() == pytest.approx(0.055052561, rel=1e-6)
    torch.testing.assert_close(p.sum(1), torch.ones(2, 9, 11, dtype=torch.float64))
    histogram = frequencies(p, "sum")
    assert histogram[0, 3].item() == pytest.approx(6.094114924, rel=1e-6)
    assert histogram.sum(1).tolist() == pytest.approx([99, 99])
    torch.testing.assert_close(frequencies(p, "mean"), histogram / 99)
    labels = word_labels(p)
    assert ["".join(str(int(v)) for v in row) for row in labels] == ["101010111100", "100010111100"]


def test_a_cell_without_features_has_every_word_alike():
    p = encode(torch.zeros(1, 4, 2, 2), torch.randn(5, 4))
    torch.testing.assert_close(p, torch.full((1, 5, 2, 2), 0.2))


def test_word_labels_have_no_gradient():
    p = encode(torch.rand(1, 4, 2, 2, requires_grad=True), torch.randn(5, 4))
    assert p.requires_grad
    assert not word_labels(p).requires_grad


@pytest.mark.parametrize("pooling", ["gap", "gmp", "hspp"])
def test_what_each_term_trains(pooling):
    method = tiny(pooling=pooling)
    assert reached(method, "cls") == {"backbone", "classifier"}
    assert reached(method, "word") == {"backbone", "word"}
    assert reached(method, "w2i") == {"w2i", "codebook"}


def test_without_detaching_the_words_train_the_backbone_too():
    method = tiny(detach_encoder=False)
    assert reached(method, "w2i") == {"backbone", "w2i", "codebook"}
    assert reached(method, "word") == {"backbone", "word"}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_loss_is_finite_and_repeatable(preset):
    one, same = (terms(tiny(**method_preset("vwe", preset)["method"])) for _ in range(2))
    assert list(one) == ["cls", "word", "w2i"]
    assert all(torch.isfinite(v) and v.shape == () for v in one.values())
    assert {k: v.item() for k, v in one.items()} == {k: v.item() for k, v in same.items()}


def test_the_loss_is_that_of_the_paper():
    method, tags = tiny(word_weight=1.0), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    f = method.features(images())
    p = encode(f, method.codebook)

    def margin(head: torch.nn.Conv2d, pooled: torch.Tensor, target: torch.Tensor) -> float:
        y = pooled @ head.weight.flatten(1).T
        return -(target * F.logsigmoid(y) + (1 - target) * F.logsigmoid(-y)).mean().item()

    got = {k: v.item() for k, v in terms(method).items()}
    average = f.mean((2, 3))
    assert got == pytest.approx(
        {
            "cls": margin(method.classifier, average, tags),
            "word": margin(method.word, average, word_labels(p)),
            "w2i": margin(method.w2i, p.sum((2, 3)), tags),
        },
        rel=1e-5,
    )


def test_the_loss_is_float32_in_mixed_precision():
    method = tiny()
    exact = {k: v.item() for k, v in terms(method).items()}
    with torch.autocast("cpu", torch.bfloat16):
        mixed = terms(method)
    assert {v.dtype for v in mixed.values()} == {torch.float32}
    assert {k: v.item() for k, v in mixed.items()} == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("word_branch", [False, True])
@pytest.mark.parametrize("pooling", ["gap", "gmp", "hspp"])
def test_maps_are_of_the_networks_size_and_not_negative(pooling, word_branch):
    method = tiny(pooling=pooling, word_branch=word_branch).eval()
    with torch.inference_mode():
        maps, logits = method.cams_and_logits(images())
        small, _ = method.cams_and_logits(images()[:, :, :9, :5])
        if pooling != "hspp":
            torch.testing.assert_close(method(images()), logits)
    assert maps.shape == (2, 3, 9, 10)
    assert logits.shape == (2, 3)
    assert small.shape == (2, 3, 3, 2)
    assert maps.min() >= 0
    assert maps.max() > 0


def test_maps_with_words_are_the_larger_of_two_normalised_maps():
    plain, both = tiny().eval(), tiny(word_branch=True).eval()
    with torch.inference_mode():
        image_maps, logits = plain.cams_and_logits(images())
        p = encode(both.features(images()), both.codebook)
        word_maps = F.relu(torch.einsum("kj,bjhw->bkhw", both.w2i.weight.flatten(1), p))
        maps, same_logits = both.cams_and_logits(images())
    assert torch.equal(logits, same_logits)
    peaks = [m.amax((2, 3), keepdim=True).clamp_min(1e-5) for m in (image_maps, word_maps)]
    torch.testing.assert_close(maps, torch.maximum(image_maps / peaks[0], word_maps / peaks[1]))
    assert maps.max() == 1


def test_noise_is_not_blown_up():
    assert by_own_maximum(torch.full((1, 2, 3, 3), 1e-9)).max() < 1e-3
    assert by_own_maximum(torch.zeros(1, 2, 3, 3)).max() == 0


@pytest.mark.parametrize(
    "changes", [{}, {"word_branch": True}, {"pooling": "gmp"}, {"pooling": "hspp"}], ids=str
)
def test_the_exported_graph_computes_the_same_at_any_size(changes):
    method = tiny(**changes).eval()
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}

    class Maps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.method = method

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.method.cams_and_logits(x)

    program = torch.export.export(Maps().eval(), (images(),), dynamic_shapes=(free,))
    with torch.inference_mode():
        for x in (images(), images()[:, :, :21, :30]):
            for got, expected in zip(program.module()(x), method.cams_and_logits(x), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_new_layers_learn_ten_times_faster_and_decay():
    method = tiny()
    groups = {g["name"]: g for g in method.param_groups(0.01, 1e-4)}
    assert set(groups) == {"backbone", "new"}
    assert groups["new"]["lr"] == pytest.approx(0.1)
    assert groups["new"]["weight_decay"] == 1e-4
    new = {
        n.split(".")[0]
        for n, p in method.named_parameters()
        for q in groups["new"]["params"]
        if p is q
    }
    assert new == set(HEADS)


def test_shapes_and_start_of_the_new_layers():
    torch.manual_seed(0)
    backbone = TinyBackbone()
    backbone.channels["b"] = 2048
    method = Vwe(Config(), backbone, 20)
    assert method.codebook.shape == (256, 2048)
    assert method.codebook.std().item() == pytest.approx(math.sqrt(2 / 6 / 2048), rel=0.01)
    assert method.classifier.weight.shape == (20, 2048, 1, 1)
    assert method.word.weight.shape == (256, 2048, 1, 1)
    assert method.w2i.weight.shape == (20, 256, 1, 1)
    assert not [
        n for n, _ in method.named_parameters() if "backbone" not in n and n.endswith("bias")
    ]


@pytest.mark.parametrize("words", [1, 0, -3])
def test_a_codebook_has_words(words):
    with pytest.raises(ConfigError, match=rf"method\.words={words}") as caught:
        Config(words=words)
    assert caught.value.expected == "2 to 65,536"


def test_the_word_loss_is_weighted_less_on_small_networks():
    full, small = (terms(tiny(word_weight=weight))["word"].item() for weight in (1.0, "auto"))
    assert small == pytest.approx(0.1 * full)
    with pytest.raises(ConfigError, match="word_weight"):
        tiny(word_weight=-1.0)


def test_maps_with_words_as_printed_are_the_larger_of_two():
    method = tiny(word_branch=True, word_scale="none").eval()
    with torch.inference_mode():
        image_maps, _ = tiny().eval().cams_and_logits(images())
        p = encode(method.features(images()), method.codebook)
        word_maps = F.relu(torch.einsum("kj,bjhw->bkhw", method.w2i.weight.flatten(1), p))
        maps, _ = method.cams_and_logits(images())
    torch.testing.assert_close(maps, torch.maximum(image_maps, word_maps))
