"""The pictures of docs/gallery.md and README.md: made by scripts/gallery.py, and small."""

from __future__ import annotations

import re

import gallery

SHOWN = re.compile(r"!\[[^\]]+\]\((?:docs/)?pictures/([\w-]+)\.png\)")


def shown(page: str) -> list[str]:
    return SHOWN.findall((gallery.ROOT / page).read_text(encoding="utf-8"))


def test_every_picture_is_shown_and_can_be_made_anew() -> None:
    made = sorted(one.name for one in gallery.ALL)
    assert sorted(shown("docs/gallery.md")) == made
    assert set(shown("README.md")) <= set(made)


def test_pictures_are_small() -> None:
    for one in gallery.ALL:
        size = (gallery.PICTURES / f"{one.name}.png").stat().st_size
        assert 10_000 < size <= gallery.MOST_BYTES, one.name


def test_pictures_are_of_results_that_are_published() -> None:
    for command in (command for one in gallery.ALL for command in one.commands):
        for folder in re.findall(r"docs/results/\S+", command):
            assert (gallery.ROOT / folder / "manifest.json").exists(), folder
