"""Which part of a project takes the masks, and which projects cannot."""

from __future__ import annotations

import pytest

from serving.annotation.project import control_of, example
from serving.errors import FieldError

CLASSES = ["red", "green"]
LABELS = '<Label value="red"/><Label value="green"/><Label value="other"/>'


def config(body, image='<Image name="pic" value="$photo"/>'):
    return f"<View><!-- a note -->{image}<View>{body}</View></View>"


def test_the_example_fits_its_classes():
    control = control_of(example(['a "b" <c>', "d"]), ['a "b" <c>', "d"])
    assert (control.name, control.image, control.key) == ("mask", "image", "image")
    assert control.labels == {'a "b" <c>': 'a "b" <c>', "d": "d"}


def test_strokes_come_before_polygons():
    body = (
        f'<PolygonLabels name="p" toName="pic">{LABELS}</PolygonLabels>'
        f'<BrushLabels name="b" toName="pic">{LABELS}</BrushLabels>'
    )
    control = control_of(config(body), CLASSES)
    assert (control.name, control.image, control.key) == ("b", "pic", "photo")
    assert control.type == "brushlabels"
    polygons = control_of(config(body).replace("BrushLabels", "KeyPointLabels"), CLASSES)
    assert (polygons.name, polygons.type) == ("p", "polygonlabels")


def test_a_label_may_have_other_names():
    body = (
        '<BrushLabels name="b" toName="pic"><Label value="Rot" predicted_values="red, rouge"/>'
        '<Label value="green" alias="G"/></BrushLabels>'
    )
    assert control_of(config(body), CLASSES).labels == {"red": "Rot", "green": "G"}


BRUSH = f'<BrushLabels name="b" toName="pic">{LABELS}</BrushLabels>'
BOMB = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no labelling configuration"),
        ("", "no labelling configuration"),
        (["x"], "no labelling configuration"),
        ("<View>", "no XML"),
        (BOMB + config(BRUSH), "DOCTYPE"),
        ("<!" + "--" + config(BRUSH) + BOMB, "DOCTYPE"),
        (config(BRUSH) + " " * 1_000_001, "megabyte"),
        (config('<Choices name="c" toName="pic"/>'), "no BrushLabels or PolygonLabels"),
        (config(BRUSH.replace("pic", "sound")), "no BrushLabels or PolygonLabels"),
        (config(BRUSH, '<Image name="pic" value="a.png"/>'), "'a.png'"),
        (config(BRUSH.replace('"green"', '"gren"')), "no label 'green'"),
    ],
)
def test_other_projects_are_refused(text, message):
    with pytest.raises(FieldError, match=message) as caught:
        control_of(text, CLASSES)
    assert caught.value.expected
    assert "etc" not in str(caught.value)
