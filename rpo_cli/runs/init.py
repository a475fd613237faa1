"""`rpo init`: a suite in one file for somebody's own pairs, with what it must say read off the data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rpo_cli import devices
from rpo_cli.artifacts import External, Stage, Workspace
from rpo_cli.errors import BadInput
from rpo_cli.models import load_tokenizer
from rpo_cli.objectives import OBJECTIVES
from rpo_cli.recipes import Loaded, RecipeError, check_suite, load, schema
from rpo_cli.recipes.draft import anchor
from rpo_cli.recipes.whole import write_whole
from rpo_cli.runs.check import plan_problems
from rpo_cli.runs.init_options import (
    columns_named,
    longest_of,
    objectives_of,
    of_an_option,
    of_columns,
    path_or_name,
    two_columns,
)
from rpo_cli.runs.inspect import reaching_over, said_of_boundary
from rpo_cli.runs.memory import memory_of
from rpo_cli.runs.options import OwnSuite
from rpo_cli.runs.own_suite import BIASES, Fit, Found, Line, Suite, prompt_lines
from rpo_cli.runs.planner import Planner
from rpo_cli.runs.preflight import unready
from rpo_cli.runs.session import Session
from rpo_cli.runs.sizes import Sizes
from rpo_cli.runs.suspects import POLICY, biased_in, said_of, suspects_of
from rpo_cli.stages.data.attributes import balances
from rpo_cli.stages.data.ledger import Ledger, losses
from rpo_cli.stages.data.rows import FEW, PAIR, PLACES, find_rows, read_rows
from rpo_cli.stages.data.sources.base import is_conversation
from rpo_cli.stages.data.sources.records import published_split, rows_in
from rpo_cli.stages.data.sources.transcripts import is_transcript, turns_of
from rpo_cli.stages.data.token_cache import TokenCache
from rpo_cli.stages.splits import LENGTH_MARGIN, preference_of_length
from rpo_cli.statistics import too_few
from rpo_cli.text import percent, size, unplain

SHARE, MOST_PROMPTS = 0.1, 500  # of the prompts to hold out, for validation and again for test
MANY_UNKNOWN = 0.01  # share of tokens
ROOM = 0.9  # share of the free memory that training may take


def init(session: Session, wanted: OwnSuite) -> None:
    """Write NAME.yaml, a suite for these pairs, and print its path.

    Raises:
        BadInput: the file is there, a name means nothing, or the data cannot be read.
    """
    file = Path.cwd() / f"{wanted.name}.yaml"
    if (why := unplain(wanted.name)) is not None:
        raise BadInput(f"{wanted.name!r}: {why}")
    if ":" in wanted.name:
        raise BadInput(f"{wanted.name!r}: a colon stands between a suite and its recipe; choose another name")
    if file.exists() and not wanted.overwrite:
        raise BadInput(f"{file.name}: is there already; --force writes it anew")
    objectives, scores = objectives_of(wanted), [two_columns(text) for text in wanted.scores]
    suspects = suspects_of(wanted.suspect)
    columns = columns_named(wanted)
    model = path_or_name("--model", wanted.model)
    teachers = [path_or_name("--reward-model", each) for each in wanted.reward_model]
    oracle = None if wanted.oracle is None else path_or_name("--oracle", wanted.oracle)
    if oracle is not None and oracle in teachers:
        session.say(f"warning: --oracle {wanted.oracle}: a teacher too, so it judges what learnt from it")
    data = [
        Line("stage", "data"),
        Line("source", "preference"),
        Line("dataset", path_or_name("--pairs", wanted.pairs)),
        Line("tokenizer", model, "its chat template makes text of messages"),
        Line("data_seed", 0, "of the split: every seed of a comparison holds out the same prompts"),
    ]
    if columns:
        data.append(Line("columns", columns, "what the data call them"))
    if scores:
        kept = dict.fromkeys(name for pair in scores for name in pair)
        data.append(Line("keep_columns", list(kept), "the teachers' scores"))
    if counts := {each.name: each.pattern for each in suspects if each.pattern is not None}:
        data.append(Line("counts", counts, "what is suspected, in responses: columns chosen_ and rejected_"))
    if wanted.sft is not None:
        data.append(Line("sft_dataset", path_or_name("--sft", wanted.sft)))
    prompts = None if wanted.prompts is None else path_or_name("--prompts", wanted.prompts)
    if prompts is not None and not Path(prompts).is_file():
        raise BadInput(f"--prompts {prompts}: no such file")
    place = External.named(wanted.model)
    tokenizer = load_tokenizer(Path(place.reference), revision=place.revision, need_pad=False)
    if wanted.prompt_format == "chat" and tokenizer.chat_template is None:
        raise BadInput(f"--prompt-format chat: --model {wanted.model} has no chat template")
    longest = longest_of(wanted.model)
    try:
        stage, workspace, share = _read(session, file, data)
    except BadInput as error:  # the reader's advice is for a recipe, and there is none yet
        raise BadInput(of_columns(str(error), wanted.columns)) from error
    for theirs, has in workspace.finished(stage.path)["metrics"].get("absent_columns", {}).items():
        raise BadInput(f"--columns {wanted.columns}: no row has a column {theirs} (has: {has})")
    if tokenizer.chat_template is not None and (form := _form(session, wanted, stage, workspace)) is not None:
        data.append(form)
        if form.value == "chat":
            stage, workspace = _made(session, file, "data", [*data, Line("validation_share", share)])
    found = _look(stage, workspace, tokenizer, scores)
    if prompts is not None:
        found = _asked(session, file, prompts, model, found, tokenizer)
    data.append(Line("validation_share", share, f"held out: {_held_out_prompts(found)}"))
    _tell(session, wanted, workspace.finished(stage.path)["metrics"], found, workspace.root / stage.path)
    if (biased := biased_in(found.balances)) is not None:
        session.say(f"  {biased}")
    suite = Suite(wanted, objectives, model, teachers, scores, oracle, prompts, found, longest, suspects)
    _tell_of_long(session, suite)
    trained = (suite.fitting - suite.held_out) / found.pairs
    for line in said_of(suspects, found.balances, BIASES[0], trained, suite.batch):
        session.say(f"  {line}")
    _tell_of_few(session, suite)
    fit = _fit(suite, stage, workspace, session)
    before = file.read_bytes() if file.exists() else None
    write_whole(file, suite.text(data, fit))
    if problems := _problems(file, [*objectives, *([POLICY] if suspects else [])]):
        if before is None:
            file.unlink()
        else:
            write_whole(file, before)
        raise RecipeError([of_an_option(file, problem) for problem in problems])
    print(file.name)
    session.say(f"one policy: rpo train-policy {quote(f'{file.name}:{objectives[-1]}')}{session.given}")
    session.say(f"next: rpo compare {quote(file.name)}{session.given}")


def _read(session: Session, file: Path, lines: Sequence[Line]) -> tuple[Stage, Workspace, float]:
    """The data stage of the suite, made in its workspace, and the share of prompts that it holds out.

    Of many prompts so much would be more than anybody evaluates on; then it is made again with less.
    """
    share = SHARE
    while True:
        stage, workspace = _made(session, file, "data", [*lines, Line("validation_share", share)])
        metrics = workspace.finished(stage.path)["metrics"]
        if metrics["rows/prompts_test"] <= 2 * MOST_PROMPTS or share < SHARE:
            return stage, workspace, share
        share = float(f"{SHARE * MOST_PROMPTS / metrics['rows/prompts_test']:.1g}")


def _made(session: Session, file: Path, name: str, lines: Sequence[Line]) -> tuple[Stage, Workspace]:
    """A data stage of the suite, made in its workspace."""
    values = {line.key: line.value for line in lines} | {"suite": file.stem}
    anchor(values, file.parent)
    path = file / f"{name}.yaml"
    stage = Planner(0).build(Loaded(schema.DataRecipe.model_validate(values), path, {}, (path,), {}))
    return stage, session.make([stage], file.stem)


def _form(session: Session, wanted: OwnSuite, stage: Stage, workspace: Workspace) -> Line | None:
    """The form of plain pairs for a chat model: what is asked for, else its own unless the prompts have one.

    None: they are messages; of messages and plain text together the latter stays as it is, unless asked for.
    """
    pairs = find_rows([workspace.root / stage.path], "pairs", TokenCache(workspace.root))
    if pairs.talks:
        asked = Line("prompt_format", "chat", "a plain prompt is the user's message, too")
        return asked if wanted.prompt_format == "chat" else None
    prompts = pairs.texts("prompt")
    if wanted.prompt_format == "raw":
        return Line("prompt_format", "raw", "text as it stands; chat: in the model's chat template")
    if wanted.prompt_format is None and 2 * sum(map(_is_marked, prompts)) > len(prompts):
        what = "prompts have marks of a template or a transcript"
        how = "they are taken as they stand, without the model's chat template"
        session.say(f"warning: --pairs {wanted.pairs}: {what}: {how}")
        return Line("prompt_format", "raw", f"{what}: they are taken as they stand")
    how = "--prompt-format raw takes it as it stands"
    session.say(f"{wanted.pairs}: plain text, which the model's chat template makes messages of; {how}")
    return Line("prompt_format", "chat", "a prompt is the user's message; raw: text as it stands")


def _is_marked(prompt: str) -> bool:
    """Whether a chat template would write a written conversation once more; dialogues are taken apart."""
    return is_transcript(prompt) and turns_of(prompt) is None


def _asked(
    session: Session, file: Path, prompts: str, model: str, found: Found, tokenizer: PreTrainedTokenizerBase
) -> Found:
    """What was found, with the prompts that are given to evaluate on: in the pairs' form."""
    row = next((row for _, row in rows_in(Path(prompts), "prompts_test", Ledger(), {})), None)
    if isinstance(row, dict) and is_conversation(row.get("prompt")) and not found.told:
        raise BadInput(
            f"--prompts {prompts}: messages, where the pairs are plain text: give both in one form"
        )
    lines = prompt_lines(prompts, model if found.told else None)
    stage, workspace = _made(session, file, "prompts", lines)
    rows = find_rows([workspace.root / stage.path], "prompts_test", TokenCache(workspace.root))
    asked = np.array([len(row.prompt_ids) for row in rows.tokens((), tokenizer, "prompts")])
    session.say(f"{prompts}: {len(asked)} prompts to evaluate on, the longest of {asked.max()} tokens")
    longest = max(found.longest_prompt, int(asked.max()))
    return replace(found, asked=asked, longest_prompt=longest)


def _look(
    stage: Stage, workspace: Workspace, tokenizer: PreTrainedTokenizerBase, scores: Sequence[Sequence[str]]
) -> Found:
    """The numbers that the recipe depends on."""
    metrics = workspace.finished(stage.path)["metrics"]
    folder = workspace.root / stage.path
    pairs = find_rows([folder], "pairs", TokenCache(workspace.root))
    rows = pairs.tokens(PAIR, tokenizer, "pairs")
    over = reaching_over(pairs, PAIR, rows, tokenizer)
    numbers = [pairs.numbers(columns) for columns in scores]
    responses = np.array([len(response) for row in rows for response in row.responses])
    said = np.concatenate([response for row in rows for response in row.responses])
    lengths = np.array([[len(response) for response in row.responses] for row in rows])
    longer = preference_of_length(lengths[:, 0], lengths[:, 1], LENGTH_MARGIN)
    return Found(
        read=metrics["records/pairs"],
        pairs=len(rows),
        prompts={name: metrics[f"rows/prompts_{name}"] for name in ("validation", "test")},
        tokens=np.array([row.longest for row in rows]),
        responses=responses,
        unknown=_unknown(said, tokenizer),
        told=pairs.talks,
        longest_prompt=max(len(row.prompt_ids) for row in rows),
        boundary=said_of_boundary(float(over.mean()), len(over)) if over.any() else "",
        margins=[values[:, 0] - values[:, 1] for values in numbers],
        balances=balances(pairs, longer, {name for each in scores for name in each}),
    )


def _unknown(said: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> float:
    """The share of tokens that stand for what a tokenizer does not know; some have none for it alone."""
    others = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id)
    unknown = tokenizer.unk_token_id
    return 0.0 if unknown is None or unknown in others else float((said == unknown).mean())


def _held_out_prompts(found: Found) -> str:
    return f"{found.prompts['validation']} prompts for validation, {found.prompts['test']} for test"


def _who_chose(tables: Path) -> str:
    """What held the prompts out: files that are named for it, else a hash of the prompt."""
    named = []
    for name in ("validation", "test"):
        places = tables / PLACES / f"prompts_{name}.parquet"
        place = read_rows(places)[0]["place"] if places.is_file() else ""
        if published_split(Path(re.sub(r":(?: row )?\d+$", "", place))) not in (None, "train"):
            named.append(name)
    if len(named) == 1:
        other = "test" if named == ["validation"] else "validation"
        return f"those for {named[0]} are a file's own, a hash of the prompt chooses those for {other}"
    return "the files' own" if named else "a hash of the prompt chooses, so always the same"


def _tell(session: Session, wanted: OwnSuite, metrics: Mapping[str, Any], found: Found, tables: Path) -> None:
    """Say what was read, left out and held out."""
    session.say(f"{wanted.pairs}: {found.read} rows read")
    for loss in losses(metrics):
        session.say(f"  {loss.count} of {loss.read} {loss.why}")
    session.say(f"  held out: {_held_out_prompts(found)}; {_who_chose(tables)}")
    session.say(f"  {found.pairs} pairs of the other prompts")
    median, most = np.quantile(found.tokens, [0.5, 0.99])
    said = f"median {median:.0f}, 99 % up to {most:.0f}, longest {found.tokens.max()}"
    session.say(f"  tokens of a prompt with its longer response: {said}")
    if found.unknown > MANY_UNKNOWN:
        what = f"its tokenizer does not know {percent(found.unknown)} of the responses' tokens"
        session.say(f"warning: --model {wanted.model}: {what}; another model may")
    if found.boundary:
        session.say(f"warning: --model {wanted.model}: {found.boundary}")


def _tell_of_long(session: Session, suite: Suite) -> None:
    """Say how many pairs the model has no positions for.

    Raises:
        BadInput: it has for none.
    """
    model, count = suite.wanted.model, suite.found.pairs
    if not suite.fitting:
        shortest = f"the shortest has {suite.found.tokens.min()} tokens with its longer response"
        raise BadInput(
            f"--model {model}: reads {suite.longest} tokens, and none of {count} pairs fits: {shortest}"
        )
    if suite.fitting < (1 - FEW) * count:
        long = f"{count - suite.fitting} of {count} pairs are longer than {suite.max_length} tokens"
        session.say(f"warning: --model {model}: {long}, and are left out of all training")


def _tell_of_few(session: Session, suite: Suite) -> None:
    """Say what few pairs to report on, few steps and a teacher's scale mean for what is written."""
    held_out = f"{suite.held_out} pairs are held out"
    if suite.oracle is None:  # and so one half of them, by their prompts' hashes, may choose strengths
        reported = suite.held_out // 2
        held_out += ", about half of them reported: the others choose strengths in a sweep"
    else:
        reported = suite.held_out
    session.say(f"  {held_out}")
    if (few := too_few(reported)) is not None:
        session.say(f"  {few}; bring more pairs, or raise held_out in {suite.wanted.name}.yaml")
    for line in (suite.few_steps, suite.scale):
        if line is not None:
            session.say(f"  {line}")


def _fit(suite: Suite, data: Stage, workspace: Workspace, session: Session) -> Fit:
    """All weights if memory does for them, else an adapter, on a GPU with the base in 4 bits if need be."""
    known = Sizes(workspace, None)
    pessimistic = any(OBJECTIVES[name].pessimistic for name in suite.objectives)
    model = External.named(suite.wanted.model)
    inputs: dict[str, Stage | External] = {"data": data, "model": model}
    inputs |= {"samples": data} if pessimistic else {}
    values = {"stage": "policy", "objective": "dpo", "max_length": suite.max_length}
    recipe = schema.PolicyRecipe.model_validate(values | {"max_new_tokens": suite.max_new_tokens})
    device = devices.choose(recipe)
    recipe = recipe.model_copy(update={"device": device.name, "dtype": device.dtype_name})
    gpus = devices.gpus([recipe])
    free = devices.free_bytes(gpus[:1]).get(gpus[0] if gpus else devices.HOST, 0)
    adapter = {"use_peft": True}
    ways: list[dict[str, bool]] = [{}, adapter, *([adapter | {"load_in_4bit": True}] if gpus else [])]
    if suite.wanted.lora is not None:
        ways = ways[1:] if suite.wanted.lora else ways[:1]
    sizes = [rows for rows in (8, 4, 2, 1) if rows <= suite.batch]
    for keys, rows in ((keys, rows) for keys in ways for rows in sizes):
        tried = recipe.model_copy(update={**keys, "per_device_train_batch_size": rows})
        stage = Stage("policy", f"{data.path}/policy", tried, data.source, inputs)
        need = sum(memory_of(stage, known).values())
        if need <= ROOM * free or (keys, rows) == (ways[-1], sizes[-1]):
            why = f"pairs at a time: about {size(need)}, {size(free)} are free on {device.name}"
            session.say(f"memory: {'an adapter' if keys else 'all weights'}, {rows} {why}")
            for line in unready([stage], workspace):
                session.say(f"warning: {line}")
            return Fit(rows, keys, why)
    raise AssertionError("the last way is taken")


def _problems(file: Path, objectives: Sequence[str]) -> list[str]:
    """What stands in the way of the suite's plans."""
    problems = check_suite(file)
    for name in objectives if not problems else ():
        problems += plan_problems(load(f"{file}:{name}"), set(), set())
    return list(dict.fromkeys(problems))
