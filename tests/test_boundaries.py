"""The borders between the parts: who may import what, how large a file may grow, what a method must
bring.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 350
TRAINING = {"torch", "torchvision", "lightning", "torchmetrics", "trainer"}
HEAVY = {
    *TRAINING,
    "sklearn",
    "skimage",
    "scipy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "pydensecrf",
    "pycocotools",
}


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no modules in {package}/"
    return found


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every import, those inside functions and under TYPE_CHECKING
    too.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]


def trespasses(package: str, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(package)
        for line, name in imports(path.read_text(encoding="utf-8"))
        if name in forbidden
    ]


def loaded_by(modules: list[str]) -> set[str]:
    """Top-level packages in a fresh interpreter after importing ``modules``."""
    code = (
        "import importlib, json, sys\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    command = [sys.executable, "-c", code, json.dumps(modules)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def method_files() -> list[Path]:
    from trainer.methods.registry import SHARED

    return [p for p in sources("trainer/methods") if p.stem not in {*SHARED, "__init__"}]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch.nn as nn", ["torch"]),
        ("import os, grpc", ["os", "grpc"]),
        ("from serving.client import Client", ["serving"]),
        ("def f():\n    from trainer import cams", ["trainer"]),
        ("from . import neighbour", []),
        ("text = 'import torch'", []),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, found: list[str]) -> None:
    assert [name for _, name in imports(source)] == found


def test_serving_never_imports_torch_or_trainer() -> None:
    assert trespasses("serving", TRAINING) == []


def test_trainer_never_imports_grpc_or_serving() -> None:
    assert (
        trespasses(
            "trainer", {"grpc", "grpc_health", "grpc_reflection", "grpc_status", "serving", "wsss"}
        )
        == []
    )


def test_loading_all_of_serving_loads_neither_torch_nor_trainer() -> None:
    modules = [dotted(path) for path in sources("serving")]
    loaded = loaded_by(modules)
    assert {"serving", "grpc", "numpy"} <= loaded
    assert loaded & TRAINING == set()


def test_the_command_lines_load_nothing_heavy() -> None:
    assert loaded_by(["trainer.cli"]) & (HEAVY - {"trainer"}) == set()
    assert loaded_by(["serving.cli"]) & {*HEAVY, "numpy", "grpc"} == set()


@pytest.mark.parametrize("package", ["trainer", "serving"])
def test_no_file_is_longer_than_the_limit(package: str) -> None:
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(package)
    }
    long = [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lengths.items() if n > LIMIT]
    assert long == [], f"more than {LIMIT} lines: split by idea"


def test_imports_point_one_way_only() -> None:
    """No files import each other in a circle, and no two folders import each other."""
    spec = importlib.util.spec_from_file_location("structure", ROOT / "bench" / "structure.py")
    assert spec is not None
    assert spec.loader is not None
    structure = importlib.util.module_from_spec(spec)
    sys.modules["structure"] = structure
    spec.loader.exec_module(structure)
    _, places = structure.measure(ROOT)
    assert {name: places[name] for name in ("circles", "pairs", "upward")} == {
        "circles": [],
        "pairs": [],
        "upward": [],
    }


def test_every_folder_of_modules_is_a_package() -> None:
    bare = {path.parent for name in ("trainer", "serving") for path in sources(name)}
    assert sorted(str(folder) for folder in bare if not (folder / "__init__.py").exists()) == []


@pytest.mark.parametrize("path", method_files(), ids=lambda path: path.stem)
def test_a_method_is_documented_and_has_a_config(path: Path) -> None:
    module = importlib.import_module(dotted(path))
    assert len((inspect.getdoc(module) or "").splitlines()) >= 3, (
        "name the paper, the equations and the deviations"
    )
    assert dataclasses.is_dataclass(module.Config)
    assert module.Config.__dataclass_params__.frozen
    assert module.Config() == module.Config()
    about = "".join(base.__doc__ or "" for base in module.Config.__mro__)
    assert [f.name for f in dataclasses.fields(module.Config) if f"{f.name}:" not in about] == [], (
        "knobs without meaning"
    )


@pytest.mark.parametrize("name", ["kinds", "bounds", "headers", "rgb"])
def test_both_halves_read_images_by_the_same_files(name: str) -> None:
    ours, theirs = (ROOT / half / f"{name}.py" for half in ("trainer/data", "serving/images"))
    assert ours.read_text() == theirs.read_text(), f"change both: cp {ours} {theirs}"
