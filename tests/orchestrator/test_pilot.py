"""How many requests a run has that is to last some seconds."""

from __future__ import annotations

import pytest

from orchestrator.run.pilot import MARGIN, needed_requests


@pytest.mark.parametrize(
    ("seats", "requests", "duration", "least", "needed"),
    [
        (1, 1, 2.0, 8.0, 5),  # four would last 8 s to the dot
        (32, 32, 3.0, 8.0, 96),
        (100, 100, 1.5, 8.0, 600),
        (32, 32, 30.0, 8.0, 96),  # three times those in flight, however long one takes
        (4, 2, 1.0, 8.0, 20),
    ],
)
def test_a_run_lasts_as_long_as_was_asked_for_and_has_no_ragged_tail(
    seats: int, requests: int, duration: float, least: float, needed: int
) -> None:
    found = needed_requests(seats, requests, duration, least)
    assert found == needed
    assert found % seats == 0
    assert found >= 3 * seats
    assert found * duration / requests >= MARGIN * least
