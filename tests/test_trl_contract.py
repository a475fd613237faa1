"""The libraries' private names: in one file, declared with a reason, and there in the installed version."""

from __future__ import annotations

import ast
import importlib
import inspect
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trl
from transformers import TrainerCallback, TrainingArguments

from rpo_cli.recipes.complaints import unknown
from rpo_cli.recipes.schema import MODELS
from rpo_cli.stages.training.trl import PRIVATE, PairTrainer, TokenTrainer

PACKAGE = Path(__file__).resolve().parent.parent / "rpo_cli"
LIBRARIES = ("trl", "transformers", "accelerate", "datasets", "peft")
HOLDER = PACKAGE / "stages/training/trl.py"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def names_in(tree: ast.AST) -> set[str]:
    """What code defines, imports or reads as an attribute."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found |= {(node.asname or node.name), *node.name.split(".")}
    return found


@cache
def names_of(thing: type | ModuleType) -> frozenset[str]:
    return frozenset(names_in(ast.parse(inspect.cleandoc("\n" + inspect.getsource(thing)))))


@cache
def theirs() -> frozenset[str]:
    """The private names of the classes that this package's trainers, arguments and callbacks come from."""
    ancestors = {*PairTrainer.__mro__, *TokenTrainer.__mro__, *TrainingArguments.__mro__, TrainerCallback}
    found: set[str] = set()
    for ancestor in ancestors:
        if ancestor.__module__.split(".")[0] in LIBRARIES:
            found |= names_of(ancestor)
    return frozenset(name for name in found if is_private(name))


@pytest.mark.parametrize(("where", "name"), [(where, name) for where, name, _ in PRIVATE])
def test_a_private_name_that_is_replaced_is_there(where: str, name: str) -> None:
    module, _, kind = where.partition(":")
    home = importlib.import_module(module)
    if not kind:
        assert hasattr(home, name)
        return
    ancestors = [base for base in getattr(home, kind).__mro__ if base.__module__.split(".")[0] in LIBRARIES]
    assert any(name in names_of(base) for base in ancestors)


def test_the_private_names_of_libraries_that_one_file_touches_are_those_it_declares() -> None:
    touched = names_in(ast.parse(HOLDER.read_text())) & theirs()
    assert touched == {name for _, name, _ in PRIVATE if is_private(name)}


def test_no_other_file_touches_a_private_name_of_theirs() -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text())
        if file != HOLDER:
            assert private_imports(tree) == [] and foreign_names(tree) == set(), file


def private_imports(tree: ast.AST) -> list[str]:
    """Names with an underscore imported from one of the libraries."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in LIBRARIES]
    return [name for name in found if any(is_private(part) for part in name.split("."))]


def foreign_names(tree: ast.Module) -> set[str]:
    """Their private names in a trainer; elsewhere those read off what no class of the file gives them."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    trainers = {node for node in classes if any(is_trainer(base) for base in node.bases)}
    own = {name for node in classes if node not in trainers for name in names_in(node)}
    found = {name for node in trainers for name in names_in(node)}
    found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} - own
    return found & theirs()


def is_trainer(base: ast.expr) -> bool:
    return ast.unparse(base).endswith(("Trainer", "Callback", "Batches", "Arguments", "Config"))


def test_a_private_name_elsewhere_would_be_found() -> None:
    trainer = "class Mine(PairTrainer):\n    def _prepare_inputs(self): return self._signature_columns\n"
    assert foreign_names(ast.parse(trainer)) == {"_prepare_inputs", "_signature_columns"}
    assert foreign_names(ast.parse("config._n_gpu = 1")) == {"_n_gpu"}
    assert (
        foreign_names(ast.parse("class Other:\n    def _prepare_inputs(self): self._metrics = 1\n")) == set()
    )
    assert private_imports(ast.parse("from trl.trainer.base_trainer import _BaseTrainer")) != []
    assert private_imports(ast.parse("import transformers._typing")) == ["transformers._typing"]


def test_every_reason_is_given_once_for_each_name() -> None:
    assert len({(where, name) for where, name, _ in PRIVATE}) == len(PRIVATE)
    assert all(why for _, _, why in PRIVATE)


MEANT = {  # keys of TRL that recipes have under a name that is like it
    "activation_checkpointing": "gradient_checkpointing",
    "full_determinism": "deterministic",
    "logging_first_step": "logging_steps",
    "logging_strategy": "logging_steps",
    "precompute_ref_batch_size": "per_device_eval_batch_size",
    "project": "wandb_project",
}


@pytest.mark.parametrize(
    ("stage", "theirs"),
    [("policy", trl.DPOConfig), ("reward", trl.RewardConfig), ("sft", trl.SFTConfig)],
)
def test_a_key_of_trl_is_taken_for_no_key_that_means_something_else(stage: str, theirs: Any) -> None:
    ours = MODELS[stage].model_fields
    keys = {field.name for each in (theirs, trl.ModelConfig) for field in fields(each)}
    guessed = {key: said.split()[-1].strip("?") for key in keys - {*ours}
               if "did you mean" in (said := unknown(key, stage, ours))}  # fmt: skip
    assert {key: ours for key, ours in guessed.items() if MEANT.get(key) != ours} == {}
    hinted = {"eval_steps": "write monitor_steps", "reference_free": "not supported; `objective: simpo`"}
    assert stage != "policy" or all(told in unknown(key, stage, ours) for key, told in hinted.items())


# Read with a default or by name alone, where the search above does not see them.
READ = (
    ("transformers:PreTrainedModel", "_is_stateful"),
    ("transformers:PreTrainedConfig", "_attn_implementation"),
    ("torch.nn:Module", "_compiled_call_impl"),
    ("accelerate:Accelerator", "_original_forward"),
)


@pytest.mark.parametrize(("where", "name"), READ)
def test_a_private_name_that_is_read_where_it_may_lack_is_there(where: str, name: str) -> None:
    module, _, kind = where.partition(":")
    home = getattr(importlib.import_module(module), kind)
    assert name in inspect.getsource(home) or hasattr(home, name)
    texts = [file.read_text() for file in PACKAGE.rglob("*.py")]
    assert any(f'"{name}"' in text or f".{name}" in text for text in texts)
