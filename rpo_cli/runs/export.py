"""`rpo export`: a model of the workspace as a folder for others, with its card, and on the hub."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from rpo_cli.artifacts import (
    External,
    Manifest,
    Stage,
    Workspace,
    cure,
    damaged_files,
    origin_of,
    read_json,
    sha256,
    snapshots,
    unreachable,
    where,
    write_card,
    write_json,
)
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.recipes import RECIPES, Loaded, RecipeError, article, either, schema, short_name
from rpo_cli.runs.options import Dtype, Export
from rpo_cli.runs.planner import Planner, planner_for
from rpo_cli.runs.planning.models import name_of
from rpo_cli.runs.session import Session
from rpo_cli.text import counted, first_line

WEIGHTS = "*.safetensors"
MODEL = ("config.json", "generation_config.json", "model.safetensors.index.json", WEIGHTS)
ADAPTER = ("adapter_config.json", WEIGHTS)
TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "chat_template*",
)  # fmt: skip
TRAINED = [name for name, kind in schema.KINDS.items() if kind.trains]
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def export(session: Session, wanted: Export) -> None:
    """Write a trained model, its tokenizer and its card into a folder; on request upload that.

    Raises:
        BadInput: the model is not there or not as the recipe says, or the folder is not free.
        RunFailed: the hub refused; the folder is there.
    """
    loaded = model_of(session, "export")
    planner, workspace = planner_for(loaded), session.open(loaded.recipe.suite)
    stage = planner.build(loaded) if wanted.member is None else _member(planner, loaded, wanted.member)
    why = not_there(stage, workspace)
    first = maker(session, loaded, stage, wanted.member)
    if session.dry_run:
        print(f"{stage.path}  ({why or 'up to date'})")
        if why is not None:
            session.say(f"first: {first}")
        return
    source = workspace.root / stage.path
    if why is not None:
        raise BadInput(f"{source}: {why}; first {first}")
    _check(wanted, stage, workspace)
    for file, reason in damaged_files(source):
        raise RunFailed(cure(file, reason, source))
    evaluations = list(_evaluations(planner, loaded, workspace))
    with _published(wanted.to) as folder:
        for pattern in ADAPTER if wanted.adapter else MODEL:
            for file in (source / "adapter" if wanted.adapter else source).glob(pattern):
                shutil.copyfile(file, folder / file.name)
        for pattern in TOKENIZER:
            for file in source.glob(pattern):
                shutil.copyfile(file, folder / file.name)
        if wanted.adapter:
            _name_base(folder / "adapter_config.json", stage.inputs["model"])
        if wanted.dtype is not None:
            _cast(folder, wanted.dtype)
        write_card(
            folder,
            wanted.push or str(wanted.to),
            workspace.finished(stage.path),
            origin_of(stage),
            [found for table in stage.tables() if (found := workspace.manifest(table.path)) is not None],
            evaluations,
            adapter=wanted.adapter,
            weights={file.name: sha256(file) for file in sorted(source.glob(WEIGHTS))},
        )
    session.say(f"exported {stage.path} with {counted(len(evaluations), 'evaluation')} in its card")
    print(wanted.to)
    if wanted.push is not None:
        print(_push(wanted.to, wanted.push, wanted.private))


def model_of(session: Session, what: str, kinds: Sequence[str] = TRAINED) -> Loaded:
    """The recipe of one model of these kinds, at one rho; `what`: takes it; BadInput: another."""
    takes = f"{what} takes the recipe of a model: {either(kinds)}"
    loads = session.at_rhos(session.kind_among(kinds, takes))
    if len(loads) > 1:
        raise BadInput(f"--rho {session.rho}: one model at a time; give one rho")
    return loads[0]


def not_there(stage: Stage, workspace: Workspace) -> str | None:
    """Why a stage's model cannot be taken from the workspace; None: it can."""
    snapshots.pin([stage], workspace)
    return workspace.why_stale(stage.path, stage.identity, weights=True)


def maker(session: Session, loaded: Loaded, stage: Stage, member: str | None = None) -> str:
    """The command that trains a model."""
    if stage.kind == "warm":
        return f"rpo train-policy on a recipe with `teacher: warm` and `ensemble: {loaded.path.name}`"
    command = f"{schema.KINDS[loaded.recipe.stage].command} {shlex.quote(short_name(loaded.path))}"
    command += f"{session.at}{session.changes}{session.given}"
    return command if member is None else f"{command} --ensemble"


def _member(planner: Planner, loaded: Loaded, name: str) -> Stage:
    """A member of the ensemble that a reward recipe describes, or the mean of all; BadInput: no such one."""
    if loaded.recipe.stage != "reward":
        raise BadInput(f"--member {name}: {loaded.path.name} is {article(loaded.recipe.stage)} recipe")
    found = {name_of(member): member for member in planner.members(loaded)} | {"warm": planner.warm(loaded)}
    if name not in found:
        raise BadInput(f"--member {name}: {loaded.path.name} has {', '.join(found)}")
    return found[name]


def _check(wanted: Export, stage: Stage, workspace: Workspace) -> None:
    """Refuse what cannot be exported in this form or to this place, before anything is written."""
    to, root = wanted.to.resolve(), workspace.root.resolve()
    if to.is_relative_to(root) or root.is_relative_to(to):
        raise BadInput(f"--to {wanted.to}: the workspace is there; choose a folder of its own")
    if to.exists() and not to.is_dir():
        raise BadInput(f"--to {wanted.to}: is a file")
    if to.is_dir() and any(to.iterdir()):
        if not (to / RECIPES).is_file():
            raise BadInput(f"--to {wanted.to}: holds {min(to.iterdir()).name}; choose an empty folder")
        if not wanted.replace:
            raise BadInput(f"--to {wanted.to}: holds a model already; --force replaces it")
    if wanted.adapter:
        if not (workspace.root / stage.path / "adapter").is_dir():
            raise BadInput(f"--adapter: {stage.path} has none; leave it out, the whole model is exported")
        if wanted.dtype is not None:
            raise BadInput("--dtype: an adapter stays as it was trained; leave out one of --adapter, --dtype")
        base = stage.inputs["model"]
        if wanted.push is not None and not (isinstance(base, External) and base.on_hub):
            here = f"its base model {where(base)} is on this disk only"
            raise BadInput(f"--adapter: {here}; leave out --adapter")
    if wanted.push is not None:
        if not REPOSITORY.fullmatch(wanted.push):
            raise BadInput(f"--push {wanted.push}: expected USER/NAME, such as anna/e-dpo")
        if (why := unreachable()) is not None:
            raise BadInput(f"--push {wanted.push}: {why}")
    elif wanted.private:
        raise BadInput("--private goes with --push")


def _evaluations(planner: Planner, loaded: Loaded, workspace: Workspace) -> Iterator[Manifest]:
    """What was measured of a policy, as far as it is there and up to date."""
    if loaded.recipe.stage != "policy":
        return
    for plan in (
        partial(planner.held_out, loaded),
        partial(planner.evaluation, loaded, "validation"),
        partial(planner.evaluation, loaded, "test"),
        partial(planner.judgement, loaded, "test"),
    ):
        with suppress(RecipeError, BadInput):  # no recipe to evaluate with: then nobody did
            stage = plan()
            snapshots.pin([stage], workspace)
            if workspace.why_stale(stage.path, stage.identity) is None:
                yield workspace.finished(stage.path)


@contextmanager
def _published(to: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place when it is whole; what stood there goes then."""
    to = to.resolve()
    staging, old = (to.with_name(f".{to.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    staging.mkdir(parents=True)
    try:
        yield staging
        if to.exists():
            to.rename(old)
        staging.rename(to)
    except BaseException:
        if old.exists() and not to.exists():
            old.rename(to)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _name_base(config: Path, base: Stage | External) -> None:
    """Name a base from the hub as everybody knows it, with its commit."""
    if isinstance(base, External) and base.on_hub:
        known = {"base_model_name_or_path": base.reference, "revision": base.commit or base.revision}
        write_json(config, (read_json(config) or {}) | known)


def _cast(folder: Path, dtype: Dtype) -> None:
    """Round the weights of a folder, one file at a time, and say so in its config."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    target: torch.dtype = getattr(torch, dtype)
    for file in folder.glob(WEIGHTS):
        with safe_open(file, "pt") as weights:
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
        cast = {name: t.to(target) if t.is_floating_point() else t for name, t in tensors.items()}
        save_file(cast, file, metadata={"format": "pt"})
    config = folder / "config.json"
    config.write_text(json.dumps((read_json(config) or {}) | {"dtype": dtype}, indent=2) + "\n")


def _push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder; the address of the model. The token is where huggingface_hub looks for it."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="rpo export")
    except Exception as error:  # of the client, and of whichever HTTP library it is made of
        status = getattr(getattr(error, "response", None), "status_code", None)
        login = "; log in (`hf auth login`, or HF_TOKEN)" if status in (401, 403) else ""
        again = f"{folder} is whole: `hf upload {name} {folder}` sends it"
        raise RunFailed(f"--push {name}: the hub refused: {first_line(error)}{login}; {again}") from None
    return str(address)
