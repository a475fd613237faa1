"""What a report shows beside the numbers: curves, samples, data, reward models, costs; and whence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import pandas as pd

from rpo_cli.artifacts import MANIFEST, Manifest, Stage, Workspace, walk
from rpo_cli.figures.cells import Cell, read_by
from rpo_cli.figures.gather import read
from rpo_cli.figures.numbers import Cost, Line, Panel
from rpo_cli.figures.results import plain
from rpo_cli.runs.planner import planner_for

CURVES = (  # the first panels of the learning curves; then whatever else training logged
    "loss", "rewards/accuracies", "rewards/margins", "kl_to_reference", "losses/preference",
)  # fmt: skip
NO_CURVES = ("step", "epoch", "learning_rate", "grad_norm", "gamma", "logps/chosen", "logps/rejected")
MOST_CURVES, MOST_POINTS = 9, 100
LARGEST, RANDOM = 5, 5  # samples shown: those that differ most, and some drawn by lot
LONGEST = 4000  # characters of a text that is shown
TABLES, MODELS = ("data", "pairs", "relabel", "splits"), ("reward", "warm", "scores")


def evidence(cells: Sequence[Cell], workspace: Workspace, seed: int) -> dict[str, object]:
    """Everything a report shows that is no number of the comparison; samples of this seed."""
    stages = walk(read_by(cells))
    found = {stage.path: manifest for stage in stages if (manifest := workspace.manifest(stage.path))}
    facts = {
        "curves": list(_curves(cells, workspace)),
        "samples": _samples([cell for cell in cells if cell.seed == seed], workspace, seed),
        "data": _metrics(stages, found, TABLES),
        "diagnosis": _diagnosis([cell for cell in cells if cell.seed == seed], workspace),
        "reward_models": _metrics(stages, found, MODELS),
        "costs": _costs(stages, found),
        "made_with": _made_with(found),
    }
    made: dict[str, object] = plain(facts)
    return made


def _metrics(
    stages: Sequence[Stage], found: dict[str, Manifest], kinds: Sequence[str]
) -> list[dict[str, object]]:
    """The metrics and warnings of all artifacts of these kinds, each with its manifest."""
    return [
        {
            "kind": stage.kind,
            "manifest": f"{stage.path}/{MANIFEST}",
            "metrics": found[stage.path]["metrics"],
            "warnings": found[stage.path].get("warnings", []),
        }
        for stage in stages
        if stage.kind in kinds and stage.path in found
    ]


def _diagnosis(cells: Sequence[Cell], workspace: Workspace) -> dict[str, object]:
    """What pairs prefer and what teachers know of them, as `rpo diagnose` finds it; builds nothing."""
    from rpo_cli.runs.diagnose import look

    scores: dict[str, Stage] = {}
    planner = planner_for(cells[0].loaded)
    for cell in cells:
        data, own = planner.diagnosis(cell.loaded)
        for name, stage in own.items():
            if workspace.why_stale(stage.path, stage.identity) is None:
                scores[name if name == "oracle" else stage.path.split("/scores/")[-1]] = stage
    return look(workspace, planner, cells[0].loaded, data, scores).json | {
        "manifest": f"{data.path}/{MANIFEST}"
    }


def _costs(stages: Sequence[Stage], found: dict[str, Manifest]) -> list[Cost]:
    """Seconds by kind of stage, and the devices on which it ran."""
    costs: dict[str, Cost] = {}
    for stage in stages:
        if (manifest := found.get(stage.path)) is not None:
            cost = costs.setdefault(
                stage.kind, {"kind": stage.kind, "stages": 0, "seconds": 0.0, "devices": []}
            )
            cost["stages"] += 1
            cost["seconds"] += manifest.get("seconds", 0.0)
            device = str(manifest.get("device", "")).split(" (")[0]
            cost["devices"] += [] if device in cost["devices"] else [device]
    return list(costs.values())


def _made_with(found: dict[str, Manifest]) -> dict[str, str]:
    """Versions of the program and its libraries; several where artifacts differ."""
    seen: dict[str, list[str]] = {}
    for manifest in found.values():
        versions = {"rpo": manifest.get("rpo"), "commit": manifest.get("git"), **manifest.get("versions", {})}
        for name, version in versions.items():
            if version and version not in seen.setdefault(name, []):
                seen[name].append(str(version))
    return {name: ", ".join(versions) for name, versions in seen.items() if versions}


def _curves(cells: Sequence[Cell], workspace: Workspace) -> Iterator[Panel]:
    """What the policies logged while they were trained: steps and values by name, a line for each seed."""
    logs = {
        cell.policy_path: read(file)
        for cell in cells
        if (file := workspace.root / cell.policy_path / "metrics.jsonl").is_file()
    }
    logged = dict.fromkeys(name for log in logs.values() for name in log.columns)
    others = [n for n in logged if n not in (*CURVES, *NO_CURVES) and not n.startswith(("members/", "eval_"))]
    others.sort(key=lambda name: not name.startswith("monitor/"))
    for name in [*(name for name in CURVES if name in logged), *others][:MOST_CURVES]:
        lines = []
        for cell in cells:
            log = logs.get(cell.policy_path, pd.DataFrame())
            if name in log and pd.api.types.is_numeric_dtype(log[name]):
                log = log[["step", name]].dropna()
                log = log.iloc[:: max(1, -(-len(log) // MOST_POINTS))]
                steps, values = log["step"].tolist(), log[name].tolist()
                lines.append(Line(policy=cell.policy, seed=cell.seed, step=steps, value=values))
        if any(len(line["step"]) > 1 for line in lines):
            yield {"name": name, "lines": lines}


def _samples(cells: Sequence[Cell], workspace: Workspace, seed: int) -> list[dict[str, object]]:
    """Prompts with every policy's response: where rewards (else lengths) differ most, and some by lot."""
    stages = {cell.policy: cell.evaluation for cell in cells}
    stages["baseline"] = cast(Stage, cells[0].evaluation.inputs["baseline"])
    tables = {
        name: read(workspace.root / stage.path / "samples.parquet").drop_duplicates("prompt_id")
        for name, stage in stages.items()
    }
    by_prompt = {name: table.set_index("prompt_id").sort_index() for name, table in tables.items()}
    what = "reward" if all("reward" in table for table in tables.values()) else "tokens"
    wide = pd.DataFrame({name: table[what] for name, table in by_prompt.items()}).astype(float)
    spread = (wide.max(axis=1) - wide.min(axis=1)).sort_values(ascending=False, kind="stable")
    largest = list(spread.index[:LARGEST])
    rest = [name for name in wide.index if name not in set(largest)]
    drawn = np.random.default_rng(seed).permutation(len(rest))[:RANDOM]
    said = "rewards differ most" if what == "reward" else "lengths differ most"
    chosen = {**{name: said for name in largest}, **{rest[i]: "drawn by lot" for i in drawn}}
    shown = []
    for prompt_id, why in chosen.items():
        rows = {name: table.loc[prompt_id] for name, table in by_prompt.items() if prompt_id in table.index}
        responses = [
            {
                "policy": name,
                "response": _shortened(row["response"]),
                "tokens": row["tokens"],
                "finished": bool(row["finished"]),
                "reward": row.get("reward"),
            }
            for name, row in rows.items()
        ]
        prompt = _shortened(next(iter(rows.values()))["prompt"])
        shown.append({"prompt": prompt, "why": why, "spread": spread[prompt_id], "responses": responses})
    return shown


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST:,} more characters)"
