"""Pages in the system's Chromium, driven by Playwright, without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Error, Page, sync_playwright

NAMES = ("google-chrome-stable", "google-chrome", "chromium", "chromium-browser", "chrome")
# The second line of defence beside an offline context: no name has an address.
FLAGS = ("--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND")
FAULTS = Path(__file__).with_name("faults.js")
WIDTHS = (1440, 1200, 390)  # px: a desktop, a small laptop, a phone
READY = "document.body && document.body.dataset.ready === 'yes'"


def executable() -> str | None:
    """The system's Chromium or Chrome; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """A tab. `complaints` holds what the page said on its console or threw, `requests` the
    addresses that it asked for."""

    def __init__(self, tab: Page) -> None:
        self.tab = tab
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.read: tuple[Path, int, bool] | None = None  # what is open, as it was opened
        tab.on("console", lambda message: self.complaints.append(message.text))
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        tab.on("request", lambda request: self.requests.append(request.url))

    def open(self, page: Path, width: int = 1440, dark: bool = False, where: str = "") -> None:
        """Open a page and wait until all of it is drawn. where: what follows `#` in its address."""
        self.read = None
        # An address that differs in that alone would not load the page again.
        self.tab.goto("about:blank")
        self.complaints.clear()
        self.requests.clear()
        self.tab.set_viewport_size({"width": width, "height": 900})
        self.tab.emulate_media(media="screen", color_scheme="dark" if dark else "light")
        self.tab.goto(page.resolve().as_uri() + where)
        self.wait(READY)

    def look(self, page: Path, width: int = 1440, dark: bool = False) -> None:
        """Open a page for a test that only reads it, unless the one before did so too."""
        if self.read != (page, width, dark):
            self.open(page, width, dark)
            self.read = (page, width, dark)

    def on_paper(self, width: int) -> None:
        """Lay the open page out as for printing on paper that is so wide, in px."""
        self.read = None
        self.tab.set_viewport_size({"width": width, "height": 900})
        self.tab.emulate_media(media="print")
        self.evaluate("dispatchEvent(new Event('beforeprint'))")

    def evaluate(self, expression: str) -> Any:
        return self.tab.evaluate(expression)

    def wait(self, expression: str) -> None:
        """Wait until `expression` is true, for 30 seconds."""
        try:
            self.tab.wait_for_function(f"() => Boolean({expression})")
        except Error as error:
            raise AssertionError(f"never came true: {expression}; {self.complaints}") from error

    def faults(self) -> dict[str, list[str]]:
        """What cannot be read on the page; see `faults.js`."""
        found: dict[str, list[str]] = self.tab.evaluate(FAULTS.read_text())
        return found

    def choose(self, name: str, value: object) -> None:
        """Choose `value` in the selection `name`. Where that draws all again, `READY` says when."""
        self.read = None
        self.evaluate(
            f"(() => {{ const s = document.querySelector('select[name={name}]');"
            f" s.value = '{value}'; delete document.body.dataset.ready;"
            " s.dispatchEvent(new Event('change', { bubbles: true })); })()"
        )

    def pdf(self, path: Path) -> None:
        """Print the page as a person would."""
        self.read = None
        self.tab.emulate_media(media="print")
        self.tab.pdf(path=path, prefer_css_page_size=True)


@contextmanager
def chromium() -> Iterator[Chromium]:
    """A tab without a network, closed at the end."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable(), args=list(FLAGS))
        yield Chromium(browser.new_context(offline=True).new_page())
        browser.close()
