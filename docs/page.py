"""Picture the server's page for serving-http.md: in Chromium, on the models and scenes of the demo.

    make demo
    .venv/bin/python docs/page.py demo docs

The scene is the first of the validation list that is wider than high: no one picked it by its
result.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from picture import is_wide
from PIL import Image

from serving.bench import target
from trainer.data.formats.opening import open_dataset

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

from browser import chromium, until

LARGEST_FILE = 120_000
# Of the palette that a picture is saved with; screenshots have few colours but for the photograph.
COLOURS = 128
WIDE, SMALL = (1080, 920), (360, 640)


def main() -> None:
    """Write the pictures and check their sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder that `make demo` filled")
    parser.add_argument("out", type=Path, help="folder to write the PNGs into")
    arguments = parser.parse_args()
    records = open_dataset(arguments.demo / "data").subset("val")
    scene = next(record.image for record in records if is_wide(record))
    with target.server(arguments.demo / "exported") as running:
        address = f"http://127.0.0.1:{running.http_port}/"
        with chromium(*WIDE) as browser:
            segment(browser, address, scene)
            change(browser, "#model", "scenes-cam")
            save(browser, arguments.out / "page-mask.png")
        with chromium(*WIDE, dark=True) as browser:
            segment(browser, address, scene)
            change(browser, "#other", "scenes-cam")
            save(browser, arguments.out / "page-compare.png")
        with chromium(*SMALL) as browser:
            segment(browser, address, scene)
            save(browser, arguments.out / "page-small.png")


def segment(browser: Any, address: str, scene: Path) -> None:
    """Open the page and choose a picture."""
    browser.get(address)
    until(lambda: "Choose" in browser.find_element("css selector", "#status").text)
    browser.find_element("css selector", "#file").send_keys(str(scene.resolve()))
    shown(browser)


def change(browser: Any, selector: str, value: str) -> None:
    """Choose a model."""
    browser.execute_script(
        """const [selector, value] = arguments;
        delete document.querySelector("#stage").dataset.milliseconds;
        const field = document.querySelector(selector);
        field.value = value;
        field.dispatchEvent(new Event("change", { bubbles: true }));""",
        selector,
        value,
    )
    shown(browser)


def shown(browser: Any) -> None:
    """Wait for the mask."""
    stage = browser.find_element("css selector", "#stage")
    until(lambda: stage.get_attribute("data-milliseconds") and not stage.get_attribute("aria-busy"))
    # The milliseconds differ each time, and nobody should read them as a measurement.
    browser.execute_script('document.querySelector("#status").textContent = "Shown."')


def save(browser: Any, path: Path) -> None:
    """Write what the browser shows."""
    picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    picture.quantize(COLOURS).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes")
    if size > LARGEST_FILE:
        raise SystemExit(f"a screenshot is to stay below {LARGEST_FILE:,} bytes")


if __name__ == "__main__":
    main()
