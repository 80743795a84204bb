"""What a file is that holds no weights which can be read here, by its first bytes."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from trainer.errors import WeightsError

EXPECTED = "a weight file: PyTorch (.pth), .safetensors or MXNet (.params)"
AGAIN = "download or copy the file again"
UNPACK = "unpack it, and give the weight file in it"
SAVE = "torch.save(model.state_dict(), FILE)"

STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"<", "a web page: the download went to a page instead of the file", AGAIN),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "git lfs pull"),
    (b"\x1f\x8b", "a gzip archive (.gz)", UNPACK),
    (b"bzh", "a bzip2 archive (.bz2)", UNPACK),
    (b"\xfd7zxz", "an xz archive (.xz)", UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (b"rar!", "a RAR archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive (.zst)", UNPACK),
    (b"\x89hdf", "an HDF5 file, as Keras writes them (.h5)", "weights in PyTorch's format"),
    (b"\x93numpy", "a NumPy array (.npy)", SAVE),
    (b"gguf", "a GGUF file", "weights in PyTorch's format"),
    (b"%pdf", "a PDF", AGAIN),
    (b"{", "JSON text: a message of the server, or an index of other files", AGAIN),
    (b"[", "JSON text", AGAIN),
)
"""Beginning of the file in lower case, without white space before it; what that is; what to do."""


def not_weights(path: Path) -> WeightsError:
    """The error for a file that no reader takes, naming what it is as far as its bytes tell."""
    kind, hint = _kind(path)
    return WeightsError(f"{path} is {kind}", EXPECTED, hint)


def _kind(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "empty: truncated, damaged or not a weight file", AGAIN
    text = start.lstrip().lower()
    for beginning, kind, hint in STARTS:
        if text.startswith(beginning):
            return kind, hint
    if start.startswith(b"PK") and (kind := _of_zip(path)):
        return kind, SAVE if "NumPy" in kind else UNPACK
    # A tar file has its mark in the middle of its first header.
    if start[257:262] == b"ustar" or (path.suffix == ".tar" and tarfile.is_tarfile(path)):
        return "a tar archive", UNPACK
    # An ONNX file begins with its version, protobuf field 1, whose tag is 8.
    if start[:1] == b"\x08" and (b"pytorch" in start or b"onnx" in start or _says_onnx(path)):
        return "an ONNX graph", "the PyTorch weights that it was exported from"
    return "truncated, damaged or not a weight file", AGAIN


def _of_zip(path: Path) -> str:
    """What a zip archive is, or nothing where it is damaged or PyTorch's own."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return ""
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)"
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return ""
    held = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"a zip archive of {len(names)} files ({held})"


def _says_onnx(path: Path) -> bool:
    return path.suffix.lower() == ".onnx"
