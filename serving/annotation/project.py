"""What a Label Studio project asks for: its labelling configuration, matched with a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from serving.errors import FieldError

# Tags that hold regions, the exact kind first.
KINDS = ("BrushLabels", "PolygonLabels")
LONGEST = 1_000_000
DECLARATION = re.compile(r"<!(?!--|\[CDATA\[)")
FIELD = "label_config"


@dataclass(frozen=True)
class Control:
    """The tag of a labelling configuration that takes the regions.

    Attributes:
        name: of the tag.
        image: name of the tag of the image.
        key: where a task's data have the image.
        kind: one of ``KINDS``.
        labels: the project's label of each class of the model.
    """

    name: str
    image: str
    key: str
    kind: str
    labels: Mapping[str, str]

    @property
    def type(self) -> str:
        """The type of its regions."""
        return self.kind.lower()


def control_of(config: Any, classes: Iterable[str]) -> Control:
    """The control of a labelling configuration for a model with these classes.

    Raises:
        FieldError: no XML, no image with brush or polygon labels, or a class without a label.
    """
    classes = list(classes)
    tree = _parsed(config)
    images = {tag.get("name", ""): tag.get("value", "") for tag in tree.iter("Image")}
    controls = [tag for kind in KINDS for tag in tree.iter(kind) if tag.get("toName", "") in images]
    if not controls:
        raise FieldError(
            "the project has no BrushLabels or PolygonLabels for an Image",
            "one of them in its labelling configuration",
            example(classes),
            field=FIELD,
        )
    tag = controls[0]
    image = tag.get("toName", "")
    if not images[image].startswith("$"):
        raise FieldError(
            f"the value of Image {image!r} is {images[image]!r}", 'value="$image"', field=FIELD
        )
    labels = _labels(tag)
    if missing := [name for name in classes if name not in labels]:
        raise FieldError(
            f"the project has no label {', '.join(map(repr, missing))}",
            "a label for each class of the model",
            f"add {_label(missing[0])}, or name the classes that it has with --classes",
            field=FIELD,
        )
    names = {name: labels[name] for name in classes}
    return Control(tag.get("name", ""), image, images[image][1:], tag.tag, names)


def example(classes: Iterable[str]) -> str:
    """A labelling configuration for a model, to paste."""
    labels = "".join(map(_label, classes))
    return (
        '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image">'
        f"{labels}</BrushLabels></View>"
    )


def _label(name: str) -> str:
    return f"<Label value={quoteattr(name)}/>"


def _parsed(config: Any) -> ElementTree.Element:
    if not isinstance(config, str) or not config.strip():
        raise FieldError(
            "no labelling configuration in the request", "the XML of the project", field=FIELD
        )
    # Entities can stand for files and for gigabytes of text. Label Studio needs none.
    if len(config) > LONGEST or DECLARATION.search(config):
        raise FieldError(
            "a labelling configuration with a DOCTYPE, or a megabyte long",
            "the XML of a project without declarations",
            field=FIELD,
        )
    try:
        return ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise FieldError(
            f"the labelling configuration is no XML: {error}", "the XML of the project", field=FIELD
        ) from None


def _labels(tag: ElementTree.Element) -> dict[str, str]:
    """The project's label by every name that a model may have for it."""
    names: dict[str, str] = {}
    for label in tag.iter("Label"):
        value = label.get("value", "")
        # Label Studio stores the alias where there is one. ``predicted_values`` is its attribute
        # for names that models have for a label.
        name = label.get("alias") or value
        names[value] = name
        for other in label.get("predicted_values", "").split(","):
            if other.strip():
                names[other.strip()] = name
    return names
