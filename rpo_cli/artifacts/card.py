"""A model's card: what it is, what it was made of, what it measures, how to use it and make it again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rpo_cli.artifacts.files import publish
from rpo_cli.artifacts.manifest import Manifest
from rpo_cli.artifacts.origin import Origin, as_yaml
from rpo_cli.objectives import OBJECTIVES
from rpo_cli.recipes import RECIPES
from rpo_cli.recipes.schema import preferred

CARD = "README.md"
PAPER = (
    "Fisch et al., *Robust Preference Optimization through Reward Model Distillation*, TMLR 2025, "
    "[arXiv:2405.19316](https://arxiv.org/abs/2405.19316)"
)
SYMBOLS = (
    "dh is the difference of the log-ratios log pi_theta - log pi_ref of the chosen and the rejected "
    "response, dr that of a teacher's rewards, KL the forward KL(pi_ref || pi_theta)."
)
IS = {
    "sft": "A language model fine-tuned on written responses.",
    "reward": "A Bradley-Terry reward model: one logit, read at the EOS that ends prompt and response.",
    "warm": "A reward model with the mean weights of an ensemble: one logit, read at the EOS.",
}
REWARDS = ("reward", "warm")
# Measures of one name in training and in evaluation, which are of two directions.
MEANT = {
    "kl_to_reference": "kl_to_reference, KL(pi_theta \\|\\| pi_ref)",
    "ended/kl_to_reference": "ended/kl_to_reference, KL(pi_ref \\|\\| pi_theta)",
}
# What held-out pairs a number of a policy, or of a reward model, is of.
HALVES = {
    "": "held-out pairs",
    "validation": "held-out pairs that may have chosen strengths and checkpoints",
    "test": "held-out pairs that chose no strength or checkpoint",
}
SIDES = {"longer": "the longer won", "shorter": "the shorter won", "ties": "neither is longer"}
WORTH = {"longer": "the longer is worth more", "shorter": "the shorter is", "ties": "neither is longer"}
SEQ = "AutoModelForSequenceClassification"
TEMPLATE = """\
# {name}

{what} Made by rpo {rpo}.

{settings}
## Data

{data}
## Results

{results}
## How to use it

{use}
## How to make it again

`{recipes}` beside this file has every recipe behind the model, resolved. With rpo {rpo}, and on
the same kind of machine,

```console
$ rpo rebuild README.md
```

makes the same weights again, where the inputs are the same. It was made on {device}, with {versions}.

## Licence

Not filled in: whoever publishes this model names its licence (`license:` in the head of this file), which
that of the base model and of the data may restrict.
"""


def write_card(
    folder: Path,
    place: str,
    manifest: Manifest,
    origin: Origin,
    tables: Sequence[Manifest],
    evaluations: Sequence[Manifest] = (),
    *,
    adapter: bool,
    **more: object,
) -> None:
    """Write README.md and rpo_recipe.yaml into a model's folder.

    place: what loads the model, a path or a name of the hub. tables: of the data below it. evaluations: of
    the model. adapter: the folder holds an adapter alone. more: further keys of the head's `rpo:`.
    """
    from huggingface_hub import ModelCardData

    kind, recipe = manifest["kind"], manifest["recipe"]
    objective = [recipe["objective"]] if "objective" in recipe else []
    made_by = {"rpo": manifest["rpo"], "versions": manifest["versions"], "device": manifest["device"]}
    kept = ("target", "member", "inputs", "hub")
    made = {name: value for name, value in origin.items() if name in kept}
    bases = [name for name in origin["base"] if not adapter or name == origin["start"]]
    head = ModelCardData(
        base_model=[name for name in bases if name not in origin["inputs"]] or None,
        datasets=[name for name in origin["datasets"] if name not in origin["inputs"]] or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification" if kind in REWARDS else "text-generation",
        tags=["rpo", "preference-optimization" if objective else kind, *objective, "trl"],
        rpo={**made, "key": manifest["key"], **made_by, **more},
    )
    text = TEMPLATE.format(
        name=origin["target"],
        what=_what(manifest),
        rpo=manifest["rpo"],
        settings=_table(("setting", "value"), _settings(manifest, origin, adapter)),
        data="\n".join([*_data(origin, tables), ""]),
        results="\n".join(_results(manifest, evaluations)),
        use="\n".join([*_use(kind, place, origin, adapter), ""]),
        recipes=RECIPES,
        device=manifest["device"],
        versions=", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
    )
    publish(folder / CARD, f"---\n{head.to_yaml()}\n---\n\n{text}".encode())
    publish(folder / RECIPES, as_yaml(origin).encode())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join([*lines, ""])


def _what(manifest: Manifest) -> str:
    if (name := manifest["recipe"].get("objective")) is None:
        return IS[manifest["kind"]]
    objective = OBJECTIVES[name]
    source = PAPER if objective.source == "Fisch et al. 2025" else objective.source
    return (
        f"A language model trained on preference pairs with **{name}**: {objective.summary}. Its loss is\n\n"
        f"    {objective.equation}\n\n({source}). {SYMBOLS}"
    )


def _settings(manifest: Manifest, origin: Origin, adapter: bool) -> Iterator[tuple[str, str]]:
    """What decides the result, in the order in which one would ask."""
    recipe = manifest["recipe"]
    yield "base model", f"`{origin['base'][0]}`" if origin["base"] else "none, trained from scratch"
    if "objective" in recipe:
        strength = OBJECTIVES[recipe["objective"]].strength
        yield strength, f"{recipe[strength]:g}"
        for key in ("gamma", "gamma_end", "kl_estimator", "ensemble_min", "calibration", "teacher"):
            if recipe.get(key) is not None:
                yield key, str(recipe[key])
        yield from _teachers(recipe)
    if "rho" in recipe:
        rho = recipe["rho"]
        bias_on = origin["recipes"].get(Path(recipe["data"]).stem, {}).get("bias_on")
        drawn = "the pairs as they are"
        if rho is not None:
            drawn = f"in {rho:g} of the pairs {preferred(bias_on)} is chosen"
        yield "bias rho" if bias_on else "length bias rho", drawn
    for key, value in manifest["options"].items() if manifest["kind"] == "reward" else ():
        yield "member of the ensemble", f"{'b' if key == 'member' else key} = {value:g}"
    if manifest["kind"] == "warm":
        yield "mean of", f"{manifest['metrics']['members']} members, each trained as follows"
    batch = recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"]
    metrics = manifest["metrics"]
    steps = metrics.get("steps", "all")
    yield "training", f"{steps} steps of {batch} rows, learning rate {recipe['learning_rate']:g}"
    if "selected/step" in metrics:
        kept = sum(name.startswith("kept/") for name in metrics)
        yield "checkpoint", f"step {metrics['selected/step']}, the best of {kept} on validation"
    if "rows" in metrics:
        yield "rows", f"{metrics['rows']:,}; {metrics.get('dropped', 0):,} left out, longer than max_length"
    if recipe["use_peft"]:
        bits = ", base in 4 bits" if recipe.get("load_in_4bit") else ""
        yield (
            "LoRA",
            f"r = {recipe['lora_r']}, alpha = {recipe['lora_alpha']}{bits}{'' if adapter else '; merged'}",
        )
    yield "seeds", ", ".join(f"{name} {seed}" for name, seed in manifest["seeds"].items())


def _teachers(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a policy was taught by; a recipe has the keys of those alone."""
    if (named := recipe.get("reward_model")) is not None:
        member = recipe.get("reward_member")
        yield "reward model", f"`{named}`{'' if member is None else f', member b = {member:g}'}"
    if (members := recipe.get("ensemble")) is not None:
        each = [members] if isinstance(members, str) else members
        yield "ensemble", ", ".join(map(_teacher, each))
    if columns := recipe.get("margin_columns"):
        yield "scores", ", ".join(map(_scores, columns))


def _teacher(listed: str | Mapping[str, Any]) -> str:
    """One entry of an ensemble's list."""
    if isinstance(listed, str):
        return f"`{listed}`"
    return f"members of `{listed['members']}`" if "members" in listed else _scores(listed["columns"])


def _scores(columns: Sequence[str]) -> str:
    return " less ".join(f"`{name}`" for name in columns)


def _data(origin: Origin, tables: Sequence[Manifest]) -> Iterator[str]:
    """What was read, by content, and how many rows were read and left out."""
    for place, content in origin["inputs"].items():
        yield f"- `{place}`: content `{content}`, as `rpo rebuild` compares it"
    for kind, names in origin["hub"].items():
        for name, commit in names.items():
            yield f"- {kind.removesuffix('s')} `{name}` of the hub: commit `{commit}`"
    for table in tables:
        counts = {n: v for n, v in table["metrics"].items() if v and type(v) is int}
        if counts:
            yield f"- {table['kind']}: " + ", ".join(f"{name} {value:,}" for name, value in counts.items())


def _results(manifest: Manifest, evaluations: Sequence[Manifest]) -> Iterator[str]:
    """Every number with its interval where it has one; of training the last ones."""
    if not evaluations and "objective" in manifest["recipe"]:
        yield "Not evaluated when this card was written. In training:\n"
    rows = [] if evaluations else _measured("in training", manifest)
    for evaluation in evaluations:
        rows += _measured(_where(evaluation), evaluation)
    if (seen := manifest["metrics"].get("held_out_shared_prompts")) is not None:
        yield f"{seen:,} of the held-out pairs share their prompt with pairs that were trained on.\n"
    yield _table(("where", "measure", "value", "95 % interval"), rows)


def _where(evaluation: Manifest) -> str:
    """What an evaluation measured on, in words."""
    recipe, metrics = evaluation["recipe"], evaluation["metrics"]
    if evaluation["kind"] == "held_out":
        return f"{metrics['rows']} held-out pairs, validation and test a half each"
    if evaluation["kind"] == "judge":
        return f"judge {recipe['model']}"
    return f"{metrics.get('prompts', '')} {recipe['split']} prompts".strip()


def _measured(where: str, of: Manifest) -> list[tuple[str, str, str, str]]:
    """Where it was measured, name, value and interval of each number, those with an interval first."""
    from rpo_cli.statistics import wilson  # with numpy

    rows, metrics = [], of["metrics"]
    for name, value in metrics.items():
        if not isinstance(value, float) or name.endswith(("_low", "_high")):
            continue
        low, high = (metrics.get(f"{name.removesuffix('_mean')}_{end}") for end in ("low", "high"))
        pairs, count = _pairs_of(of["kind"], name, metrics)
        if count == 0:  # an empty half, for which the number of all pairs stands
            continue
        if count and "accuracy" in name:
            _, low, high = wilson(value * count, count)
        ends = "" if low is None else f"{low:.4g} to {high:.4g}"
        rows.append((f"{count:,} {pairs}" if count else where, MEANT.get(name, name), f"{value:.4g}", ends))
    return sorted(rows, key=lambda row: not row[3])


def _pairs_of(kind: str, name: str, metrics: Mapping[str, Any]) -> tuple[str, int | None]:
    """Which held-out pairs a number is of, and how many; None: of others, or nothing counts them."""
    if kind == "held_out":
        half = name.rpartition("/")[0]
        return HALVES[half], metrics.get(f"{half}/rows" if half else "rows")
    if name == "monitor/accuracy":
        return "held-out pairs, in training", metrics.get("monitor/pairs")
    measure, _, side = name.partition("/")
    if measure not in ("held_out_accuracy", "held_out_utility_accuracy"):
        return "", None
    told = measure.replace("accuracy", "rows")
    sides = [metrics[each] for each in metrics if each.startswith(f"{told}/")]
    which = f" where {(WORTH if 'utility' in measure else SIDES)[side]}" if side else ""
    return f"held-out pairs{which}", metrics.get(f"{told}/{side}" if side else told) or sum(sides) or None


def _use(kind: str, place: str, origin: Origin, adapter: bool) -> Iterator[str]:
    auto = SEQ if kind in REWARDS else "AutoModelForCausalLM"
    more = ", num_labels=1" if kind in REWARDS else ""
    yield "```python"
    yield f"from transformers import {auto}, AutoTokenizer\n"
    yield f'tokenizer = AutoTokenizer.from_pretrained("{place}")'
    if adapter:
        yield "from peft import PeftModel\n"
        yield f'base = {auto}.from_pretrained("{origin["start"]}"{more})'
        yield f'model = PeftModel.from_pretrained(base, "{place}")'
    else:
        yield f'model = {auto}.from_pretrained("{place}")'
    yield "```"
    if adapter and origin["start"] not in origin["base"]:
        yield f"\n`{origin['start']}` is a model that was trained before, and has a card of its own."
    if kind not in REWARDS and not adapter:
        yield f"\nvLLM serves the same folder: `vllm serve {place}`."
