"""Image files in memory with the pixels that they stand for: the one table that both halves are
held to.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from image_files import chunk, flat_jpeg, jpeg_with_segments, png, scans_jpeg, tiff
from PIL import Image

HEIGHT, WIDTH = 11, 13
RNG = np.random.default_rng(7)
SOME = RNG.integers(0, 256, (HEIGHT, WIDTH, 4)).astype(np.uint8)
DEEP = RNG.integers(0, 65536, (HEIGHT, WIDTH, 4)).astype(np.uint16)
# Smooth, so that no two decoders of a lossy format differ much.
SLOPE = (np.add.outer(np.arange(HEIGHT), np.arange(WIDTH))[..., None] * 4 + [20, 60, 90]).astype(
    np.uint8
)


@dataclass(frozen=True)
class Case:
    """A file.

    Attributes:
        data: its bytes.
        pixels: uint8 [H,W,3] that it stands for; None if it is refused.
        refused: a part of the text that says why.
        off: by how many levels a pixel may be off.
    """

    data: bytes
    pixels: npt.NDArray[np.uint8] | None
    refused: str = ""
    off: int = 0


def grey(samples: Any) -> Any:
    return np.repeat(np.asarray(samples, np.uint8)[..., None], 3, axis=2)


def levels(samples: Any, top: int) -> Any:
    """Samples of 0 to ``top`` as 0 to 255, rounded down."""
    return (np.asarray(samples).astype(np.int64) * 255 // top).astype(np.uint8)


def on_white(colours: Any, alpha: Any) -> Any:
    share = alpha[..., None].astype(float) / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def of_png() -> Iterator[tuple[str, Case]]:
    palette = RNG.integers(0, 256, (256, 3)).astype(np.uint8)
    for interlace in (False, True):
        name = " interlaced" if interlace else ""
        for bits in (1, 2, 4, 8, 16):
            top = 2**bits - 1
            values = DEEP[..., 0] >> (16 - bits)
            flat = grey(levels(values, top))
            key = int(values[3, 4])
            clear = np.where((values == key)[..., None], np.uint8(255), flat)
            trns = chunk(b"tRNS", struct.pack(">H", key))
            yield f"grey {bits}{name}", Case(png(values, bits, 0, interlace=interlace), flat)
            yield (
                f"grey {bits} with a clear grey{name}",
                Case(png(values, bits, 0, trns, interlace=interlace), clear),
            )
            if bits <= 8:
                alphas = RNG.integers(0, 256, top + 1).astype(np.uint8)
                short = chunk(b"PLTE", palette[: top + 1].tobytes())
                shown = palette[values]
                yield (
                    f"palette {bits}{name}",
                    Case(png(values, bits, 3, short, interlace=interlace), shown),
                )
                clears = chunk(b"tRNS", alphas.tobytes())
                yield (
                    f"palette {bits} with alpha{name}",
                    Case(
                        png(values, bits, 3, short, clears, interlace=interlace),
                        on_white(shown, alphas[values]),
                    ),
                )
        for bits in (8, 16):
            top = 2**bits - 1
            values = DEEP >> (16 - bits)
            eight = levels(values, top)
            key = values[2, 2, :3]
            trns = chunk(b"tRNS", struct.pack(">3H", *key.tolist()))
            clear = eight[..., :3].copy()
            clear[(values[..., :3] == key).all(axis=2)] = 255
            colours = values[..., :3]
            yield (
                f"RGB {bits}{name}",
                Case(png(colours, bits, 2, interlace=interlace), eight[..., :3]),
            )
            yield (
                f"RGB {bits} with a clear colour{name}",
                Case(png(colours, bits, 2, trns, interlace=interlace), clear),
            )
            yield (
                f"RGBA {bits}{name}",
                Case(
                    png(values, bits, 6, interlace=interlace),
                    on_white(eight[..., :3], eight[..., 3]),
                    off=1,
                ),
            )
            yield (
                f"grey and alpha {bits}{name}",
                Case(
                    png(values[..., :2], bits, 4, interlace=interlace),
                    on_white(grey(eight[..., 0]), eight[..., 1]),
                    off=1,
                ),
            )
    yield "many levels of 16 are few", Case(png([[40, 200]], 16, 0), grey([[0, 0]]))
    yield "one more level changes nothing", Case(png([[40, 300]], 16, 0), grey([[0, 1]]))
    big = zlib.compress(RNG.bytes(1_200_000), 1)
    rgb, flat = SOME[..., :3], SOME[..., :3]
    for name, extra in {
        "large profile": chunk(b"iCCP", b"p\0\0" + big),
        "large compressed text": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))),
        "large international text": chunk(
            b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(3_000_000))
        ),
        "text with a wrong checksum": chunk(b"tEXt", b"k\0text", 1),
        "clear colour with a wrong checksum": chunk(b"tRNS", bytes(6), 1),
        "damaged EXIF": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        "gamma": chunk(b"gAMA", struct.pack(">I", 100_000)),
        "significant bits": chunk(b"sBIT", bytes([5, 6, 5])),
        "unknown chunk": chunk(b"prVt", b"what"),
    }.items():
        yield name, Case(png(rgb, 8, 2, extra), flat)
    yield "pixels in many chunks", Case(png(rgb, 8, 2, parts=200), flat)
    yield "too many chunks", Case(png(rgb, 8, 2, chunk(b"tEXt", b"") * 100_001), None, "chunks")
    yield "PNG of Apple", Case(png(rgb, 8, 2, chunk(b"CgBI", bytes(4))), None, "CgBI")
    yield "cut off", Case(png(rgb, 8, 2)[:-40], None, "cannot be decoded|truncated")


def of_tiff() -> Iterator[tuple[str, Case]]:
    rgb8, rgb16 = SOME[..., :3], DEEP[..., :3]
    for order in "<>":
        for deflate in (False, True):
            name = f" {'big' if order == '>' else 'little'}-endian{' deflated' if deflate else ''}"
            made = {"order": order, "deflate": deflate}
            grey16 = DEEP[..., 0]
            yield f"grey 16{name}", Case(tiff(grey16, **made), grey(levels(grey16, 65535)))
            yield f"RGB 8{name}", Case(tiff(rgb8, **made), rgb8)
            yield f"RGB 8 in planes{name}", Case(tiff(rgb8, planar=True, **made), rgb8)
            yield f"RGB 16{name}", Case(tiff(rgb16, **made), levels(rgb16, 65535))
            yield (
                f"RGB 16 in planes{name}",
                Case(tiff(rgb16, planar=True, **made), levels(rgb16, 65535), off=1),
            )
            yield (
                f"RGBA 16{name}",
                Case(
                    tiff(DEEP, **made),
                    on_white(levels(rgb16, 65535), levels(DEEP[..., 3], 65535)),
                    off=1,
                ),
            )
            floats = (SOME[..., 0] / np.float32(255)).astype(np.float32)
            yield f"float 0..1{name}", Case(tiff(floats, **made), grey(SOME[..., 0]))
            yield (
                f"float with a stated range{name}",
                Case(
                    tiff(SOME[..., 0] * np.float32(16), tags=[(341, "f", [4095.0])], **made),
                    grey(levels(SOME[..., 0].astype(int) * 16, 4095)),
                ),
            )
            yield f"float 0..4000{name}", Case(tiff(floats * 4000, **made), None, "samples of")
            yield f"float -1..1{name}", Case(tiff(floats * 2 - 1, **made), None, "samples of")
            signed = (DEEP[..., 0] >> 4).astype(np.int16)
            yield f"signed 16{name}", Case(tiff(signed, **made), None, "signed integers of 16 bits")
            yield (
                f"signed 16 with a stated range{name}",
                Case(tiff(signed, tags=[(341, "h", [4095])], **made), grey(levels(signed, 4095))),
            )
            yield (
                f"12 bits in 16{name}",
                Case(tiff(grey16 >> 4, **made), grey(levels(grey16 >> 4, 65535))),
            )
            yield (
                f"12 bits in 16, stated{name}",
                Case(
                    tiff(grey16 >> 4, tags=[(281, "H", [4095])], **made),
                    grey(levels(grey16 >> 4, 4095)),
                ),
            )
            yield (
                f"12 bits in 16, stated, RGB{name}",
                Case(
                    tiff(rgb16 >> 4, tags=[(281, "H", [4095] * 3)], **made),
                    levels(rgb16 >> 4, 4095),
                ),
            )
            yield (
                f"statistics are no range{name}",
                Case(
                    tiff(grey16, tags=[(281, "H", [int(grey16.max()) & ~1])], **made),
                    grey(levels(grey16, 65535)),
                ),
            )
            for kind in (np.uint32, np.int32, np.float64, np.float16, np.int8):
                yield (
                    f"{np.dtype(kind)}{name}",
                    Case(tiff((SOME[..., 0] // 2).astype(kind), **made), None, "a TIFF of"),
                )
        yield f"BigTIFF {order}", Case(tiff(rgb8, big=True, order="<"), rgb8)
        yield f"tiled {order}", Case(tiff(rgb8, tile=16, order=order), rgb8)
        yield (
            f"tiled 16 {order}",
            Case(tiff(DEEP[..., 0], tile=16, order=order), grey(levels(DEEP[..., 0], 65535))),
        )
    yield "white is 0", Case(tiff(SOME[..., 0], white_is_zero=True), grey(255 - SOME[..., 0]))
    yield (
        "white is 0, 16 bits",
        Case(tiff(DEEP[..., 0], white_is_zero=True), grey(255 - levels(DEEP[..., 0], 65535))),
    )
    yield "NaN", Case(tiff(np.full((4, 4), np.nan, np.float32)), None, "samples of")
    twelve = np.array([[0, 1, 2048, 4095]], np.uint16)
    packed = bytes.fromhex("000001800fff")
    yield (
        "12 bits packed",
        Case(tiff(twelve, bits=12, body=packed), grey(levels(twelve, 4095))),
    )
    image = Image.fromarray(SOME[..., :3])
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate"):
        yield compression, Case(saved(image, "TIFF", compression=compression), SOME[..., :3])
    pages = saved(image, "TIFF", save_all=True, append_images=[image.rotate(180)])
    yield "the first of two pages", Case(pages, SOME[..., :3])


def of_jpeg() -> Iterator[tuple[str, Case]]:
    image = Image.fromarray(SLOPE)
    for subsampling in (0, 1, 2):
        for progressive in (False, True):
            data = saved(
                image, "JPEG", quality=98, subsampling=subsampling, progressive=progressive
            )
            yield f"sampling {subsampling}, progressive {progressive}", Case(data, SLOPE, off=9)
    yield (
        "grey JPEG",
        Case(saved(image.convert("L"), "JPEG", quality=98), grey(image.convert("L")), off=4),
    )
    yield "CMYK", Case(saved(image.convert("CMYK"), "JPEG", quality=99), SLOPE, off=9)
    for sampling in (
        ((4, 2), (1, 1), (1, 1)),
        ((1, 4), (1, 1), (1, 1)),
        ((3, 1), (1, 1), (1, 1)),
        ((3, 2), (1, 1), (1, 1)),
        ((2, 2), (2, 1), (1, 1)),
        ((1, 2), (1, 1), (1, 1)),
        ((4, 1), (1, 1), (1, 1)),
        ((2, 1), (1, 2), (1, 1)),
        ((1, 1), (1, 1), (1, 1)),
    ):
        flat = np.full((20, 30, 3), [166, 118, 80], np.uint8)
        name = ",".join(f"{h}x{v}" for h, v in sampling)
        yield f"sampling {name}", Case(flat_jpeg((128, 100, 155), sampling, 20, 30), flat, off=2)
    many = jpeg_with_segments(100_001)
    yield "too many segments", Case(many, None, "segments")
    yield "several scans", Case(scans_jpeg(16, 16, 30), grey(np.full((16, 16), 128)))
    yield "30,000 scans", Case(scans_jpeg(300, 300, 30_000), None, "scans or more of")
    yield "cut JPEG", Case(saved(image, "JPEG")[:-60], None, "truncated|cannot be decoded")


def turned() -> Iterator[tuple[str, Case]]:
    steps = (
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1],
        lambda a: a[::-1],
        lambda a: a.transpose(1, 0, 2),
        lambda a: a.transpose(1, 0, 2)[:, ::-1],
        lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        lambda a: a.transpose(1, 0, 2)[::-1],
    )
    for orientation, step in enumerate(steps, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(SLOPE)
        upright = np.ascontiguousarray(step(SLOPE))
        for kind, options, off in (
            ("PNG", {}, 0),
            ("TIFF", {}, 0),
            ("WEBP", {"lossless": True}, 0),
            ("JPEG", {"quality": 98, "subsampling": 0}, 9),
        ):
            data = saved(image, kind, exif=exif, **options)
            yield f"{kind} turned {orientation}", Case(data, upright, off=off)
        deep = tiff(SLOPE.astype(np.uint16) * 257, tags=[(274, "H", [orientation])])
        yield f"16-bit TIFF turned {orientation}", Case(deep, upright)


def others() -> Iterator[tuple[str, Case]]:
    image = Image.fromarray(SOME[..., :3])
    yield "WebP", Case(saved(image, "WEBP", lossless=True), SOME[..., :3])
    alpha = Image.fromarray(SOME, "RGBA")
    clear = on_white(SOME[..., :3], SOME[..., 3])
    yield "WebP with alpha", Case(saved(alpha, "WEBP", lossless=True, exact=True), clear, off=1)
    frames = saved(image, "WEBP", lossless=True, save_all=True, append_images=[image.rotate(180)])
    yield "moving WebP", Case(frames, SOME[..., :3])
    yield "BMP", Case(saved(image, "BMP"), SOME[..., :3])
    yield "grey BMP", Case(saved(image.getchannel(0), "BMP"), grey(SOME[..., 0]))
    black = Image.fromarray(SOME[..., 0] > 127)
    yield "black and white BMP", Case(saved(black, "BMP"), grey((SOME[..., 0] > 127) * 255))


def no_images() -> Iterator[tuple[str, Case]]:
    image = Image.fromarray(SOME[..., :3])
    jpeg = saved(image, "JPEG")
    box = struct.pack(">I", 24) + b"ftyp"
    for name, data, refused in (
        ("GIF", saved(image, "GIF"), "a GIF, which is not read"),
        ("HEIC", box + b"heic" + bytes(30), "a HEIC, which is not read"),
        ("AVIF", box + b"avif" + bytes(30), "a AVIF, which is not read"),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30), "a JPEG 2000, which is not read"),
        ("HTML", b"\n<!DOCTYPE html><html>", "an HTML page"),
        ("JSON", b'{"error": "no"}', "a JSON text"),
        (
            "LFS",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "a pointer of Git LFS",
        ),
        ("base64", base64.b64encode(jpeg), "base64 text"),
        ("data URL", b"data:image/jpeg;base64," + base64.b64encode(jpeg), "base64 text"),
        ("zeros", bytes(100), "zeros only"),
        ("empty", b"", "empty"),
        ("text", b"I am no JPEG", "no image but a text"),
        ("noise", b"\x07\x99\x80\xf0\x01" * 5, "no image: it starts with"),
    ):
        yield name, Case(data, None, refused)


CASES: dict[str, Case] = {
    f"{source.__name__}: {name}": case
    for source in (of_png, of_tiff, of_jpeg, turned, others, no_images)
    for name, case in source()
}
