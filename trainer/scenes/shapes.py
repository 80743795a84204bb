"""Creatures and props, read from ``shapes.toml``, which also says how shapes are written.

The head says which class a creature is; bodies are shared between classes. A classifier can tell a
fox from a deer by the head only, so its activation map peaks there and misses the body, as it does
on photographs. In easy scenes the coat helps.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.scenes.drawing import BLACK, WHITE, Colour, Pen, mix, vary

_FIXED: dict[str, Colour | str] = {"black": BLACK, "white": WHITE}
Number = list[tuple[float, str]]
"""A sum of terms: a factor times the number of the pose with that name. The name "" means 1."""


class Body(NamedTuple):
    """A body shared by classes; the feet are the y of the ground."""

    coats: list[Colour]
    head: str
    radius: float
    feet: str
    back: str
    front: str


class Creature(NamedTuple):
    """A class: its usual place, its usual companion, and the coat that only it wears."""

    body: Body
    place: str
    friend: str
    coat: Colour
    head: str


@dataclass(frozen=True)
class Pose:
    """How one creature or prop looks: named colours and numbers, the same for all its parts."""

    colours: dict[str, Colour]
    numbers: dict[str, float]

    def values(self, numbers: list[Number]) -> list[float]:
        """The numbers in this pose."""
        return [sum(factor * self.numbers[name] for factor, name in terms) for terms in numbers]

    def draw(self, pen: Pen, shapes: str) -> None:
        """Draw ``shapes``, each over the one before."""
        for kind, colour, shift, numbers in _parse(shapes):
            tone = self.colours[colour] if isinstance(colour, str) else colour
            tone = mix(tone, WHITE if shift > 0 else BLACK, abs(shift)) if shift else tone
            getattr(pen, kind)(tone, *self.values(numbers))


def draw_pose(creature: Creature, rng: np.random.Generator, variety: float, typical: float) -> Pose:
    """A random stance.

    Args:
        variety: 0..1, how far the numbers stray from their means.
        typical: chance of the coat that only this class wears. All classes with one body share the
            other coats.
    """
    coats = [creature.coat] if rng.random() < typical else creature.body.coats
    coat = vary(coats[rng.integers(len(coats))], 0.18, rng)
    belly = mix(coat, WHITE, rng.uniform(0.05, 0.3))
    numbers = {
        name: mean + variety * span * rng.uniform(-1, 1) for name, (mean, span) in POSE.items()
    }
    return Pose({"coat": coat, "belly": belly}, {"": 1.0, **numbers})


def draw_prop(name: str, pen: Pen, rng: np.random.Generator) -> None:
    """Draw a prop of ``shapes.toml`` in a random colour."""
    spread, colours, shapes = PROPS[name]
    main = vary(colours[rng.integers(len(colours))], spread, rng)
    Pose({"main": main}, {"": 1.0}).draw(pen, shapes)


@cache
def parse_numbers(group: str, side: int = 1) -> list[Number]:
    """Numbers of ``x,y``, ``r:r`` or ``@turn``. With ``side`` -1, x and turn are mirrored."""
    numbers: list[Number] = []
    for text in re.split("[,:]", group.removeprefix("@")):
        # The pattern also matches the empty end of the text, hence the last match is dropped.
        terms = re.findall(r"([-+]?[\d.]*)([a-z]*)", text)[:-1]
        number = [(float(f"{n}1" if n in ("", "+", "-") else n), name) for n, name in terms]
        if ":" not in group and not numbers:
            number = [(factor if name else factor * side, name) for factor, name in number]
        numbers.append(number)
    return numbers


@cache
def _parse(shapes: str) -> list[tuple[str, Colour | str, float, list[Number]]]:
    """For each shape: the method of ``Pen``, the colour, its shift towards black (below 0) or
    white, and the numbers.
    """
    return [
        _parse_shape(words, side)
        for line in shapes.strip().splitlines()
        for side in ((-1, 1) if line.startswith("±") else (1,))
        for words in line.removeprefix("±").split(";")
    ]


def _parse_shape(words: str, side: int) -> tuple[str, Colour | str, float, list[Number]]:
    kind, colour, *groups = words.split()
    numbers = [number for group in groups for number in parse_numbers(group, side)]
    if colour.startswith("#"):
        red, green, blue = bytes.fromhex(colour[1:])
        return kind, (red / 255, green / 255, blue / 255), 0.0, numbers
    name = colour.rstrip("+-.0123456789")
    return kind, _FIXED.get(name, name), float(colour[len(name) :] or 0), numbers


_TABLES = tomllib.loads(Path(__file__).with_name("shapes.toml").read_text(encoding="utf-8"))
POSE: dict[str, tuple[float, float]] = _TABLES["pose"]
COLOURS: dict[str, list[Colour]] = _TABLES["colours"]
PROPS: dict[str, tuple[float, list[Colour], str]] = _TABLES["props"]
BODIES = {name: Body(**body) for name, body in _TABLES["bodies"].items()}
CREATURES = {
    name: Creature(BODIES[body], place, friend, coat, _TABLES["heads"][name])
    for name, (body, place, friend, coat) in _TABLES["creatures"].items()
}
