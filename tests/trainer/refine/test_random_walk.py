import math

import pytest
import torch
from golden import U

from trainer.errors import ConfigError
from trainer.refine.pairs import half_plane
from trainer.refine.random_walk import (
    BORDERS,
    SOLVERS,
    TAIL,
    affinity_walk,
    boundary_affinity,
    boundary_walk,
    chebyshev_coefficients,
    feature_affinity,
    transition,
    walk,
)


def grid(h: int, w: int) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return y.double(), x.double()


def psa_case() -> tuple[torch.Tensor, torch.Tensor]:
    y, x = grid(10, 12)
    features = torch.stack(
        [
            torch.sin(0.5 * c + 0.35 * y) + 0.5 * torch.cos(0.25 * c * x / 3 + 0.2 * y)
            for c in range(6)
        ]
    )
    one = torch.exp(-((y - 3) ** 2 + (x - 4) ** 2) / 6)
    two = torch.exp(-((y - 7) ** 2 + (x - 9) ** 2) / 4)
    return torch.stack([(1 - torch.maximum(one, two)) ** 16, one, two]), features


def irn_case() -> tuple[torch.Tensor, torch.Tensor]:
    y, x = grid(9, 11)
    edge = torch.sigmoid(3 * torch.sin(0.9 * y) + 2 * torch.cos(0.8 * x) - 1)
    one = torch.exp(-((y - 2) ** 2 + (x - 3) ** 2) / 5)
    two = torch.exp(-((y - 6) ** 2 + (x - 8) ** 2) / 5)
    return torch.stack([one, two]), edge


def random_case(h: int, w: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps, features and edge."""
    return U((3, h, w), seed), 3 * U((7, h, w), seed + 1), U((h, w), seed + 2) ** 3


def dense_walk(
    maps: torch.Tensor, symmetric: torch.Tensor, beta: float, steps: int
) -> torch.Tensor:
    """The papers' form: columns of A^beta over their sums, to the power, behind the maps."""
    t = symmetric**beta
    t = t / t.sum(0)
    return (maps.flatten(1) @ torch.linalg.matrix_power(t, steps)).view_as(maps)


def dense_from_pairs(h: int, w: int, pairs: dict[tuple[int, int, int, int], float]) -> torch.Tensor:
    a = torch.eye(h * w, dtype=torch.float64)
    for (y, x, v, u), value in pairs.items():
        a[y * w + x, v * w + u] = a[v * w + u, y * w + x] = value
    return a


def psa_dense(f: torch.Tensor, radius: int, borders: str) -> torch.Tensor:
    _, h, w = f.shape
    pairs = {}
    for y in range(h):
        for x in range(w):
            for dy, dx in half_plane(radius):
                inside = y + dy < h and 0 <= x + dx < w
                if borders == "psa":
                    inside = y <= h - radius and radius - 1 <= x <= w - radius
                if inside:
                    distance = (f[:, y, x] - f[:, y + dy, x + dx]).abs().mean()
                    pairs[y, x, y + dy, x + dx] = math.exp(-distance)
    return dense_from_pairs(h, w, pairs)


def irn_dense(edge: torch.Tensor, radius: int) -> torch.Tensor:
    h, w = edge.shape
    pairs = {}
    for y in range(h):
        for x in range(w):
            for dy, dx in half_plane(radius):
                if y + dy < h and 0 <= x + dx < w:
                    line = [
                        edge[y + v, x + u].item()
                        for v in range(dy + 1)
                        for u in range(min(dx, 0), max(dx, 0) + 1)
                        if (dy * u - dx * v) ** 2 < dy**2 + dx**2
                    ]
                    pairs[y, x, y + dy, x + dx] = 1 - max(line)
    return dense_from_pairs(h, w, pairs)


@pytest.mark.parametrize("solver", SOLVERS)
def test_golden_psa_walk(solver):
    maps, features = psa_case()
    affinity = feature_affinity(features)
    assert affinity.count_nonzero() == 816
    assert affinity.sum().item() == pytest.approx(510.5350070860971, rel=1e-12)
    walked = affinity_walk(maps, features, solver=solver)
    expected = [
        *(0.7787971, 0.17232926, 0.17265335, 0.09762562),
        *(0.01550385, 0.29323351, 0.29150921, 7e-07),
        *(0, 0.04666682, 0.04906434, 0.13533528),
    ]
    assert walked[:, [0, 3, 7, 9], [0, 4, 9, 11]].flatten().tolist() == pytest.approx(
        expected, abs=6e-9
    )
    assert walked.sum((1, 2)).tolist() == pytest.approx(
        [26.38763979, 29.5590017, 7.44722295], abs=6e-9
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_golden_irn_walk(solver):
    cams, edge = irn_case()
    walked = boundary_walk(cams, edge, solver=solver)
    expected = [
        0.02039776,
        0.3125255,
        0.1083453,
        0.00010757,
        1.96e-05,
        0.03403161,
        0.13736399,
        0.0509026,
    ]
    assert walked[:, [0, 2, 6, 8], [0, 3, 8, 10]].flatten().tolist() == pytest.approx(
        expected, abs=6e-9
    )
    assert walked.sum((1, 2)).tolist() == pytest.approx([8.49952537, 7.7608937], abs=6e-9)
    assert walked.max().item() == pytest.approx(0.3125255, abs=6e-9)


def test_golden_irn_affinities():
    affinity = boundary_affinity(irn_case()[1])
    assert affinity.shape == (34, 9, 11)
    assert affinity.sum().item() == pytest.approx(653.905837319329, rel=1e-12)
    assert affinity[0].sum().item() == pytest.approx(44.030557583204356, rel=1e-12)
    assert affinity[-1].sum().item() == pytest.approx(7.416964912417631, rel=1e-12)


@pytest.mark.parametrize(("h", "w"), [(5, 9), (7, 10), (12, 9)])
@pytest.mark.parametrize("borders", BORDERS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_affinity_walk_is_the_dense_power(h, w, borders, solver):
    maps, features, _ = random_case(h, w)
    dense = psa_dense(features, 5, borders)
    for steps in (1, 2, 7, 64, 255, 256):
        walked = affinity_walk(maps, features, steps=steps, borders=borders, solver=solver)
        torch.testing.assert_close(walked, dense_walk(maps, dense, 8, steps), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("h", "w", "radius"), [(6, 7, 5), (9, 5, 4), (3, 11, 5), (8, 8, 2)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_boundary_walk_is_the_dense_power(h, w, radius, solver):
    maps, _, edge = random_case(h, w)
    dense = irn_dense(edge, radius)
    for steps in (1, 2, 7, 64, 255, 256):
        walked = boundary_walk(maps, edge, steps=steps, radius=radius, solver=solver)
        torch.testing.assert_close(
            walked, dense_walk(maps * (1 - edge), dense, 10, steps), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 10, 101, 256, 5000])
def test_chebyshev_coefficients_sum_to_a_power(steps):
    c = torch.tensor(chebyshev_coefficients(steps, 1e-12), dtype=torch.float64)
    angle = torch.linspace(0, math.pi, 41, dtype=torch.float64)
    waves = torch.cos(angle[:, None] * torch.arange(len(c)))
    torch.testing.assert_close(waves @ c, angle.cos() ** steps, rtol=0, atol=2e-12)


@pytest.mark.parametrize(
    ("steps", "tail", "degree"),
    [
        (256, 1e-3, 52),
        (256, 1e-7, 84),
        (256, 1e-12, 112),
        (64, 1e-5, 34),
        (64, 1e-12, 52),
        (7, 0.0, 7),
    ],
)
def test_chebyshev_degree(steps, tail, degree):
    assert len(chebyshev_coefficients(steps, tail)) == degree + 1


def test_truncation_error_is_below_its_bound(monkeypatch):
    maps, _, edge = random_case(10, 12)
    affinity = boundary_affinity(edge)
    chain = transition(affinity, beta=10)
    degree = 1 / chain.to_dense().diagonal()
    exact = walk(maps, chain, 256, "power")
    for tail in (1e-2, 1e-5):
        monkeypatch.setitem(TAIL, chain.dtype, tail)
        error = walk(maps, chain, 256) - exact
        size = (degree * error.flatten(1) ** 2).sum(1).sqrt()
        bound = tail * (degree * maps.flatten(1) ** 2).sum(1).sqrt()
        assert (size <= bound).all()
        assert size.max() > 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_mass_weighted_by_degree_is_kept_and_constants_stay(solver):
    maps, features, edge = random_case(9, 13)
    for affinity in (feature_affinity(features), boundary_affinity(edge)):
        chain = transition(affinity)
        dense = chain.to_dense()
        torch.testing.assert_close(dense.sum(1), torch.ones(117, dtype=torch.float64))
        degree = (1 / dense.diagonal()).view(9, 13)
        walked = walk(maps, chain, 256, solver)
        torch.testing.assert_close(
            (walked * degree).sum((1, 2)), (maps * degree).sum((1, 2)), rtol=1e-11, atol=0
        )
        constant = torch.full((1, 9, 13), 0.7, dtype=torch.float64)
        torch.testing.assert_close(walk(constant, chain, 256, solver), constant, rtol=1e-11, atol=0)
        assert walked.min() >= maps.min() - 1e-11
        assert walked.max() <= maps.max() + 1e-11


def test_cells_without_a_pair_in_psa_stay():
    maps, features, _ = random_case(11, 14)
    alone = (transition(feature_affinity(features)).to_dense().diagonal() == 1).view(11, 14)
    lower_corners = [[9, 0], [9, 13], [10, 0], [10, 1], [10, 12], [10, 13]]
    assert alone.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], *lower_corners]
    walked = affinity_walk(maps, features)
    torch.testing.assert_close(walked[:, alone], maps[:, alone], rtol=1e-11, atol=0)
    assert not (
        transition(feature_affinity(features, borders="full")).to_dense().diagonal() == 1
    ).any()


def test_a_wall_stops_the_walk():
    cams = torch.ones(1, 9, 11, dtype=torch.float64)
    cams[:, :, 5:] = 0
    edge = torch.zeros(9, 11, dtype=torch.float64)
    edge[:, 5] = 1
    walked = boundary_walk(cams, edge)
    torch.testing.assert_close(walked, cams, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (4, 20), (6, 8), (3, 3), (4, 4)])
@pytest.mark.parametrize("borders", BORDERS)
def test_tiny_maps(size, borders):
    maps, features, edge = random_case(*size)
    radius = (min(size) - 1) // 2 if borders == "psa" else 5
    expected = dense_walk(maps, psa_dense(features, radius, borders), 8, 256)
    torch.testing.assert_close(
        affinity_walk(maps, features, borders=borders), expected, rtol=0, atol=1e-10
    )
    expected = dense_walk(maps * (1 - edge), irn_dense(edge, 5), 10, 256)
    torch.testing.assert_close(boundary_walk(maps, edge), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_maps_and_no_steps(solver):
    maps, features, edge = random_case(6, 10)
    assert affinity_walk(maps[:0], features, solver=solver).shape == (0, 6, 10)
    assert boundary_walk(maps[:0], edge, solver=solver).shape == (0, 6, 10)
    assert torch.equal(affinity_walk(maps, features, steps=0, solver=solver), maps)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes_keep_theirs_and_inputs_stay(dtype, solver):
    maps, features, edge = (x.to(dtype) for x in random_case(8, 10))
    before = maps.clone()
    for given, kind in ((features, affinity_walk), (edge, boundary_walk)):
        walked = kind(maps[:1], given, solver=solver)
        assert walked.dtype == dtype
        assert torch.equal(maps, before)
        wanted = kind(maps[:1].double(), given.double(), solver=solver)
        torch.testing.assert_close(
            walked.double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=1e-6
        )


def test_float32_walk_of_a_gpu_is_near(monkeypatch):
    maps, features, edge = random_case(9, 11)
    exact = affinity_walk(maps, features), boundary_walk(maps, edge)
    monkeypatch.setattr("trainer.refine.random_walk.CPU_DTYPE", torch.float32)
    near = affinity_walk(maps, features), boundary_walk(maps, edge)
    torch.testing.assert_close(near[0], exact[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(near[1], exact[1], rtol=0, atol=1e-4)
    assert not torch.equal(near[0], exact[0])


def test_neither_gradient_nor_autocast_reach_the_walk():
    maps, features, edge = random_case(8, 10)
    wanted = affinity_walk(maps, features), boundary_walk(maps, edge)
    with torch.autocast("cpu", torch.bfloat16):
        walked = (
            affinity_walk(maps, features.requires_grad_()),
            boundary_walk(maps, edge.requires_grad_()),
        )
    for one, other in zip(walked, wanted):
        assert not one.requires_grad
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": 0}, "radius 0"),
        ({"beta": 0}, "beta 0"),
        ({"steps": -1}, "-1 steps"),
        ({"solver": "chebishev"}, "did you mean 'chebyshev'"),
        ({"borders": "ful"}, "did you mean 'full'"),
        ({"maps_Khw": torch.zeros(3, 8, 9)}, "8x9"),
        ({"maps_Khw": torch.zeros(3, 8, 10, dtype=torch.int64)}, "int64"),
    ],
)
def test_impossible_arguments(change, message):
    maps, features, _ = random_case(8, 10)
    with pytest.raises(ConfigError) as error:
        affinity_walk(**{"maps_Khw": maps, "features_Chw": features} | change)
    assert message in str(error.value)


def test_logits_are_refused_as_edge():
    maps, features, edge = random_case(8, 10)
    with pytest.raises(ConfigError, match="edge from"):
        boundary_walk(maps, 4 * edge - 2)
    with pytest.raises(ConfigError, match="edge of shape"):
        boundary_walk(maps, features)
