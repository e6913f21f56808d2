"""The highest request rate that meets an SLO, by bisection over runs that are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from driver_inputs import TIMEOUT_S, deployment
from fake_engine import RAISE, SERVE, TOKEN_S
from fake_group import installed
from recorder import Recorder
from rich.console import Console

from orchestrator.analysis.goodput import RATES
from orchestrator.analysis.load import load
from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.report.sweep import render_rates
from orchestrator.run.rates import PRECISION, Bisection, NoResult, Search, Tried, rounded
from orchestrator.store.arrow_files import read_part
from orchestrator.store.journal import Journal

LIMIT_MS = 50.0
# A first token takes 10 ms x (1 + rate), by `plan` below: 50 ms at 4 requests/s.
HIGHEST = LIMIT_MS / 1e3 / TOKEN_S - 1
SLO = f"ttft:p99:{LIMIT_MS:g}"


@pytest.fixture
def groups(monkeypatch):
    return installed(monkeypatch)


def plan(asked, order=SERVE):
    """The deployments of an experiment of one rate: the higher it is, the slower."""
    slower = asked.request_rate or 0.0
    order = order if asked.request_rate else SERVE
    return [deployment(name, [(order, 0)], slower=slower) for name in asked.strategy]


def experiment(folder, **fields):
    asked = {"strategy": ("tp1", "tp2"), "slo": SLO, "num_prompts": 4, "rate_runs": 20}
    given = {**asked, "timeout": TIMEOUT_S, "result_dir": folder, "num_warmups": 0, **fields}
    return Experiment(find_rate=True, **given)


def searched(asked, plan=plan):
    search = Search(asked, plan, Recorder())
    return search, search.run(plan(asked))


def attempts(limit):
    return lambda rate: Tried(rate, None, None if rate <= limit else "too slow")


@pytest.mark.parametrize("limit", [0.03, 0.7, 4.0, 31.0, 63.9])
def test_the_search_ends_within_its_precision_of_the_highest_rate(limit):
    search = Bisection(64.0, 40, attempts(limit))
    search.run()
    assert search.met.rate <= limit < search.missed.rate
    assert search.missed.rate - search.met.rate <= PRECISION * search.missed.rate


def test_where_the_highest_rate_is_met_no_other_one_is_tried():
    search = Bisection(8.0, 40, attempts(9.0))
    search.run()
    assert ([one.rate for one in search.tried], search.missed) == ([8.0], None)


def test_no_more_rates_are_tried_than_may_be():
    search = Bisection(64.0, 3, attempts(1.0))
    search.run()
    assert [one.rate for one in search.tried] == [64.0, 32.0, 16.0]
    assert search.met is None


def test_a_rate_that_cannot_be_judged_ends_the_search_and_what_was_found_stays():
    def attempt(rate):
        if rate == 40.0:
            raise NoResult("out of memory")
        return attempts(20.0)(rate)

    search = Bisection(64.0, 40, attempt)
    search.highest = 80.0
    search.run()
    assert (search.reason, search.missed.rate) == ("out of memory", 80.0)


def test_a_rate_has_three_digits_so_that_every_command_tries_the_same():
    assert [rounded(rate) for rate in (1234.5, 0.123456, 7.0)] == [1230.0, 0.123, 7.0]


def test_each_layout_gets_the_highest_rate_that_meets_the_slo(groups, tmp_path):
    search, found = searched(experiment(tmp_path))
    assert [one.cell.strategy for one in found] == ["tp1", "tp2"]
    for one in found:
        assert one.rate <= HIGHEST < one.missed_rate <= one.rate * (1 + 2 * PRECISION)
        assert one.missed_by.endswith(f"x the limit of {SLO}")
        assert one.reason is None
        assert sum(one.tried_met) < len(one.tried_rates) < 20
    assert [one.rate_per_gpu * gpus for one, gpus in zip(found, (1, 2), strict=True)] == [
        one.rate for one in found
    ]
    kept = search.root / "rates.arrow"
    assert RATES.rows(read_part(kept)) == found
    assert Journal(search.root).is_sound(kept)


def test_every_rate_is_kept_as_a_result_of_that_rate(groups, tmp_path):
    search, (found,) = searched(experiment(tmp_path, strategy="tp1"))
    rates = [run.arrivals.request_rate for one in load([search.root]) for run in one.runs]
    assert sorted(rates, key=lambda rate: rate or 0) == [None, *sorted(found.tried_rates)]
    met = {
        run.arrivals.request_rate: run.slo.slo_met
        for one in load([search.root])
        for run in one.runs
    }
    tried = zip(found.tried_rates, found.tried_met, strict=True)
    assert [met[rate] for rate, _ in tried] == list(found.tried_met)


def test_the_same_command_again_makes_no_run_and_finds_the_same(groups, tmp_path):
    _, first = searched(experiment(tmp_path))
    served = len(groups.served)
    _, again = searched(experiment(tmp_path))
    assert (again, len(groups.served)) == (first, served)


def test_an_interrupted_search_goes_on_where_it_was(groups, tmp_path):
    _, some = searched(experiment(tmp_path, strategy="tp1", rate_runs=2))
    served = len(groups.served)
    _, more = searched(experiment(tmp_path, strategy="tp1", rate_runs=3))
    assert more[0].tried_rates[:2] == some[0].tried_rates
    layouts = groups.asked()[served:]
    assert len([one for one in layouts if not one[2]]) == 2  # its run, and what is observed untimed


def test_a_higher_limit_uses_the_runs_that_are_there(groups, tmp_path):
    _, first = searched(experiment(tmp_path, strategy="tp1", rate_runs=2))
    served = len(groups.served)
    _, again = searched(experiment(tmp_path, strategy="tp1", rate_runs=1, slo="ttft:p50:5000"))
    assert len(groups.served) == served
    assert again[0].rate == first[0].tried_rates[0] == again[0].closed_rate


def test_a_layout_whose_runs_fail_says_so_and_the_others_are_searched(groups, tmp_path):
    def failing(asked):
        return plan(asked, RAISE if asked.strategy == ("tp1",) else SERVE)

    _, (bad, good) = searched(experiment(tmp_path, rate_runs=3), failing)
    assert bad.rate is None
    assert bad.reason
    assert "the search ended early" in bad.finding
    assert len(good.tried_rates) == 3


def test_a_rate_so_low_that_a_run_outlasts_the_timeout_is_not_tried(groups, tmp_path):
    _, (found,) = searched(experiment(tmp_path, strategy="tp1", timeout=0.05, num_prompts=4))
    assert "take longer than --timeout" in found.reason


def test_a_rate_that_cannot_be_planned_ends_the_search_of_its_layout_alone(groups, tmp_path):
    def at_once(asked):
        if asked.request_rate and asked.strategy == ("tp1",):
            raise UserError("the last request arrives after 99 s")
        return plan(asked)

    _, (bad, good) = searched(experiment(tmp_path), at_once)
    assert bad.reason == "the last request arrives after 99 s"
    assert len(good.tried_rates) > 1


def test_the_rate_of_conversations_is_searched_where_requests_are_turns(groups, tmp_path):
    """A turn after another one does not arrive by the clock."""

    def in_pairs(asked):
        (one,) = plan(asked)
        (cell,) = one.cells
        first, second, *others = cell.work.requests
        turns = (first, replace(second, after=0), *others)
        return [replace(one, cells=(replace(cell, work=replace(cell.work, requests=turns)),))]

    search, (found,) = searched(experiment(tmp_path, strategy="tp1", rate_runs=1), in_pairs)
    runs = [run for one in load([search.root]) for run in one.runs]
    (closed,) = (run for run in runs if run.arrivals.request_rate is None)
    assert found.closed_rate == rounded(closed.throughput.request_throughput * 3 / 4)
    timeout = {"strategy": "tp1", "timeout": 0.05}
    _, (slow,) = searched(experiment(tmp_path / "slow", **timeout), in_pairs)
    assert slow.reason.startswith("3 conversations at")
    assert "conversations/s take longer than --timeout" in slow.reason
    assert (closed.conditions.num_prompts, closed.conditions.num_conversations) == (4, 3)
    assert "conversations/s" in found.finding


def test_the_table_has_the_best_layout_first_and_a_sentence_for_each(groups, tmp_path):
    _, found = searched(experiment(tmp_path, rate_runs=8))
    console = Console(record=True, width=160)
    render_rates(found, console)
    text = console.export_text()
    assert f"tp1: meets {SLO} up to" in text
    assert f"tp2: meets {SLO} up to" in text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"slo": {}}, "give slo too"),
        ({"num_prompts": None}, "give num_prompts"),
        ({"request_rate": 2.0}, "leave request_rate out"),
        ({"until_ci": 0.05}, "leave until_ci out"),
        ({"ablate": "comm"}, "leave ablate out"),
        ({"rate_runs": 0}, "rate_runs|greater"),
    ],
)
def test_a_search_that_cannot_be_is_refused(fields, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        experiment(tmp_path, **fields)
