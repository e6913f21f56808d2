"""Ask for known vulnerabilities of the packages in constraints.txt: `make audit`.

pip-audit looks them up at a service. Where none can be reached nothing is known, which is said and
is no failure. Exits with 1 where a package has a known vulnerability.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
PATIENCE_S = 300


def asked(program: str) -> tuple[str, str]:
    """What pip-audit writes: JSON, and its notes."""
    words = ["--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run(
        [program, *words, "--progress-spinner", "off"],
        check=False, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    return done.stdout, done.stderr


def judged(document: str, notes: str) -> tuple[str, int]:
    """What to say, and the exit status."""
    if not document.strip():
        why = notes.strip().splitlines()[-1:] or ["no answer"]
        return f"Not audited, as no service answers: {why[0][:160]}", 0
    packages = json.loads(document)["dependencies"]
    known = [one for one in packages if "skip_reason" not in one]
    found = [
        f"{one['name']} {one['version']}: {vulnerability['id']}, mended in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version'}"
        for one in known
        for vulnerability in one["vulns"]
    ]
    said = f"{len(known)} of {len(packages)} packages audited, {len(found)} vulnerabilities."
    return "\n".join([*found, said]), int(bool(found))


if __name__ == "__main__":
    text, status = judged(*asked(sys.argv[1]))
    print(text)
    sys.exit(status)
