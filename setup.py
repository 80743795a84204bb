"""Build step: the wire contract in ``protos/`` becomes the generated package ``wsss``.

Everything else about the distribution is in ``pyproject.toml``. To generate without installing:
``python -c "import setup; setup.generate()"``.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def generate(root: Path = ROOT) -> list[Path]:
    """Write messages, stubs and type stubs of every ``protos/**/*.proto`` below ``root``; returns
    the folders.

    Raises:
        SystemExit: the compiler refused a file.
    """
    import grpc_tools
    from grpc_tools import protoc

    protos = root / "protos"
    sources = sorted(protos.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    options = [f"--{kind}={root}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    if protoc.main(["protoc", f"-I{protos}", f"-I{well_known}", *options, *map(str, sources)]) != 0:
        sys.exit("the wire contract in protos/ does not compile")
    folders = sorted({root / source.parent.relative_to(protos) for source in sources})
    for folder in {
        root / parent
        for path in folders
        for parent in (path, *path.parents)
        if root in parent.parents
    }:
        (folder / "__init__.py").write_text(
            '"""Generated from protos/ by setup.py; do not edit."""\n'
        )
    return folders


if __name__ == "__main__":
    from setuptools import setup

    generate()
    setup()
