"""The tokens of each optimizer step, the same under every layout."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from workers.engines.training.packed import Packed
from workers.messages import EnginePlan, TrainingWork


def batches(plan: EnginePlan, work: TrainingWork, replica: int, steps: range) -> Iterator[Tensor]:
    """int64 [sequences of the replica, seq_len + 1] of each of some steps of a run."""
    if work.tokens is None:
        yield from random_batches(plan, replica, steps)
        return
    assert plan.training is not None, "the plan trains"
    packed, size = Packed(work.tokens, plan.seed), plan.training.global_batch_size
    for step in steps:
        yield torch.from_numpy(packed.batch(step, size, replica, plan.placement.num_replicas))


def random_batches(plan: EnginePlan, replica: int, steps: range) -> Iterator[Tensor]:
    """int64 [sequences of the replica, seq_len + 1] of each step: random tokens from a seed of
    (seed, step). Replicas take neighbouring sequences of the global batch."""
    asked = plan.training
    assert asked is not None, "the plan trains"
    share = asked.global_batch_size // plan.placement.num_replicas
    size = (asked.global_batch_size, asked.seq_len + 1)
    for step in steps:
        random = np.random.default_rng((plan.seed, step))
        tokens = random.integers(plan.model.vocab_size, size=size)
        yield torch.from_numpy(tokens[replica * share : (replica + 1) * share])
