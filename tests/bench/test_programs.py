"""Programs of ``bench`` from start to end, on the smallest input, in this process.

``tests/test_command_lines.py`` starts all of them; here are those that end within seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import BENCH, opened
from PIL import Image

from trainer.nets import build_backbone
from trainer.scenes.writing import write_synthetic

SMALL_IMAGES = "--width 64 --height 48"
SMALLEST = {
    "cams.py": f"--images 2 {SMALL_IMAGES} --rounds 1 --workers 0",
    "crf.py": f"--images 4 {SMALL_IMAGES} --workers 2",
    "encodings.py": "--masks {masks} --rounds 1",
    "engine_memory.py": "--repository {models} --model segmenter --engines onnxruntime --runs 8",
    "evaluation.py": "--images 1 --list 20",
    "fuzz.py": "--cases 90",
    "methods.py": "--batch 2 --size 64 --rounds 1",
    "models.py": "{new}",
    "processes.py": "--batch 2 --size 64 --rounds 1 --steps 1",
    "refine_step.py": "--only affinity --batch 1 --rounds 1",
    "segment.py": (
        "--segmenter aspp --steps 2 --crop 64 --batch 2 --images 1 --rounds 1 " + SMALL_IMAGES
    ),
    "soak.py": "--requests 80 --max-side 80",
    "sweep.py": f"--images 4 {SMALL_IMAGES}",
    "train_step.py": "--batch 2 --size 64 --rounds 2 --warmup 1 --workers 0",
    "wrong_tags.py": "{data} --backbone timm/test_resnet --weights {weights} --seeds 1",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("programs")
    write_synthetic(folder / "data", 12, 48, classes=3)
    masks = folder / "masks"
    masks.mkdir()
    Image.fromarray(np.eye(40, 56, dtype=np.uint8), "P").save(masks / "1.png")
    with opened(BENCH / "models.py") as models:
        models.write_segmenter(folder / "models")
    torch.save(build_backbone("timm/test_resnet").state_dict(), folder / "weights")
    return {name: folder / name for name in ("data", "masks", "models", "new", "weights")}


@pytest.mark.parametrize("name", SMALLEST)
def test_a_program_ends(
    name: str,
    places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = SMALLEST[name].format(**places).split()
    monkeypatch.setattr(sys, "argv", [str(BENCH / name), *words])
    with opened(BENCH / name) as program:
        program.main()
    assert name == "models.py" or capsys.readouterr().out
