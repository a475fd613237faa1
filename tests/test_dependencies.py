"""What the package imports it declares, and what it declares is pinned."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

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
    extras = [
        requirement
        for group in ("lora", "qlora", "vllm", "tpu")
        for requirement in PROJECT["optional-dependencies"][group]
    ]
    declared = {name_of(requirement) for requirement in [*PROJECT["dependencies"], *extras]}
    distributions = metadata.packages_distributions()
    by_module = {
        module: {name_of(name) for name in distributions.get(module, [module])} for module in imported()
    }
    assert len(by_module) >= 15
    missing = {module for module, names in by_module.items() if not names & declared}
    # pydantic_core is pydantic's other half, pinned by it; type checkers alone know _typeshed.
    assert missing <= {"pydantic_core", "_typeshed"}


def pins(file: str) -> dict[str, str]:
    lines = (REPOSITORY / file).read_text().splitlines()
    return {name_of(line): line.split("==")[1] for line in lines if "==" in line and not line.startswith("#")}


def test_every_dependency_is_pinned() -> None:
    assert {name_of(requirement) for requirement in PROJECT["dependencies"]} <= pins("constraints.txt").keys()


def test_the_tpu_environment_differs_from_the_other_in_torch_alone() -> None:
    plain, tpu = pins("constraints.txt"), pins("constraints-tpu.txt")
    assert {name for name in plain if tpu.get(name) != plain[name]} == {"torch"}
    torch, torch_xla = (Requirement(requirement) for requirement in PROJECT["optional-dependencies"]["tpu"])
    assert torch.specifier.contains(tpu["torch"]) and torch_xla.specifier.contains(tpu["torch-xla"])
    assert {"libtpu", "tpu-info"} <= tpu.keys()
    ours = SpecifierSet(PROJECT["requires-python"]) & SpecifierSet("<3.13")  # libtpu's own bound
    for version in ("3.11", "3.12", "3.13"):
        environment = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": version}
        assert torch_xla.marker is not None and torch_xla.marker.evaluate(environment) == ours.contains(
            version
        )
