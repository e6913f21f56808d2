"""FP8 checkpoints as people publish them: the same values under every layout, and products of
inputs that are rounded as the checkpoint says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from fp8_checkpoints import FORMS, Published, publish, with_quantized_inputs
from logits import prompt_logits
from ranks import Pool, engine_plan, plain, ragged_requests, tokens
from safetensors.torch import load_file, save_file

from orchestrator.errors import Refused
from orchestrator.plan import models
from strategies import memory
from workers.engines.native.support import refusal
from workers.messages import EnginePlan, Work
from workers.weights import open_source

WORK = Work(ragged_requests(128, count=4), max_concurrency=3)


@dataclass
class Folders:
    """The checkpoints of one family in all forms, and what the ranks made of them."""

    pool: Pool
    of: dict[str, tuple[Path, Path]]
    served: dict[tuple[str, str], dict[str, dict[int, list[int]]]] = field(default_factory=dict)

    def plan(self, form: str, layout: str, quantization: str, **more: str) -> EnginePlan:
        """How the checkpoint is served."""
        folder = self.of[form][0]
        shape = models.resolve(str(folder)).shape
        return engine_plan(layout, shape, folder, WORK, quantization=quantization, **more)

    def tokens(self, layout: str, quantization: str) -> dict[str, dict[int, list[int]]]:
        """Of each form; all of them are served where the ranks meet once."""
        key = layout, quantization
        if key not in self.served:
            jobs = {form: (self.plan(form, layout, quantization), WORK) for form in self.of}
            reports = self.pool.serve_many(list(jobs.values()))
            assert not [one for one in reports if isinstance(one, str)]
            self.served[key] = {
                form: tokens(one)  # type: ignore[arg-type]
                for form, one in zip(jobs, reports, strict=True)
            }
        return self.served[key]


@pytest.fixture(scope="module")
def folders(
    pool: Pool, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Folders:
    root, source = tmp_path_factory.mktemp("fp8"), checkpoint("Qwen2")
    return Folders(pool, {form.name: publish(source, form, root / form.name) for form in FORMS})


forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


@pytest.mark.parametrize("layout", ["tp1", "tp2pp2"])
@forms
def test_without_quantization_it_is_the_model_of_its_real_values(
    form: Published, layout: str, folders: Folders
) -> None:
    """So values and scales are read, and cut, rightly."""
    assert folders.tokens(layout, "none")[form.name] == plain(folders.of[form.name][1], WORK)


@forms
def test_logits_are_those_of_transformers_with_rounded_inputs(
    form: Published, folders: Folders
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders.of[form.name][1], dtype=torch.float32)
    prompt = max((request.prompt for request in WORK.requests), key=len)
    with torch.inference_mode():
        unrounded = model(torch.tensor([prompt])).logits[0]
        expected = with_quantized_inputs(model, form)(torch.tensor([prompt])).logits[0]
        ours = prompt_logits(folders.plan(form.name, "tp1", "fp8"), prompt)
    # A value that lies between two of e4m3 may go to either.
    assert (ours - expected).norm() < 0.02 * expected.norm()
    assert (unrounded - expected).norm() > 0.02 * expected.norm()


def test_each_form_is_served_in_fp8_where_tensors_and_layers_are_cut(folders: Folders) -> None:
    for made in folders.tokens("tp2pp2", "fp8").values():
        assert {index: len(one) for index, one in made.items()} == {
            request.index: request.output_len for request in WORK.requests
        }


def test_weights_that_are_made_fp8_are_the_same_in_stages_and_are_cut_with_whole_scales(
    folders: Folders, checkpoint: Callable[[str], Path]
) -> None:
    """Stages cut no input, so they change no token. Ranks of tp round their own parts of inputs."""
    folder = checkpoint("Llama")
    shape, fp8 = models.resolve(str(folder)).shape, {"quantization": "fp8", "kv_cache_dtype": "fp8"}
    made = {}
    for layout in ("tp1", "pp2", "tp2pp2"):
        plan = engine_plan(layout, shape, folder, WORK, **fp8)
        (reports,) = folders.pool.serve(plan, WORK)
        made[layout] = tokens(reports)
    assert made["pp2"] == made["tp1"]
    assert {i: len(one) for i, one in made["tp2pp2"].items()} == {
        i: len(one) for i, one in made["tp1"].items()
    }


@pytest.mark.parametrize("quantization", ["fp8", "fp8-decode"])
@forms
def test_what_a_rank_holds_is_what_was_planned(
    form: Published, quantization: str, folders: Folders
) -> None:
    plan = folders.plan(form.name, "tp2pp2", quantization, kv_cache_dtype="fp8")
    try:
        built = folders.pool.build(plan)
    finally:
        folders.pool.call("close", [()] * 4)
    assert [one.weight_bytes for one in built] == [
        memory.weight_bytes(plan.placement, plan.model, rank, plan.precision) for rank in range(4)
    ]


def test_a_cut_within_a_block_is_refused(folders: Folders) -> None:
    """64 channels over 4 ranks are one block of 16 each; 96 are one and a half."""
    reason = refusal(folders.plan("qwen-blocks", "tp4", "fp8"))
    assert reason is not None
    assert "cuts model.layers.0.mlp.gate_proj.weight of shape [96, 64] within a block" in reason
    assert "use fewer ranks of tp, or --quantization none" in reason
    assert refusal(folders.plan("channels", "tp4", "fp8")) is None
    assert refusal(folders.plan("qwen-blocks", "tp4", "none")) is None


def test_a_block_that_a_joined_matrix_ends_in_is_refused_and_is_no_matter_of_ranks(
    folders: Folders,
) -> None:
    """Up lies below gate, of 88 channels: five blocks of 16 and a half."""
    plan = folders.plan("qwen-blocks", "tp1", "fp8")
    plan = replace(plan, model=replace(plan.model, intermediate_size=88))
    reason = refusal(plan)
    assert reason is not None
    assert "puts another matrix below model.layers.0.mlp.gate_proj.weight" in reason
    assert "ranks" not in reason
    assert refusal(replace(plan, quantization="none")) is None


def test_any_part_of_a_matrix_in_blocks_is_read_as_its_real_values(folders: Folders) -> None:
    folder = folders.of["qwen-blocks"][0]
    source = open_source(str(folder), models.resolve(str(folder)).shape.fp8)
    name, shape = "model.layers.0.mlp.gate_proj.weight", (96, 64)

    def read(*box: slice) -> torch.Tensor:
        out = torch.empty([side.stop - side.start for side in box])
        source.read(name, shape, box, out)
        return out

    whole = read(slice(0, 96), slice(0, 64))
    for rows, columns in ((slice(24, 48), slice(0, 64)), (slice(7, 90), slice(13, 50))):
        assert torch.equal(read(rows, columns), whole[rows, columns])


def test_matrices_that_are_one_here_are_of_one_form(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    (form,) = (one for one in FORMS if one.name == "channels")
    config = {**form.config, "ignore": ["lm_head", "model.layers.2.self_attn.k_proj"]}
    odd = replace(form, config=config, plain=r".*layers\.2\.self_attn\.k_proj")
    folder, _ = publish(checkpoint("Qwen2"), odd, tmp_path)
    plan = engine_plan("tp1", models.resolve(str(folder)).shape, folder, WORK, quantization="fp8")
    reason = refusal(plan)
    assert reason is not None
    assert "model.layers.2.self_attn.k_proj.weight is not; use --quantization none" in reason
    assert refusal(replace(plan, quantization="none")) is None


Edit = Callable[[dict[str, torch.Tensor]], object]
Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda t: t.pop(f"{Q}.weight_scale"), "its scale (weight_scale or weight_scale_inv"),
        (lambda t: t.update({f"{Q}.weight_scale": torch.ones(3, 1)}), "[3, 1]"),
        (lambda t: t.update({f"{Q}.weight": torch.ones(64, 64)}), "is stored as F32"),
        (lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"][:32]}), "[32, 64]"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.float8_e4m3fn)}), "F8"),
        (lambda t: t.update({"model.layers.0.self_attn.k_scale": torch.ones(1)}), "k_scale"),
        (lambda t: t.update({f"{Q}.input_scale": torch.ones(1)}), "input_scale"),
    ],
)
def test_what_is_stored_otherwise_than_the_config_says_is_refused_by_its_name(
    edit: Edit, named: str, folders: Folders, tmp_path: Path
) -> None:
    folder = folders.of["channels"][0]
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(
        {name: one.contiguous() for name, one in tensors.items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(Refused) as refused:
        models.resolve(str(tmp_path))
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
