"""The engine `transformers`: the library's own `generate`, on one device or with its layers laid
out over several."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from strategies.placement import Placement
from workers.engines.transformers_config import shape_to_config
from workers.messages import Built, EnginePlan, RankReport, Work
from workers.records import COLLECTIVES
from workers.versions import versions

if TYPE_CHECKING:
    import torch

    from workers.engines.batch import Batcher
    from workers.rank import RankContext
    from workers.weights import Source


# Of `generate`: whole prompts, in batches that end before the next one begins.
CHOICES = {
    "attention": ("sdpa", "eager"),
    "cuda_graphs": ("off",),
    "fusion": ("off",),
    "batching": ("static",),
    "chunked_prefill_size": ("off",),
}


class TransformersEngine:
    """One process: `tp1`, or `ppN` as a `device_map`, whose devices work one after another."""

    processes: Literal["per_rank", "single"] = "single"

    def __init__(self) -> None:
        self._batcher: Batcher | None = None
        self._devices: list[torch.device] = []

    def supports(self, plan: EnginePlan) -> str | None:
        """None, or why Transformers cannot run the plan."""
        axes = {axis for axis, degree in plan.placement.mesh if degree > 1}
        return _refused_axes(axes) or _refused_cuts(plan) or _missing_for(axes, plan.device)

    def choices(self, plan: EnginePlan) -> Mapping[str, Sequence[str]]:
        """Its switches, and the values of each."""
        return CHOICES

    def build(self, context: RankContext, plan: EnginePlan) -> Built:
        """Load the model. The devices of a pipeline are this process's and the ones numbered after
        it."""
        from workers.device import device_name
        from workers.engines.batch import Batcher

        start = time.perf_counter()
        self._devices = _devices(context.device, plan.placement.degree("pp"))
        model = _load(plan, self._devices)
        self._batcher = Batcher(model, plan, self._devices[0], progress=context.progress)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        return Built(
            rank=0,
            load_s=time.perf_counter() - start,
            capture_s=None,
            weight_bytes=size,
            kv_tokens=None,
            device_name=device_name(self._devices[0]),
            versions=versions(),
        )

    def run(self, work: Work) -> RankReport:
        """Serve `work` in waves. Copies between the devices of a pipeline cannot be observed: then
        there are no collectives and no spans."""
        from workers.device import memory_swing, peak_memory, reset_peak
        from workers.engines.batch import Ledger

        assert self._batcher is not None, "build first"
        before = reset_peak(self._devices)
        ledger = Ledger(rank=0, replica=0)
        self._batcher.serve(work, ledger)
        alone = len(self._devices) == 1
        return RankReport(
            rank=0,
            requests=ledger.requests(),
            steps=ledger.steps(),
            collectives=COLLECTIVES.make([]) if alone else None,
            peak_memory_bytes=peak_memory(self._devices),
            memory_swing_bytes=memory_swing(self._devices, before),
            spans=ledger.spans() if alone and work.observe else None,
            began_s=ledger.origin,
        )

    def close(self) -> None:
        """Free the model."""
        self._batcher = None
        release(self._devices)


def _refused_axes(axes: set[str]) -> str | None:
    if "tp" in axes:
        return "it does not cut tensors (tp)"
    if "dp" in axes:
        return "it does not run replicas (dp)"
    if axes - {"pp"}:
        return f"it does not know the axis {min(axes - {'pp'})}"
    return None


def _refused_cuts(plan: EnginePlan) -> str | None:
    unknown = {key for key, _ in plan.placement.options} - {"engine"}
    if unknown:
        return f"it has no option {min(unknown)}"
    for name, _ in plan.model.parameters():
        if plan.placement.is_split(name, "pp"):
            return f"it keeps tensors whole, and the layout cuts {name}"
    return None


def _missing_for(axes: set[str], device: str) -> str | None:
    """The reason why there can be no pipeline here; None where there can, or where none is asked
    for."""
    if "pp" in axes and device != "cuda":
        return "its device_map needs GPUs (pp)"
    if "pp" in axes and importlib.util.find_spec("accelerate") is None:
        return "its device_map needs accelerate (pp): pip install accelerate"
    return None


# -- the model


def empty_model(plan: EnginePlan) -> Any:
    """The model on the meta device: every parameter has its shape and dtype and no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    family: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = family.from_config(shape_to_config(plan.model), **_options(plan))
    return model.eval()


def _options(plan: EnginePlan) -> dict[str, object]:
    """How any model of a plan is made."""
    import torch

    attention = plan.switches.settled(CHOICES).attention
    return {"dtype": getattr(torch, plan.dtype), "attn_implementation": attention}


def fill(
    module: torch.nn.Module,
    prefix: str,
    source: Source,
    device_of: Callable[[str], torch.device],
    made: dict[torch.nn.Parameter, torch.nn.Parameter],
) -> None:
    """Give every meta parameter under `module` its memory and its values, one at a time, whole.

    prefix: the module's name in the model. device_of: the device of a parameter by its full name.
    made: meta parameter -> what became of it, so that tied parameters stay tied.
    """
    for path, child in module.named_modules(prefix=prefix):
        for name, empty in list(child.named_parameters(recurse=False)):
            full = f"{path}.{name}"
            if empty not in made:
                made[empty] = _filled(full, empty, source, device_of(full))
            setattr(child, name, made[empty])


def _filled(
    name: str, empty: torch.nn.Parameter, source: Source, device: torch.device
) -> torch.nn.Parameter:
    """A parameter of the shape and dtype of `empty`, with its values, on `device`."""
    import torch

    shape = tuple(empty.shape)
    tensor = torch.empty(shape, dtype=empty.dtype, device=device)
    source.read(name, shape, tuple(slice(0, size) for size in shape), tensor)
    return torch.nn.Parameter(tensor, requires_grad=False)


def reset_rotary(model: Any, device: torch.device) -> None:
    """Compute the rotary frequencies anew, in float32. No checkpoint has them, on the meta device
    they are empty, and a cast of the model rounds them."""
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=model.config).to(device)


def release(devices: list[torch.device]) -> None:
    """Give back the memory of GPUs that no object uses any more. That of the host goes back when
    Python looks through all objects by itself, or the process ends: looking takes half a second."""
    import gc

    import torch

    if devices and devices[0].type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def device_map(
    placement: Placement, tied: bool, devices: list[torch.device]
) -> dict[str, torch.device]:
    """Module name -> device, by the placement's stages. A tied head stays where the embedding
    is."""
    places: dict[str, torch.device] = {}
    for stage in placement.stages:
        device = devices[stage.pp_rank]
        places |= {f"model.layers.{layer}": device for layer in stage.layers}
        if stage.embed:
            places |= {"model.embed_tokens": device, "model.rotary_emb": device}
        if stage.head:
            places |= {"model.norm": device, "lm_head": device}
    if tied:
        places["lm_head"] = places["model.embed_tokens"]
    return places


def _devices(first: torch.device, count: int) -> list[torch.device]:
    import torch

    if first.type == "cpu":
        return [first]
    index = first.index or 0
    if index + count > torch.cuda.device_count():
        raise ValueError(
            f"{count} GPUs from cuda:{index} on were asked for, this process sees "
            f"{torch.cuda.device_count()}"
        )
    return [torch.device("cuda", index + i) for i in range(count)]


def _load(plan: EnginePlan, devices: list[torch.device]) -> Any:
    """The model on its devices: from the checkpoint as Transformers reads it, or with dummy weights
    made in place."""
    places = device_map(plan.placement, plan.model.tie_embeddings, devices)
    # Transformers and accelerate name GPUs by number.
    spread = {name: device.index for name, device in places.items()} if len(devices) > 1 else None
    if plan.checkpoint is not None:
        return _from_checkpoint(plan, devices[0], spread)

    from workers.weights import open_source

    def device_of(parameter: str) -> torch.device:
        return next(
            device for module, device in places.items() if parameter.startswith(module + ".")
        )

    model = empty_model(plan)
    fill(model, "", open_source(None), device_of, {})
    reset_rotary(model, devices[0])
    if spread is None:
        return model
    from accelerate import dispatch_model

    return dispatch_model(model, device_map=spread, skip_keys=model._skip_keys_device_placement)


def _from_checkpoint(plan: EnginePlan, device: torch.device, spread: dict[str, int] | None) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    family: Any = AutoModelForCausalLM
    options = {**_options(plan), "local_files_only": True}
    if spread is not None:
        return family.from_pretrained(str(plan.checkpoint), device_map=spread, **options).eval()
    return family.from_pretrained(str(plan.checkpoint), **options).to(device).eval()
