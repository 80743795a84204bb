"""Pairs of neighbouring cells that AffinityNet and IRNet compare, and the cells between them (spec refine-segment 3.2, 4.2)."""

from __future__ import annotations

from functools import cache

Offset = tuple[int, int]


@cache
def half_plane(radius: int) -> tuple[Offset, ...]:
    """Offsets (dy, dx) shorter than ``radius``, one of each opposite two, in psa's order."""
    right = [(0, dx) for dx in range(1, radius)]
    below = [(dy, dx) for dy in range(1, radius) for dx in range(1 - radius, radius) if dy**2 + dx**2 < radius**2]
    return (*right, *below)


@cache
def paths(radius: int) -> tuple[tuple[Offset, tuple[Offset, ...]], ...]:
    """Each offset of ``half_plane`` with the cells of a thick line to it, destination first, short lines first."""
    found = [(offset, _line(*offset)) for offset in half_plane(radius)]
    return tuple(sorted(found, key=lambda item: len(item[1])))


def _line(dy: int, dx: int) -> tuple[Offset, ...]:
    """Cells less than 1 from the segment's line within its box, both ends included, the furthest first."""
    box = [(y, x) for y in range(min(dy, 0), max(dy, 0) + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
    near = [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy**2 + dx**2]
    return tuple(sorted(near, key=lambda cell: -abs(cell[0]) - abs(cell[1])))
