"""The short form of `make chaos`: one strike of each kind."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from cases import SHORT, Case
from strike import strike


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_whatever_dies_nothing_finished_is_lost_nothing_stays_and_the_same_command_goes_on(
    case: Case, fake_site: str
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="c") as folder:  # sockets need a short path
        outcome = strike(case, fake_site, Path(folder))
    assert outcome.faults(case) == []
