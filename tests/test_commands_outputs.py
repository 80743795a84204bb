"""No command changes a file of the user's, whatever its outputs are called: each is tried on the
data folder, on what is in it, around it and linked to it.
"""

from __future__ import annotations

import json
import os
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import serving.cli
import trainer.cli
from serving.errors import ServingError
from trainer.errors import RunError, UserError

INPUTS = {
    "fit": {"data", "classifier", "cams", "corrections"},
    "budget": {"data"},
    "eval": {"path", "data", "threshold_cams"},
    "compare": {"runs"},
    "report": {"run"},
    "predict": {"run"},
    "ask": {"run", "also", "corrections"},
    "answer": {"run", "review"},
    "export": {"run"},
    "reproduce": {"data"},
    "pictures": {"run"},
    "check": {"data"},
    "split": {"data"},
    "convert": {"source"},
    "weights import": {"file"},
    "weights export": {"run"},
    "serve": {"config", "repository", "tls_cert", "tls_key", "tls_client_ca", "tokens"},
    "models": {"repository"},
    "annotate": {"repository", "images_root", "tls_ca", "tls_cert", "tls_key"},
    "label": {"repository"},
    "bench": {"repository", "images"},
    "segment": {"image", "tls_ca", "tls_cert", "tls_key"},
    "health": {"tls_ca", "tls_cert", "tls_key"},
}
UNREACHABLE = ("--address", "127.0.0.1:1", "--timeout", 0.1)
Arguments = Callable[[Path, Path, Path], list[Any]]
# The command line for each output, by the data, a run and a place to write to.
OUTPUTS: dict[tuple[str, str], list[Arguments]] = {
    ("fit", "run"): [
        lambda data, run, to: [
            *("fit", data, "--run", to, "--until", "classify", "--backbone", "resnet18"),
            *("--weights", "none"),
        ],
        lambda data, run, to: [
            *("fit", data, "--run", to, "--seeds", "0,1", "--backbone", "resnet18"),
            *("--weights", "none", "--until", "classify"),
        ],
    ],
    ("reproduce", "out"): [
        lambda data, run, to: [
            *("reproduce", "vwe-1", data, "--out", to, "--small", "--only", "vwe"),
            *("--", "--backbone", "resnet18", "--weights", "none"),
        ]
    ],
    ("pictures", "out"): [lambda data, run, to: ["pictures", run, "--out", to]],
    ("budget", "run"): [
        lambda data, run, to: [
            *("budget", data, "--run", to, "--steps", "1", "--", "--backbone", "resnet18"),
            *("--weights", "none"),
        ]
    ],
    ("eval", "out"): [
        lambda data, run, to: [
            *("eval", run / "masks", "--data", data, "--list", "all", "--out", to)
        ]
    ],
    ("eval", "pictures"): [
        lambda data, run, to: ["eval", run, "--pictures", to],
        lambda data, run, to: [
            *("eval", run / "masks", "--data", data, "--list", "all", "--pictures", to)
        ],
    ],
    ("predict", "out"): [lambda data, run, to: ["predict", run, "--list", "all", "--out", to]],
    ("ask", "out"): [lambda data, run, to: ["ask", run, "--out", to]],
    ("answer", "out"): [lambda data, run, to: ["answer", run, run / "masks", "--out", to]],
    ("compare", "page"): [lambda data, run, to: ["compare", run, run, "--page", to]],
    ("export", "repository"): [
        lambda data, run, to, name=name: ["export", run, "--name", name, "--repository", to]
        for name in ("masks", "new", "photos")
    ],
    ("convert", "target"): [
        lambda data, run, to, form=form, more=more: [
            *("convert", data, to, "--to", form, "--images", "symlink", *more)
        ]
        for form, more in (("voc", ()), ("csv", ("--force",)), ("mva", ("--force",)))
    ]
    + [
        lambda data, run, to: ["convert", data, to, "--to", "labels"],
        lambda data, run, to: ["convert", data / "masks", to, "--to", "masks"],
    ],
    ("split", "out"): [lambda data, run, to: ["split", data, "--val", 0.3, "--out", to]],
    ("synth", "out"): [lambda data, run, to: ["synth", to, "--count", 2, "--size", 32]],
    ("demo", "folder"): [lambda data, run, to: ["demo", to]],
    ("weights export", "out"): [lambda data, run, to: ["weights", "export", run, "--out", to]],
    ("label", "target"): [
        lambda data, run, to, form=form: [
            *(
                "label",
                data,
                to,
                "--repository",
                run.parent / "exported",
                "--format",
                form,
                "--force",
            )
        ]
        for form in ("voc",)
    ],
    ("segment", "target"): [lambda data, run, to: ["segment", data / "0.png", to, *UNREACHABLE]],
    ("segment", "overlay"): [
        lambda data, run, to: [
            *("segment", data / "0.png", data.parent / "new.png", "--overlay", to),
            *UNREACHABLE,
        ]
    ],
    ("serve", "capture"): [
        lambda data, run, to: ["serve", "--repository", data / "no", "--port", 0, "--capture", to]
    ],
    ("token", "file"): [lambda data, run, to: ["token", "ci", "--role", "infer", "--file", to]],
}


def commands(app: typer.Typer, before: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every command of an app and of the groups in it, by what is typed."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield f"{before}{command.name or command.callback.__name__}", command.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{before}{group.name} ")


def paths_of(function: Callable[..., Any]) -> set[str]:
    """Parameters that are files or folders."""

    def is_path(hint: Any) -> bool:
        return hint is Path or any(map(is_path, typing.get_args(hint)))

    return {name for name, hint in typing.get_type_hints(function).items() if is_path(hint)}


def test_every_path_of_every_command_is_an_input_or_an_output_that_is_tried() -> None:
    known = {(command, name) for command, names in INPUTS.items() for name in names}
    known |= set(OUTPUTS)
    found = {
        (command, name)
        for app in (trainer.cli.app, serving.cli.app)
        for command, function in commands(app)
        for name in paths_of(function)
    }
    assert found == known


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, Path]:
    """A data folder with masks and other things of the user's, and a run that looks finished."""
    data, run = tmp_path / "photos", tmp_path / "run"
    rng, rows = np.random.default_rng(0), ["image,tag,split"]
    (data / "masks").mkdir(parents=True)
    for n, tag in enumerate(("cat", "cow", "cat", "../../escaped")):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(data / f"{n}.png")
        Image.new("L", (8, 8), n % 2 + 1).save(data / "masks" / f"{n}.png")
        rows.append(f"{n}.png,{tag},{'val' if n == 1 else 'train'}")
    (data / "labels.csv").write_text("\n".join(rows))
    (data / "new.json").write_text('{"mine": 1}')
    (data / "notes.txt").write_text("mine")
    (run / "segment").mkdir(parents=True)
    (run / "masks").mkdir()
    Image.new("P", (8, 8), 1).save(run / "masks" / "0.png")
    (run / "segment" / "model.pt").write_text("weights")
    done = {"status": "done", "key": "k"}
    stages = {"classify": done, "segment": done}
    manifest = {"format": 1, "stages": stages, "data": {"path": str(data)}}
    manifest["config"] = {"segment": {}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "file link.png").symlink_to(data / "0.png")
    return data, run


def places(data: Path) -> list[Path]:
    """The data folder and its files, in several spellings, what is around and what is inside."""
    root = data.parent
    return [
        *(data, root, root / "link", root / "x" / ".." / "photos", Path(os.path.relpath(data))),
        *(data / "masks", data / "new", data / "runs" / "deep", root / "link" / "masks" / "deep"),
        *(data / "0.png", data / "labels.csv", data / "notes.txt", data / "new.json"),
        *(root / "file link.png", data / "masks" / "0.png", data / "notes.txt" / "below"),
        data / "new.pth",
    ]


def stop(*_: object) -> None:
    raise RunError("far enough")


def users_files(data: Path) -> dict[str, tuple[bool, bytes]]:
    return {
        str(path.relative_to(data.parent)): (path.is_symlink(), path.read_bytes())
        for path in sorted(data.parent.rglob("*"))
        if path.is_file() and not path.is_relative_to(data.parent / "run")
    }


@pytest.mark.parametrize(("command", "name"), list(OUTPUTS))
def test_no_file_of_the_users_is_changed(
    command: str, name: str, world: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = world
    monkeypatch.chdir(data)
    # What comes after the decision takes minutes.
    for place in (
        "trainer.export.from_run.current_evaluation",
        "trainer.commands.demo._step",
        "trainer.predict.prediction.predict",
    ):
        monkeypatch.setattr(place, stop)
    loaded = (None, None, {"supervision": "tags"})
    monkeypatch.setattr("trainer.predict.prediction.load", lambda *_: loaded)
    before, model = users_files(data), (run / "segment" / "model.pt").read_bytes()
    app = trainer.cli.app if (command, name) in trainer_outputs() else serving.cli.app
    for arguments in OUTPUTS[command, name]:
        for place in [*places(data), run / "segment" / "model.pt"]:
            typed = [str(argument) for argument in arguments(data, run, place)]
            result = CliRunner().invoke(app, typed)
            said = f"{typed}: {result.output}"
            expected = (UserError, ServingError, SystemExit, type(None))
            assert isinstance(result.exception, expected), said
            after = users_files(data)
            assert {path: after.get(path) for path in before} == before, said
            assert (run / "segment" / "model.pt").read_bytes() == model, said
            assert not (data.parent.parent / "escaped").exists(), said


def trainer_outputs() -> set[tuple[str, str]]:
    return {(c, n) for c, function in commands(trainer.cli.app) for n in paths_of(function)}
