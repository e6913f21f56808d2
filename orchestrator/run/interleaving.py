"""In which order the runs of several layouts come: turn by turn, or one layout after the other."""

from __future__ import annotations

from typing import Literal

Asked = Literal["auto", "yes", "no"]
RESTART_SHARE = (
    0.25  # of the time of the runs: what starting the layouts again for every turn may cost
)


class Interleaving:
    """Whether a layout hands the GPUs over after each pass over its cells, so that a drift of the
    machine meets all alike.

    asked: "yes", "no", or "auto": the first pass without a failure decides, for all: yes where what
    it took beside its timed runs (starting, loading, warming up) is at most RESTART_SHARE of the
    time of the runs.
    """

    def __init__(self, asked: Asked, layouts: int) -> None:
        self._interleaved = (
            {"yes": True, "no": False, "auto": None}[asked] if layouts > 1 else False
        )

    def hand_over(self, elapsed_s: float, runs_s: float, failed: bool = False) -> bool:
        """After a pass that took `elapsed_s`, of which timed runs took `runs_s`: is it the next
        layout's turn?"""
        if self._interleaved is None and not failed:
            self._interleaved = elapsed_s - runs_s <= RESTART_SHARE * runs_s
        return bool(self._interleaved)
