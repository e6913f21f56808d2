"""The engine of docs/write-an-engine.md, taken from the page, installed and run."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_engine import register
from ranks import BASE, FAMILIES, engine_plan, tokens

from strategies import ModelShape
from workers import engines
from workers.actor import Worker
from workers.engines import EngineError
from workers.messages import RankReport, Request, Work
from workers.records import REQUESTS, STEPS

PAGE = Path(__file__).parents[2] / "docs" / "write-an-engine.md"
SHAPE = ModelShape.from_config(
    {**BASE, **FAMILIES["Llama"], "architectures": ["LlamaForCausalLM"]}, "llama"
)
WORK = Work(tuple(Request(i, (1,) * (i + 1), 2 + i % 3) for i in range(7)), max_concurrency=4)
Serve = Callable[[str], list[RankReport]]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both blocks of the page, where an import and a look for entry points find them."""
    (tmp_path / "sleepy.py").write_text(block("python"))
    project = tomllib.loads(block("toml"))["project"]
    for name, where in project["entry-points"][engines.GROUP].items():
        register(tmp_path, name, where)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("sleepy", None)


@pytest.fixture
def serve(installed: None) -> Serve:
    """Serve WORK under a layout, as the workers of its ranks would; they need not meet."""

    def reports(layout: str) -> list[RankReport]:
        plan = engine_plan(layout, SHAPE, None, WORK)
        workers = [Worker(rank) for rank in range(plan.placement.num_ranks)]
        built = [worker.build("sleepy", plan, None) for worker in workers]
        assert [one.rank for one in built] == list(range(plan.placement.num_ranks))
        found = [worker.run(WORK) for worker in workers]
        for worker in workers:
            worker.close()
        return found

    return reports


@pytest.mark.usefixtures("installed")
def test_the_engine_of_the_page_is_found_by_its_name() -> None:
    assert "sleepy" in engines.names()
    assert type(engines.create("sleepy")).__name__ == "SleepyEngine"
    with pytest.raises(EngineError, match="did you mean 'sleepy'"):
        engines.create("slepy")


@pytest.mark.parametrize(
    ("layout", "reporting"), [("tp1", [0]), ("tp2", [0]), ("dp2", [0, 1]), ("tp2dp2", [0, 2])]
)
def test_it_serves_every_request_once(layout: str, reporting: list[int], serve: Serve) -> None:
    reports = serve(layout)
    assert tokens(reports) == {r.index: [7] * r.output_len for r in WORK.requests}
    assert [report.rank for report in reports if report.requests is not None] == reporting


def test_its_tables_are_whole_and_its_times_rise(serve: Serve) -> None:
    for report in serve("dp2"):
        assert report.began_s is not None
        assert report.requests is not None
        ends = [row.end_s for row in STEPS.rows(report.steps)]
        assert ends == sorted(ends)
        for row in REQUESTS.rows(report.requests):
            times = [row.arrival_s, *row.token_times_s]
            assert times == sorted(times)
            assert len(row.token_times_s) == row.output_len
            assert set(row.token_times_s) <= set(ends)


def test_no_more_are_in_flight_than_were_asked_for(serve: Serve) -> None:
    for layout, most in (("tp1", 4), ("dp2", 2)):
        for report in serve(layout):
            assert max(row.num_requests for row in STEPS.rows(report.steps)) == most


@pytest.mark.usefixtures("installed")
def test_it_refuses_what_it_cannot_do() -> None:
    engine = engines.create("sleepy")
    assert engine.supports(engine_plan("tp2", SHAPE, None, WORK)) is None
    reason = engine.supports(engine_plan("pp2", SHAPE, None, WORK))
    assert reason == "it does not do pipeline stages"


def test_the_engine_of_the_page_is_short() -> None:
    lines = [line for line in block("python").splitlines() if line.strip()]
    assert len(lines) <= 46


def test_every_name_that_the_page_lists_is_in_the_one_place() -> None:
    listed = re.findall(r"`(\w+)`", PAGE.read_text().split("The exception is")[0])
    names = set(listed) - {"workers"}
    assert names <= set(engines.__all__)
    assert len(names) > 15
    assert all(hasattr(engines, name) for name in engines.__all__)


def test_that_place_imports_without_torch() -> None:
    program = "import sys, workers.engines; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
