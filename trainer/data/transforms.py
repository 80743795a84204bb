"""Augmentations. Each is a function of its input and a generator, without hidden randomness."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms import functional as tvf

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class PixelScale(NamedTuple):
    """How RGB values in 0..255 become input of a network: minus ``mean``, divided by ``std``; then,
    with ``bgr``, in reverse channel order.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False


IMAGENET_PIXELS = PixelScale(
    (255 * MEAN[0], 255 * MEAN[1], 255 * MEAN[2]), (255 * STD[0], 255 * STD[1], 255 * STD[2])
)
# The mean of deeplab-pytorch, in RGB order; its Caffe weights know no deviation.
CAFFE_PIXELS = PixelScale((122.675, 116.669, 104.008), (1.0, 1.0, 1.0), bgr=True)

Rng = np.random.Generator
Array = npt.NDArray[np.float32]


def sample_rng(seed: int, epoch: int, index: int) -> Rng:
    """The generator of one sample: a pure function of its arguments, so a resumed run equals an
    unbroken one.
    """
    return np.random.default_rng((seed, epoch, index))


def resize_long(image: Image.Image, long_side: int) -> Image.Image:
    """Scale so that the longer side is ``long_side`` (bicubic), the aspect kept."""
    width, height = image.size
    if width < height:
        size = (max(1, round(width * long_side / height)), long_side)
    else:
        size = (long_side, max(1, round(height * long_side / width)))
    return image.resize(size, Image.Resampling.BICUBIC)


def color_jitter(
    image: Image.Image, rng: Rng, strength: float = 0.3, hue: float = 0.1
) -> Image.Image:
    """Brightness, contrast, saturation by 1 +- ``strength`` and hue by +- ``hue``, in random
    order.
    """
    # torchvision's ColorJitter with the strengths of psa, but drawn from the sample's generator.
    factors = rng.uniform(1 - strength, 1 + strength, 3)
    shift = float(rng.uniform(-hue, hue))
    for step in rng.permutation(4):
        if step == 0:
            image = tvf.adjust_brightness(image, float(factors[0]))
        elif step == 1:
            image = tvf.adjust_contrast(image, float(factors[1]))
        elif step == 2:
            image = tvf.adjust_saturation(image, float(factors[2]))
        else:
            image = tvf.adjust_hue(image, shift)
    return image


def shift_hsv(image: Image.Image, rng: Rng, reach: int) -> Image.Image:
    """Hue (of 180, round the circle), saturation and value (of 255, clipped), each shifted by a
    whole number up to ``reach``.

    Hue is kept in 255 steps, as Pillow has it, not in OpenCV's 180.
    """
    hue, saturation, value = (int(shift) for shift in rng.integers(-reach, reach + 1, 3))
    planes = np.asarray(image.convert("HSV")).astype(np.int16)
    planes[..., 0] = (planes[..., 0] + round(hue * 255 / 180)) % 255
    planes[..., 1:] = (planes[..., 1:] + (saturation, value)).clip(0, 255)
    return Image.frombytes("HSV", image.size, planes.astype(np.uint8).tobytes()).convert("RGB")


def normalise(
    image: Image.Image | npt.NDArray[np.uint8] | npt.NDArray[np.float32],
    pixels: PixelScale = IMAGENET_PIXELS,
) -> Array:
    """RGB in 0..255 to ``float32 [H,W,3]``, by default with ImageNet mean and deviation."""
    scale = np.array([1 / s for s in pixels.std], np.float32)
    shift = np.array([m / s for m, s in zip(pixels.mean, pixels.std)], np.float32)
    values = np.asarray(image, dtype=np.float32) * scale - shift
    return np.asarray(values[..., ::-1] if pixels.bgr else values, dtype=np.float32)


def crop_window(size: int, crop: int, rng: Rng) -> tuple[int, int, int]:
    """Along one axis: (offset in the image, offset in the crop, length).

    A larger image is cut at a uniform offset, a smaller one is placed whole at a uniform offset.
    """
    if size > crop:
        return int(rng.integers(0, size - crop + 1)), 0, crop
    return 0, int(rng.integers(0, crop - size + 1)), size


def random_crop(image: Array, crop: int, rng: Rng) -> Array:
    """``[H,W,3] -> [crop,crop,3]``; the ground is zero, which is the mean colour after
    ``normalise``.
    """
    (view,) = random_crops([(image, 0.0)], crop, rng)
    return view.astype(np.float32, copy=False)


def random_crops(
    planes: list[tuple[npt.NDArray[np.generic], float]], crop: int, rng: Rng
) -> list[npt.NDArray[np.generic]]:
    """The same random window of several planes ``[H,W,...]``, each with its own fill value."""
    height, width = planes[0][0].shape[:2]
    y, top, rows = crop_window(height, crop, rng)
    x, left, columns = crop_window(width, crop, rng)
    crops = []
    for plane, fill in planes:
        canvas = np.full((crop, crop, *plane.shape[2:]), fill, plane.dtype)
        canvas[top : top + rows, left : left + columns] = plane[y : y + rows, x : x + columns]
        crops.append(canvas)
    return crops


def to_tensor(image: Array) -> torch.Tensor:
    """``[H,W,3]`` to ``[3,H,W]`` without a copy: the memory stays channels-last, as the networks
    want it.
    """
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def flipped(images: list[Image.Image], rng: Rng, upright: bool) -> list[Image.Image]:
    """The images, all of them mirrored at random; from top to bottom too if they have no up."""
    ways = [Image.Transpose.FLIP_LEFT_RIGHT]
    if not upright:
        ways.append(Image.Transpose.FLIP_TOP_BOTTOM)
    for way in ways:
        if rng.random() < 0.5:
            images = [image.transpose(way) for image in images]
    return images


def classify_planes(
    pixels: npt.NDArray[np.uint8],
    ids: list[npt.NDArray[np.uint16]],
    rng: Rng,
    resize: tuple[int, int],
    crop: int,
    jitter: bool,
    upright: bool = True,
) -> tuple[torch.Tensor, list[npt.NDArray[np.generic]]]:
    """Training view of one image: resize-long, flip, jitter, normalise, crop -> ``float32
    [3,crop,crop]``.

    With it the planes of ids that follow the image (nearest), ``[crop,crop]``, 0 outside of it.
    """
    image = resize_long(Image.fromarray(pixels), int(rng.integers(resize[0], resize[1] + 1)))
    planes = [Image.fromarray(plane).resize(image.size, Image.Resampling.NEAREST) for plane in ids]
    image, *planes = flipped([image, *planes], rng, upright)
    if jitter:
        image = color_jitter(image, rng)
    view, *cut = random_crops(
        [(normalise(image), 0.0), *((np.asarray(plane), 0) for plane in planes)], crop, rng
    )
    return to_tensor(view.astype(np.float32, copy=False)), cut


def segment_sample(
    pixels: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.uint8],
    rng: Rng,
    scale: tuple[float, float],
    crop: int,
    jitter: bool,
    upright: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Training view of an image and its mask: flip, scale (bicubic, nearest), jitter, normalise,
    crop (0, 255).

    Returns:
        image ``float32 [3,crop,crop]`` and label ``uint8 [crop,crop]``.
    """
    factor = float(rng.uniform(*scale))
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    label = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    image, label = flipped([image, label], rng, upright)
    if jitter:
        image = color_jitter(image, rng)
    planes: list[tuple[npt.NDArray[np.generic], float]] = [
        (normalise(image), 0.0),
        (np.asarray(label), 255),
    ]
    cut_image, cut_label = random_crops(planes, crop, rng)
    return to_tensor(cut_image.astype(np.float32, copy=False)), torch.from_numpy(
        cut_label.astype(np.uint8, copy=False)
    )
