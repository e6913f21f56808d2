"""Commands that make runs, as they are told and kept."""

from __future__ import annotations

from pathlib import Path

from orchestrator.store.live import Live, LiveLayout, beginning

DEPLOYMENT = "tiny.tp4.torch.float32"  # of `summaries.one_run("tp4", ...)`


def live(folder: Path, runs: int = 2, skipped: int = 0, *others: LiveLayout) -> Live:
    """A command of this process with one layout that is to make `runs`, and `others`."""
    mine = LiveLayout(DEPLOYMENT, "tp4 torch", runs)
    return beginning(folder, (mine, *others), skipped, None)
