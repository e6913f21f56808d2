"""Count how the code is built and fail where it grows past its limits: `python
scripts/structure.py`.

Reads the three packages as text. An edge is a distinct pair of rooms of which one imports the
other, lazy imports and those for type checkers included. A room is a folder (its modules together),
or a module that lies directly in `orchestrator/`. What is in `strategies/`, or directly in
`workers/`, is one room each, as both are used whole; but `workers/actor.py`, which starts the
engines, is a room of its own.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("orchestrator", "workers", "strategies")
# Imports go from a later one to an earlier one, or stay inside. A module on top of `orchestrator/`
# is below the wings or, as the command line is, above them.
FLOORS = (
    ("strategies",),
    ("workers",),
    ("workers.probes",),
    ("workers.engines",),
    ("workers.engines.native.kernels",),
    ("workers.engines.native",),
    ("workers.engines.vllm",),
    ("workers.engines.training",),
    ("workers.actor",),
    ("orchestrator.errors",),
    ("orchestrator.experiment",),
    ("orchestrator.config",),
    ("orchestrator.store",),
    ("orchestrator.cluster",),
    ("orchestrator.analysis.observed",),
    ("orchestrator.analysis",),
    ("orchestrator.analysis.comparing",),
    ("orchestrator.analysis.training",),
    ("orchestrator.plan.datasets",),
    ("orchestrator.plan", "orchestrator.node", "orchestrator.audit"),
    ("orchestrator.predict",),
    ("orchestrator.run",),
    ("orchestrator.report.charts",),
    ("orchestrator.report.predicted",),
    ("orchestrator.report",),
    ("orchestrator.report.training",),
    ("orchestrator.options",),
    ("orchestrator.commands",),
    ("orchestrator.cli",),
    ("orchestrator.__main__",),
)
LIMITS = {
    "function lines, median": 7,
    "function lines, 90th percentile": 18,
    "function lines, longest": 40,
    "file lines, longest": 320,
    "modules of a folder": 20,
    "lines with dict[str, Any]": 30,
    "edges between rooms": 140,
    "import circles": 0,
    "upward imports": 0,
    "ternaries as statements or nested": 0,
}
LEAST_DOCUMENTED = 0.9  # of public modules, classes and functions


@dataclass(frozen=True, slots=True)
class Module:
    """One file: its dotted name, its text and what it parses to."""

    name: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """What it is counted as part of; see the top of this file."""
        top, *rest = self.name.split(".")
        if self.name == "workers.actor":
            return self.name
        if top == "strategies" or (top == "workers" and len(rest) < 2):
            return top if self.name != "workers.engines" else self.name
        is_package = (ROOT / self.name.replace(".", "/")).is_dir()
        if is_package or (top == "orchestrator" and len(rest) == 1):
            return self.name
        return self.name.rpartition(".")[0]


def modules() -> dict[str, Module]:
    """Every module of the three packages by name."""
    found = {}
    for path in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = Module(name, text, ast.parse(text))
    return found


def imports(module: Module, known: dict[str, Module]) -> Iterator[str]:
    """Names of the modules in `known` that `module` imports, wherever in it."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in names)


def edges(known: dict[str, Module]) -> dict[str, set[str]]:
    """Module -> the modules of these packages that it imports, itself left out."""
    return {
        name: {other for other in imports(module, known) if other in known and other != name}
        for name, module in known.items()
    }


def room_edges(known: dict[str, Module]) -> set[tuple[str, str]]:
    """(room, room that it imports), each pair once."""
    pairs = ((known[a].room, known[b].room) for a, found in edges(known).items() for b in found)
    return {pair for pair in pairs if pair[0] != pair[1]}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other in a ring, a list for each ring that was met."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def upward(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of rooms of which the lower one imports the higher one, or one beside it."""
    floors = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    return sorted(
        (a, b) for a, b in pairs if a in floors and b in floors and floors[a] <= floors[b]
    )


def unknown_rooms(known: dict[str, Module]) -> list[str]:
    """Rooms that have no floor; a package that holds nothing but its docstring needs none."""
    floors = {room for rooms in FLOORS for room in rooms}
    return sorted({module.room for module in known.values()} - floors - {"orchestrator"})


def functions(known: dict[str, Module]) -> dict[str, int]:
    """module:function -> its lines, decorators left out."""
    return {
        f"{name}:{node.name}:{node.lineno}": (node.end_lineno or node.lineno) - node.lineno + 1
        for name, module in known.items()
        for node in ast.walk(module.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def ternaries(tree: ast.AST) -> list[int]:
    """Lines of the ternaries that are a statement, or that have another one anywhere inside."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Expr) and isinstance(node.value, ast.IfExp))
        or (isinstance(node, ast.IfExp) and _holds_ternary(node))
    ]


def _holds_ternary(node: ast.IfExp) -> bool:
    return any(isinstance(inner, ast.IfExp) for inner in ast.walk(node) if inner is not node)


def public(tree: ast.Module) -> Iterator[ast.AST]:
    """The module, its public classes and functions, and the public methods of those classes."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    yield tree
    for node in (node for node in tree.body if isinstance(node, kinds)):
        if node.name.startswith("_"):
            continue
        yield node
        members = node.body if isinstance(node, ast.ClassDef) else []
        yield from (m for m in members if isinstance(m, kinds) and not m.name.startswith("_"))


def documented(known: dict[str, Module]) -> float:
    """Share of what is public that has a docstring."""
    nodes = [node for module in known.values() for node in public(module.tree)]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return sum(bool(ast.get_docstring(node)) for node in nodes if isinstance(node, kinds)) / len(
        nodes
    )


def folder_sizes(known: dict[str, Module]) -> dict[str, int]:
    """Folder -> its modules, `__init__` left out."""
    sizes: dict[str, int] = {}
    for name in known:
        folder = name.rpartition(".")[0]
        if folder and not (ROOT / name.replace(".", "/")).is_dir():
            sizes[folder] = sizes.get(folder, 0) + 1
    return sizes


def figures(known: dict[str, Module]) -> dict[str, float]:
    """Everything in LIMITS, as it is now."""
    lengths = sorted(functions(known).values())
    pairs = room_edges(known)
    return {
        "function lines, median": statistics.median(lengths),
        "function lines, 90th percentile": lengths[int(0.9 * (len(lengths) - 1))],
        "function lines, longest": lengths[-1],
        "file lines, longest": max(module.text.count("\n") for module in known.values()),
        "modules of a folder": max(folder_sizes(known).values()),
        "lines with dict[str, Any]": sum(
            "dict[str, Any]" in line
            for module in known.values()
            for line in module.text.splitlines()
        ),
        "edges between rooms": len(pairs),
        "import circles": len(circles(edges(known))),
        "upward imports": len(upward(pairs)),
        "ternaries as statements or nested": sum(
            len(ternaries(module.tree)) for module in known.values()
        ),
    }


def worst(known: dict[str, Module]) -> Iterator[str]:
    """What to look at first, a line each."""
    lengths = sorted(functions(known).items(), key=lambda item: -item[1])
    yield from (f"{lines} lines: {name}" for name, lines in lengths[:5])
    files = sorted(known.values(), key=lambda module: -module.text.count("\n"))
    yield from (f"{module.text.count(chr(10))} lines: {module.name}" for module in files[:5])
    yield from (f"circle: {' -> '.join(ring)}" for ring in circles(edges(known)))
    yield from (f"upward: {a} -> {b}" for a, b in upward(room_edges(known)))
    yield from (
        f"ternary: {name}:{line}"
        for name, module in known.items()
        for line in ternaries(module.tree)
    )
    yield from (f"no floor: {room}" for room in unknown_rooms(known))


def main() -> int:
    """Print every figure beside its limit; 1 where one is past it."""
    known = modules()
    found, share = figures(known), documented(known)
    for name, limit in LIMITS.items():
        mark = "" if found[name] <= limit else "  <- too many"
        print(f"{name:34} {found[name]:6g} of {limit}{mark}")
    print(f"{'public names with a docstring':34} {share:6.0%} of {LEAST_DOCUMENTED:.0%} at least")
    good = all(found[name] <= limit for name, limit in LIMITS.items())
    good = good and share >= LEAST_DOCUMENTED and not unknown_rooms(known)
    for line in worst(known) if not good or "--verbose" in sys.argv else ():
        print(line)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
