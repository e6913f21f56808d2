"""What lies beside the tensors of a training state: how far the run is, and of what it is. For the
driver, which checks it, and for the ranks, which write it. It imports without torch.

A state is a folder `step-00000010`, named so when it is whole: until then, and if a run is killed
while it writes, it has another name. In it are `training.json` and what
torch.distributed.checkpoint writes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from strategies.errors import Refused
from workers.messages import EnginePlan
from workers.training_records import TrainingStepRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Read = Callable[[Mapping[str, "Tensor"]], None]  # fills tensors with what is kept by their names
FILE = "training.json"
FILES = "files"  # what it has of the others: the size of each
PREFIX = "step-"


@dataclass(frozen=True, slots=True)
class TrainingState:
    """step: optimizer steps that were taken, and so the place in the data. layout: under which it
    was written; any other one can read it. data: a digest of what it trains on, None of random
    tokens. parameters: (name, shape) of each. updates: of the steps, those that changed the
    weights; in fp16 one whose gradients overflow does not. loss_scale: what fp16 scales by, and for
    how many steps; None in another precision. steps: what was seen of each step of the run that
    wrote it.
    """

    step: int
    layout: str
    seed: int
    seq_len: int
    global_batch_size: int
    data: str | None
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    updates: int = 0
    loss_scale: tuple[float, int] | None = None
    steps: tuple[TrainingStepRow, ...] = ()

    @classmethod
    def of(cls, plan: EnginePlan, tokens: NDArray[np.int32] | None) -> TrainingState:
        """The state of a plan before its first step."""
        asked = plan.training
        assert asked is not None, "the plan trains"
        return cls(
            step=0,
            layout=plan.layout,
            seed=plan.seed,
            seq_len=asked.seq_len,
            global_batch_size=asked.global_batch_size,
            data=None if tokens is None else hashlib.sha256(tokens.tobytes()).hexdigest(),
            parameters=tuple(sorted(plan.model.parameters())),
        )

    def unlike(self, other: TrainingState) -> str | None:
        """None, or why a run of which `other` is the beginning cannot go on from here, as a
        clause: the losses that follow would not be those of one run."""
        if self.parameters != other.parameters:
            mine, theirs = dict(self.parameters), dict(other.parameters)
            name = next(n for n in (*mine, *theirs) if mine.get(n) != theirs.get(n))
            here, there = (one.get(name, "no such parameter") for one in (mine, theirs))
            return f"it has {here} of {name}, and the model {there}"
        for name, flag in (
            ("seq_len", "--seq-len"),
            ("global_batch_size", "--global-batch-size"),
            ("seed", "--seed"),
        ):
            if getattr(self, name) != getattr(other, name):
                before, now = getattr(self, name), getattr(other, name)
                return f"it was written with {flag} {before}, and {now} is asked for"
        if self.data != other.data:
            return "it was trained on other data; give the same --data, with its column and split"
        return None


class Resumable(Protocol):
    """What a rank trains with, as far as a state of it goes."""

    @property
    def updates(self) -> int:
        """Steps so far that changed the weights."""
        ...

    @property
    def loss_scale(self) -> tuple[float, int] | None:
        """By what losses are multiplied, and for how many steps they were; None: by nothing."""
        ...

    def state(self) -> Mapping[str, Tensor]:
        """What is needed to go on, all in float32, of which this rank has a part; every rank asks.
        There is some after a step."""
        ...

    def restore(self, state: TrainingState, read: Read) -> None:
        """Be as in a state, whose tensors `read` fills."""
        ...


def write(state: TrainingState, folder: Path) -> None:
    """Write `state` into a folder that is not whole yet, with the sizes of the files there."""
    sizes = {one.name: one.stat().st_size for one in folder.iterdir() if one.name != FILE}
    with (folder / FILE).open("w", encoding="utf-8") as file:
        json.dump({**asdict(state), FILES: sizes}, file)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> TrainingState:
    """The state in a folder. Raises Refused for what is none, and for one of which a file is gone
    or cut."""
    try:
        fields: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        sizes: dict[str, int] = dict(fields.pop(FILES, {}))  # older ones have none
        names = ((name, tuple(shape)) for name, shape in fields.pop("parameters"))
        steps = tuple(TrainingStepRow(**one) for one in fields.pop("steps"))
        scale = fields.pop("loss_scale")
        state = TrainingState(
            **fields,
            parameters=tuple(names),
            loss_scale=(scale[0], scale[1]) if scale else None,
            steps=steps,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"{folder} is no training state ({type(error).__name__}); give a folder "
            f"{PREFIX}... that --checkpoint-interval wrote, or the one that it is in"
        ) from error
    for name, size in sizes.items():
        _check_size(folder, name, size)
    return state


def not_whole(folder: Path, why: str) -> Refused:
    """Of a state of which a part is gone or spoiled."""
    return Refused(
        f"{folder} is not whole, so nothing can go on from it: {why}; go on from another state, "
        "or remove this one and begin anew"
    )


def _check_size(folder: Path, name: str, size: int) -> None:
    try:
        found = (folder / name).stat().st_size
    except OSError as error:
        raise not_whole(folder, f"{name}: {error.strerror}") from error
    if found != size:
        raise not_whole(folder, f"{name} has {found} bytes of {size}")


def whole(folder: Path) -> list[Path]:
    """The states in a folder that are whole, the last one last."""
    found = folder.glob(f"{PREFIX}*") if folder.is_dir() else ()
    return sorted(one for one in found if one.name[len(PREFIX) :].isdigit())


def given(path: Path) -> Path:
    """The state that is meant by a path: itself, or the last one in it. Raises Refused where there
    is none."""
    if (path / FILE).is_file():
        return path
    states: Sequence[Path] = whole(path)
    if not states:
        raise Refused(
            f"there is no training state in {path}; give a folder {PREFIX}... that "
            "--checkpoint-interval wrote, or the one that it is in"
        )
    return states[-1]


def name_of(step: int) -> str:
    """The name of the state after so many steps."""
    return f"{PREFIX}{step:08d}"


def step_of(folder: Path) -> int:
    """The steps after which a state was written, by its name."""
    return int(folder.name[len(PREFIX) :])
