"""What a stage needs of a device's memory: arithmetic on its recipe and on the sizes of what it reads."""

from __future__ import annotations

from typing import cast

from rpo_cli.artifacts import Stage
from rpo_cli.devices import Device
from rpo_cli.recipes import schema
from rpo_cli.runs.costs import pairs_read
from rpo_cli.runs.sizes import Model, Sizes
from rpo_cli.stages.training.arguments import graphed

TILE = 4096, 32768  # tokens and words that the head of TRL's SFTTrainer takes at once


def memory_of(stage: Stage, sizes: Sizes, *, several: bool = False) -> dict[str, float]:
    """Bytes that training a stage needs on its device, by part; several: in processes of accelerate's."""
    recipe = cast(schema.TrainingRecipe, stage.recipe)
    reward = stage.kind == "reward"
    model = sizes.model(stage, reward=reward)
    trained = _trained(recipe, model)
    parts = {
        "weights": _weights(recipe, model, frozen=recipe.use_peft),
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
    }
    if model.config is None:
        return parts
    responses = {"sft": 1, "reward": 2}.get(stage.kind, 3 if "samples" in stage.inputs else 2)
    sequences, length = responses * recipe.per_device_train_batch_size, recipe.max_length
    config = model.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    width = 2.0 if recipe.dtype == "float32" else 1.0
    each = sequences * length * hidden * width
    parts["activations"] = each * (34 + 2 * layers) if recipe.gradient_checkpointing else each * 34 * layers
    if not reward:
        parts["logits"] = _logits(stage, sizes, sequences, config.vocab_size, several)
    if isinstance(recipe, schema.PolicyRecipe) and recipe.needs_reference:
        parts["reference model"] = _weights(recipe, model, frozen=True)
    return parts


def _logits(stage: Stage, sizes: Sizes, sequences: int, words: int, several: bool) -> float:
    """Bytes of the logits of so many sequences, and of all that is as large, when gradients begin."""
    recipe = cast(schema.TrainingRecipe, stage.recipe)
    if isinstance(recipe, schema.PolicyRecipe):
        found, _ = pairs_read(stage, sizes)
        sampled = recipe.max_new_tokens if "samples" in stage.inputs else 0
        longest = min(recipe.max_length, max(found.longest, sampled))
    elif not several and (recipe.device == "xla" or _by_graphs(recipe)):
        data = stage.inputs["data"]
        longest = sizes.lengths(data, cast(schema.SFTRecipe, recipe).table, recipe.max_length, stage).longest
    else:  # TRL's head reads hidden states tile by tile
        tile = min(sequences * recipe.max_length, TILE[0]) * min(words, TILE[1])
        return (4 if recipe.dtype == "float32" else 2) * tile
    return bytes_of_a_logit(recipe, several=several) * sequences * longest * words


def bytes_of_a_logit(recipe: schema.TrainingRecipe, *, several: bool) -> float:
    """How many bytes are held for each logit when gradients begin; tests/test_logits_held.py looks.

    It and its gradient, in bfloat16 under the autocast of one process, where log-probabilities are taken
    piece by piece; of several, accelerate's makes float32 of it. Beside what a graph hands over, which is
    copied, it keeps its own logits and two places of this size. For the exact KL the policy's logits are
    float32, and beside them are the reference's, two log-softmaxes and three steps between them.
    """
    size = 4 if recipe.dtype == "float32" else 2
    read, beside = (4, 4.0) if several else (size, size)
    if isinstance(recipe, schema.PolicyRecipe) and recipe.needs_reference:
        # In rows of their own the samples are a third of all.
        read, beside = 4, size + 5 * 4 / (1 if recipe.shared_prompts else 3)
    return read + beside + (0 if several or not _by_graphs(recipe) else 4 * size)


def _by_graphs(recipe: schema.TrainingRecipe) -> bool:
    """Whether a training by one process is captured: it is meant for a GPU unless its recipe says not."""
    device = Device("cuda" if recipe.device == "auto" else recipe.device, recipe.dtype, "meant")
    shared = not isinstance(recipe, schema.PolicyRecipe) or recipe.shared_prompts
    return graphed(recipe, device, "shared" if shared else "plain")


# The models that stages read and train none of, and whether they are reward models.
READ = {
    "relabel": {"model": True}, "reference": {"model": False}, "scores": {"model": True},
    "samples": {"model": False}, "pairs": {"model": False},
    "evaluate": {"policy": False, "reference": False, "oracle": True},
}  # fmt: skip


def held_by(stage: Stage, sizes: Sizes) -> float:
    """Bytes of weights of the largest model that a stage reads, one at a time; activations come on top."""
    read = [
        sizes.model(stage.inputs[name], reward=reward)
        for name, reward in READ.get(stage.kind, {}).items()
        if stage.inputs.get(name) is not None
    ]
    return max((_weights(stage.recipe, model, frozen=True) for model in read), default=0.0)


def _trained(recipe: schema.TrainingRecipe, model: Model) -> float:
    """Trained parameters: all, or the adapter's on every linear layer but the head."""
    if not recipe.use_peft:
        return model.parameters
    return float(sum(recipe.lora_r * (into + out) for into, out in model.linear))


def _weights(recipe: schema.Recipe, model: Model, *, frozen: bool) -> float:
    """Bytes of the weights, float32; of a frozen model the linear layers in bfloat16, or all but the head in
    4 bits and a constant for each 64.
    """
    if not frozen:
        return 4 * model.parameters
    half, four = 4 if recipe.dtype == "float32" else 2, isinstance(recipe, schema.FourBits) and recipe
    # Nested: a constant has 8 bits, and 256 of them share one of 32 (Dettmers et al., 2023, section 3).
    constant = 8 + 32 / 256 if four and four.use_bnb_nested_quant else 32
    each = (4 + constant / 64) / 8 if four and four.load_in_4bit else half
    linear = model.in_layers
    return 4 * (model.parameters - linear - model.head) + each * linear + half * model.head
