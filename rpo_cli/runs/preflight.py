"""What a plan needs, asked for before the first hour is spent, by `rpo recipe check` and `--dry-run` as well.

Nothing heavy is imported, but to name the modules of a model from scratch, or to see an odd one built on the
meta device; `check_models`, which no dry run asks, sees each one built.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rpo_cli import devices
from rpo_cli.artifacts import External, Stage, Workspace, need_answer, positions_of, wandb_mode
from rpo_cli.errors import BadInput
from rpo_cli.recipes import RecipeError, schema, suggest
from rpo_cli.recipes.draft import stands
from rpo_cli.recipes.hints import ELSEWHERE
from rpo_cli.runs import local_models as models
from rpo_cli.runs.first_rows import data_below, first_row, hold_messages, wrapped
from rpo_cli.runs.todo import Todo
from rpo_cli.stages.data.sources.transcripts import are_dialogues, is_transcript, turns_of
from rpo_cli.text import first_line

# What Trainer imports for an optimiser, by its name; those without any ask for arguments that recipes lack.
OPTIMISERS = (
    ("adamw_torch_[48]bit", "torchao"), ("adamw_torch_xla", "torch_xla"),
    ("adamw_torch_npu_fused", "torch_npu"), ("adamw_anyprecision", "torchdistx"),
    ("(paged_|lion|ademamix|adamw_8bit|adamw_bnb|rmsprop_bnb).*", "bitsandbytes"),
    ("(ada)?lomo", "lomo_optim"), ("grokadamw", "grokadamw"), ("schedule_free.*", "schedulefree"),
    ("stable_adamw", "optimi"), ("(galore|apollo).*", None),
)  # fmt: skip
ATTENTION = {
    "eager": None, "sdpa": None, "flex_attention": None, "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface", "flash_attention_4": "flash_attn",
}  # fmt: skip
# The key that names each of a stage's models, where it is not model_name_or_path.
NAMED = {
    ("relabel", "model"): "reward_model",
    ("evaluate", "oracle"): "oracle",
    ("evaluate", "policy"): "baseline",
}
# The input of a stage that it samples from.
SAMPLES = {"evaluate": "policy", "samples": "model", "pairs": "model"}
# The inputs of a stage that are reward models.
REWARDS = {"relabel": ("model",), "scores": ("model",), "evaluate": ("oracle",)}


def check(todo: Sequence[Todo], workspace: Workspace, jobs: int = 1) -> None:
    """Refuse a plan that would stop in the middle on this machine: BadInput, one line."""
    devices.check([item.stage.recipe for item in todo], jobs)
    if lacking := unready([item.stage for item in todo], workspace):
        raise BadInput(lacking[0])


def check_models(todo: Sequence[Todo]) -> None:
    """Refuse a plan whose models from scratch transformers would not make: RecipeError. Imports torch."""
    made = [item.stage for item in todo]
    scratch = [stage for stage in made if any(models.base_of(stage) is base for base in made)]
    if found := [line for stage in scratch for line in _from_scratch(stage)]:
        raise RecipeError(list(dict.fromkeys(found)))


def unready(stages: Sequence[Stage], workspace: Workspace) -> list[str]:
    """What these stages need that is not installed here, or a judge's key that is not set: a line each."""
    recipes, found = [stage.recipe for stage in stages], []
    computing = [stage.recipe for stage in stages if schema.KINDS[stage.kind].needs_model]
    if any(recipe.device == "xla" for recipe in computing) and (why := devices.lacking_xla()) is not None:
        found.append(why)
    if (
        any(isinstance(r, schema.EvaluateRecipe) and r.sampler == "vllm" for r in recipes)
        and importlib.util.find_spec("vllm") is None
    ):
        found.append(
            "sampler: vllm needs the extra `vllm`: pip install 'rpo-cli[vllm]', or set sampler: transformers"
        )
    for key, package, extra in (("use_peft", "peft", "lora"), ("load_in_4bit", "bitsandbytes", "qlora")):
        if any(getattr(r, key, False) for r in recipes) and not _installed(package):
            found.append(f"{key} needs the extra `{extra}`: pip install 'rpo-cli[{extra}]'")
    for recipe in (each for each in recipes if isinstance(each, schema.JudgeRecipe)):
        from rpo_cli.stages.judge.client import api_key
        from rpo_cli.stages.judge.verdicts import VERDICTS

        # Where verdicts are kept every question may have its answer already; then no key is needed.
        if not (workspace.root / VERDICTS).is_file():
            try:
                api_key(recipe)
            except BadInput as error:
                found.append(str(error))
    return list(dict.fromkeys(found))


def problems(stages: Sequence[Stage]) -> list[str]:
    """Why these stages cannot be made, as far as recipes and local files say: a line each, with its place."""
    found = (line for stage in stages for line in _problems(stage))
    return list(dict.fromkeys(found))


def notes(stages: Sequence[Stage]) -> list[str]:
    """What of their recipes has no effect, what is learnt without a template, what goes out: a line each."""
    found = [line for stage in stages for line in (*_without_effect(stage), *_without_template(stage))]
    for stage in stages:
        if isinstance(judge := stage.recipe, schema.JudgeRecipe) and judge.api_key_env is not None:
            found.append(f"judge: the key in {judge.api_key_env} goes to {judge.host}")
    return list(dict.fromkeys(found))


def tracking(wanted: bool) -> list[str]:
    """What is in the way of runs of Weights & Biases, if they are asked for: a line."""
    if not wanted:
        return []
    mode, why = wandb_mode()
    missing = "" if _installed("wandb") else "; wandb is not installed"
    try:
        if mode == "online" and not missing:
            need_answer()
    except OSError as error:
        missing = f"; not reachable now: {first_line(error)}; where it stays so, runs are kept offline"
    return [f"Weights & Biases: {mode}, {why}{missing}"] if mode != "online" or missing else []


def absent(stages: Sequence[Stage]) -> list[str]:
    """Models of the hub that are not in its cache where HF_HUB_OFFLINE forbids to ask: a line each."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE"):
        return []
    read = (node for stage in stages for node in stage.inputs.values() if isinstance(node, External))
    missing = {node.reference for node in read if node.use == "model" and models.folder_of(node) is None}
    return [f"HF_HUB_OFFLINE is set, and the hub's cache lacks {name}" for name in sorted(missing)]


def _at(stage: Stage, *keys: str) -> str:
    return stands(stage.places, stage.source, keys)


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _without_effect(stage: Stage) -> Iterator[str]:
    """Keys without effect that the recipe's own file or the command line sets: a base's are for others too.

    Where an option takes the effect away, as in a figure's variants, the file is not to blame.
    """
    idle = dict(stage.recipe.idle())
    if stage.kind in schema.MODELS:
        seeds = schema.KINDS[stage.kind].seeds
        idle |= {(f"{name}_seed",): "stage" for name in schema.PURPOSES if name not in seeds}
    if stage.kind == "reward" and getattr(stage.inputs["data"], "kind", None) != "splits":
        idle["rho",] = "data"
    for keys, decides in idle.items():
        place, decided = stage.places.get(keys), stage.places.get((decides,))
        in_file = place is not None and place[0] == stage.source and not isinstance(decided, str)
        again = any(keys[-1:] == other[2:] and stage.places.get(other) == place for other in idle)  # by_rho's
        if (isinstance(place, str) or in_file) and not (again and len(keys) == 1):
            said = f"{_at(stage, *keys)}: no effect with {decides}: {_plain(getattr(stage.recipe, decides))}"
            yield f"{said}; {ELSEWHERE[key]}" if (key := str(keys[-1])) in ELSEWHERE else said


def _without_template(stage: Stage) -> Iterator[str]:
    """That a chat model learns from plain text as it stands, where the data recipe says nothing of it.

    Seen is no more than `first_row`: what a first row does not show, and data of the hub, have no note.
    """
    data = data_below(stage)
    if stage.kind not in ("sft", "policy") or data is None or ("prompt_format",) in data.places:
        return
    folder = models.folder_of(models.base_of(stage))
    if folder is None or not models.has_chat_template(folder) or (row := first_row(data)) is None:
        return
    prompt, chosen = row.get("prompt"), row.get("chosen", row.get("completion"))
    if prompt is None:
        plain = are_dialogues(chosen, row.get("rejected"))
    else:
        plain = isinstance(prompt, str) and isinstance(chosen, str)
        plain = plain and (not is_transcript(prompt) or turns_of(prompt, [chosen]) is not None)
    if plain:
        how = "`prompt_format: chat` writes it with the template, `raw` says that this is meant"
        at = _at(data, "dataset" if ("dataset",) in data.places else "files")
        yield f"{at}: plain text, learnt as it stands, and {folder} has a chat template; {how}"


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _problems(stage: Stage) -> Iterator[str]:
    recipe = stage.recipe
    if isinstance(recipe, schema.TrainingRecipe):
        if (why := _optimiser(recipe.optim)) is not None:
            yield f"{_at(stage, 'optim')}: {why}"
        yield from _adapters(stage, recipe)
    if (settings := models.settings_of(stage)) is not None and models.doubtful(settings):
        yield from _from_scratch(stage)
    if isinstance(recipe, schema.ModelSource):
        if (why := _attention(recipe)) is not None:
            yield f"{_at(stage, 'attn_implementation')}: {why}"
        yield from _models(stage, recipe)
    if isinstance(recipe, schema.DataRecipe) and recipe.prompt_format == "chat":
        folder = models.folder_of(stage.inputs["tokenizer"])
        if folder is not None and folder.is_dir() and not models.has_chat_template(folder):
            yield f"{_at(stage, 'tokenizer')}: {folder} has no chat template, which prompt_format: chat needs"


@cache
def _optimiser(name: str) -> str | None:
    """Why Trainer would not take an optimiser of this name; None: it would."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("training_args.py").read_text()
    declared = re.search(r"class OptimizerNames\(.*?\n\n\n", text, re.DOTALL)
    known = re.findall(r'^    \w+ = "(\w+)"', declared[0], re.MULTILINE) if declared else []
    if known and name not in known:
        return f"transformers has no optimiser {name!r}{suggest(name, known)}"
    needed = next((package for pattern, package in OPTIMISERS if re.fullmatch(pattern, name)), "")
    if needed is None:
        return f"{name} needs optim_target_modules, for which recipes have no key"
    return f"{name} needs {needed}, which is not installed" if needed and not _installed(needed) else None


def _attention(recipe: schema.ModelSource) -> str | None:
    """Why transformers would not take an attention of this name; None: it would."""
    name = recipe.attn_implementation
    if name is None:
        return None
    if "/" in name:  # a kernel from the hub
        return None if _installed("kernels") else f"{name} needs kernels, which is not installed"
    if name not in ATTENTION:
        return f"transformers has no attention {name!r}{suggest(name, ATTENTION)}"
    package = ATTENTION[name]
    if package is None:
        return None
    if recipe.device == "cpu":
        return f"{name} needs a GPU, and device is cpu; sdpa is there on both"
    there = _installed(package) or _installed("kernels")
    return None if there else f"{name} needs {package}, which is not installed; sdpa needs nothing"


def _from_scratch(stage: Stage) -> Iterator[str]:
    """Why transformers makes no model of the settings that a stage's model comes from, or one too small."""
    base = models.base_of(stage)
    if not isinstance(base, Stage) or (settings := models.settings_of(base)) is None:
        return
    if isinstance(model := models.on_paper(settings), BadInput):
        yield f"{_at(base, 'model_config_kwargs')}: {str(model).partition(': ')[2]}"
    elif isinstance(stage.recipe, schema.ModelSource):
        yield from _too_long(stage, stage.recipe, positions_of(model.config))


def _too_long(stage: Stage, recipe: schema.ModelSource, positions: int | None) -> Iterator[str]:
    if positions is not None and recipe.max_length > positions:
        yield f"{_at(stage, 'max_length')}: {recipe.max_length} exceeds the model's {positions} positions"


def _adapters(stage: Stage, recipe: schema.TrainingRecipe) -> Iterator[str]:
    """Names of modules to adapt that the model has not got: peft takes a pattern whole, or a name's end."""
    wanted = recipe.lora_target_modules
    if not recipe.use_peft or wanted == "all-linear":
        return
    if "lm_head" in wanted:
        yield f"{_at(stage, 'lora_target_modules')}: lm_head: TRL trains no adapter of it; leave it out"
        return
    modules = models.modules_of(stage)
    if isinstance(wanted, str):
        try:
            absent = [] if any(re.fullmatch(wanted, module) for module in modules) else [wanted]
        except re.error as error:
            yield f"{_at(stage, 'lora_target_modules')}: {wanted!r} is no regular expression: {error}"
            return
    else:
        absent = [name for name in wanted if not any(f".{module}".endswith(f".{name}") for module in modules)]
    if absent and modules:
        last = sorted({module.rpartition(".")[2] for module in modules})
        known = ", ".join(last)
        yield f"{_at(stage, 'lora_target_modules')}: the model has no module {absent[0]}; it has {known}"


def _models(stage: Stage, recipe: schema.ModelSource) -> Iterator[str]:
    """What the models that a stage reads lack: positions, padding, one reward."""
    read = {
        name: node for name in ("model", "policy", "oracle") if (node := stage.inputs.get(name)) is not None
    }
    if models.settings_of(stage) is not None:
        read["model"] = stage
    for name, node in read.items():
        config = models.config_of(node)
        # A model of other tokens, a reward model, has rows of its own length.
        own = name in REWARDS.get(stage.kind, ()) and _reads_other_tokens(stage, node, read)
        yield from _too_long(stage, recipe, None if own or config is None else positions_of(config))
        if name == SAMPLES.get(stage.kind) and config is not None:
            yield from _too_short_to_sample(stage, config)
        if isinstance(node, External):
            yield from _external(stage, recipe, name, node)
            folder = models.folder_of(node) if own and stage.kind != "relabel" else None
            if folder is not None and not models.has_chat_template(folder) and hold_messages(stage):
                at = _at(stage, NAMED.get((stage.kind, name), _teacher(stage)))
                lacks = f"{folder} has no chat template, and the rows are conversations"
                yield f"{at}: {lacks}{'; prompt_format: raw takes plain text as it stands' * wrapped(stage)}"


def _too_short_to_sample(stage: Stage, config: Mapping[str, Any]) -> Iterator[str]:
    """Samples that no model of this config has room for, behind a prompt of one token."""
    longest = positions_of(config) or config.get("max_position_embeddings")
    wanted = getattr(stage.recipe, "max_new_tokens", 0)
    if isinstance(longest, int) and wanted >= longest:
        yield f"{_at(stage, 'max_new_tokens')}: {wanted} leave no room for a prompt in {longest} positions"


def _reads_other_tokens(stage: Stage, node: models.Node, read: Mapping[str, models.Node]) -> bool:
    """Whether a reward model has another tokenizer than the policy, as far as is known here."""
    pad, policy = getattr(stage.recipe, "pad_token", None), read.get("policy")
    found = [None if each is None else models.tokens_of(each) for each in (node, policy)]
    one, other = (None if each is None else each.padded(pad) for each in found)
    return policy is None or (one is not None and other is not None and one.differs(other) is not None)


def _teacher(stage: Stage) -> str:
    return "ensemble" if ("ensemble",) in stage.places else "reward_model"


def _external(stage: Stage, recipe: schema.ModelSource, name: str, node: External) -> Iterator[str]:
    """What a model from elsewhere lacks."""
    key = _teacher(stage) if (stage.kind, name) == ("scores", "model") else "model_name_or_path"
    at = _at(stage, NAMED.get((stage.kind, name), key))
    folder, bits = models.folder_of(node), getattr(recipe, "load_in_4bit", False)
    if folder is not None and (why := models.no_merge(folder, four_bits=bits)) is not None:
        yield f"{at}: {why}"
    tokens = models.tokens_of(node)
    rewards = name in REWARDS.get(stage.kind, ())
    if tokens is not None and recipe.pad_token is not None and recipe.pad_token == tokens.eos and not rewards:
        yield f"{_at(stage, 'pad_token')}: is the EOS of {tokens.folder}; leave the key out"
    label = getattr(recipe, "reward_label", None)
    if rewards and (why := models.no_reward(node, label, "reward_label:")) is not None:
        yield f"{at if label is None else _at(stage, 'reward_label')}: {why}"
