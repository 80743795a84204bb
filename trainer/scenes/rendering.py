"""One scene: who stands where, drawn from the back to the front, and seen through a camera."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.scenes.drawing import Floats, Pen, blur, noise, rotation, shade
from trainer.scenes.places import PLACES, Scene
from trainer.scenes.shapes import CREATURES, Pose, draw_pose, parse_numbers

ATTEMPTS = 25
NAMES = tuple(CREATURES)


class _Figure(NamedTuple):
    """One creature placed in the image: class, feet and size in pixels, and how it stands."""

    name: str
    x: float
    foot: float
    unit: float
    pose: Pose
    turn: float
    side: int


def render(
    index: int, size: int, seed: int, difficulty: float, classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Scene ``index``: ``uint8 [H,W,3]`` RGB and ``uint8 [H,W]`` labels, 0 background,
    1..``classes``.

    If a head ends up hidden, the scene is drawn again with the next random stream.
    """
    for attempt in range(ATTEMPTS):
        # A stream of its own, so that no scene depends on the ones before it.
        rng = np.random.default_rng([seed, index, attempt])
        short = round(size * rng.choice([0.75, 0.8, 1.0]))
        height, width = (size, short) if rng.random() < 0.35 else (short, size)
        names = _choose(index, seed, difficulty, classes, rng)
        scene, figures = _compose(names, height, width, difficulty, rng)
        seen = np.bincount(scene.heads.ravel(), minlength=len(figures) + 1)[1:]
        radii = [CREATURES[figure.name].body.radius * figure.unit for figure in figures]
        # A head covers about 3 r^2 pixels. Only heads say which class a figure is, so 60 % of each
        # must be visible.
        if (seen >= 0.6 * 3.0 * np.square(radii)).all():
            break
    return (_photograph(scene, difficulty) * 255 + 0.5).astype(np.uint8), scene.label


def _choose(
    index: int, seed: int, difficulty: float, classes: int, rng: np.random.Generator
) -> list[str]:
    """The classes in the scene. Every class leads equally often, often with its friend."""
    turns = np.random.default_rng([seed, index // classes]).permutation(classes)
    names = [NAMES[turns[index % classes]]]
    # With few classes the friend may be missing, and another class takes its part.
    friend = NAMES.index(CREATURES[names[0]].friend) % classes
    for chance in (0.2 + 0.35 * difficulty, 0.3 * difficulty):
        if rng.random() >= chance:
            break
        names.append(NAMES[friend if rng.random() < 0.45 else rng.integers(classes)])
    return names


def _compose(
    names: list[str], height: int, width: int, difficulty: float, rng: np.random.Generator
) -> tuple[Scene, list[_Figure]]:
    """A scene with figures and props, before the effects of light and camera."""
    at_home, places = rng.random() < 0.25 + 0.35 * difficulty, tuple(PLACES)
    kind = CREATURES[names[0]].place if at_home else places[rng.integers(len(places))]
    scene, size = Scene(kind, height, width, rng), max(height, width)
    for channel in range(3):
        radius = size / 200 * rng.uniform(0.3, 1.8)
        scene.canvas[..., channel] = blur(scene.canvas[..., channel], radius)
    texture = scene.noise(size / 14)
    figures = _place(names, scene, difficulty)
    back, front = scene.horizon + 0.04 * height, height * 0.95
    props = rng.poisson(0.6 + 2.2 * difficulty)
    spots = [(rng.uniform(back, front), 0) for _ in range(props)]
    spots += [(figure.foot, number) for number, figure in enumerate(figures, 1)]
    if rng.random() < 0.7 * difficulty:
        # So near that the lower border cuts it.
        spots.append((height * rng.uniform(1.0, 1.12), 0))
    # From the back to the front: what is nearer covers the rest.
    for foot, number in sorted(spots):
        if number:
            _paint(scene, figures[number - 1], number, texture)
        else:
            scene.add_prop(foot, _unit(foot, scene) * rng.uniform(0.3, 0.62), texture)
    return scene, figures


def _place(names: list[str], scene: Scene, difficulty: float) -> list[_Figure]:
    rng, count = scene.rng, len(names)
    figures = []
    slots = (np.arange(count) + 0.5 + rng.uniform(-0.18, 0.18, count)) / count
    ground, crowd = scene.height * 0.99 - scene.horizon, (1.0, 0.8, 0.66)[count - 1]
    for name, slot in zip(names, rng.permutation(slots).tolist(), strict=True):
        foot = scene.horizon + ground * rng.uniform(0.35, 1.0)
        unit = _unit(foot, scene) * crowd * rng.uniform(1 - 0.3 * difficulty, 1.12)
        pose = draw_pose(CREATURES[name], rng, 0.4 + 0.6 * difficulty, 1 - 2 * difficulty)
        turn = rng.normal(0, 0.04 + 0.08 * difficulty)
        side = -1 if rng.random() < 0.5 else 1
        figures.append(_Figure(name, slot * scene.width, foot, unit, pose, turn, side))
    return figures


def _unit(foot: float, scene: Scene) -> float:
    """Pixels of one body length for feet at row ``foot``. Nearer figures are larger."""
    near = min(max((foot - scene.horizon) / (scene.height - scene.horizon), 0.1), 1.1)
    return float(np.sqrt(scene.height * scene.width) * (0.28 + 0.32 * near))


def _paint(scene: Scene, figure: _Figure, number: int, texture: Floats) -> None:
    """Draw one figure; its head is number ``number``."""
    name, x, foot, unit, pose, turn, side = figure
    (body, *_, head), label, rng = CREATURES[name], NAMES.index(name) + 1, scene.rng
    y = foot - pose.values(parse_numbers(body.feet))[0] * unit
    matrix = rotation(turn) @ np.diag([unit * side, unit])
    area = scene.area(x - unit, y - unit, x + unit, y + unit * 0.85)
    scene.cast_shadow(x, foot, unit * 0.5)
    patch = texture[area]
    markings = 1 - 0.45 * np.clip(3 * patch - 0.6, 0, 1) * (rng.random() < 0.5)
    fur = (1 + 0.12 * noise(patch.shape, 2.0, rng)) * markings
    for shapes, cover in ((body.back, fur * 0.85), (body.front, fur)):
        pen = Pen(area, matrix, (x, y))
        pose.draw(pen, shapes)
        scene.lay(shade(pen.layer(), scene.light, max(1.0, 0.07 * unit), cover), label)
    pen, place = Pen(area, matrix, (x, y)), pose.values(parse_numbers(body.head))
    pose.draw(pen.at(place[0], place[1], body.radius, pose.numbers["tilt"]), head)
    skin = 1 + 0.06 * noise(patch.shape, 2.0, rng)
    scene.lay(shade(pen.layer(), scene.light, max(1.0, 0.06 * unit), skin), label, number)


def _photograph(scene: Scene, difficulty: float) -> Floats:
    """The scene with the effects of light and camera: patches of shade, a gradient, a colour cast,
    vignette, blur and sensor noise.
    """
    height, width, rng = scene.height, scene.width, scene.rng
    gain = 1 - 0.55 * difficulty * np.clip(1.5 * scene.noise(height / 2) - 0.6, 0, 1)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)
    down, right = rng.normal(0, 0.05 + 0.08 * difficulty, 2)
    gain = gain * (1 + down * rows + right * columns) * (1 - 0.12 * (rows**2 + columns**2))
    exposure = 1.12 + difficulty * rng.uniform(-0.22, 0.22)
    cast = 1 + rng.normal(0, 0.02 + 0.05 * difficulty, 3)
    photo: Floats = scene.canvas * (gain[..., None] * exposure * cast).astype(np.float32)
    radius = rng.uniform(0.2, 0.35 + 0.5 * difficulty) * max(height, width) / 160
    photo = np.stack([blur(photo[..., channel], radius) for channel in range(3)], axis=-1)
    grain = rng.standard_normal(photo.shape, np.float32)
    photo += grain * (0.006 + 0.028 * difficulty * rng.random())
    return photo.clip(0, 1)
