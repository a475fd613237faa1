"""Adapters on a base of 4 bits: what is trained, against which reference, what is saved, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from conftest import RHO, Tiny, manifest, tokenise
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rpo_cli.devices import Device
from rpo_cli.errors import BadInput
from rpo_cli.models import (
    four_bits,
    load_causal,
    load_reward,
    load_tokenizer,
    pair_rewards,
)
from rpo_cli.models.frozen import RoundedLinear
from rpo_cli.recipes.schema import SFTRecipe
from rpo_cli.stages.data.rows import read_rows

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft asks transformers for an old name
FOUR = ("use_peft=true", "load_in_4bit=true", "lora_r=2", "lora_alpha=4")
LINEAR = "model.layers.1.mlp.down_proj"


def settings(*more: str) -> list[str]:
    return [part for setting in (*FOUR, *more) for part in ("--set", setting)]


def trained(tiny: Tiny, command: str, recipe: str, *more: str) -> Path:
    """The artifact of a training command with a base of 4 bits."""
    (made,) = json.loads(tiny.run(command, recipe, *settings(*more), "--json").stdout).values()
    return Path(made["path"])


def delta(folder: Path, module: str = LINEAR) -> torch.Tensor:
    """alpha / r * B A of the saved adapter."""
    weights = load_file(folder / "adapter/adapter_model.safetensors")
    name = next(key for key in weights if module in key and "lora_A" in key)
    return 2 * weights[name.replace("lora_A", "lora_B")] @ weights[name]


@pytest.mark.slow
def test_a_policy_on_4_bits_starts_at_its_own_reference_and_is_merged_into_the_whole_base(tiny: Tiny) -> None:
    folder = trained(tiny, "train-policy", "dpo.yaml", "learning_rate=1e-5")
    # -log sigmoid(0): the reference log-probs are those of the 4-bit base. The whole base's would differ.
    metrics = manifest(tiny.root, str(folder.relative_to(tiny.root)))["metrics"]
    assert metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    own, whole = (
        read_rows(tiny.root / f"seed-0/reference-logps{bits}/relabel/logps.parquet") for bits in ("-nf4", "")
    )
    assert (
        max(abs(a["ref_chosen_logps"] - b["ref_chosen_logps"]) for a, b in zip(own, whole, strict=True))
        > 1e-3
    )
    # Saved: the base's own weights, not what 4 bits made of them, plus the adapter, trained in float32.
    base, merged = (load_file(place / "model.safetensors") for place in (tiny.root / "seed-0/sft", folder))
    change = delta(folder)
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert (merged[f"{LINEAR}.weight"] - base[f"{LINEAR}.weight"]).allclose(
        change, atol=1e-7
    ) and change.abs().max() > 0
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    adapter = load_file(folder / "adapter/adapter_model.safetensors")
    assert all(
        weights.dtype == torch.float32 and (weights.bfloat16().float() != weights).any()
        for weights in adapter.values()
    )
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(folder / "adapter")
    ids = torch.arange(4, 12)[None]
    assert torch.allclose(adapted(input_ids=ids).logits, loaded(input_ids=ids).logits, atol=1e-5)


@pytest.mark.slow
def test_a_frozen_base_in_bfloat16_gives_the_numbers_of_float32_under_autocast_bit_for_bit(
    built: Tiny,
) -> None:
    cpu, half = Device("cpu", "float32", ""), Device("cpu", "bfloat16", "")
    ids = torch.arange(4, 24).reshape(2, 10)
    for load, folder in ((load_causal, "seed-0/sft"), (load_reward, "seed-0/oracle")):
        place = built.root / folder
        recipe = SFTRecipe(stage="sft", model_name_or_path="x", use_peft=True)
        tokenizer = load_tokenizer(place)
        whole, held = (load(place, recipe, device, tokenizer, training=True) for device in (cpu, half))
        linear = [m for m in held.modules() if isinstance(m, torch.nn.Linear)]
        assert sum(m.weight.dtype == torch.bfloat16 for m in linear) == len(linear) - 1  # the head stays
        assert held.get_input_embeddings().weight.dtype == torch.float32
        found = []
        for model in (whole, held):
            inputs = whole.get_input_embeddings()(ids).detach().requires_grad_()
            with half.autocast():
                logits = model(inputs_embeds=inputs, attention_mask=torch.ones_like(ids)).logits
            logits.float().square().sum().backward()
            found.append((logits, inputs.grad))
        assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])  # type: ignore[arg-type]
        trained = load(place, recipe.model_copy(update={"use_peft": False}), half, tokenizer, training=True)
        assert all(weights.dtype == torch.float32 for weights in trained.parameters())


def test_an_adapter_on_a_base_in_bfloat16_is_float32_and_merged_into_the_whole_base(tiny: Tiny) -> None:
    changes = [
        part for change in ("use_peft=true", *FOUR[2:], "dtype=bfloat16") for part in ("--set", change)
    ]
    run = tiny.run("train-policy", "dpo.yaml", *changes, "--json")
    folder = next(Path(made["path"]) for made in json.loads(run.stdout).values())
    metrics = manifest(tiny.root, str(folder.relative_to(tiny.root)))["metrics"]
    assert metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-6) and metrics["shared_prompts"]
    base, merged = (load_file(place / "model.safetensors") for place in (tiny.root / "seed-0/sft", folder))
    change = delta(folder)
    assert (merged[f"{LINEAR}.weight"] - base[f"{LINEAR}.weight"]).allclose(change, atol=1e-7)
    assert change.abs().max() > 0 and merged[f"{LINEAR}.weight"].dtype == torch.float32
    adapter = load_file(folder / "adapter/adapter_model.safetensors")
    assert all((weights.bfloat16().float() != weights).any() for weights in adapter.values())


@pytest.mark.slow
def test_a_pessimistic_policy_on_4_bits_samples_its_own_reference(tiny: Tiny) -> None:
    folder = trained(
        tiny,
        "train-policy",
        "dp-dpo.yaml",
        "kl_estimator=full",
        "learning_rate=1e-9",
        "max_steps=1",
        "logging_steps=1",
    )
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert line["kl_to_reference"] == pytest.approx(0, abs=1e-6)
    assert (tiny.root / "seed-0/reference-samples-nf4/relabel/samples.parquet").is_file()
    # Teachers' margins are the whole reward model's, whatever the policy's bits.
    assert not list(tiny.root.rglob("scores/**/*nf4*"))


def test_a_reward_model_on_4_bits_keeps_its_trained_head(tiny: Tiny) -> None:
    folder = trained(tiny, "train-rm", "oracle.yaml", "learning_rate=1e-2")
    adapter = load_file(folder / "adapter/adapter_model.safetensors")
    (head,) = (weights for name, weights in adapter.items() if "score" in name)
    assert torch.equal(load_file(folder / "model.safetensors")["score.weight"], head)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = tokenise(
        read_rows(tiny.root / "seed-0/data/pairs_validation.parquet"),
        ("chosen", "rejected"),
        tokenizer,
        48,
        "error",
        "",
    )
    scores = pair_rewards(model, held_out, 64)
    metrics = manifest(tiny.root, "seed-0/oracle")["metrics"]
    assert metrics["held_out_loss"] == pytest.approx(
        np.logaddexp(0, scores[:, 1] - scores[:, 0]).mean(), rel=1e-5
    )


@pytest.mark.slow
def test_a_resumed_run_on_4_bits_ends_where_the_undisturbed_one_did(tiny: Tiny) -> None:
    overrides = (*FOUR, "save_steps=2")
    tiny.run("train-policy", "dpo.yaml", *settings("save_steps=2"))
    undisturbed, _ = tiny.make("dpo.yaml", *overrides)
    before = (undisturbed / "model.safetensors").read_bytes()

    def stop(step: int, of: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.make("dpo.yaml", *overrides, progress=stop)
    assert (undisturbed / "checkpoints/checkpoint-4").is_dir()
    tiny.run("train-policy", "dpo.yaml", *settings("save_steps=2"))
    assert (undisturbed / "model.safetensors").read_bytes() == before


def test_sft_on_4_bits_merges_into_the_whole_base(tiny: Tiny) -> None:
    recipe = (tiny.suite / "sft.yaml").read_text().split("model_config_kwargs")[0]
    (tiny.suite / "warm.yaml").write_text(f"{recipe}model_name_or_path: sft.yaml\n")
    folder = trained(tiny, "train-sft", "warm.yaml")
    base, merged = (load_file(place / "model.safetensors") for place in (tiny.root / "seed-0/sft", folder))
    assert (merged[f"{LINEAR}.weight"] - base[f"{LINEAR}.weight"]).allclose(delta(folder), atol=1e-7)


@pytest.mark.parametrize(
    ("recipe", "changes", "says"),
    [
        ("dpo.yaml", ("load_in_4bit=true",), "load_in_4bit needs use_peft: true"),
        ("rm.yaml", ("load_in_4bit=true",), "load_in_4bit needs use_peft: true"),
        ("dpo.yaml", ("use_peft=true", "use_bnb_nested_quant=true"), "no effect without load_in_4bit"),
        ("sft.yaml", FOUR, "a model from scratch has no weights to quantise"),
        ("dpo.yaml", ("use_peft=true", "load_in_8bit=true"), "unknown key; write `load_in_4bit: true`"),
    ],
)
def test_4_bits_where_they_cannot_be_are_refused(
    empty: Tiny, recipe: str, changes: tuple[str, ...], says: str
) -> None:
    command = {"dpo.yaml": "train-policy", "rm.yaml": "train-rm", "sft.yaml": "train-sft"}[recipe]
    assert (
        says
        in empty.run(
            command, recipe, *(part for c in changes for part in ("--set", c)), "--dry-run", code=2
        ).stderr
    )


def test_4_bits_are_refused_in_shards_and_where_bitsandbytes_cannot_work(
    empty: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsdp = Path(__file__).resolve().parent.parent / "recipes/accelerate/fsdp2.yaml"
    refused = empty.run("train-policy", "dpo.yaml", *settings(), "--accelerate", fsdp, "--dry-run", code=2)
    assert "distributed_type: FSDP trains no adapters" in refused.stderr
    values: dict[str, Any] = {
        "stage": "sft",
        "model_name_or_path": "x",
        "use_peft": True,
        "load_in_4bit": True,
    }
    recipe = SFTRecipe(**values)
    with pytest.raises(BadInput, match="bitsandbytes has no 4 bits on xla"):
        four_bits(recipe, Device("xla", "float32", ""))
    assert four_bits(recipe, Device("cuda", "bfloat16", "")).bnb_4bit_compute_dtype == torch.bfloat16  # type: ignore[union-attr]
    monkeypatch.setattr("rpo_cli.models.frozen.is_bitsandbytes_available", lambda: False)
    with pytest.raises(BadInput, match=r"pip install 'rpo-cli\[qlora\]'"):
        four_bits(recipe, Device("cuda", "float32", ""))


def test_full_precision_keys_do_not_know_of_4_bits(built: Tiny) -> None:
    """Artifacts from before the option stay up to date."""
    stage = built.stage("dpo.yaml")
    assert (
        "load_in_4bit" not in json.dumps(stage.identity)
        and stage.inputs["reference"].path == "seed-0/reference-logps/relabel"
    )  # type: ignore[union-attr]
    assert built.stage("dpo.yaml", *FOUR).path.startswith(f"{RHO}/policies/dpo/beta-0.2-load_in_4bit-True")


def test_a_layer_held_in_bfloat16_computes_in_float32_where_there_is_no_autocast() -> None:
    layer = RoundedLinear(4, 3).to(torch.bfloat16)
    values = torch.randn(2, 4)
    assert torch.equal(layer(values), values @ layer.weight.float().T + layer.bias.float())
