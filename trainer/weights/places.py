"""Where the public weights of a network are: in Python packages and in the caches of other
libraries on this machine, and on the network.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from trainer.files import file_sha256
from trainer.nets.backbone import Traits


@dataclass(frozen=True)
class LocalFile:
    """A weight file on this machine that is not in our cache.

    Attributes:
        path: of the file.
        place: ``package``, ``torch hub`` or ``Hugging Face cache``.
        source: the package and its version, or the path.
    """

    path: Path
    place: str
    source: str


def local_file(traits: Traits) -> LocalFile | None:
    """The public weights of a network, where this machine has them; packages go first."""
    return packaged(traits.package) or _in_torch_hub(traits) or _in_hugging_face_cache(traits)


def packaged(package: str) -> LocalFile | None:
    """The weight file in an installed Python package. No code of the package runs."""
    try:
        distribution = metadata.distribution(package) if package else None
    except metadata.PackageNotFoundError:
        return None
    for file in (distribution and distribution.files) or ():
        path = Path(str(file.locate()))
        if path.suffix == ".pth" and path.is_file():
            return LocalFile(path, "package", f"{package} {file.dist.version}")
    return None


def url_of(traits: Traits) -> str | None:
    """Where the weights are fetched from: torchvision's first ones, because the second ones were
    trained with other recipes, or timm's. None where there are none.
    """
    if traits.torchvision:
        from torchvision.models import get_model_weights

        return str(get_model_weights(traits.torchvision).IMAGENET1K_V1.url)
    repository, file = hugging_face_file(traits)
    if not repository:
        return None
    place = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return f"{place}/{repository}/resolve/main/{file}"


def sha_prefix(url: str) -> str:
    """The start of the checksum that torchvision puts into its file names."""
    match = re.search(r"-([0-9a-f]{8,})\.", url)
    return match[1] if match else ""


def hugging_face_file(traits: Traits) -> tuple[str, str]:
    """The repository of timm's weights and the file in it; empty where the network has none."""
    if not traits.timm:
        return "", ""
    import timm

    about = timm.get_pretrained_cfg(traits.timm)
    if about is None or not about.hf_hub_id:
        return "", ""
    return about.hf_hub_id, about.hf_hub_filename or traits.file


def hugging_face_names() -> list[str]:
    """Networks of timm in the cache of Hugging Face, as ``timm/NAME``."""
    import timm
    from huggingface_hub import constants

    start = "models--timm--"
    names = [
        folder.name.removeprefix(start)
        for folder in sorted(Path(constants.HF_HUB_CACHE).glob(start + "*"))
    ]
    return [f"timm/{name}" for name in names if timm.is_model(name)]


def licence(traits: Traits) -> str | None:
    """The licence of the weights, where timm says it."""
    if not traits.timm:
        return None
    import timm

    about = timm.get_pretrained_cfg(traits.timm)
    return about.license if about else None


def _in_torch_hub(traits: Traits) -> LocalFile | None:
    if not traits.torchvision or not (url := url_of(traits)):
        return None
    from torch import hub

    path = Path(hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    prefix = sha_prefix(url)
    if prefix and path.is_file() and file_sha256(path).startswith(prefix):
        return LocalFile(path, "torch hub", str(path))
    return None


def _in_hugging_face_cache(traits: Traits) -> LocalFile | None:
    repository, file = hugging_face_file(traits)
    if not repository:
        return None
    from huggingface_hub import constants, try_to_load_from_cache

    path = try_to_load_from_cache(repository, file, constants.HF_HUB_CACHE)
    if not isinstance(path, str):
        return None
    return LocalFile(Path(path), "Hugging Face cache", path)
