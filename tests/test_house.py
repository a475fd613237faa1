"""The house: a dozen rooms, imports that run one way, a purpose in every first line."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "rpo_cli"
# From the top floor to the ground. Below the last stand single files that import nothing of the package.
FLOORS = ("cli", "figures", "runs", "stages", "models", "artifacts", "devices", "recipes", "objectives")
GROUND = ("errors", "statistics", "text")


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str) -> set[str]:
    """The files that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rpo_cli":
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.add(inside if inside in FILES else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in FILES}
    return found - {name}


IMPORTS = {name: imports_of(name) for name in FILES}


def room(name: str) -> str:
    """The entry of the package's top level in which a file stands; its own face has none."""
    return name.split(".")[1] if "." in name else ""


def test_the_top_level_is_at_most_twelve_rooms() -> None:
    entries = {
        entry.stem
        for entry in PACKAGE.iterdir()
        if entry.suffix == ".py" or (entry / "__init__.py").is_file()
    }
    assert entries - {"__init__"} == {*FLOORS, *GROUND} and len(entries) <= 13


def test_no_import_runs_upwards_between_rooms() -> None:
    upwards = []
    for name, needed in IMPORTS.items():
        for other in needed:
            here, there = room(name), room(other)
            if not here or not there or here == there:
                continue
            if here in GROUND or (there in FLOORS and FLOORS.index(here) >= FLOORS.index(there)):
                upwards.append(f"{name} -> {other}")
    assert upwards == []


def test_no_imports_run_in_a_circle_between_files() -> None:
    path: list[str] = []
    done: set[str] = set()

    def visit(name: str) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(IMPORTS[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in FILES:
        visit(name)


def test_every_file_says_its_purpose_in_its_first_line() -> None:
    silent = [
        name for name, file in FILES.items() if name != "rpo_cli" and not file.read_text().startswith('"""')
    ]
    assert silent == []


def test_faces_define_nothing() -> None:
    for name, file in FILES.items():
        if file.name != "__init__.py" or name == "rpo_cli":
            continue
        kinds = {type(node) for node in ast.parse(file.read_text()).body}
        table = {ast.Assign} if name == "rpo_cli.objectives" else set()
        assert kinds <= {ast.Expr, ast.ImportFrom, *table}, name
