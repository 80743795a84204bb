"""Backgrounds and props of the synthetic scenes, and what a camera does to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainer.data.drawing import (
    BLACK,
    WHITE,
    Colour,
    Floats,
    Layer,
    Pen,
    blur,
    clip_box,
    mix,
    noise,
    paste,
    shade,
    vary,
)


@dataclass
class Scene:
    """A backdrop: ``canvas`` float32 [H,W,3], the row of the horizon, and where the light comes
    from.
    """

    canvas: Floats
    horizon: float
    light: tuple[float, float]
    props: tuple[Callable[[Pen, np.random.Generator], None], ...]


def backdrop(kind: str, height: int, width: int, rng: np.random.Generator) -> Scene:
    """Paint the backdrop ``kind``, one of ``KINDS``."""
    painter, low, high, props = KINDS[kind]
    horizon = float(rng.uniform(low, high)) * height
    canvas = np.zeros((height, width, 3), np.float32)
    painter(canvas, horizon, rng)
    angle = rng.uniform(np.pi * 1.15, np.pi * 1.85)
    return Scene(canvas, horizon, (-float(np.cos(angle)), -float(np.sin(angle))), props)


def meadow(canvas: Floats, horizon: float, rng: np.random.Generator) -> None:
    """Sky, hazy hills, grass."""
    _sky(canvas, horizon, rng)
    _hills(canvas, horizon, (0.35, 0.48, 0.38), rng)
    _ground(canvas, horizon, vary((0.33, 0.46, 0.17), 0.25, rng), 0.34, 1.0, rng)
    _blades(canvas, horizon, (0.30, 0.45, 0.14), rng)


def forest(canvas: Floats, horizon: float, rng: np.random.Generator) -> None:
    """Dark leaves, trunks, a leaf-covered floor."""
    height, width = canvas.shape[:2]
    leaves = noise((height, width), height / 6, rng)[..., None]
    light = np.maximum(noise((height, width), height / 10, rng) - 0.6, 0)[..., None]
    canvas[:] = np.asarray(vary((0.17, 0.27, 0.13), 0.3, rng)) * (1 + 0.55 * leaves) + light * (
        0.5,
        0.6,
        0.35,
    )
    for x in rng.uniform(0, width, int(rng.integers(4, 9))):
        thick = float(rng.uniform(0.02, 0.055)) * width
        pen = Pen((0, 0, width, height), np.eye(2), (0, 0))
        lean = float(rng.normal(0, 0.03)) * height
        pen.limb(
            (x, horizon + rng.uniform(0, 0.06) * height),
            (x + lean, -5),
            thick,
            thick * 0.8,
            (0.30, 0.23, 0.17),
        )
        bark = 1 + 0.35 * noise((width, height), thick, rng, 4).T
        paste(canvas, shade(pen.layer(), (-0.7, -0.3), thick, bark))
    _ground(canvas, horizon, vary((0.36, 0.28, 0.16), 0.25, rng), 0.5, 1.0, rng)


def shore(canvas: Floats, horizon: float, rng: np.random.Generator) -> None:
    """Sky, sea with waves, sand."""
    height, width = canvas.shape[:2]
    _sky(canvas, horizon, rng)
    beach = horizon + float(rng.uniform(0.08, 0.2)) * height
    rows = slice(int(horizon), int(beach) + 1)
    waves = noise((height, width), 3.0, rng, 6)[rows]
    canvas[rows] = np.asarray(vary((0.16, 0.38, 0.48), 0.25, rng)) * (1 + 0.3 * waves[..., None])
    canvas[rows] += np.maximum(waves - 0.7, 0)[..., None] * 0.6
    _ground(canvas, beach, vary((0.76, 0.66, 0.47), 0.15, rng), 0.14, 1.0, rng)


def snow(canvas: Floats, horizon: float, rng: np.random.Generator) -> None:
    """Grey sky, far mountains, snow with blue hollows."""
    _sky(canvas, horizon, rng)
    _hills(canvas, horizon, (0.42, 0.47, 0.56), rng)
    _ground(canvas, horizon, vary((0.82, 0.86, 0.92), 0.06, rng), 0.12, 3.0, rng)


def street(canvas: Floats, horizon: float, rng: np.random.Generator) -> None:
    """House fronts with windows, pavement, road with a marking."""
    height, width = canvas.shape[:2]
    _sky(canvas, horizon, rng)
    left = -float(rng.uniform(0, 0.2)) * width
    grain = noise((height, width), 3.0, rng)
    while left < width:
        right = left + float(rng.uniform(0.25, 0.55)) * width
        _house(
            canvas, left, float(rng.uniform(-0.3, 0.45)) * horizon, right, horizon + 1, grain, rng
        )
        left = right
    _ground(canvas, horizon, vary((0.52, 0.50, 0.48), 0.15, rng), 0.12, 1.0, rng)
    kerb = int(horizon + rng.uniform(0.1, 0.25) * height)
    canvas[kerb:] *= 0.68
    canvas[kerb : kerb + max(1, height // 50)] = 0.62
    marking = int(kerb + rng.uniform(0.35, 0.8) * (height - kerb))
    for x in range(int(rng.integers(0, width // 4 + 1)), width, max(width // 3, 1)):
        canvas[marking : marking + max(2, height // 36), x : x + width // 6] = (0.80, 0.79, 0.72)


def room(canvas: Floats, horizon: float, rng: np.random.Generator) -> None:
    """Papered wall, window or picture, skirting board, plank floor."""
    height, width = canvas.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    wall = vary(
        ((0.72, 0.66, 0.56), (0.55, 0.62, 0.64), (0.66, 0.52, 0.46), (0.58, 0.62, 0.50))[
            rng.integers(4)
        ],
        0.2,
        rng,
    )
    stripes = np.float32(rng.uniform(0, 0.08)) * np.sign(
        np.sin(columns * (2 * np.pi / (width * rng.uniform(0.05, 0.14))))
    )
    plaster = 0.05 * noise((height, width), 4, rng)
    canvas[:] = np.asarray(wall, np.float32) * (1 + stripes + plaster)[..., None]
    for _ in range(int(rng.integers(1, 4))):
        _frame(canvas, horizon, rng)
    board = slice(int(horizon - height * 0.035), int(horizon) + 1)
    canvas[board] = np.asarray(mix(wall, WHITE, 0.5), np.float32)
    canvas[board.start] *= 0.7
    near = np.maximum((rows - horizon) / (height - horizon), 0.02)[int(horizon) :]
    across = (columns[int(horizon) :] - width * rng.uniform(0.2, 0.8)) / (0.25 + near)
    plank = np.floor(across / (width * 0.13)).astype(int)
    tone = rng.uniform(0.8, 1.1, 64)[plank % 64].astype(np.float32)
    gap = np.abs(across / (width * 0.13) - plank - 0.5) > 0.46
    grain = noise((width, height - int(horizon)), 3, rng, 8).T * 0.12
    wood = np.asarray(
        vary(
            ((0.52, 0.36, 0.22), (0.62, 0.50, 0.36), (0.36, 0.27, 0.20))[rng.integers(3)], 0.15, rng
        )
    )
    canvas[int(horizon) :] = wood * ((tone + grain) * np.where(gap, 0.6, 1.0))[..., None]


def _sky(canvas: Floats, horizon: float, rng: np.random.Generator) -> None:
    height, width = canvas.shape[:2]
    tops = ((0.28, 0.48, 0.78), (0.52, 0.60, 0.70), (0.55, 0.42, 0.52), (0.35, 0.55, 0.75))
    lows = ((0.74, 0.84, 0.92), (0.78, 0.80, 0.82), (0.95, 0.72, 0.50), (0.85, 0.88, 0.86))
    pick = int(rng.integers(4))
    share = np.linspace(0, 1, height, dtype=np.float32)[:, None, None] * np.float32(
        height / max(horizon, 1)
    )
    top, low = (np.asarray(vary(c, 0.1, rng), np.float32) for c in (tops[pick], lows[pick]))
    canvas[:] = top + (low - top) * np.clip(share, 0, 1)
    cloud = np.clip(noise((height, width), height / 3, rng, 2.2) - rng.uniform(-0.2, 0.7), 0, 1)[
        ..., None
    ]
    canvas[:] = canvas * (1 - cloud) + np.float32(0.93) * cloud


def _hills(canvas: Floats, horizon: float, colour: Colour, rng: np.random.Generator) -> None:
    height, width = canvas.shape[:2]
    rows = np.arange(height, dtype=np.float32)[:, None]
    for haze in (0.55, 0.2):
        ridge = (
            horizon
            - height * (0.05 + 0.12 * haze)
            - noise((2, width), width / 2, rng)[0] * height * 0.07
        )
        cover = np.clip(rows - ridge, 0, 1)[..., None]
        slope = np.asarray(mix(vary(colour, 0.15, rng), (0.75, 0.80, 0.85), haze), np.float32)
        canvas[:] = (
            canvas * (1 - cover)
            + slope * (1 + 0.12 * noise((height, width), 5, rng)[..., None]) * cover
        )


def _ground(
    canvas: Floats,
    horizon: float,
    colour: Colour,
    contrast: float,
    cell: float,
    rng: np.random.Generator,
) -> None:
    """A plane in perspective: one noise tile looked up at (x / depth, 1 / depth), fading into the
    distance.
    """
    height, width = canvas.shape[:2]
    start = int(horizon)
    near = ((np.arange(start, height, dtype=np.float32) - horizon + 1) / (height - horizon))[
        :, None
    ]
    tile = noise((128, 128), 3.0 * cell, rng)
    away = (40.0 / (near + 0.12)).astype(np.int64) % 128
    aside = ((np.arange(width) - width / 2) * 0.9 / (near + 0.12) + 1000).astype(np.int64) % 128
    fine = tile[away, aside] * (0.25 + 0.75 * near)
    broad = noise((height - start, width), height / 4, rng, 2.5)
    bright = 1 + contrast * (0.75 * fine + 0.45 * broad) - 0.12 * near
    canvas[start:] = np.asarray(colour, np.float32) * np.clip(bright, 0.2, 1.8)[..., None]


def _blades(canvas: Floats, horizon: float, colour: Colour, rng: np.random.Generator) -> None:
    height, width = canvas.shape[:2]
    pen = Pen((0, 0, width, height), np.eye(2), (0, 0))
    for x, near, lean in rng.uniform(0, 1, (170, 3)):
        y, tall = horizon + near * (height - horizon), height * (0.01 + 0.05 * near)
        tone = mix(vary(colour, 0.45, rng), (0.75, 0.72, 0.35), 0.35 * lean)
        thin = 0.1 + tall * 0.07
        tip = (x * width + (lean - 0.5) * tall, y - tall)
        pen.polygon([(x * width - thin, y), (x * width + thin, y), tip], tone)
    paste(canvas, pen.layer())


def _house(
    canvas: Floats,
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    grain: Floats,
    rng: np.random.Generator,
) -> None:
    height, width = canvas.shape[:2]
    fronts = ((0.60, 0.38, 0.30), (0.68, 0.62, 0.52), (0.48, 0.50, 0.52), (0.72, 0.68, 0.60))
    rows, columns = slice(max(int(y0), 0), int(y1)), slice(max(int(x0), 0), min(int(x1), width))
    colour = np.asarray(vary(fronts[rng.integers(4)], 0.2, rng), np.float32)
    canvas[rows, columns] = colour * (1 + 0.10 * grain[rows, columns, None])
    step, tall = width * float(rng.uniform(0.1, 0.16)), height * float(rng.uniform(0.13, 0.2))
    glass = np.asarray(vary((0.22, 0.27, 0.33), 0.3, rng), np.float32)
    for y in np.arange(y0 + tall * 0.35, y1 - tall * 0.6, tall):
        for x in np.arange(x0 + step * 0.3, x1 - step * 0.7, step):
            if x < 0 or y < 0:
                continue
            pane = slice(int(y), int(y + tall * 0.55)), slice(int(x), int(x + step * 0.5))
            outer = (
                slice(int(y) - 1, int(y + tall * 0.55) + 1),
                slice(max(int(x) - 1, 0), int(x + step * 0.5) + 1),
            )
            canvas[outer] = 0.72
            canvas[pane] = glass * np.float32(rng.uniform(0.6, 1.7))


def _frame(canvas: Floats, horizon: float, rng: np.random.Generator) -> None:
    height, width = canvas.shape[:2]
    wide, tall = (rng.uniform(0.12, 0.36, 2) * (width, height)).astype(int)
    x, y = int(rng.uniform(-0.05, 0.9) * width), int(rng.uniform(0.02, 0.5) * horizon)
    edge = max(1, width // 50)
    box = clip_box(x, y, x + wide, y + tall, width, int(max(horizon, 2)))
    inner = clip_box(
        x + edge, y + edge, x + wide - edge, y + tall - edge, width, int(max(horizon, 2))
    )
    canvas[box[1] : box[3], box[0] : box[2]] = np.asarray(
        vary((0.42, 0.30, 0.20), 0.5, rng), np.float32
    )
    area = canvas[inner[1] : inner[3], inner[0] : inner[2]]
    painting = noise((max(area.shape[0], 2), max(area.shape[1], 2)), max(tall / 2, 2), rng)[
        : area.shape[0], : area.shape[1]
    ]
    tint = np.asarray(
        vary(
            ((0.70, 0.82, 0.92), (0.45, 0.50, 0.38), (0.58, 0.44, 0.36))[rng.integers(3)], 0.2, rng
        ),
        np.float32,
    )
    area[:] = tint * (1 + 0.3 * painting[..., None])


def tree(pen: Pen, rng: np.random.Generator) -> None:
    """Trunk and a cloud of leaves."""
    pen.limb((0, 0.6), (float(rng.normal(0, 0.05)), -0.2), 0.08, 0.05, (0.33, 0.24, 0.17))
    green = vary((0.20, 0.36, 0.14), 0.35, rng)
    for x, y, r in rng.uniform((-0.35, -0.9, 0.15), (0.35, -0.1, 0.32), (11, 3)):
        pen.ellipse(x, y, r, r * 0.85, vary(green, 0.14, rng))


def bush(pen: Pen, rng: np.random.Generator) -> None:
    """A low heap of leaves."""
    green = vary((0.26, 0.38, 0.16), 0.35, rng)
    for x, y, r in rng.uniform((-0.45, 0.15, 0.12), (0.45, 0.5, 0.26), (11, 3)):
        pen.ellipse(x, y, r, r * 0.8, vary(green, 0.14, rng))


def rock(pen: Pen, rng: np.random.Generator) -> None:
    """A boulder."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, 11))
    reach = rng.uniform(0.38, 0.55, 11)
    points = np.stack(
        [np.cos(angles) * reach, np.minimum(np.sin(angles) * reach * 0.75 + 0.25, 0.58)], axis=1
    )
    pen.polygon(points, vary((0.46, 0.44, 0.42), 0.3, rng))


def crate(pen: Pen, rng: np.random.Generator) -> None:
    """A wooden box with slats."""
    wood = vary((0.56, 0.42, 0.25), 0.25, rng)
    pen.polygon([(-0.42, -0.2), (0.42, -0.2), (0.42, 0.58), (-0.42, 0.58)], wood)
    pen.polygon([(-0.42, -0.2), (-0.28, -0.36), (0.54, -0.36), (0.42, -0.2)], mix(wood, WHITE, 0.2))
    pen.polygon([(0.42, -0.2), (0.54, -0.36), (0.54, 0.42), (0.42, 0.58)], mix(wood, BLACK, 0.4))
    for y in (0.02, 0.28):
        pen.polygon(
            [(-0.42, y), (0.42, y), (0.42, y + 0.025), (-0.42, y + 0.025)], mix(wood, BLACK, 0.5)
        )


def ball(pen: Pen, rng: np.random.Generator) -> None:
    """A striped ball; its bright colour says nothing about the classes."""
    colours = (
        (0.85, 0.15, 0.15),
        (0.95, 0.75, 0.1),
        (0.1, 0.55, 0.6),
        (0.9, 0.45, 0.1),
        (0.92, 0.9, 0.88),
        (0.2, 0.3, 0.7),
    )
    first, second = rng.permutation(len(colours))[:2]
    pen.ellipse(0, 0.25, 0.33, 0.33, vary(colours[first], 0.15, rng))
    pen.ellipse(
        0, 0.25, 0.12, 0.33, vary(colours[second], 0.15, rng), turn=float(rng.uniform(0, 3))
    )


def barrel(pen: Pen, rng: np.random.Generator) -> None:
    """A drum with hoops."""
    side = vary(
        ((0.42, 0.30, 0.2), (0.25, 0.38, 0.5), (0.55, 0.25, 0.18))[rng.integers(3)], 0.25, rng
    )
    pen.polygon(
        [(-0.28, -0.4), (0.28, -0.4), (0.34, 0.1), (0.28, 0.56), (-0.28, 0.56), (-0.34, 0.1)], side
    )
    pen.ellipse(0, 0.56, 0.28, 0.07, side)
    pen.ellipse(0, -0.4, 0.28, 0.08, mix(side, WHITE, 0.25))
    for y in (-0.15, 0.3):
        pen.polygon(
            [(-0.32, y), (0.32, y), (0.32, y + 0.06), (-0.32, y + 0.06)], mix(side, BLACK, 0.5)
        )


def post(pen: Pen, rng: np.random.Generator) -> None:
    """A lamp post."""
    metal = vary((0.25, 0.27, 0.28), 0.3, rng)
    pen.limb((0, 0.6), (0, -1.3), 0.045, 0.03, metal)
    pen.ellipse(0, -1.38, 0.12, 0.14, (0.95, 0.90, 0.68))
    pen.polygon([(-0.15, -1.42), (0.15, -1.42), (0, -1.62)], metal)


def fence(pen: Pen, rng: np.random.Generator) -> None:
    """Three pales and two rails."""
    wood = vary((0.62, 0.52, 0.40), 0.3, rng)
    for y in (0.12, 0.4):
        pen.limb((-0.7, y), (0.7, y), 0.035, 0.035, mix(wood, BLACK, 0.25))
    for x in (-0.5, 0.0, 0.5):
        pen.polygon(
            [(x - 0.06, 0.6), (x + 0.06, 0.6), (x + 0.06, -0.02), (x, -0.12), (x - 0.06, -0.02)],
            wood,
        )


def cushion(pen: Pen, rng: np.random.Generator) -> None:
    """An armchair."""
    cloth = vary(
        ((0.50, 0.30, 0.28), (0.34, 0.40, 0.48), (0.55, 0.50, 0.36))[rng.integers(3)], 0.3, rng
    )
    pen.ellipse(0, -0.25, 0.42, 0.4, mix(cloth, BLACK, 0.2))
    pen.polygon([(-0.42, -0.3), (0.42, -0.3), (0.42, 0.5), (-0.42, 0.5)], mix(cloth, BLACK, 0.2))
    pen.ellipse(0, 0.22, 0.36, 0.14, mix(cloth, WHITE, 0.12))
    for side in (-0.42, 0.42):
        pen.limb((side, 0.05), (side, 0.48), 0.12, 0.12, cloth)


def prop_layer(
    scene: Scene, x: float, foot: float, unit: float, texture: Floats, rng: np.random.Generator
) -> Layer:
    """One random prop of this scene standing at (x, foot), ``unit`` pixels large."""
    height, width = scene.canvas.shape[:2]
    draw = scene.props[int(rng.integers(len(scene.props)))]
    box = clip_box(
        x - 0.8 * unit, foot - 2.3 * unit, x + 0.8 * unit, foot + 0.1 * unit, width, height
    )
    pen = Pen(
        box, np.diag([unit * (1 if rng.random() < 0.5 else -1), unit]), (x, foot - 0.58 * unit)
    )
    draw(pen, rng)
    patch = 1 + 0.22 * texture[box[1] : box[3], box[0] : box[2]]
    return shade(pen.layer(), scene.light, max(1.0, 0.09 * unit), patch)


def photograph(canvas: Floats, difficulty: float, rng: np.random.Generator) -> Floats:
    """What light and camera add: patches of shade, a gradient, a colour cast, vignette, blur,
    sensor noise.
    """
    height, width = canvas.shape[:2]
    shadow = np.clip(1.5 * noise((height, width), height / 2, rng) - 0.6, 0, 1)
    gain = 1 - 0.55 * difficulty * np.asarray(shadow, np.float32)
    rows, columns = (
        np.linspace(-1, 1, height, dtype=np.float32)[:, None],
        np.linspace(-1, 1, width, dtype=np.float32),
    )
    lean = rng.normal(0, 0.05 + 0.08 * difficulty, 2)
    gain = gain * (1 + lean[0] * rows + lean[1] * columns) * (1 - 0.12 * (rows**2 + columns**2))
    exposure = 1.12 + difficulty * rng.uniform(-0.22, 0.22)
    cast = 1 + rng.normal(0, 0.02 + 0.05 * difficulty, 3)
    photo = canvas * (gain[..., None] * exposure * cast).astype(np.float32)
    radius = rng.uniform(0.2, 0.35 + 0.5 * difficulty) * max(height, width) / 160
    photo = np.stack([blur(photo[..., c], radius) for c in range(3)], axis=-1)
    sensor = rng.standard_normal(photo.shape, np.float32) * np.float32(
        0.006 + 0.028 * difficulty * rng.random()
    )
    return np.asarray(np.clip(photo + sensor, 0, 1), np.float32)


OUTDOORS = (tree, bush, rock, fence, ball)
KINDS = {
    "meadow": (meadow, 0.28, 0.55, OUTDOORS),
    "forest": (forest, 0.35, 0.6, (bush, rock, bush, tree)),
    "shore": (shore, 0.22, 0.42, (rock, ball, crate, barrel)),
    "snow": (snow, 0.3, 0.5, (tree, rock, fence, crate)),
    "street": (street, 0.4, 0.6, (post, barrel, crate, ball, bush)),
    "room": (room, 0.5, 0.68, (cushion, crate, ball, barrel)),
}
