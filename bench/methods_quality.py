"""Measure the mean IoU of the class activation maps of every method: same data, backbone, epochs
and seed.

Trains each variant, makes the maps of the lists ``train`` and ``val``, chooses the background
threshold on ``train``, and measures both lists with it. No CRF, no refinement, true tags given. A
variant that is finished is not trained again.

Prints the mean IoU of both lists and the threshold of each variant.

    python bench/methods_quality.py DATA --weights FILE --out runs/methods
"""

from __future__ import annotations

from pathlib import Path

import command_line

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
    "recam": ("recam", ()),
    "amn": ("amn", ()),
    "vwe_hspp": ("vwe", ("method.word_weight=1", "method.pooling=hspp")),
}


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("data", type=Path, help="data set with true masks")
    parser.add_argument("--weights", required=True, help="initial weights")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), help="folder of the runs")
    parser.add_argument("--backbone", default="mobilenet_v2", help="network of every variant")
    parser.add_argument("--train-list", default="train_balanced", help="list to train on")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of every variant")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument(
        "--min-cells", type=int, default=CamsConfig().min_cells, help="cams.min_cells; 0 keeps all"
    )
    parser.add_argument(
        "--only", nargs="*", choices=VARIANTS, default=list(VARIANTS), help="variants to measure"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="knob of every variant; may be repeated",
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
