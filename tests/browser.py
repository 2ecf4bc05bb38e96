"""A real browser without a window, for tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service


@contextmanager
def chromium(profile: Path, width_px: int, height_px: int) -> Iterator[webdriver.Chrome]:
    """Debian's Chromium with a profile of its own, which asks nothing of the network by itself."""
    options = webdriver.ChromeOptions()
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert program, "Chromium is not installed: apt-get install chromium chromium-driver"
    assert driver, "chromedriver is not installed: apt-get install chromium-driver"
    options.binary_location = program
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--window-size={width_px},{height_px}",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    # What scripts say, and what they fail with.
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield running
    finally:
        running.quit()
