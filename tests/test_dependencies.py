"""What the package imports it declares, and what it declares is pinned."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return match.group().lower().replace("_", "-")


def imported() -> set[str]:
    """Top-level modules that the package imports, wherever in a file."""
    found = set()
    for file in (REPOSITORY / "rpo_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"rpo_cli"}


def test_every_import_is_a_declared_dependency() -> None:
    extras = [requirement for group in ("lora", "qlora", "vllm", "tpu") for requirement in PROJECT["optional-dependencies"][group]]
    declared = {name_of(requirement) for requirement in [*PROJECT["dependencies"], *extras]}
    distributions = metadata.packages_distributions()
    by_module = {module: {name_of(name) for name in distributions.get(module, [module])} for module in imported()}
    assert len(by_module) >= 15
    # pydantic_core is pydantic's own other half, pinned by it to the version.
    missing = {module for module, names in by_module.items() if not names & declared} - {"pydantic_core"}
    assert not missing


def test_every_dependency_is_pinned() -> None:
    pinned = {name_of(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {name_of(requirement) for requirement in PROJECT["dependencies"]} <= pinned
