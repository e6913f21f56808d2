"""Signals that stop a command."""

import os
import signal
import threading
import time

import pytest

from orchestrator.cluster.processes import kept_handlers, uninterrupted
from orchestrator.errors import Stop


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_interrupts_and_gives_the_process_its_status(number, status):
    before = signal.getsignal(number)
    stop = Stop()
    with pytest.raises(KeyboardInterrupt), stop:
        signal.raise_signal(number)
    assert (stop.status, signal.getsignal(number)) == (status, before)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.is_near
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_warning_leaves_the_run_in_flight_its_time_and_then_interrupts(monkeypatch):
    monkeypatch.setattr("orchestrator.errors.NOTICE_S", 0.2)
    stop, began = Stop(), time.monotonic()

    def go_on():
        signal.raise_signal(signal.SIGUSR1)
        assert stop.is_near
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt), stop:
        go_on()
    assert 0.2 <= time.monotonic() - began < 30
    assert stop.status == 138


def test_a_run_that_ends_in_time_after_a_warning_disarms_the_alarm():
    with Stop():
        signal.raise_signal(signal.SIGUSR1)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [(signal.SIGTERM, signal.SIGUSR1, 143), (signal.SIGUSR1, signal.SIGTERM, 138)],
)
def test_a_warning_beside_another_signal_interrupts_no_cleaning_up(first, second, status):
    stop = Stop()

    def clean_up():
        try:
            signal.raise_signal(first)
            signal.raise_signal(second)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGUSR1)
            assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
            raise

    with pytest.raises(KeyboardInterrupt), stop:
        clean_up()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert stop.status == status


def test_a_warning_that_comes_again_gives_no_more_time():
    with Stop():
        signal.raise_signal(signal.SIGUSR1)
        left = signal.getitimer(signal.ITIMER_REAL)[0]
        signal.raise_signal(signal.SIGUSR1)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= left


def test_a_timer_of_others_is_left_alone_where_no_signal_is_handled():
    signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        ended = threading.Thread(target=lambda: Stop().__enter__().__exit__(None, None, None))
        ended.start()
        ended.join()
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_cleaning_up_is_delivered_after_it(number):
    done = []

    def clean_up():
        with uninterrupted():
            os.kill(os.getpid(), number)
            done.append("cleaned up")

    with pytest.raises(KeyboardInterrupt), Stop():
        clean_up()
    assert done == ["cleaned up"]


def test_a_library_that_takes_a_signal_gives_it_back():
    with Stop() as stop:
        ours = signal.getsignal(signal.SIGTERM)
        with kept_handlers():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) == ours
    assert not stop.is_near
