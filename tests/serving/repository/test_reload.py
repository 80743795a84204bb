"""Models that come and go while a real server answers, and folders made to harm it."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from configs import EXACT, configured
from onnx import TensorProto, helper, numpy_helper

from serving.card import read_card
from serving.client import Client
from serving.config import ScheduleConfig
from serving.errors import RepositoryError
from serving.repository.loading import open_warm_engine
from serving.repository.served import State

NAN = helper.make_node(
    "Constant", [], ["bad_scores"], value=numpy_helper.from_array(np.float32([[np.nan] * 3]))
)


def publish(root: Path, version: int, spoil=lambda folder: None) -> None:
    """Make a version elsewhere and rename it into place, as the exporter does."""
    made = tiny_models.export(root.with_name(f"made{version}"), version=version)
    spoil(made)
    made.rename(root / "colours" / str(version))


def until(condition) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to be")


class Callers:
    """Threads that call without a pause; ``versions`` are what each saw, ``errors`` what went
    wrong.
    """

    def __init__(self, address: str, count: int = 4) -> None:
        self.errors: list[BaseException] = []
        self.versions: list[list[int]] = [[] for _ in range(count)]
        self._address = address
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(number,)) for number in range(count)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _call(self, number: int) -> None:
        pixels = np.random.default_rng(number).integers(
            0, 256, (30 + number, 40, 3), dtype=np.uint8
        )
        expected = tiny_models.expected_mask(pixels)
        with Client(self._address, timeout=60) as client:
            while not self._ended.is_set():
                try:
                    result = client.segment(pixels)
                    np.testing.assert_array_equal(result.mask, expected)
                    self.versions[number].append(result.version)
                except BaseException as error:
                    self.errors.append(error)
                    return

    def all_see(self, version: int) -> bool:
        return bool(self.errors) or all(seen and seen[-1] == version for seen in self.versions)


def test_no_request_fails_while_versions_come_go_and_are_refused(tmp_path, run_server):
    root = tmp_path / "exported"
    tiny_models.export(root)

    def damage(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"damaged")

    settings = {"models__control": "poll", "models__poll_seconds": 0.05, "models__trial": True}
    with run_server(configured(root, **settings)) as server, Callers(server.address) as callers:
        until(lambda: callers.all_see(1))
        publish(root, 2)
        until(lambda: callers.all_see(2))
        publish(root, 3, damage)
        until(
            lambda: any(
                (state.version, state.state) == (3, State.UNAVAILABLE)
                for state in server.models.index()
            )
        )
        publish(root, 4)
        until(lambda: callers.all_see(4))
    assert callers.errors == []
    for seen in callers.versions:
        assert seen == sorted(seen), "a request went back to an old version"
        assert set(seen) == {1, 2, 4}


def outside(folder: Path) -> Path:
    """A new place that is not in the repository of a version folder."""
    return folder.absolute().parents[2] / secrets.token_hex(8)


def link_graph(folder: Path) -> None:
    elsewhere = outside(folder)
    (folder / "model.onnx").rename(elsewhere)
    (folder / "model.onnx").symlink_to(elsewhere)


def link_folder(folder: Path) -> None:
    elsewhere = outside(folder)
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere, target_is_directory=True)


def unlisted_file(folder: Path) -> None:
    (folder / "library.so").write_bytes(b"\x7fELF")


def pipe_for_graph(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")


def path_outside(folder: Path) -> None:
    tiny_models.change_card(folder, graph="../model.onnx", sha256={"../model.onnx": "00"})


def data_outside(folder: Path) -> None:
    weight = TensorProto(
        name="one", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value="../../../secret")
    graph = tiny_models.graph("segmenter")
    graph.graph.initializer[0].CopyFrom(weight)
    tiny_models.save_graph(folder, graph)


def unknown_domain(folder: Path) -> None:
    graph = tiny_models.graph("segmenter")
    graph.graph.node[0].domain = "evil.ops"
    graph.opset_import.add(domain="evil.ops", version=1)
    tiny_models.save_graph(folder, graph)


def absurd_shape(folder: Path) -> None:
    graph = tiny_models.graph("segmenter")
    shape = numpy_helper.from_array(np.array([400_000, 400_000]), "shape")
    graph.graph.initializer.append(shape)
    huge = helper.make_node("ConstantOfShape", ["shape"], ["huge"])
    total = helper.make_node("ReduceSum", ["huge"], ["total"], keepdims=0)
    graph.graph.node.insert(0, total)
    graph.graph.node.insert(0, huge)
    graph.graph.node[-1].input[1] = "total"
    tiny_models.save_graph(folder, graph)


def nan_scores(folder: Path) -> None:
    graph = tiny_models.graph("segmenter")
    graph.graph.node[-1].output[0] = "good_scores"
    graph.graph.node.extend(
        [NAN, helper.make_node("Add", ["good_scores", "bad_scores"], ["scores"])]
    )
    tiny_models.save_graph(folder, graph)


def zero_stride(folder: Path) -> None:
    graph = tiny_models.graph("segmenter")
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "weight")
    graph.graph.initializer.append(weight)
    graph.graph.node.append(
        helper.make_node("Conv", ["cam_in", "weight"], ["unused"], strides=[0, 0])
    )
    graph.graph.node.insert(
        1, helper.make_node("Transpose", ["pixels"], ["cam_in"], perm=[0, 3, 1, 2])
    )
    tiny_models.save_graph(folder, graph)


def truncated_graph(folder: Path) -> None:
    graph = (folder / "model.onnx").read_bytes()[:300]
    (folder / "model.onnx").write_bytes(graph)
    tiny_models.change_card(folder, sha256={"model.onnx": hashlib.sha256(graph).hexdigest()})


def no_card(folder: Path) -> None:
    (folder / "model.json").unlink()


def endless_card(folder: Path) -> None:
    (folder / "model.json").write_text("[" * 100_000)


HOSTILE = {
    link_graph: "is a link out of the repository",
    link_folder: "is a link out of the repository",
    unlisted_file: "'library.so', which the card does not list",
    pipe_for_graph: "is not a regular file",
    path_outside: "a file name has a folder in it",
    data_outside: "keeps data in '../../../secret'",
    unknown_domain: "domain 'evil.ops'",
    absurd_shape: "fails on an image",
    nan_scores: "scores of colours are nan to nan",
    zero_stride: "does not load",
    truncated_graph: "model.onnx",
    no_card: "no model.json",
    endless_card: "cannot be read",
}


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda spoil: spoil.__name__)
def test_a_hostile_folder_is_refused_with_its_reason(tmp_path, spoil):
    (tmp_path / "secret").write_bytes(bytes(4))
    folder = tiny_models.export(tmp_path / "exported")
    spoil(folder)
    with pytest.raises(RepositoryError) as caught:
        open_warm_engine(read_card(folder), ScheduleConfig(), EXACT)
    assert HOSTILE[spoil] in caught.value.found


def test_the_old_version_serves_on_whatever_is_put_beside_it(tmp_path, run_server):
    root = tmp_path / "exported"
    tiny_models.export(root)
    settings = {"models__control": "poll", "models__poll_seconds": 0.05, "models__trial": True}
    settings |= {"models__trial_memory_mb": 1500, "models__versions": "all"}
    spoilt = (link_folder, absurd_shape, nan_scores, no_card)
    with run_server(configured(root, **settings)) as server, Callers(server.address, 2) as callers:
        until(lambda: callers.all_see(1))
        for version, spoil in enumerate(spoilt, 2):
            publish(root, version, spoil)

        def reasons():
            return {
                state.version: state.reason
                for state in server.models.index()
                if state.state == State.UNAVAILABLE
            }

        until(lambda: len(reasons()) == len(spoilt) or callers.errors)
        told = reasons()
    assert callers.errors == []
    assert {version for seen in callers.versions for version in seen} == {1}
    for version, spoil in enumerate(spoilt, 2):
        assert HOSTILE[spoil] in told[version]
        assert str(tmp_path) not in told[version]


@pytest.mark.parametrize("spoil", [link_folder, nan_scores], ids=lambda spoil: spoil.__name__)
def test_a_hostile_folder_alone_does_not_start(tmp_path, run_server, spoil):
    spoil(tiny_models.export(tmp_path))
    with pytest.raises(RepositoryError), run_server(configured(tmp_path)):
        raise AssertionError("it started")
