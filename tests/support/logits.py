"""The logits of a prompt, from our decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workers.communicator import Communicator
from workers.engines.native.build import load_decoder, make_cache
from workers.engines.native.contexts import PrefillContext
from workers.engines.native.model import Batch
from workers.engines.native.pages import PAGE, pages_for
from workers.messages import EnginePlan
from workers.rank import RankContext


def prompt_logits(plan: EnginePlan, prompt: Sequence[int]) -> torch.Tensor:
    """[tokens of the prompt, vocabulary], of a plan of one rank, on its device."""
    device = torch.device(plan.device)
    context = RankContext(0, plan.placement, device)
    decoder = load_decoder(context, plan, Communicator(context))
    count = len(prompt)
    ends = torch.tensor([0, count], dtype=torch.int32, device=device)
    at = torch.arange(count, device=device)
    seen = PrefillContext(at + PAGE, ends, ends, count, count)
    batch = Batch(torch.tensor(prompt, device=device), at, at + PAGE, seen)
    with torch.inference_mode():
        return decoder.forward(batch, make_cache(context, plan, pages_for(count)))
