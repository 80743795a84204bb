"""``wsss-serving bench`` on a random model made for it, so that everybody measures the same one.

``resnet`` has the cost of a ResNet-18 and is asked for masks of JPEGs; ``segmenter`` is a small
one; ``mask`` is small too and takes the float32 [1,3,256,256] that servers are compared with
(``bench/peers``), by the Open Inference Protocol.

    python bench/serve.py
    python bench/serve.py --net mask --rounds 6
    python bench/serve.py --only R2 --images photos/
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import models

ROOT = Path(__file__).resolve().parents[1]
NETS = {
    "resnet": models.write_resnet,
    "segmenter": models.write_segmenter,
    "mask": models.write_mask,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--net", choices=NETS, default="resnet", help="all other options go to wsss-serving bench"
    )
    options, others = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        NETS[options.net](Path(folder))
        command = [sys.executable, "-m", "serving.cli", "bench", "--repository", folder, *others]
        return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
