"""A report with many rows: size, and the time until Chromium shows it, against the same pictures
made ready in Python.

The report holds each photograph once, maps and masks as small PNGs of their values, and draws what
is in sight. The other page holds the same pictures as the JPEGs that trainer/report/overlays.py
draws. Needs chromium and chromedriver on PATH.

python bench/report.py runs/photos --images 200
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from selenium import webdriver

from trainer.report.overlays import overlay_cam, overlay_mask
from trainer.report.run_page import write_report

PICTURE = re.compile(r'<span class="pic"><img class="(\w+)" src="data:image/png;base64,([^"]+)"')
ROW = re.compile(r"--photo:url\(data:image/jpeg;base64,([^)]+)\)")


def pixels(text: str, mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image if mode == "P" else image.convert(mode))


def address(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=80, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def ready_made(page: str) -> str:
    """The page with every picture drawn beforehand, and without the script."""
    rows = re.split(
        r'(?=<article class="row")', re.sub(r"<script>.*</script>", "", page, flags=re.DOTALL)
    )
    for i, row in enumerate(rows):
        if not (found := ROW.search(row)):
            continue
        photo = pixels(found[1], "RGB")

        def drawn(match: re.Match[str], photo: np.ndarray = photo) -> str:
            if match[1] == "map":
                values = Image.fromarray(pixels(match[2], "L")).resize(
                    photo.shape[1::-1], Image.Resampling.BILINEAR
                )
                picture = overlay_cam(photo, np.asarray(values) / 200, threshold=0.4)
            else:
                picture = overlay_mask(photo, pixels(match[2], "P"))
            return f'<span class="pic"><img style="opacity:1" src="{address(picture)}"'

        rows[i] = PICTURE.sub(drawn, row)
    return "".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    start = time.monotonic()
    written = write_report(options.run, options.images)
    print(f"written in {time.monotonic() - start:.1f} s")
    chrome = webdriver.ChromeOptions()
    chrome.binary_location = str(shutil.which("chromium"))
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        chrome.add_argument(flag)
    with tempfile.TemporaryDirectory() as folder:
        pages = {"report": Path(folder) / "report.html", "ready-made": Path(folder) / "ready.html"}
        pages["report"].write_bytes(written.read_bytes())
        pages["ready-made"].write_text(ready_made(written.read_text()))
        times: dict[str, list[list[float]]] = {name: [] for name in pages}
        for _ in range(options.repeats):
            for name, path in pages.items():
                driver = webdriver.Chrome(
                    options=chrome, service=webdriver.ChromeService(shutil.which("chromedriver"))
                )
                driver.get(path.as_uri())
                code = """const entry = performance.getEntriesByType('navigation')[0];
                const paint = performance.getEntriesByName('first-contentful-paint')[0];
                return [paint ? paint.startTime : NaN, entry.loadEventEnd]"""
                times[name].append(driver.execute_script(code))
                driver.quit()
        size = {name: path.stat().st_size / 1e6 for name, path in pages.items()}
    for name in pages:
        paint, load = (statistics.median(t[i] for t in times[name]) / 1000 for i in (0, 1))
        print(f"{name}: {size[name]:.1f} MB, first paint {paint:.2f} s, loaded {load:.2f} s")
    print(f"size ready-made / report: {size['ready-made'] / size['report']:.1f}")


if __name__ == "__main__":
    main()
