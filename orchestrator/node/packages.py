"""The packages that this project requires, compared with those that are installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from workers.versions import PROJECT

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"


@dataclass(frozen=True, slots=True)
class Package:
    """One requirement. range: the versions that this project asks for, empty for any. installed:
    None where it is missing. ok: the installed version is in the range. tested: the version that
    this project is tested with, None outside of a checkout."""

    name: str
    range: str
    installed: str | None
    ok: bool
    tested: str | None

    @property
    def public_version(self) -> str:
        """2.13.0+cpu -> 2.13.0"""
        return str(self.installed).partition("+")[0]


def packages() -> Iterator[Package]:
    """Every requirement of this project, extras left out."""
    tested = _tested_versions()
    for text in requires(PROJECT) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement, tested)


def _package(requirement: Requirement, tested: Mapping[str, str]) -> Package:
    name, specifier = requirement.name, requirement.specifier
    try:
        found = version(name)
    except PackageNotFoundError:
        return Package(name, str(specifier), None, False, tested.get(name))
    inside = specifier.contains(found, prereleases=True)
    return Package(name, str(specifier), found, inside, tested.get(name))


def _tested_versions() -> dict[str, str]:
    if not CONSTRAINTS.is_file():
        return {}
    return dict(line.split("==") for line in CONSTRAINTS.read_text().split() if "==" in line)
