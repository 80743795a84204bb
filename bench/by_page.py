"""Measure the server's page in Chromium: from the drop of a JPEG to the mask on the screen.

The model is made here and has the cost of a ResNet-18. A drop is a real event with a file; the time
ends with the frame after the mask was drawn. The server's own time is that of its reply's
``server-timing``. Aim: at most 1.5 times the server's own time and 100 ms.

Prints a JSON object for each drop, then the medians.

    python bench/by_page.py
    python bench/by_page.py --side 1024 --drops 20
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import command_line
import models
from browser import chromium, until

from serving.bench import target

FACTOR, EXTRA_MS = 1.5, 100
DROP = """
const [text, done] = arguments;
const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], "photo.jpg", { type: "image/jpeg" }));
const stage = document.querySelector("#stage");
delete stage.dataset.milliseconds;
const began = performance.now();
new MutationObserver((changes, observer) => {
  if (!stage.dataset.milliseconds) return;
  observer.disconnect();
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
}).observe(stage, { attributes: true });
document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
"""


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        models.write_resnet(Path(folder))
        with target.server(Path(folder)) as running, chromium(1300, 1000) as browser:
            browser.set_script_timeout(60)
            browser.get(f"http://127.0.0.1:{running.http_port}/")
            status = browser.find_element("css selector", "#status")
            until(lambda: "Choose" in status.text)
            # The first drops warm both sides up.
            for number in range(-options.warmup, 0):
                drop(browser, options.side, number + options.warmup)
            rows = []
            for number in range(options.drops):
                rows.append(drop(browser, options.side, number))
                print(json.dumps(rows[-1]), flush=True)
    medians = {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}
    limit = FACTOR * medians["server_ms"] + EXTRA_MS
    print(json.dumps(medians | {"aim_ms": limit, "reached": medians["shown_ms"] <= limit}))


def drop(browser: Any, side: int, seed: int) -> dict[str, float]:
    """Milliseconds of one drop: in all, and on the server."""
    image = base64.b64encode(target.made_image(side, side, seed)).decode()
    shown = float(browser.execute_async_script(DROP, image))
    server = float(browser.find_element("css selector", "#stage").get_attribute("data-server"))
    return {"shown_ms": round(shown, 1), "server_ms": server, "ratio": round(shown / server, 2)}


def arguments() -> argparse.Namespace:
    parser = command_line.parser(__doc__)
    parser.add_argument("--side", type=int, default=512, help="height and width of the JPEGs")
    parser.add_argument("--drops", type=int, default=30, help="drops; medians count")
    parser.add_argument("--warmup", type=int, default=5, help="drops before them")
    return parser.parse_args()


if __name__ == "__main__":
    main()
