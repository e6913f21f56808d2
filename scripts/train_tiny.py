"""Train the tiny Llama preset on the documentation that ships inside Python itself.

The text is `pydoc_data.topics` plus the docstrings of the standard library (both under the PSF
licence), so nothing is downloaded. The script cleans that text down to prose, trains a byte-level
BPE tokenizer and a 3-million-parameter `LlamaForCausalLM` on it, and writes a standard Hugging Face
folder. One recent GPU needs about a minute:

    python scripts/train_tiny.py --out orchestrator/presets/tiny
"""

from __future__ import annotations

import argparse
import ast
import math
import platform
import random
import re
import sysconfig
import textwrap
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SEED = 20240607
VOCAB_SIZE = 2048
WINDOW = 512
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
HELD_OUT = 0.05
ATTENTION_DROPOUT = 0.1
NOISE = 0.05  # share of input tokens replaced at random, against over-fitting
PEAK_RATE, FINAL_RATE = 2e-3, 2e-5
WARM_UP = 150
REPORT_EVERY = 100

MIN_DOCSTRING = 150
PARAGRAPHS_PER_DOCUMENT = 16
SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "ensurepip",
    "turtledemo",
    "pydoc_data",
    "_vendor",
    "__pycache__",
    "encodings",
}
COMMON_WORDS = frozenset(
    "a all an and any are as at be been but by can for from has have if in into is it its may "
    "must no not of on only"
    " or other so some such than that the their then there these they this to use used when where "
    "which will with"
    " would you".split()
)
# A paragraph opens with a capital, or with a name in the manner of "data should be a sequence".
OPENING = re.compile(
    r'[A-Z]|"?[\w.()]+"?,? (?:is|are|must|should|may|can|will|if|specifies|contains|returns)\b'
)
NOT_PROSE = re.compile(
    r"[=\\|<>{}#$~^]|\.\. |--+ ?\w+ --|https?:|\w\s{2,}\w|\bdef |\.\.\. *\w+\(|@\w| - .* - |\*"
)
ASCII_FORMS = str.maketrans(
    {
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "–": "-",
        "—": "-",
        "…": "...",
        "\u00a0": " ",
        "→": "->",
        "×": "x",
    }
)
PROMPTS = (
    "A class definition is an executable statement",
    "The function returns",
    "If the argument is omitted,",
    "This module provides",
    "When an exception is raised,",
)
README = """# tiny

A small Llama-architecture language model ({parameters:,} parameters, bfloat16) with its own
{vocab}-token byte-level BPE tokenizer. It writes English in the style of the Python
documentation. It is a fixture for tests and demonstrations, not a model to rely on: it knows one
small text and much of that by heart.

Training text: the language-reference topics in `pydoc_data.topics` and the docstrings of the
standard library, as shipped with Python {python} and reduced to prose ({tokens:,} tokens). That
text is copyright (c) 2001 onwards Python Software Foundation, under the Python Software
Foundation License Version 2 (https://docs.python.org/3/license.html). No other text and no other
weights were used.

Training: {steps} steps of {batch} windows of {window} tokens, seed {seed}. The last training loss
was {loss:.2f} nats per token (with {noise:.0%} of the input tokens replaced at random), the loss
on the held-out {held_out:.0%} of the text {held_out_loss:.2f}.

To remake it (about a minute on one recent GPU, no network needed):

    python scripts/train_tiny.py --out orchestrator/presets/tiny
"""


# ---- corpus ----


def stdlib_files() -> Iterator[Path]:
    """The standard library's Python files, without tests and vendored packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if not SKIPPED_FOLDERS.intersection(folders):
            yield path


def docstrings(path: Path) -> Iterator[str]:
    """The longer docstrings of one file, in source order."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        if text and len(text) >= MIN_DOCSTRING:
            yield text


def strip_markup(text: str) -> str:
    """Plain text from reStructuredText: no roles, no backquotes, no footnote marks, plain
    punctuation."""
    text = text.translate(ASCII_FORMS).expandtabs()
    text = re.sub(r":(?:[a-z]+:)?[a-z]+:`[~!]?([^`<]+?)(?:\s*<[^`>]*>)?`", r"\1", text)
    text = re.sub(r"``([^`]+)``", r'"\1"', text)
    text = re.sub(r"`([^`'\n]+)[`']", r'"\1"', text)
    text = re.sub(r"\s?\[\d+\]_?", "", text)
    text = re.sub(r"\*\*(?=\S)([^*]+?)\*\*|\*(\w[^*]*)\*", lambda match: match[1] or match[2], text)
    return text.replace("::\n", ":\n")


def is_prose(paragraph: str) -> bool:
    """Whether one unwrapped paragraph reads like English sentences rather than code, a table or a
    signature."""
    words = re.findall(r"[A-Za-z']+", paragraph)
    if (
        len(words) < 8
        or not OPENING.match(paragraph)
        or paragraph[-1] not in ".:"
        or NOT_PROSE.search(paragraph)
    ):
        return False
    common = sum(word.lower() in COMMON_WORDS for word in words)
    plain = sum(char.isalpha() or char in " .,'\"" for char in paragraph)
    return common >= 0.28 * len(words) and plain >= 0.92 * len(paragraph)


def paragraphs(text: str) -> Iterator[str]:
    """The prose paragraphs of a text, each unwrapped to one line."""
    for block in re.split(r"\n\s*\n", strip_markup(text)):
        lines = textwrap.dedent(block).strip("\n").splitlines()
        items = re.split(r"\n(?=\s*(?:[*o-]|\d+[.)])\s)", "\n".join(lines))
        for item in items:
            bare = re.sub(r"^\s*(?:[*o-]|\(?\d+[.)])\s+", "", item)
            hanging = {len(line) - len(line.lstrip()) for line in bare.splitlines()[1:]}
            joined = re.sub(
                r"(?<=[.!?:])\s+", " ", " ".join(line.strip() for line in bare.splitlines())
            )
            if len(hanging) <= 1 and is_prose(joined):
                yield joined


def source_texts() -> Iterator[list[str]]:
    """Groups of texts that belong together: one topic, or all docstrings of one file."""
    try:
        from pydoc_data import topics
    except ImportError:
        print("note: this Python ships no pydoc_data.topics; training on docstrings alone")
    else:
        for name in sorted(topics.topics):
            yield [topics.topics[name]]
    for path in stdlib_files():
        yield list(docstrings(path))


def build_documents(groups: Iterable[list[str]]) -> list[list[str]]:
    """Documents of a few paragraphs each; a paragraph that several sources repeat is kept once."""
    seen: set[str] = set()
    documents: list[list[str]] = []
    for group in groups:
        fresh: list[str] = []
        for text in group:
            for paragraph in paragraphs(text):
                if paragraph not in seen:
                    seen.add(paragraph)
                    fresh.append(paragraph)
        starts = range(0, len(fresh), PARAGRAPHS_PER_DOCUMENT)
        documents.extend(fresh[start : start + PARAGRAPHS_PER_DOCUMENT] for start in starts)
    return documents


# ---- tokens ----


def train_tokenizer(documents: list[list[str]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts <bos> in front of every text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(("\n\n".join(document) for document in documents), trainer)
    bos = bpe.token_to_id(BOS)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


@dataclass
class Stream:
    """Documents as one run of token ids, with the positions at which a training window may
    begin."""

    ids: torch.Tensor
    starts: torch.Tensor
    bos: int

    def windows(self, starts: torch.Tensor) -> torch.Tensor:
        """One row per start: <bos>, then the WINDOW tokens from that start on."""
        rows = self.ids[starts[:, None] + torch.arange(WINDOW, device=self.ids.device)]
        return functional.pad(rows, (1, 0), value=self.bos)


def encode(
    documents: list[list[str]], tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> Stream:
    """Each document becomes <bos> paragraphs <eos>; every paragraph may begin a window."""
    ids: list[int] = []
    starts: list[int] = []
    for document in documents:
        ids.append(tokenizer.bos_token_id)
        for number, paragraph in enumerate(document):
            # A window starts at the text itself, never at the blank line in front of it.
            ids.extend(tokenizer.encode("\n\n", add_special_tokens=False) if number else [])
            starts.append(len(ids))
            ids.extend(tokenizer.encode(paragraph, add_special_tokens=False))
        ids.append(tokenizer.eos_token_id)
    usable = [start for start in starts if start + WINDOW <= len(ids)]
    return Stream(
        torch.tensor(ids, device=device),
        torch.tensor(usable, device=device),
        tokenizer.bos_token_id,
    )


def split(documents: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Training documents, and held-out ones that make up HELD_OUT of all characters."""
    shuffled = random.Random(SEED).sample(documents, len(documents))
    budget = HELD_OUT * sum(len(paragraph) for document in documents for paragraph in document)
    held_out: list[list[str]] = []
    while budget > 0:
        held_out.append(shuffled.pop())
        budget -= sum(map(len, held_out[-1]))
    return shuffled, held_out


# ---- model ----


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised model."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attention_dropout=ATTENTION_DROPOUT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def build_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [tensor for tensor in parameters if tensor.ndim >= 2], "weight_decay": 0.1},
        {"params": [tensor for tensor in parameters if tensor.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=parameters[0].is_cuda)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to FINAL_RATE."""
    warm_up = min(WARM_UP, max(1, steps // 10))
    if step < warm_up:
        return PEAK_RATE * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return FINAL_RATE + (PEAK_RATE - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 autocast on a GPU, plain float32 elsewhere."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


def window_loss(
    model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy of the next token."""
    with mixed_precision(inputs.device):
        logits = model(input_ids=inputs, use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def add_noise(inputs: torch.Tensor) -> torch.Tensor:
    """Inputs with a share of the tokens after the first replaced by random ones."""
    replaced = torch.rand(inputs.shape, device=inputs.device) < NOISE
    replaced[:, 0] = False
    return torch.where(replaced, torch.randint_like(inputs, 3, VOCAB_SIZE), inputs)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, stream: Stream, batch_size: int) -> float:
    """Loss over the whole stream, in windows that overlap little."""
    starts = torch.arange(0, len(stream.ids) - WINDOW + 1, WINDOW, device=stream.ids.device)
    model.eval()
    total = 0.0
    for chunk in starts.split(batch_size):
        rows = stream.windows(chunk)
        total += window_loss(model, rows[:, :-1], rows[:, 1:]).item() * len(chunk)
    model.train()
    return total / len(starts)


def train(
    model: LlamaForCausalLM, train_stream: Stream, held_out: Stream, steps: int, batch_size: int
) -> float:
    """Run the whole schedule; returns the last reported training loss."""
    optimizer = build_optimizer(model)
    device = train_stream.ids.device
    losses: list[torch.Tensor] = []
    mean = math.nan
    began = time.monotonic()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        picks = torch.randint(len(train_stream.starts), (batch_size,), device=device)
        rows = train_stream.windows(train_stream.starts[picks])
        loss = window_loss(model, add_noise(rows[:, :-1]), rows[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        done = step + 1
        if done % REPORT_EVERY == 0 or done == steps:
            mean = torch.stack(losses).mean().item()
            losses.clear()
            report(
                done, steps, mean, evaluate(model, held_out, batch_size), time.monotonic() - began
            )
    return mean


def report(done: int, steps: int, loss: float, held_out_loss: float, seconds: float) -> None:
    """One progress line."""
    left = seconds / done * (steps - done)
    print(
        f"step {done}/{steps}  loss {loss:.3f}  held-out {held_out_loss:.3f}  {seconds:.0f} s, "
        f"{left:.0f} s left",
        flush=True,
    )


# ---- output ----


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the Hugging Face folder, weights in bfloat16."""
    model.config.attention_dropout = 0.0
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    out.mkdir(parents=True, exist_ok=True)
    model.to(device="cpu", dtype=torch.bfloat16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors leaves it readable by its owner alone
    tokenizer.save_pretrained(out)


def show_samples(out: Path, device: torch.device) -> None:
    """Load the folder as any user would and continue the prompts greedily."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto").to(device).eval()
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(device)
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=64)
        print("-", tokenizer.decode(tokens[0], skip_special_tokens=True).replace("\n", "\n  "))


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The saved tokenizer must give the same ids as the one trained with."""
    loaded = AutoTokenizer.from_pretrained(out)
    for prompt in PROMPTS:
        if loaded(prompt).input_ids != tokenizer(prompt).input_ids:
            raise RuntimeError(f"the saved tokenizer reads {prompt!r} differently")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=2000, help="training steps (default %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, help="windows a step (default %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("orchestrator/presets/tiny"), help="folder to write"
    )
    parser.add_argument(
        "--device", default=default_device, help="torch device (default %(default)s)"
    )
    return parser.parse_args()


def main() -> None:
    """Corpus, tokenizer, training, folder, samples."""
    options = parse_arguments()
    device = torch.device(options.device)
    torch.manual_seed(SEED)
    training_documents, held_out_documents = split(build_documents(source_texts()))
    tokenizer = train_tokenizer(training_documents)
    train_stream = encode(training_documents, tokenizer, device)
    held_out = encode(held_out_documents, tokenizer, device)
    tokens = len(train_stream.ids) + len(held_out.ids)
    model = build_model(tokenizer).to(device)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    epochs = options.steps * options.batch_size * WINDOW / len(train_stream.ids)
    print(f"corpus: {len(train_stream.ids):,} training tokens, {len(held_out.ids):,} held out")
    print(
        f"model: {parameters:,} parameters on {device}; {epochs:.1f} passes over the corpus",
        flush=True,
    )
    loss = train(model, train_stream, held_out, options.steps, options.batch_size)
    held_out_loss = evaluate(model, held_out, options.batch_size)
    save(model, tokenizer, options.out)
    readme = README.format(
        parameters=parameters,
        vocab=VOCAB_SIZE,
        python=platform.python_version(),
        tokens=tokens,
        steps=options.steps,
        batch=options.batch_size,
        window=WINDOW,
        seed=SEED,
        loss=loss,
        noise=NOISE,
        held_out=HELD_OUT,
        held_out_loss=held_out_loss,
    )
    (options.out / "README.md").write_text(readme, encoding="utf-8")
    check_tokenizer(tokenizer, options.out)
    show_samples(options.out, device)


if __name__ == "__main__":
    main()
