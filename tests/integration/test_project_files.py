"""The files around the code: what they name exists, and what other programs read of them is what
those programs expect."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from orchestrator import cli

ROOT = Path(__file__).parents[2]
PACKAGES = ("orchestrator", "workers", "strategies")
PLACES = ("*.md", "docs/**/*.md", ".github/**/*.md", "examples/**/*.md", "orchestrator/**/*.md")
PAGES = sorted({page for place in PLACES for page in ROOT.glob(place)})
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
LINE_LINK = re.compile(r"\[`(?:\w+\.)*(\w+)(?:\(\))?`\]\(([^)#\s]+)#L(\d+)\)")  # [`name`](file#L3)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
PATH = re.compile(
    r"(?<![\w/.~-])(?:orchestrator|workers|strategies|tests|docs|benchmarks|scripts|examples)"
    r"/[\w./*-]+"
)
PLACEHOLDER = "NAME"  # in a path: any name, as in strategies/NAME.py
PROSE_WIDTH = 118
README_LINES, README_WIDTH = 150, 100  # what is read before anything else is short


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def load(path: str | Path) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


# -- pages


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    found: dict[str, int] = {}
    for heading in HEADING.findall(FENCED.sub("", page.read_text())):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found[anchor] = found.get(anchor, -1) + 1
    return {
        f"{name}-{number}" if number else name
        for name, n in found.items()
        for number in range(n + 1)
    }


def dead_links(page: Path) -> Iterator[str]:
    prose = SPAN.sub("", FENCED.sub("", page.read_text()))
    for link in LINK.findall(prose):
        target, _, anchor = link.partition("#")
        there = page.parent / target if target else page
        if link.startswith(("http://", "https://")):
            continue
        if not there.exists() or (
            anchor and there.suffix == ".md" and anchor not in anchors(there)
        ):
            yield link


def misplaced_names(page: Path) -> Iterator[str]:
    """Links from a name to a line that does not have it."""
    for name, file, number in LINE_LINK.findall(FENCED.sub("", page.read_text())):
        lines = (page.parent / file).read_text().splitlines()
        if not (
            0 < int(number) <= len(lines) and re.search(rf"\b{name}\b", lines[int(number) - 1])
        ):
            yield f"{name} in {file}:{number}"


def dead_paths(page: Path) -> Iterator[str]:
    """Paths of this project in code, inline or fenced, that lead nowhere."""
    text = page.read_text()
    for code in [*FENCED.findall(text), *SPAN.findall(FENCED.sub("", text))]:
        for path in PATH.findall(code):
            if not any(ROOT.glob(path.rstrip("./").replace(PLACEHOLDER, "*"))):
                yield path


def wide_lines(page: Path) -> Iterator[str]:
    for line in FENCED.sub("", page.read_text()).splitlines():
        if len(line) > PROSE_WIDTH and not line.startswith("|"):
            yield line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    assert list(dead_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_from_a_name_lead_to_the_line_that_has_it(page: Path) -> None:
    assert list(misplaced_names(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_in_code_exist(page: Path) -> None:
    assert list(dead_paths(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_nothing_is_left_of_a_merge(page: Path) -> None:
    assert re.findall(r"^(?:<{7}|>{7}) ", page.read_text(encoding="utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_prose_is_not_wider_than_it_may_be(page: Path) -> None:
    assert list(wide_lines(page)) == []


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES
    assert [line for line in lines if len(line) > README_WIDTH] == []


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One thing\n"
        "[a](#one-thing) [b](#another) [c](gone.md) `[d](code.md)` [e](page.md#one-thing)\n"
        "`workers/rows.py` `workers/gone.py:3` `strategies/*.py` `tests/NAME/test_rows_gone.py`\n"
        "```\npython scripts/gone.py docs/measurement.md\n```\n"
        "[`page.thing`](page.md#L1) [`thing()`](page.md#L3) [`thing`](page.md#L99)\n"
    )
    assert [link for link in dead_links(page) if "#L" not in link] == ["#another", "gone.md"]
    assert list(misplaced_names(page)) == ["thing in page.md:3", "thing in page.md:99"]
    assert sorted(dead_paths(page)) == [
        "scripts/gone.py",
        "tests/NAME/test_rows_gone.py",
        "workers/gone.py",
    ]


# -- what GitHub reads


def test_the_workflow_calls_the_script_that_a_change_must_pass() -> None:
    workflow = load(".github/workflows/ci.yml")
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML reads the key `on` as true
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    oldest = project()["project"]["requires-python"].removeprefix(">=")
    assert job["strategy"]["matrix"]["python"][0] == oldest
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_sample_of_a_workflow_is_one() -> None:
    page = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    workflow = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```", page, re.M | re.S)[1])
    (job,) = workflow["jobs"].values()
    assert {"schedule", "workflow_dispatch"} == set(workflow[True])
    assert all(("run" in step) != ("uses" in step) for step in job["steps"])
    assert sum("--gate" in step.get("run", "") for step in job["steps"]) == 1


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_an_issue_form_has_what_github_asks_of_it(form: Path) -> None:
    fields = load(form)
    assert {"name", "description", "body"} <= set(fields)
    inputs = [one for one in fields["body"] if one["type"] != "markdown"]
    assert {one["type"] for one in inputs} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert all(one["attributes"]["label"] for one in inputs)
    assert len({one["id"] for one in inputs}) == len(inputs) > 0
    assert all(
        one["attributes"]["options"] for one in inputs if one["type"] in ("dropdown", "checkboxes")
    )
    assert all(
        isinstance(o, str)
        for one in inputs
        if one["type"] == "dropdown"
        for o in one["attributes"]["options"]
    )


def test_there_are_forms_for_a_bug_a_wrong_number_and_a_request() -> None:
    assert [form.stem for form in FORMS] == ["bug", "layout-or-engine", "wrong-number"]
    assert load(".github/ISSUE_TEMPLATE/config.yml") == {"blank_issues_enabled": True}
    assert (ROOT / ".github" / "pull_request_template.md").exists()


# -- what says which version this is


def test_the_citation_is_of_this_version() -> None:
    citation, about = load("CITATION.cff"), project()["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert (str(citation["version"]), citation["license"]) == (about["version"], about["license"])
    assert all("name" in author or "family-names" in author for author in citation["authors"])


def test_the_changelog_begins_with_what_is_unreleased_and_knows_this_version() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert project()["project"]["version"] in versions


# -- what is installed, and what checks it


def test_every_package_says_that_it_has_types() -> None:
    data = project()["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists()
        assert "py.typed" in data[package]


def test_fast_tests_are_those_without_a_marker() -> None:
    registered = project()["tool"]["pytest"]["ini_options"]["markers"]
    names = [marker.partition(":")[0] for marker in registered]
    fast = re.search(r"^FAST = (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert fast is not None
    assert fast[1] == " and ".join(f"not {name}" for name in names)


@pytest.mark.parametrize("mark", ["ray", "ranks"])
def test_files_that_carry_a_mark_are_where_make_looks_for_it(mark: str) -> None:
    """Also those that are skipped here before they are collected, as tests of a real vLLM."""
    makefile = (ROOT / "Makefile").read_text()
    (line,) = re.findall(rf"pytest -m '{mark} and .*?' (tests/.*)", makefile)
    folders = {ROOT / name for name in line.split()}
    marked = re.compile(rf"mark\.{mark}\b")
    files = [one for one in (ROOT / "tests").rglob("test_*.py") if marked.search(one.read_text())]
    assert files
    assert [name_of(one) for one in files if folders.isdisjoint(one.parents)] == []


def test_files_that_make_names_exist() -> None:
    named = re.findall(r"\btests/[\w/]+\.py\b", (ROOT / "Makefile").read_text())
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_hooks_use_programs_whose_versions_are_fixed() -> None:
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    local = next(one for one in load(".pre-commit-config.yaml")["repos"] if one["repo"] == "local")
    programs = {hook["entry"].split()[0] for hook in local["hooks"]}
    assert programs == {".venv/bin/ruff", ".venv/bin/mypy"}
    assert {Path(program).name for program in programs} <= pinned


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_for_completion_prints_a_script(shell: str) -> None:
    line = f"_ORCHESTRATOR_COMPLETE={shell}_source orchestrator"
    assert line in (ROOT / "docs" / "usage.md").read_text()
    variable, value = line.split()[0].split("=")
    done = CliRunner().invoke(cli.main, prog_name="orchestrator", env={variable: value})
    assert (done.exit_code, f"{variable}={shell}_complete" in done.stdout) == (0, True)
