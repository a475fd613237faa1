"""Which layout a model reads rightly: as it reads each row alone, which is what its numbers mean."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rpo_cli import devices
from rpo_cli.artifacts import no_memory
from rpo_cli.errors import BadInput
from rpo_cli.models.buckets import Shape, longest
from rpo_cli.models.layout import (
    Groups,
    Layout,
    Reader,
    make_batch,
    pad_of,
    padded,
    response_rewards,
    shape_of,
    to_device,
)
from rpo_cli.models.proven import Proven, built_alike
from rpo_cli.models.tokens import Tokens
from rpo_cli.text import first_line

# Of the largest number read. In float32 the layouts of a model that is right differ by less than 1e-6, or by
# some 1e-6 where it is large; a window, a padding token or a shifted position changes 1e-4 or more.
TOLERANCE = 1e-5
# Of numbers that differ only if a model is no causal one at all.
LOOSE = 1e-3
PROVEN = Proven()
INSTEAD = {"shared": "every response gets a row of its own", "plain": "padding stands behind the rows"}


def layout_for(
    model: PreTrainedModel, read: Reader, prompts: Sequence[Tokens], groups: Groups, *, shared: bool
) -> Layout:
    """The first of the layouts in which the model gives the numbers of rows read alone; logs which it cannot.

    Shared prompts need attention that takes any mask, plain rows a model that heeds the mask of its padding:
    recurrent states and windows often do neither. `read` is `response_logps` or `response_rewards`. Where a
    model that is built alike read rows within wider bounds rightly in the first layout, it is not tried.

    Raises:
        BadInput: none, or a language model whose tokens see those behind them.
    """
    prompts, groups = telling_rows(prompts, groups)
    layouts: list[Layout] = ["right"] if read is response_rewards else ["plain", "right"]
    if shared:
        layouts.insert(0, "shared")
    name = type(model).__name__
    way, bounds = built_alike(model, read, layouts[0], len(groups[0])), _bounds(prompts, groups)
    if PROVEN.holds(way, bounds):
        return layouts[0]
    with exactly(model):
        alone = read_alone(model, read, prompts, groups)
        if not alone.isfinite().all():
            return layouts[0]  # whoever reads all rows says so
        if read is not response_rewards and not is_causal(model, prompts[0]):
            raise BadInput(f"{name}: its tokens see those behind them: it is no causal language model")
        for layout in layouts:
            reason = _trouble(model, read, prompts, groups, layout, alone)
            if reason is None:
                if layout == layouts[0] and alone.min() < alone.max():  # else it says nothing
                    PROVEN.note(way, bounds)
                return layout
            if layout in INSTEAD:
                what = "share prompts" if layout == "shared" else "read rows with padding before them"
                log = logging.getLogger("rpo")
                log.warning("%s cannot %s: %s; %s", name, what, reason, INSTEAD[layout])
    raise BadInput(f"{name} cannot be read in batches: {reason}")


def _bounds(prompts: Sequence[Tokens], groups: Groups) -> tuple[int, ...]:
    """The longest prompt and response, the longest row of one and of all; the shortest of one, below zero."""
    responses = [[len(response) for response in group] for group in groups]
    rows = [(len(prompt), max(each), sum(each)) for prompt, each in zip(prompts, responses, strict=True)]
    shortest = min(len(prompt) + min(each) for prompt, each in zip(prompts, responses, strict=True))
    return (
        max(prompt for prompt, _, _ in rows),
        max(most for _, most, _ in rows),
        max(prompt + most for prompt, most, _ in rows),
        max(prompt + every for prompt, _, every in rows),
        -shortest,
    )


def telling_rows(prompts: Sequence[Tokens], groups: Groups) -> tuple[list[Tokens], list[Sequence[Tokens]]]:
    """At most six rows with extreme prompt and response lengths, to expose sliding windows.

    A model whose own masks have a window does not apply it to a mask it is given, so that the longest
    response tells; one that looks back a number of columns whatever the mask loses the prompt in front of a
    short response behind a long one. An even number, pairs of rows of different length.
    """
    found = [
        (len(prompt), [len(response) for response in group])
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    extremes = (
        lambda i: found[i][0] + sum(found[i][1]),
        lambda i: -found[i][0] - min(found[i][1]),
        lambda i: found[i][0] + max(found[i][1]),
        lambda i: max(found[i][1]) - found[i][0],
        lambda i: found[i][0] - min(found[i][1]),
        lambda i: sum(found[i][1][:-1]) - found[i][1][-1],
    )
    chosen = list(dict.fromkeys(max(range(len(found)), key=extreme) for extreme in extremes))
    chosen += chosen[:1] * (len(chosen) % 2)
    return [prompts[i] for i in chosen], [groups[i] for i in chosen]


@contextlib.contextmanager
def exactly(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation without gradients, in float32: what bfloat16 rounds away must not hide a wrong mask.

    Nor must it look like one: on a GPU it makes rows of a batch differ from the same rows read alone.
    """
    was_training = model.training
    # accelerate wraps the forward pass of what is trained in an autocast of its own; its own way to unwrap it
    # takes off what transformers wraps it in as well.
    wrapped = vars(model).get("forward") if "_original_forward" in vars(model) else None
    # bitsandbytes' linear layers have a type to compute in, too.
    rounding = {
        module: module.compute_dtype for module in model.modules() if hasattr(module, "compute_dtype")
    }
    try:
        model.eval()
        if wrapped is not None:
            model.forward = model._original_forward
        for module in rounding:
            module.compute_dtype = torch.float32
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
        model.train(was_training)
        for module, dtype in rounding.items():
            module.compute_dtype = dtype


def _one_shape(
    model: PreTrainedModel, prompts: Sequence[Tokens], groups: Groups, layout: Layout
) -> Shape | None:
    """The shape of all rows where each shape is a program, or each row would be one; else None."""
    if not devices.fixed_shapes(model.device):
        return None
    return longest([shape_of(*both, layout) for both in zip(prompts, groups, strict=True)])


def read_alone(model: PreTrainedModel, read: Reader, prompts: Sequence[Tokens], groups: Groups) -> Tensor:
    """What `read` says of each response in a batch of its own, without padding: [n, G]."""
    shape = _one_shape(model, prompts, groups, "right")
    values = []
    for prompt, group in zip(prompts, groups, strict=True):
        for response in group:
            batch = make_batch([prompt], [[response]], pad_of(model), "right", shape)
            values.append(read(model, to_device(batch, model.device)).cpu())
    return torch.cat(values).reshape(len(prompts), -1)


def is_causal(model: PreTrainedModel, prompt: Tokens) -> bool:
    """Whether what stands behind a token has no influence on its logits."""
    ids = torch.tensor([[*map(int, prompt), int(prompt[0])]], device=model.device)
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % model.config.get_text_config().vocab_size
    one, two = (model(input_ids=some, use_cache=False).logits[0, :-1].float().cpu() for some in (ids, other))
    return alike(one.nan_to_num(), two.nan_to_num(), LOOSE)  # what is not finite is found later


def alike(values: Tensor, others: Tensor, tolerance: float) -> bool:
    """Whether no number differs by more than this share of the largest."""
    return bool((values - others).abs().max() <= tolerance * others.abs().max())


def _trouble(
    model: PreTrainedModel,
    read: Reader,
    prompts: Sequence[Tokens],
    groups: Groups,
    layout: Layout,
    alone: Tensor,
) -> str | None:
    """Why this layout is not for the model, two rows at a time, as memory may not hold more; None: it is."""
    if layout == "shared" and getattr(model, "_is_stateful", False):
        return "a state runs through its rows"  # which in an untrained model may hardly show
    values, each, pad = [], len(groups[0]), pad_of(model)
    shape = _one_shape(model, prompts, groups, layout)
    try:
        for start in range(0, len(prompts), 2):
            some = slice(start, start + 2)
            batch = make_batch(prompts[some], groups[some], pad, layout, shape)
            if layout == "shared" or shape is not None:  # in front unless rows begin in the first column
                batch = padded(batch, int("position_ids" in batch), 1, pad)
            values.append(read(model, to_device(batch, model.device)).cpu().reshape(each, -1).T)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        if no_memory(error):
            raise  # which says nothing of the model
        return first_line(error)
    found = torch.cat(values)
    if alike(found, alone, LOOSE if layout == "right" else TOLERANCE):
        return None
    return f"its numbers would differ by {(found - alone).abs().max():.3g}"
