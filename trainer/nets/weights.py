"""Pretrained weights: load them into a backbone, find, fetch and import their files."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import ConfigError, WeightsError, nearest
from trainer.nets import BACKBONES, build_backbone

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.nets.checkpoints import Checkpoint

RESNET38_FILE = "ilsvrc-cls_rna-a1_cls1000_ep-0001.params"
MISSING_SHARE = 0.1
TIMEOUT_SECONDS = 30
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What ``load_backbone`` did. ``print`` it: one line, two when something was missing or left over.

    Attributes:
        path: the file.
        sha256: of the file, hexadecimal.
        kind: ``torchvision``, ``released WSSS checkpoint``, ``wsss run``, ``MXNet`` or ``state dict``.
        supervision: ``ImageNet tags``, ``image tags``, ``masks``, ``COCO masks``, ``unknown``, or as said at import.
        loaded: names of the module that got a value.
        missing: names of the module that the file does not have; they keep the values they had.
        unexpected: names of the file that the module does not have, such as its old head.
    """

    path: Path
    sha256: str
    kind: str
    supervision: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing)
        about = f"{self.kind}, supervision: {self.supervision}, sha256 {self.sha256[:12]}"
        line = f"{self.path.name}: loaded {len(self.loaded)} of {total} tensors ({about})"
        rest = []
        if self.missing:
            rest.append(f"MISSING, still random: {_some(self.missing)}")
        if self.unexpected:
            rest.append(f"not used: {_some(self.unexpected)}")
        return "\n".join([line, "  " + "; ".join(rest)]) if rest else line


@dataclass(frozen=True)
class StoredWeights:
    """The weights of one backbone in the cache, or how to get them.

    Attributes:
        backbone: name for ``build_backbone``.
        file_name: the file that is fetched or has to be brought.
        url: where it is fetched from; None when it can only be imported.
        path: the cached file, or None.
        sha256: of the cached file, or None.
        source: where the cached file came from, or None.
        supervision: what trained it.
    """

    backbone: str
    file_name: str
    url: str | None
    path: Path | None
    sha256: str | None
    source: str | None
    supervision: str


def load_backbone(module: nn.Module, path: Path | str) -> LoadReport:
    """Copy the weights of a file into ``module``, offline.

    Reads torchvision ``.pth`` files, released WSSS checkpoints (spec methods 4.2 and 5, whatever prefix their names
    carry) and MXNet ``.params`` (4.4). Heads and counters of batch norm are left out. Nothing is changed on error.

    Raises:
        WeightsError: not a weight file, or of another network; says which one it looks like.
    """
    from trainer.nets.checkpoints import best_prefix, read_checkpoint

    path = Path(path)
    checkpoint = read_checkpoint(path)
    wanted = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith(COUNTER)}
    prefix = best_prefix(checkpoint.tensors, wanted)
    given = {n.removeprefix(prefix): t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}
    loaded = {name: given[name] for name in wanted if name in given}
    missing = tuple(name for name in wanted if name not in given)
    _check_fit(path, checkpoint, wanted, loaded, missing)
    module.load_state_dict(loaded, strict=False)
    sha256 = file_sha256(path)
    return LoadReport(
        path=path,
        sha256=sha256,
        kind=checkpoint.kind,
        supervision=_sidecar(path, sha256).get("supervision", checkpoint.supervision),
        loaded=tuple(loaded),
        missing=missing,
        unexpected=tuple(
            name
            for name in checkpoint.tensors
            if not name.endswith(COUNTER) and not (name.startswith(prefix) and name.removeprefix(prefix) in wanted)
        ),
    )


def find_weights(backbone: str, path: Path | str | None = None, cache_dir: Path | None = None) -> Path:
    """The weight file to use: ``path`` when given, else the cached one, else torchvision's, fetched once.

    Args:
        backbone: name for ``build_backbone``.
        path: a file of the user's.
        cache_dir: instead of ``$WSSS_CACHE/weights`` or ``~/.cache/wsss/weights``.

    Raises:
        ConfigError: unknown backbone.
        WeightsError: no such file, or nothing cached and no way to fetch it; says which file to bring and how.
    """
    _check_name(backbone)
    if path is not None:
        if not Path(path).is_file():
            raise WeightsError(f"{path} is not a file", f"a weight file for {backbone}", "wsss-trainer weights list")
        return Path(path)
    folder = cache_dir or cache_folder()
    cached = folder / f"{backbone}.weights"
    if not cached.is_file():
        fetch_weights(backbone, folder)
    return cached


def list_weights(cache_dir: Path | None = None) -> list[StoredWeights]:
    """One entry a backbone, cached or not."""
    return [_stored(backbone, cache_dir or cache_folder()) for backbone in BACKBONES]


def fetch_weights(name: str, cache_dir: Path | None = None) -> StoredWeights:
    """Bring torchvision's ImageNet file (V1) of backbone ``name`` into the cache, if need be from torch's own cache.

    Raises:
        ConfigError: unknown backbone.
        WeightsError: there is no public file, no network, or another file came; says which file to bring and how.
    """
    _check_name(name)
    folder = cache_dir or cache_folder()
    url = _url(name)
    if url is None:
        raise WeightsError(
            f"there are no weights for {name} in {folder}, and none that can be fetched",
            f"{RESNET38_FILE} (ImageNet, MXNet) or a released WSSS checkpoint such as res38_cls.pth",
            f"bring one of them, then: wsss-trainer weights import FILE --as {name}",
        )
    from torch import hub

    in_torch_cache = Path(hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if in_torch_cache.is_file() and file_sha256(in_torch_cache).startswith(_sha_prefix(url)):
        return import_weights(in_torch_cache, name, folder)
    with _writing(folder), tempfile.TemporaryDirectory(dir=folder) as temporary:
        file = Path(temporary) / url.rsplit("/", 1)[-1]
        _download(url, file, name)
        return import_weights(file, name, folder, source=url)


def import_weights(
    file: Path | str,
    name: str,
    cache_dir: Path | None = None,
    supervision: str | None = None,
    source: str | None = None,
) -> StoredWeights:
    """Check that ``file`` fits backbone ``name``, and copy it into the cache with a JSON file beside it.

    Args:
        file: anything that ``load_backbone`` reads.
        name: name for ``build_backbone``.
        cache_dir: see ``find_weights``.
        supervision: what trained the weights, when the file does not tell.
        source: where the file came from; the file itself by default.

    Raises:
        ConfigError: unknown backbone.
        WeightsError: the file does not fit or cannot be stored.
    """
    _check_name(name)
    folder = cache_dir or cache_folder()
    report = load_backbone(build_backbone(name), file)
    sidecar = {
        "backbone": name,
        "sha256": report.sha256,
        "source": source or str(Path(file).resolve()),
        "supervision": supervision or report.supervision,
        "kind": report.kind,
        "imported": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with _writing(folder), tempfile.TemporaryDirectory(dir=folder) as temporary:
        copy, description = Path(temporary) / "weights", Path(temporary) / "json"
        shutil.copyfile(file, copy)
        description.write_text(json.dumps(sidecar, indent=1) + "\n")
        copy.replace(folder / f"{name}.weights")
        description.replace(folder / f"{name}.json")
    return _stored(name, folder)


def cache_folder() -> Path:
    """``$WSSS_CACHE/weights``, else ``wsss/weights`` in the user's cache folder."""
    if root := os.environ.get("WSSS_CACHE"):
        return Path(root).expanduser() / "weights"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wsss" / "weights"


def _check_fit(
    path: Path,
    checkpoint: Checkpoint,
    wanted: dict[str, Tensor],
    loaded: dict[str, Tensor],
    missing: tuple[str, ...],
) -> None:
    """Refuse a file of another network: small ones can be contained in large ones, so names alone do not tell."""
    from trainer.nets.checkpoints import architecture

    seen, own = architecture(checkpoint.tensors), architecture(wanted)
    reshaped = [name for name in loaded if loaded[name].shape != wanted[name].shape]
    other = seen is not None and own is not None and seen != own
    if not (other or reshaped or len(missing) > MISSING_SHARE * len(wanted)):
        return
    if other:
        reason = f"this looks like {seen}"
    elif reshaped:
        name = reshaped[0]
        reason = f"{name} has shape {tuple(loaded[name].shape)} instead of {tuple(wanted[name].shape)}"
    else:
        reason = f"{len(missing)} of {len(wanted)} tensors are missing, such as {missing[0]}"
        reason += f"; it holds {_some(tuple(checkpoint.tensors))}"
    first = next(iter(wanted))
    raise WeightsError(
        f"{path} does not fit: {reason}",
        f"weights of {own or 'the network'}: {len(wanted)} tensors such as {first} {tuple(wanted[first].shape)}",
        "choose the backbone that the file is for, or see wsss-trainer weights list",
    )


def _some(names: tuple[str, ...], limit: int = 4) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _check_name(name: str) -> None:
    if name not in BACKBONES:
        raise ConfigError(f"unknown backbone {name!r}", nearest(name, BACKBONES), "use one of these names")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sidecar(path: Path, sha256: str) -> dict[str, Any]:
    """What was noted when ``path`` was imported, or nothing when it was not or is another file by now."""
    try:
        noted = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) and noted.get("sha256") == sha256 else {}


def _stored(backbone: str, folder: Path) -> StoredWeights:
    url = _url(backbone)
    path = folder / f"{backbone}.weights"
    sha256 = file_sha256(path) if path.is_file() else None
    noted = _sidecar(path, sha256) if sha256 else {}
    return StoredWeights(
        backbone=backbone,
        file_name=url.rsplit("/", 1)[-1] if url else RESNET38_FILE,
        url=url,
        path=path if sha256 else None,
        sha256=sha256,
        source=noted.get("source"),
        supervision=noted.get("supervision", "unknown" if sha256 else "ImageNet tags"),
    )


def _url(backbone: str) -> str | None:
    """Where torchvision keeps its first ImageNet weights; the second ones were trained with other recipes."""
    if backbone == "resnet38":
        return None
    from torchvision.models import get_model_weights

    return str(get_model_weights(backbone).IMAGENET1K_V1.url)


def _sha_prefix(url: str) -> str:
    """The start of the checksum that torchvision puts into its file names."""
    match = re.search(r"-([0-9a-f]{8,})\.", url)
    return match[1] if match else ""


def _download(url: str, target: Path, backbone: str) -> None:
    """Fetch ``url`` into ``target`` with a progress bar, and check it."""
    import urllib.request

    from rich.progress import wrap_file

    file_name = url.rsplit("/", 1)[-1]
    bring = (
        f"{file_name} (torchvision's ImageNet weights of {backbone}, from {url}), or another file for this network",
        f"bring it by other means, then: wsss-trainer weights import FILE --as {backbone}",
    )
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, target.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            with wrap_file(response, size, description=file_name, transient=True) as reader:
                shutil.copyfileobj(reader, file)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"no network? {file_name} could not be fetched: {error}", *bring) from error
    sha256, prefix = file_sha256(target), _sha_prefix(url)
    if not sha256.startswith(prefix):
        raise WeightsError(f"{url} gave another file: its sha256 is {sha256}, not {prefix}...", *bring)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make ``folder``, and turn a failure to write there into a user error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise WeightsError(
            f"cannot write to the weight cache {folder}: {error.strerror or error}",
            "a folder with space that may be written",
            "set WSSS_CACHE to another folder",
        ) from error
