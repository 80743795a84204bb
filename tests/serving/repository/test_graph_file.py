from __future__ import annotations

from contextlib import suppress

import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from serving.card import read_card
from serving.errors import RepositoryError
from serving.repository.graph_file import check_graph

ADD = helper.make_node("Add", ["x", "x"], ["y"])


def external(place: str):
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value=place)
    tensor.external_data.add(key="offset", value="0")
    return tensor


def nested(node, depth: int):
    """A node deep inside of graphs inside of nodes."""
    for _ in range(depth):
        inner = helper.make_graph([node], "inner", [], [])
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner)
    return node


@pytest.fixture
def checked(tmp_path):
    folder = tiny_models.export(tmp_path, "sums", "tensor")

    def check(model):
        tiny_models.save_graph(folder, model)
        check_graph(read_card(folder))

    return check


def test_plain_graphs_pass(checked, repository):
    checked(tiny_models.small_graph([ADD]))
    checked(tiny_models.small_graph([nested(ADD, 5)]))
    for name in ("colours", "maps"):
        check_graph(read_card(repository / name / "1"))


def test_domains_of_functions_in_the_file_are_its_own(checked):
    function = helper.make_function(
        "own.domain", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], []
    )
    node = helper.make_node("Twice", ["x"], ["y"], domain="own.domain")
    checked(tiny_models.small_graph([node], functions=[function]))


@pytest.mark.parametrize("depth", [0, 3])
def test_operators_of_unknown_domains_are_named(checked, depth):
    node = helper.make_node("Attack", ["x"], ["y"], domain="evil.ops")
    with pytest.raises(RepositoryError, match=r"domain 'evil\.ops'"):
        checked(tiny_models.small_graph([nested(node, depth)]))


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "weights.bin", "./model.onnx"])
def test_data_outside_of_the_listed_files_is_named(checked, place):
    with pytest.raises(RepositoryError, match=f"keeps data in '{place}'"):
        checked(tiny_models.small_graph([ADD], constants=[external(place)]))
    hidden = helper.make_node("Constant", [], ["c"], value=external(place))
    with pytest.raises(RepositoryError, match=f"keeps data in '{place}'"):
        checked(tiny_models.small_graph([nested(hidden, 2), ADD]))


def test_graphs_nested_without_end_are_refused(checked):
    with pytest.raises(RepositoryError, match="deep"):
        checked(tiny_models.small_graph([nested(ADD, 25)]))


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory):
    folder = tiny_models.export(tmp_path_factory.mktemp("damaged"))
    (folder / "good").write_bytes((folder / "model.onnx").read_bytes())
    return folder


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_files_pass_or_are_refused_as_what_they_are(data, damaged_folder):
    good = (damaged_folder / "good").read_bytes()
    at = data.draw(st.integers(0, len(good)))
    damaged = data.draw(
        st.one_of(
            st.just(good[:at]),
            st.binary(max_size=40),
            st.binary(max_size=9).map(lambda b: good[:at] + b + good[at:]),
        )
    )
    (damaged_folder / "model.onnx").write_bytes(damaged)
    with suppress(RepositoryError):
        check_graph(read_card(damaged_folder))
