"""Messages of the protocol as query parameters and JSON, and the schemas of both.

Everything follows from the descriptors, so a field added to the protocol is in the API and in its
description. Names of enum values lose their prefix: ``MASK_ENCODING_COCO_RLE`` is ``coco_rle``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict

from serving.errors import FieldError, nearest

# Bytes that are numbers, one each.
NUMBERS = {"wsss.v1.LabelRuns.labels"}
WELL_KNOWN: dict[str, dict[str, Any]] = {
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
}
WORDS = {"true": True, "1": True, "false": False, "0": False}
CPP = FieldDescriptor
WHOLE = {
    CPP.CPPTYPE_INT32: 31,
    CPP.CPPTYPE_INT64: 63,
    CPP.CPPTYPE_UINT32: 32,
    CPP.CPPTYPE_UINT64: 64,
}
# Of the shares that a request may have; 1 for the others.
LARGEST = {"tile_overlap": 0.5}
FLOATS = {CPP.CPPTYPE_FLOAT, CPP.CPPTYPE_DOUBLE}


def fill(message: Any, items: Iterable[tuple[str, str]], names: Mapping[str, str]) -> None:
    """Set fields of a message from query parameters.

    Args:
        items: names and values. A list is a repeated name, or values with commas between them.
        names: of the parameters that may be set, each with its field.

    Raises:
        FieldError: an unknown or repeated name, or a value of another type.
    """
    seen = set()
    for name, text in items:
        if name not in names:
            raise FieldError(f"no option {name!r}", nearest(name, names), field=name)
        field = message.DESCRIPTOR.fields_by_name[names[name]]
        if field.is_repeated:
            getattr(message, field.name).extend(part for part in text.split(",") if part)
        elif name in seen:
            raise FieldError(f"{name} is given twice", "once", field=name)
        else:
            setattr(message, field.name, _value(name, field, text))
        seen.add(name)


def _value(name: str, field: Any, text: str) -> Any:
    if field.enum_type:
        numbers = {word(field.enum_type, value.name): value.number for value in _values(field)}
        if text not in numbers:
            raise _wrong(name, text, nearest(text, numbers))
        return numbers[text]
    if field.cpp_type == CPP.CPPTYPE_BOOL:
        if text.lower() not in WORDS:
            raise _wrong(name, text, "true or false")
        return WORDS[text.lower()]
    try:
        if field.cpp_type in FLOATS:
            return float(text)
        if field.cpp_type in WHOLE:
            number = int(text[:24])
            if not 0 <= number <= _largest(field):
                raise ValueError
            return number
    except ValueError:
        whole = f"a whole number from 0 to {_largest(field)}"
        raise _wrong(name, text, "a number" if field.cpp_type in FLOATS else whole) from None
    return text


def _largest(field: Any) -> float:
    """The largest number that a request may have in a field, whose other numbers are shares."""
    bits = WHOLE.get(field.cpp_type)
    return 2**bits - 1 if bits else LARGEST.get(field.name, 1)


def _wrong(name: str, text: str, expected: str) -> FieldError:
    return FieldError(f"{name} is {text!r}", expected, field=name)


def word(enum: EnumDescriptor, name: str) -> str:
    """The short name of an enum value; empty for the unspecified one. Enums that have none are of
    other protocols and keep their names.
    """
    unspecified = enum.values[0].name
    prefix = unspecified.removesuffix("UNSPECIFIED")
    if prefix == unspecified:
        return name
    return "" if name == unspecified else name.removeprefix(prefix).lower()


def _values(field: Any) -> list[Any]:
    """The values of an enum that a caller can name."""
    return list(field.enum_type.values)[1:]


def plain(message: Any) -> Any:
    """A message as JSON values. Bytes are Base64. Fields that were not set are left out where their
    absence means something, and are 0, false or empty elsewhere.
    """
    name = message.DESCRIPTOR.full_name
    if name in WELL_KNOWN:
        return message.ToJsonString() if name.endswith("Timestamp") else MessageToDict(message)
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            values[field.name] = dict(value)
        elif field.is_repeated:
            values[field.name] = [_plain(field, one) for one in value]
        else:
            values[field.name] = _plain(field, value)
    return values


def _plain(field: Any, value: Any) -> Any:
    if field.message_type:
        return plain(value)
    if field.enum_type:
        known = field.enum_type.values_by_number.get(value)
        return word(field.enum_type, known.name) if known else str(value)
    if field.type == CPP.TYPE_BYTES:
        return list(value) if field.full_name in NUMBERS else base64.b64encode(value).decode()
    # The shortest text of a float32: 0.3, not 0.30000001192092896.
    return float(str(np.float32(value))) if field.cpp_type == CPP.CPPTYPE_FLOAT else value


def schemas(*descriptors: Descriptor) -> dict[str, Any]:
    """JSON schemas, by name, of messages as :func:`plain` writes them, with all that they hold."""
    found: dict[str, Any] = {}
    waiting = list(descriptors)
    while waiting:
        descriptor = waiting.pop()
        if descriptor.name in found or descriptor.full_name in WELL_KNOWN:
            continue
        found[descriptor.name] = {
            "type": "object",
            "properties": {field.name: _schema(field) for field in descriptor.fields},
            "required": [field.name for field in descriptor.fields if not field.has_presence],
        }
        waiting += [field.message_type for field in descriptor.fields if field.message_type]
    return found


def _schema(field: Any) -> dict[str, Any]:
    if field.message_type:
        full = field.message_type.full_name
        own = WELL_KNOWN.get(full) or {"$ref": f"#/components/schemas/{field.message_type.name}"}
    else:
        own = _scalar(field)
    return {"type": "array", "items": own} if field.is_repeated else own


def _scalar(field: Any) -> dict[str, Any]:
    """The schema of one value that is no message."""
    if field.enum_type:
        return {
            "type": "string",
            "enum": [word(field.enum_type, value.name) for value in _values(field)],
        }
    if field.full_name in NUMBERS:
        return {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}}
    if field.type == CPP.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    if field.cpp_type == CPP.CPPTYPE_BOOL:
        return {"type": "boolean"}
    if field.cpp_type in WHOLE:
        return {"type": "integer"}
    return {"type": "number" if field.cpp_type in FLOATS else "string"}


def parameters(descriptor: Descriptor, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """OpenAPI's query parameters for fields of a message, as :func:`fill` reads them."""
    fields = {name: descriptor.fields_by_name[field] for name, field in names.items()}
    return [
        {"name": name, "in": "query", "schema": _schema(field) | _bounds(field)}
        for name, field in fields.items()
    ]


def _bounds(field: Any) -> dict[str, Any]:
    is_number = field.cpp_type in WHOLE or field.cpp_type in FLOATS
    return {"minimum": 0, "maximum": _largest(field)} if is_number else {}
