import importlib.util

import numpy as np
import pytest
import torch

from trainer.errors import ConfigError
from trainer.refine import crf
from trainer.refine.crf import (
    PRESETS,
    DenseCrf,
    choose_backend,
    dense_crf,
    unary_from_labels,
    unary_from_softmax,
)
from trainer.refine.lattice import Lattice

BACKENDS = ["torch", "pydensecrf"] if importlib.util.find_spec("pydensecrf") else ["torch"]

GOLDEN = {
    ("P1", 1): ([0.483405, 0.303694, 0.212901], [185, 119, 128]),
    ("P1", 10): ([0.999983, 0.000011, 0.000006], [206, 111, 115]),
    ("P2", 1): ([0.438711, 0.317674, 0.243615], [186, 119, 127]),
    ("P2", 10): ([0.999975, 0.000017, 0.000008], [187, 118, 127]),
    ("P3", 1): ([0.338121, 0.342935, 0.318944], [180, 120, 132]),
    ("P3", 10): ([0.983790, 0.011042, 0.005168], [182, 119, 131]),
    ("P4", 1): ([0.482923, 0.309000, 0.208077], [184, 120, 128]),
    ("P4", 10): ([0.999977, 0.000015, 0.000008], [203, 112, 117]),
}


def golden_case():
    y, x = np.mgrid[:18, :24]
    image = np.stack(
        [(11 * y + 3 * x) % 256, 9 * x % 256, (5 * y + 90 * (x > 11)) % 256], 2
    ).astype(np.uint8)
    p = np.stack(
        [
            0.2 + 0.6 * (x < 10),
            0.1 + 0.7 * ((x >= 10) & (y < 9)),
            0.1 + 0.7 * ((x >= 10) & (y >= 9)),
        ]
    )
    p = p.astype(np.float32)
    p[:, 5:9, 8:14] = 1 / 3
    return image, p


def scene(height=120, width=160, labels=4):
    """A smooth picture with noise and edges, and soft scores that roughly follow it."""
    rng = np.random.RandomState(0)
    y, x = np.mgrid[:height, :width] / 40.0
    base = 120 + 60 * np.sin(x) + 50 * np.cos(1.3 * y) + 50 * (np.hypot(x - 2, y - 1.5) < 0.9)
    image = np.clip(
        base[..., None] * [1, 0.8, 0.6] + rng.normal(0, 6, (height, width, 3)), 0, 255
    ).astype(np.uint8)
    scores = (
        np.stack([np.exp(-((x - 0.9 * k) ** 2 + (y - 0.7 * k) ** 2)) for k in range(labels)]) + 0.02
    )
    return image, (scores / scores.sum(0)).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "iterations"), GOLDEN)
def test_golden_values_of_the_specification(backend, name, iterations):
    image, p = golden_case()
    parameters = PRESETS[name]
    q = dense_crf(
        image, unary_from_softmax(p), iterations, parameters.gaussian, parameters.bilateral, backend
    )
    at, counts = GOLDEN[name, iterations]
    assert q.shape == (3, 18, 24)
    assert q.dtype == np.float32
    np.testing.assert_allclose(q[:, 6, 10], at, atol=1e-5)
    assert np.bincount(q.argmax(0).ravel(), minlength=3).tolist() == counts
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["P1", "P2", "P3"])
def test_back_ends_agree_on_a_picture(name):
    pytest.importorskip("pydensecrf")
    image, p = scene()
    parameters = PRESETS[name]
    unary = unary_from_softmax(p)
    ours, theirs = (
        dense_crf(image, unary, 10, parameters.gaussian, parameters.bilateral, b)
        for b in ("torch", "pydensecrf")
    )
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.9999
    assert np.abs(ours - theirs).max() < 5e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_kernels_give_the_same_bits_as_separate_calls(backend):
    image, p = scene(40, 50)
    parameters = PRESETS["P1"]
    shared = DenseCrf(image, parameters.gaussian, parameters.bilateral, backend)
    for unary in (unary_from_softmax(p), unary_from_softmax(p**2), unary_from_softmax(p[:2])):
        alone = dense_crf(image, unary, 5, parameters.gaussian, parameters.bilateral, backend)
        np.testing.assert_array_equal(shared.infer(unary, 5), alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_read_only_and_strided_images_are_taken(backend):
    image, p = scene(30, 40)
    parameters = PRESETS["P1"]
    unary = unary_from_softmax(p)
    expected = dense_crf(image, unary, 2, parameters.gaussian, parameters.bilateral, backend)
    frozen = image[:, ::-1, ::-1].copy()[:, ::-1, ::-1]
    frozen.flags.writeable = False
    unary.flags.writeable = False
    got = dense_crf(frozen, unary, 2, parameters.gaussian, parameters.bilateral, backend)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_edges_of_the_input(backend):
    parameters = PRESETS["P3"]
    image, p = scene(7, 9)
    q = dense_crf(
        image, unary_from_softmax(p), 0, parameters.gaussian, parameters.bilateral, backend
    )
    np.testing.assert_allclose(q, p / p.sum(0), rtol=1e-4)
    single = dense_crf(
        image, np.zeros((1, 7, 9)), 3, parameters.gaussian, parameters.bilateral, backend
    )
    np.testing.assert_array_equal(single, np.ones((1, 7, 9)))
    pixel = dense_crf(
        image[:1, :1], unary_from_softmax(p[:, :1, :1]), 3, (3, 3), (10, 80, 13), backend
    )
    assert pixel.sum() == pytest.approx(1, abs=1e-5)
    assert pixel.argmax() == p[:, 0, 0].argmax()


def test_crf_moves_a_label_border_to_the_edge_of_the_picture():
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 200
    truth = np.arange(40) >= 20
    p = np.where(np.arange(40) >= 25, 0.8, 0.2)[None, None].repeat(40, 1).astype(np.float32)
    q = dense_crf(
        image, unary_from_softmax(np.concatenate([1 - p, p])), 10, (3, 3), (10, 80, 13), "torch"
    )
    assert (q.argmax(0) == truth).mean() == 1.0


def test_lattice_is_close_to_the_exact_gaussian():
    """The lattice approximates; a filter that mixed up its axes would be far outside this bound."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(20.0), indexing="ij")
    features = torch.stack([x, y], 2).reshape(-1, 2) / 4
    signal = torch.sin(features[:, :1] * 2) + 2
    exact = torch.exp(-(torch.cdist(features, features) ** 2) / 2)
    lattice = Lattice(features)
    ratio = lattice.raw_filter(signal) / lattice.raw_filter(torch.ones_like(signal))
    np.testing.assert_allclose(ratio, exact @ signal / exact.sum(1, keepdim=True), rtol=0.1)


def test_unaries():
    labels = np.array([[0, 1], [2, 0]])
    u = unary_from_labels(labels, 3, 0.7)
    assert u.dtype == np.float32
    np.testing.assert_allclose(u[:, 0, 1], [1.89712, 0.35667494, 1.89712], rtol=1e-5)
    np.testing.assert_allclose(
        unary_from_softmax([[[0.0, 0.5, 2.0]]])[0, 0], [11.512925, 0.6931472, 0.0], rtol=1e-6
    )
    with pytest.raises(ConfigError, match="labels run from 0 to 2"):
        unary_from_labels(labels, 2, 0.7)
    with pytest.raises(ConfigError, match="gt_prob"):
        unary_from_labels(labels, 3, 1.0)


def test_presets_are_those_of_the_specification():
    assert PRESETS["P1"].bilateral == (10, 80, 13)
    assert PRESETS["P1-seam"].iterations == PRESETS["P4"].iterations == 1
    assert PRESETS["P2"].gt_prob == 0.7
    assert PRESETS["P5"].iterations == 5
    assert {p.gaussian for n, p in PRESETS.items() if n in ("P3", "P6")} == {(3, 1)}
    with pytest.raises(ConfigError, match="unknown CRF preset 'p1'") as caught:
        crf.preset("p1")
    assert "P1" in caught.value.expected


@pytest.mark.parametrize(
    "change",
    [
        {"image": np.zeros((5, 6, 3), np.float32)},
        {"image": np.zeros((5, 6), np.uint8)},
        {"unary": np.zeros((2, 6, 5), np.float32)},
        {"unary": np.full((2, 5, 6), np.nan, np.float32)},
        {"gaussian": (3, 0)},
        {"bilateral": (-1, 80, 13)},
        {"backend": "pydense"},
    ],
)
def test_bad_input_is_a_user_error(change):
    arguments = {
        "image": np.zeros((5, 6, 3), np.uint8),
        "unary": np.zeros((2, 5, 6), np.float32),
        "gaussian": (3, 3),
        "bilateral": (10, 80, 13),
        "backend": "torch",
    } | change
    with pytest.raises(ConfigError):
        dense_crf(
            arguments["image"],
            arguments["unary"],
            1,
            arguments["gaussian"],
            arguments["bilateral"],
            arguments["backend"],
        )


def test_back_end_choice_without_pydensecrf(monkeypatch):
    monkeypatch.setattr(crf.importlib.util, "find_spec", lambda name: None)
    assert choose_backend("auto") == "torch"
    with pytest.raises(ConfigError, match="not installed") as caught:
        choose_backend("pydensecrf")
    assert "torch" in caught.value.hint


def test_too_narrow_kernels_for_the_image_are_refused():
    features = torch.tensor([[0.0] * 5, [1e5] * 5])
    with pytest.raises(ConfigError, match="narrow"):
        Lattice(features)
