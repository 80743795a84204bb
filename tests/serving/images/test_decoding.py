from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
import simplejpeg
from claims import CLAIMS, png_header, save
from PIL import Image, ImageOps

from serving.errors import FieldError, ImageError, ImageTooLarge
from serving.images.decoding import Limits, decode, from_raw

LIMITS = Limits()


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (16_000, 16_000)])
@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_bomb_is_refused_before_memory_is_taken(claim, width, height):
    data = claim(width, height)
    assert len(data) < 4000
    tracemalloc.start()
    with pytest.raises(ImageTooLarge) as caught:
        decode(data, LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert f"{width * height:,}" in caught.value.found
    assert caught.value.metadata == {"max_image_pixels": "50000000"}


def test_the_bomb_of_30000_squared_takes_no_memory_from_the_system():
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageTooLarge):
        decode(png_header(30_000, 30_000), LIMITS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def tiled_tiff(tile: int) -> bytes:
    """A 16x16 grey TIFF that claims one uncompressed square tile of side ``tile``."""
    tags = [
        (256, 16),
        (257, 16),
        (258, 8),
        (259, 1),
        (262, 1),
        (277, 1),
        (322, tile),
        (323, tile),
        (324, 8),
        (325, 64),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0"
        + struct.pack("<I", 8)
        + struct.pack("<H", len(tags))
        + entries
        + struct.pack("<I", 0)
        + bytes(64)
    )


def test_a_tile_larger_than_the_image_is_refused():
    with pytest.raises(ImageTooLarge):
        decode(tiled_tiff(20_000), LIMITS)


def test_too_many_bytes_and_too_elongated():
    with pytest.raises(ImageTooLarge) as caught:
        decode(save(Image.new("RGB", (64, 64)), "PNG"), Limits(max_bytes=20))
    assert caught.value.metadata == {"max_image_bytes": "20"}
    with pytest.raises(ImageTooLarge, match="too elongated"):
        decode(save(Image.new("RGB", (101, 1)), "PNG"), LIMITS)
    assert decode(save(Image.new("RGB", (100, 1)), "PNG"), LIMITS).pixels.shape == (1, 100, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"this is text and not a JPEG",
        b"\xff\xd8\xff and then text",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x04\0\0\0WEBPVP8X",
        b"II*\0\xff\xff\xff\xff",
        b"BM\0",
        b"GIF89a",
    ],
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ImageError) as caught:
        decode(data, LIMITS)
    assert not isinstance(caught.value, ImageTooLarge)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_refused_and_whole_ones_read(format, pixels):
    data = save(Image.fromarray(pixels), format)
    picture = decode(data, LIMITS)
    assert picture.format == format
    assert picture.pixels.shape == pixels.shape
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode(data[: len(data) // 2], LIMITS)


def test_lossless_formats_keep_every_pixel(pixels):
    image = Image.fromarray(pixels)
    for data in (
        save(image, "PNG"),
        save(image, "BMP"),
        save(image, "TIFF"),
        save(image, "WEBP", lossless=True),
    ):
        np.testing.assert_array_equal(decode(data, LIMITS).pixels, pixels)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"quality": 30}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_fast_jpeg_path_gives_pillows_pixels(options, mode):
    smooth = np.add.outer(np.arange(123), 2 * np.arange(77))[..., None] + np.array([0, 40, 90])
    data = save(Image.fromarray((smooth % 256).astype(np.uint8)).convert(mode), "JPEG", **options)
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    found = decode(data, LIMITS)
    assert found.mode == mode
    assert np.abs(found.pixels.astype(int) - reference).max() <= 2


def test_cmyk_is_converted():
    image = Image.new("CMYK", (20, 10), (0, 255, 255, 0))
    picture = decode(save(image, "JPEG", quality=95), LIMITS)
    assert picture.mode == "CMYK"
    assert np.abs(picture.pixels.astype(int) - [255, 0, 0]).max() < 12


def test_sixteen_bit_is_scaled_and_grey_is_repeated():
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)
    for format in ("PNG", "TIFF"):
        picture = decode(save(Image.fromarray(deep), format), LIMITS)
        assert picture.mode.startswith("I;16")
        np.testing.assert_array_equal(picture.pixels[0, :, 0], [0, 1, 128, 255])
    grey = np.array([[0, 7, 255]], np.uint8)
    np.testing.assert_array_equal(
        decode(save(Image.fromarray(grey), "PNG"), LIMITS).pixels[..., 2], grey
    )


def test_palette_and_alpha():
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    np.testing.assert_array_equal(
        decode(save(palette, "PNG"), LIMITS).pixels, [[[10, 20, 30], [200, 100, 50]]]
    )
    with_hole = decode(save(palette, "PNG", transparency=0), LIMITS)
    np.testing.assert_array_equal(with_hole.pixels, [[[255, 255, 255], [200, 100, 50]]])
    alpha = Image.fromarray(np.array([[[0, 0, 0, 0], [9, 8, 7, 255]]], np.uint8), "RGBA")
    np.testing.assert_array_equal(
        decode(save(alpha, "PNG"), LIMITS).pixels, [[[255] * 3, [9, 8, 7]]]
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_exif_orientation_is_undone(orientation, format, pixels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = save(Image.fromarray(pixels), format, exif=exif, **options)
    picture = decode(data, LIMITS)
    reference = np.asarray(
        ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    ).astype(int)
    assert picture.orientation == orientation
    assert picture.pixels.shape == reference.shape
    assert np.abs(picture.pixels.astype(int) - reference).max() <= 2
    assert picture.pixels.flags.c_contiguous


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_spoil_a_good_picture(pixels):
    data = save(Image.fromarray(pixels), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(data, LIMITS).orientation == 1


def test_only_the_first_frame_is_read(pixels):
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    for format, options in {"TIFF": {}, "WEBP": {"lossless": True}, "PNG": {}}.items():
        data = save(frames[0], format, save_all=True, append_images=frames[1:], **options)
        picture = decode(data, LIMITS)
        assert picture.several_frames
        np.testing.assert_array_equal(picture.pixels, pixels)
    assert not decode(save(frames[0], "PNG"), LIMITS).several_frames


def test_a_jpeg_with_two_sizes_is_refused(pixels, monkeypatch):
    data = save(Image.fromarray(pixels), "JPEG")
    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda _: (9000, 9000, "YCbCr", "420"))
    with pytest.raises(ImageError, match="disagree"):
        decode(data, LIMITS)


def test_raw_pixels(pixels):
    height, width = pixels.shape[:2]
    np.testing.assert_array_equal(from_raw(pixels.tobytes(), height, width, LIMITS).pixels, pixels)
    with pytest.raises(FieldError, match="6 bytes"):
        from_raw(bytes(6), 2, 2, LIMITS)
    with pytest.raises(ImageTooLarge):
        from_raw(b"", 2**31, 2**31, LIMITS)
    with pytest.raises(ImageError, match="0x5"):
        from_raw(b"", 0, 5, LIMITS)
