"""The report in a real browser: Debian's chromium and chromium-driver, which ``.ci/run``
installs.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_run import CLASSES, TRAIN, VAL, add_refinement, make_run

from trainer.maps.camfile import cam_path, read_cam, upsample_cam
from trainer.report.overlays import line_layer, mask_layer
from trainer.report.run_page import write_report

webdriver = pytest.importorskip("selenium.webdriver")
Browser = Any

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs chromium and chromedriver on PATH",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("browser"))
    add_refinement(run)
    write_report(run)
    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    # No sandbox: as root, which machines that test often are, Chromium has none. The page is our
    # own.
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1300,1000",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Browser, run: Path) -> Browser:
    """The report, freshly opened."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get("about:blank")
    browser.get((run / "report.html").as_uri())
    browser.execute_script("document.documentElement.style.scrollBehavior = 'auto'")
    return browser


def js(page: Browser, code: str, *arguments: object) -> Any:
    return page.execute_script(code, *arguments)


def wait(page: Browser, condition: str, *arguments: object) -> None:
    code = f"""const done = arguments[arguments.length - 1], given = [...arguments];
    const holds = () => {{ {condition} }};
    const look = () => holds() ? done(true) : requestAnimationFrame(look); look();"""
    page.execute_async_script(code, *arguments)


def show(page: Browser, image: str) -> None:
    """Bring the row of an image into sight and wait for its pictures."""
    find = (
        "[...document.querySelectorAll('article.row')].find(r =>"
        " r.querySelector('button').textContent === given[0])"
    )
    js(page, f"const given = arguments; window.row = {find}; row.scrollIntoView()", image)
    wait(
        page, "return [...row.querySelectorAll('.layer')].every(i => i.complete) && sight.has(row)"
    )


def settle(page: Browser) -> None:
    """Wait for what the last event had drawn."""
    page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def slide(page: Browser, step: int) -> None:
    """Move the slider, away from the reported threshold, and wait for what the script draws."""
    code = """const bar = row.closest('.sheet').querySelector('input[type=range]');
    bar.value = arguments[0]; bar.dispatchEvent(new Event('input', {bubbles: true}))"""
    js(page, code, step)
    wait(page, "return layersOf.has(row) && row.querySelector('.cut canvas')")
    settle(page)


def pixels(page: Browser, kind: str, number: int = 0) -> np.ndarray:
    """What the script drew over a picture of the row in sight, RGBA ``uint8 [H,W,4]``."""
    code = """
        const canvas = row.querySelectorAll(`.${arguments[0]} canvas`)[arguments[1]];
    const image = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return [image.height, image.width, ...image.data]"""
    height, width, *data = js(page, code, kind, number)
    return np.array(data, np.uint8).reshape(height, width, 4)


def visible(page: Browser, selector: str) -> list[str]:
    """Classes of the pictures of the row in sight that are shown; ``canvas`` for a drawn one."""
    code = """return [...row.querySelectorAll(`${arguments[0]} :is(img, canvas)`)]
        .filter(e => getComputedStyle(e).display !== 'none').map(e => e.className || 'canvas')"""
    return js(page, code, selector)


def press(page: Browser, selector: str, key: str) -> None:
    page.find_element("css selector", selector).send_keys(getattr(webdriver.Keys, key))


def rows(page: Browser, table: str) -> list[str]:
    return js(
        page,
        f"return [...document.querySelectorAll('{table} tbody tr')].map(r =>"
        " r.cells[0].textContent)",
    )


def test_nothing_is_requested_and_nothing_goes_wrong(page: Browser, run: Path) -> None:
    for image in (VAL[1], TRAIN[0]):
        show(page, image)
    slide(page, 70)
    assert [
        entry for entry in page.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ] == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in urls if not url.startswith(("data:", "about:"))} == {
        (run / "report.html").as_uri()
    }
    assert page.title == "animals: wsss report"


def test_what_a_name_holds_is_text(page: Browser) -> None:
    assert js(page, "return document.querySelectorAll('script').length") == 1
    assert js(page, "return document.querySelectorAll('b').length") == js(
        page,
        "return [...document.querySelectorAll('b')].filter(b => b.textContent !== 'bold').length",
    )
    options = js(
        page, "return [...document.querySelector('.bar select').options].map(o => o.textContent)"
    )
    assert options == ["all classes", *CLASSES]


def test_an_injected_script_does_not_run(browser: Browser, run: Path, tmp_path: Path) -> None:
    hole = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    (tmp_path / "hole.html").write_text(
        (run / "report.html").read_text().replace("<main>", f"<main>{hole}", 1)
    )
    browser.get((tmp_path / "hole.html").as_uri())
    assert browser.title == "animals: wsss report"


def test_sorting_by_click_and_keyboard_changes_the_order(page: Browser) -> None:
    written = rows(page, "table.iou")
    buttons = "table.iou thead th:nth-child({}) button"
    assert js(
        page,
        "return [...document.querySelectorAll('table.iou')[0].tHead.rows[0].cells].map(h =>"
        " h.ariaSort)",
    ) == [
        "none",
        None,
        "none",
        "none",
        "none",
    ]
    page.find_element("css selector", buttons.format(3)).click()
    read = (
        "return [...document.querySelectorAll('table.iou')[0].tBodies[0].rows].map(r =>"
        " parseFloat(r.cells[2].textContent))"
    )
    values = js(page, read)
    assert values == sorted(values, reverse=True)
    press(page, buttons.format(3), "ENTER")
    assert js(page, read) == sorted(values)
    assert (
        js(page, "return document.querySelector('table.iou th:nth-child(3)').ariaSort")
        == "ascending"
    )
    press(page, buttons.format(1), "SPACE")
    first = js(
        page,
        "return [...document.querySelectorAll('table.iou')[0].tBodies[0].rows].map(r =>"
        " r.cells[0].textContent)",
    )
    assert first == js(page, "return [...arguments[0]].sort((a, b) => a.localeCompare(b))", first)
    assert js(page, "return document.querySelector('table.iou th:nth-child(3)').ariaSort") == "none"
    for _ in range(2):
        press(page, buttons.format(1), "SPACE")
    assert rows(page, "table.iou") == written
    assert js(page, "return document.querySelector('table.iou tfoot').textContent").startswith(
        "mean"
    )


def test_the_slider_cuts_the_maps_as_the_evaluation_does(page: Browser, run: Path) -> None:
    show(page, VAL[0])
    cam = read_cam(cam_path(run / "cams", VAL[0]))
    maps = upsample_cam(cam.maps, cam.size)
    sweep = json.loads((run / "evaluation.json").read_text())["cam"]["val"]["sweep"]
    for step in (5, 30, 60, 95):
        slide(page, step)
        at = sweep["thresholds"][step]
        expected = mask_layer(np.where(maps.max(0) > at, cam.classes[maps.argmax(0)] + 1, 0))
        # A pixel at the very threshold may fall on either side of it.
        assert same(pixels(page, "cut"), expected)
        for k in range(len(cam.classes)):
            assert same(pixels(page, "map", k), line_layer(maps[k], at))
        assert f"mIoU {100 * sweep['miou'][step]:.1f} on val" in js(
            page, "return row.parentNode.querySelector('output').textContent"
        )


def same(drawn: np.ndarray, layer: np.ndarray) -> bool:
    """Whether two pictures look alike, but for a few pixels: maps are rounded to 200 levels."""
    alike = np.abs(drawn.astype(int) - layer).max(-1) <= 2
    alike |= (drawn[..., 3] == 0) & (layer[..., 3] == 0)
    shown = (drawn[..., 3] > 0) == (layer[..., 3] > 0)
    return bool(alike.mean() > 0.95 and shown.mean() > 0.95)


def test_pictures_are_ready_and_the_script_replaces_only_what_moves(page: Browser) -> None:
    show(page, VAL[0])
    assert js(page, "return document.querySelectorAll('canvas').length") == 0
    assert visible(page, ".map") == ["layer", "line"] * 2
    assert visible(page, ".cut") == ["layer"]
    assert set(visible(page, ".mask")) == {"layer"}
    slide(page, 20)
    assert visible(page, ".map") == ["layer", "canvas"] * 2
    assert visible(page, ".cut") == ["canvas"]
    assert set(visible(page, ".mask")) == {"layer"}


def test_errors_are_shown_and_hidden(page: Browser) -> None:
    show(page, VAL[0])
    toggle = "row.parentNode.querySelector('.view input').click()"
    js(page, toggle)
    assert set(visible(page, ".mask")) == set(visible(page, ".cut")) == {"errors"}
    assert visible(page, ".truth") == ["layer"]
    # Its errors are those at the reported threshold: elsewhere the mask itself is shown.
    slide(page, 20)
    assert visible(page, ".cut") == ["canvas"]
    js(page, toggle)
    assert set(visible(page, ".mask")) == {"layer"}


def test_the_slider_says_what_is_reported_and_goes_back_to_it(page: Browser, run: Path) -> None:
    show(page, VAL[2])
    said = "return row.parentNode.querySelector('output').textContent"
    start = js(page, said)
    assert re.match(r"0\.4[12] · mIoU \d+\.\d on valchosen on train masks", start)
    assert js(page, "return row.parentNode.querySelector('.back').hidden")
    iou = js(page, "return row.querySelector('.cut b').textContent")
    worst = json.loads((run / "evaluation.json").read_text())["cam"]["val"]["worst"]
    assert iou == next(f"{100 * w['miou']:.1f}" for w in worst if w["id"] == VAL[2])
    for _ in range(40):
        press(page, ".bar input[type=range]", "ARROW_RIGHT")
    settle(page)
    assert " against " in js(page, said)
    assert visible(page, ".cut") == ["canvas"]
    assert js(
        page, "return row.parentNode.querySelector('input[type=range]').ariaValueText"
    ).endswith("on train masks")
    page.find_element("css selector", ".back").click()
    settle(page)
    assert js(page, said) == start
    assert visible(page, ".cut") == ["layer"]


def test_a_walked_map_has_its_own_line_and_does_not_move(page: Browser) -> None:
    show(page, TRAIN[1])
    slide(page, 80)
    assert visible(page, ".walk") == ["layer", "line"]
    assert visible(page, ".map") == ["layer", "canvas"]


def test_only_rows_in_sight_are_drawn(page: Browser) -> None:
    show(page, VAL[0])
    slide(page, 80)
    drawn = "document.querySelectorAll('article.row canvas').length"
    assert js(page, f"return {drawn}") > 0
    js(page, "document.querySelector('#provenance').scrollIntoView()")
    wait(page, f"return {drawn} === 0")
    show(page, VAL[0])
    wait(page, f"return {drawn} > 0")


def test_links_to_worst_images_lead_to_their_rows(page: Browser) -> None:
    links = js(
        page,
        "return [...document.querySelectorAll('.worst a')].map(a => [a.getAttribute('href'),"
        " a.textContent])",
    )
    assert {name for _, name in links} == {*VAL, *TRAIN}
    for href, name in links:
        target = (
            "return"
            " document.getElementById(arguments[0].slice(1)).querySelector('button').textContent"
        )
        assert js(page, target, href) == name
        js(page, "location.hash = arguments[0]", href)
        assert js(page, "return document.querySelector(':target button').textContent") == name


def test_a_link_to_a_row_that_is_filtered_out_shows_it(page: Browser) -> None:
    show(page, VAL[1])
    js(
        page,
        """const select = row.parentNode.querySelector('select'); select.value = '1';
       select.dispatchEvent(new Event('change'))""",
    )
    assert js(page, "return row.hidden")
    js(page, "location.hash = row.id")
    wait(page, "return !row.hidden")


def test_a_row_is_enlarged_and_left_by_keyboard(page: Browser) -> None:
    show(page, VAL[1])
    js(page, "row.querySelector('button').focus()")
    page.switch_to.active_element.send_keys(webdriver.Keys.ENTER)
    assert js(page, "return document.querySelectorAll('#zoom .pic').length") >= 3
    title = "return document.querySelector('#zoom p').firstChild.textContent"
    assert js(page, title) == VAL[1]
    page.switch_to.active_element.send_keys(webdriver.Keys.ARROW_RIGHT)
    wait(
        page, "return document.querySelector('#zoom p').firstChild.textContent === given[0]", VAL[2]
    )
    # Enlarged pictures follow the slider too.
    page.switch_to.active_element.send_keys(webdriver.Keys.ESCAPE)
    slide(page, 30)
    js(page, "row.querySelector('button').click()")
    wait(page, "return document.querySelectorAll('#zoom .sheet, #zoom canvas').length >= 2")
    page.switch_to.active_element.send_keys(webdriver.Keys.ESCAPE)
    assert not js(page, "return document.querySelector('#zoom').open")


def test_cells_of_the_confusion_are_read_by_pointer_and_keyboard(page: Browser, run: Path) -> None:
    counts = json.loads((run / "evaluation.json").read_text())["segment"]["val"]["confusion"]
    svg = page.find_element("css selector", ".confusion svg")
    js(page, "arguments[0].scrollIntoView({block: 'center'})", svg)
    said = "return document.querySelector('.confusion figcaption').textContent"
    svg.send_keys(webdriver.Keys.ARROW_DOWN)
    svg.send_keys(webdriver.Keys.ARROW_DOWN)
    share = 100 * counts[1][0] / sum(counts[1])
    assert (
        js(page, said)
        == f"{CLASSES[0]} → background: {share:.1f} % of {CLASSES[0]}, {counts[1][0]:,} pixels"
    )
    cell = page.find_elements("css selector", ".confusion svg rect[fill-opacity]")[0]
    webdriver.ActionChains(page).move_to_element(cell).perform()
    assert js(page, said).startswith("background → background")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_light_and_dark(page: Browser, dark: bool) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    try:
        show(page, VAL[0])
        assert js(page, "return document.documentElement.scrollWidth") <= 400
        colour = js(page, "return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, colour[4:-1].split(","))) < 150) == dark
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_it_prints(page: Browser) -> None:
    printed = page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 100_000
    assert js(page, "return document.querySelectorAll('details:not([open])').length") == 0
