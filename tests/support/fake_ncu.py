"""What `ncu` writes, and a script in its place."""

from __future__ import annotations

from pathlib import Path

from workers.records import COUNTERS

# As `ncu --csv --page raw --print-units base` lays it out: messages, a row of names, one of units,
# and a row for each kernel. Numbers have separators, and what was not counted is n/a.
FIXED = (
    *("ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream"),
    *("Block Size", "Grid Size", "Device", "CC"),
)
UNITS = ("ns", "byte", "%", "byte", "%", "%", "register/thread", "%", "%")
MATMUL = "nvjet_tst_128x8_64x12_4x1_v_bz_TNT"
NORM = "void (anonymous namespace)::norm_kernel<c10::BFloat16, 8>(c10::BFloat16 *, float, int)"
ROWS = (
    (MATMUL, "(384, 1, 1)", "(132, 1, 1)", "40,960", "159,383,552", "81.25", "161,480,704"),
    (NORM, "(256, 1, 1)", "(8, 1, 1)", "2,048", "n/a", "1.50", "131,072"),
    (MATMUL, "(384, 1, 1)", "(132, 1, 1)", "81,920", "320,864,256", "85.75", "322,961,408"),
)
RATES = (
    ("33.10", "1.30", "168", "18.75", "12.50"),
    ("0.80", "91.00", "32", "11.90", "0"),
    ("34.60", "1.60", "168", "18.75", "(!) nan"),
)
STORY = (
    "==PROF== Connected to process 4711 (/usr/bin/python3.12)",
    '==PROF== Profiling "nvjet_tst_128x8_64x12_4x1_v_b..." - 0: 0%....50%....100% - 1 pass',
    '==PROF== Profiling "norm_kernel" - 1: 0%....50%....100% - 3 passes',
    '==PROF== Profiling "nvjet_tst_128x8_64x12_4x1_v_b..." - 2: 0%....50%....100% - 2 passes',
    "==PROF== Disconnected from process 4711",
)
DENIED = """==PROF== Connected to process 4711 (/usr/bin/python3.12)
==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance \
Counters on the target device 0. For instructions on enabling permissions and to get more \
information see https://developer.nvidia.com/ERR_NVGPUCTRPERM
==PROF== Disconnected from process 4711
==WARNING== No kernels were profiled.
"""

# Notes how it was called, runs the program, and then writes its log, as the real one; each of the
# options but --csv has a value.
SCRIPT = """#!/usr/bin/env bash
echo "$@" >> "${0%/*}/calls"
while [[ $1 == --* ]]; do
    case $1 in
        --csv) shift; continue ;;
        --log-file) log=$2 ;;
    esac
    shift 2
done
"$@"
sleep 1
cat "${0%/*}/written" > "$log"
"""


def output() -> str:
    """What ncu writes of three kernels; it puts metrics in the order of their names."""
    units = dict(zip(COUNTERS.values(), UNITS, strict=True))
    lines = [(*FIXED, *sorted(units)), (*[""] * len(FIXED), *map(units.get, sorted(units)))]
    for number, (name, block, grid, *sizes) in enumerate(ROWS):
        values = dict(zip(COUNTERS.values(), (*sizes, *RATES[number]), strict=True))
        of = (str(number), "4711", "python3.12", "127.0.0.1", name, "1", "7", block, grid, "0")
        lines.append((*of, "9.0", *map(values.get, sorted(units))))
    return "\n".join([*STORY, *(",".join(f'"{one}"' for one in line) for line in lines), ""])


def install(folder: Path, written: str) -> Path:
    """Make a folder to be put in front of the PATH, with an `ncu` that writes that; the calls are
    noted in its file "calls"."""
    folder.mkdir()
    (folder / "ncu").write_text(SCRIPT)
    (folder / "ncu").chmod(0o755)
    (folder / "written").write_text(written)
    return folder
