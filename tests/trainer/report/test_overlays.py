from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from trainer.evaluation.boundary import contour
from trainer.report.overlays import (
    ERRORS,
    colourise,
    contact_sheet,
    error_map,
    heat,
    legend,
    overlay_cam,
    overlay_mask,
)

GREY = np.full((12, 16, 3), 120, np.uint8)


def square(label: int) -> np.ndarray:
    mask = np.zeros((12, 16), np.uint8)
    mask[3:9, 4:12] = label
    return mask


def test_colourise_gives_the_voc_colours() -> None:
    mask = np.array([[0, 1, 8], [15, 20, 255]], np.uint8)
    expected = [
        [[0, 0, 0], [128, 0, 0], [64, 0, 0]],
        [[192, 128, 128], [0, 64, 128], [224, 224, 192]],
    ]
    np.testing.assert_array_equal(colourise(mask), expected)


def test_contour_marks_both_sides_of_a_border_and_nothing_else() -> None:
    edge = contour(np.array([[0, 0, 1, 1]]))
    assert edge.tolist() == [[False, True, True, False]]
    assert not contour(np.zeros((4, 4))).any()


def test_overlay_mask_leaves_background_and_blends_regions() -> None:
    out = overlay_mask(GREY, square(1), alpha=0.5)
    assert (out[0] == 120).all()
    inner = out[5, 7]
    np.testing.assert_array_equal(inner, [124, 60, 60])
    assert (out[3, 4] == [192, 128, 128]).all()


def test_overlay_mask_at_alpha_0_shows_contours_only() -> None:
    out = overlay_mask(GREY, square(2), alpha=0.0)
    changed = (out != 120).any(-1)
    np.testing.assert_array_equal(changed, contour(square(2)) & (square(2) > 0))


def test_ignored_pixels_are_hatched() -> None:
    out = overlay_mask(GREY, np.full((12, 16), 255, np.uint8), alpha=1.0)
    share = (out != 120).any(-1).mean()
    assert 0.25 < share < 0.42
    assert {tuple(p) for p in out.reshape(-1, 3).tolist()} == {(120, 120, 120), (224, 224, 192)}


def test_heat_rises_in_lightness_from_black_to_pale_yellow() -> None:
    colours = heat(np.linspace(0, 1, 256)).astype(float)
    light = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > -0.75).all()
    assert light[0] < 2
    assert light[-1] > 240
    np.testing.assert_array_equal(heat([-1.0, 2.0]), heat([0.0, 1.0]))


def test_overlay_cam_is_bright_where_the_map_is_and_grey_where_it_is_not() -> None:
    cam = np.zeros((12, 16))
    cam[:, 8:] = 1
    photo = np.zeros((12, 16, 3), np.uint8)
    photo[..., 0] = 200
    out = overlay_cam(photo, cam).astype(int)
    assert out[:, 8:].sum() > 4 * out[:, :8].sum()
    assert np.ptp(out[0, 0]) < 6


def test_overlay_cam_draws_the_threshold_inside_the_region() -> None:
    cam = square(1) * 0.8
    out = overlay_cam(GREY, cam, threshold=0.5)
    white = (out == 255).all(-1)
    np.testing.assert_array_equal(white, contour(cam > 0.5) & (cam > 0.5))


def test_overlay_cam_survives_nan() -> None:
    np.testing.assert_array_equal(
        overlay_cam(GREY, np.full((12, 16), np.nan)), overlay_cam(GREY, np.zeros((12, 16)))
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: overlay_mask(GREY, np.zeros((5, 5), np.uint8)), r"\[12, 16\].*\[5, 5\]"),
        (lambda: overlay_mask(GREY, np.zeros((12, 16), np.uint8), alpha=1.5), "alpha is 1.5"),
        (lambda: overlay_mask(GREY[..., 0], np.zeros((12, 16), np.uint8)), "uint8 .H,W,3"),
        (lambda: overlay_mask(GREY.astype(np.float32), np.zeros((12, 16), np.uint8)), "float32"),
        (lambda: colourise(np.zeros((2, 2), np.float32)), "integer"),
        (lambda: overlay_cam(GREY, np.zeros((1, 12, 16))), "over it"),
        (lambda: contact_sheet([]), "at least one"),
    ],
)
def test_wrong_input_is_named(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_contact_sheet_aligns_columns_and_scales_to_one_height() -> None:
    wide = Image.new("RGB", (80, 40), (255, 0, 0))
    tall = Image.new("RGB", (20, 40), (0, 0, 255))
    sheet = np.asarray(
        contact_sheet(
            [[(wide, "wide"), (tall, "")], [(tall, "tall"), (wide, "a very long caption " * 4)]], 40
        )
    )
    red, blue = (sheet == [255, 0, 0]).all(-1), (sheet == [0, 0, 255]).all(-1)
    assert red.sum() == 2 * 80 * 40
    assert blue.sum() == 2 * 20 * 40
    first_row, second_row = sheet.shape[0] // 4, sheet.shape[0] - sheet.shape[0] // 4 - 10
    assert np.flatnonzero(blue[first_row])[0] == np.flatnonzero(red[second_row])[0]


def test_contact_sheet_closes_with_the_legend() -> None:
    picture = np.zeros((40, 200, 3), np.uint8)
    plain, with_key = (
        contact_sheet([[(picture, "x")]], 40),
        contact_sheet([[(picture, "x")]], 40, ["cat", "dog"]),
    )
    assert with_key.height > plain.height
    assert (np.asarray(with_key)[plain.height :] == [0, 128, 0]).all(-1).any()


def test_legend_wraps_and_shows_every_colour() -> None:
    names = [f"class {i}" for i in range(8)]
    narrow, wide = legend(names, 200), legend(names, 900)
    assert narrow.height > wide.height
    pixels = {tuple(p) for p in np.asarray(narrow).reshape(-1, 3).tolist()}
    assert set(map(tuple, colourise(np.arange(1, 9, dtype=np.uint8)[None])[0].tolist())) <= pixels


def test_marks_stand_in_the_legend_after_the_classes() -> None:
    shown = {tuple(p) for p in np.asarray(legend(["cat"], 640, ERRORS)).reshape(-1, 3).tolist()}
    assert {(128, 0, 0), *ERRORS.values()} <= shown


def test_an_error_map_tells_found_missed_invented_and_wrong_apart() -> None:
    truth = np.array([[0, 0, 1, 1, 1, 255]], np.uint8)
    pred = np.array([[0, 2, 1, 255, 2, 1]], np.uint8)
    shown = error_map(np.full((1, 6, 3), 100, np.uint8), pred, truth)[0].astype(int)
    found, missed, invented, wrong = (np.array(colour) for colour in ERRORS.values())
    np.testing.assert_array_equal(shown[0], [100, 100, 100])
    for pixel, colour in ((1, invented), (2, found), (3, missed), (4, wrong)):
        np.testing.assert_allclose(shown[pixel], 0.3 * 100 + 0.7 * colour, atol=1)
    assert shown[5].max() <= 100
    with pytest.raises(ValueError, match="the image is"):
        error_map(np.zeros((2, 6, 3), np.uint8), pred, truth)
