"""The cache of pretrained weights: find, list, fetch and import files, each with a note of where it
came from.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
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
from trainer.nets import BACKBONES, build_backbone, traits_of
from trainer.weights.loading import COUNTER, LoadReport, load_backbone, noted_beside
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
    """The weights of one network in the cache, or how to get them.

    Attributes:
        backbone: the network: one of ``NAMES``.
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


def find_weights(name: str, path: Path | str | None = None, cache_dir: Path | None = None) -> Path:
    """The weight file to use: ``path`` when given, else the cached one, else torchvision's, fetched
    once.

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
    file = _file(name, folder)
    if not file.is_file():
        fetch_weights(name, folder)
    return file


def list_weights(cache_dir: Path | None = None) -> list[StoredWeights]:
    """One entry a network, cached or not; of timm's networks only the cached ones."""
    folder = cache_dir or cache_folder()
    theirs = [
        noted_beside(path).get("backbone", "") for path in sorted(folder.glob("timm-*.weights"))
    ]
    return [_stored(name, folder) for name in (*NAMES, *filter(None, theirs))]


def fetch_weights(name: str, cache_dir: Path | None = None) -> StoredWeights:
    """Bring the public ImageNet file of network ``name`` into the cache: torchvision's first one,
    also from torch's own cache, or timm's.

    Raises:
        ConfigError: unknown network.
        WeightsError: there is no public file, no network, or another file came; says which file to
        bring and how.
    """
    _check_name(name)
    folder = cache_dir or cache_folder()
    url = _url(name)
    if url is None:
        raise WeightsError(
            f"there are no weights for {name} in {folder}, and none that can be fetched",
            *_bring(_traits(name).file, name),
        )
    from torch import hub

    in_torch_cache = Path(hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    prefix = _sha_prefix(url)
    if prefix and in_torch_cache.is_file() and file_sha256(in_torch_cache).startswith(prefix):
        return import_weights(in_torch_cache, name, folder)
    with _writing(folder), tempfile.TemporaryDirectory(dir=folder) as temporary:
        file = Path(temporary) / in_torch_cache.name
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

    Reads torchvision's files, the Caffe layout of deeplab-pytorch, MXNet's ``.params`` and released
    WSSS checkpoints. A file whose names are the network's already is copied as it is; others are
    converted, and heads that have no place kept.

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
    as_it_is = old == set(tensors) and checkpoint.kind not in ("MXNet", "wsss run")
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
        target = _file(name, folder)
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


def _file(name: str, folder: Path) -> Path:
    return folder / (name.replace("/", "-") + ".weights")


def _check_name(name: str) -> None:
    if name.startswith(TIMM):
        traits_of(name)
    elif name not in NAMES:
        raise ConfigError(
            f"unknown backbone {name!r}", nearest(name, NAMES), "use one of these names"
        )


def _stored(name: str, folder: Path) -> StoredWeights:
    url = _url(name)
    path = _file(name, folder)
    sha256 = file_sha256(path) if path.is_file() else None
    note: dict[str, Any] = noted_beside(path, sha256) if sha256 else {}
    return StoredWeights(
        backbone=name,
        file_name=url.rsplit("/", 1)[-1] if url else _traits(name).file,
        url=url,
        path=path if sha256 else None,
        sha256=sha256,
        source=note.get("source"),
        supervision=note.get("supervision", UNKNOWN if sha256 else "ImageNet tags"),
    )


def _url(name: str) -> str | None:
    """Where torchvision keeps its first ImageNet weights; the second ones were trained with other
    recipes.
    """
    traits = _traits(name)
    if traits.torchvision:
        from torchvision.models import get_model_weights

        return str(get_model_weights(traits.torchvision).IMAGENET1K_V1.url)
    return _timm_url(name.removeprefix(TIMM)) if name.startswith(TIMM) else None


def _timm_url(name: str) -> str | None:
    """Where timm's own weights are. Its files have no checksum in their names."""
    import timm

    about = timm.get_pretrained_cfg(name)
    if about is None or not about.hf_hub_id:
        return None
    place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    file = about.hf_hub_filename or traits_of(TIMM + name).file
    return f"{place}/{about.hf_hub_id}/resolve/main/{file}"


def _traits(name: str) -> Traits:
    return traits_of(SEGMENTERS.get(name, name))


def _sha_prefix(url: str) -> str:
    """The start of the checksum that torchvision puts into its file names."""
    match = re.search(r"-([0-9a-f]{8,})\.", url)
    return match[1] if match else ""


def _download(url: str, target: Path, backbone: str) -> None:
    """Fetch ``url`` into ``target`` with a progress bar, and check it."""
    from torch import hub

    prefix = _sha_prefix(url)
    bring = _bring(f"{target.name} (ImageNet weights of {backbone}, from {url})", backbone)
    patience = socket.getdefaulttimeout()
    # torch waits for ever by itself.
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        hub.download_url_to_file(url, str(target), prefix or None)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(
            f"no network? {target.name} could not be fetched: {error}", *bring
        ) from error
    except RuntimeError as error:
        raise WeightsError(f"{url} gave another file: {error}", *bring) from error
    finally:
        socket.setdefaulttimeout(patience)


def _bring(file: str, name: str) -> tuple[str, str]:
    return (
        f"{file}, or another file for this network",
        f"bring it by other means, then: wsss-trainer weights import FILE --as {name};"
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
