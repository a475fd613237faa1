"""The language models that are a job's inputs, from where they are, at their commits."""

from __future__ import annotations

from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from rpo_cli.artifacts import Job
from rpo_cli.devices import Device
from rpo_cli.models import load_causal, load_tokenizer
from rpo_cli.recipes.schema import ModelSource


def tokenizer_of(job: Job[ModelSource], name: str, *, own_pad: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of one of them; see `models.load_tokenizer`."""
    return load_tokenizer(job.inputs[name], job.recipe, job.revisions.get(name), own_pad=own_pad)


def causal_of(
    job: Job[ModelSource],
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    device: Device,
    bits: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """One of them, with this tokenizer; see `models.load_causal`."""
    revision = job.revisions.get(name)
    return load_causal(job.inputs[name], job.recipe, device, tokenizer, revision, bits=bits)
