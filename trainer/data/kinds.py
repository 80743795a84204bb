"""What kind of file some bytes are, by their start, and what to say about kinds that are not read.

See ``headers.py`` for the files that trainer and serving have in common.
"""

from __future__ import annotations

import re

READ = "a whole JPEG, PNG, WebP, BMP or TIFF"
HEAD_BYTES = 512
SAVE = "save it as PNG or JPEG"
# Brands of ISO base media files (ISO/IEC 14496-12).
BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"jp2 ", b"jpx "), "JPEG 2000"),
}
# Starts of other kinds of files, their names, and what to do.
OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"GIF8", "a GIF", SAVE),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000", SAVE),
    (b"\xff\x4f\xff\x51", "a JPEG 2000", SAVE),
    (b"\0\0\0\x0cJXL ", "a JPEG XL", SAVE),
    (b"\xff\x0a", "a JPEG XL", SAVE),
    (b"8BPS", "a Photoshop file", SAVE),
    (b"\x76\x2f\x31\x01", "an OpenEXR", SAVE),
    (b"#?RADIANCE", "a Radiance HDR", SAVE),
    (b"DDS ", "a DDS", SAVE),
    (b"\0\0\1\0", "an icon", SAVE),
    (b"qoif", "a QOI", SAVE),
    (b"SIMPLE  =", "a FITS", SAVE),
    (b"%PDF", "a PDF", SAVE),
    (b"\x93NUMPY", "a NumPy array", SAVE),
    (b"\x89HDF", "an HDF5 file", SAVE),
    (b"PK\3\4", "a ZIP archive", "unpack it"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"version https://git-lfs", "a pointer of Git LFS in place of the image", "git lfs pull"),
    (b"/annex/objects", "a pointer of git-annex in place of the image", "git annex get"),
)
NETPBM = re.compile(rb"P[1-7][\s#]")
# Starts of base64-encoded images of the supported kinds, and any long line of such characters.
BASE64 = re.compile(
    rb"(data:image/|/9j/|iVBORw|UklGR|SUkqA|TU0AK|[A-Za-z0-9+/]{76}\s|Qk[A-Za-z0-9])"
)
TEXT = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]*")


class Unreadable(Exception):
    """A file is not an image, or not of a kind that is read.

    Attributes:
        found: what it is.
        expected: what would be right.
        hint: what to do.
    """

    def __init__(self, found: str, expected: str = READ, hint: str = "") -> None:
        super().__init__(found)
        self.found, self.expected, self.hint = found, expected, hint


def kind_of(head: bytes) -> str:
    """JPEG, PNG, WEBP, TIFF or BMP, from the first ``HEAD_BYTES`` of a file.

    Raises:
        Unreadable: it is empty or of another kind, which is named.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head.startswith(b"BM"):
        return "BMP"
    raise _other(head)


def _other(head: bytes) -> Unreadable:
    """What an unsupported file is."""
    if not head:
        return Unreadable("the image is empty", hint="copy or download it again")
    if not head.strip(b"\0"):
        return Unreadable("the image starts with zeros only", hint="copy or download it again")
    if head[4:8] == b"ftyp":
        return Unreadable(
            f"a {BRANDS.get(head[8:12], 'video or HEIC')}, which is not read", hint=SAVE
        )
    if head[128:132] == b"DICM":
        return Unreadable("a DICOM, which is not read", hint=SAVE)
    for start, name, hint in OTHERS:
        if head.startswith(start):
            return Unreadable(f"{name}, which is not read", hint=hint)
    if NETPBM.match(head):
        return Unreadable("a PNM, which is not read", hint=SAVE)
    return _text(head) or Unreadable(
        f"no image: it starts with {head[:12]!r}", hint="look at the file's contents"
    )


def _text(head: bytes) -> Unreadable | None:
    """What a text file is; None for other bytes."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = start.lower()
    if b"<svg" in lower:
        return Unreadable("an SVG, which is not read", hint=SAVE)
    if lower.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return Unreadable("an HTML page in place of the image", hint="download it again")
    if lower.startswith(b"<?xml"):
        return Unreadable("an XML text in place of the image", hint="download it again")
    if lower.startswith((b"{", b"[")) and TEXT.fullmatch(start):
        return Unreadable("a JSON text in place of the image", hint="download it again")
    if BASE64.match(start):
        return Unreadable("base64 text in place of the image's bytes", hint="decode it: base64 -d")
    if TEXT.fullmatch(start) and start.isascii():
        return Unreadable(f"no image but a text: {start[:40].decode()!r}", hint="download it again")
    return None
