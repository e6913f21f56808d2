"""In which order the runs of several layouts come: turn by turn, or one layout after the other."""

from __future__ import annotations

from typing import Literal

Asked = Literal["auto", "yes", "no"]
# The most that starting the layouts again for every turn may cost, as a share of the time of the
# runs.
RESTART_SHARE = 0.25


class Interleaving:
    """Whether a layout hands the GPUs over after each pass over its cells, so that a drift of the
    machine affects all layouts alike.

    asked: "yes", "no" or "auto". With "auto" the first pass without a failure decides for all
    layouts: they take turns if the rest of that pass (starting, loading, warming up) took at most
    RESTART_SHARE of the time of its timed runs.
    """

    def __init__(self, asked: Asked, layouts: int) -> None:
        decided = {"yes": True, "no": False, "auto": None}
        self._interleaved = decided[asked] if layouts > 1 else False

    def hand_over(self, elapsed_s: float, runs_s: float, failed: bool = False) -> bool:
        """Whether it is the next layout's turn, after a pass that took `elapsed_s`. The timed runs
        in it took `runs_s`."""
        if self._interleaved is None and not failed:
            self._interleaved = elapsed_s - runs_s <= RESTART_SHARE * runs_s
        return bool(self._interleaved)
