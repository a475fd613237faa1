"""Where artifacts live, and what is up to date.

An artifact is a directory with a `manifest.json`, written last. It is up to date when the manifest's key, a
hash of the resolved recipe and of the inputs' keys, is the one the plan wants. A directory without a manifest
is unfinished; what it holds may be resumed only under the key in its `started.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from filelock import SoftFileLease

from rpo_cli.artifacts.files import lease, no_room, read_json, write_json
from rpo_cli.artifacts.manifest import DIVERGED, MANIFEST, STARTED, Identity, Manifest, as_manifest
from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.recipes.whole import remove_parts
from rpo_cli.text import cut

NAME = "workspace.json"
REPLACED = ".replaced"
HASH = re.compile("[0-9a-f]{64}")
PACKAGES = (
    *("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers"),
    *("peft", "bitsandbytes", "numpy", "wandb"),
)


class WorkspaceError(BadInput):
    """The workspace cannot be used; the message is one line for the user."""


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those of these packages that are installed: they can change a result."""
    found = {"python": platform.python_version()}
    for name in packages:
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
        said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return said.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


class Workspace:
    """One suite's directory of artifacts."""

    def __init__(self, root: Path, suite: str) -> None:
        self.root = root
        self.suite = suite
        self._held: dict[str, SoftFileLease] = {}

    def check(self) -> str | None:
        """Make sure that what is there, if anything, is a workspace of this suite; a note if that is lost.

        Raises:
            WorkspaceError: it is not.
        """
        known = self._named()
        note = None if known is not None else self._unnamed()
        if known is None and note is not None:
            manifests = [as_manifest(read_json(file)) for file in self._records() if file.name == MANIFEST]
            suites = {found.get("suite", self.suite) for found in manifests if found is not None}
            known = min(suites - {self.suite}, default=None)
        if known not in (None, self.suite):
            raise WorkspaceError(
                f"{self.root}: workspace of suite {known!r}, not {self.suite!r}; choose another --workspace"
            )
        return note

    def _named(self) -> str | None:
        """The suite that workspace.json names; None where it cannot be read."""
        suite = (read_json(self.root / NAME) or {}).get("suite")
        return suite if isinstance(suite, str) else None

    def _records(self) -> Iterator[Path]:
        """The files by which artifacts are known, finished ones and others."""
        return (file for name in (MANIFEST, STARTED) for file in self.root.glob(f"seed-*/**/{name}"))

    def _unnamed(self) -> str | None:
        """What to say of a directory without a name: nothing if it is empty but for folders.

        Raises:
            WorkspaceError: it holds something, but no artifact.
        """
        if next(self._records(), None) is not None:
            return f"{self.root}: {NAME} was lost or damaged; it is written again"
        for file in self.root.rglob("*"):
            within = file.relative_to(self.root)
            if not file.is_dir() and not within.parts[0].startswith(".") and str(within) != NAME:
                raise WorkspaceError(
                    f"{self.root}: neither empty nor a workspace of rpo: it holds {within}; choose another "
                    "--workspace"
                )
        return None

    @property
    def exists(self) -> bool:
        """Whether there is anything to read."""
        return self._named() is not None or next(self._records(), None) is not None

    def open(self) -> None:
        """Create the workspace if it is not there.

        Raises:
            WorkspaceError: it belongs to another suite, or cannot be written.
            RunFailed: the disk is full.
        """
        self.check()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if self._named() is None:
                write_json(self.root / NAME, {"suite": self.suite})
        except OSError as error:
            failed = WorkspaceError if no_room(error, Path()) is None else RunFailed
            raise failed(f"{self.root}: cannot be written: {error.strerror}") from error

    def manifest(self, path: str) -> Manifest | None:
        """Manifest of a finished artifact, None of an absent or unfinished one."""
        return as_manifest(read_json(self.root / path / MANIFEST))

    def finished(self, path: str) -> Manifest:
        """Manifest of an artifact that was finished.

        Raises:
            RunFailed: it is not there any more.
        """
        if (found := self.manifest(path)) is None:
            raise RunFailed(
                f"{self.root / path}: another command removed it meanwhile; run the same command again"
            )
        return found

    def why_absent(self, path: str) -> str | None:
        """Why there is no finished artifact, whatever its key; None where there is one."""
        directory = os.path.join(self.root, path)
        if os.path.isfile(os.path.join(directory, MANIFEST)):
            return None
        return "unfinished" if os.path.isfile(os.path.join(directory, STARTED)) else "missing"

    def why_stale(self, path: str, wanted: Identity, *, weights: bool = False) -> str | None:
        """Why the artifact must be built; None: up to date. `weights`: a dropped model will not do."""
        found = self.manifest(path)
        if found is None:
            return self.why_absent(path) or f"its {MANIFEST} is damaged"
        if found["key"] != wanted["key"]:
            return difference(found, wanted)
        if weights and found.get("weights") == "dropped":
            return "its weights were dropped"
        return None

    @contextlib.contextmanager
    def building(self, path: str, identity: Identity, *, force: bool = False) -> Iterator[Path | None]:
        """Hold the artifact's lease while it is built; None if another process finished it meanwhile.

        Resumes only an unfinished build of the same key. A finished artifact of another key is set aside
        until the new one is published: BadInput restores it, and so does asking for it again.
        """
        directory, aside = self.root / path, self.root / REPLACED / path
        with self._lease(path):
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
                write_json(directory / STARTED, identity)
            remove_parts(directory)
            try:
                yield directory
            except BadInput:
                if aside.exists():
                    _move(aside, directory)
                raise

    @contextlib.contextmanager
    def _lease(self, path: str) -> Iterator[None]:
        """Hold the artifact's lease; waits while another process holds it."""
        with lease(self.root, path.replace("/", "__")) as held:
            self._held[path] = held
            try:
                yield
            finally:
                del self._held[path]

    def require_lease(self, path: str) -> None:
        """RunFailed if an artifact that is being built here was taken over by another process meanwhile."""
        if path in self._held and (lost := self._held[path].compromise) is not None:
            raise RunFailed(f"{path}: another process has taken it over ({lost.reason}); nothing is lost")

    def note_divergence(self, path: str, identity: Identity, why: str) -> None:
        """Write down that an artifact of this key diverged, for plans that choose among others."""
        with contextlib.suppress(OSError):  # the error itself matters more
            write_json(self.root / path / DIVERGED, {"key": identity["key"], "why": why})

    def has_diverged(self, path: str, identity: Identity) -> bool:
        """Whether an artifact of this key diverged when it was made last."""
        return (read_json(self.root / path / DIVERGED) or {}).get("key") == identity["key"]

    def is_building(self, path: str, identity: Identity) -> bool:
        """Whether the artifact's directory was made ready for this key, and is not finished."""
        started = read_json(self.root / path / STARTED) or {}
        return started.get("key") == identity["key"] and not (self.root / path / MANIFEST).exists()

    def spent(self, path: str) -> float:
        """Seconds that earlier attempts at an unfinished artifact of the same key took."""
        seconds = (read_json(self.root / path / STARTED) or {}).get("seconds", 0)
        return float(seconds) if isinstance(seconds, int | float) else 0.0

    def note_spent(self, path: str, seconds: float) -> None:
        """Write down how long an unfinished artifact has taken so far, for whoever goes on with it."""
        file = self.root / path / STARTED
        if (started := read_json(file)) is not None:
            with contextlib.suppress(OSError):  # the error itself matters more
                write_json(file, {**started, "seconds": round(seconds, 2)})

    def publish(self, path: str, manifest: Manifest) -> None:
        """Declare the artifact finished; RunFailed if another process makes it now."""
        self.require_lease(path)
        directory = self.root / path
        write_json(directory / MANIFEST, manifest)
        for name in (STARTED, DIVERGED):
            (directory / name).unlink(missing_ok=True)
        _remove(self.root / REPLACED / path)

    def drop_weights(self, path: str) -> None:
        """Delete a finished artifact's model weights; manifest, metrics and logs stay."""
        manifest = self.manifest(path)
        if manifest is None or manifest.get("weights") == "dropped":
            return
        write_json(self.root / path / MANIFEST, {**manifest, "weights": "dropped"})
        for file in (self.root / path).glob("**/*.safetensors"):
            file.unlink()

    def artifacts(self) -> Iterator[tuple[str, Manifest | None]]:
        """Every artifact, finished (with its manifest) or not (None), by path."""
        for file in sorted(self.root.rglob("*.json")):
            path = str(file.parent.relative_to(self.root))
            unfinished = file.name == STARTED and not (file.parent / MANIFEST).exists()
            if (file.name == MANIFEST or unfinished) and not path.startswith(REPLACED):
                yield path, None if unfinished else self.manifest(path)


def _remove(directory: Path) -> None:
    """Delete an artifact, its manifest first: a kill in the middle must not leave a finished-looking ruin."""
    (directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Put an artifact in the place of another, which a kill may cost; the one that is moved it does not."""
    _remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def difference(found: Identity, wanted: Identity) -> str:
    """First differences between two identities, as a user would name them: `beta 0.1 -> 0.2`."""
    reasons = _changes("", found.get("recipe", {}), wanted.get("recipe", {}))
    reasons += _changes("", found.get("options", {}), wanted.get("options", {}))
    old, new = found.get("inputs", {}), wanted.get("inputs", {})
    reasons += [f"input {name} changed" for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    shown = "; ".join(reasons[:3]) or "built by another version of rpo"
    return shown + (f"; {len(reasons) - 3} more" if len(reasons) > 3 else "")


def _changes(name: str, old: object, new: object) -> list[str]:
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
    was_hash, is_hash = (isinstance(value, str) and HASH.fullmatch(value) is not None for value in (old, new))
    if was_hash or is_hash:
        return [f"{name} {'changed' if was_hash and is_hash else 'added' if is_hash else 'removed'}"]
    return [f"{name} {brief(old)} -> {brief(new)}"]


def brief(value: object) -> str:
    """A value in a few characters."""
    return cut(value if isinstance(value, str) else json.dumps(value), 40)
