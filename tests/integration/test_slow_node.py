"""A node that is slower than the others, in a run of real ranks: they wait, and it is named."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nodes
import psutil
import pytest
from process_lists import below

BIN = Path(sys.executable).parent
TIMEOUT_S = 200
STOPPED_S, RUNS_S = 0.05, 0.02
# Steps of some milliseconds of arithmetic, so that the ranks do more than talk.
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 1024,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


@pytest.mark.ray
@pytest.mark.nodes
@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("strategy", ["tp2", "pp2"])
def test_a_rank_on_a_slow_node_is_named_with_its_node_while_it_runs_and_afterwards(
    strategy: str, tmp_path: Path
) -> None:
    """Its process is stopped most of the time, from the end of the first run on."""
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    words = f"submit --strategy {strategy} --load-format dummy --device cpu --num-runs 2"
    load = "--input-len 16 --output-len 16 --max-concurrency 4"
    with nodes.in_one_machine([1, 1]) as (address, there, _):
        slow = "127.0.0.2"
        where = ("--address", address, "--model", tmp_path, "--result-dir", tmp_path / "results")
        asked = [BIN / "orchestrator", *words.split(), *load.split(), *where]
        with subprocess.Popen(
            list(map(str, asked)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running:
            assert running.stdout is not None
            said = []
            for line in running.stdout:
                said.append(line)
                if "run 1: " in line:
                    break
            with throttled(ranks_on(there[slow])):
                said += running.stdout
        assert running.returncode == 0, "".join(said)
    named = rf"the others wait for rank \d on node {re.escape(slow)}: they spend "
    assert re.search(rf"\.s0: {named}", "".join(said)), "".join(said)
    folder = next(one for one in (tmp_path / "results").iterdir() if one.is_dir())
    shown = subprocess.run(
        [BIN / "orchestrator", "compare", folder], capture_output=True, text=True, check=True
    )
    assert re.search(f"In {strategy} {named}", " ".join(shown.stdout.split())), shown.stdout
    assert f"Sent between nodes for each token asked for: {strategy} " in shown.stdout


def ranks_on(node: object) -> list[psutil.Process]:
    """The processes of the ranks of a node of `ray.cluster_utils.Cluster`."""
    raylet = node.all_processes["raylet"][0].process.pid  # type: ignore[attr-defined]
    found = [process for process, _, words in below(raylet) if words[:1] == ["ray::Worker"]]
    assert found, "no rank runs there"
    return found


@contextlib.contextmanager
def throttled(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Let them run a part of the time."""
    over = threading.Event()

    def stop_and_go() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while not over.is_set():
                for number, wait_s in ((signal.SIGSTOP, STOPPED_S), (signal.SIGCONT, RUNS_S)):
                    for process in processes:
                        process.send_signal(number)
                    time.sleep(wait_s)

    thread = threading.Thread(target=stop_and_go, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
