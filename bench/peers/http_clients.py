"""Try the HTTP API with programs that others wrote, on tiny models and a server of its own.

openapi-spec-validator   `/openapi.json` is a valid document of OpenAPI 3.1
openapi-python-client    generates a client from it, which makes calls (`http_api/generated.py`)
schemathesis             makes right and wrong requests from it, and checks that right ones are
                         answered as described and wrong ones refused

(`tests/serving/rpc/test_triton.py` makes the calls of tritonclient by HTTP.)

Prints a line for each, with the program's own report where it finds something. Ends with 1 then.

    bench/peers/setup.sh /somewhere/peers http
    python bench/peers/http_clients.py /somewhere/peers
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import servers

from serving.bench import target

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "serving"))

import command_line
import tiny_models

HERE = Path(__file__).resolve().parent
MODELS = {"colours": "segmenter", "maps": "cam", "sums": "tensor"}
MINUTES = 10


def main() -> None:
    options = arguments()
    try:
        programs = servers.environment(options.peers, "http") / "bin"
    except servers.PeerError as error:
        raise SystemExit(str(error)) from None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, kind in MODELS.items():
            tiny_models.export(folder / "models", model, kind, golden=kind != "tensor")
        with target.server(folder / "models", "engine.name=onnxruntime") as running:
            address = f"127.0.0.1:{running.http_port}"
            failures = [
                name
                for name, lines in commands(programs, folder, address, options.cases).items()
                if not succeeds(name, lines, programs, folder)
            ]
    sys.exit(1 if failures else 0)


def commands(programs: Path, folder: Path, address: str, cases: int) -> dict[str, list[list[str]]]:
    """The command lines of each program."""
    url = f"http://{address}/openapi.json"
    document = folder / "openapi.json"
    with urllib.request.urlopen(url) as reply:
        document.write_bytes(reply.read())
    image = next((folder / "models").rglob("*.png"))
    generate = ["generate", "--path", str(document), "--output-path", str(folder / "client")]
    calls = [str(HERE / "http_api" / "generated.py"), str(folder), address, str(image)]
    settings = ["--config-file", str(HERE / "http_api" / "schemathesis.toml")]
    how = ["--phases", "coverage,fuzzing", "--continue-on-failure", "--seed", "0"]
    return {
        "openapi-spec-validator": [[str(programs / "openapi-spec-validator"), str(document)]],
        "openapi-python-client": [
            [str(programs / "openapi-python-client"), *generate, "--meta", "none"],
            [str(programs / "python"), *calls],
        ],
        "schemathesis": [
            [str(programs / "schemathesis"), *settings, "run", url, "-n", str(cases), *how]
        ],
    }


def succeeds(name: str, lines: list[list[str]], programs: Path, folder: Path) -> bool:
    """Whether every command ends with 0; prints the verdict, and what the first other one said."""
    variables = dict(os.environ, PYTHONPATH=str(HERE / "http_api"), NO_COLOR="1")
    # The generator formats its client with ruff.
    variables["PATH"] = f"{programs}:{variables['PATH']}"
    for line in lines:
        process = subprocess.run(
            line,
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=60 * MINUTES,
            check=False,
        )
        if process.returncode:
            print(f"{process.stdout}\n{name}: ended with {process.returncode}", flush=True)
            return False
    print(f"{name}: right", flush=True)
    return True


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("peers", type=Path, help="folder that setup.sh filled")
    parser.add_argument("--cases", type=int, default=100, help="of schemathesis, for each path")
    return parser.parse_args()


if __name__ == "__main__":
    main()
