"""The engine `transformers`: the library's own `generate`, on one device or with its layers laid
out over several."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from strategies.placement import Placement
from strategies.shapes import ModelShape
from workers.messages import Built, EnginePlan, RankReport, Work
from workers.records import COLLECTIVES
from workers.versions import versions

if TYPE_CHECKING:
    import torch

    from workers.engines.batch import Batcher
    from workers.rank import RankContext
    from workers.weights import Source


class TransformersEngine:
    """One process: `tp1`, or `ppN` as a `device_map`, whose devices work one after another."""

    processes: Literal["per_rank", "single"] = "single"

    def __init__(self) -> None:
        self._batcher: Batcher | None = None
        self._devices: list[torch.device] = []

    def supports(self, plan: EnginePlan) -> str | None:
        axes = {axis for axis, degree in plan.placement.mesh if degree > 1}
        if "tp" in axes:
            return "it does not cut tensors (tp)"
        if "dp" in axes:
            return "it does not run replicas (dp)"
        if axes - {"pp"}:
            return f"it does not know the axis {min(axes - {'pp'})}"
        unknown = {key for key, _ in plan.placement.options} - {"engine"}
        if unknown:
            return f"it has no option {min(unknown)}"
        cut = next(
            (name for name, _ in plan.model.parameters() if plan.placement.is_split(name, "pp")),
            None,
        )
        if cut:
            return f"it keeps tensors whole, and the layout cuts {cut}"
        if "pp" in axes and plan.device != "cuda":
            return "its device_map needs GPUs (pp)"
        if "pp" in axes and importlib.util.find_spec("accelerate") is None:
            return "its device_map needs accelerate (pp): pip install accelerate"
        return None

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
            0,
            time.perf_counter() - start,
            None,
            size,
            None,
            device_name(self._devices[0]),
            versions(),
        )

    def run(self, work: Work) -> RankReport:
        """Serve `work` in waves. What is copied between the devices of a pipeline is not seen: no
        collectives, no spans."""
        from workers.device import peak_memory, reset_peak
        from workers.engines.batch import Ledger

        assert self._batcher is not None, "build first"
        reset_peak(self._devices)
        ledger = Ledger(rank=0, replica=0)
        self._batcher.serve(work, ledger)
        alone = len(self._devices) == 1
        return RankReport(
            0,
            ledger.requests(),
            ledger.steps(),
            COLLECTIVES.make([]) if alone else None,
            peak_memory(self._devices),
            ledger.spans() if alone and work.observe else None,
            began_s=ledger.origin,
        )

    def close(self) -> None:
        self._batcher = None
        release(self._devices)


def shape_to_config(shape: ModelShape) -> Any:
    """The Transformers config of `shape`."""
    import transformers

    kinds = {
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    own: dict[str, dict[str, Any]] = {
        "llama": {"attention_bias": shape.output_bias},
        "mistral": {"sliding_window": None},
        "qwen2": {},
        "qwen3": {"attention_bias": shape.output_bias},
    }
    rope = {
        key: int(value) if key == "original_max_position_embeddings" else value
        for key, value in shape.rope_scaling
    }
    return kinds[shape.family](
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_positions,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta, **rope},
        tie_word_embeddings=shape.tie_embeddings,
        bos_token_id=None,
        pad_token_id=None,
        eos_token_id=list(shape.eos_token_ids) or None,
        **own[shape.family],
    )


def empty_model(plan: EnginePlan) -> Any:
    """The model on the meta device: every parameter has its shape and dtype and no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            shape_to_config(plan.model), dtype=getattr(torch, plan.dtype)
        ).eval()


def fill(
    module: Any,
    prefix: str,
    source: Source,
    device_of: Callable[[str], torch.device],
    made: dict[Any, Any],
) -> None:
    """Give every meta parameter under `module` its memory and its values, one at a time, whole.

    prefix: the module's name in the model. made: meta parameter -> what became of it, so that tied
    parameters stay tied.
    """
    import torch

    for path, child in module.named_modules(prefix=prefix):
        for name, empty in list(child.named_parameters(recurse=False)):
            if empty not in made:
                full = f"{path}.{name}"
                tensor = torch.empty(empty.shape, dtype=empty.dtype, device=device_of(full))
                source.read(
                    full, tuple(empty.shape), tuple(slice(0, size) for size in empty.shape), tensor
                )
                made[empty] = torch.nn.Parameter(tensor, requires_grad=False)
            setattr(child, name, made[empty])


def reset_rotary(model: Any, device: torch.device) -> None:
    """Compute the rotary frequencies anew, in float32: they are in no checkpoint, empty on meta,
    and rounded by a cast."""
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=model.config).to(device)


def release(devices: list[torch.device]) -> None:
    """Return memory that nothing refers to any more."""
    import gc

    import torch

    gc.collect()
    if devices and devices[0].type == "cuda":
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
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    dtype, source = getattr(torch, plan.dtype), str(plan.checkpoint)
    if spread is not None:
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, local_files_only=True, device_map=spread
        ).eval()
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, local_files_only=True)
    return model.to(device).eval()
