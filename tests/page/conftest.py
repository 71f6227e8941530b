"""A real Chromium, and pages for it."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

READY = "html[data-ready=yes]"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser; tests that want one are skipped where there is none."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    found = next((p for name in ("chromium", "chromium-browser", "google-chrome")
                  if (p := shutil.which(name))), None)  # fmt: skip
    if found is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--headless"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Callable[..., Any]:
    """Open a page from its file; whatever it says, asks or fetches fails the test."""

    @contextmanager
    def opened(path: Path, address: str = "", **options: Any) -> Iterator[Any]:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        page = context.new_page()
        heard: list[str] = []
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"),
                                          dialog.dismiss()))  # fmt: skip
        page.on("request", lambda request: None if request.url.startswith(("data:", "file:"))
                else heard.append(f"request: {request.url}"))  # fmt: skip
        page.goto(path.as_uri() + address)
        page.wait_for_selector(READY, timeout=30_000)
        yield page
        page.wait_for_timeout(50)
        assert heard == []
        context.close()

    return opened
