"""Which of the ranks that have not answered hangs, and which of those that answered failed."""

import os

import pytest
from ray.exceptions import RayTaskError

from orchestrator.cluster.failures import explain
from orchestrator.cluster.hanging import hanging
from strategies.errors import Refused
from workers.progress import NoStanding, Progress, Stand, Standing, stand_of


def test_the_rank_that_is_in_no_collective_is_the_one_that_hangs():
    stands = {0: Stand(True, 4), 1: Stand(False, 4), 2: Stand(True, 3)}
    assert hanging(stands) == "rank 1 hangs: the others wait for it in a collective"


def test_where_the_host_does_not_wait_the_rank_with_the_fewest_steps_hangs():
    stands = {0: Stand(False, 9), 1: Stand(False, 7)}
    assert hanging(stands) == "rank 1 hangs: after 7 steps, the others are ahead"


def test_without_a_difference_no_rank_is_blamed():
    assert hanging({0: Stand(False, 7), 2: Stand(False, 7)}) == "waiting for rank 0, 2"
    assert hanging({0: None, 1: Stand(False, 7)}) == "waiting for rank 0, 1"
    assert hanging({3: Stand(False, 0)}) == "waiting for rank 3"
    assert hanging({3: Stand(True, 0, "send_recv")}) == "waiting for rank 3 in send_recv"


def test_where_all_wait_it_is_said_in_what():
    stands = {0: Stand(True, 0, "all_reduce of 4096 bytes"), 1: Stand(True, 0, "send_recv")}
    where = "all_reduce of 4096 bytes and send_recv"
    assert hanging(stands) == f"waiting for rank 0, 1 in {where}"


def test_another_process_can_read_where_a_rank_stands():
    progress = Progress(standing=Standing())
    progress.begin(0.0)
    progress.step(0.1, "decode", 1, 1, 0)
    with progress.waiting():
        assert stand_of(os.getpid(), progress.standing.fd) == Stand(True, 1)
    with progress.waiting("send_recv"):
        assert stand_of(os.getpid(), progress.standing.fd) == Stand(True, 1, "send_recv")
    with progress.waiting():
        assert stand_of(os.getpid(), progress.standing.fd) == Stand(True, 1)
    assert stand_of(os.getpid(), progress.standing.fd) == Stand(False, 1)
    assert stand_of(os.getpid(), NoStanding.fd) is None


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (Refused("no room"), "rank 2: no room"),
        (ValueError("rank of a tensor"), "rank 2: ValueError: rank of a tensor"),
        (Refused("rank 0 cannot write its part: full"), "rank 0 cannot write its part: full"),
        (
            ValueError("the worker of rank 1 leaves out none"),
            "ValueError: the worker of rank 1 leaves out none",
        ),
        (MemoryError("no more"), "out_of_memory: rank 2: no more"),
    ],
)
def test_a_failure_names_its_rank_once(raised: Exception, reason: str) -> None:
    failures = [(rank, RayTaskError("run", "its lines", cause=raised)) for rank in (3, 2)]
    assert explain(failures).reason == reason
