"""The pages as a site: where they are in it, and where their links lead."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import site_pages

SITE = tomllib.loads((site_pages.ROOT / "zensical.toml").read_text())["project"]
NAVIGATION = SITE["nav"]


def named(nodes: list[Any]) -> Iterator[str]:
    """The pages of the navigation."""
    for node in nodes:
        (below,) = node.values()
        yield from named(below) if isinstance(below, list) else [below]


def test_every_page_is_once_in_the_navigation() -> None:
    assert sorted(named(NAVIGATION)) == sorted(
        str(site_pages.place(page)) for page in site_pages.pages()
    )


def test_the_site_has_its_own_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_pages, "PAGES", tmp_path / "pages")
    site_pages.prepare()
    (style,) = SITE["extra_css"]
    assert "overflow" not in (tmp_path / "pages" / style).read_text()  # scrolling is the theme's
    assert "__scrollwrap" in (tmp_path / "pages" / style).read_text()


def test_links_lead_to_pages_to_numbered_files_and_to_lists_of_folders() -> None:
    found: set[Path] = set()
    page = site_pages.DOCS / "page.md"
    text = (
        "[a](results.md#the-tables) [b](../README.md) [c](../cluster.yaml#L3) `[d](gone.md)`\n"
        "[`e`](results) [i](../orchestrator/presets/tiny/README.md) [f](#here) "
        "[g](https://example.com) ![h](network-crossover.svg)\n"
    )
    assert site_pages.moved(page, text, found) == (
        "[a](results.md#the-tables) [b](index.md) [c](source/cluster.yaml.html#L3) `[d](gone.md)`\n"
        "[`e`](source/docs/results/index.html) "
        "[i](source/orchestrator/presets/tiny/README.md.html) [f](#here) [g](https://example.com) "
        "![h](source/docs/network-crossover.svg)\n"
    )
    assert site_pages.ROOT / "cluster.yaml" in found
    with pytest.raises(SystemExit, match=r"docs/page\.md: gone\.md leads nowhere"):
        site_pages.moved(page, "[a](gone.md)", found)


def test_lines_of_a_file_can_be_linked_to() -> None:
    text = site_pages.numbered(site_pages.ROOT / "orchestrator" / "errors.py")
    assert 'id="L1"' in text
    assert 'href="#L1"' in text


def test_what_another_machine_would_be_asked_for_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<link rel="canonical" href="https://example.com/a"><a href="https://example.com">b</a>'
        '<script src="local.js"></script><img src="c.png">'
    )
    assert list(site_pages.asks_others(tmp_path)) == []
    (tmp_path / "b.html").write_text('<script src="https://unpkg.com/x"></script>')
    assert list(site_pages.asks_others(tmp_path)) == ['b.html: <script src="https://unpkg.com/x">']
