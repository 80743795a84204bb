"""The function for CVAT. Its SDK is a stand-in here; bench/peers/annotate.py has the real one."""

from __future__ import annotations

import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
from PIL import Image
from typer.testing import CliRunner

from serving.annotation import cvat
from serving.cli import app
from serving.errors import ConfigError, FieldError
from serving.images.polygons import fill

LABELS = dict(enumerate(tiny_models.CLASSES, 1))


@pytest.fixture(autouse=True)
def sdk(monkeypatch):
    """The factories of ``cvat_sdk.auto_annotation``, which only hold what they are given."""
    module = types.ModuleType("cvat_sdk.auto_annotation")
    module.label_spec = lambda name, id, type: SimpleNamespace(name=name, id=id, type=type)
    module.DetectionFunctionSpec = lambda *, labels: SimpleNamespace(labels=labels)
    module.mask = lambda label_id, points: SimpleNamespace(
        type="mask", label_id=label_id, points=points
    )
    module.polygon = lambda label_id, points: SimpleNamespace(
        type="polygon", label_id=label_id, points=points
    )
    package = types.ModuleType("cvat_sdk")
    package.auto_annotation = module
    monkeypatch.setitem(sys.modules, "cvat_sdk", package)
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", module)


@pytest.fixture
def blocks():
    coarse = np.random.default_rng(5).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 9, 0), 8, 1)


def context(least=None, polygons=False):
    return SimpleNamespace(frame_name="a.png", conf_threshold=least, conv_mask_to_poly=polygons)


def drawn(shape, size):
    """A mask as CVAT's documentation describes it: runs inside of a box, and the box."""
    *counts, left, top, right, bottom = shape.points
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    mask = np.zeros(size, bool)
    mask[top : bottom + 1, left : right + 1] = values.reshape(bottom - top + 1, right - left + 1)
    return mask


def test_masks_are_exact(server, blocks):
    function = cvat.create(server.address, "colours")
    assert {label.id: label.name for label in function.spec.labels} == LABELS
    assert {label.type for label in function.spec.labels} == {"mask"}
    mask = np.zeros(blocks.shape[:2], np.uint8)
    for shape in function.detect(context(), Image.fromarray(blocks)):
        assert shape.type == "mask"
        mask[drawn(shape, mask.shape)] = shape.label_id
    np.testing.assert_array_equal(mask, tiny_models.expected_mask(blocks))
    assert function.detect(context(), Image.new("L", (30, 20))) == []


def test_polygons_where_cvat_asks_for_them(server, blocks):
    function = cvat.create(server.address, "colours", simplify=0.0)
    mask = np.zeros(blocks.shape[:2], np.uint8)
    for shape in function.detect(context(polygons=True), Image.fromarray(blocks)):
        assert shape.type == "polygon"
        points = np.array(shape.points).reshape(-1, 2).astype(int)
        mask += fill([(shape.label_id, [points])], *mask.shape)
    np.testing.assert_array_equal(mask, tiny_models.expected_mask(blocks))


def test_classes_and_the_least_score(server, blocks):
    function = cvat.create(server.address, "colours", classes="red,blue")
    assert [label.name for label in function.spec.labels] == ["red", "blue"]
    shapes = function.detect(context(), Image.fromarray(blocks))
    assert {shape.label_id for shape in shapes} == {1, 3}
    scores = {1: blocks[..., 0].mean() / 255, 3: blocks[..., 2].mean() / 255}
    best = max(scores, key=scores.get)
    between = sum(scores.values()) / 2
    shapes = function.detect(context(between), Image.fromarray(blocks))
    assert [shape.label_id for shape in shapes] == [best]
    with pytest.raises(FieldError, match="no class 'rd'"):
        cvat.create(server.address, "colours", classes="rd")


def test_the_command_prints_what_to_type():
    result = CliRunner().invoke(
        app,
        ["annotate", "--for", "cvat", "--model", "photos", "--classes", "a b,c", "--simplify", "0"],
    )
    assert result.stdout.strip() == (
        "cvat-cli task auto-annotate TASK --function-module serving.annotation.cvat"
        " -p address=str:127.0.0.1:8500 -p model=str:photos -p 'classes=str:a b,c'"
        " -p simplify=float:0.0"
    )


@pytest.mark.parametrize(
    "option", [("--repository", "exported"), ("--token", "abc"), ("--insecure",)]
)
def test_options_without_a_meaning_for_cvat_are_refused(option):
    result = CliRunner().invoke(app, ["annotate", "--for", "cvat", *option])
    assert isinstance(result.exception, ConfigError)
    assert option[0] in str(result.exception)
