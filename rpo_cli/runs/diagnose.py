"""`rpo diagnose`: what a recipe's pairs prefer, what its reward models know of them, what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rpo_cli.artifacts import Stage, Workspace
from rpo_cli.recipes import Loaded
from rpo_cli.runs.planner import Planner
from rpo_cli.runs.session import Session
from rpo_cli.stages.advice import Scores, advice
from rpo_cli.stages.data.rows import MESSAGES, PAIR, TEXTS, Rows, find_rows, margins_by_id
from rpo_cli.stages.data.token_cache import TokenCache
from rpo_cli.stages.diagnosis import Agreement, Diagnosis, agreement, diagnosed
from rpo_cli.stages.splits import LENGTH_MARGIN, LONGER, TIE, preference_of_length
from rpo_cli.statistics import Interval, wilson
from rpo_cli.text import aligned, percent

TABLES = {"splits": ("train", "held_out")}
OTHERS = ("pairs", "pairs_validation")


@dataclass(frozen=True)
class Pairs:
    """A table of pairs.

    kinds: [n] of LONGER, SHORTER, TIE; tokens: [n] of the chosen response minus those of the rejected one;
    columns: what else tells pairs apart, by name.
    """

    ids: list[str]
    kinds: np.ndarray
    tokens: np.ndarray
    columns: dict[str, list[object]]

    @property
    def longer(self) -> Interval:
        """The share of pairs that are no ties in which the longer response was chosen."""
        return wilson(int((self.kinds == LONGER).sum()), int((self.kinds != TIE).sum()))

    @property
    def ties(self) -> float:
        return float((self.kinds == TIE).mean())

    def take(self, ids: Sequence[str]) -> Pairs:
        """The pairs of these ids, in their order."""
        places = {name: place for place, name in enumerate(self.ids)}
        rows = [places[name] for name in ids]
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return replace(self, ids=list(ids), kinds=self.kinds[rows], tokens=self.tokens[rows], columns=columns)


@dataclass(frozen=True)
class Found:
    """What was found for one recipe: its pairs by table, its reward models by name, and what follows.

    labelled_by: the one of them that made the labels, so that its accuracy says nothing; scored: some of them
    are no models, but columns of the data.
    """

    path: Path
    pairs: dict[str, Pairs]
    models: dict[str, Diagnosis]
    labelled_by: str | None
    agreed: Agreement | None
    follows: list[str]
    scored: bool

    @property
    def json(self) -> dict[str, object]:
        pairs = {
            name: {"pairs": len(table.ids), "longer": table.longer._asdict(), "ties": table.ties}
            for name, table in self.pairs.items()
        }
        return {
            "path": str(self.path),
            "pairs": pairs,
            "reward_models": {name: model.json for name, model in self.models.items()},
            "labelled_by": self.labelled_by,
            "agreement": None if self.agreed is None else asdict(self.agreed),
            "follows": self.follows,
        }


def diagnose(session: Session, planner: Planner, loads: Sequence[Loaded], *, members: bool) -> None:
    """Build what is missing, then print what there is to say of each recipe; `members`: of its ensemble."""
    plans = [planner.diagnosis(loaded, members=members) for loaded in loads]
    targets = [stage for data, scores in plans for stage in (data, *scores.values())]
    workspace = session.make(targets, loads[0].recipe.suite)
    if session.dry_run:
        return
    found = [look(workspace, planner, loaded, *plan) for loaded, plan in zip(loads, plans, strict=True)]
    if session.as_json:
        session.print_json({str(each.path.relative_to(workspace.root)): each.json for each in found})
        return
    for each in found:
        print("\n".join(in_words(each)))


def look(
    workspace: Workspace, planner: Planner, loaded: Loaded, data: Stage, scores: Mapping[str, Stage]
) -> Found:
    """Everything that is known of the pairs of `data` and of these reward models' scores of them."""
    pairs = tables_of(workspace, planner, loaded, data, scores)
    held_out = pairs.get("held_out") or pairs.get("pairs_validation")
    models: dict[str, Diagnosis] = {}
    margins: dict[str, dict[str, float]] = {}
    sides: dict[str, int] = {}
    scores = {_called(name, stage): stage for name, stage in scores.items()}
    for name, stage in scores.items():
        assert held_out is not None  # or nothing could be scored
        margins[name] = margins_by_id(workspace.root / stage.path / "held_out.parquet")
        some, values = held_out.take(list(margins[name])), np.array(list(margins[name].values()))
        models[name] = diagnosed(values, some.kinds, some.tokens, some.columns)
        sides |= zip(margins[name], some.kinds.tolist(), strict=True)
    judges = {"oracle"} if loaded.recipe.stage == "policy" else set()  # which teach a policy nothing
    teachers = [name for name in models if name not in judges]
    agreed, among = (_agreed([margins[name] for name in names], sides) for names in (models, teachers))
    trained = next(iter(pairs.values()), None)
    bias = None if trained is None else trained.longer
    relabelled = [stage.inputs["model"] for stage in (data, *data.tables()) if stage.kind == "relabel"]
    own = (name for name, stage in scores.items() if stage.inputs.get("model") in relabelled)
    columns = _scores_of(workspace, scores[teachers[0]]) if len(teachers) == 1 else None
    follows = advice(bias, [models[name] for name in teachers], among, columns)
    scored = any("columns" in stage.options for stage in scores.values())
    return Found(workspace.root / data.path, pairs, models, next(own, None), agreed, follows, scored)


def _called(name: str, scores: Stage) -> str:
    """A teacher's name; of columns of the data also theirs, for there is no reward model."""
    if (columns := scores.options.get("columns")) is None:
        return name
    return " ".join([*([name] if name != "rm" else []), "columns", ", ".join(columns)])


def _scores_of(workspace: Workspace, scores: Stage) -> Scores | None:
    """How columns of scores go with all labels, for nothing was trained on them; None: a model's scores."""
    if (columns := scores.options.get("columns")) is None:
        return None
    folder = workspace.root / scores.path
    tables = [margins_by_id(folder / f"{table}.parquet") for table in ("train", "held_out")]
    margins = np.array(list({**tables[0], **tables[1]}.values()))
    return Scores(columns, len(margins), int((margins < 0).sum()), int((margins == 0).sum()))


def _agreed(margins: Sequence[Mapping[str, float]], sides: Mapping[str, int]) -> Agreement | None:
    """How far reward models agree on the pairs that all of them have scored; margins and kinds by id."""
    ids = [name for name in (margins[0] if margins else ()) if all(name in each for each in margins)]
    if not ids:
        return None
    return agreement(
        np.array([[each[name] for name in ids] for each in margins]), np.array([sides[name] for name in ids])
    )


def tables_of(
    workspace: Workspace, planner: Planner, loaded: Loaded, data: Stage, scores: Mapping[str, Stage]
) -> dict[str, Pairs]:
    """The tables of pairs of an artifact; lengths are the artifact's own, or counted."""
    folders = [workspace.root / stage.path for stage in (data, *data.tables())]
    found = {}
    for table in TABLES.get(data.kind, OTHERS):
        if not (folders[0] / f"{table}.parquet").is_file():
            continue
        rows = find_rows(folders, table, TokenCache(workspace.root))
        notes = rows.notes
        if "longer_preferred" in notes.column_names:
            ids, kinds = rows.ids, notes["longer_preferred"].to_numpy()
            lengths = [notes[f"{side}_tokens"].to_numpy() for side in PAIR]
        else:
            from rpo_cli.models import load_tokenizer
            from rpo_cli.runs.inspect_tokens import find_tokenizer

            reader = next((stage.inputs["policy"] for stage in scores.values()), None)
            tokenizer = (
                load_tokenizer(workspace.root / reader.path, need_pad=False)
                if isinstance(reader, Stage)
                else find_tokenizer(loaded, planner, data, workspace)[0]
            )
            tokens = rows.tokens(PAIR, tokenizer, str(folders[0] / f"{table}.parquet"))
            ids = [row.id for row in tokens]
            lengths = [np.array([len(row.responses[side]) for row in tokens]) for side in (0, 1)]
            kinds = preference_of_length(lengths[0], lengths[1], LENGTH_MARGIN)
        chosen, rejected = (length.astype(np.float64) for length in lengths)
        found[table] = Pairs(ids, kinds, chosen - rejected, attributes_of(rows, ids))
    return found


def attributes_of(rows: Rows, ids: Sequence[str]) -> dict[str, list[object]]:
    """Columns of the data that say of what kind the rows of these ids are: `attributes` of its recipe."""
    texts = (pa.string(), pa.large_string())
    names = [each.name for each in pq.read_schema(rows.file) if each.type in texts]
    names = [name for name in names if name not in (*TEXTS, MESSAGES, "id")]
    table = pq.read_table(rows.file, columns=names).take(rows.places)
    place = {name: number for number, name in enumerate(rows.ids)}
    kept = table.take([place[name] for name in ids])
    return {name: [value or None for value in kept[name].to_pylist()] for name in names}


def in_words(found: Found) -> list[str]:
    """The report for people, at most 90 columns wide before its last sentences."""
    lines = [str(found.path)]
    rows = [
        [name, str(len(table.ids)), percent(table.longer.mean), ends(table.longer), percent(table.ties)]
        for name, table in found.pairs.items()
    ]
    head = ["pairs", "rows", "longer won", "95 % interval", "ties"]
    lines += ["", aligned([head, *rows], right=range(1, 5))[:-1]] if rows else []
    by_kind, scales = [], []
    for name, model in found.models.items():
        for kind, group in model.groups.items():
            first = name if kind == "all" else ""
            share = percent(group.accuracy.mean)
            by_kind.append([first, KIND_WORDS.get(kind, kind), str(group.pairs), share, ends(group.accuracy)])
        t = "none" if model.temperature is None else f"{model.temperature:.2f}"
        price = ["", ""]
        if model.price is not None:
            price = [f"{model.price.mean:+.2f}", f"{model.price.low:+.2f} .. {model.price.high:+.2f}"]
        scales.append([name, f"{model.ece:.3f}", t, *price])
    if by_kind:
        rewards = "rewards of" if found.scored else "reward model"
        head = [rewards, "held-out pairs", "rows", "accuracy", "95 % interval"]
        lines += ["", aligned([head, *by_kind], right=(2, 3, 4))[:-1]]
        head = [rewards, "ECE", "temperature", "10 tokens", "95 % interval"]
        lines += ["", aligned([head, *scales], right=(1, 2, 3, 4))[:-1]]
        lines.append("10 tokens: what so many more bring within a pair, in standard deviations of the reward")
    if found.labelled_by is not None:
        lines.append(f"{found.labelled_by} made these labels, so its own accuracy on them says nothing")
    others = {name: model for name, model in found.models.items() if name != found.labelled_by}
    lines += [f"{name}: no temperature: {model.why}" for name, model in others.items() if model.why]
    if (agreed := found.agreed) is not None:
        correlation = f"{agreed.correlation:.2f}"
        correlation += f" (lowest {agreed.lowest:.2f})" if len(found.models) > 2 else ""
        lines.append(
            f"two of them prefer the same response in {percent(agreed.signs)}; correlation of margins "
            f"{correlation}; deviation over models {agreed.deviation:.2f} of a margin; "
            f"of its square {percent(agreed.by_length)} by length alone"
        )
    return [*lines, "", *found.follows] if found.follows else lines


KIND_WORDS = {"longer": "longer won", "shorter": "shorter won", "ties": "about equally long"}


def ends(share: Interval) -> str:
    """A share's interval as `61.2 .. 70.4 %`."""
    return f"{100 * share.low:.1f} .. {100 * share.high:.1f} %" if share.low == share.low else ""
