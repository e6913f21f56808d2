"""Input that nobody should give, by kind: what a command is asked, each with a name. Files are
written into the current folder."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from fakes import CONFIG, write_checkpoint

LONG, DIGITS = "x" * 5000, "9" * 5000
ODD_TEXTS = (
    "",
    " ",
    "-",
    "--",
    "..",
    "/",
    LONG,
    DIGITS,
    f"-{DIGITS}",
    "~nouser",
    "~nouser/x",
    "[/b]",
    "[bold]x",
    "\x1b[31mred",
    "a\nb",
    "\u202eabc",
    "=cmd|'/c calc'!A0",
    "\udcff",
    "%s%n{0}",
    "☃" * 300,
)
ODD_NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "0.5",
    "1e-320",
    "0x10",
    "1_0_",
    "١٢",
    DIGITS,
    "true",
)
NUMBERS = (
    "input-len",
    "output-len",
    "max-concurrency",
    "num-starts",
    "num-runs",
    "until-ci",
    "max-starts",
    "difference",
    "num-warmups",
    "min-duration",
    "request-rate",
    "burstiness",
    "num-prompts",
    "range-ratio",
    "trace-speed",
    "seed",
    "temperature",
    "chunked-prefill-size",
    "timeout",
    "rate-runs",
)
TEXTS = (
    "strategy",
    "model",
    "engine",
    "scenario",
    "dtype",
    "load-format",
    "device",
    "dataset-path",
    "dataset-format",
    "dataset-split",
    "trace-window",
    "attention",
    "cuda-graphs",
    "fusion",
    "batching",
    "allreduce",
    "overlap",
)
OF_TRAINING = (
    "seq-len",
    "global-batch-size",
    "micro-batch-size",
    "gradient-accumulation-steps",
    "steps",
    "checkpoint-interval",
)
HOW_TO_TRAIN = (
    "workload",
    "schedule",
    "activation-checkpointing",
    "precision",
    "offload",
    "data",
    "data-column",
    "save-checkpoint",
    "resume-from",
)
REST = ("ablate", "goodput", "slo", "metadata", "dataset-columns", "fabric", "result-dir", "config")
DRY = ("submit", "--dry-run", "--device", "cpu")


@dataclass(frozen=True)
class Case:
    """One command. files: name -> content. may_pass: whether it can be carried out, too."""

    name: str
    command: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def flags() -> Iterator[Case]:
    """Every number of `submit` with every odd one, every text with every odd one."""
    for option in NUMBERS:
        for value in ODD_NUMBERS:
            both = ("--output-len", "4") if option == "input-len" else ()
            yield Case(f"--{option} {_short(value)}", (*DRY, f"--{option}={value}", *both))
    for option in (*TEXTS, *REST):
        for value in ODD_TEXTS:
            yield Case(f"--{option} {_short(value)}", (*DRY, f"--{option}={value}"))


def training() -> Iterator[Case]:
    """The same of what is asked of training."""
    asked = (*DRY, "--workload", "train", "--strategy", "tp1")
    for options, values in ((OF_TRAINING, ODD_NUMBERS), (HOW_TO_TRAIN, ODD_TEXTS)):
        for option in options:
            data = ("--data", "x.jsonl") if option == "data-column" else ()
            for value in values:
                name = f"train --{option} {_short(value)}"
                files = {"x.jsonl": b'{"text": "hello"}\n'} if data else {}
                yield Case(name, (*asked, *data, f"--{option}={value}"), files)


def commands() -> Iterator[Case]:
    """The other commands, with odd folders, names and numbers."""
    for value in ODD_TEXTS:
        for command in (
            "compare",
            "export",
            "pack",
            "trace",
            "recompute",
            "report",
            "runs",
            "import",
        ):
            yield Case(f"{command} {_short(value)}", (command, "--", value))
        yield Case(f"explain {_short(value)}", ("explain", "--", value))
        yield Case(f"explain --model {_short(value)}", ("explain", "tp2", f"--model={value}"))
        yield Case(f"explain --memory {_short(value)}", ("explain", "tp2", f"--memory={value}"))
        yield Case(f"audit {_short(value)}", ("audit", "--", value))
        for option in ("claim", "gpu", "model"):
            whole = {"claim": "1 tok/s", "gpu": "L4", "model": "tiny", option: value}
            flags = [f"--{name}={one}" for name, one in whole.items()]
            yield Case(f"audit --{option} {_short(value)}", ("audit", *flags))
    for value in ODD_NUMBERS:
        for option in ("difference", "fail-below", "gate", "goodput", "slo"):
            yield Case(
                f"compare --{option} {_short(value)}", ("compare", "a", "b", f"--{option}={value}")
            )
        for option in ("batch", "chunked-prefill-size"):
            yield Case(
                f"explain --{option} {_short(value)}", ("explain", "tp2", f"--{option}={value}")
            )
        yield Case(
            f"gate {_short(value)}", ("compare", "a", "b", f"--gate=output_throughput:{value}")
        )
        yield Case(f"calibrate --ranks {_short(value)}", ("calibrate", f"--ranks=-{value}"))


def yaml_files() -> Iterator[Case]:
    """An experiment in a file that is none."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts = {
        "deep": "[" * 3000,
        "deep and closed": "strategy: " + "[" * 3000 + "]" * 3000,
        "deep mapping": "{a: " * 3000,
        "digits": f"seed: {DIGITS}",
        "NUL": 'model: "a\\0b"',
        "raw NUL": "model: a\0b",
        "date": "seed: 2001-13-45",
        "time": "seed: 2001-01-01 25:61:61",
        "binary": "model: !!binary not base64",
        "set": "strategy: !!set {tp1, tp2}",
        "ordered": "strategy: !!omap [a: b]",
        "key": "? [a, b]\n: c",
        "unhashable": "{[a]: b}",
        "merge": "<<: [1, 2]",
        "tab": "\tstrategy: tp1",
        "nothing": "",
        "a list": "[1, 2]",
        "a number": "5",
        "two documents": "a: b\n---\nc: d",
        "an alias to itself": "strategy: &a [*a]",
        "no anchor": "strategy: *nobody",
        "python": "model: !!python/object/apply:os.system [true]",
        "nan": "temperature: .nan",
        "inf": "timeout: .inf",
        "big": "max_concurrency: [" + "1, " * 5_000 + "1]",
        "empty keys": '"": 1',
        "long key": f"{LONG}: 1",
        "markup": "'[/b]': 1",
        "escape": '"\\e[31m": 1',
    }
    fields = (
        "strategy",
        "max_concurrency",
        "goodput",
        "metadata",
        "model",
        "seed",
        "dataset_path",
        "ablate",
    )
    texts |= {f"bomb in {one}": bomb + f"{one}: *i" for one in fields}
    only = {
        f"only a bomb in {one}": f"{one}:\n" + "".join(f"  {line}\n" for line in bomb.splitlines())
        for one in fields
    }
    for name, text in {**texts, **only}.items():
        yield Case(f"YAML: {name}", (*DRY, "--config", "e.yaml"), {"e.yaml": text.encode()})
        yield Case(f"claims: {name}", ("audit", "e.yaml"), {"e.yaml": text.encode()})
    for value in (*ODD_NUMBERS, "[1]", "{a: b}", "'x'", "~"):
        for one in ("bits", "concurrency", "gpus", "prefix_hits", "tpot_ms", "gpu", "strategy"):
            text = f"claims: [{{model: tiny, gpu: L4, {one}: {value}}}]"
            yield Case(
                f"claims: {one} {_short(value)}", ("audit", "e.yaml"), {"e.yaml": text.encode()}
            )
    for name, content in {
        "bytes": b"\xff\xfe\0",
        "UTF-16": "model: tiny".encode("utf-16"),
        "BOM": b"\xef\xbb\xbfmodel: tiny",
    }.items():
        yield Case(f"YAML: {name}", (*DRY, "--config", "e.yaml"), {"e.yaml": content})
    for place in (".", "/dev/null", "/dev/zero", "/proc/self/mem", "none.yaml"):
        yield Case(f"YAML: {place}", (*DRY, "--config", place))


def datasets() -> Iterator[Case]:
    """A dataset that is none."""
    lines = {
        "nothing": "",
        "a number": "5",
        "null": "null",
        "a text": '"x"',
        "an empty list": "[]",
        "deep": "[" * 5000,
        "deep object": '{"a":' * 5000,
        "digits": f'{{"prompt_token_ids": [{DIGITS}]}}',
        "a long length": f'{{"prompt_token_ids": [1], "output_len": {DIGITS}}}',
        "a large length": '{"prompt_token_ids": [1], "output_len": 1e18}',
        "a huge length": '{"prompt_token_ids": [1], "output_len": 1000000000000000000000}',
        "NaN": '{"prompt_token_ids": [NaN]}',
        "negative": '{"prompt_token_ids": [-1]}',
        "no tokens": '{"prompt_token_ids": []}',
        "beyond": '{"prompt_token_ids": [99999999999999999999]}',
        "true": '{"prompt_token_ids": [true]}',
        "half a character": '{"prompt": "\\ud800"}',
        "NUL": '{"prompt": "\\u0000"}',
        "no text": '{"prompt": 5}',
        "both": '{"prompt": "a", "prompt_token_ids": [1]}',
        "turns": '[{"conversations": 5}]',
        "a turn": '[{"conversations": [5]}]',
        "values": '[{"conversations": [{"from": "user", "value": {}}, {"value": []}]}]',
        "no value": '[{"conversations": [{"from": "human"}, {"from": "gpt"}]}]',
        "numbers": "[1, 2]",
        "twice": '{"prompt_token_ids": [1], "prompt_token_ids": [2]}',
    }
    for name, text in lines.items():
        yield Case(
            f"dataset: {name}", (*DRY, "--dataset-path", "d.jsonl"), {"d.jsonl": text.encode()}
        )
    tables = {
        "d.csv": b"prompt,output_len\n,\n",
        "e.csv": b"prompt,prompt\nhi,hi\n",
        "f.csv": b"TIMESTAMP,ContextTokens,GeneratedTokens\n9999-99-99,1,1\n",
        "g.csv": b"Timestamp,Request tokens,Response tokens\n1e400,1,1\n",
        "h.csv": b"\0\0",
        "d.parquet": b"PAR1PAR1",
        "d.arrow": b"ARROW1\0\0",
        "d.jsonl.gz": b"\x1f\x8b",
        "m.jsonl": f'{{"timestamp": 0, "input_length": {DIGITS}, "output_length": 1}}'.encode(),
        "n.jsonl": b'{"timestamp": 0, "input_length": 4, "output_length": 1, "hash_ids": [-1]}',
        "c.jsonl": b'{"messages": [{"role": [], "content": {}}]}',
        "b.jsonl": b'{"body": {"messages": 5}}',
    }
    for name, content in tables.items():
        yield Case(f"dataset: {name}", (*DRY, "--dataset-path", name), {name: content})
    yield Case("dataset: bytes", (*DRY, "--dataset-path", "d.jsonl"), {"d.jsonl": b"\xff\xfe\0\0"})
    for place in (".", "/dev/null", "/dev/zero", "/proc/self/mem", "none"):
        yield Case(f"dataset: {place}", (*DRY, "--dataset-path", place))


def checkpoints(folder: Path) -> Iterator[Case]:
    """A model whose config or weights cannot be. folder: for the files of a good one."""
    good = {file.name: file.read_bytes() for file in write_checkpoint(folder / "m").iterdir()}
    command = (
        *DRY,
        "--model",
        "m",
        "--max-concurrency",
        "1",
        "--input-len",
        "4",
        "--output-len",
        "2",
    )
    odd = (0, -1, 1.5, 10**30, float("nan"), float("inf"), "x", [], {}, True, 10**4000)
    for name in CONFIG:
        for value in odd:
            fields = {**CONFIG, name: value}
            files = {
                "m/model.safetensors": good["model.safetensors"],
                "m/config.json": _json(fields),
            }
            yield Case(
                f"config: {name} {_short(str(value)) if value != 10**4000 else 'huge'}",
                command,
                files,
            )
    for name, value in {
        "rope_theta": 0.0,
        "head_dim": 3,
        "rope_parameters": {"rope_type": []},
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": float("nan"),
            "low_freq_factor": 1,
            "high_freq_factor": 1,
            "original_max_position_embeddings": 0,
        },
    }.items():
        yield Case(
            f"config: {name}",
            command,
            {
                f"m/{k}": v
                for k, v in {**good, "config.json": _json({**CONFIG, name: value})}.items()
            },
        )
    for name, content in {
        "deep": b"[" * 5000,
        "digits": b'{"a": ' + b"9" * 5000 + b"}",
        "empty": b"",
        "a list": b"[]",
        "bytes": b"\xff\0",
    }.items():
        yield Case(f"config.json: {name}", command, {"m/config.json": content})
        yield Case(
            f"generation_config.json: {name}",
            command,
            {**{f"m/{k}": v for k, v in good.items()}, "m/generation_config.json": content},
        )
        yield Case(
            f"tokenizer.json: {name}",
            command,
            {**{f"m/{k}": v for k, v in good.items()}, "m/tokenizer.json": content},
        )
        yield Case(
            f"index: {name}",
            command,
            {"m/config.json": good["config.json"], "m/model.safetensors.index.json": content},
        )
    weights = good["model.safetensors"]
    size = struct.unpack("<Q", weights[:8])[0]
    header = json.loads(weights[8 : 8 + size])
    first = next(iter(header))
    for name, entry in {
        "no offsets": {"dtype": "F32", "shape": [40, 16]},
        "one offset": {**header[first], "data_offsets": [0]},
        "texts": {**header[first], "data_offsets": ["a", "b"]},
        "backwards": {**header[first], "data_offsets": [8, 0]},
        "far": {**header[first], "data_offsets": [0, 10**30]},
        "no shape": {**header[first], "shape": None},
        "a shape of texts": {**header[first], "shape": ["a"]},
        "a negative shape": {**header[first], "shape": [-40, -16]},
        "no dtype": {**header[first], "dtype": None},
        "a list": [],
    }.items():
        text = _json({**header, first: entry})
        yield Case(
            f"safetensors: {name}",
            command,
            {
                **{f"m/{k}": v for k, v in good.items()},
                "m/model.safetensors": struct.pack("<Q", len(text)) + text + weights[8 + size :],
            },
        )
    for name, content in {
        "trailing bytes": weights + b"\0" * 5,
        "cut": weights[:-5],
        "cut in the header": weights[:30],
        "seven bytes": weights[:7],
        "nothing": b"",
        "a pickle": b"\x80\x04\x95",
        "a length without end": b"\xff" * 8,
        "deep": struct.pack("<Q", 5000) + b"[" * 5000,
        "LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    }.items():
        yield Case(
            f"safetensors: {name}",
            command,
            {**{f"m/{k}": v for k, v in good.items()}, "m/model.safetensors": content},
        )


def plugins() -> Iterator[Case]:
    """A layout and an engine, brought by a package that misbehaves."""
    refuses = (
        "def odd(*_): {0}\nclass Odd:\n    processes = 'per_rank'\n"
        "    def supports(self, plan): {0}\n"
    )
    sources = {
        "raises": "raise RuntimeError('no licence')",
        "exits": "raise SystemExit(0)",
        "quits": "import sys; sys.exit()",
        "hangs": "import time; time.sleep(60)",
        "interrupts nothing": "raise GeneratorExit",
        "is no Python": "def (",
        "is bytes": "\0",
        "has nothing": "",
        "has numbers": "odd = Odd = 5",
        "has odd docstrings": "def odd(): 0\nodd.__doc__ = 5\nclass Odd: __doc__ = 5",
        "prints": "print('hello')\n" + refuses.format("print('hello'); return None"),
        "prints below": "import os; os.write(1, b'hello')\n" + refuses.format("return None"),
        "raises when asked": refuses.format("raise KeyError('x')"),
        "exits when asked": refuses.format("raise SystemExit(0)"),
        "answers a number": refuses.format("return 5"),
        "answers markup": refuses.format("return '[/b]\\x1b[31m'"),
    }
    for number, (name, source) in enumerate(sources.items()):
        # A module of its own: one whose import hangs is locked for the rest of the process.
        module = f"odd_plugin_{number}"
        points = (
            f"[orchestrator.strategies]\nodd = {module}:odd\n"
            f"[orchestrator.engines]\nodd = {module}:Odd\n"
        )
        files = {
            f"{module}.py": source.encode(),
            "odd-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: odd\nVersion: 1\n",
            "odd-1.dist-info/entry_points.txt": points.encode(),
        }
        for command in (
            ("strategies", "--json"),
            ("explain", "odd2", "--json"),
            ("explain", "tp2", "--json"),
            (*DRY, "--json", "--engine", "odd"),
        ):
            yield Case(f"plug-in {name}: {' '.join(command[:2])}", command, files)


def manifests() -> Iterator[Case]:
    """Results and calibrations that are none."""
    texts = {
        "deep": b"[" * 5000,
        "digits": b'{"schema_version": ' + b"9" * 5000 + b"}",
        "a list": b"[]",
        "empty": b"",
        "bytes": b"\xff\0",
        "null": b'{"schema_version": null}',
    }
    for field_name in ("cells", "started_at", "name", "meshes", "schema_version"):
        texts[field_name] = _json({field_name: 5})
        texts[f"{field_name} of texts"] = _json({field_name: ["x", None]})
    for name, content in texts.items():
        for command in ("compare", "report", "runs"):
            yield Case(
                f"manifest: {name}: {command}",
                (command, "r"),
                {"r/manifest.json": content, "r/summary/a.arrow": b"ARROW1\0\0"},
            )
    fabric = {
        "bytes": b"\0",
        "empty": b"",
        "columns": _arrow({"busbw": ["x"]}),
        "others": _arrow({"a": [1]}),
        "none": _arrow({}),
        "types": _arrow({"busbw": [1.0], "op": [5], "kind": [None]}),
    }
    for name, content in fabric.items():
        yield Case(f"fabric: {name}", (*DRY, "--fabric", "f.arrow"), {"f.arrow": content})
    for device in ("/dev/zero", "/dev/null"):
        yield Case(f"fabric: {device}", (*DRY, "--fabric", device))


def _arrow(columns: dict[str, list[object]]) -> bytes:
    from workers.rows import SCHEMA_VERSION

    table = pa.table(columns).replace_schema_metadata({"schema_version": str(SCHEMA_VERSION)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _json(value: object) -> bytes:
    import sys

    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value).encode()
    finally:
        sys.set_int_max_str_digits(before)


def _short(text: str) -> str:
    return ascii(text if len(text) < 30 else f"{text[:5]}x{len(text)}")
