"""Compare finished runs with anomalib's PatchCore and PaDiM: same images, same ImageNet weights.

    python bench/peers/anomalib.py DATA --run runs/tiles-0 runs/tiles-1 runs/tiles-2

The peers learn from the images of the training list that show no class. They see no other image,
no tag and no mask. Their maps of the validation list and ours are measured by the same code of this
package, kind by kind: the pixels of a kind against all other pixels of the images that have this
kind or none. Pixels of other kinds are left out. Printed are average precision of pixels, PRO, and
how well image scores tell images with a defect from those without.

Our maps are the probabilities of the segmenter, which sees no tag of a measured image. The class
activation maps of a run are no match: they are made for the true tags.

ours, any    1 - the probability of background: the question that the peers answer, "is it normal?"
ours, named  the probability of the kind itself, which no peer has

Image scores are the classifier's, in both columns. Several runs give mean and standard deviation.

The peers use anomalib's own models and defaults, with these exceptions. The network is the one of
the runs and takes its pixels in its own scale. Its layers are those at the strides of the papers: 8
and 16 for PatchCore, and 4 as well for PaDiM. PaDiM keeps 100 features, anomalib's number for a
ResNet-18. PatchCore keeps 1 % of its patches and not 10 %, because the choice takes time in
proportion; distances are exact where anomalib projects them at random (see anomaly_maps.py).

The first call makes an environment for anomalib, 7 GB and some minutes. Maps that are made stay
below OUT, so that further runs are compared at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from trainer.data.dataset import IGNORE, Dataset, Record
from trainer.data.formats.opening import open_dataset
from trainer.data.pixels import image_size, read_image
from trainer.errors import ConfigError, DataError, RunError, UserError
from trainer.evaluation.image_counts import group_numbers
from trainer.evaluation.image_figures import any_tag, image_figures
from trainer.evaluation.image_scores import FILE, ImageScores
from trainer.evaluation.measure import MAPS
from trainer.evaluation.pixel_ranking import PixelRanking, image_pixels
from trainer.files import file_sha256, write_atomic
from trainer.maps.camfile import cam_path, read_cam, upsample_cam
from trainer.nets import build_backbone, traits_of
from trainer.outputs import check_folder
from trainer.run import Run
from trainer.weights.cache import find_weights
from trainer.weights.loading import load_backbone

sys.path.append(str(Path(__file__).resolve().parents[1]))

import command_line

HERE = Path(__file__).resolve().parent
VERSION = "2.7.0"
MADE_HERE = "made-by-anomalib.py"
"""Marks folders that this program may write into again."""
MODELS = {"patchcore": "PatchCore", "padim": "PaDiM"}
ANY, NAMED = "ours, any", "ours, named"
PIXELS = ("pixel_ap", "pro")
IMAGES = ("auroc", "average_precision", "false_alarms_at_90")
TITLES = {
    "pixel_ap": "average precision of pixels",
    "pro": "PRO to 0.3",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "false_alarms_at_90": "false alarms",
}
Maps = npt.NDArray[np.float32]
Reader = Callable[[Record], Maps]
"""The maps of an image in 0..1: ``[K,H,W]``, or ``[1,H,W]`` for all kinds."""
Figures = dict[str, dict[str, float | None]]
"""Figure -> kind -> value; the kind of image figures is ``any``."""


def main() -> None:
    try:
        compare(arguments())
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from error


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("data", type=Path, help="data set with true masks on the validation list")
    parser.add_argument("--run", type=Path, nargs="+", default=[], help="finished runs on it")
    parser.add_argument("--out", type=Path, default=Path("runs/anomalib"), help="folder of results")
    parser.add_argument("--environment", type=Path, help="of anomalib; OUT/environment")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="peers")
    parser.add_argument("--train-list", default="train", help="list whose free images train")
    parser.add_argument("--val-list", default="val", help="list that is measured")
    parser.add_argument("--backbone", help="network of timm; that of the runs")
    parser.add_argument("--weights", help="its initial weights; those on this machine")
    parser.add_argument("--size", type=int, default=256, help="side of the peers' images")
    parser.add_argument("--coreset", type=float, default=0.01, help="PatchCore: share of patches")
    parser.add_argument("--features", type=int, default=100, help="PaDiM: number of features")
    parser.add_argument("--seed", type=int, default=0, help="of the peers")
    return parser.parse_args()


def compare(args: argparse.Namespace) -> None:
    dataset = open_dataset(args.data)
    normal = [record for record in dataset.subset(args.train_list) if record.is_negative]
    if not normal:
        raise DataError(
            f"list {args.train_list!r} of {args.data} has no image without a class",
            "images that show no defect, to learn from",
        )
    if not (measured := dataset.masked(args.val_list)):
        raise DataError(f"no image of list {args.val_list!r} of {args.data} has a mask")
    runs = [Run.existing(path) for path in args.run]
    usual = runs[0].manifest["backbone"] if runs else "efficientnet_lite0"
    args.backbone = args.backbone or usual
    claim(args.out, "--out", dataset.places())
    weights = find_weights(args.backbone, args.weights)
    for run in runs:
        check(run, dataset, args, weights)
    sides: dict[str, list[Figures]] = {}
    for model in args.only:
        folder = peer_maps(model, dataset, normal, measured, weights, args)
        sides[MODELS[model]] = [peer_figures(dataset, measured, folder)]
    for run in runs:
        print(f"measuring {run.path}", file=sys.stderr)
        for side, figures in own_figures(dataset, measured, run, args.val_list).items():
            sides.setdefault(side, []).append(figures)
    write_atomic(args.out / "anomalib.json", json.dumps(sides, indent=1).encode())
    print_tables(sides, measured, dataset.classes)


def check(run: Run, dataset: Dataset, args: argparse.Namespace, weights: Path) -> None:
    """Refuse to compare with a run of other data, lists or initial weights."""
    manifest = run.manifest
    if not {"scores", "segment"} <= set(run.complete):
        hint = f"wsss-trainer fit {args.data} --run {run.path}"
        raise RunError(f"{run.path} is not finished", "a run with scores and segmenter", hint)
    facts = {
        "classes": (manifest["data"]["classes"], list(dataset.classes)),
        "training list": (manifest["train_list"], args.train_list),
        "backbone": (manifest["backbone"], args.backbone),
        "initial weights": ((manifest["weights"] or {}).get("sha256"), file_sha256(weights)),
    }
    for name, (theirs, ours) in facts.items():
        if theirs != ours:
            raise RunError(f"{run.path} has another {name}: {theirs}", f"{ours}")


def peer_maps(
    model: str,
    dataset: Dataset,
    normal: Sequence[Record],
    measured: Sequence[Record],
    weights: Path,
    args: argparse.Namespace,
) -> Path:
    """The folder of the peer's maps; those of an earlier call with the same settings stay."""
    if not traits_of(args.backbone).timm:
        raise ConfigError(
            f"backbone {args.backbone} is no network of timm",
            "a name that the peers know too, such as efficientnet_lite0 or timm/resnet18",
        )
    folder = Path(args.out, model).absolute()
    places = {name: args.out.absolute() / "images" / name for name in ("train", "measured")}
    settings = {
        "version": VERSION,
        "model": model,
        "data": [dataset.fingerprint(), args.train_list, args.val_list],
        "backbone": traits_of(args.backbone).timm,
        "sha256": file_sha256(weights),
        "weights": str(args.out.absolute() / "weights.pt"),
        **{name: str(place) for name, place in places.items()},
        "out": str(folder),
        "seed": args.seed,
        "size": args.size,
        **({"coreset": args.coreset} if model == "patchcore" else {"features": args.features}),
    }
    file, scores = folder / "settings.json", folder / "scores.json"
    text = json.dumps(settings, indent=1)
    if scores.exists() and file.exists() and file.read_text() == text:
        return folder
    scores.unlink(missing_ok=True)
    export(normal, places["train"])
    export(measured, places["measured"])
    network = build_backbone(args.backbone)
    print(load_backbone(network, weights), file=sys.stderr)
    torch.save(network.state_dict(), settings["weights"])
    write_atomic(file, text.encode())
    command: list[str | Path] = [environment(args), "-I", HERE / "anomaly_maps.py", file]
    if subprocess.run(command).returncode:
        raise UserError(f"{MODELS[model]} failed; its own words are above")
    return folder


def export(records: Sequence[Record], folder: Path) -> None:
    """Images as ``<number>.png``, RGB, as our own reader sees them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, record in enumerate(records):
        image = Image.fromarray(read_image(record.image))
        image.save(folder / f"{number:06d}.png", compress_level=1)


def claim(folder: Path, option: str, inputs: Iterable[Path] = ()) -> None:
    check_folder(folder, lambda folder: (folder / MADE_HERE).exists(), inputs, option)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MADE_HERE).touch()


def environment(args: argparse.Namespace) -> Path:
    """The interpreter of an environment that has anomalib, and torch and timm as we have them."""
    folder = Path(args.environment or args.out / "environment").absolute()
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"installing anomalib {VERSION} into {folder}", file=sys.stderr)
        claim(folder, "--environment")
        venv.create(folder, with_pip=True)
        pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
        versions: list[str | Path] = ["--constraint", HERE.parents[1] / "constraints.txt"]
        packages = [f"anomalib=={VERSION}", "torch", "torchvision"]
        if subprocess.run([*pip, *versions, *packages]).returncode:
            raise UserError(f"pip could not install anomalib {VERSION} into {folder}")
        ready.touch()
    return python


def peer_figures(dataset: Dataset, records: Sequence[Record], folder: Path) -> Figures:
    names = [f"{number:06d}" for number in range(len(records))]
    raw = np.stack([np.load(folder / f"{name}.npy") for name in names])
    # Ranks do not depend on scale and shift, and our code wants 0..1.
    maps = (raw - raw.min()) / (raw.max() - raw.min())
    places = {record.id: number for number, record in enumerate(records)}

    def reader(record: Record) -> Maps:
        return upsample_cam(maps[places[record.id]][None], image_size(record.image))

    figures = pixel_figures(dataset, records, reader)
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    values, tags = np.array([[scores[name]] for name in names]), dataset.tag_matrix(records)
    anomaly = any_tag(tags)[:, None]
    return figures | of_any(image_figures(values, anomaly, ["anomaly"], group_numbers(records)))


def own_figures(
    dataset: Dataset, records: Sequence[Record], run: Run, name: str
) -> dict[str, Figures]:
    folder, ids = run.path / "segment" / "predictions" / MAPS / name, [r.id for r in records]
    scores = ImageScores.read(run.path / FILE).of(ids)
    tags, groups = dataset.tag_matrix(records), group_numbers(records)
    images = of_any(image_figures(scores, tags, dataset.classes, groups))
    named = partial(probabilities, folder, len(dataset.classes))

    readers: dict[str, Reader] = {ANY: lambda record: named(record).sum(0, keepdims=True)}
    return {
        side: pixel_figures(dataset, records, reader) | images
        for side, reader in (readers | {NAMED: named}).items()
    }


def probabilities(folder: Path, num_classes: int, record: Record) -> Maps:
    """The segmenter's, of all classes. It keeps no map of a class that is improbable everywhere."""
    cam = read_cam(cam_path(folder, record.id))
    maps = np.zeros((num_classes, *cam.size), np.float32)
    maps[cam.classes] = upsample_cam(cam.maps, cam.size)
    return maps


def pixel_figures(dataset: Dataset, records: Sequence[Record], reader: Reader) -> Figures:
    """Average precision and PRO of each kind, on the images that have this kind or none."""
    rankings = [PixelRanking.empty(1) for _ in dataset.classes]
    for record in records:
        truth = dataset.read_mask(record)
        maps = np.broadcast_to(reader(record), (len(rankings), *truth.shape))
        for k, ranking in enumerate(rankings):
            if k in record.tags or record.is_negative:
                own = np.where(truth == k + 1, 1, np.where(truth == 0, 0, IGNORE)).astype(np.uint8)
                ranking.add(image_pixels(maps[k : k + 1], [0], own, 2))
    reports = [ranking.report(["kind"]) for ranking in rankings]
    return {
        figure: {name: report[figure] for name, report in zip(dataset.classes, reports)}
        for figure in PIXELS
    }


def of_any(figures: dict[str, Any]) -> Figures:
    return {figure: {"any": figures["any"][figure]} for figure in IMAGES}


def print_tables(
    sides: dict[str, list[Figures]], records: Sequence[Record], classes: Sequence[str]
) -> None:
    free = sum(record.is_negative for record in records)
    print(f"{len(records)} images, {free} of them free of defects; percent")
    print(f"{'':36s}" + "".join(f"{side:>16s}" for side in sides))
    for figure in PIXELS:
        print(TITLES[figure])
        for name in classes:
            count = sum(classes.index(name) in record.tags for record in records)
            print_row(f"  {name} ({count} images)", cells(sides, figure, [name]))
        print_row("  mean over kinds", means := cells(sides, figure, classes))
        print_ratios(means)
    print("any defect, from image scores")
    for figure in IMAGES:
        print_row(f"  {TITLES[figure]}", cells(sides, figure, ["any"]))


def cells(
    sides: dict[str, list[Figures]], figure: str, kinds: Iterable[str]
) -> dict[str, list[float]]:
    """The mean over the kinds that have the figure, of each run of each side, in percent."""
    return {
        side: [
            100 * float(np.nanmean([np.array(each[figure][kind], float) for kind in kinds]))
            for each in several
        ]
        for side, several in sides.items()
    }


def print_row(title: str, columns: dict[str, list[float]]) -> None:
    texts = [
        f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")
        for values in columns.values()
    ]
    print(f"{title:36s}" + "".join(f"{text:>16s}" for text in texts))


def print_ratios(means: dict[str, list[float]]) -> None:
    peers = [np.mean(means[name]) for name in MODELS.values() if name in means]
    for side in (ANY, NAMED):
        if side in means and peers:
            own, best = np.mean(means[side]), max(peers)
            print(f"  {side}: {own / best:.2f} of the better peer, {own - best:+.1f} points")


if __name__ == "__main__":
    main()
