"""What small maps and short trainings ask for, and why.

The papers have photographs of 500 pixels, maps of 8 pixels a cell and tens of thousands of updates.
Their defaults are tuned to these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from trainer import config as knobs
from trainer.data.dataset import Record
from trainer.data.sampling import epoch_length
from trainer.maps.protocols import CamsConfig, protocol_of
from trainer.methods.declaration import Lesson, no_advice
from trainer.methods.recipes import backbone_knobs
from trainer.methods.recipes import recipe as recipe_of
from trainer.methods.registry import declaration
from trainer.nets import build_backbone
from trainer.options import Configs, Layer, Options, merged, method_preset, typed_layer


def about_maps(
    options: Options,
    configs: Configs,
    records: Sequence[Record],
    longer: int | None,
    others: Sequence[Layer],
) -> Iterator[tuple[Layer, str]]:
    """The advice of the method, except for knobs that were typed or that a preset sets; and the
    views that are left out of its maps.

    Args:
        options: as typed.
        configs: the knobs without what the data ask for.
        records: training images.
        longer: median of the longer sides of the images, pixels; None where nobody looked.
        others: what the data ask for besides.
    """
    entry, layer = declaration(options.method), merged(list(others))
    # A network that nothing is asked about is not built.
    if longer is None and entry.advice is no_advice:
        return
    classify = knobs.replace(configs.classify, layer["classify"], "classify")
    network = build_backbone(options.backbone, **backbone_knobs(options.backbone, classify))
    stride = network.strides[network.top]
    updates = classify.total(epoch_length(records, classify.negatives, classify.balance))
    recipe = options.recipe or recipe_of(options.backbone, options.weights)
    layers = [method_preset(options.method, options.preset, recipe), typed_layer(options)]
    chosen = merged(layers)["method"]
    for changes, reason in entry.advice(configs.method, Lesson(classify.crop / stride, updates)):
        if free := {knob: value for knob, value in changes.items() if knob not in chosen}:
            yield {"method": free}, reason
    if longer is not None:
        cams = knobs.replace(configs.cams, layer["cams"], "cams")
        scales = protocol_of(cams, options.backbone, options.method)[1].views.scales
        yield from _few_cells(cams, scales, longer / stride)


def _few_cells(
    cams: CamsConfig, scales: Sequence[float], cells: float
) -> Iterator[tuple[Layer, str]]:
    few = [s for s in scales if s < max(scales) and math.ceil(s * cells) < cams.min_cells]
    if few:
        yield (
            {"cams": {"min_cells": cams.min_cells}},
            f"maps: no views at scale {', '.join(f'{s:g}' for s in sorted(few))}: the maps of"
            f" most images would have fewer than {cams.min_cells} cells on the longer side",
        )
