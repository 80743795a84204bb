"""Creatures of the synthetic scenes: the head says which class it is, the body is shared between
classes.

A classifier can only tell fox from deer by the head, so its CAM peaks there and misses the body:
the same under-coverage that CAMs have on photographs. In easy scenes the coat helps. Local units:
the body is about one unit long, the head looks to +x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainer.data.drawing import BLACK, WHITE, Colour, Pen, Point, mix, vary

COATS: dict[str, tuple[Colour, ...]] = {
    "quadruped": (
        (0.55, 0.38, 0.22),
        (0.36, 0.26, 0.19),
        (0.68, 0.58, 0.44),
        (0.45, 0.43, 0.42),
        (0.82, 0.77, 0.68),
    ),
    "bird": ((0.42, 0.34, 0.27), (0.35, 0.40, 0.48), (0.62, 0.56, 0.47), (0.28, 0.30, 0.29)),
    "upright": ((0.52, 0.55, 0.60), (0.36, 0.40, 0.50), (0.62, 0.50, 0.38), (0.44, 0.50, 0.42)),
}
TYPICAL: dict[str, Colour] = {
    "fox": (0.86, 0.42, 0.12),
    "panda": (0.88, 0.88, 0.86),
    "deer": (0.80, 0.58, 0.30),
    "owl": (0.60, 0.52, 0.42),
    "parrot": (0.20, 0.58, 0.24),
    "robot": (0.36, 0.58, 0.66),
    "frog": (0.42, 0.62, 0.18),
    "toucan": (0.14, 0.14, 0.17),
    "astronaut": (0.84, 0.85, 0.90),
    "pig": (0.90, 0.60, 0.60),
}


@dataclass(frozen=True)
class Pose:
    """How one creature stands, drawn once so that all of its layers agree."""

    coat: Colour
    belly: Colour
    stride: float
    girth: float
    neck: float
    tilt: float
    gaze: float
    tail: float
    leg: float


def draw_pose(label: int, rng: np.random.Generator, variety: float, typical: float) -> Pose:
    """A random stance of class ``label``; ``variety`` in 0..1 widens every range.

    ``typical`` is the chance of a coat that only this class wears; other coats are shared by all of
    one body.
    """
    body = CLASSES[label][1]
    coats = (TYPICAL[CLASSES[label][0]],) if rng.random() < typical else COATS[body]
    coat = vary(coats[int(rng.integers(len(coats)))], 0.18, rng)

    def around(mean: float, spread: float) -> float:
        return float(mean + spread * variety * rng.uniform(-1, 1))

    return Pose(
        coat=coat,
        belly=mix(coat, WHITE, float(rng.uniform(0.05, 0.3))),
        stride=around(0, 0.16),
        girth=around(1, 0.22),
        neck=around(0, 0.6),
        tilt=around(0, 0.35),
        gaze=around(0.1, 0.3),
        tail=around(0, 0.8),
        leg=around(1, 0.22),
    )


def quadruped_back(pen: Pen, pose: Pose) -> None:
    """Far legs and tail."""
    dark = mix(pose.coat, BLACK, 0.45)
    for hip, swing in ((-0.30, -pose.stride), (0.30, pose.stride)):
        _leg(pen, hip, swing, pose, dark)
    end = (-0.72, -0.05 - 0.25 * pose.tail)
    pen.limb((-0.42, -0.08), end, 0.055, 0.035, mix(pose.coat, BLACK, 0.2))


def quadruped_body(pen: Pen, pose: Pose) -> None:
    """Near legs, torso and neck."""
    for hip, swing in ((-0.36, pose.stride + 0.03), (0.34, -pose.stride)):
        _leg(pen, hip, swing, pose, mix(pose.coat, BLACK, 0.12))
    girth = pose.girth
    pen.ellipse(-0.24, 0.0, 0.27, 0.24 * girth, pose.coat)
    pen.ellipse(0.0, 0.02, 0.36, 0.22 * girth, pose.coat)
    pen.ellipse(0.25, -0.01, 0.25, 0.25 * girth, pose.coat)
    pen.ellipse(0.0, 0.14 * girth, 0.28, 0.08 * girth, pose.belly)
    pen.limb((0.28, -0.06), quadruped_head(pose), 0.17, 0.12, pose.coat)


def quadruped_head(pose: Pose) -> Point:
    """Where the head sits."""
    return 0.50 + 0.06 * pose.neck, -0.33 + 0.16 * pose.neck


def _leg(pen: Pen, hip: float, swing: float, pose: Pose, colour: Colour) -> None:
    knee, foot = (hip + swing * 0.4, 0.12 + 0.18 * pose.leg), (hip + swing, 0.12 + 0.42 * pose.leg)
    pen.limb((hip, 0.06), knee, 0.1, 0.065, colour)
    pen.limb(knee, foot, 0.062, 0.05, colour)
    pen.ellipse(foot[0] + 0.02, foot[1] + 0.02, 0.07, 0.035, mix(colour, BLACK, 0.55))


def bird_back(pen: Pen, pose: Pose) -> None:
    """Legs and tail feathers."""
    for hip in (-0.08, 0.1):
        pen.limb(
            (hip, 0.3),
            (hip + 0.4 * pose.stride, 0.36 + 0.22 * pose.leg),
            0.03,
            0.022,
            (0.66, 0.48, 0.2),
        )
        pen.ellipse(
            hip + 0.4 * pose.stride + 0.04, 0.37 + 0.22 * pose.leg, 0.09, 0.025, (0.55, 0.38, 0.16)
        )
    drop = 0.25 * pose.tail
    pen.polygon(
        [(-0.16, 0.05), (-0.10, 0.32), (-0.62, 0.52 + drop), (-0.70, 0.36 + drop)],
        mix(pose.coat, BLACK, 0.3),
    )


def bird_body(pen: Pen, pose: Pose) -> None:
    """Torso, breast and a folded wing."""
    pen.ellipse(0.0, 0.0, 0.33 * pose.girth, 0.46, pose.coat, turn=0.35)
    pen.ellipse(0.12, 0.02, 0.2 * pose.girth, 0.34, pose.belly, turn=0.3)
    pen.limb((0.06, -0.25), bird_head(pose), 0.2, 0.17, pose.coat)
    wing = mix(pose.coat, BLACK, 0.28)
    pen.ellipse(-0.1, 0.02, 0.18, 0.36, wing, turn=0.5)
    for row in range(3):
        pen.limb(
            (-0.06 - 0.05 * row, 0.0 + 0.1 * row),
            (-0.27 - 0.03 * row, 0.22 + 0.1 * row),
            0.025,
            0.015,
            pose.coat,
        )


def bird_head(pose: Pose) -> Point:
    """Where the head sits."""
    return 0.14 + 0.06 * pose.neck, -0.50 + 0.06 * pose.neck


def upright_back(pen: Pen, pose: Pose) -> None:
    """Legs and the far arm."""
    dark = mix(pose.coat, BLACK, 0.35)
    for hip, swing in ((-0.11, -pose.stride * 0.6), (0.11, pose.stride * 0.6)):
        foot = (hip + swing, 0.3 + 0.36 * pose.leg)
        pen.limb((hip, 0.2), foot, 0.095, 0.075, dark)
        pen.ellipse(foot[0] + 0.04, foot[1] + 0.03, 0.13, 0.055, mix(dark, BLACK, 0.5))
    pen.limb((-0.2, -0.14), (-0.34 - 0.1 * pose.tail, 0.12 - 0.2 * pose.tail), 0.07, 0.055, dark)


def upright_body(pen: Pen, pose: Pose) -> None:
    """Torso, near arm and a chest panel."""
    wide = 0.24 * pose.girth
    pen.polygon([(-wide, -0.2), (wide, -0.2), (wide * 0.85, 0.28), (-wide * 0.85, 0.28)], pose.coat)
    pen.ellipse(0, -0.2, wide, 0.08, pose.coat)
    pen.ellipse(0, 0.28, wide * 0.85, 0.07, pose.coat)
    pen.polygon([(-0.12, -0.1), (0.12, -0.1), (0.1, 0.08), (-0.1, 0.08)], pose.belly)
    pen.limb((0, -0.2), upright_head(pose), 0.09, 0.09, mix(pose.coat, BLACK, 0.3))
    hand = (wide + 0.12, 0.14 - 0.3 * pose.neck)
    pen.limb((wide, -0.14), hand, 0.075, 0.06, mix(pose.coat, WHITE, 0.1))
    pen.ellipse(*hand, 0.075, 0.075, mix(pose.coat, BLACK, 0.4))


def upright_head(pose: Pose) -> Point:
    """Where the head sits."""
    return 0.04 * pose.neck, -0.46


def _eyes(
    pen: Pen, gaze: float, y: float, apart: float, radius: float, white: Colour = WHITE
) -> None:
    for side in (-apart, apart):
        pen.ellipse(side + gaze, y, radius, radius, white)
        pen.ellipse(side + gaze * 1.3, y, radius * 0.6, radius * 0.65, BLACK)


def fox(pen: Pen, gaze: float) -> None:
    """Orange shield with pointed ears and white cheeks."""
    orange = (0.88, 0.40, 0.08)
    for side in (-1, 1):
        pen.polygon([(side * 0.25, -0.6), (side * 0.95, -0.35), (side * 0.85, -1.45)], orange)
        pen.polygon([(side * 0.45, -0.65), (side * 0.8, -0.5), (side * 0.78, -1.15)], BLACK)
    pen.polygon(
        [
            (-1.05, -0.2),
            (-0.6, -0.8),
            (0.6, -0.8),
            (1.05, -0.2),
            (0.3 + gaze, 0.8),
            (-0.3 + gaze, 0.8),
        ],
        orange,
    )
    for side in (-1, 1):
        pen.polygon(
            [(side * 1.1, -0.1), (side * 0.35 + gaze * 0.5, 0.1), (side * 0.1 + gaze, 0.85)], WHITE
        )
    _eyes(pen, gaze * 0.7, -0.2, 0.42, 0.17, (0.95, 0.8, 0.3))
    pen.ellipse(gaze, 0.82, 0.2, 0.16, BLACK)


def panda(pen: Pen, gaze: float) -> None:
    """White disc, black ears and eye patches."""
    for side in (-1, 1):
        pen.ellipse(side * 0.78, -0.78, 0.38, 0.38, BLACK)
    pen.ellipse(0, 0, 1.08, 0.98, WHITE)
    for side in (-1, 1):
        pen.ellipse(side * 0.45 + gaze * 0.7, -0.05, 0.26, 0.36, BLACK, turn=side * 0.5)
        pen.ellipse(side * 0.42 + gaze * 0.8, -0.1, 0.09, 0.09, WHITE)
    pen.ellipse(gaze, 0.38, 0.2, 0.14, BLACK)
    pen.limb((gaze - 0.2, 0.66), (gaze + 0.2, 0.66), 0.04, 0.04, BLACK)


def deer(pen: Pen, gaze: float) -> None:
    """Long tan face, branching antlers, pale muzzle."""
    horn = (0.80, 0.70, 0.52)
    for side in (-1, 1):
        pen.limb((side * 0.25, -0.7), (side * 0.75, -1.35), 0.11, 0.1, horn)
        pen.limb((side * 0.75, -1.35), (side * 0.6, -1.95), 0.1, 0.06, horn)
        pen.limb((side * 0.72, -1.3), (side * 1.25, -1.75), 0.1, 0.06, horn)
        pen.ellipse(side * 0.95, -0.5, 0.42, 0.18, (0.58, 0.36, 0.18), turn=-side * 0.4)
    tan = (0.66, 0.40, 0.19)
    pen.ellipse(0, -0.25, 0.68, 0.68, tan)
    pen.limb((gaze * 0.3, -0.1), (gaze, 0.75), 0.55, 0.34, tan)
    pen.ellipse(gaze, 0.78, 0.38, 0.3, (0.92, 0.86, 0.76))
    _eyes(pen, gaze * 0.4, -0.2, 0.42, 0.15, BLACK)
    pen.ellipse(gaze, 0.72, 0.2, 0.14, BLACK)


def owl(pen: Pen, gaze: float) -> None:
    """Two huge yellow eyes in pale discs, ear tufts."""
    grey = (0.48, 0.40, 0.34)
    for side in (-1, 1):
        pen.polygon([(side * 0.3, -0.7), (side * 0.9, -0.4), (side * 0.95, -1.3)], grey)
    pen.ellipse(0, 0, 1.05, 0.95, grey)
    for side in (-1, 1):
        pen.ellipse(side * 0.45 + gaze * 0.6, -0.05, 0.52, 0.56, (0.86, 0.80, 0.70))
        pen.ellipse(side * 0.45 + gaze * 0.7, -0.08, 0.36, 0.36, (0.98, 0.82, 0.10))
        pen.ellipse(side * 0.45 + gaze * 0.9, -0.08, 0.18, 0.18, BLACK)
    pen.polygon([(gaze - 0.14, 0.15), (gaze + 0.14, 0.15), (gaze, 0.6)], (0.30, 0.25, 0.2))


def parrot(pen: Pen, gaze: float) -> None:
    """Scarlet head, white eye patch, big hooked beak."""
    red = (0.85, 0.10, 0.12)
    for lean in (-0.5, -0.2, 0.1):
        pen.limb((-0.2, -0.7), (lean - 0.4, -1.35), 0.14, 0.06, (0.95, 0.75, 0.12))
    pen.ellipse(0, 0, 1.0, 0.98, red)
    pen.polygon(
        [(0.45, -0.55), (1.25, -0.4), (1.55, 0.1), (1.3, 0.75), (1.05, 0.3), (0.45, 0.35)],
        (0.93, 0.86, 0.66),
    )
    pen.polygon([(0.5, 0.3), (1.0, 0.3), (0.95, 0.62), (0.5, 0.6)], BLACK)
    pen.ellipse(0.25 + gaze * 0.2, -0.15, 0.36, 0.34, WHITE)
    pen.ellipse(0.3 + gaze * 0.2, -0.15, 0.15, 0.15, BLACK)


def robot(pen: Pen, gaze: float) -> None:
    """Teal box with an antenna and lit square eyes."""
    teal = (0.12, 0.58, 0.62)
    pen.limb((0, -0.8), (0, -1.35), 0.06, 0.06, (0.4, 0.42, 0.45))
    pen.ellipse(0, -1.42, 0.2, 0.2, (0.92, 0.15, 0.12))
    for side in (-1, 1):
        pen.ellipse(side * 1.05, 0, 0.2, 0.32, (0.35, 0.38, 0.4))
    pen.polygon(
        [(-1, -0.75), (-0.88, -0.88), (0.88, -0.88), (1, -0.75), (1, 0.85), (-1, 0.85)], teal
    )
    for side in (-1, 1):
        x = side * 0.45 + gaze * 0.5
        pen.polygon(
            [(x - 0.27, -0.45), (x + 0.27, -0.45), (x + 0.27, 0.05), (x - 0.27, 0.05)],
            (1.0, 0.93, 0.45),
        )
    for slot in range(4):
        x = gaze * 0.5 - 0.42 + slot * 0.28
        pen.polygon([(x - 0.08, 0.3), (x + 0.08, 0.3), (x + 0.08, 0.65), (x - 0.08, 0.65)], BLACK)


def frog(pen: Pen, gaze: float) -> None:
    """Wide green head, eyes on top, broad mouth."""
    green = (0.30, 0.66, 0.15)
    pen.ellipse(0, 0.1, 1.2, 0.8, green)
    for side in (-1, 1):
        pen.ellipse(side * 0.6 + gaze * 0.4, -0.6, 0.42, 0.42, green)
        pen.ellipse(side * 0.6 + gaze * 0.6, -0.65, 0.27, 0.27, (0.95, 0.85, 0.35))
        pen.ellipse(side * 0.6 + gaze * 0.8, -0.65, 0.17, 0.1, BLACK)
    pen.limb((-0.8 + gaze * 0.4, 0.35), (0.8 + gaze * 0.4, 0.35), 0.07, 0.07, (0.25, 0.12, 0.1))
    pen.ellipse(gaze * 0.4, 0.62, 0.7, 0.22, (0.82, 0.86, 0.45))


def toucan(pen: Pen, gaze: float) -> None:
    """Black head, yellow throat, enormous orange beak."""
    pen.ellipse(0, 0, 0.95, 0.95, BLACK)
    pen.ellipse(0.3, 0.4, 0.6, 0.5, (0.95, 0.85, 0.2))
    pen.polygon(
        [(0.5, -0.55), (1.4, -0.6), (2.0, -0.2), (2.1, 0.35), (1.5, 0.3), (0.5, 0.4)],
        (0.96, 0.48, 0.05),
    )
    pen.polygon([(1.85, -0.3), (2.05, -0.1), (2.1, 0.35), (1.8, 0.3)], BLACK)
    pen.ellipse(0.3 + gaze * 0.2, -0.25, 0.28, 0.28, (0.25, 0.5, 0.85))
    pen.ellipse(0.32 + gaze * 0.2, -0.25, 0.14, 0.14, BLACK)


def astronaut(pen: Pen, gaze: float) -> None:
    """White helmet around a dark blue visor."""
    pen.ellipse(0, 0, 1.12, 1.1, WHITE)
    pen.ellipse(gaze * 0.6, 0.05, 0.82, 0.66, (0.75, 0.55, 0.15))
    pen.ellipse(gaze * 0.6, 0.05, 0.74, 0.58, (0.07, 0.10, 0.28))
    pen.ellipse(gaze * 0.6 - 0.28, -0.18, 0.22, 0.12, (0.65, 0.75, 0.95), turn=-0.5)


def pig(pen: Pen, gaze: float) -> None:
    """Pink disc, big snout, folded ears."""
    pink = (0.93, 0.58, 0.60)
    pen.ellipse(0, 0, 1.05, 0.95, pink)
    for side in (-1, 1):
        pen.polygon(
            [(side * 0.35, -0.8), (side * 1.0, -0.45), (side * 0.85, -1.2)], (0.82, 0.42, 0.46)
        )
    pen.ellipse(gaze, 0.3, 0.48, 0.38, (0.84, 0.42, 0.48))
    for side in (-1, 1):
        pen.ellipse(gaze + side * 0.18, 0.3, 0.1, 0.15, (0.4, 0.15, 0.2))
    _eyes(pen, gaze * 0.6, -0.3, 0.45, 0.14)


@dataclass(frozen=True)
class Body:
    """A body shared by classes: two layers, the place of the head, its radius, and how low the feet
    are.
    """

    back: Callable[[Pen, Pose], None]
    front: Callable[[Pen, Pose], None]
    head: Callable[[Pose], Point]
    radius: float
    feet: Callable[[Pose], float]


BODIES = {
    "quadruped": Body(
        quadruped_back, quadruped_body, quadruped_head, 0.21, lambda pose: 0.12 + 0.42 * pose.leg
    ),
    "bird": Body(bird_back, bird_body, bird_head, 0.22, lambda pose: 0.37 + 0.22 * pose.leg),
    "upright": Body(
        upright_back, upright_body, upright_head, 0.2, lambda pose: 0.33 + 0.36 * pose.leg
    ),
}

# Order matters: the first six are the default, and three of them share one body, two another.
CLASSES: tuple[tuple[str, str, Callable[[Pen, float], None]], ...] = (
    ("fox", "quadruped", fox),
    ("panda", "quadruped", panda),
    ("deer", "quadruped", deer),
    ("owl", "bird", owl),
    ("parrot", "bird", parrot),
    ("robot", "upright", robot),
    ("frog", "quadruped", frog),
    ("toucan", "bird", toucan),
    ("astronaut", "upright", astronaut),
    ("pig", "quadruped", pig),
)
