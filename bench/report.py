"""Measure a report with many rows: its size, the time to write it, and the time until Chromium
shows it.

Needs chromium and chromedriver on PATH. Prints the seconds to write, the megabytes, and the seconds
to the first paint and to the end of loading.

    python bench/report.py runs/photos --images 200
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import command_line
from browser import chromium

from trainer.report.run_page import write_report

TIMES = """const entry = performance.getEntriesByType('navigation')[0];
const paint = performance.getEntriesByName('first-contentful-paint')[0];
return [paint ? paint.startTime : NaN, entry.loadEventEnd]"""


def open_page(page: Path) -> list[float]:
    """Milliseconds until the first paint and until everything is loaded, in a new browser."""
    with chromium(1300, 1000) as browser:
        browser.get(page.as_uri())
        times: list[float] = browser.execute_script(TIMES)
    return times


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("run", type=Path, help="run folder with a finished run")
    parser.add_argument("--images", type=int, default=200, help="rows of the report")
    parser.add_argument(
        "--repeats", type=int, default=5, help="times that Chromium loads it; medians count"
    )
    options = parser.parse_args()
    start = time.monotonic()
    page = write_report(options.run, options.images).absolute()
    print(f"written in {time.monotonic() - start:.1f} s, {page.stat().st_size / 1e6:.1f} MB")
    times = [open_page(page) for _ in range(options.repeats)]
    paint, load = (statistics.median(t[i] for t in times) / 1000 for i in (0, 1))
    print(f"first paint {paint:.2f} s, loaded {load:.2f} s")


if __name__ == "__main__":
    main()
