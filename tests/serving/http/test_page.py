"""The page in a real browser: Debian's chromium and chromium-driver, which ``.ci/run`` installs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from configs import configured
from http_calls import ask
from PIL import Image
from servers import running

from serving.access import tokens
from serving.client import Client
from serving.server import Server

PAGE = Path(__file__).resolve().parents[3] / "serving" / "http" / "page"
HALVES = np.zeros((60, 90, 3), np.uint8)
HALVES[:, :45, 0] = 220
HALVES[:, 45:, 1] = 220


def test_the_page_is_three_short_files_that_need_nothing_else():
    texts = [path.read_text() for path in sorted(PAGE.iterdir())]
    assert len(texts) == 3
    assert sum(text.count("\n") for text in texts) < 900
    assert not any("://" in text for text in texts)


webdriver = pytest.importorskip("selenium.webdriver")
needs_browser = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs chromium and chromedriver on PATH",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    # No sandbox: as root, which machines that test often are, Chromium has none.
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1300,1000")
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    tiny_models.export(root, "colours", golden=True, doubt=True)
    thresholds = {"thresholds": {"background": 0.6, "score": 0.3}}
    tiny_models.export(root, "maps", "cam", changes=thresholds, golden=True)
    return root


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with running(configured(models, network__http_port=0)) as started:
        yield started


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "halves.png"
    Image.fromarray(HALVES).save(path)
    return path


def open_page(browser: Any, server: Server) -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(f"http://{server.http_address}/")
    until(lambda: "Loading" not in status(browser))


def until(condition: Any, seconds: float = 60.0) -> None:
    ended = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ended
        time.sleep(0.05)


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def status(browser: Any) -> str:
    return str(find(browser, "#status").text)


def set_value(browser: Any, selector: str, value: object) -> None:
    code = """const field = document.querySelector(arguments[0]);
    field.value = arguments[1];
    for (const kind of ['input', 'change']) {
      field.dispatchEvent(new Event(kind, {bubbles: true}));
    }"""
    browser.execute_script(code, selector, str(value))


def segmented(browser: Any, action: Any) -> None:
    """Do something and wait for the mask that follows."""
    browser.execute_script("delete document.querySelector('#stage').dataset.milliseconds")
    action()
    until(lambda: find(browser, "#stage").get_attribute("data-milliseconds"))
    assert "Shown after" in status(browser)


def choose(browser: Any, picture: Path) -> None:
    segmented(browser, lambda: find(browser, "#file").send_keys(str(picture)))


def pixel(browser: Any, x: int, y: int, canvas: str = "#one") -> list[int]:
    """The colour of the stage at a pixel of the picture."""
    code = """const canvas = document.querySelector(arguments[0]);
    const scale = canvas.width / arguments[3];
    const [x, y] = [arguments[1], arguments[2]].map((place) => Math.floor(place * scale));
    return [...canvas.getContext('2d').getImageData(x, y, 1, 1).data]"""
    found: list[int] = browser.execute_script(code, canvas, x, y, HALVES.shape[1])
    return found[:3]


def rows(browser: Any) -> list[str]:
    return [row.text.split()[0] for row in browser.find_elements("css selector", "tbody tr")]


def downloaded(browser: Any, button: str, name: str) -> bytes:
    path = browser.downloads / name
    path.unlink(missing_ok=True)
    find(browser, button).click()
    until(path.exists)
    return path.read_bytes()


@needs_browser
def test_a_picture_gets_its_mask_maps_and_downloads(browser: Any, server: Server, picture: Path):
    open_page(browser, server)
    set_value(browser, "#opacity", 1)
    choose(browser, picture)
    assert rows(browser) == ["red", "green"]
    assert (pixel(browser, 10, 10), pixel(browser, 80, 10)) == ([128, 0, 0], [0, 128, 0])
    caption = find(browser, "caption").text
    assert find(browser, "#absent").text.startswith("Not present: blue 0.0")
    assert not find(browser, "[name=view][value=map]").is_enabled(), "a segmenter has no map"
    assert caption.endswith(f"doubt {tiny_models.expected_doubt(HALVES):.2f}")
    with Client(server.address) as client:
        expected = client.segment(picture, "colours").reply
    assert downloaded(browser, "#png", "mask.png") == expected.mask.png
    reply = json.loads(downloaded(browser, "#json", "reply.json"))
    assert [one["name"] for one in reply["classes"] if one["present"]] == ["red", "green"]
    find(browser, "[name=view][value=photo]").click()
    assert pixel(browser, 10, 10) == [220, 0, 0]
    segmented(browser, lambda: set_value(browser, "#model", "maps"))
    names = [one.text for one in browser.find_elements("css selector", "#maps button")]
    assert names == ["red", "green"]
    browser.find_elements("css selector", "#maps button")[1].click()
    dark, bright = pixel(browser, 10, 10), pixel(browser, 80, 10)
    assert sum(bright) > sum(dark) + 200, "the map of green is bright at the right"
    assert "map of green" in find(browser, "#one").get_attribute("aria-label")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


@needs_browser
def test_tags_and_thresholds_change_the_mask(browser: Any, server: Server, picture: Path):
    open_page(browser, server)
    set_value(browser, "#model", "maps")
    choose(browser, picture)
    assert rows(browser) == ["red", "green"]
    box = find(browser, "#tags input[value=green]")
    segmented(browser, box.click)
    assert rows(browser) == ["green"]
    segmented(browser, box.click)
    segmented(browser, lambda: set_value(browser, "#ground", 0.95))
    assert rows(browser) == ["background"]
    segmented(browser, find(browser, "#reset").click)
    assert rows(browser) == ["red", "green"]


@needs_browser
def test_two_models_lie_over_each_other(browser: Any, server: Server, picture: Path):
    open_page(browser, server)
    set_value(browser, "#opacity", 1)
    choose(browser, picture)
    assert not find(browser, "#two").is_displayed()
    segmented(browser, lambda: set_value(browser, "#other", "maps"))
    assert find(browser, "#two").is_displayed()
    assert pixel(browser, 80, 10, "#two") == [0, 128, 0]
    assert find(browser, "#ground").get_attribute("value") == "0.6", "that of maps"
    set_value(browser, "#slider", 20)
    clip = "return getComputedStyle(document.querySelector('#two')).clipPath"
    assert "20%" in browser.execute_script(clip)
    assert "Right: maps" in find(browser, "#names").text


@needs_browser
def test_the_sample_needs_no_picture_of_ones_own(browser: Any, server: Server):
    open_page(browser, server)
    segmented(browser, find(browser, "#sample").click)
    assert find(browser, "caption").text.startswith("colours version 1, 56 × 40")


@needs_browser
def test_what_is_no_picture_is_told_and_the_last_one_goes(
    browser: Any, server: Server, picture: Path, tmp_path: Path
):
    open_page(browser, server)
    choose(browser, picture)
    path = tmp_path / "no.jpg"
    path.write_text("no picture")
    find(browser, "#file").send_keys(str(path))
    until(lambda: "expected" in status(browser))
    assert "wrong" in find(browser, "#status").get_attribute("class")
    until(lambda: not find(browser, "#one").is_displayed())
    assert not find(browser, "#png").is_enabled()


@needs_browser
def test_of_two_pictures_the_one_chosen_last_is_shown(
    browser: Any, server: Server, picture: Path, tmp_path: Path
):
    open_page(browser, server)
    other = tmp_path / "other.png"
    Image.fromarray(HALVES[:, ::-1]).save(other)
    # The first picture takes the browser longer than the second.
    browser.execute_script(
        """const decode = window.createImageBitmap;
        const pause = new Promise((end) => setTimeout(end, 1500));
        let count = 0;
        window.createImageBitmap = (blob) =>
          count++ ? decode(blob) : pause.then(() => decode(blob));"""
    )
    find(browser, "#file").send_keys(str(picture))
    choose(browser, other)
    time.sleep(2)
    find(browser, "[name=view][value=photo]").click()
    assert (pixel(browser, 10, 10), pixel(browser, 80, 10)) == ([0, 220, 0], [220, 0, 0])


@needs_browser
def test_a_server_with_tokens_asks_for_one(
    browser: Any, models: Path, picture: Path, tmp_path: Path
):
    secret, line = tokens.new_token("reader", ["infer"])
    (tmp_path / "tokens").write_text(f"{line}\n")
    config = configured(models, network__http_port=0, access__tokens=tmp_path / "tokens")
    with running(config) as server:
        open_page(browser, server)
        assert "no token" in status(browser)
        field = find(browser, "#token")
        assert field.is_displayed()
        field.send_keys("wrong")
        find(browser, "#enter").click()
        until(lambda: "unknown token" in status(browser))
        field.clear()
        field.send_keys(secret)
        find(browser, "#enter").click()
        until(lambda: "Choose a picture" in status(browser))
        choose(browser, picture)
        assert rows(browser) == ["red", "green"]
        browser.execute_script("sessionStorage.clear()")


@needs_browser
def test_it_fits_small_screens_is_dark_where_wanted_and_asks_only_its_server(
    browser: Any, server: Server, picture: Path
):
    size = browser.get_window_size()
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        open_page(browser, server)
        choose(browser, picture)
        wide = "return document.documentElement.scrollWidth"
        assert browser.execute_script(wide) <= 360
        colour = "return getComputedStyle(document.body).backgroundColor"
        assert browser.execute_script(colour) == "rgb(21, 24, 27)"
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.set_window_size(size["width"], size["height"])
    entries = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    urls = [
        entry["params"]["request"]["url"]
        for entry in entries
        if entry["method"] == "Network.requestWillBeSent"
    ]
    assert urls
    origin = f"http://{server.http_address}/"
    assert not [url for url in urls if not url.startswith((origin, "data:", "blob:"))]


@needs_browser
def test_everything_is_reached_by_the_keyboard(browser: Any, server: Server, picture: Path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_page(browser, server)
    choose(browser, picture)
    reached = set()
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.add(browser.execute_script("return document.activeElement.id"))
    expected = {"file", "sample", "model", "other", "score", "sure", "reset", "opacity", "png"}
    assert expected <= reached


def test_the_page_may_load_nothing_from_elsewhere(server: Server):
    page = ask(server.http_address, "/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for path, kind in (("/page.css", "text/css"), ("/page.js", "text/javascript")):
        reply = ask(server.http_address, path)
        assert (reply.status, reply.headers.get_content_type()) == (200, kind)
