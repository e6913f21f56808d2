"""What is said of packages with known vulnerabilities, and where nobody can be asked."""

from __future__ import annotations

import json

import audit_packages


def document(*packages: dict[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_a_known_vulnerability_fails() -> None:
    hole = {"id": "CVE-1", "fix_versions": ["1.1"], "aliases": []}
    text, status = audit_packages.judged(
        document(
            {"name": "a", "version": "1.0", "vulns": [hole]},
            {"name": "b", "version": "2.0", "vulns": []},
            {"name": "c", "skip_reason": "not found"},
        ),
        "",
    )
    assert text.splitlines() == [
        "a 1.0: CVE-1, mended in 1.1",
        "2 of 3 packages audited, 1 vulnerabilities.",
    ]
    assert status == 1


def test_nothing_known_is_said_and_does_not_fail() -> None:
    skipped = document({"name": "c", "skip_reason": "not found"})
    assert audit_packages.judged(skipped, "") == ("0 of 1 packages audited, 0 vulnerabilities.", 0)
    assert audit_packages.judged("", "Traceback\nConnectionError: no route") == (
        "Not audited, as no service answers: ConnectionError: no route",
        0,
    )
