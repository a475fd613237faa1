"""What comes from the Hugging Face hub: commits, recorded once; downloads; what an offline machine lacks.

No recipe need name a commit. The first run (or `rpo data fetch`) resolves every hub name and records the
commits in a lock file beside the workspace, `runs/tldr.lock.json` for `runs/tldr`; later runs use those.
Delete an entry to move on. A plan (`--dry-run`) reads the lock and touches no network. Tokens stay with
huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from rpo_cli.artifacts.files import lease, read_json, write_json
from rpo_cli.artifacts.graph import External, Stage, walk
from rpo_cli.artifacts.hub import unreachable
from rpo_cli.artifacts.workspace import Workspace
from rpo_cli.errors import BadInput

TOKENIZER_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
RECORD_FILES = (
    "*.parquet",
    *(f"*.json{lines}{packed}" for lines in ("", "l") for packed in ("", ".gz", ".zst")),
)
COMMIT = re.compile(r"[0-9a-f]{40}")


def lock_file(workspace: Workspace) -> Path:
    """Where a workspace's commits are recorded: beside it, so that clearing it does not forget them."""
    return workspace.root.with_name(f"{workspace.root.name}.lock.json")


def externals(stages: Iterable[Stage]) -> list[External]:
    """The hub models and data sets that these stages read themselves."""
    return [
        needed
        for stage in stages
        for needed in stage.inputs.values()
        if isinstance(needed, External) and needed.on_hub
    ]


def _type(external: External) -> str:
    return "dataset" if external.use == "dataset" else "model"


def _name(external: External) -> str:
    return f"{external.reference}@{external.revision or 'main'}"


def entry(external: External) -> tuple[str, str]:
    """Where a lock file has the commit of a hub name: by kind and by name at its revision."""
    return f"{_type(external)}s", _name(external)


def commits(workspace: Workspace) -> dict[str, dict[str, str]]:
    """The commits of the lock file, by kind and by name at its revision; what is none is not recorded."""
    found = read_json(lock_file(workspace)) or {}
    return {
        kind: {name: commit for name, commit in names.items() if isinstance(commit, str)}
        for kind, names in found.items()
        if isinstance(names, dict)
    }


def pin(targets: Sequence[Stage], workspace: Workspace) -> None:
    """Give every hub name below the targets the commit that the lock file has for it; their keys follow."""
    stages = walk(targets)
    known = commits(workspace)
    changed = False
    for external in externals(stages):
        kind, name = entry(external)
        commit = known.get(kind, {}).get(name)
        changed |= commit != external.commit
        external.commit = commit
    for stage in stages if changed else ():
        stage.__dict__.pop("identity", None)  # cached, with the keys of its inputs


def record(targets: Sequence[Stage], workspace: Workspace, say: Callable[[str], None]) -> None:
    """Resolve and record hub names that the lock file lacks; offline, those that the cache can resolve.

    Raises:
        BadInput: a name or revision that the hub does not have.
    """
    pin(targets, workspace)
    found = {entry(external): external for external in externals(walk(targets))}
    if not found:
        return
    file = lock_file(workspace)
    known = commits(workspace)
    used = sum(external.commit is not None for external in found.values())
    if used:
        say(f"hub: {used} of {len(found)} names at the commits recorded in {file}")
    new = {}
    for (kind, name), external in found.items():
        if external.commit is None and (commit := _resolve(external)) is not None:
            known.setdefault(kind, {})[name] = new[name] = commit
    if new:
        remember(workspace, known)
        for name, commit in new.items():
            say(f"hub: {name} is {commit}, recorded in {file}")
        pin(targets, workspace)


def remember(workspace: Workspace, names: Mapping[str, Mapping[str, str]]) -> None:
    """Add names and their commits to the lock file; what another command recorded meanwhile stays."""
    workspace.root.mkdir(parents=True, exist_ok=True)
    with lease(workspace.root, "hub"):
        known = commits(workspace)
        for kind, found in names.items():
            known[kind] = {**found, **known.get(kind, {})}
        write_json(lock_file(workspace), known)


def _resolve(external: External) -> str | None:
    """The commit of a hub name; offline, as far as the cache knows it, else None."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    revision = external.revision or "main"
    if COMMIT.fullmatch(revision):
        return revision
    if unreachable() is not None:
        folder = repo_folder_name(repo_id=external.reference, repo_type=_type(external))
        try:
            return (Path(constants.HF_HUB_CACHE) / folder / "refs" / revision).read_text().strip()
        except OSError:
            return None
    try:
        sha = HfApi().repo_info(external.reference, repo_type=_type(external), revision=revision).sha
    except HFValidationError:
        raise BadInput(f"{external.reference}: neither a directory here nor a possible hub name") from None
    except HfHubHTTPError as error:
        raise BadInput(f"{_name(external)}: {_refusal(error, external)}") from None
    except Exception as error:  # the client's network library has errors of its own
        raise BadInput(
            f"{_name(external)}: the hub does not answer: {str(error).strip() or type(error).__name__}"
        ) from None
    return str(sha) if sha else None


def _refusal(error: Exception, external: External) -> str:
    """What a user can do about the hub's refusal; its own first line where that is not known."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{'datasets/' if external.use == 'dataset' else ''}{external.reference}"
    if isinstance(error, GatedRepoError):
        return (
            f"is gated: accept its terms at huggingface.co/{page}, then log in (`hf auth login`, or HF_TOKEN)"
        )
    if isinstance(error, RevisionNotFoundError):
        missing = f"no branch, tag or commit {external.revision or 'main'!r} of it"
        return f"the hub has {external.reference}, but {missing}"
    if isinstance(error, RepositoryNotFoundError):
        where = f"see huggingface.co/{page}, or log in (`hf auth login`)"
        return f"the hub has no {_type(external)} of this name, or it is private: {where}"
    line = str(error).strip().splitlines()
    status = f"{getattr(error.response, 'status_code', '')} " if isinstance(error, HfHubHTTPError) else ""
    return f"the hub does not give it: {status}{line[0] if line else type(error).__name__}"


def require(stages: Sequence[Stage], workspace: Workspace, recipe: str) -> None:
    """Where the hub is out of reach (or HF_HUB_OFFLINE=1), see that its cache has all these stages read.

    Raises:
        BadInput: with the full list of what is missing.
    """
    from huggingface_hub import constants

    needed = externals(stages)
    why = unreachable() if needed else None
    if why is None:
        return
    missing = {
        f"{_type(e)} {_name(e)}" + (f" at {e.commit}" if e.commit else ""): None
        for e in needed
        if not _cached(e)
    }
    if missing:
        fetch = f"rpo data fetch --recipe {quote(recipe)}" if recipe else "the same command"
        raise BadInput(
            f"{why}, and the hub's cache {constants.HF_HUB_CACHE} lacks {'; '.join(missing)}. Where there "
            f"is a network: {fetch}, then "
            f"bring the cache and {lock_file(workspace)} here"
        )


def _cached(external: External) -> bool:
    try:
        folder = Path(_download(external, local_files_only=True))
    except (OSError, ValueError):
        return False
    return _whole(external, folder)


def _whole(external: External, folder: Path) -> bool:
    if external.use == "dataset":
        return all(
            any(next((folder / part).rglob(pattern), None) for pattern in RECORD_FILES)
            for part in external.folders or [""]
        )
    needed = ["config.json", "*.safetensors"] if external.use == "model" else ["tokenizer*"]
    return all(next(folder.glob(pattern), None) for pattern in needed)


def _download(external: External, **kwargs: Any) -> str:
    from huggingface_hub import snapshot_download

    patterns = {
        "model": [*TOKENIZER_FILES, "*.safetensors"],
        "tokenizer": TOKENIZER_FILES,
        "dataset": [
            f"{folder}/{pattern}" if folder else pattern
            for folder in external.folders or [""]
            for pattern in RECORD_FILES
        ],
    }[external.use]
    revision = external.commit or external.revision
    return str(
        snapshot_download(
            external.reference,
            repo_type=_type(external),
            revision=revision,
            allow_patterns=patterns,
            **kwargs,
        )
    )


def wanted(targets: Sequence[Stage], workspace: Workspace) -> list[dict[str, str]]:
    """What the targets rest on, each once: `use`, `name`, `commit` (empty: not recorded yet)."""
    pin(targets, workspace)
    return [{"use": e.use, "name": _name(e), "commit": e.commit or ""} for e in _each(targets)]


def _each(targets: Sequence[Stage]) -> list[External]:
    found = {
        (*entry(external), external.use, *external.folders): external for external in externals(walk(targets))
    }
    # A model's download has its tokenizer.
    models = {entry(external) for external in found.values() if external.use == "model"}
    return [
        external
        for external in found.values()
        if external.use != "tokenizer" or entry(external) not in models
    ]


def fetch(targets: Sequence[Stage], workspace: Workspace, say: Callable[[str], None]) -> list[dict[str, str]]:
    """Record all commits below the targets and download them, weights as safetensors: `wanted` with `path`.

    Raises:
        BadInput: the hub has not got it, or not in that form.
    """
    if _each(targets) and (why := unreachable()) is not None:
        raise BadInput(f"{why}; nothing can be fetched")
    record(targets, workspace, say)
    paths = []
    for external in _each(targets):
        say(f"hub: {external.use} {_name(external)}")
        paths.append(snapshot(external))
    return [{**one, "path": path} for one, path in zip(wanted(targets, workspace), paths, strict=True)]


def snapshot(external: External) -> str:
    """Download what is needed of a hub name (or find it in the cache); its folder.

    Raises:
        BadInput: it cannot be had, or lacks what is needed.
    """
    try:
        folder = _download(external)
    except Exception as error:  # network, hub and file system, each with errors of its own
        raise BadInput(f"{_name(external)}: {_refusal(error, external)}") from error
    if not _whole(external, Path(folder)):
        lacks = {
            "model": "config.json or safetensors weights",
            "tokenizer": "tokenizer files",
            "dataset": "Parquet or JSON lines files",
        }
        where = f" in {', '.join(external.folders)}" if external.folders else ""
        raise BadInput(f"{_name(external)}: has no {lacks[external.use]}{where}")
    return folder


def dataset_folder(reference: str, revision: str | None, folders: Sequence[str]) -> str:
    """Where a data set lies: itself if it is a path, else its snapshot in the hub's cache."""
    if Path(reference).exists():
        return reference
    return snapshot(External(reference, revision, "dataset", tuple(folders)))
