"""The records of a labelled folder take little memory and keep every value."""

from __future__ import annotations

import json
import pickle

from serving.labelling.ledger import MANIFEST, open_ledger, read_manifest

SETTINGS = {"format": "voc", "engine": "onnxruntime CPU", "max_side": 256, "overlap": 0.25}


def entry(number):
    """A line as another process sends it, with copies of its own of everything."""
    line = {
        "image": f"{number}.jpg",
        "mask_sha256": f"{number:064}",
        "tiles": 1,
        "settings": SETTINGS,
        "scores": {"a long name of a class": number / 7, "another one": 0.0},
        "areas": {"background": number} if number % 2 else {},
    }
    return pickle.loads(pickle.dumps(line))


def check_shared(known):
    first, second = known["0.jpg"], known["1.jpg"]
    assert first["settings"] is second["settings"]
    names = [{id(name) for name in one["scores"]} for one in (first, second)]
    assert names[0] == names[1]


def test_what_lines_have_in_common_is_held_once_and_every_value_is_kept(tmp_path):
    lines = [entry(number) for number in range(4)]
    with open_ledger(tmp_path) as ledger:
        for line in lines:
            ledger.written(line)
        check_shared(ledger.known)
    check_shared(read_manifest(tmp_path / MANIFEST))
    written = (tmp_path / MANIFEST).read_text().splitlines()
    assert written == [json.dumps(entry(number)) for number in range(4)]


def test_numbers_keep_their_kind(tmp_path):
    with open_ledger(tmp_path) as ledger:
        for name, value in (("a", 1.0), ("b", 1), ("c", True)):
            ledger.written({"image": name, "mask_sha256": "0", "scores": {"cat": value}})
        texts = [json.dumps(one["scores"]["cat"]) for one in ledger.known.values()]
    assert texts == ["1.0", "1", "true"]
