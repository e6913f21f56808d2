"""Open loops: when requests arrive, and who is let in when."""

import numpy as np
import pytest

from orchestrator.errors import UserError
from orchestrator.experiment import Experiment
from orchestrator.plan.arrival_times import arrival_times
from orchestrator.plan.planning import choose_device, plan_experiment
from orchestrator.store.identity import identity_of
from strategies import Topology
from workers import engines
from workers.engines.native.arrivals import Arrivals
from workers.engines.native.scheduler import Limits, Scheduler
from workers.messages import Request

# -- when requests arrive


def test_arrivals_rise_and_the_last_comes_when_the_rate_says():
    times = arrival_times(50, rate=4.0, burstiness=1.0, seed=0)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] == pytest.approx(50 / 4)
    assert times == arrival_times(50, 4.0, 1.0, 0)
    assert times != arrival_times(50, 4.0, 1.0, 1)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 16.0])
def test_burstiness_is_the_shape_of_the_gaps(burstiness):
    """A gamma distribution of shape k has a coefficient of variation of 1 / sqrt(k)."""
    gaps = np.diff(arrival_times(20_000, 1.0, burstiness, 0))
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_no_requests_no_arrivals():
    assert arrival_times(0, 1.0, 1.0, 0) == []


def test_every_layout_gets_the_same_arrivals_and_the_warm_up_none():
    experiment = Experiment(strategy=("tp2", "pp2"), device="cpu", request_rate=2.0, num_prompts=5)
    one, other = plan_experiment(experiment, *choose_device(experiment, Topology(())))
    times = [request.arrival_s for request in one.cells[0].work.requests]
    assert times == arrival_times(5, 2.0, 1.0, 0)
    assert one.cells[0].work == other.cells[0].work
    assert one.cells[0].work.is_open
    assert not one.cells[0].warmup.is_open


def test_other_engines_refuse_by_name():
    experiment = Experiment(engine="transformers", device="cpu", request_rate=2.0)
    with pytest.raises(UserError, match="engine transformers cannot run tp1 at a request rate"):
        plan_experiment(experiment, *choose_device(experiment, Topology(())))


def test_engines_that_let_requests_wait_say_so():
    able = [name for name in engines.names() if engines.lets_wait(name)]
    assert able == ["torch", "vllm"]


@pytest.mark.parametrize(
    "asked", [{"request_rate": 2.0}, {"find_rate": True, "slo": "ttft:p99:2000", "num_prompts": 4}]
)
def test_the_engine_vllm_serves_at_a_rate_and_searches_one(asked, monkeypatch):
    monkeypatch.setattr(engines, "refusal", lambda name, plan: None)  # installed or not
    experiment = Experiment(engine="torch,vllm", device="cpu", **asked)
    ours, theirs = plan_experiment(experiment, *choose_device(experiment, Topology(())))
    assert theirs.deployment.engine == "vllm"
    assert theirs.cells[0].work == ours.cells[0].work


def test_results_of_open_and_closed_loops_are_kept_apart():
    closed, open_ = Experiment(), Experiment(request_rate=2.0)
    bursts = Experiment(request_rate=2.0, burstiness=0.5)
    assert len({identity_of(one) for one in (closed, open_, bursts)}) == 3
    with pytest.raises(ValueError, match="give request_rate or find_rate too"):
        Experiment(burstiness=2.0)


# -- who is let in


class Hand:
    """A clock that is moved by hand."""

    def __init__(self):
        self.at = 0.0

    def __call__(self):
        self.at += 0.001
        return self.at


@pytest.fixture
def clock(monkeypatch):
    hand = Hand()

    def sleep(seconds):
        hand.at += seconds

    monkeypatch.setattr("workers.engines.native.arrivals.time.sleep", sleep)
    return hand


def serve(clock, requests, seats, step_s=1.0):
    """Serve with steps of `step_s`; request -> when it was let in."""
    limits = Limits(micro_batches=1, pages=64, prefill_tokens=64)
    scheduler = Scheduler(requests, seats, limits, is_open=True)
    doors = Arrivals(clock, decides=True, source=0, group=None)
    admitted = {}
    for _ in range(100):
        doors.tell(scheduler, lambda: None)
        micro_batch = scheduler.next_micro_batch()
        if micro_batch is None:
            return admitted
        step = scheduler.next_step(micro_batch)
        if step is not None:
            clock.at += step_s
            admitted |= {sequence.request.index: sequence.admitted_s for sequence in step.sampled}
    raise AssertionError("never done")


def test_nobody_is_let_in_before_their_time_and_nobody_waits_for_nothing(clock):
    requests = tuple(Request(i, (1, 2), 2, at) for i, at in enumerate((0.5, 10.0, 10.2)))
    admitted = serve(clock, requests, seats=4)
    assert admitted[0] == pytest.approx(0.5, abs=0.01)
    assert admitted[1] == pytest.approx(10.0, abs=0.01)
    assert admitted[2] == pytest.approx(
        11.0, abs=0.02
    )  # in the middle of a step of 1 s; the next one takes it in


def test_no_more_are_let_in_than_there_are_seats(clock):
    requests = tuple(Request(i, (1, 2), 4, 0.5) for i in range(2))
    admitted = serve(clock, requests, seats=1)
    assert admitted[1] - admitted[0] == pytest.approx(4.0, abs=0.1)  # four tokens of 1 s


def test_a_turn_waits_for_the_reply_and_not_for_the_clock(clock):
    asked = (
        Request(0, (1, 2), 3, 0.5),
        Request(1, (1, 2), 2, after=0),
        Request(2, (1, 2), 2, 20.0),
        Request(3, (1, 2), 2, after=2),
    )
    admitted = serve(clock, asked, seats=4)
    assert list(admitted) == [0, 1, 2, 3]
    assert admitted[1] == pytest.approx(0.5 + 3.0, abs=0.02)  # three tokens of 1 s
    assert admitted[2] == pytest.approx(20.0, abs=0.02)
    assert admitted[3] == pytest.approx(22.0, abs=0.02)


def test_a_closed_loop_knows_no_clock():
    requests = tuple(Request(i, (1,), 1) for i in range(3))
    scheduler = Scheduler(requests, 2, Limits(micro_batches=1, pages=64, prefill_tokens=64))
    scheduler.next_micro_batch()
    assert [s.admitted_s for s in scheduler.next_step(0).sampled] == [None, None]
