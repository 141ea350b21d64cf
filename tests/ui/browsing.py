"""A headless Chromium that reads the UI's pages: go there, wait until something is seen, press a button."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVER = "chromedriver"
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--force-device-scale-factor=1",
)


def missing() -> str | None:
    """Say what is not installed to drive a browser, or None."""
    if find_spec("selenium") is None:
        return "selenium is not installed: pip install -e '.[dev]'"
    if _browser() is None:
        return "no Chromium: apt-get install chromium chromium-driver"
    return None if shutil.which(DRIVER) else "no chromedriver: apt-get install chromium-driver"


def _browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Page:
    """A browser window on one UI."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address

    def go(self, path: str) -> None:
        self.driver.get(self.address + path)

    @property
    def text(self) -> str:
        """What is seen, with single spaces: the page's own line breaks say nothing."""
        return " ".join(self.driver.execute_script("return document.body.innerText").split())

    def wait_for(self, *texts: str, seconds: float = 60) -> str:
        """Wait until all of these are seen; return the page's text.

        Raises:
            AssertionError: one is not seen in time; says which, and what is seen.
        """
        deadline = time.monotonic() + seconds
        while any(text not in (seen := self.text) for text in texts):
            absent = [text for text in texts if text not in seen]
            assert time.monotonic() < deadline, f"{absent} not on {self.driver.current_url}:\n{seen[:3000]}"
            time.sleep(0.3)
        return seen

    def wait_for_script(self, script: str, seconds: float = 30) -> Any:
        """Wait until a JavaScript expression is true; return its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.driver.execute_script(f"return {script}")):
            assert time.monotonic() < deadline, f"{script} stays {value!r} on {self.driver.current_url}"
            time.sleep(0.3)
        return value

    def press(self, button: str) -> None:
        """Click the button with this text."""
        find = f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {button!r} && !b.disabled)"
        self.wait_for_script(f"!!{find}")
        self.driver.execute_script(f"{find}.click()")


@contextmanager
def open_page(address: str, profile: Path, *, width: int = 1800, height: int = 2400) -> Iterator[Page]:
    """Open a browser window; it and all of its processes are gone when the block ends."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = _browser() or ""
    for argument in (*_ARGUMENTS, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which(DRIVER)))
    try:
        yield Page(driver, address)
    finally:
        driver.quit()
