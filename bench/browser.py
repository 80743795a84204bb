"""Chromium without a window, for the programs that measure or picture the page of the server."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


@contextmanager
def chromium(width: int, height: int, dark: bool = False) -> Iterator[Any]:
    """A browser whose window has this many pixels.

    Raises:
        SystemExit: a part of it is not installed.
    """
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        raise SystemExit("selenium is missing: pip install 'wsss[dev]'") from None
    if not program or not driver:
        raise SystemExit("Chromium is missing: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    # No sandbox: as root, which machines that test often are, Chromium has none.
    for flag in (*FLAGS, "--hide-scrollbars"):
        options.add_argument(flag)
    browser = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=driver)
    )
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        yield browser
    finally:
        browser.quit()


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait for a condition."""
    ended = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ended:
            raise SystemExit(f"the page was not ready after {seconds:g} s")
        time.sleep(0.02)
