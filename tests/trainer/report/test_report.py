from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_run import CHOSEN, CLASSES, TRAIN, VAL, Page, add_refinement, make_run

from trainer.data.dataset import read_index_png
from trainer.evaluation.image_counts import counts_path
from trainer.evaluation.image_figures import image_figures
from trainer.evaluation.over_lists import evaluate_folder
from trainer.maps.camfile import cam_path, read_cam, upsample_cam, write_cam
from trainer.report.facts import read_facts
from trainer.report.overlays import error_layer, line_layer, mask_layer
from trainer.report.pictures import map_colours
from trainer.report.run_page import write_report

SECTIONS = (
    "results",
    "classes",
    "images",
    "threshold",
    "confusion",
    "training",
    "stages",
    "provenance",
)


@pytest.fixture
def run(tmp_path: Path, complete: Path) -> Path:
    """A copy of the complete run that a test may damage."""
    shutil.copytree(complete, tmp_path / "animals")
    return tmp_path / "animals"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report"))


def report(run: Path, **options: int) -> tuple[str, Page]:
    path = write_report(run, **options)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_a_complete_run_has_every_section_and_nothing_missing(run: Path) -> None:
    text, page = report(run)
    assert [i for i in page.ids if i in SECTIONS] == list(SECTIONS)
    assert len(page.ids) == len(set(page.ids))
    assert "Not there" not in page.text
    assert "card empty" not in text


def test_the_page_asks_for_nothing_outside_itself(run: Path) -> None:
    text, page = report(run)
    outside_pixels = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!data:image/webp;)", outside_pixels)
    for _, attrs in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/", "data:,", "#"))
    policy = next(
        m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in str(policy)


def test_figures_equal_those_of_evaluation_json(run: Path) -> None:
    _, page = report(run)
    figures = json.loads((run / "evaluation.json").read_text())
    for stage, name in (("cam", "val"), ("refined", "train"), ("segment", "val")):
        assert f"{100 * figures[stage][name]['miou']:.1f}%" in page.text
        assert f"{100 * figures[stage][name]['iou']['cat']:.1f}" in page.text
    ratio = figures["segment"]["val"]["miou"] / 0.9
    assert f"{ratio:.2f}" in page.text
    assert page.text.count("val, four scales & flip") >= 3
    assert "threshold 0.40, chosen on train masks" in page.text


def test_what_the_evaluation_has_besides_is_shown_and_may_be_missing(run: Path) -> None:
    _, page = report(run)
    for absent in ("interval", "Spread over images"):
        assert absent not in page.text
    figures = json.loads((run / "evaluation.json").read_text())
    segment = figures["segment"]["val"]
    segment["miou_interval"] = {"low": 0.123, "high": 0.456, "level": 0.95}
    segment["miou_by_convention"] = {"default": 0.41, "voc-devkit": None, "seam": 0.27}
    (run / "evaluation.json").write_text(json.dumps(figures))
    facts = read_facts(run)
    assert facts.dataset is not None
    val, folder = facts.dataset.subset("val"), run / "segment" / "predictions" / "val"
    evaluate_folder(facts.dataset, val, folder, workers=0).images.write(
        counts_path(run, "segment", "val")
    )
    counts_path(run, "cam", "val").write_bytes(b"damaged")
    _, page = report(run)
    # In the headline, the card and the table of all figures.
    assert page.text.count("12.3 to 45.6") == 3
    assert "Segmenter on val41.0––27.0–" in page.text
    miou = [100 * entry["miou"] for entry in segment["worst"]]
    assert f"Segmenter on valmedian {np.median(miou):.1f}" in page.text
    assert "CAM on valmedian" not in page.text
    assert "boundary F" in page.text


@pytest.mark.parametrize(
    ("source", "supervision", "words"),
    [
        ("label_free", "ImageNet tags", "no mask chose the threshold"),
        ("train", "ImageNet tags", "threshold from train masks"),
        ("oracle", "ImageNet tags", "oracle threshold"),
        ("fixed", "COCO masks", "initial weights saw more than tags no mask chose"),
    ],
)
def test_the_first_figure_says_what_it_rests_on(
    run: Path, source: str, supervision: str, words: str
) -> None:
    """A segmenter has no threshold; that of the masks that it learned from counts."""
    entry = json.loads((run / "manifest.json").read_text())
    entry["supervision"] = supervision
    entry["stages"]["refine"]["metrics"]["threshold_from"] = source
    (run / "manifest.json").write_text(json.dumps(entry))
    _, page = report(run)
    top = page.text[: page.text.index("Results", 100)]
    assert "mIoU of the segmenter on val" in top
    assert words in top


def test_an_oracle_threshold_is_called_one(run: Path) -> None:
    figures = json.loads((run / "evaluation.json").read_text())
    figures["cam"]["val"]["threshold_from"] = "oracle"
    (run / "evaluation.json").write_text(json.dumps(figures))
    text, page = report(run)
    assert '<span class="tag warn">oracle</span>' in text
    assert "oracle: best on this very list" in page.text


def picture(image: dict[str, str | None]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(str(image["src"]).split(",", 1)[1])))


def by_alt(page: Page) -> dict[str, dict[str, str | None]]:
    """Pictures by what they are called; the line of a map has no name of its own."""
    return {str(image["alt"]): image for image in page.all("img") if image["alt"]}


def test_pictures_are_readable_and_named(run: Path) -> None:
    _, page = report(run)
    images = by_alt(page)
    lines = [image for image in page.all("img") if image["class"] == "line"]
    assert len(images) + len(lines) == len(page.all("img"))
    assert all(image["loading"] == "lazy" for image in images.values())
    for part in ("True mask", f"CAM of {CLASSES[2]}", "Refined", "Prediction"):
        assert any(part in alt for alt in images), part
    assert any(
        s.get("aria-label") == f"{VAL[0]}: Photograph, tagged {CLASSES[0]}, {CLASSES[1]}"
        for s in page.all("span")
    )
    photos = [
        str(a["style"]).partition("--photo:url(")[2][:-1]
        for a in page.all("article")
        if a["class"] == "row"
    ]
    assert len(set(photos)) == len(VAL) + len(TRAIN)
    for photo in photos:
        with picture({"src": photo}) as opened:
            assert (opened.format, opened.size) == ("WEBP", (64, 48))
    for alt, image in images.items():
        with picture(image) as opened:
            assert opened.format == "WEBP", alt
            if "CAM of" not in alt:
                assert [str(opened.width), str(opened.height)] == [image["width"], image["height"]]


def test_masks_and_maps_in_the_page_hold_the_values_of_the_run(run: Path) -> None:
    _, page = report(run)
    images = by_alt(page)
    mask = read_index_png(run / "masks" / f"{TRAIN[1]}.png")
    with picture(images[f"{TRAIN[1]}: Refined"]) as opened:
        assert shows(opened, mask_layer(mask))
    facts = read_facts(run)
    assert facts.dataset is not None
    truth = facts.dataset.read_mask(facts.dataset.records[TRAIN[1]])
    with picture(images[f"{TRAIN[1]}: Refined, errors"]) as opened:
        assert shows(opened, error_layer(mask, truth))
    cam = read_cam(cam_path(run / "cams", VAL[1]))
    with picture(images[f"{VAL[1]}: CAM of {CLASSES[cam.classes[0]]}"]) as opened:
        levels = levels_of(opened)
    for step in range(100):
        assert ((levels > 2 * step) == (cam.maps[0] > np.float32(step / 100))).mean() > 0.995
    maps = upsample_cam(cam.maps, cam.size)
    cut = np.where(maps.max(0) > CHOSEN, cam.classes[maps.argmax(0)] + 1, 0)
    with picture(images[f"{VAL[1]}: CAM mask"]) as opened:
        assert shows(opened, mask_layer(cut))


def shows(picture: Image.Image, layer: np.ndarray) -> bool:
    """Whether a picture is a layer, pixel by pixel; what is not seen has no colour."""
    pixels = np.asarray(picture.convert("RGBA"))
    same = (pixels == layer).all(-1) | ((pixels[..., 3] == 0) & (layer[..., 3] == 0))
    return bool(same.all())


def levels_of(picture: Image.Image) -> np.ndarray:
    """The levels of a map, from its colours."""
    colours = {tuple(colour): level for level, colour in enumerate(map_colours().tolist())}
    pixels = np.asarray(picture.convert("RGB"))
    return np.array([[colours[tuple(pixel)] for pixel in row] for row in pixels.tolist()])


def test_large_maps_are_shrunk(run: Path) -> None:
    write_cam(cam_path(run / "cams", VAL[1]), (1,), np.full((1, 300, 400), 0.5), (48, 64))
    _, page = report(run)
    with picture(by_alt(page)[f"{VAL[1]}: CAM of {CLASSES[1]}"]) as opened:
        assert opened.size == (144, 108)
        assert (levels_of(opened) == 100).all()


def test_a_map_of_a_class_that_is_not_there_is_shown_without_a_figure(run: Path) -> None:
    write_cam(cam_path(run / "cams", VAL[1]), (9,), np.full((1, 12, 16), 0.5), (48, 64))
    _, page = report(run)
    assert f"{VAL[1]}: CAM of class 9" in by_alt(page)
    labels = {f["data-label"] for f in page.all("figure") if f.get("data-label")}
    assert labels == {"1", "2", "3", "4"}
    assert len([f for f in page.all("figure") if f.get("data-iou")]) == len(VAL) + len(TRAIN) - 1


def test_per_image_iou_is_that_of_the_evaluation(run: Path) -> None:
    _, page = report(run)
    figures = json.loads((run / "evaluation.json").read_text())
    for entry in figures["segment"]["val"]["worst"]:
        # Once in the worst list, once in the row of the image.
        row = page.text.rindex(entry["id"])
        assert f"Prediction {100 * entry['miou']:.1f}" in page.text[row : row + 200]
    curves = {str(f["data-iou"]) for f in page.all("figure") if f.get("data-iou")}
    step = figures["cam"]["val"]["sweep"]["thresholds"].index(CHOSEN)
    at_chosen = sorted(json.loads(curve)[step] for curve in curves)
    expected = sorted(round(100 * entry["miou"], 1) for entry in figures["cam"]["val"]["worst"])
    assert set(expected) <= set(at_chosen)


def test_every_worst_image_that_is_linked_has_a_row(run: Path) -> None:
    for count in (1, 5, 24):
        _, page = report(run, max_images=count)
        links = [
            str(a["href"]).removeprefix("#")
            for a in page.all("a")
            if str(a["href"]).startswith("#image-")
        ]
        assert links
        assert set(links) <= set(page.ids)
        assert len([i for i in page.ids if i.startswith("image-")]) <= count


def test_the_slider_starts_at_the_reported_threshold(run: Path) -> None:
    _, page = report(run)
    bar = next(d for d in page.all("div") if d.get("data-list") == "val")
    thresholds, miou = json.loads(str(bar["data-thresholds"])), json.loads(str(bar["data-miou"]))
    figures = json.loads((run / "evaluation.json").read_text())["cam"]["val"]
    assert thresholds == figures["sweep"]["thresholds"]
    assert thresholds[int(str(bar["data-start"]))] == CHOSEN
    assert miou[int(str(bar["data-start"]))] == pytest.approx(100 * figures["miou"], abs=0.01)
    assert bar["data-source"] == "chosen on train masks"
    other = next(d for d in page.all("div") if d.get("data-list") == "train")
    assert json.loads(str(other["data-miou"])) == []
    assert json.loads(str(other["data-thresholds"]))[int(str(other["data-start"]))] == 0.3
    assert other["data-source"] == "chosen without masks"


def test_refinement_and_preparations_are_shown(run: Path) -> None:
    add_refinement(run)
    _, page = report(run)
    images = by_alt(page)
    for part in ("Walk of", "AffinityNet labels", "IRNet labels", "Full supervision"):
        assert any(part in alt for alt in images), part
    walk = read_cam(cam_path(run / "walk", TRAIN[0]))
    line = line_layer(upsample_cam(walk.maps, walk.size)[0], 0.3)
    lines = [i for i in page.all("img") if i.get("class") == "line"]
    assert any(shows(picture(image), line) for image in lines)
    with picture(images[f"{TRAIN[0]}: IRNet labels"]) as opened:
        assert (224, 224, 192) in {colour for _, colour in opened.convert("RGB").getcolors()}
    assert "subcategories" in page.ids
    assert "After round1" in page.text
    assert any(i.get("title") == TRAIN[0] for i in page.all("img"))


def test_pictures_come_from_worker_processes_too(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = report(run)
    monkeypatch.setattr("trainer.report.images.FEW", 1)
    monkeypatch.setattr("trainer.pool.cores", lambda: 2)
    assert report(run)[0] == here


def test_everything_from_outside_is_escaped(run: Path) -> None:
    entry = json.loads((run / "manifest.json").read_text())
    entry["supervision"], entry["host"] = "<script>alert(1)</script>", {"name": '"><img src=x>'}
    (run / "manifest.json").write_text(json.dumps(entry))
    text, page = report(run)
    assert len(page.all("script")) == 1
    assert "<img src=x>" not in text
    assert "&lt;b&gt;bold" in text
    assert not [name for tag, attrs in page.elements for name in attrs if name.startswith("on")]
    policy = next(
        str(m["content"])
        for m in page.all("meta")
        if m.get("http-equiv") == "Content-Security-Policy"
    )
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_a_run_that_stopped_after_cams_says_what_is_not_there(run: Path) -> None:
    for name in ("evaluation.json", "metrics.csv"):
        (run / name).unlink()
    for file in [*(run / "masks").iterdir(), *(run / "segment" / "predictions" / "val").iterdir()]:
        file.unlink()
    entry = json.loads((run / "manifest.json").read_text())
    entry["stages"] = {
        "classify": entry["stages"]["classify"],
        "cams": {"status": "failed", "seconds": 3},
    }
    (run / "manifest.json").write_text(json.dumps(entry))
    text, page = report(run)
    assert [i for i in page.ids if i in SECTIONS] == list(SECTIONS)
    # Five cards, then classes, threshold, confusion and training.
    assert page.text.count("Not there yet") == 9
    assert '<li class="failed"><b>cams</b>failed</li>' in text
    assert '<li class="todo"><b>segment</b>not yet</li>' in text
    assert any("CAM of" in str(i["alt"]) for i in page.all("img"))
    assert not any("Prediction" in str(i["alt"]) for i in page.all("img"))


def test_a_bare_manifest_is_enough(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 1, "stages": {}}')
    _, page = report(tmp_path)
    assert [i for i in page.ids if i in SECTIONS] == list(SECTIONS)
    assert page.all("img") == []


def test_a_data_set_that_moved_away_leaves_the_figures(run: Path) -> None:
    entry = json.loads((run / "manifest.json").read_text())
    entry["data"]["path"] = str(run / "gone")
    (run / "manifest.json").write_text(json.dumps(entry))
    _, page = report(run)
    assert "cannot be opened here" in page.text
    assert page.all("img") == []
    assert CLASSES[2] in page.text


def test_damaged_files_cost_their_own_place_only(run: Path) -> None:
    (run / "cams" / "val_0.npz").write_bytes(b"not a zip")
    (run / "segment" / "predictions" / "val" / f"{VAL[1]}.png").write_bytes(b"not a png")
    with (run / "metrics.csv").open("a") as file:
        file.write("classify,1,broken\n")
    (run / "evaluation.json").write_text('{"cam": {')
    _, page = report(run)
    alts = [str(i["alt"]) for i in page.all("img")]
    assert not any(alt.startswith("val_0: CAM") for alt in alts)
    assert any(alt == "val_0: Prediction" for alt in alts)
    assert not any(alt == f"{VAL[1]}: Prediction" for alt in alts)
    assert "1 damaged lines of metrics.csv" in page.text
    assert "evaluation.json cannot be read" in page.text


def test_numbers_that_are_not_finite_are_dashes(run: Path) -> None:
    figures = json.loads((run / "evaluation.json").read_text())
    figures["cam"]["val"]["miou"] = float("nan")
    figures["segment"]["val"]["iou"][CLASSES[2]] = None
    (run / "evaluation.json").write_text(json.dumps(figures))
    _, page = report(run)
    assert "nan" not in re.sub(r"[a-z_]*nan[a-z_]+", "", page.text.lower())
    assert "–%" in page.text


def test_the_file_stays_small(run: Path) -> None:
    text, page = report(run)
    images = sum(len(str(i["src"])) for i in page.all("img"))
    assert len(text) - images < 120_000
    assert images < 40_000 * len(page.all("img"))


def test_many_classes_make_a_picture_of_the_confusion(run: Path) -> None:
    names = [f"class {k}" for k in range(80)]
    entry = json.loads((run / "manifest.json").read_text())
    entry["data"] |= {"path": "", "classes": names}
    (run / "manifest.json").write_text(json.dumps(entry))
    counts = np.eye(81, dtype=int) * 9
    counts[5, 7] = 1
    figures = {
        "segment": {
            "val": {"miou": 0.5, "iou": dict.fromkeys(names, 0.5), "confusion": counts.tolist()}
        }
    }
    (run / "evaluation.json").write_text(json.dumps(figures))
    text, page = report(run)
    drawn = next(svg for svg in page.all("svg") if "81 labels" in str(svg.get("aria-label")))
    assert json.loads(str(drawn["data-counts"]))[5][7] == 1
    assert "class 4" in page.text
    assert "10.0" in page.text
    assert len(text) < 400_000


def test_figures_of_image_scores_have_a_section_of_their_own(run: Path) -> None:
    _, page = report(run)
    assert "image_scores" not in page.ids
    path = run / "evaluation.json"
    evaluation = json.loads(path.read_text())
    tags, scores = (
        np.array([[1, 0, 0], [0, 1, np.nan]] * 3),
        np.random.default_rng(0).random((6, 3)),
    )
    figures = image_figures(scores, tags, CLASSES)
    lists = {
        "train": figures | {"protocol": "of <train>", "trained_on": 6},
        "val": figures | {"protocol": "of <val>", "trained_on": 0},
    }
    path.write_text(json.dumps(evaluation | {"classifier": lists}))
    text, page = report(run)
    assert page.ids.index("results") < page.ids.index("image_scores") < page.ids.index("classes")
    assert text.index("On val</h3>") < text.index("On train, which trained the classifier")
    auroc = figures["classes"][CLASSES[0]]["auroc"]
    assert f'<td class="n">{100 * auroc:.1f}</td>' in text
    assert "no image with it" in page.text
    assert "of <val>" in page.text
