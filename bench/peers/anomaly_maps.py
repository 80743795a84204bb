"""The peers' half of anomalib.py. It runs in their environment, where the trainer is not installed.

Fits a model of anomalib to images of one folder and writes the anomaly maps of those of another.

    ENVIRONMENT/bin/python -I bench/peers/anomaly_maps.py SETTINGS.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import normalize, resize

BATCH = 16


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(settings["seed"])
    about = timm.get_pretrained_cfg(settings["backbone"])
    assert about is not None
    model = patchcore(settings) if settings["model"] == "patchcore" else padim(settings)
    load(model.feature_extractor.feature_extractor, Path(settings["weights"]))
    started = time.monotonic()
    model.train()
    for number, (_, images) in enumerate(batches(settings["train"], about, settings)):
        model(images)
        print(f"features of {number * BATCH + len(images)} images", flush=True)
    if settings["model"] == "patchcore":
        patches = torch.vstack(model.embedding_store)
        model.embedding_store.clear()
        model.memory_bank = patches[coreset(patches, settings["coreset"])]
    else:
        model.fit()
    fitted = time.monotonic()
    out = Path(settings["out"])
    scores = write_maps(model.eval(), batches(settings["measured"], about, settings), out)
    seconds = {"fit": fitted - started, "maps": time.monotonic() - fitted}
    (out / "scores.json").write_text(json.dumps({"scores": scores, "seconds": seconds}))


def patchcore(settings: dict[str, Any]) -> PatchcoreModel:
    """Features at strides 8 and 16, as the paper takes them from a WideResNet."""
    return PatchcoreModel(layers=[2, 3], backbone=settings["backbone"], pre_trained=False)


def coreset(patches_NC: Tensor, share: float) -> list[int]:
    """Greedy choice as in anomalib: each patch is the farthest from those before it.

    anomalib first projects the patches at random. With as few features as here, that adds
    dimensions and noise, so distances are exact instead. One matrix-vector product a patch is all
    that reads the whole matrix, which is what takes the time.
    """
    norms = patches_NC.square().sum(1)
    nearest = torch.full_like(norms, torch.inf)
    place = int(torch.randint(len(norms), (1,)))
    places = []
    count = max(1, int(share * len(norms)))
    for number in range(count):
        places.append(place)
        distance = norms - 2 * (patches_NC @ patches_NC[place]) + norms[place]
        torch.minimum(nearest, distance, out=nearest)
        # Rounding leaves a small distance to itself.
        nearest[place] = -torch.inf
        place = int(nearest.argmax())
        if number % 500 == 0:
            print(f"coreset {number}/{count}", flush=True)
    return places


def padim(settings: dict[str, Any]) -> PadimModel:
    """Features at strides 4, 8 and 16, as the paper takes them from a ResNet."""
    return PadimModel(
        layers=[1, 2, 3],
        backbone=settings["backbone"],
        pre_trained=False,
        n_features=settings["features"],
    )


def load(network: nn.Module, path: Path) -> None:
    """Only what lies above the features may be missing on either side."""
    missing, _ = network.load_state_dict(torch.load(path, weights_only=True), strict=False)
    lost = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lost:
        raise SystemExit(f"{path} has no {lost[0]} for the peer's network, and more: {len(lost)}")


def batches(
    folder: str, about: Any, settings: dict[str, Any]
) -> Iterator[tuple[list[str], Tensor]]:
    """Names and images, resized and normalised as anomalib's pre-processor does it."""
    paths = sorted(Path(folder).glob("*.png"))
    side = settings["size"]
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        images = [decode_image(path, ImageReadMode.RGB).float() / 255 for path in some]
        batch = torch.stack([resize(image, [side, side], antialias=True) for image in images])
        yield [path.stem for path in some], normalize(batch, about.mean, about.std)


@torch.no_grad()
def write_maps(
    model: nn.Module, images: Iterator[tuple[list[str], Tensor]], out: Path
) -> dict[str, float]:
    """``NAME.npy`` of every image, ``float32 [size,size]``; returns the scores of the images."""
    scores = {}
    for names, batch in images:
        prediction = model(batch)
        for name, score, anomaly in zip(names, prediction.pred_score, prediction.anomaly_map):
            np.save(out / f"{name}.npy", anomaly[0].numpy())
            scores[name] = float(score)
        print(f"maps of {len(scores)} images", flush=True)
    return scores


if __name__ == "__main__":
    main()
