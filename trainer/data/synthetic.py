"""Synthetic scenes with exact masks, in VOC layout, to try the whole path on without any
download.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data import creatures, scenery
from trainer.data.drawing import Floats, Layer, Pen, blur, clip_box, noise, paste, shade
from trainer.data.palette import encode_index_png
from trainer.errors import DataError
from trainer.files import write_atomic
from trainer.outputs import check_folder
from trainer.progress import progress_bar

FORMAT = 1
VAL_EVERY = 4
ATTEMPTS = 25
# Which backdrop a class prefers and which class it likes to stand beside: correlated, as in
# photographs.
HAUNTS = (
    "meadow",
    "snow",
    "forest",
    "forest",
    "shore",
    "street",
    "meadow",
    "shore",
    "room",
    "meadow",
)
FRIENDS = (5, 4, 3, 2, 1, 0, 7, 6, 9, 8)


@dataclass
class _Figure:
    """One creature placed in the image: class, feet and size in pixels, and how it stands."""

    label: int
    x: float
    foot: float
    unit: float
    pose: creatures.Pose
    turn: float
    mirrored: bool


def write_synthetic(
    out: Path,
    count: int = 240,
    size: int = 128,
    seed: int = 0,
    difficulty: float = 0.5,
    classes: int = 6,
    progress: bool = False,
) -> None:
    """Write ``count`` scenes to ``out`` in VOC layout; every fourth goes to the ``val`` list.

    Heads tell the classes apart, bodies are shared between them. Image i depends on ``(seed, i)``
    and the settings only, so a longer data set begins with the shorter one, byte for byte, and an
    interrupted one is completed.

    Args:
        size: longer side in pixels; the shorter side is 3/4 of it or more.
        difficulty: 0..1; more classes an image, smaller and more varied figures, clutter,
            occlusion, shade, noise; from 0.5 on, coats say nothing about the class.
        classes: number of classes, 2 to 10.
        progress: show a bar on stderr.

    Raises:
        DataError: a setting out of range, or a folder that holds scenes of others.
        TargetError: a folder that holds something else.
    """
    out = Path(out)
    _check_settings(count, size, difficulty, classes)
    names = [name for name, _, _ in creatures.CLASSES[:classes]]
    settings = {
        "format": FORMAT,
        "size": size,
        "seed": seed,
        "difficulty": difficulty,
        "classes": classes,
    }
    _claim(out, settings, count)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    ids = [f"scene_{i:05d}" for i in range(count)]
    rows: list[list[str | int]] = []
    with progress_bar("scenes", count, progress) as advance:
        for i in range(count):
            present = _write_scene(out, ids[i], i, settings)
            rows.append([ids[i], *(int(k + 1 in present) for k in range(classes))])
            advance()
    _write_tables(out, ids, names, rows)


def render(
    index: int, size: int, seed: int, difficulty: float, classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Scene ``index``: ``uint8 [H,W,3]`` RGB and ``uint8 [H,W]`` labels, 0 background,
    1..``classes``.

    A drawing in which some head ends up hidden is thrown away and drawn again with the next random
    stream.
    """
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([seed, index, attempt])
        picture, label, hidden = _compose(index, size, seed, difficulty, classes, rng)
        if not hidden:
            break
    return picture, label


def _compose(
    index: int, size: int, seed: int, difficulty: float, classes: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], bool]:
    aspect = float(rng.choice([0.75, 0.8, 1.0]))
    height, width = (
        (size, round(size * aspect)) if rng.random() < 0.35 else (round(size * aspect), size)
    )
    members = _cast(index, seed, difficulty, classes, rng)
    kinds = list(scenery.KINDS)
    at_home = rng.random() < 0.25 + 0.35 * difficulty
    kind = HAUNTS[members[0]] if at_home else kinds[int(rng.integers(len(kinds)))]
    scene = scenery.backdrop(kind, height, width, rng)
    scene.canvas[:] = np.stack(
        [blur(scene.canvas[..., c], size / 200 * rng.uniform(0.3, 1.8)) for c in range(3)], -1
    )
    texture = noise((height, width), size / 14, rng)
    figures = _place(members, scene, difficulty, rng)
    label, heads = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    drawn = np.zeros(len(figures))
    behind = rng.poisson(0.6 + 2.2 * difficulty)
    spots = [
        (float(rng.uniform(scene.horizon + 0.04 * height, height * 0.95)), -1)
        for _ in range(behind)
    ]
    spots += [(figure.foot, n) for n, figure in enumerate(figures)]
    if rng.random() < 0.7 * difficulty:
        spots.append((float(height * rng.uniform(1.0, 1.12)), -1))
    for foot, n in sorted(spots):
        if n >= 0:
            drawn[n] = _paint(scene, figures[n], n, label, heads, texture, rng)
            continue
        unit = _unit(foot, scene) * float(rng.uniform(0.3, 0.62))
        layer = scenery.prop_layer(scene, float(rng.uniform(0, width)), foot, unit, texture, rng)
        _cast_shadow(scene, float(layer.left + layer.alpha.shape[1] / 2), foot, unit * 0.4)
        rows, columns = paste(scene.canvas, layer)
        label[rows, columns][layer.alpha >= 0.5] = 0
        heads[rows, columns][layer.alpha >= 0.5] = 0
    seen = np.bincount(heads.ravel(), minlength=len(figures) + 1)[1:]
    photo = scenery.photograph(scene.canvas, difficulty, rng)
    return (photo * 255 + 0.5).astype(np.uint8), label, bool((seen < 0.6 * drawn).any())


def _cast(
    index: int, seed: int, difficulty: float, classes: int, rng: np.random.Generator
) -> list[int]:
    """Class of each figure: every class leads equally often; the next is often its friend or its
    own kind.
    """
    lead = int(
        np.random.default_rng([seed, index // classes]).permutation(classes)[index % classes]
    )
    members = [lead]
    for chance in (0.2 + 0.35 * difficulty, 0.3 * difficulty):
        if rng.random() >= chance:
            break
        friend = FRIENDS[lead] % classes
        other = friend if rng.random() < 0.45 else int(rng.integers(classes))
        members.append(other)
    return members


def _place(
    members: list[int], scene: scenery.Scene, difficulty: float, rng: np.random.Generator
) -> list[_Figure]:
    height, width = scene.canvas.shape[:2]
    figures: list[_Figure] = []
    slots = (np.arange(len(members)) + 0.5 + rng.uniform(-0.18, 0.18, len(members))) / len(members)
    crowd = 1.0 if len(members) == 1 else 0.8 if len(members) == 2 else 0.66
    for label, slot in zip(members, rng.permutation(slots), strict=True):
        near = float(rng.uniform(0.35, 1.0))
        foot = scene.horizon + (height * 0.99 - scene.horizon) * near
        unit = _unit(foot, scene) * crowd * float(rng.uniform(1 - 0.3 * difficulty, 1.12))
        pose = creatures.draw_pose(label, rng, 0.4 + 0.6 * difficulty, 1 - 2 * difficulty)
        turn = float(rng.normal(0, 0.04 + 0.08 * difficulty))
        figures.append(
            _Figure(label, float(slot) * width, foot, unit, pose, turn, bool(rng.random() < 0.5))
        )
    return figures


def _unit(foot: float, scene: scenery.Scene) -> float:
    """Pixels of one body length for feet at row ``foot``: what stands nearer is larger."""
    height, width = scene.canvas.shape[:2]
    near = min(max((foot - scene.horizon) / (height - scene.horizon), 0.1), 1.1)
    return float(np.sqrt(height * width) * (0.28 + 0.32 * near))


def _paint(
    scene: scenery.Scene,
    figure: _Figure,
    order: int,
    label: npt.NDArray[np.uint8],
    heads: npt.NDArray[np.uint8],
    texture: Floats,
    rng: np.random.Generator,
) -> float:
    """Draw one figure; returns how many pixels its head would cover if nothing hid it or cut it
    off.
    """
    height, width = label.shape
    _, kind, draw_head = creatures.CLASSES[figure.label]
    body, pose, unit = creatures.BODIES[kind], figure.pose, figure.unit
    matrix = np.array(
        [[np.cos(figure.turn), -np.sin(figure.turn)], [np.sin(figure.turn), np.cos(figure.turn)]]
    )
    matrix = matrix @ np.diag([-unit if figure.mirrored else unit, unit])
    origin = (figure.x, figure.foot - body.feet(pose) * unit)
    box = clip_box(
        origin[0] - unit, origin[1] - unit, origin[0] + unit, origin[1] + unit * 0.85, width, height
    )
    _cast_shadow(scene, figure.x, figure.foot, unit * 0.5)
    patch = texture[box[1] : box[3], box[0] : box[2]]
    markings = 1 - 0.45 * np.clip(3 * patch - 0.6, 0, 1) * (rng.random() < 0.5)
    fur = (1 + 0.12 * noise(patch.shape, 2.0, rng)) * markings
    for draw, cover in ((body.back, fur * 0.85), (body.front, fur)):
        pen = Pen(box, matrix, origin)
        draw(pen, pose)
        _lay(
            scene,
            shade(pen.layer(), scene.light, max(1.0, 0.07 * unit), cover),
            figure.label + 1,
            label,
            heads,
            0,
        )
    pen = Pen(box, matrix, origin)
    draw_head(pen.at(*body.head(pose), scale=body.radius, turn=pose.tilt), pose.gaze)
    head_texture = 1 + 0.06 * noise(patch.shape, 2.0, rng)
    layer = shade(pen.layer(), scene.light, max(1.0, 0.06 * unit), head_texture)
    _lay(scene, layer, figure.label + 1, label, heads, order + 1)
    return float((body.radius * unit) ** 2 * 3.0)


def _lay(
    scene: scenery.Scene,
    layer: Layer,
    value: int,
    label: npt.NDArray[np.uint8],
    heads: npt.NDArray[np.uint8],
    head: int,
) -> None:
    rows, columns = paste(scene.canvas, layer)
    label[rows, columns][layer.alpha >= 0.5] = value
    heads[rows, columns][layer.alpha >= 0.5] = head


def _cast_shadow(scene: scenery.Scene, x: float, foot: float, reach: float) -> None:
    """Darken the ground under something that stands at (x, foot)."""
    height, width = scene.canvas.shape[:2]
    slant = -scene.light[0] * reach * 0.5
    box = clip_box(x - 2 * reach, foot - reach, x + 2 * reach, foot + reach, width, height)
    pen = Pen(box, np.eye(2), (x + slant, foot))
    pen.ellipse(0, -0.05 * reach, reach * 1.05, reach * 0.2, (0, 0, 0))
    soft = blur(pen.layer().alpha, max(0.6, reach * 0.12))
    scene.canvas[box[1] : box[3], box[0] : box[2]] *= (1 - 0.5 * soft)[..., None]


def _check_settings(count: int, size: int, difficulty: float, classes: int) -> None:
    limits = {
        "count": (count, 1, 1_000_000),
        "size": (size, 32, 2048),
        "difficulty": (difficulty, 0, 1),
    }
    limits["classes"] = (classes, 2, len(creatures.CLASSES))
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise DataError(
                f"{name}={value}",
                f"{name} from {low} to {high}",
                f"--{name} {min(max(value, low), high)}",
            )


def _claim(out: Path, settings: dict[str, float], count: int) -> None:
    """Make sure that ``out`` is empty or holds the same data set, then leave the settings in it."""
    note = out / "synthetic.json"
    if note.is_file():
        try:
            old = dict(json.loads(note.read_text(encoding="utf-8")))
            held = int(old.pop("count", 0))
        except (ValueError, TypeError) as error:
            raise DataError(f"{note} cannot be read: {error}", "a new or empty folder") from error
        if old != settings:
            changed = ", ".join(f"{k}={old.get(k)}" for k, v in settings.items() if old.get(k) != v)
            raise DataError(
                f"{out} holds scenes of other settings ({changed})",
                "the same settings, or an empty folder",
            )
        if held > count:
            raise DataError(
                f"{out} already holds {held} scenes", f"--count {held} or more, or an empty folder"
            )
    check_folder(out, lambda folder: note.is_file())
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(note, json.dumps({**settings, "count": count}, indent=1).encode())


def _write_scene(out: Path, name: str, index: int, settings: dict[str, float]) -> set[int]:
    """Write one scene unless it is there; returns the mask values that it contains."""
    image, mask = out / "JPEGImages" / f"{name}.jpg", out / "SegmentationClass" / f"{name}.png"
    if image.is_file() and mask.is_file():
        with Image.open(mask) as there:
            return {int(v) for v in np.unique(np.asarray(there))}
    picture, label = render(
        index,
        int(settings["size"]),
        int(settings["seed"]),
        settings["difficulty"],
        int(settings["classes"]),
    )
    jpeg = io.BytesIO()
    Image.fromarray(picture).save(jpeg, "JPEG", quality=90)
    write_atomic(mask, encode_index_png(label))
    write_atomic(image, jpeg.getvalue())
    return {int(v) for v in np.unique(label)}


def _write_tables(out: Path, ids: list[str], names: list[str], rows: list[list[str | int]]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([["image_id", *names], *rows])
    write_atomic(out / "image_labels.csv", table.getvalue().encode())
    classes = [{"voc_index": k + 1, "name": name} for k, name in enumerate(names)]
    write_atomic(
        out / "classes.json", json.dumps({"classes": classes, "ignore": 255}, indent=1).encode()
    )
    held_out = set(ids[VAL_EVERY - 1 :: VAL_EVERY])
    for name, chosen in (("train", set(ids) - held_out), ("val", held_out)):
        listing = "".join(f"{i}\n" for i in ids if i in chosen)
        write_atomic(out / "ImageSets" / "Segmentation" / f"{name}.txt", listing.encode())
