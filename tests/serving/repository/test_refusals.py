from __future__ import annotations

from pathlib import Path

from serving.errors import RepositoryError
from serving.repository.refusals import Refusals


def test_reasons_hold_no_paths_but_those_inside_of_the_repository(tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    refused = Refusals(link)
    found = (
        f"{link}/pets/2/model.onnx and {tmp_path}/real/pets/2/a.bin differ: at"
        " /onnxruntime_src/core/graph.cc:18, 3/4"
    )
    refused.note(("pets", 2), (), RepositoryError(found, "equal ones", "export again"))
    assert (
        refused.reason(("pets", 2))
        == "pets/2/model.onnx and pets/2/a.bin differ: at (path):18, 3/4, expected equal ones"
    )
    assert refused.reason(("pets", 1)) == ""
    refused.note(("pets", 3), (), RepositoryError("x" * 9000))
    assert len(refused.reason(("pets", 3))) == 500


def test_errors_are_new_ones_and_are_forgotten_by_model(tmp_path: Path):
    refused = Refusals(tmp_path)
    assert refused.error() is None
    for key in (("pets", 2), ("cats", 9), ("pets", 10)):
        refused.note(key, (("model.onnx", 1, 2, 3),), RepositoryError(f"{key}", "e", "h"))
    assert str(refused.error("pets")) == "('pets', 2)\nexpected: e\ntry: h"
    assert str(refused.error()).startswith("('cats', 9)")
    assert refused.error() is not refused.error()
    refused.forget("pets")
    assert list(refused) == [("cats", 9)]
    assert refused.error("pets") is None
