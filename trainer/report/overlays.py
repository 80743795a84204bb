"""Pictures of masks and class activation maps: colours, overlays, legends and contact sheets.

Needs numpy and Pillow only. In label maps, 0 is background, k+1 class k and 255 ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from trainer.data.dataset import IGNORE
from trainer.data.palette import voc_palette
from trainer.evaluation.boundary import contour

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

# Anchors of the inferno map (Smith and van der Walt, public domain): lightness rises evenly, so
# that equal steps of activation look equal, also in grey print and to colour-blind readers.
HEAT = np.array(
    [
        (0, 0, 4),
        (22, 11, 57),
        (66, 10, 104),
        (106, 23, 110),
        (147, 38, 103),
        (188, 55, 84),
        (221, 81, 58),
        (243, 120, 25),
        (252, 165, 10),
        (246, 215, 70),
        (252, 255, 164),
    ],
    np.float32,
)
NO_MARKS: Mapping[str, Colour] = {}
ERRORS: Mapping[str, Colour] = {
    "object found": (86, 180, 233),
    "missed": (240, 228, 66),
    "invented": (213, 94, 0),
    "wrong class": (204, 121, 167),
}
"""What a pixel of an error map can be, in colours that colour-blind readers tell apart (Okabe and
Ito 2008).
"""
_INK, _PAPER, _FAINT = (28, 30, 33), (255, 255, 255), (110, 114, 120)


def colourise(mask: npt.ArrayLike) -> Pixels:
    """VOC colours ``uint8 [H,W,3]`` of a label map; ignored pixels have VOC's cream."""
    colours: Pixels = voc_palette(256)[_labels(mask)]
    return colours


def mask_layer(mask: npt.ArrayLike, alpha: float = 0.6) -> Pixels:
    """A label map as a layer RGBA ``uint8 [H,W,4]`` over its photograph.

    Each region has a thin contour; ignored pixels are hatched, unlike any class.

    Args:
        mask: integer ``[H,W]`` label map.
        alpha: opacity of the regions, 0..1; contours are always opaque.
    """
    labels = _labels(mask)
    inside = np.where(labels == IGNORE, _hatch(labels), labels > 0)
    edge = contour(labels) & (labels > 0) & (labels != IGNORE)
    colours = colourise(labels).astype(np.float32)
    # A contour in the region's own colour vanishes on a photograph of that colour.
    colours[edge] = 0.5 * colours[edge] + 127.5
    return _layer(colours, np.where(edge, 1.0, alpha * inside))


def overlay_mask(image: npt.ArrayLike, mask: npt.ArrayLike, alpha: float = 0.6) -> Pixels:
    """``mask_layer`` over a photograph ``uint8 [H,W,3]``: RGB ``uint8 [H,W,3]``.

    Raises:
        ValueError: sizes differ, or ``alpha`` is outside 0..1.
    """
    photo, labels = _photo(image), _labels(mask)
    _check(photo, labels.shape, alpha)
    # Half of the photograph's colour, so that class colours do not look like content.
    return _over(_desaturate(photo), mask_layer(labels, alpha))


def overlay_cam(
    image: npt.ArrayLike, cam_HW: npt.ArrayLike, alpha: float = 0.85, threshold: float | None = None
) -> Pixels:
    """A class activation map over its photograph: the stronger, the brighter and the more opaque.

    Args:
        image: uint8 ``[H,W,3]`` RGB.
        cam_HW: float ``[H,W]``; values are clipped to 0..1, not-a-number counts as 0.
        alpha: opacity at full activation, 0..1.
        threshold: draw the thin white line inside which the map is above this value.

    Returns:
        uint8 ``[H,W,3]`` RGB.

    Raises:
        ValueError: sizes differ, or ``alpha`` is outside 0..1.
    """
    photo = _photo(image)
    cam = np.clip(np.nan_to_num(np.asarray(cam_HW, np.float32)), 0, 1)
    _check(photo, cam.shape, alpha)
    grey = _desaturate(photo, keep=0.0) * 0.75
    # The square root keeps weak activation visible.
    picture = _over(grey, _layer(heat(cam), alpha * (0.25 + 0.75 * np.sqrt(cam))))
    return picture if threshold is None else _over(picture, line_layer(cam, threshold))


def line_layer(cam_HW: npt.NDArray[np.floating], threshold: float) -> Pixels:
    """A thin white line around the pixels above a threshold: RGBA uint8 ``[H,W,4]``."""
    inside = cam_HW > threshold
    return _layer(np.full((*inside.shape, 3), 255.0), contour(inside) & inside)


def error_layer(mask: npt.ArrayLike, truth: npt.ArrayLike) -> Pixels:
    """Correct and wrong pixels of objects as a layer RGBA ``uint8 [H,W,4]``, in ``ERRORS`` colours.

    Args:
        mask: integer ``[H,W]`` label map; ignored pixels count as background.
        truth: integer ``[H,W]`` label map; ignored pixels are hatched, and neither correct nor
            wrong.
    """
    true, label = _labels(truth), _labels(mask)
    label = np.where(label == IGNORE, 0, label)
    kinds = [
        (label == true) & (label > 0),
        (label == 0) & (true > 0),
        (label > 0) & (true == 0),
        label != true,
    ]
    # The first kind that fits counts, so of the last only pixels of a wrong class remain.
    kind = np.select(kinds, range(len(kinds)), -1)
    unknown = true == IGNORE
    colours = np.array([*ERRORS.values(), (255, 255, 255)], np.float32)[kind]
    colours[unknown] = _INK
    return _layer(colours, np.where(unknown, 0.5 * _hatch(true), 0.7 * (kind >= 0)))


def error_map(image: npt.ArrayLike, mask: npt.ArrayLike, truth: npt.ArrayLike) -> Pixels:
    """``error_layer`` over a grey photograph: RGB ``uint8 [H,W,3]``.

    Raises:
        ValueError: sizes differ.
    """
    photo, label, true = _photo(image), _labels(mask), _labels(truth)
    _check(photo, true.shape, 1)
    _check(photo, label.shape, 1)
    return _over(_desaturate(photo, keep=0.0), error_layer(label, true))


def heat(values: npt.ArrayLike) -> Pixels:
    """RGB ``uint8 [...,3]`` of values 0..1 on a scale from dark to bright of even lightness."""
    position = np.clip(np.asarray(values, np.float32), 0, 1) * (len(HEAT) - 1)
    low = np.minimum(position.astype(np.intp), len(HEAT) - 2)
    share = (position - low)[..., None]
    return _pixels(HEAT[low] * (1 - share) + HEAT[low + 1] * share)


def legend(
    names: Sequence[str], width: int = 640, marks: Mapping[str, Colour] = NO_MARKS
) -> Image.Image:
    """Swatch and name of every class, in VOC colours.

    Args:
        names: the K foreground classes.
        width: of the picture in pixels; entries wrap, and a longer name is cut.
        marks: further names and their colours.
    """
    font, height = _font(13), 24
    spots: list[tuple[int, int]] = []
    x = y = 0
    entries = dict(zip(names, voc_palette(len(names) + 1)[1:].tolist(), strict=True)) | dict(marks)
    for name in entries:
        need = 34 + int(font.getlength(name))
        if x and x + need > width:
            x, y = 0, y + height
        spots.append((x, y))
        x += need
    canvas = Image.new("RGB", (width, y + height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for (name, colour), (left, top) in zip(entries.items(), spots, strict=True):
        draw.rectangle((left + 2, top + 6, left + 14, top + 18), fill=tuple(colour))
        draw.text((left + 20, top + 12), name, fill=_INK, font=font, anchor="lm")
    return canvas


def contact_sheet(
    rows: Sequence[Sequence[tuple[npt.ArrayLike | Image.Image, str]]],
    height: int = 160,
    classes: Sequence[str] = (),
    marks: Mapping[str, Colour] = NO_MARKS,
) -> Image.Image:
    """Rows of captioned pictures on one white sheet; columns are aligned.

    Args:
        rows: of ``(picture, caption)``; pictures are uint8 ``[H,W,3]`` arrays or PIL images.
        height: of every picture on the sheet.
        classes: of the legend below the rows, if any.
        marks: further names and colours of the legend.

    Raises:
        ValueError: there is no picture.
    """
    if not any(rows):
        raise ValueError("a contact sheet needs at least one picture")
    gap, caption, font = 8, 20, _font(12)
    table = [[(_scale(picture, height), text) for picture, text in row] for row in rows]
    columns = max(len(row) for row in table)
    widths = [max(row[i][0].width for row in table if i < len(row)) for i in range(columns)]
    width = sum(widths) + gap * (columns + 1)
    key = legend(classes, width - 2 * gap, marks) if classes else None
    total = gap + len(table) * (height + caption + gap) + (key.height + gap if key else 0)
    sheet = Image.new("RGB", (width, total), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(table):
        top = gap + r * (height + caption + gap)
        for i, (picture, text) in enumerate(row):
            left, middle = gap + sum(widths[:i]) + gap * i, top + height + caption // 2
            sheet.paste(picture, (left, top))
            line = _cut(text, font, widths[i])
            draw.text((left, middle), line, fill=_FAINT, font=font, anchor="lm")
    if key:
        sheet.paste(key, (gap, total - gap - key.height))
    return sheet


def _labels(mask: npt.ArrayLike) -> Pixels:
    labels = np.asarray(mask)
    if labels.ndim != 2 or not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool):
        raise ValueError(
            f"a label map is an integer [H,W] array, not {labels.dtype} {list(labels.shape)}"
        )
    return labels.astype(np.uint8)


def _photo(image: npt.ArrayLike) -> Pixels:
    photo = np.asarray(image)
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise ValueError(
            f"an image is a uint8 [H,W,3] array, not {photo.dtype} {list(photo.shape)}"
        )
    return photo


def _check(photo: Pixels, shape: tuple[int, ...], alpha: float) -> None:
    if photo.shape[:2] != shape:
        raise ValueError(f"the image is {list(photo.shape[:2])}, the map over it {list(shape)}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, not within 0..1")


def _desaturate(photo: Pixels, keep: float = 0.5) -> npt.NDArray[np.float32]:
    """The photograph with the share ``keep`` of its colour."""
    colour = photo.astype(np.float32)
    # Luma of ITU-R BT.601.
    grey = colour @ np.array([0.299, 0.587, 0.114], np.float32)
    result: npt.NDArray[np.float32] = keep * colour + (1 - keep) * grey[..., None]
    return result


def _hatch(labels: Pixels) -> npt.NDArray[np.bool_]:
    rows, columns = np.indices(labels.shape)
    lines: npt.NDArray[np.bool_] = np.less((rows + columns) % 6, 2)
    return lines


def _layer(colours: npt.ArrayLike, opacity: npt.NDArray[np.generic]) -> Pixels:
    """RGBA of colours ``[H,W,3]`` 0..255 and opacity ``[H,W]`` 0..1."""
    share = np.asarray(opacity, np.float32)[..., None]
    # Black where nothing is visible, which compresses well.
    visible = np.asarray(colours, np.float32) * (share > 0)
    return _pixels(np.concatenate([visible, 255 * share], axis=-1))


def _over(base: npt.ArrayLike, layer: Pixels) -> Pixels:
    share = layer[..., 3:] / np.float32(255)
    return _pixels(np.asarray(base, np.float32) * (1 - share) + layer[..., :3] * share)


def _pixels(values: npt.NDArray[np.floating]) -> Pixels:
    pixels: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels


def _scale(picture: npt.ArrayLike | Image.Image, height: int) -> Image.Image:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(_photo(picture))
    width = max(1, round(image.width * height / image.height))
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _cut(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> Font:
    # Pillow's own font: a server may have none installed.
    return ImageFont.load_default(size)
