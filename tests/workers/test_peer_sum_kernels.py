"""The kernels of `OneShot` and `TwoShot` without a GPU: that they are compiled for one, and what
they compute. Needs Triton, which comes with a torch that is built for CUDA."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
POINTERS = {"places_ptr": "*i64", "calls_ptr": "*i32", "rank": "i32"}


def compiled(kernel: Any, signature: dict[str, str], sizes: dict[str, int], warps: int) -> str:
    """The PTX for compute capability 9.0; ptxas has made code of it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        kernel,
        signature=signature | dict.fromkeys(sizes, "constexpr"),
        constexprs={(names.index(name),): size for name, size in sizes.items()},
    )
    made = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": warps})
    assert len(made.asm["cubin"]) > 0
    return str(made.asm["ptx"])


@pytest.mark.parametrize(
    ("dtype", "ranks", "padded", "width"),
    [("bf16", 2, 2, 5120), ("bf16", 4, 4, 8192), ("fp16", 3, 4, 200), ("fp32", 8, 8, 8192)],
)
@pytest.mark.parametrize("kind", ["one", "two"])
def test_they_are_compiled_ahead_of_time(
    kind: str, dtype: str, ranks: int, padded: int, width: int
) -> None:
    """A word with its number is one access of 64 bits, which every GPU of the system sees whole."""
    from workers.engines.native.kernels import symmetric

    many = {"ranks": ranks, "padded": padded}
    signature = {"x_ptr": f"*{dtype}", **POINTERS, "count": "i32"}
    alone = compiled(
        getattr(symmetric, f"_{kind}_shot_all_reduce"), signature, {"block": 1024, **many}, 4
    )
    normed = []
    if kind == "one":
        normed = [compiled_norm(dtype, width, many, columns) for columns in (0, width, 128)]
    for ptx in (alone, *normed):
        stores = set(re.findall(r"st\.global\.wt\.\S+", ptx))
        loads = set(re.findall(r"ld\.volatile\.global\.\S+", ptx))
        assert len(stores) >= 1 <= len(loads)
        assert stores <= {"st.global.wt.v2.b64", "st.global.wt.b64"}
        assert loads <= {"ld.volatile.global.v2.b64", "ld.volatile.global.b64"}
    if kind == "one" and dtype != "fp32":
        assert "st.global.wt" not in compiled_norm(dtype, width, many, 0, sent=True)


def compiled_norm(
    dtype: str, width: int, ranks: dict[str, int], columns: int, sent: bool = False
) -> str:
    """The PTX of a sum with its norm, of which so many columns have one scale; 0: as it is. sent:
    of what a product has handed over."""
    from workers.engines.native.kernels import symmetric

    block = triton.next_power_of_2(width)
    made = "fp8e4nv" if columns else dtype
    signature = {
        **dict.fromkeys(("x_ptr", "res_ptr", "w_ptr"), f"*{dtype}"),
        "out_ptr": f"*{made}",
        **dict.fromkeys(("scales_ptr", "static_ptr"), "*fp32" if columns else f"*{dtype}"),
        **POINTERS,
        "eps": "fp32",
    }
    share = block if columns == width else min(columns, block)
    sizes = {"width": width, "block": block, "columns": share, "static": False, "sent": sent}
    return compiled(symmetric._one_shot_all_reduce_norm, signature, sizes | ranks, 16)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "dtype"), [(2, "float16"), (3, "float32"), (4, "float16")])
@pytest.mark.parametrize("kind", ["OneShot", "TwoShot", "Flagged"])
def test_they_sum_right_whoever_is_late(kind: str, ranks: int, dtype: str) -> None:
    script = ROOT / "tests" / "support" / "interpreted_ranks.py"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), kind, str(ranks), dtype],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
