"""Whether the prompts of a plan's evaluations fit their models, asked before the first of them is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from rpo_cli.artifacts import Stage, Workspace, positions_of, walk, where
from rpo_cli.errors import BadInput
from rpo_cli.recipes import schema
from rpo_cli.runs import local_models as models


def before_training(planned: Sequence[Stage], workspace: Workspace) -> Callable[[Stage], None]:
    """What refuses a stage that trains where an evaluation that rests on it would stop at its prompts.

    Of evaluations with the same prompts, model at the start and limits one is asked, as soon as its prompts
    are there.
    """
    waiting: dict[tuple[object, ...], tuple[Stage, set[str]]] = {}
    for stage in planned:
        if isinstance(recipe := stage.recipe, schema.EvaluateRecipe) and stage.kind == "evaluate":
            base, data = models.base_of(stage.inputs["policy"]), cast(Stage, stage.inputs["data"])
            alike = (data.path, where(base), recipe.split, recipe.max_length, recipe.max_new_tokens)
            below = waiting.setdefault(alike, (stage, set()))[1]
            below |= {needed.path for needed in walk([stage])}

    def check(stage: Stage) -> None:
        for alike, (evaluation, below) in list(waiting.items()):
            if stage.path not in below or not schema.KINDS[stage.kind].trains:
                continue
            data = cast(Stage, evaluation.inputs["data"])
            made = workspace.manifest(data.path)
            if made is None or made["key"] != data.key:
                continue
            if (why := _why_none(evaluation, data, workspace)) is not None:
                raise BadInput(f"{why}; the evaluation would stop there, so nothing is trained for it")
            del waiting[alike]

    return check


def _why_none(evaluation: Stage, data: Stage, workspace: Workspace) -> str | None:
    """Why an evaluation would stop at its prompts; None: it would not, or that is not known here."""
    from rpo_cli.models import load_tokenizer, need_room
    from rpo_cli.stages.data.rows import find_rows
    from rpo_cli.stages.data.token_cache import TokenCache

    recipe = cast(schema.EvaluateRecipe, evaluation.recipe)
    base, table = models.base_of(evaluation.inputs["policy"]), f"prompts_{recipe.split}"
    folder = models.folder_of(base) or workspace.root / data.path / "tokenizer"
    if not folder.is_dir() or not (workspace.root / data.path / f"{table}.parquet").is_file():
        return None
    try:
        tokenizer = load_tokenizer(folder, recipe, need_pad=False)
    except Exception:  # whatever it is, the stage that loads it says what is wrong
        return None
    rows = find_rows([workspace.root / data.path], table, TokenCache(workspace.root))
    rows = rows.take(range(len(rows))[: recipe.num_prompts]).one_each()
    config = models.config_of(base) or {}
    room = positions_of(config) or config.get("max_position_embeddings")
    what = f"{evaluation.source}: {table}"
    try:
        kept = rows.tokens((), tokenizer, what, recipe.max_length, recipe.overlong)
        lengths = [len(row.prompt_ids) for row in kept]
        # An oracle may leave out prompts that are too long for itself.
        longest = min(lengths) if "oracle" in evaluation.inputs else max(lengths)
        if isinstance(room, int) and recipe.sampler == "transformers":
            need_room(longest, recipe.max_new_tokens, room)
    except BadInput as error:
        return str(error) if str(error).startswith(what) else f"{what}: {error}"
    return None
