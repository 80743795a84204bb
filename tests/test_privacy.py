"""No process of this project asks the network for anything that nobody told it to, and none leaves
files in the user's home.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PYTHON = sys.executable
ASK = "getent hosts control.example || true"
COMMANDS = f"""
set -e
export OMP_NUM_THREADS=1
train() {{ {PYTHON} -m trainer "$@"; }}
serve() {{ {PYTHON} -m serving.cli "$@"; }}
train synth data --count 8 --size 32
train fit data --run run --until classify --backbone resnet18 --weights none --size 32 \\
    --epochs 1 --device cpu --set classify.workers=0 --set classify.precision=fp32
train export run --name scenes --repository exported
{PYTHON} -c 'import pathlib, tiny_models; tiny_models.export(pathlib.Path("exported"))'
serve label data/JPEGImages masks --model colours --repository exported
serve bench --model colours --repository exported --images data/JPEGImages \\
    --only all-callers --seconds 0.1
{PYTHON} -m serving.cli serve --repository exported --port 0 > address &
while ! [ -s address ]; do sleep 0.1; done
image=$(ls data/JPEGImages | head -1)
serve segment data/JPEGImages/$image mask.png --model colours --address $(sed 's/.* //' address)
kill $!
wait $!
"""
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
# What starting a cluster asks for is forgotten: that is not our command.
ON_RAY = f"""
set -e
export OMP_NUM_THREADS=1 RAY_worker_niceness=0
{PYTHON} -c 'import pathlib, tiny_models; tiny_models.export(pathlib.Path("exported"))'
mkdir photos
{PYTHON} -c 'from PIL import Image; Image.new("RGB", (9, 9)).save("photos/a.png")'
mkfifo until
# Ray's head reports even that it does not report.
RAY_USAGE_STATS_ENABLED=0 RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9 \\
    {PYTHON} -c '{CLUSTER}' < until > address 2> cluster &
exec 7> until
while ! [ -s address ]; do kill -0 $!; sleep 0.1; done
: > names
{PYTHON} -m serving.cli label photos masks --repository exported --ray $(cat address)
exec 7>&-
wait $!
"""


def run(folder: Path, command: str) -> list[str]:
    """The names that a shell command asked the network for."""
    if not can_isolate():
        pytest.skip("no network namespaces here")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "ORT_"))},
        "HOME": str(folder / "home"),
    }
    (folder / "home").mkdir()
    names = folder / "names"
    names.touch()
    isolated = ["unshare", "--net", "--mount", PYTHON, str(HERE / "offline.py"), str(names)]
    done = subprocess.run(
        [*isolated, "bash", "-c", command],
        cwd=folder,
        env=environment | {"PYTHONPATH": f"{HERE.parent}:{HERE / 'serving'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return names.read_text().split()


def can_isolate() -> bool:
    if not shutil.which("unshare"):
        return False
    done = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


def left(home: Path) -> list[str]:
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


def test_the_name_server_of_this_test_hears_who_asks(tmp_path):
    assert set(run(tmp_path, ASK)) == {"control.example"}


def test_no_command_asks_for_a_name_or_leaves_a_file_at_home(tmp_path):
    assert run(tmp_path, COMMANDS) == []
    assert left(tmp_path / "home") == []


def test_labelling_on_ray_asks_for_no_name_and_leaves_no_file_at_home(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'wsss[ray]'")
    assert run(tmp_path, ON_RAY) == []
    assert left(tmp_path / "home") == []
    assert (tmp_path / "masks" / "a.png").is_file()


@pytest.mark.parametrize(
    "module", ["serving.engines.onnxruntime", "serving.client", "trainer.export.publish"]
)
def test_onnxruntime_is_silent_whatever_the_environment_says(tmp_path, module):
    code = f"import {module}, onnxruntime"
    environment = {**os.environ, "HOME": str(tmp_path), "ORT_DISABLE_TELEMETRY": "0"}
    environment.pop("XDG_CACHE_HOME", None)
    subprocess.run([PYTHON, "-c", code], env=environment, check=True, timeout=100)
    assert left(tmp_path) == []


def test_openvino_is_silent(tmp_path):
    pytest.importorskip("openvino")
    code = "from serving.engines.openvino import _library; _library().Core()"
    subprocess.run(
        [PYTHON, "-c", code], env={**os.environ, "HOME": str(tmp_path)}, check=True, timeout=100
    )
    assert left(tmp_path) == []
