"""What is said of a cluster that takes no jobs."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cluster import jobs
from orchestrator.errors import UserError


class Refusing:
    """A client of a cluster whose head has no agent for the first `times` submits."""

    def __init__(self, times: int) -> None:
        self.left = times

    def submit_job(self, **_: Any) -> None:
        if self.left:
            self.left -= 1
            raise RuntimeError("status code 500: No available agent to submit job, try later.")

    def get_job_info(self, job_id: str) -> Any:
        raise ConnectionError(job_id)


def test_a_head_that_has_just_started_is_given_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0)
    client = Refusing(times=2)
    with pytest.raises(UserError, match="answers no more"):  # it took the job, and then left
        jobs.Jobs("http://head:8265", client).submit("a-1", "true", {})
    assert not client.left


def test_a_head_whose_agent_never_listens_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE_S", -1)
    with pytest.raises(UserError, match=r"takes no jobs.*--dashboard-agent-listen-port=0"):
        jobs.Jobs("http://head:8265", Refusing(times=1)).submit("a-1", "true", {})
