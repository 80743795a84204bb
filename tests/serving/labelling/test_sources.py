"""Images at an address, as pyarrow reads them, are labelled as those in a folder."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from configs import EXACT
from PIL import Image

from serving.errors import LabelError
from serving.labelling import sources
from serving.labelling.label import label
from serving.labelling.labeller import LabelConfig
from serving.labelling.sources import open_source, parse_source

has_pyarrow = pytest.mark.skipif(
    not importlib.util.find_spec("pyarrow"), reason="pyarrow is not installed: it is in wsss[ray]"
)


@pytest.fixture
def config(tmp_path: Path, repository: Path) -> LabelConfig:
    """Two images among other things."""
    folder = tmp_path / "in"
    for name in ("a.png", "sub/b.jpg", ".hidden/c.png", "@eaDir/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "sub" / "e.gif").write_bytes(b"GIF89a")
    (folder / "plain").write_bytes((folder / "a.png").read_bytes())
    return LabelConfig(folder, tmp_path / "one", repository, model="colours", engine=EXACT)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@has_pyarrow
def test_an_address_is_labelled_as_its_folder(config, tmp_path):
    label(config)
    remote = replace(config, source=f"file://{config.source}", target=tmp_path / "two")
    summary = label(remote)
    assert (summary.written, summary.failed, summary.left_out) == (2, 2, 1)
    one, two = contents(config.target), contents(remote.target)
    left = [files.pop("failures.jsonl").decode() for files in (one, two)]
    assert one == two
    reasons = [
        {line["image"]: line for line in map(json.loads, text.splitlines())} for text in left
    ]
    assert [set(some) for some in reasons] == [
        {"plain", "sub/e.gif", "@eaDir"},
        {"plain", "sub/e.gif", "@eaDir/d.png"},
    ]
    assert reasons[0]["sub/e.gif"] == reasons[1]["sub/e.gif"]
    # Facts of the listing say that nothing changed; then one file does.
    assert label(remote).skipped == 2
    Image.new("RGB", (5, 6)).save(config.source / "a.png")
    assert (label(remote).written, label(replace(remote, source=config.source)).skipped) == (1, 2)
    (config.source / "a.png").unlink()
    with pytest.raises(OSError, match=r"a\.png"):
        open_source(remote.source).facts(Path("a.png"))


@has_pyarrow
def test_addresses_that_cannot_be_listed(config, tmp_path):
    for address, problem in (
        ("nothing://here/photos", "nothing://here/photos cannot be listed"),
        (f"file://{tmp_path}/nowhere", "nowhere cannot be listed"),
    ):
        with pytest.raises(LabelError, match=problem) as caught:
            label(replace(config, source=address))
        assert "s3://bucket/photos" in caught.value.expected
    (tmp_path / "bare").mkdir()
    with pytest.raises(LabelError, match="no image below file://"):
        label(replace(config, source=f"file://{tmp_path}/bare"))
    assert not config.target.exists()


@has_pyarrow
def test_keys_in_an_address_are_not_shown():
    address = "s3://key:secret@bucket/photos/?endpoint_override=localhost:9&scheme=http"
    source = open_source(address)
    assert (source.name, source.where(Path("a/b.png"))) == (
        "s3://bucket/photos",
        "s3://bucket/photos/a/b.png",
    )
    # The library's own errors repeat the address.
    for wrong in (address.replace("s3:", "nothing:"), f"{address}&unknown=1"):
        with pytest.raises(LabelError) as caught:
            open_source(wrong)
        assert "secret" not in str(caught.value)


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabelError, match="needs pyarrow") as caught:
        open_source("s3://bucket/photos")
    assert "wsss[ray]" in caught.value.hint


def test_what_is_an_address():
    assert parse_source("s3://bucket/photos") == "s3://bucket/photos"
    assert parse_source("photos/a:b") == Path("photos/a:b")
    assert parse_source("C://photos") == Path("C://photos")
