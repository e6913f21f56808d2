"""Make the pictures of docs/gallery.md and README.md anew: `python scripts/gallery.py [NAME...]`.

Each is a part of a page that `orchestrator` writes of published results, as Chromium draws it:
light, offline, 1100 px wide. docs/pictures/ holds them.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from shown_output import environment, workplace

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
WIDTH, HEIGHT = 1100, 760  # px; a part that is higher is cut
WHOLE = 940  # px: as high as the charts that are shown
MATRIX = "orchestrator matrix --model qwen2.5-32b,llama-70b --out matrix"
MOST_BYTES = 150_000
PROGRAMS = ("google-chrome-stable", "google-chrome", "chromium", "chromium-browser", "chrome")
# A page without charts has nothing to draw.
READY = (
    "() => document.body && "
    "(document.body.dataset.ready === 'yes' || !document.querySelector('[data-chart]'))"
)


@dataclass(frozen=True)
class Picture:
    """commands: those that write `page`, a path of the place where they run. part: the id of a
    section, or none for the top of the page. where: what follows `#` in the address. height: at
    most, in px."""

    name: str
    commands: tuple[str, ...]
    part: str = ""
    page: str = "page.html"
    where: str = ""
    height: int = HEIGHT


def of_report(name: str, results: str, part: str = "", **how: Any) -> Picture:
    """A picture of the report of published results."""
    command = f"orchestrator report docs/results/{results} --out {results.replace('/', '-')}.html"
    return Picture(name, (command,), part, f"{results.replace('/', '-')}.html", **how)


ALL = (
    of_report("layouts", "2xh100/qwen2.5-32b"),
    of_report("cost", "4xh200/qwen2.5-32b", "cost"),
    of_report("timeline", "4xh200/qwen2.5-32b", "timeline", where="#concurrency=1", height=WHOLE),
    of_report("engines", "4xh100/engines-qwen2.5-32b", "comparison"),
    of_report("without-communication", "4xh200/ablation-comm-qwen2.5-32b", "ablations"),
    of_report("open-loop", "2xh200/open-loop-llama-8b", "latencies"),
    Picture(
        "two-results",
        (
            "orchestrator compare docs/results/2xh100/swap-qwen2.5-32b/inorder "
            "docs/results/2xh100/swap-qwen2.5-32b/swapped --html page.html",
        ),
        "changes",
    ),
    Picture("matrix", (MATRIX,), "matrix", "matrix/selection.html"),
    Picture("links", (MATRIX,), "crossover", "matrix/selection.html", height=WHOLE),
    of_report("training", "4xh200/training-llama-8b"),
)


def executable() -> str | None:
    """The system's Chromium or Chrome."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@contextmanager
def light_tab(offline: bool = True) -> Iterator[Page]:
    """A tab of the light theme."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        size = {"width": WIDTH, "height": HEIGHT}
        context = browser.new_context(offline=offline, color_scheme="light", viewport=size)
        yield context.new_page()
        browser.close()


def draw(tab: Page, page: Path, one: Picture, out: Path) -> None:
    """A part of a page as a picture. Raises ValueError where it is too large to be looked at."""
    tab.goto("about:blank")  # an address that differs in its end alone would load nothing
    tab.goto(page.resolve().as_uri() + one.where)
    tab.wait_for_function(READY)
    top, height = 0.0, float(HEIGHT)
    if one.part:
        box = tab.locator(f"#{one.part}").bounding_box()
        assert box is not None, f"{page.name} has no part #{one.part}"
        top, height = box["y"], min(box["height"], one.height)
    clip = {"x": 0, "y": top, "width": WIDTH, "height": height}
    tab.screenshot(path=out, clip=clip, full_page=True)
    if (size := out.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{out.name} has {size} bytes; a picture has at most {MOST_BYTES}")


def main() -> int:
    """Make those that were named, or all."""
    named = set(sys.argv[1:]) or {one.name for one in ALL}
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, light_tab() as tab:
        place = workplace(Path(folder))
        for one in (one for one in ALL if one.name in named):
            for command in one.commands:
                if not (place / one.page).exists() or "--html" in command:
                    subprocess.run(
                        ["bash", "-c", command], cwd=place, env=environment(), check=True,
                        stdout=subprocess.DEVNULL,
                    )  # fmt: skip
            draw(tab, place / one.page, one, PICTURES / f"{one.name}.png")
            print(shlex.quote(one.name), (PICTURES / f"{one.name}.png").stat().st_size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
