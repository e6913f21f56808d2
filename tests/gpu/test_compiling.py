"""Kernels in Triton that are compiled together. Runs where there is a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import BASE, FAMILIES, engine_plan, ragged_requests

from strategies import ModelShape
from workers.communicator import Communicator
from workers.engines.native.build import load_decoder, make_cache, make_runner
from workers.engines.native.graphs import Replay
from workers.engines.native.kernels import reference
from workers.messages import Switches, Work
from workers.rank import RankContext

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = torch.device("cuda", 0)


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of kernels as they are compiled; none is there at first."""
    import triton
    from triton.runtime import jit

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    caches = {one: one.device_caches for one in _kernels(jit)}
    for one in caches:
        one.device_caches = type(one.device_caches)(one.create_binder)
    names: list[str] = []
    monkeypatch.setattr(
        triton.knobs.compilation, "listener", lambda *, src, **_: names.append(src.name)
    )
    yield names
    for one, held in caches.items():
        one.device_caches = held


def _kernels(jit: Any) -> list[Any]:
    from workers.engines.native.kernels import (
        flagged,
        fused,
        fused_ends,
        fused_fp8,
        products,
        streamed,
        symmetric,
    )

    modules = (flagged, fused, fused_ends, fused_fp8, products, streamed, symmetric)
    found = (one for module in modules for one in vars(module).values())
    return list({id(one): one for one in found if isinstance(one, jit.JITFunction)}.values())


def test_what_would_be_launched_is_compiled_and_there(compiled: list[str]) -> None:
    from workers.engines.native.kernels import fused
    from workers.engines.native.kernels.compiling import compiled_together

    x, weight = torch.randn(5, 512, device=DEVICE), torch.randn(512, device=DEVICE)
    gate_up = torch.randn(3, 256, device=DEVICE, dtype=torch.bfloat16)
    with compiled_together():
        assert (fused.rms_norm(x, weight, 1e-5) == 0).all()
        assert (fused.silu_mul(gate_up) == 0).all()
        fused.rms_norm(x, weight, 1e-5)
    assert sorted(compiled) == ["_norm", "_silu_mul"]
    normed = fused.rms_norm(x, weight, 1e-5)
    assert torch.allclose(normed, reference.rms_norm(x, weight, 1e-5), atol=1e-5)
    assert len(compiled) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("quantization", ["none", "fp8", "fp8-prefill"])
@torch.inference_mode()
def test_a_capture_compiles_nothing(
    quantization: str, temperature: float, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if quantization != "none" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with FP8")
    config = {**BASE, **FAMILIES["Llama"], "hidden_size": 256, "num_hidden_layers": 5}
    shape = ModelShape.from_config({**config, "architectures": ["LlamaForCausalLM"]}, "llama")
    work = Work(ragged_requests(shape.vocab_size, count=70), max_concurrency=70)
    changes: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "prefill_tokens": 512}
    changes |= {"switches": Switches(), "quantization": quantization, "temperature": temperature}
    plan = engine_plan("tp1", shape, None, work, **changes)
    context = RankContext(0, plan.placement, DEVICE)
    communicator = Communicator(context)
    decoder, cache = load_decoder(context, plan, communicator), make_cache(context, plan, 200)
    before: list[int] = []
    capture = Replay.capture
    monkeypatch.setattr(
        Replay, "capture", lambda *args: before.append(len(compiled)) or capture(*args)
    )
    make_runner(plan, communicator, decoder, cache)
    assert {"_begin", "_rope", "_decode", "_choose"} <= set(compiled)
    assert set(before) == {len(compiled)}
