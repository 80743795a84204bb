"""Mean IoU of the class activation maps of every method, same data, backbone, budget and seed.

Trains each variant, makes the maps of the lists ``train`` and ``val`` only, chooses the background
threshold on ``train`` and reports it on both. No CRF, no refinement, true tags given. A variant
that is done is not trained again.

python bench/methods_quality.py DATA --weights FILE --out runs/methods
"""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.data.formats.opening import open_dataset
from trainer.evaluation.over_lists import evaluate_cams
from trainer.evaluation.sweep import sweep_thresholds
from trainer.fit import fit as run_plan
from trainer.maps.protocols import CamsConfig, protocol_of
from trainer.methods.registry import load_method
from trainer.options import Options
from trainer.plan import make_plan
from trainer.run import Output
from trainer.stages.cams import make_cams

VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "cam": ("cam", ()),
    "mixup_cam": ("mixup_cam", ()),
    "fmix_cam": ("fmix_cam", ()),
    "manifold_mixup_cam": ("manifold_mixup_cam", ()),
    "sc_cam": ("sc_cam", ("method.rounds=1",)),
    "subcategory_teaching": ("subcategory_teaching", ("method.teacher=backbone",)),
    "seam": ("seam", ()),
    "seam_star": ("seam", ("method.prcm=on",)),
    "cpn_grid": ("cpn", ()),
    "cpn_superpixel": ("cpn", ("method.patches=superpixel",)),
    "vwe": ("vwe", ()),
    "vwe_published_weight": ("vwe", ("method.word_weight=1",)),
    "vwe_hspp": ("vwe", ("method.word_weight=1", "method.pooling=hspp")),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--train-list", default="train_balanced")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--min-cells", type=int, default=CamsConfig().min_cells, help="cams.min_cells; 0 keeps all"
    )
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for every variant"
    )
    args = parser.parse_args()
    print(f"{'variant':22s} {'train':>6s} {'val':>6s} {'threshold':>10s}")
    for name in args.only:
        method, settings = VARIANTS[name]
        run = args.out / name
        fixed = ("classify.validate=off", f"classify.epochs={args.epochs}")
        options = Options(
            args.data,
            run,
            method,
            args.backbone,
            args.weights,
            train_list=args.train_list,
            val_list="val",
            until="classify",
            seed=args.seed,
            settings=(*fixed, *settings, *args.set),
        )
        run_plan(make_plan(options), lambda line: None)
        figures, threshold = measure(args.data, run, method, args.backbone, args.min_cells)
        print(
            f"{name:22s} {figures['train']:6.1f} {figures['val']:6.1f} {threshold:10.2f}",
            flush=True,
        )


def measure(
    data: Path, run: Path, method: str, backbone: str, min_cells: int
) -> tuple[dict[str, float], float]:
    """Mean IoU in percent of both lists at the threshold that is best on ``train``."""
    dataset, config = open_dataset(data), CamsConfig(precision="bf16", min_cells=min_cells)
    module = load_method(run / "classify" / "model.pt", {})
    stage = Output(run / f"maps_{min_cells}")
    stage.folder.mkdir(exist_ok=True)
    lists = {name: dataset.subset(name) for name in ("train", "val")}
    records = list({record.id: record for each in lists.values() for record in each}.values())
    make_cams(module, records, stage, protocol_of(config, backbone, method)[1], config)
    sweeps = {
        name: evaluate_cams(dataset, each, stage.folder, sweep_thresholds())
        for name, each in lists.items()
    }
    threshold = sweeps["train"].best
    return {
        name: 100 * sweep.report(threshold, "", "")["miou"] for name, sweep in sweeps.items()
    }, threshold


if __name__ == "__main__":
    main()
