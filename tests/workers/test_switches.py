"""Which switches an engine has, and what it says of a value that it has not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ranks import engine_plan

from strategies import ModelShape
from workers import engines
from workers.engines.native import support
from workers.engines.native.build import attention_bytes
from workers.engines.vllm.settings import arguments
from workers.messages import EnginePlan, Request, Switches, Work

MODEL = ModelShape("m", "llama", 64, 4, 4, 4, 16, 96, 128, 256, 1e-5, 1e4)
WORK = Work((Request(0, (1,), 2),), 1)
OTHERS = ["transformers", "deepspeed", "vllm"]


def plan(device: str = "cpu", model: ModelShape = MODEL, **switches: str) -> EnginePlan:
    changes: dict[str, Any] = {"device": device, "switches": Switches(**switches)}
    return engine_plan("tp1", model, None, WORK, capability=None, **changes)


@pytest.mark.parametrize(
    ("engine", "device", "switch", "value", "reason"),
    [
        (
            "torch",
            "cpu",
            "attention",
            "triton",
            "on a CPU it has no --attention triton; use sdpa or eager, or leave it out",
        ),
        (
            "torch",
            "cuda",
            "attention",
            "flex",
            "no --attention flex; use triton or sdpa or eager or fa3 or fa3-p",
        ),
        (
            "torch",
            "cpu",
            "cuda_graphs",
            "on",
            "on a CPU it has no --cuda-graphs on; use off, or leave it out",
        ),
        ("torch", "cpu", "fusion", "on", "on a CPU it has no --fusion on; use off"),
        (
            "torch",
            "cpu",
            "allreduce",
            "nccl",
            "on a CPU it has no --allreduce nccl; use shm or gloo",
        ),
        (
            "torch",
            "cuda",
            "allreduce",
            "custom",
            "on a GPU it has no --allreduce custom; use nccl or one-shot",
        ),
        ("transformers", "cpu", "attention", "triton", "no --attention triton; use sdpa or eager"),
        ("transformers", "cuda", "batching", "continuous", "no --batching continuous; use static"),
        ("transformers", "cuda", "cuda_graphs", "on", "no --cuda-graphs on; use off"),
        (
            "transformers",
            "cpu",
            "chunked_prefill_size",
            "64",
            "no --chunked-prefill-size 64; use off",
        ),
        ("transformers", "cpu", "allreduce", "gloo", "it has no --allreduce; leave it out"),
        ("deepspeed", "cpu", "fusion", "on", "no --fusion on; use off"),
        ("vllm", "cuda", "attention", "sdpa", "it has no --attention; leave it out"),
        ("vllm", "cuda", "batching", "static", "no --batching static; use continuous"),
        ("vllm", "cpu", "allreduce", "custom", "it has no --allreduce; leave it out"),
    ],
)
def test_what_an_engine_does_not_have_is_refused_with_what_it_has(
    engine: str, device: str, switch: str, value: str, reason: str
) -> None:
    assert reason in str(engines.refusal(engine, plan(device, **{switch: value})))


@pytest.mark.parametrize(
    ("device", "values"),
    [
        ("cpu", ("sdpa", "off", "off", "continuous", "16", "shm", "off", "cublas", "off")),
        ("cuda", ("triton", "on", "on", "continuous", "16", "nccl", "off", "cublas", "off")),
    ],
)
def test_what_is_left_to_the_engine_is_set_as_it_has_it(
    device: str, values: tuple[str, ...]
) -> None:
    assert engines.settled("torch", plan(device)).switches == Switches(*values)
    asked = plan(device, attention="eager", chunked_prefill_size="off")
    changed = replace(Switches(*values), attention="eager", chunked_prefill_size="off")
    assert engines.settled("torch", asked).switches == changed


@pytest.mark.parametrize(
    ("capability", "values"),
    [
        (None, ("cublas", "off")),
        ((8, 0), ("cublas", "off")),
        ((9, 0), ("triton", "on")),
        ((12, 0), ("cublas", "off")),
    ],
)
@pytest.mark.parametrize("layout", ["tp1", "tp2"])
def test_kernels_are_launched_early_where_the_gpu_can(
    layout: str, capability: tuple[int, int] | None, values: tuple[str, str]
) -> None:
    asked = engine_plan(layout, MODEL, None, WORK, device="cuda", capability=capability)
    settled = engines.settled("torch", asked).switches
    assert (settled.products, settled.pdl) == values
    refused = engines.refusal("torch", replace(asked, switches=Switches(pdl="on")))
    assert (refused is None) == (values[1] == "on")


@pytest.mark.parametrize("engine", ["torch", *OTHERS])
def test_every_value_that_an_engine_offers_it_takes(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is optional installed, in a dtype that all of them have."""
    monkeypatch.setattr(support, "find_spec", lambda name: "here")
    for device, dtype in (("cpu", "float32"), ("cuda", "bfloat16")):
        for name, values in engines.create(engine).choices(plan(device)).items():  # type: ignore
            for value in values:
                asked = replace(plan(device, **{name: value}), dtype=dtype)
                said = str(engines.refusal(engine, asked))
                assert f"--{name.replace('_', '-')}" not in said


def test_attention_in_torch_takes_a_head_dim_that_triton_does_not() -> None:
    odd = replace(MODEL, head_dim=24)
    assert "use --attention sdpa" in str(engines.refusal("torch", plan("cuda", odd)))
    assert engines.refusal("torch", plan("cuda", odd, attention="sdpa")) is None


def test_attention_in_torch_has_its_room_beside_the_cache() -> None:
    """Four heads of 16, of 4 KV heads; one seat of 3 tokens, 16 prompt tokens a pass, float32."""
    contexts = 2 * 3 * (2 * 4 * 16 * 4)
    scores = 4 * 16 * 3 * (4 + 2 * 4)
    kinds = ("triton", "sdpa", "eager")
    found = [attention_bytes(plan("cuda", attention=kind), 0) for kind in kinds]
    assert found == [0, contexts, contexts + scores]


def test_a_plug_in_without_choices_has_no_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        processes = "per_rank"

        def supports(self, plan: EnginePlan) -> None:
            return None

    monkeypatch.setattr(engines, "create", lambda name: Plain())
    assert engines.refusal("plain", plan()) is None
    assert engines.settled("plain", plan()) == plan()
    said = engines.refusal("plain", plan(batching="static"))
    assert said == "on a CPU it has no --batching; leave it out"


def test_switches_become_settings_of_vllm() -> None:
    plain = arguments(plan("cuda"), "")
    assert not {"enforce_eager", "disable_custom_all_reduce"} & plain.keys()
    assert arguments(plan("cuda", cuda_graphs="off"), "")["enforce_eager"] is True
    assert arguments(plan("cuda", allreduce="nccl"), "")["disable_custom_all_reduce"] is True
    assert arguments(plan("cpu"), "")["enforce_eager"] is True


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_is_given_the_attention(attention: str) -> None:
    from workers.engines.transformers import empty_model

    model = empty_model(plan(attention=attention))
    assert model.config._attn_implementation == attention
