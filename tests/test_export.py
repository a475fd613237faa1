"""What leaves the workspace: cards, folders that others load, the hub, and the way back to the same bytes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import peft
import pytest
import torch
import yaml
from conftest import OBJECTIVES, RHO, Tiny, manifest, rpo, weights
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rpo_cli.artifacts import hash_path, origin_of, walk
from rpo_cli.artifacts.card import _measured, _teachers
from rpo_cli.artifacts.origin import as_yaml, portable
from rpo_cli.objectives import E_DPO
from rpo_cli.recipes import load
from rpo_cli.recipes.schema import KINDS
from rpo_cli.runs import preflight
from rpo_cli.runs.planner import Planner
from rpo_cli.statistics import wilson

ROOT = Path(__file__).resolve().parent.parent
POLICY = f"{RHO}/policies/e-dpo/beta-0.2"
LORA = [part for change in ("use_peft=true", "lora_r=2", "max_steps=2") for part in ("--set", change)]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def greedy(model: Any, folder: Path) -> list[str]:
    """Greedy continuations of two prompts."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["the dog", "a red car went"], return_tensors="pt", padding=True)
    settings = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": tokenizer.pad_token_id}
    out = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **settings)
    return list(tokenizer.batch_decode(out))


def exported(tiny: Tiny, recipe: str, to: Path, *arguments: object) -> Path:
    assert tiny.run("export", recipe, "--to", to, *arguments).stdout.splitlines()[0] == str(to)
    return to


# ── Cards ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_published_model_has_a_card_that_the_hub_reads_and_no_place_of_this_machine(
    built: Tiny,
) -> None:
    models = [
        file.parent
        for file in built.root.rglob("manifest.json")
        if KINDS[json.loads(file.read_text())["kind"]].trains
    ]
    assert len(models) > 5
    for folder in models:
        text = (folder / "README.md").read_text()
        head = ModelCard(text).data.to_dict()
        assert head["library_name"] == "transformers" and "rpo" in head["tags"] and "license" not in head
        assert head["rpo"]["key"] == json.loads((folder / "manifest.json").read_text())["key"]
        assert str(built.root) not in text + (folder / "rpo_recipe.yaml").read_text()
        assert "Licence" in text and "rpo rebuild README.md" in text
    text = (built.root / POLICY / "README.md").read_text()
    assert E_DPO.equation in text and "arXiv:2405.19316" in text and "| beta | 0.2 |" in text
    assert "| ensemble | `rm.yaml` |" in text and "| reward model |" not in text
    assert "in 0.5 of the pairs the longer one is chosen" in text and "train/size 64" in text


def test_an_exported_card_has_the_evaluations_with_their_intervals(built: Tiny, tmp_path: Path) -> None:
    folder = exported(built, "e-dpo.yaml", tmp_path / "out/model")
    found = manifest(built.root, POLICY.replace("policies", "evaluations") + "/test")["metrics"]
    interval = f"{found['advantage_low']:.4g} to {found['advantage_high']:.4g}"
    row = f"| 24 test prompts | advantage | {found['advantage']:.4g} | {interval} |"
    text = (folder / "README.md").read_text()
    assert row in text
    # One name, two directions: samples of the policy here, of the reference in training.
    assert f"kl_to_reference, KL(pi_theta \\|\\| pi_ref) | {found['kl_to_reference']:.4g}" in text


def test_a_card_has_the_interval_and_the_number_of_pairs_of_every_accuracy(built: Tiny) -> None:
    found = manifest(built.root, f"{RHO}/rm/b-0.2")["metrics"]
    text = (built.root / RHO / "rm/b-0.2/README.md").read_text()
    for name, which in (
        ("", ""),
        ("/longer", " where the longer won"),
        ("/shorter", " where the shorter won"),
    ):
        share, count = found[f"held_out_accuracy{name}"], found[f"held_out_rows{name}"]
        _, low, high = wilson(share * count, count)
        ends = f"{share:.4g} | {low:.4g} to {high:.4g}"
        assert f"| {count} held-out pairs{which} | held_out_accuracy{name} | {ends} |" in text
    assert "share their prompt" not in text


def test_on_a_card_the_longer_of_a_utility_is_worth_more_and_the_longer_of_a_label_won() -> None:
    rows = {"held_out_rows/longer": 20, "held_out_utility_rows/longer": 12}
    shares = {"held_out_accuracy/longer": 0.5, "held_out_utility_accuracy/longer": 0.75}
    of: Any = {"kind": "reward", "metrics": {**shares, **rows}}
    assert [row[:2] for row in _measured("here", of)] == [
        ("20 held-out pairs where the longer won", "held_out_accuracy/longer"),
        ("12 held-out pairs where the longer is worth more", "held_out_utility_accuracy/longer"),
    ]


def test_of_a_policys_held_out_pairs_a_card_says_which_half_chose_nothing() -> None:
    metrics = {"rows": 40, "accuracy": 0.6, "margin": 0.3, "validation/rows": 0, "validation/accuracy": 0.6,
               "test/rows": 40, "test/accuracy": 0.6}  # fmt: skip
    of: Any = {"kind": "held_out", "metrics": metrics}
    assert _measured("here", of) == [
        ("40 held-out pairs", "accuracy", "0.6", "0.446 to 0.7365"),
        ("40 held-out pairs that chose no strength or checkpoint", "test/accuracy", "0.6", "0.446 to 0.7365"),
        ("40 held-out pairs", "margin", "0.3", ""),
    ]
    older: Any = {"kind": "held_out", "metrics": {"rows": 40, "test/accuracy": 0.6}}
    assert _measured("here", older) == [("here", "test/accuracy", "0.6", "")]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({}, []),
        ({"reward_model": "org/rm"}, [("reward model", "`org/rm`")]),
        (
            {"reward_model": "rm.yaml", "reward_member": 0.5},
            [("reward model", "`rm.yaml`, member b = 0.5")],
        ),
        ({"ensemble": "rm.yaml"}, [("ensemble", "`rm.yaml`")]),
        (
            {"ensemble": ["./one", {"columns": ["good", "bad"]}]},
            [("ensemble", "`./one`, `good` less `bad`")],
        ),
        ({"margin_columns": [["good", "bad"]]}, [("scores", "`good` less `bad`")]),
    ],
)
def test_a_card_names_who_taught(recipe: dict[str, Any], said: list[tuple[str, str]]) -> None:
    assert list(_teachers(recipe)) == said


def test_a_card_names_every_input_that_no_recipe_makes_by_its_content(built: Tiny) -> None:
    teacher = built.root / RHO / "rm/b-0.2"
    origin = origin_of(built.stage("e-dpo.yaml", f"ensemble=[{teacher}]", "calibration=none"))
    assert origin["inputs"] == {portable(str(teacher)): hash_path(teacher)}
    assert origin["start"] == "seed-0/sft" and origin["base"] == [] and origin["hub"] == {}
    assert origin["recipes"]["e-dpo"]["ensemble"] == [portable(str(teacher))]
    home = Path.home()
    assert portable(f"{home}/pairs.jsonl") == "~/pairs.jsonl" and portable("anna/model") == "anna/model"


# ── Folders ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_exported_loads_and_says_what_the_workspaces_model_says(built: Tiny, tmp_path: Path) -> None:
    folder = exported(built, "e-dpo.yaml", tmp_path / "model")
    assert weights(folder) == weights(built.root / POLICY)
    names = {file.name for file in folder.iterdir()}
    assert names == {
        *("README.md", "rpo_recipe.yaml", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    theirs, ours = (AutoModelForCausalLM.from_pretrained(place) for place in (folder, built.root / POLICY))
    assert greedy(theirs, folder) == greedy(ours, built.root / POLICY)
    reward = exported(built, "oracle.yaml", tmp_path / "reward")
    assert AutoModelForSequenceClassification.from_pretrained(reward).config.num_labels == 1


def test_a_rounded_export_is_the_model_in_that_dtype(built: Tiny, tmp_path: Path) -> None:
    folder = exported(built, "e-dpo.yaml", tmp_path / "model", "--dtype", "bfloat16")
    ours, theirs = (load_file(place / "model.safetensors") for place in (built.root / POLICY, folder))
    assert all(torch.equal(theirs[name], tensor.bfloat16()) for name, tensor in ours.items())
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_a_member_of_an_ensemble_is_exported_by_its_name(built: Tiny, tmp_path: Path) -> None:
    folder = exported(built, "rm.yaml", tmp_path / "member", "--member", "0.2")
    assert weights(folder) == weights(built.root / RHO / "rm/b-0.2")
    assert "| member of the ensemble | b = 0.2 |" in (folder / "README.md").read_text()
    for recipe, name, message in (
        ("rm.yaml", "0.3", "--member 0.3: rm.yaml has 0.2, 0.5, 0.8, warm"),
        ("rm.yaml", "warm", "first rpo train-policy on a recipe with `teacher: warm`"),
        ("e-dpo.yaml", "0.2", "--member 0.2: e-dpo.yaml is a policy recipe"),
    ):
        to = ("--to", tmp_path / "no", "--member", name)
        assert message in built.run("export", recipe, *to, code=2).stderr and not (tmp_path / "no").exists()


def test_an_adapter_is_exported_alone_and_loads_on_its_base(tiny: Tiny, tmp_path: Path) -> None:
    tiny.run("train-policy", "dpo.yaml", *LORA)
    (source,) = (file.parent for file in tiny.root.glob(f"{RHO}/policies/dpo/*/adapter"))
    card = ModelCard((source / "adapter/README.md").read_text())
    assert (
        card.data.library_name == "peft" and "PeftModel" in card.text and "More Information" not in card.text
    )
    assert 'base = AutoModelForCausalLM.from_pretrained("seed-0/sft")' in card.text
    folder = exported(tiny, "dpo.yaml", tmp_path / "adapter", *LORA, "--adapter")
    assert not (folder / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(tiny.root / "seed-0/sft")
    model = peft.PeftModel.from_pretrained(base, folder)
    assert greedy(model, folder) == greedy(AutoModelForCausalLM.from_pretrained(source), source)
    refused = tiny.run(
        *("export", "dpo.yaml", "--to", tmp_path / "x", *LORA, "--adapter", "--push", "anna/x"), code=2
    )
    assert "its base model seed-0/sft is on this disk only" in refused.stderr


def test_an_export_takes_no_place_that_holds_something_else(built: Tiny, tmp_path: Path) -> None:
    folder = exported(built, "sft.yaml", tmp_path / "model")
    assert "--force replaces it" in built.run("export", "sft.yaml", "--to", folder, code=2).stderr
    exported(built, "e-dpo.yaml", folder, "--force")
    assert "e-dpo" in (folder / "README.md").read_text() and [*tmp_path.iterdir()] == [folder]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    for place, says in (
        (tmp_path / "mine", "holds thesis.tex"),
        (tmp_path / "mine/thesis.tex", "is a file"),
        (built.root / POLICY, "the workspace is there"),
        (built.root.parent, "the workspace is there"),
    ):
        refused = built.run("export", "sft.yaml", "--to", place, "--force", code=2)
        assert says in refused.stderr, place
    assert (tmp_path / "mine/thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("recipe", "arguments", "says"),
    [
        ("dpo.yaml", [], "missing; first rpo train-policy"),
        ("e-dpo.yaml", ["--rho", "0.4,0.5"], "one model at a time"),
        ("e-dpo.yaml", ["--adapter"], "has none; leave it out"),
        ("e-dpo.yaml", ["--private"], "--private goes with --push"),
        ("e-dpo.yaml", ["--push", "model"], "expected USER/NAME"),
        ("e-dpo.yaml", ["--push", "anna/model"], "HF_HUB_OFFLINE is set"),
        ("splits.yaml", [], "is a splits recipe; export takes the recipe of a model"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_a_line(
    built: Tiny, tmp_path: Path, recipe: str, arguments: list[str], says: str
) -> None:
    refused = built.run("export", recipe, "--to", tmp_path / "out", *arguments, code=2)
    assert says in refused.stderr and not (tmp_path / "out").exists()


def test_a_damaged_model_is_not_exported_and_no_part_of_it_is_left(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny.root / POLICY / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    failed = tiny.run("export", "e-dpo.yaml", "--to", tmp_path / "out/model", code=1)
    assert f"{file} is damaged" in failed.stderr and "makes it again" in failed.stderr
    assert not (tmp_path / "out").exists()


# ── The hub ─────────────────────────────────────────────────────────────────────────────────────────────────


class FakeHub(ThreadingHTTPServer):
    """What a hub is asked when a folder is uploaded; it keeps the files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        self.refuses = False


class Answers(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self.reply({})

    def do_GET(self) -> None:
        self.reply({"sha": "0" * 40, "id": "anna/model", "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.add(self.headers.get("Authorization"))
        address = f"http://127.0.0.1:{self.server.server_port}/anna/model"
        if self.server.refuses:
            self.reply({"error": "Invalid credentials"}, 401)
        elif self.path.endswith("/repos/create"):
            self.server.created.append(json.loads(body))
            self.reply({"url": address})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            known = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self.reply({"files": [{"path": file["path"], **known} for file in asked]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    file = line["value"]
                    self.server.files[file["path"]] = base64.b64decode(file["content"])
            self.reply({"commitUrl": f"{address}/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self.reply({})

    def reply(self, value: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if self.command != "HEAD" else b"")

    def log_message(self, *args: object) -> None:
        """None."""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def push(built: Tiny, hub: FakeHub, to: Path) -> subprocess.CompletedProcess[str]:
    """`rpo export --push` as users run it: the client reads its address when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_secret",
        "PYTHONPATH": str(ROOT),
    }
    command = ["export", "--recipe", built.suite / "e-dpo.yaml", "--workspace", built.root, "--to", to]
    command += ["--push", "anna/model", "--private"]
    return subprocess.run(
        [sys.executable, "-m", "rpo_cli.cli", *map(str, command)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_pushed_model_is_on_the_hub_file_by_file_and_the_token_in_none(
    built: Tiny, hub: FakeHub, tmp_path: Path
) -> None:
    ended = push(built, hub, tmp_path / "model")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        str(tmp_path / "model"),
        f"http://127.0.0.1:{hub.server_port}/anna/model",
    ]
    assert hub.files == {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    assert hub.created[0]["visibility"] == "private" and hub.tokens == {"Bearer hf_secret"}
    assert 'from_pretrained("anna/model")' in hub.files["README.md"].decode()
    everything = ended.stdout + ended.stderr + str(hub.files)
    assert "hf_secret" not in everything


@pytest.mark.slow
def test_a_hub_that_refuses_is_told_in_a_line_and_the_folder_stays(
    built: Tiny, hub: FakeHub, tmp_path: Path
) -> None:
    hub.refuses = True
    ended = push(built, hub, tmp_path / "model")
    assert ended.returncode == 1 and (tmp_path / "model/model.safetensors").is_file()
    line = ended.stderr.splitlines()[-1]
    assert "--push anna/model: the hub refused" in line and "hf auth login" in line and "hf upload" in line
    assert "hf_secret" not in ended.stderr


# ── The way back ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_rebuilt_reward_model_is_the_exported_one_to_the_byte(built: Tiny, tmp_path: Path) -> None:
    folder = exported(built, "oracle.yaml", tmp_path / "oracle")
    ended = rpo("rebuild", folder, "--workspace", tmp_path / "again")
    assert "the weights are those of the card, byte for byte" in ended.stderr
    assert weights(tmp_path / "again/seed-0/oracle") == weights(folder)


@pytest.mark.slow
def test_a_rebuilt_policy_with_all_behind_it_is_the_exported_one_to_the_byte(
    built: Tiny, tmp_path: Path
) -> None:
    folder = exported(built, "e-dpo.yaml", tmp_path / "e-dpo")
    ended = rpo("rebuild", folder / "README.md", "--workspace", tmp_path / "again")
    assert "byte for byte" in ended.stderr
    assert weights(tmp_path / "again" / POLICY) == weights(folder)


def test_recipes_of_a_card_plan_the_chain_that_made_the_model(built: Tiny, tmp_path: Path) -> None:
    folder = built.root / POLICY
    planned = rpo("rebuild", folder, "--workspace", tmp_path / "again", "--dry-run").stdout.splitlines()
    paths = {line.split()[1] for line in planned}
    there = {str(file.parent.relative_to(built.root)) for file in built.root.rglob("manifest.json")}
    assert paths <= there and POLICY in paths and len(paths) == 14
    member = built.root / RHO / "rm/b-0.2"
    planned = rpo("rebuild", member, "--workspace", tmp_path / "again", "--dry-run").stdout.splitlines()
    assert planned[-1].split()[1] == f"{RHO}/rm/b-0.2"
    assert rpo("rebuild", folder, "--workspace", built.root, "--dry-run").stdout == ""


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_recipes_of_a_card_have_no_key_without_effect_and_the_models_key(empty: Tiny, name: str) -> None:
    stage = empty.stage(f"{name}.yaml")
    file = empty.suite.parent / "rpo_recipe.yaml"
    file.write_text(as_yaml(origin_of(stage)))
    again = Planner().build(load(f"{file}:{name}"))
    assert again.key == stage.key and preflight.notes(walk([again])) == []


def test_a_rebuild_refuses_inputs_that_are_missing_or_others(built: Tiny, tmp_path: Path) -> None:
    folder = exported(built, "sft.yaml", tmp_path / "model")
    text = (folder / "README.md").read_text()
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    for place, says in ((tmp_path / "gone.jsonl", "not there"), (tmp_path / "pairs.jsonl", "not the file")):
        (folder / "README.md").write_text(text.replace("inputs: {}", f"inputs: {{{place}: abc}}"))
        refused = rpo("rebuild", folder, "--workspace", tmp_path / "again", code=2).stderr
        assert f"{place}: {says}" in refused and not (tmp_path / "again").exists()
    (folder / "README.md").write_text("# A model\n")
    assert "no card that rpo wrote" in rpo("rebuild", folder, code=2).stderr
    assert "cannot be read" in rpo("rebuild", tmp_path / "nothing.md", code=2).stderr


def test_a_rebuilt_model_that_differs_is_said_to_differ(built: Tiny, tmp_path: Path) -> None:
    folder = exported(built, "sft.yaml", tmp_path / "model")
    recipes = yaml.safe_load((folder / "rpo_recipe.yaml").read_text())
    recipes["recipes"]["sft"]["learning_rate"] = 0.02
    (folder / "rpo_recipe.yaml").write_text(yaml.safe_dump(recipes))
    failed = rpo("rebuild", folder, "--workspace", tmp_path / "again", code=1)
    assert "model.safetensors not as exported" in failed.stderr
