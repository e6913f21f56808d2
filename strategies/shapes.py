"""What a layout is planned for: the shape of a model, the load it must serve, the devices there
are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from strategies.fp8 import Fp8Format
from strategies.hub_config import HubConfig
from strategies.shape_checks import validate

TrainingPrecision = Literal["bf16", "fp32", "fp16", "fp8", "fp8-fp16"]
Schedule = Literal["gpipe", "1f1b", "interleaved"]
Checkpointing = Literal["off", "full", "selective", "cpu-offload"]
Offload = Literal["none", "optimizer", "optimizer+params"]
# In what weights, gradients and activations are; with FP8, matrix products alone are in that.
TRAINING_DTYPES: Mapping[TrainingPrecision, str] = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8": "bfloat16",
    "fp8-fp16": "float16",
}
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
HOPPER = 9  # major compute capability of the GPUs that kernels of few rows were made for
# The form of matrices that are made FP8 here, from weights that are not.
MADE_FP8 = Fp8Format()


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of the Llama family, as its Hugging Face config describes it. Sizes are in
    elements.

    rope_scaling: () = plain rope, else rope_type ("llama3", "linear", "yarn" or "dynamic") and the
    numbers of Transformers' `rope_parameters`. qkv_bias, output_bias: whether the projections of
    attention have biases. qk_norm: whether queries and keys are normalised. sliding_window: tokens
    that attention sees, the newest one included; None: all. sliding_layers: whether each layer has
    the window; () = every one. fp8: the form in which a checkpoint stores matrices of layers; None:
    it has none in FP8.
    """

    name: str
    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling: tuple[tuple[str, float | str], ...] = ()
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    eos_token_ids: tuple[int, ...] = ()
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    fp8: Fp8Format | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str) -> ModelShape:
        """Read a Hugging Face `config.json`, in the spelling of transformers 4 or 5.

        Raises LayoutError for an architecture, an activation or a rope variant that is not run
        here and for a number that no model can have (`shape_checks`), KeyError for a field that is
        missing, TypeError for one that is not a number.
        """
        read = HubConfig(config, name)
        read.refuse_remote_code()
        family = read.family()
        read.refuse_variants()
        heads, hidden = read.integer("num_attention_heads"), read.integer("hidden_size")
        window, windowed = read.sliding_window(family)
        # Transformers' classes of the other families do not read it.
        bias = family in ("llama", "qwen3") and read.flag("attention_bias")
        shape = cls(
            name=name,
            family=family,
            hidden_size=hidden,
            num_layers=read.integer("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=read.integer("num_key_value_heads", heads),
            head_dim=read.integer("head_dim", hidden // max(heads, 1)),
            intermediate_size=read.integer("intermediate_size"),
            vocab_size=read.integer("vocab_size"),
            max_positions=read.integer("max_position_embeddings"),
            norm_eps=read.norm_eps,
            rope_theta=read.rope_theta,
            rope_scaling=read.rope_scaling,
            tie_embeddings=read.flag("tie_word_embeddings"),
            qkv_bias=family == "qwen2" or bias,
            output_bias=bias,
            qk_norm=family == "qwen3",
            eos_token_ids=read.eos_token_ids,
            sliding_window=window,
            sliding_layers=windowed,
            fp8=read.fp8_format,
        )
        validate(shape)
        return shape

    def parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every tensor in a checkpoint, by its Hugging Face name; a tied head has
        none of its own."""
        yield "model.embed_tokens.weight", (self.vocab_size, self.hidden_size)
        for layer in range(self.num_layers):
            for suffix, shape in self.layer_parameters():
                yield f"model.layers.{layer}.{suffix}", shape
        yield "model.norm.weight", (self.hidden_size,)
        if not self.tie_embeddings:
            yield "lm_head.weight", (self.vocab_size, self.hidden_size)

    @property
    def head_name(self) -> str:
        """The tensor that makes logits: the embedding's own where it is tied."""
        return "model.embed_tokens.weight" if self.tie_embeddings else "lm_head.weight"

    def fp8_of(self, name: str) -> Fp8Format | None:
        """The form that the parameter `name` has where it is FP8; None for one that never is: all
        but the matrices of layers."""
        form = self.fp8 or MADE_FP8
        is_matrix = name.startswith("model.layers.") and name.endswith("_proj.weight")
        return form if is_matrix and form.covers(name) else None

    def layer_parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(suffix, shape) of the tensors of one layer."""
        hidden, columns = self.hidden_size, self.intermediate_size
        yield "input_layernorm.weight", (hidden,)
        yield from self._attention_parameters()
        yield "post_attention_layernorm.weight", (hidden,)
        yield "mlp.gate_proj.weight", (columns, hidden)
        yield "mlp.up_proj.weight", (columns, hidden)
        yield "mlp.down_proj.weight", (hidden, columns)

    def _attention_parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, q, kv = (
            self.hidden_size,
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        )
        for projection, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"self_attn.{projection}_proj.weight", (rows, hidden)
            if self.qkv_bias:
                yield f"self_attn.{projection}_proj.bias", (rows,)
        yield "self_attn.o_proj.weight", (hidden, q)
        if self.output_bias:
            yield "self_attn.o_proj.bias", (hidden,)
        if self.qk_norm:
            yield "self_attn.q_norm.weight", (self.head_dim,)
            yield "self_attn.k_norm.weight", (self.head_dim,)

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors together."""
        return sum(math.prod(shape) for _, shape in self.parameters())

    @property
    def layer_elements(self) -> int:
        """Elements of the tensors of one layer."""
        return sum(math.prod(shape) for _, shape in self.layer_parameters())


@dataclass(frozen=True, slots=True)
class TrainingLoad:
    """What one optimizer step trains on, and by which means.

    seq_len: tokens of a sequence. global_batch_size: sequences of a step, over all replicas.
    micro_batch_size: sequences that a rank computes at once. precision: of matrix products; all
    but "fp32" keep an FP32 master copy. schedule: of a pipeline. stages_per_rank: stages that a
    rank of an interleaved pipeline has; the other schedules have one. activation_checkpointing:
    which activations are not kept for the backward pass, "cpu-offload": kept, but in main memory.
    offload: what is kept, and stepped, in main memory. compiles: whether layers are compiled, and
    without tp the loss (`--fusion on`). fuses_updates: whether one kernel updates a parameter.
    keeps_gradients: whether the engine has them in flat buffers from step to step, and logits for
    as long as their micro-batch lasts, as DeepSpeed does.
    """

    seq_len: int
    global_batch_size: int
    micro_batch_size: int = 1
    precision: TrainingPrecision = "bf16"
    schedule: Schedule = "1f1b"
    activation_checkpointing: Checkpointing = "off"
    offload: Offload = "none"
    stages_per_rank: int = 2
    compiles: bool = False
    fuses_updates: bool = True
    keeps_gradients: bool = False

    @property
    def load(self) -> Load:
        """The load that a strategy is told: sequences of `seq_len` tokens, none made."""
        return Load(self.seq_len, 0, self.global_batch_size, self)

    def with_fusion(self, fusion: str | None, on_gpu: bool) -> TrainingLoad:
        """The same under `--fusion`. None or "auto": only updates are fused, and on a GPU."""
        compiles = fusion == "on"
        return replace(
            self, compiles=compiles, fuses_updates=compiles or (on_gpu and fusion != "off")
        )

    @property
    def dtype(self) -> str:
        """Of weights, gradients and activations, as torch names it."""
        return TRAINING_DTYPES[self.precision]

    @property
    def is_fp8(self) -> bool:
        """Whether matrix products are in FP8."""
        return self.precision in ("fp8", "fp8-fp16")

    @property
    def chunks(self) -> int:
        """Stages of one rank of a pipeline."""
        return self.stages_per_rank if self.schedule == "interleaved" else 1

    @property
    def tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.global_batch_size * self.seq_len


@dataclass(frozen=True, slots=True)
class Load:
    """The heaviest work a deployment must serve: lengths in tokens, concurrency in requests.

    training: what a step trains on; None: the deployment generates.
    """

    input_len: int
    output_len: int
    max_concurrency: int
    training: TrainingLoad | None = None

    @property
    def max_len(self) -> int:
        """Tokens of the longest request, prompt and output together."""
        return self.input_len + self.output_len


@dataclass(frozen=True, slots=True)
class Device:
    """One place for a rank: a GPU, or a CPU worker.

    node: the name of its machine. index: its number there. memory_bytes: 0 where it is unknown.
    name: the model of the GPU, or "cpu". capability: CUDA's, as (9, 0); None where it is unknown.
    linked: NVLink joins it to all other GPUs of its node.
    """

    node: str
    index: int
    memory_bytes: int = 0
    name: str = "cpu"
    capability: tuple[int, int] | None = None
    linked: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """The devices of a cluster, ordered by node and then by index."""

    devices: tuple[Device, ...]

    @classmethod
    def uniform(cls, count: int, memory_bytes: int = 0, name: str = "cpu") -> Topology:
        """`count` devices of one kind on one node."""
        return cls(tuple(Device("local", i, memory_bytes, name) for i in range(count)))

    @property
    def linked(self) -> bool:
        """Whether NVLink joins all of them: they are GPUs of one node."""
        nodes = {device.node for device in self.devices}
        return len(nodes) == 1 and all(device.linked for device in self.devices)

    @property
    def capability(self) -> tuple[int, int] | None:
        """The least of all devices; None where that of one is unknown, or of another generation."""
        found = {device.capability for device in self.devices}
        known = [one for one in found if one is not None]
        alike = len(known) == len(found) and len({major for major, _ in known}) == 1
        return min(known) if alike else None

    @property
    def memory_bytes(self) -> int:
        """Memory of the smallest device, in bytes; 0 where it is unknown."""
        return min((device.memory_bytes for device in self.devices), default=0)
