"""Places of the synthetic scenes, and the props that stand there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from trainer.scenes.drawing import (
    WHITE,
    Area,
    Colour,
    Floats,
    Layer,
    Numbers,
    Pen,
    blur,
    mix,
    noise,
    paste,
    shade,
    vary,
)
from trainer.scenes.shapes import COLOURS, PROPS, draw_prop

Prop = Callable[[Pen, np.random.Generator], None]


class Scene:
    """A picture in the making, and what its pixels show.

    Attributes:
        canvas: float32 [H,W,3], RGB in 0..1.
        label: uint8 [H,W], 0 background, otherwise the class + 1.
        heads: uint8 [H,W], 0 or the number of the figure whose head is seen, from 1.
        horizon: its row; the ground begins there.
        light: direction of the light, x and y.
    """

    def __init__(self, kind: str, height: int, width: int, rng: np.random.Generator) -> None:
        painter, low, high, self.props = PLACES[kind]
        self.height, self.width, self.rng = height, width, rng
        self.canvas: Floats = np.zeros((height, width, 3), np.float32)
        self.label, self.heads = np.zeros((2, height, width), np.uint8)
        self.horizon = rng.uniform(low, high) * height
        painter(self)
        angle = rng.uniform(np.pi * 1.15, np.pi * 1.85)
        self.light = -float(np.cos(angle)), -float(np.sin(angle))

    def noise(self, cell: float, stretch: float = 1.0) -> Floats:
        """Smooth noise [H,W] with features of ``cell`` pixels, ``stretch`` times longer in x."""
        return noise((self.height, self.width), cell, self.rng, stretch)

    def vary(self, colour: Colour | str, amount: float) -> Numbers:
        """``colour``, or a random one of the named ``COLOURS``, slightly changed."""
        if isinstance(colour, str):
            colour = COLOURS[colour][self.rng.integers(len(COLOURS[colour]))]
        return vary(colour, amount, self.rng)

    def area(self, x0: float, y0: float, x1: float, y1: float, lowest: int | None = None) -> Area:
        """The part of a box inside the image and above row ``lowest``, at least one pixel."""
        width, height = self.width, lowest or self.height
        left, top = min(max(int(x0), 0), width - 1), min(max(int(y0), 0), height - 1)
        right, bottom = min(int(x1) + 1, width), min(int(y1) + 1, height)
        return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))

    def pen(self) -> Pen:
        """A pen for the whole image, in pixels."""
        return Pen(self.area(0, 0, self.width, self.height), np.eye(2), (0, 0))

    def lay(self, layer: Layer, label: int = 0, head: int = 0) -> None:
        """Lay a cut-out over the picture. Pixels that it covers by half or more show it."""
        paste(self.canvas, layer)
        cover = layer.alpha >= 0.5
        self.label[layer.area][cover] = label
        self.heads[layer.area][cover] = head

    def cast_shadow(self, x: float, foot: float, reach: float) -> None:
        """Darken the ground under something that stands at (x, foot)."""
        area = self.area(x - 2 * reach, foot - reach, x + 2 * reach, foot + reach)
        pen = Pen(area, np.eye(2), (x - self.light[0] * reach * 0.5, foot))
        pen.ellipse(WHITE, 0, -0.05 * reach, reach * 1.05, reach * 0.2)
        soft = blur(pen.layer().alpha, max(0.6, reach * 0.12))
        self.canvas[area] *= (1 - 0.5 * soft)[..., None]

    def add_prop(self, foot: float, unit: float, texture: Floats) -> None:
        """Stand a random prop on row ``foot``, ``unit`` pixels large."""
        x = self.rng.uniform(0, self.width)
        draw = self.props[self.rng.integers(len(self.props))]
        area = self.area(x - 0.8 * unit, foot - 2.3 * unit, x + 0.8 * unit, foot + 0.1 * unit)
        side = 1 if self.rng.random() < 0.5 else -1
        # Props are drawn with their foot at y = 0.58.
        pen = Pen(area, np.diag([unit * side, unit]), (x, foot - 0.58 * unit))
        draw(pen, self.rng)
        patch = 1 + 0.22 * texture[area]
        layer = shade(pen.layer(), self.light, max(1.0, 0.09 * unit), patch)
        middle = (area[1].start + area[1].stop) / 2
        self.cast_shadow(middle, foot, unit * 0.4)
        self.lay(layer)


def _meadow(scene: Scene) -> None:
    _sky(scene)
    _hills(scene, (0.35, 0.48, 0.38))
    _ground(scene, scene.horizon, scene.vary((0.33, 0.46, 0.17), 0.25), 0.34)
    pen, ground = scene.pen(), scene.height - scene.horizon
    for x, near, lean in scene.rng.uniform(0, 1, (170, 3)).tolist():  # blades of grass
        y, tall = scene.horizon + near * ground, scene.height * (0.01 + 0.05 * near)
        tone = mix(scene.vary((0.30, 0.45, 0.14), 0.45), (0.75, 0.72, 0.35), 0.35 * lean)
        root, thin = x * scene.width, 0.1 + tall * 0.07
        pen.polygon(tone, root - thin, y, root + thin, y, root + (lean - 0.5) * tall, y - tall)
    paste(scene.canvas, pen.layer())


def _forest(scene: Scene) -> None:
    canvas, height, width, rng = scene.canvas, scene.height, scene.width, scene.rng
    leaves = scene.noise(height / 6)[..., None]
    light = np.maximum(scene.noise(height / 10) - 0.6, 0)[..., None] * (0.5, 0.6, 0.35)
    canvas[:] = scene.vary((0.17, 0.27, 0.13), 0.3) * (1 + 0.55 * leaves) + light
    for x in rng.uniform(0, width, rng.integers(4, 9)).tolist():
        thick = rng.uniform(0.02, 0.055) * width
        pen, lean = scene.pen(), rng.normal(0, 0.03) * height
        root = scene.horizon + rng.uniform(0, 0.06) * height
        pen.limb((0.30, 0.23, 0.17), x, root, x + lean, -5, thick, thick * 0.8)
        bark = 1 + 0.35 * noise((width, height), thick, rng, 4).T
        paste(canvas, shade(pen.layer(), (-0.7, -0.3), thick, bark))
    _ground(scene, scene.horizon, scene.vary((0.36, 0.28, 0.16), 0.25), 0.5)


def _shore(scene: Scene) -> None:
    _sky(scene)
    beach = scene.horizon + scene.rng.uniform(0.08, 0.2) * scene.height
    water = slice(int(scene.horizon), int(beach) + 1)
    waves = scene.noise(3.0, 6)[water, :, None]
    scene.canvas[water] = scene.vary((0.16, 0.38, 0.48), 0.25) * (1 + 0.3 * waves)
    scene.canvas[water] += np.maximum(waves - 0.7, 0) * 0.6
    _ground(scene, beach, scene.vary((0.76, 0.66, 0.47), 0.15), 0.14)


def _snow(scene: Scene) -> None:
    _sky(scene)
    _hills(scene, (0.42, 0.47, 0.56))
    _ground(scene, scene.horizon, scene.vary((0.82, 0.86, 0.92), 0.06), 0.12, 3.0)


def _street(scene: Scene) -> None:
    canvas, height, width, rng = scene.canvas, scene.height, scene.width, scene.rng
    _sky(scene)
    left, grain = -rng.uniform(0, 0.2) * width, scene.noise(3.0)
    while left < width:
        right = left + rng.uniform(0.25, 0.55) * width
        _house(scene, left, rng.uniform(-0.3, 0.45) * scene.horizon, right, grain)
        left = right
    _ground(scene, scene.horizon, scene.vary((0.52, 0.50, 0.48), 0.15), 0.12)
    kerb = int(scene.horizon + rng.uniform(0.1, 0.25) * height)
    canvas[kerb:] *= 0.68
    canvas[kerb : kerb + max(1, height // 50)] = 0.62
    marking = int(kerb + rng.uniform(0.35, 0.8) * (height - kerb))
    for x in range(rng.integers(0, width // 4 + 1), width, max(width // 3, 1)):
        canvas[marking : marking + max(2, height // 36), x : x + width // 6] = (0.80, 0.79, 0.72)


def _room(scene: Scene) -> None:
    canvas, height, width, rng = scene.canvas, scene.height, scene.width, scene.rng
    top, columns = int(scene.horizon), np.arange(width, dtype=np.float32)
    wall = scene.vary("wall", 0.2)
    strength = rng.uniform(0, 0.08)
    stripes = strength * np.sign(np.sin(columns * (2 * np.pi / (width * rng.uniform(0.05, 0.14)))))
    canvas[:] = wall.astype(np.float32) * (1 + stripes + 0.05 * scene.noise(4))[..., None]
    for _ in range(rng.integers(1, 4)):
        _painting(scene)
    board = int(scene.horizon - height * 0.035)
    canvas[board : top + 1] = mix(wall, WHITE, 0.5)
    canvas[board] *= 0.7
    rows = np.arange(top, height, dtype=np.float32)[:, None]
    near = np.maximum((rows - scene.horizon) / (height - scene.horizon), 0.02)
    across = (columns - width * rng.uniform(0.2, 0.8)) / (0.25 + near) / (width * 0.13)
    plank = np.floor(across).astype(int)
    tone = rng.uniform(0.8, 1.1, 64)[plank % 64].astype(np.float32)
    gap = np.where(np.abs(across - plank - 0.5) > 0.46, 0.6, 1.0)
    grain = noise((width, height - top), 3, rng, 8).T * 0.12
    canvas[top:] = scene.vary("floor", 0.15) * ((tone + grain) * gap)[..., None]


def _sky(scene: Scene) -> None:
    n = scene.rng.integers(len(COLOURS["sky_top"]))
    top = scene.vary(COLOURS["sky_top"][n], 0.1).astype(np.float32)
    low = scene.vary(COLOURS["sky_low"][n], 0.1).astype(np.float32)
    share = np.linspace(0, 1, scene.height, dtype=np.float32)[:, None, None]
    share = np.clip(share * (scene.height / max(scene.horizon, 1)), 0, 1)
    haze = scene.noise(scene.height / 3, 2.2) - scene.rng.uniform(-0.2, 0.7)
    cloud = np.clip(haze, 0, 1)[..., None]
    scene.canvas[:] = (top + (low - top) * share) * (1 - cloud) + np.float32(0.93) * cloud


def _hills(scene: Scene, colour: Colour) -> None:
    rows = np.arange(scene.height, dtype=np.float32)[:, None]
    for haze in (0.55, 0.2):
        wave = noise((2, scene.width), scene.width / 2, scene.rng)[0]
        ridge = scene.horizon - scene.height * (0.05 + 0.12 * haze) - wave * scene.height * 0.07
        cover = np.clip(rows - ridge, 0, 1)[..., None]
        slope = mix(scene.vary(colour, 0.15), (0.75, 0.80, 0.85), haze).astype(np.float32)
        shape = slope * (1 + 0.12 * scene.noise(5)[..., None])
        scene.canvas[:] = scene.canvas * (1 - cover) + shape * cover


def _ground(scene: Scene, far: float, colour: Numbers, contrast: float, cell: float = 1.0) -> None:
    """A plane in perspective below row ``far``: one noise tile looked up at (x / depth, 1 / depth),
    fading into the distance.
    """
    height, start = scene.height, int(far)
    rows = np.arange(start, height, dtype=np.float32)[:, None]
    near = (rows - far + 1) / (height - far)
    tile = noise((128, 128), 3.0 * cell, scene.rng)
    away = (40.0 / (near + 0.12)).astype(np.int64) % 128
    columns = (np.arange(scene.width) - scene.width / 2) * 0.9
    aside = (columns / (near + 0.12) + 1000).astype(np.int64) % 128
    fine = tile[away, aside] * (0.25 + 0.75 * near)
    broad = noise((height - start, scene.width), height / 4, scene.rng, 2.5)
    bright = 1 + contrast * (0.75 * fine + 0.45 * broad) - 0.12 * near
    scene.canvas[start:] = colour.astype(np.float32) * np.clip(bright, 0.2, 1.8)[..., None]


def _house(scene: Scene, x0: float, y0: float, x1: float, grain: Floats) -> None:
    canvas, rng, y1 = scene.canvas, scene.rng, scene.horizon + 1
    front = slice(max(int(y0), 0), int(y1)), slice(max(int(x0), 0), min(int(x1), scene.width))
    colour = scene.vary("front", 0.2).astype(np.float32)
    canvas[front] = colour * (1 + 0.10 * grain[front][..., None])
    step, tall = scene.width * rng.uniform(0.1, 0.16), scene.height * rng.uniform(0.13, 0.2)
    glass = scene.vary((0.22, 0.27, 0.33), 0.3).astype(np.float32)
    for y in np.arange(y0 + tall * 0.35, y1 - tall * 0.6, tall).tolist():
        for x in np.arange(x0 + step * 0.3, x1 - step * 0.7, step).tolist():
            if x < 0 or y < 0:
                continue
            top, bottom, left, right = int(y), int(y + tall * 0.55), int(x), int(x + step * 0.5)
            canvas[top - 1 : bottom + 1, max(left - 1, 0) : right + 1] = 0.72
            canvas[top:bottom, left:right] = glass * np.float32(rng.uniform(0.6, 1.7))


def _painting(scene: Scene) -> None:
    """A picture in a frame, or a window, on the wall."""
    width, rng = scene.width, scene.rng
    wide, tall = (rng.uniform(0.12, 0.36, 2) * (width, scene.height)).astype(int).tolist()
    x, y = int(rng.uniform(-0.05, 0.9) * width), int(rng.uniform(0.02, 0.5) * scene.horizon)
    edge, wall = max(1, width // 50), int(max(scene.horizon, 2))
    frame = scene.area(x, y, x + wide, y + tall, wall)
    scene.canvas[frame] = scene.vary((0.42, 0.30, 0.20), 0.5)
    inner = scene.area(x + edge, y + edge, x + wide - edge, y + tall - edge, wall)
    area = scene.canvas[inner]
    height, width = area.shape[:2]
    strokes = noise((max(height, 2), max(width, 2)), max(tall / 2, 2), rng)[:height, :width, None]
    area[:] = scene.vary("painting", 0.2).astype(np.float32) * (1 + 0.3 * strokes)


def _leaves(
    pen: Pen,
    rng: np.random.Generator,
    green: Colour,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    flatness: float,
) -> None:
    """Tufts in shades of ``green``; x, y and radius of each are between ``low`` and ``high``."""
    green = vary(green, 0.35, rng)
    for x, y, radius in rng.uniform(low, high, (11, 3)).tolist():
        pen.ellipse(vary(green, 0.14, rng), x, y, radius, radius * flatness)


def _tree(pen: Pen, rng: np.random.Generator) -> None:
    pen.limb((0.33, 0.24, 0.17), 0, 0.6, rng.normal(0, 0.05), -0.2, 0.08, 0.05)
    _leaves(pen, rng, (0.20, 0.36, 0.14), (-0.35, -0.9, 0.15), (0.35, -0.1, 0.32), 0.85)


def _bush(pen: Pen, rng: np.random.Generator) -> None:
    _leaves(pen, rng, (0.26, 0.38, 0.16), (-0.45, 0.15, 0.12), (0.45, 0.5, 0.26), 0.8)


def _rock(pen: Pen, rng: np.random.Generator) -> None:
    angles, reach = np.sort(rng.uniform(0, 2 * np.pi, 11)), rng.uniform(0.38, 0.55, 11)
    x, y = np.cos(angles) * reach, np.minimum(np.sin(angles) * reach * 0.75 + 0.25, 0.58)
    pen.polygon(vary((0.46, 0.44, 0.42), 0.3, rng), *np.stack([x, y], axis=1).ravel())


def _ball(pen: Pen, rng: np.random.Generator) -> None:
    first, second = rng.permutation(np.array(COLOURS["ball"]))[:2]
    pen.ellipse(vary(first, 0.15, rng), 0, 0.25, 0.33, 0.33)
    pen.ellipse(vary(second, 0.15, rng), 0, 0.25, 0.12, 0.33, rng.uniform(0, 3))


_crate, _barrel, _post, _fence, _armchair = (partial(draw_prop, name) for name in PROPS)
# Painter, highest and lowest horizon as a share of the height, props.
PLACES: dict[str, tuple[Callable[[Scene], None], float, float, list[Prop]]] = {
    "meadow": (_meadow, 0.28, 0.55, [_tree, _bush, _rock, _fence, _ball]),
    "forest": (_forest, 0.35, 0.6, [_bush, _rock, _bush, _tree]),
    "shore": (_shore, 0.22, 0.42, [_rock, _ball, _crate, _barrel]),
    "snow": (_snow, 0.3, 0.5, [_tree, _rock, _fence, _crate]),
    "street": (_street, 0.4, 0.6, [_post, _barrel, _crate, _ball, _bush]),
    "room": (_room, 0.5, 0.68, [_armchair, _crate, _ball, _barrel]),
}
