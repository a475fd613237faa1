"""Where artifacts live, and what is up to date.

An artifact is a directory with a `manifest.json`, written last. It is up to date when the manifest's key, a hash of the
resolved recipe and of the inputs' keys, is the one the plan wants. A directory without a manifest is unfinished; what
it holds may be resumed only under the key in its `started.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from rpo_cli.artifacts.files import no_room, read_json, write_json
from rpo_cli.errors import BadInput, RunFailed

MANIFEST = "manifest.json"
STARTED = "started.json"
REPLACED = ".replaced"
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "tokenizers",
    "peft",
    "bitsandbytes",
    "numpy",
    "wandb",
)


class WorkspaceError(BadInput):
    """The workspace cannot be used; the message is one line for the user."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git_revision() -> str | None:
    """Commit of the checkout this package runs from, with a + when it has uncommitted changes."""
    here = Path(__file__).resolve().parent.parent
    try:
        # Installed below somebody else's repository, this package is no file of it.
        subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", "__init__.py"],
            capture_output=True,
            timeout=5,
            check=True,
        )
        command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
        return (
            subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
            or None
        )
    except (OSError, subprocess.SubprocessError):
        return None


class Workspace:
    """One suite's directory of artifacts."""

    def __init__(self, root: Path, suite: str) -> None:
        self.root = root
        self.suite = suite

    def check(self) -> None:
        """Make sure that what is there, if anything, is a workspace of this suite.

        Raises:
            WorkspaceError: it is not.
        """
        known = read_json(self.root / "workspace.json")
        if known is not None and known.get("suite") != self.suite:
            raise WorkspaceError(
                f"{self.root}: workspace of suite {known.get('suite')!r}, not {self.suite!r}; choose another --workspace"
            )
        if known is None and self.root.is_dir() and any(self.root.iterdir()):
            raise WorkspaceError(
                f"{self.root}: neither empty nor a workspace of rpo; choose another --workspace"
            )

    def open(self) -> None:
        """Create the workspace if it is not there.

        Raises:
            WorkspaceError: it belongs to another suite, or cannot be written.
            RunFailed: the disk is full.
        """
        self.check()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not (self.root / "workspace.json").exists():
                write_json(self.root / "workspace.json", {"suite": self.suite})
        except OSError as error:
            failed = WorkspaceError if no_room(error, Path()) is None else RunFailed
            raise failed(f"{self.root}: cannot be written: {error.strerror}") from error

    def manifest(self, path: str) -> dict[str, Any] | None:
        """Manifest of a finished artifact, None of an absent or unfinished one."""
        return read_json(self.root / path / MANIFEST)

    def why_stale(self, path: str, wanted: Mapping[str, Any], *, weights: bool = False) -> str | None:
        """Why the artifact must be built; None when it is up to date.

        `wanted` is the plan's `identity` (kind, recipe, inputs, options, key). `weights`: a dropped model will not do.
        """
        found = self.manifest(path)
        if found is None:
            started = read_json(self.root / path / STARTED)
            return "missing" if started is None else "unfinished"
        if found["key"] != wanted["key"]:
            return difference(found, wanted)
        if weights and found.get("weights") == "dropped":
            return "its weights were dropped"
        return None

    @contextlib.contextmanager
    def building(
        self, path: str, identity: Mapping[str, Any], *, force: bool = False
    ) -> Iterator[Path | None]:
        """Hold the artifact's directory while it is built; keep an unfinished one only if it was started for this key.

        A finished artifact of another key is set aside until the new one is published: bad input brings it back, and so does
        asking for it again. Yields None when another command finished it in the meantime, and there is nothing left to do.
        """
        directory, aside = self.root / path, self.root / REPLACED / path
        locks = self.root / ".locks"
        locks.mkdir(exist_ok=True)
        with FileLock(locks / (path.replace("/", "__") + ".lock")):
            if not force and self.why_stale(path, identity, weights=True) is None:
                yield None
                return
            old = read_json(aside / MANIFEST) or {}
            if not force and old.get("key") == identity["key"] and old.get("weights") != "dropped":
                _move(aside, directory)
                yield None
                return
            started = read_json(directory / STARTED)
            if started is None or started.get("key") != identity["key"] or (directory / MANIFEST).exists():
                if (directory / MANIFEST).exists():
                    _move(directory, aside)
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir(parents=True, exist_ok=True)
                write_json(directory / STARTED, dict(identity))
            try:
                yield directory
            except BadInput:
                if aside.exists():
                    _move(aside, directory)
                raise

    def is_building(self, path: str, identity: Mapping[str, Any]) -> bool:
        """Whether the artifact's directory was made ready for this key, and is not finished."""
        return (
            not (self.root / path / MANIFEST).exists()
            and (read_json(self.root / path / STARTED) or {}).get("key") == identity["key"]
        )

    def publish(self, path: str, manifest: Mapping[str, Any]) -> None:
        """Declare the artifact finished."""
        directory = self.root / path
        write_json(directory / MANIFEST, dict(manifest))
        (directory / STARTED).unlink(missing_ok=True)
        _remove(self.root / REPLACED / path)

    def drop_weights(self, path: str) -> None:
        """Delete a finished artifact's model weights; manifest, metrics and logs stay."""
        manifest = self.manifest(path)
        if manifest is None or manifest.get("weights") == "dropped":
            return
        write_json(self.root / path / MANIFEST, {**manifest, "weights": "dropped"})
        for file in (self.root / path).glob("**/*.safetensors"):
            file.unlink()

    def artifacts(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Every artifact, finished (with its manifest) or not (None), by path."""
        for file in sorted(self.root.rglob("*.json")):
            path = str(file.parent.relative_to(self.root))
            finished = file.name == MANIFEST
            if (
                finished or (file.name == STARTED and not (file.parent / MANIFEST).exists())
            ) and not path.startswith(REPLACED):
                yield path, read_json(file) if finished else None


def _remove(directory: Path) -> None:
    """Delete an artifact, its manifest first: a kill in the middle must not leave a finished-looking ruin."""
    (directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Put an artifact in the place of another, which a kill may cost; the one that is moved it does not."""
    _remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """First differences between two identities, as a user would name them: `beta 0.1 -> 0.2`."""
    reasons: list[str] = []
    for group in ("recipe", "options"):
        reasons += _changes("", found.get(group, {}), wanted.get(group, {}))
    old, new = found.get("inputs", {}), wanted.get("inputs", {})
    reasons += [f"input {name} changed" for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    shown = "; ".join(reasons[:3]) or "built by another version of rpo"
    return shown + (f"; {len(reasons) - 3} more" if len(reasons) > 3 else "")


def _changes(name: str, old: Any, new: Any) -> list[str]:
    """What differs between two values, in mappings key by key; of a file's hash only that it does."""
    if old == new:
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        inside = f"{name}." if name else ""
        return [
            change
            for key in sorted({*old, *new}, key=str)
            for change in _changes(f"{inside}{key}", old.get(key), new.get(key))
        ]
    hashes = [
        isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None for value in (old, new)
    ]
    if any(hashes):
        return [f"{name} {'changed' if all(hashes) else 'added' if hashes[1] else 'removed'}"]
    return [f"{name} {brief(old)} -> {brief(new)}"]


def brief(value: Any) -> str:
    """A value in a few characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
