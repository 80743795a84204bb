"""NVIDIA's own client, unmodified, against the server: every call that it has, plain and with
asyncio.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

CLIENT = Path(sys.prefix) / "tritonclient" / "bin" / "python"
CALLS = {
    *(
        "is_server_live",
        "is_server_ready",
        "is_model_ready",
        "get_server_metadata",
        "get_model_metadata",
    ),
    *(
        "get_model_config",
        "infer",
        "async_infer",
        "start_stream",
        "async_stream_infer",
        "stop_stream",
    ),
    *("get_inference_statistics", "get_model_repository_index", "load_model", "unload_model"),
    *(
        "get_system_shared_memory_status",
        "register_system_shared_memory",
        "unregister_system_shared_memory",
    ),
    *(
        "get_cuda_shared_memory_status",
        "register_cuda_shared_memory",
        "unregister_cuda_shared_memory",
    ),
    *("get_trace_settings", "update_trace_settings", "get_log_settings", "update_log_settings"),
    *("aio", "aio.infer", "aio.stream_infer"),
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.new("RGB", (500, 300), (200, 10, 10)).save(path)
    return path


def called(script: str, address: str, image: Path) -> str:
    """What a program prints that runs with the client's own interpreter."""
    if not CLIENT.exists():
        if os.environ.get("CI"):
            pytest.fail(f"no {CLIENT}: `make test` makes it")
        pytest.skip(f"no {CLIENT}: `make test` makes it")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(CLIENT), str(Path(__file__).parents[1] / script), address, str(image)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_every_call_of_tritonclient(tensor_server, image):
    assert set(json.loads(called("triton_calls.py", tensor_server.address, image))) == CALLS


def test_tritonclient_by_http(tensor_server, image):
    called("triton_http_calls.py", tensor_server.http_address, image)
