"""What DeepSpeed keeps of each parameter in float32, whole, whichever ZeRO cuts it.

Each is gathered, or given back, by itself: no rank has room for all of them on its device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from strategies.shapes import ModelShape
from workers.engines import deepspeed_private
from workers.engines.training.model import StageModule
from workers.engines.training.optimizer import MOMENTS, WEIGHT
from workers.engines.training.scaling import FIRST
from workers.engines.training_state import Read
from workers.rank import RankContext
from workers.weights import Source


def state_of(engine: Any, rank: int, ranks: int) -> dict[str, Tensor]:
    """The tensors of a state of which this rank writes a share, in main memory. Every rank calls
    it."""
    found: dict[str, Tensor] = {}
    masters = _masters(engine)
    for number, (name, parameter) in enumerate(engine.module.stored_parameters()):
        for what in (WEIGHT, *MOMENTS):
            whole = _whole(engine, parameter, masters, what)
            if number % ranks == rank:
                found[f"{what}.{name}"] = whole.detach().float().cpu().clone()
    return found


def fill(stage: StageModule, read: Read) -> None:
    """Give a model that is not DeepSpeed's yet the weights of a state."""
    for name, parameter in stage.stored_parameters():
        with torch.no_grad():
            parameter.copy_(_read(read, f"{WEIGHT}.{name}", parameter.shape))


def restore(engine: Any, updates: int, rank: int, read: Read) -> None:
    """Give DeepSpeed's optimizer the weights in float32 and the moments of a state, as after so
    many updates. Its model has the weights already."""
    masters, inner = _masters(engine), deepspeed_private.inner_optimizer(engine)
    for flat in deepspeed_private.stepped(engine):
        moments = {name: torch.zeros_like(flat.detach()) for name in MOMENTS}
        inner.state[flat] = {"step": torch.tensor(float(updates), device=flat.device), **moments}
    if masters is None:
        deepspeed_private.link_moments(engine)
    for name, parameter in engine.module.stored_parameters():
        shape = deepspeed_private.whole_shape(parameter)
        for what in (WEIGHT, *MOMENTS):
            value = _read(read, f"{what}.{name}", shape)
            if masters is None:
                deepspeed_private.put(parameter, what, value, rank)
            else:
                master = masters[parameter]
                target = master if what == WEIGHT else inner.state[master][what]
                with torch.no_grad():
                    target.copy_(value)


def begin_again(engine: Any, context: RankContext, source: Source, shape: ModelShape) -> None:
    """Give an engine of ZeRO the first weights and moments of zero, where they lie: memory that is
    there already is fast, and new memory is not."""
    sizes = dict(shape.parameters())
    for name, parameter in engine.module.stored_parameters():
        value = torch.empty(sizes[name], dtype=parameter.dtype, device=context.device)
        source.read(name, sizes[name], tuple(slice(0, size) for size in value.shape), value)
        deepspeed_private.put_weight(parameter, value, context.rank)
    for state in deepspeed_private.inner_optimizer(engine).state.values():
        for moment in state.values():  # and the number of updates
            moment.zero_()
    scale_by(engine, FIRST, 0)


def scale_by(engine: Any, scale: float, steps: int) -> None:
    """In fp16, multiply losses so from now on, as after so many steps of that."""
    if engine.fp16_enabled():
        scaler = deepspeed_private.loss_scaler(engine)
        scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter = scale, steps, -1


def begin_anew(engine: Any) -> None:
    """Have an optimizer without ZeRO forget the update, of zeros, that DeepSpeed begins with where
    weights are not float32: it decays weights, and counts."""
    masters = _masters(engine)
    if masters is None:
        return
    deepspeed_private.inner_optimizer(engine).state.clear()
    for parameter, master in masters.items():
        if parameter is not master:
            with torch.no_grad():
                master.copy_(parameter)


def _masters(engine: Any) -> dict[nn.Parameter, Tensor] | None:
    """Parameter -> what is stepped for it; None under ZeRO, which steps parts of them."""
    parameters, stepped = list(engine.module.parameters()), deepspeed_private.stepped(engine)
    if [one.shape for one in parameters] != [one.shape for one in stepped]:
        return None
    return dict(zip(parameters, stepped, strict=True))


def _whole(
    engine: Any, parameter: nn.Parameter, masters: dict[nn.Parameter, Tensor] | None, what: str
) -> Tensor:
    if masters is None:
        return deepspeed_private.whole(parameter, what)
    master = masters[parameter]
    if what == WEIGHT:
        return master
    moment: Tensor = deepspeed_private.inner_optimizer(engine).state[master][what]
    return moment


def _read(read: Read, name: str, shape: torch.Size) -> Tensor:
    value = torch.empty(shape, dtype=torch.float32)
    read({name: value})
    return value
