"""Build the documentation as a site: `python scripts/site_pages.py`, or `make docs`.

The pages are those of docs/ and the few at the top of the project, as they are. A link to a page
stays a link to a page. One to a file of the source leads to that file with its lines numbered, one
to a folder to the list of its files; both are made here, so that the site needs nothing but itself.
Zensical then makes the site, and stops at a link that leads nowhere.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = ROOT / "build" / "pages"  # what Zensical reads: docs_dir of zensical.toml
SITE = ROOT / "build" / "site"  # what it writes
STYLE = DOCS / "site.css"
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
SHOWN = {".svg", ".png", ".html"}  # a browser shows these as they are
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
# What a page asks of another machine as it is opened; a link that is followed by hand is none.
FOREIGN = re.compile(
    r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>"""
)
RELATIONS = re.compile(r"""rel=["']?(?:canonical|next|prev)""")


def pages() -> Iterator[Path]:
    """Every page of the site, as a file of the project."""
    yield from (ROOT / name for name in TOP)
    yield from sorted(DOCS.glob("*.md"))


def place(source: Path) -> Path:
    """Where a page or a file is in the site, from its root."""
    if source == ROOT / "README.md":
        return Path("index.md")
    if source.suffix == ".md" and source.parent in (ROOT, DOCS):
        return Path(source.name)
    if source.is_dir():
        return Path("source", source.relative_to(ROOT), "index.html")
    inside = Path("source", source.relative_to(ROOT))
    return inside if source.suffix in SHOWN else inside.with_name(f"{inside.name}.html")


def moved(page: Path, text: str, found: set[Path]) -> str:
    """The text of a page with its links as they are in the site; adds what they lead to. Raises
    SystemExit where that does not exist."""

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        if not target or re.match(r"\w+:", target):
            return match[1]
        there = (page.parent / target).resolve()
        if not there.exists():
            raise SystemExit(f"{page.relative_to(ROOT)}: {match[1]} leads nowhere.")
        found.add(there)
        where = os.path.relpath(place(there), place(page).parent)
        return f"{where}#{anchor}" if anchor else where

    return outside_code(text, lambda prose: LINK.sub(link, prose))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with a change made to all of it but code. Names in links are code, and stay too."""
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(text[end:])])


def show(source: Path) -> None:
    """A file or a folder of the project as part of the site."""
    there = PAGES / place(source)
    there.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix in SHOWN:
        shutil.copyfile(source, there)
    else:
        there.write_text(listing(source) if source.is_dir() else numbered(source), encoding="utf-8")


def numbered(source: Path) -> str:
    """A file with an anchor a line: #L7."""
    text = source.read_text(encoding="utf-8")
    try:
        lexer = get_lexer_for_filename(source.name)
    except ClassNotFound:
        lexer = TextLexer()
    form = HtmlFormatter(
        full=True, title=str(source.relative_to(ROOT)), linenos="inline", anchorlinenos=True,
        lineanchors="L",
    )  # fmt: skip
    return highlight(text, lexer, form).replace('"L-', '"L').replace("#L-", "#L")


def listing(folder: Path) -> str:
    """The files of a folder; those that a browser shows are links."""
    name = html.escape(str(folder.relative_to(ROOT)))
    items = []
    for one in sorted(folder.iterdir()):
        text = html.escape(one.name)
        inside = one.suffix in SHOWN or one.is_dir()
        items.append(
            f'<li><a href="{link_to(one)}">{text}</a></li>' if inside else f"<li>{text}</li>"
        )
        if inside:
            show(one)
    head = f"<!doctype html><meta charset=utf-8><title>{name}</title><h1>{name}</h1>"
    return f"{head}<ul>{''.join(items)}</ul>"


def link_to(inside: Path) -> str:
    """From the list of a folder to what is in it."""
    return f"{inside.name}/index.html" if inside.is_dir() else inside.name


def prepare() -> None:
    """Write what Zensical reads."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    shutil.copyfile(STYLE, PAGES / STYLE.name)
    found: set[Path] = set()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        (PAGES / place(page)).write_text(moved(page, text, found), encoding="utf-8")
    for source in sorted(found - set(pages())):
        show(source)


def asks_others(site: Path) -> Iterator[str]:
    """What the pages would load from another machine."""
    for page in sorted(site.glob("*.html")):
        for tag in FOREIGN.findall(page.read_text(encoding="utf-8")):
            if not RELATIONS.search(tag):
                yield f"{page.name}: {tag}"


def main() -> int:
    """Build it; 1 where a link leads nowhere, or a page needs another machine."""
    prepare()
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--clean", "--strict"]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    loaded = list(asks_others(SITE)) if status == 0 else []
    for one in loaded:
        print(one, file=sys.stderr)
    return status or int(bool(loaded))


if __name__ == "__main__":
    sys.exit(main())
