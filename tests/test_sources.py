"""Published sets become tables: each from its own schema, split by post, what is left out counted."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import published
import pytest
from conftest import PLAIN, manifest, rpo
from published import comparison, post, prompt_of, write_jsonl, write_parquet

from rpo_cli.errors import BadInput
from rpo_cli.models import Row, load_tokenizer
from rpo_cli.recipes.schema import DataRecipe
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.rows import find_rows, read_rows
from rpo_cli.stages.data.sources import assemble, preference, tldr
from rpo_cli.stages.data.sources.base import Pair, Written
from rpo_cli.stages.data.sources.hh import dialogues
from rpo_cli.stages.data.sources.implicit import cut
from rpo_cli.stages.data.sources.records import split_of
from rpo_cli.stages.data.sources.transcripts import messages
from rpo_cli.stages.data.sources.turns import EXPECTED, part
from rpo_cli.stages.data.token_cache import TokenCache

TABLES = ("sft_train", "sft_validation", "pairs", "pairs_validation", "prompts_validation", "prompts_test")
Made = tuple[dict[str, list[Row]], dict[str, Any]]


def make(folder: Path, recipe: str, code: int = 0) -> Made:
    """The tables and metrics of a data recipe, made by the pipeline."""
    suite, root = folder / "suite", folder / "runs"
    suite.mkdir(exist_ok=True)
    (suite / "data.yaml").write_text(PLAIN + "stage: data\n" + recipe)
    from rpo_cli.artifacts import Workspace, job_of
    from rpo_cli.recipes import load
    from rpo_cli.runs.planner import Planner
    from rpo_cli.runs.work import run_job

    loaded = load(str(suite / "data.yaml"))
    stage = Planner(0).build(loaded)
    workspace = Workspace(root, "suite")
    workspace.open()
    made = run_job(job_of(stage, workspace, {}, force=True), lambda step, of: None)
    files = {table: root / stage.path / f"{table}.parquet" for table in (*TABLES, "prompts_train")}
    return {table: read_rows(file) for table, file in files.items() if file.is_file()}, made["metrics"]


def posts(rows: list[Row]) -> set[str]:
    return {" ".join(row["prompt"].split()) for row in rows}


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    published.comparisons_parquet(tmp_path / "comparisons-parquet")
    published.comparisons_json(tmp_path / "comparisons-json")
    published.tldr(tmp_path / "tldr")
    published.hh(tmp_path / "hh")
    published.word_tokenizer(tmp_path / "tokenizer", published.CHAT, ["<user>", "<assistant>"])
    return tmp_path


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    return published.word_tokenizer(folder, published.CHAT, ["<user>", "<assistant>"])


# ── TL;DR ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_raw_comparisons_are_the_same_from_json_and_from_the_parquet_export(sets: Path) -> None:
    made = [
        make(
            sets,
            (
                f"source: tldr-comparisons\ndataset: {sets}/comparisons-{kind}\ndata_dir: comparisons\n"
                f"sft_dataset: {sets}/tldr\n"
            ),
        )
        for kind in ("parquet", "json")
    ]
    for table in TABLES:
        key = lambda row: row["id"]  # noqa: E731
        assert sorted(made[0][0][table], key=key) == sorted(made[1][0][table], key=key)
    tables, metrics = made[0]
    assert metrics["cnndm"] == 1
    assert len(tables["pairs"]) == 12
    assert tables["prompts_test"][0]["prompt"] == prompt_of(post(0, "test"))


def test_the_winner_is_chosen_and_responses_begin_with_one_space(tmp_path: Path) -> None:
    rows = [
        comparison(post(n, "train"), (f" first {n}", f"second {n} <|endoftext|>"), n % 2) for n in range(40)
    ] + [comparison(post(99, "valid"), (" a", " b"), 0, "valid1")]
    write_jsonl(tmp_path / "raw/batch3.json", rows)
    tables, _ = make(tmp_path, f"source: tldr-comparisons\ndataset: {tmp_path}/raw\nvalidation_share: 0.2\n")
    by_prompt = {row["prompt"]: row for row in tables["pairs"]}
    for number in range(40):
        row = by_prompt.get(prompt_of(post(number, "train")))
        if row is not None:
            assert (row["chosen"], row["rejected"]) == (
                (f" first {number}", f" second {number}"),
                (f" second {number}", f" first {number}"),
            )[number % 2]
    assert len(by_prompt) > 20
    assert posts(tables["prompts_test"]) == posts([{"prompt": prompt_of(post(99, "valid"))}])


def test_older_parquet_keeps_summaries_as_a_struct_of_lists(tmp_path: Path) -> None:
    row = comparison(post(0, "train"), (" a b", " c"), 1)
    pairs = list(
        tldr.comparisons(
            [("here", None, {**row, "summaries": {"text": [" a b", " c"], "policy": ["x", "y"]}})],
            tldr.Writer(None, None, "keep", Ledger()),
            Ledger(),
        )
    )
    assert (pairs[0].chosen, pairs[0].rejected) == (" c", " a b")


def test_no_post_is_in_two_kinds_of_tables(tmp_path: Path) -> None:
    # The same post in training, in validation and among test prompts, with other white space and cut in one.
    long = post(1, "train", (150, 150))
    rows = [comparison(post(n, "train"), (" a b", f" c {n}"), 0) for n in range(8)]
    rows += [
        comparison(long, (" a", " b"), 0),
        comparison({**long, "post": long["post"].replace("\n\n", "\n")[:900] + " "}, (" d", " e"), 0),
    ]
    rows += [comparison(post(n, "train"), (" x", f" y {n}"), 1, "valid1") for n in (2, 3)]
    rows += [comparison(post(n, "other"), (" x", f" y {n}"), 1, "valid1") for n in (2, 3)]
    write_parquet(
        tmp_path / "raw/comparisons/train/0000.parquet", [row for row in rows if row["split"] == "train"]
    )
    write_parquet(
        tmp_path / "raw/comparisons/validation/0000.parquet", [row for row in rows if row["split"] != "train"]
    )
    for split, chosen in (
        ("train", [post(n, "train") for n in range(8)]),
        ("validation", [post(0, "v")]),
        ("test", [long, post(0, "train")]),
    ):
        write_parquet(
            tmp_path / f"tldr/data/{split}-00000-of-00001.parquet",
            [{"prompt": prompt_of(p), "completion": " so"} for p in chosen],
        )
    tables, metrics = make(
        tmp_path,
        f"source: tldr-comparisons\ndataset: {tmp_path}/raw\ndata_dir: comparisons\nsft_dataset: "
        f"{tmp_path}/tldr\n",
    )
    names = {table: {tldr._parsed(row["prompt"]).name for row in rows} for table, rows in tables.items()}  # type: ignore[union-attr]
    training, validation = (
        names["pairs"] | names["sft_train"],
        names["pairs_validation"] | names["prompts_validation"],
    )
    assert not names["prompts_test"] & (training | validation)
    assert not training & validation
    assert len(names["prompts_test"]) == 2 and len(names["pairs"]) == 5
    assert metrics["pairs/of_evaluated_posts"] == 5  # posts 0, 2, 3, and both forms of the long one


def test_no_post_that_is_evaluated_on_is_learnt_from_or_chosen_by() -> None:
    pairs = [
        Pair(split, (post,), f"{split} {post}", " a", " b")
        for split, posts in (("train", ("own", "v", "t", "w")), ("validation", ("t", "w")))
        for post in posts
    ]
    written = [
        Written(split, (post,), f"{split} {post}", " c")
        for split, posts in (("train", ("s", "v", "t", "w")), ("validation", ("v", "t")), ("test", ("t",)))
        for post in posts
    ]
    made = assemble.tables(pairs, written, {}, 0.1, 0, Ledger())
    posts = {table: {name for item in items for name in item.posts} for table, items in made.items()}
    assert posts == {
        "prompts_test": {"t"},
        "prompts_validation": {"v"},
        "pairs_validation": {"w"},
        "sft_validation": {"v"},
        "pairs": {"own"},
        "sft_train": {"s"},
    }


def test_duplicates_ties_and_empty_responses_are_left_out_and_counted(tmp_path: Path) -> None:
    a, b = post(1, "train"), post(2, "train")
    rows = [comparison(post(n, "filler"), (" p q", f" r {n}"), 0) for n in range(40)]
    rows += [
        comparison(a, (" x y", " z"), 0),
        comparison(a, (" x y", " z"), 0),
        comparison(a, (" z", " x y"), 1),
    ]  # twice again
    rows += [comparison(a, (" x y", " z"), 1)]  # judged the other way round
    rows += [
        comparison(b, (" same", " same "), 0),
        comparison(b, (" ", " z"), 0),
        comparison(b, ("<|endoftext|>", " z"), 1),
    ]
    write_jsonl(tmp_path / "raw/batch3.json", rows)
    tables, metrics = make(
        tmp_path, f"source: tldr-comparisons\ndataset: {tmp_path}/raw\nvalidation_share: 0.2\n"
    )
    counts = {
        name: metrics.get(f"pairs/{name}") for name in ("read", "duplicates", "conflicts", "ties", "empty")
    }
    assert counts == {"read": 47, "duplicates": 2, "conflicts": 1, "ties": 1, "empty": 2}
    assert sum(len(tables[t]) for t in ("pairs", "pairs_validation")) + len(tables["prompts_test"]) == 41


def test_a_long_post_is_cut_at_its_last_newline_and_counted_once(sets: Path) -> None:
    tokenizer = published.word_tokenizer(sets / "counting")
    info = post(5, "train", (10, 10, 10))
    whole, ledger = tldr.Post(info["subreddit"], info["title"], info["post"]), Ledger()
    lines = info["post"].split("\n\n")
    size = len(tokenizer(whole.prompt)["input_ids"])
    writer = tldr.Writer(tokenizer, size - 1, "keep", ledger)
    assert writer.prompt(whole) == prompt_of({**info, "post": "\n\n".join(lines[:2])})
    assert writer.prompt(whole) == writer.prompt(whole) and ledger.counts["cut_posts"] == 1
    # Without a newline the longest beginning that fits.
    one_line = tldr.Writer(tokenizer, size - 15, "keep", ledger).prompt(
        tldr.Post("advice", info["title"], " ".join(lines))
    )
    assert len(tokenizer(one_line)["input_ids"]) <= size - 15
    assert " ".join(lines).startswith(one_line.split("POST: ")[1].removesuffix("\n\nTL;DR:"))
    assert len(tokenizer(one_line)["input_ids"]) >= size - 18


def test_prompts_of_every_table_fit(sets: Path) -> None:
    recipe = (
        f"source: tldr-comparisons\ndataset: {sets}/comparisons-parquet\ndata_dir: comparisons\n"
        f"sft_dataset: {sets}/tldr\n"
    )
    tables, metrics = make(sets, recipe + f"tokenizer: {sets}/tokenizer\nmax_prompt_tokens: 25\n")
    tokenizer = published.word_tokenizer(sets / "counting")
    assert max(len(tokenizer(row["prompt"])["input_ids"]) for rows in tables.values() for row in rows) <= 25
    assert metrics["cut_posts"] > 0


def test_tldr_preference_leaves_out_articles_and_needs_one_normalisation(sets: Path) -> None:
    published.tldr_preference(sets / "preference")
    recipe = f"source: tldr-preference\ndataset: {sets}/preference\nsft_dataset: {sets}/tldr\n"
    with pytest.raises(BadInput, match="newlines: flatten"):
        make(sets, recipe)
    tables, metrics = make(sets, recipe + "newlines: flatten\n")
    assert metrics["cnndm"] == 1
    bodies = [tldr._parsed(row["prompt"]).body for table in tables.values() for row in table]  # type: ignore[union-attr]
    assert bodies and not any("\n\n" in body for body in bodies)
    assert posts(tables["pairs"]) <= posts(tables["sft_train"])  # one text for the same post


def test_derivatives_with_queries_end_marks_and_scores(tmp_path: Path) -> None:
    """vwxyzjn's sets (query, <|endoftext|>, validation_cnndm) and mnoukhov's (prompt, scores)."""
    published.comparisons_parquet(tmp_path / "raw", 40, 4)
    published.oai_preprocessing(tmp_path / "v", 40, 4)
    published.oai_filtered(tmp_path / "f", 40, 4, 4)
    published.tldr(tmp_path / "tldr", 40, 4, 4)
    sets = {
        "raw": (
            f"tldr-comparisons\ndata_dir: comparisons\ndataset: {tmp_path}/raw\n"
            f"sft_dataset: {tmp_path}/tldr\n"
        ),
        "derived": f"tldr-preference\ndataset: {tmp_path}/v\nsft_dataset: {tmp_path}/f\n",
    }
    made = {name: make(tmp_path, f"source: {recipe}") for name, recipe in sets.items()}
    assert made["derived"][1]["cnndm"] == 1 and made["derived"][1]["pairs/read"] == 88
    for table in TABLES:  # the derivatives are made of the raw set, and nothing of them differs once read
        one, other = (sorted(made[name][0][table], key=lambda row: row["id"]) for name in sets)
        assert one == other and one, table

    published.relabelled(tmp_path / "m", 40, 4)
    tables, _ = make(tmp_path, f"source: tldr-preference\ndataset: {tmp_path}/m\n")
    assert {(r["chosen_score"], r["rejected_score"]) for r in tables["pairs"]} == {(2.5, -1.0)}
    assert not any("<|endoftext|>" in row["chosen"] + row["rejected"] for row in tables["pairs"])


def test_reference_summaries_from_openais_filtered_files(tmp_path: Path) -> None:
    """subreddit, title, post and a summary without the leading space."""
    writer = tldr.Writer(None, None, "keep", Ledger())
    row = {**post(1, "train"), "summary": "he left"}
    assert [w.completion for w in tldr.written([("here", "train", row)], writer, Ledger())] == [" he left"]


def test_a_post_is_known_by_reddits_id_though_its_text_was_edited(tmp_path: Path) -> None:
    info = post(1, "train")
    write_jsonl(
        tmp_path / "raw/batch3.json", [comparison(post(n, "train"), (" a", f" b {n}"), 0) for n in range(40)]
    )
    rows = [{**post(n, "other"), "summary": "s"} for n in range(3)]
    edited = {**info, "title": "another title", "post": "another text", "summary": "s"}
    for split, some in (("train", rows[:1]), ("valid", rows[1:2]), ("test", [rows[2], edited])):
        write_jsonl(tmp_path / f"filtered/{split}.jsonl", some)
    tables, metrics = make(
        tmp_path, f"source: tldr-comparisons\ndataset: {tmp_path}/raw\nsft_dataset: {tmp_path}/filtered\n"
    )
    assert len(tables["prompts_test"]) == 2 and metrics["pairs/of_evaluated_posts"] == 1
    assert prompt_of(info) not in {row["prompt"] for row in tables["pairs"] + tables["pairs_validation"]}


# ── Dialogues ───────────────────────────────────────────────────────────────────────────────────────────────


def test_dialogues_are_split_at_the_last_common_turn_of_the_assistant() -> None:
    start = published.dialogue("hello", "hi there", "who left")
    rows = [
        (
            "a",
            "train",
            {"chosen": f"{start}\n\nAssistant: she left home", "rejected": f"{start}\n\nAssistant: she left"},
        ),
        (
            "b",
            "train",
            {"chosen": f"{start}\n\nAssistant: a", "rejected": f"{published.dialogue('hello', 'other')}"},
        ),
        ("c", "train", {"chosen": "no dialogue", "rejected": "none"}),
        ("d", "test", {"chosen": f"{start}\n\nAssistant:", "rejected": f"{start}\n\nAssistant: b"}),
    ]
    ledger = Ledger()
    found = list(dialogues(rows, ledger))
    assert found[0] == ("train", f"{start}\n\nAssistant:", " she left home", " she left")
    assert found[1] == ("test", f"{start}\n\nAssistant:", "", " b")
    assert ledger.counts == {"pairs/part_early": 1, "pairs/no_dialogue": 1}
    assert messages(f"{start}\n\nAssistant:") == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi there"},
        {"role": "user", "content": "who left"},
    ]


def test_hh_reads_its_folder_and_holds_out_validation_by_prompt(sets: Path) -> None:
    tables, metrics = make(
        sets, f"source: hh-rlhf\ndataset: {sets}/hh\ndata_dir: helpful-base\nvalidation_share: 0.2\n"
    )
    assert metrics["pairs/read"] == 34
    assert len(tables["prompts_test"]) == 4
    assert all(
        row["prompt"].startswith("\n\nHuman:") and row["prompt"].endswith("\n\nAssistant:")
        for row in tables["pairs"]
    )
    assert tables["pairs_validation"] and not posts(tables["pairs"]) & posts(tables["pairs_validation"])
    assert posts(tables["pairs_validation"]) == posts(tables["prompts_validation"])
    assert {(row["prompt"], row["completion"]) for row in tables["sft_train"]} == {
        (row["prompt"], row["chosen"]) for row in tables["pairs"]
    }


def test_hh_through_a_chat_template_leaves_the_eos_to_the_tokens(sets: Path) -> None:
    recipe = (
        f"source: hh-rlhf\ndataset: {sets}/hh\ndata_dir: helpful-base\nvalidation_share: 0.2\n"
        "prompt_format: chat\n"
    )
    tables, _ = make(sets, recipe + f"tokenizer: {sets}/tokenizer\n")
    for row in tables["pairs"]:
        assert row["prompt"].startswith("<user>") and row["prompt"].endswith("</s><assistant>")
        assert "</s>" not in row["chosen"] and not row["chosen"].startswith((" ", "<"))


def test_dialogues_of_hh_that_the_chat_template_refuses_are_left_out_and_counted(sets: Path) -> None:
    template = "{% if messages | length > 1 and messages[0].role == messages[1].role %}" + (
        "{{ raise_exception('roles must alternate') }}{% endif %}" + published.CHAT
    )
    published.word_tokenizer(sets / "strict", template, ["<user>", "<assistant>"])
    folder = sets / "hh/helpful-base"
    file = next(folder.glob("train*"))
    twice = "\n\nHuman: one\n\nHuman: two\n\nAssistant:"
    row = json.dumps({"chosen": f"{twice} yes", "rejected": f"{twice} no"})
    text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
    written = f"{row}\n{text}".encode()
    file.write_bytes(gzip.compress(written) if file.suffix == ".gz" else written)
    recipe = f"source: hh-rlhf\ndataset: {sets}/hh\ndata_dir: helpful-base\nvalidation_share: 0.2\n"
    _, metrics = make(sets, f"{recipe}prompt_format: chat\ntokenizer: {sets}/strict\n")
    assert metrics["pairs/refused"] == 1


# ── TRL's formats ───────────────────────────────────────────────────────────────────────────────────────────


def turns(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if i % 2 else "user", "content": content} for i, content in enumerate(contents)
    ]


@pytest.mark.parametrize("kind", ["explicit", "implicit", "conversational", "conversational-implicit"])
def test_every_preference_format_of_trl(kind: str, sets: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        plain = {"prompt": f"say {n}:", "chosen": " good one", "rejected": " bad"}
        return {
            "explicit": plain,
            "implicit": {
                "chosen": plain["prompt"] + plain["chosen"],
                "rejected": plain["prompt"] + plain["rejected"],
            },
            "conversational": {
                "prompt": turns(f"say {n}:"),
                "chosen": turns("", "good one")[1:],
                "rejected": turns("", "bad")[1:],
            },
            "conversational-implicit": {
                "chosen": turns(f"say {n}:", "good one"),
                "rejected": turns(f"say {n}:", "bad"),
            },
        }[kind] | {"score_chosen": 4.0}

    file = write_jsonl(sets / "mine.jsonl", [row(n) for n in range(60)])
    tables, metrics = make(
        sets, f"source: preference\ndataset: {file}\nvalidation_share: 0.2\ntokenizer: {sets}/tokenizer\n"
    )
    assert metrics["pairs/read"] == 60 and min(len(rows) for rows in tables.values()) > 0
    row_ = tables["pairs"][0]
    if kind.startswith("conversational"):
        assert row_["prompt"].startswith("<user>say") and row_["prompt"].endswith("</s><assistant>")
        assert (row_["chosen"], row_["rejected"]) == ("good one", "bad")
    else:
        assert row_["prompt"].startswith("say") and (row_["chosen"], row_["rejected"]) == (
            " good one",
            " bad",
        )
    assert not posts(tables["prompts_test"]) & (posts(tables["pairs"]) | posts(tables["pairs_validation"]))


def read_pair(row: Row, tokenizer: Any = None) -> tuple[list[Pair], Ledger]:
    """What `source: preference` makes of one row."""
    ledger = Ledger(place="here:1")
    templated = preference.Templated(tokenizer, None)
    return list(preference.pairs([("here:1", None, row)], templated, ledger)), ledger


@pytest.mark.parametrize(("name", "one"), [("rewards", "reward"), ("scores", "score")])
def test_of_ranked_responses_the_best_and_the_worst_are_a_pair(name: str, one: str) -> None:
    recipe = DataRecipe.model_validate(
        {"stage": "data", "source": "preference", "dataset": "x", "keep_columns": [f"{one}_chosen"]}
    )
    row = {"prompt": "q", "responses": ["a", "b", "c", "d"], name: [0, 2.5, -1, 2.5]}
    templated = preference.Templated(None, None)
    (pair,) = preference.pairs([("here:1", None, row)], templated, Ledger(), recipe)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.kept) == ("q", "b", "c", {f"{one}_chosen": 2.5})
    # What has no text is passed over, and a row without the first scorer's numbers is not ranked by another.
    (known,), _ = read_pair({"prompt": "q", "responses": ["a", None, "c"], name: [0, 9, 1]})
    assert (known.chosen, known.rejected) == ("c", "a")
    none, ledger = read_pair({"prompt": "q", "responses": ["a", "b"], "rewards": None, "scores": [1, 2]})
    assert not none and ledger.counts == {"pairs/no_numbers": 1}
    # A pair that stands beside them is the row's own.
    (own,), _ = read_pair(row | {"chosen": "c", "rejected": "d"})
    assert (own.chosen, own.rejected) == ("c", "d")


@pytest.mark.parametrize(
    ("responses", "rewards", "why"),
    [
        (["a"], [1], "few_responses"),
        ([], [], "few_responses"),
        (None, None, "few_responses"),  # as `rpo sample` and `rpo score` write a prompt without an answer
        (["a", "b"], [1, 1.0], "equal_numbers"),
        (["a", "b"], [1], "no_numbers"),
        (["a", "b"], [1, 2, 3], "no_numbers"),
        (["a", "b"], [1, None], "no_numbers"),
        (["a", "b"], [1, float("nan")], "no_numbers"),
        (["a", "b"], [1, 10**400], "no_numbers"),
        (["a", "b"], [True, False], "no_numbers"),
        (["a", "b"], ["1", "2"], "no_numbers"),
        (["a", "b"], None, "no_numbers"),
        (["a", None], [1, 2], "few_responses"),
        (["a", "a"], [1, 2], "ties"),
    ],
)
def test_ranked_responses_that_prefer_nothing_are_left_out_and_counted(
    responses: list[str] | None, rewards: object, why: str
) -> None:
    found, ledger = read_pair({"prompt": "q", "responses": responses, "rewards": rewards})
    assert not found and ledger.counts == {f"pairs/{why}": 1}
    assert ledger.examples == {f"pairs/{why}": ["here:1"]}


ASKED = [{"role": "user", "content": "q"}]
FROM = [{"from": "human", "value": "q"}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("good", "bad"))
PARTS = [{"type": "text", "text": "go", "image_url": None}, {"type": "text", "text": "od"}]
SAME_PAIR: dict[str, Row] = {
    "role and content": {"prompt": ASKED, "chosen": [GOOD], "rejected": [BAD]},
    "ShareGPT, ranked as for LLaMA-Factory": {
        "conversations": FROM,
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "ShareGPT, whole conversations": {
        "chosen": [*FROM, {"from": "gpt", "value": "good"}],
        "rejected": [*FROM, {"from": "gpt", "value": "bad"}],
    },
    "UltraFeedback, the prompt twice": {
        "prompt": "q",
        "messages": [*ASKED, GOOD],
        "chosen": [*ASKED, GOOD],
        "rejected": [*ASKED, BAD],
    },
    "the prompt as messages, and again before the answers": {
        "prompt": ASKED,
        "chosen": [*ASKED, GOOD],
        "rejected": [*ASKED, BAD],
    },
    "a prompt as text, answers as messages": {"prompt": "q", "chosen": [GOOD], "rejected": [BAD]},
    "a prompt as messages, answers as text": {"prompt": ASKED, "chosen": "good", "rejected": "bad"},
    "messages, answers as text": {"messages": ASKED, "chosen": "good", "rejected": "bad"},
    "content in parts": {"prompt": ASKED, "chosen": [GOOD | {"content": PARTS}], "rejected": [BAD]},
    "keys that only other rows have": {
        "prompt": [ASKED[0] | {"name": None}],
        "chosen": [GOOD],
        "rejected": [BAD | {"from": None, "tool_calls": None}],
        "tools": None,
        "chat_template_kwargs": None,
    },
}


@pytest.mark.parametrize("name", SAME_PAIR)
def test_a_conversation_is_the_same_pair_however_it_is_written(chat: Any, name: str) -> None:
    (pair,), ledger = read_pair(SAME_PAIR[name], chat)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("<user>q</s><assistant>", "good", "bad")
    assert not ledger.counts and not ledger.notes


BEFORE = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "a"}, GOOD | {"content": "b"}]
WHOLE = {"chosen": [*ASKED, GOOD], "rejected": [*ASKED, BAD]}
STARTED, AGAIN = "<system>be kind</s>", "<user>a</s><assistant>b</s><user>q</s><assistant>"


@pytest.mark.parametrize(
    ("more", "prompt"),
    [
        ({"prompt": BEFORE}, f"{STARTED}{AGAIN}"),
        ({"prompt": BEFORE[:1]}, f"{STARTED}<user>q</s><assistant>"),
        ({"prompt": BEFORE[1:], "system": "be kind"}, f"{STARTED}{AGAIN}"),
        ({"system": "be kind"}, f"{STARTED}<user>q</s><assistant>"),
        ({"prompt": ASKED, "system": "be kind"}, f"{STARTED}<user>q</s><assistant>"),
        ({"messages": ASKED, "system": "be kind"}, f"{STARTED}<user>q</s><assistant>"),
        ({"prompt": "q", "system": "be kind"}, f"{STARTED}<user>q</s><assistant>"),
        ({"prompt": " "}, "<user>q</s><assistant>"),
    ],
)  # fmt: skip
def test_what_stands_before_whole_conversations_is_part_of_the_prompt(
    chat: Any, more: Row, prompt: str
) -> None:
    (pair,), ledger = read_pair(WHOLE | more, chat)
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, "good", "bad")
    assert not ledger.counts and not ledger.notes


def test_a_text_beside_whole_conversations_is_one_of_their_turns_or_the_row_is_left_out(chat: Any) -> None:
    found, ledger = read_pair(WHOLE | {"prompt": "be kind"}, chat)
    assert not found and ledger.counts == {"pairs/prompt_elsewhere": 1}
    assert ledger.examples["pairs/prompt_elsewhere"] == ["here:1"]
    _, ledger = read_pair(WHOLE | {"context": "of the cat", "instruction": "q"}, chat)
    (note,) = ledger.notes
    assert note.startswith("pairs: beside prompt, rows have context (in 1), which is not read")


THINKS = published.CHAT + "{% if add_generation_prompt %}<think>\n{% endif %}"


def test_a_prompt_ends_where_every_answer_begins_and_not_inside_of_one(tmp_path: Path) -> None:
    tokenizer = published.word_tokenizer(tmp_path / "thinks", THINKS)
    ledger = Ledger(records=Counter(pairs=2))
    html = {"prompt": ASKED, "chosen": [GOOD | {"content": "<b>a"}], "rejected": [BAD | {"content": "<b>b"}]}
    read: list[Any] = [("here:1", None, html), ("here:2", None, SAME_PAIR["role and content"])]
    one, other = preference.pairs(read, preference.Templated(tokenizer, None), ledger)
    assert (one.prompt, one.chosen, one.rejected) == ("<user>q</s><assistant>", "<b>a", "<b>b")
    assert (other.prompt, other.chosen) == ("<user>q</s><assistant>", "good")
    (note,) = ledger.notes
    assert note.startswith("pairs: in 2 rows the chat template begins an answer otherwise")
    assert "(here:1, here:2): the context that is learnt differs from inference" in note
    thought = {side: [GOOD | {"content": f"<think>\n{side}"}] for side in ("chosen", "rejected")}
    (pair,), ledger = read_pair({"prompt": ASKED} | thought, tokenizer)
    assert (pair.prompt, pair.chosen) == ("<user>q</s><assistant><think>\n", "chosen") and not ledger.notes


def test_arguments_of_calls_that_only_other_rows_of_a_parquet_file_have_are_not_learnt() -> None:
    def call(**arguments: object) -> Row:
        return {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": arguments}}]}

    (turn,) = part("here", "chosen", [call(city="Rome", day=None)])
    assert turn == call(city="Rome")


def test_what_the_chat_template_is_given_is_kept_beside_the_messages(tmp_path: Path) -> None:
    tokenizer = published.word_tokenizer(tmp_path / "tools", WITH_TOOLS)
    more = {"tools": [TOOL], "chat_template_kwargs": {"mood": "gay"}}
    (pair,), _ = read_pair(SAME_PAIR["role and content"] | more, tokenizer)
    assert json.loads(pair.messages or "").items() >= more.items()


def test_written_conversations_may_be_sharegpts_and_have_a_system_prompt(chat: Any) -> None:
    turns_ = [*FROM, {"from": "gpt", "value": "good"}]
    row = {"conversations": turns_, "system": "be kind"}
    templated = preference.Templated(chat, None)
    (found,) = preference.written([("here:1", None, row)], templated, Ledger())
    assert (found.prompt, found.completion) == ("<system>be kind</s><user>q</s><assistant>", "good")


TOOL = {"type": "function", "function": {"name": "look", "description": None}}
WITH_TOOLS = "{% if tools %}[{{ tools[0].function.name }} {{ mood }}]{% endif %}" + published.CHAT


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_tools_and_template_arguments_reach_the_chat_template(tmp_path: Path, tools: Any) -> None:
    tokenizer = published.word_tokenizer(tmp_path / "tools", WITH_TOOLS)
    more = {"tools": tools, "chat_template_kwargs": {"mood": "gay", "other": None}}
    (pair,), _ = read_pair(SAME_PAIR["role and content"] | more, tokenizer)
    assert pair.prompt == "[look gay]<user>q</s><assistant>" and pair.chosen == "good"
    templated = preference.Templated(tokenizer, None)
    row = {"messages": [*ASKED, GOOD]} | more
    (found,) = preference.written([("here:1", None, row)], templated, Ledger())
    assert found.prompt == pair.prompt


def test_what_the_chat_template_does_not_read_is_refused_or_said(
    chat: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pair = SAME_PAIR["role and content"]
    with pytest.raises(BadInput, match="here:1: tools: the chat template does not read it"):
        read_pair(pair | {"tools": [{"name": "look"}]}, chat)
    read_pair(pair | {"chat_template_kwargs": {"mood": "gay"}}, chat)
    assert "chat_template_kwargs: mood: the chat template does not read it" in caplog.text


PLAIN_PAIR = {"prompt": "q", "chosen": " c", "rejected": " d"}
ANSWERS = {"chosen": "the long answer", "rejected": "the other answer"}
TURNS = SAME_PAIR["role and content"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (TURNS | {"chosen": []}, f"chosen: {EXPECTED}, got an empty list"),
        (TURNS | {"chosen": {}}, f"chosen: {EXPECTED}, got an object"),
        (TURNS | {"chosen": 3}, f"chosen: {EXPECTED}, got a number"),
        (TURNS | {"chosen": ["good"]}, "chosen: message 1: expected role and content, got text"),
        (TURNS | {"rejected": [BAD | {"content": None}]}, "rejected: message 1 has no content"),
        (TURNS | {"rejected": [BAD | {"content": 7}]}, "rejected: message 1: content: expected text, got"),
        (TURNS | {"prompt": [*ASKED, {"content": "x"}]}, "prompt: message 2 has no role (has: content)"),
        (TURNS | {"prompt": [{"role": 1, "content": ""}]}, "prompt: message 1: role: expected text, got"),
        (
            TURNS | {"prompt": [{"from": "function_call", "value": "x"}]},
            "prompt: message 1: from: 'function_call' is none of assistant, bot, ",
        ),
        (
            TURNS | {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            "prompt: message 1: content: only parts of text are read, got a part of type 'image'",
        ),
        (TURNS | {"chosen": [GOOD | {"role": "Assistant"}]}, "chosen: message 1: role: 'Assistant': write "),
        (
            {name: json.dumps(TURNS[name]) for name in ("chosen", "rejected")} | {"prompt": "q"},
            "chosen, rejected: messages as text; write a list of them, not in quotes",
        ),
        (TURNS | {"tools": "[{"}, "tools: the text is no JSON"),
        (TURNS | {"tools": {"a": 1}}, "tools: expected a list of functions, got an object"),
        (TURNS | {"chat_template_kwargs": "x"}, "chat_template_kwargs: expected an object, got text"),
        (TURNS | {"images": ["x"]}, "images: only text is read; give messages, or leave the column out"),
        (PLAIN_PAIR | {"tools": [TOOL]}, "tools: plain text has no use for it; give messages, or leave"),
        (PLAIN_PAIR | {"chosen": None}, "chosen is null (has: prompt, rejected)"),
        (
            {"prompt": "q", "good": "a"},
            "no column 'chosen' (has: good, prompt); columns: {chosen: …} in the data recipe says what",
        ),
        (
            {"completion": "a", "label": True},
            "no column 'chosen' (has: completion, label); unpaired rows are read beside others of their pro",
        ),
        (
            {"prompt": "q", "completion": "a", "label": "good"},
            "label: expected true or false of the completion, got text",
        ),
        (
            {"prompt": "q", "responses": ["a", "b"], "votes": [1, 0]},
            "no column 'chosen' (has: prompt, responses, votes); responses are read with a list of numbers",
        ),
        (
            {"prompt": "q", "responses": ["a", 3], "scores": [1, 0]},
            "responses: expected text",
        ),
        (
            ANSWERS | {"question": "Who left?"},
            "no column 'prompt', but question looks like one: set columns: {prompt: question} in the data",
        ),
        (ANSWERS | {"instruction": "Say", "input": "so"}, "no column 'prompt', but input, instruction look"),
        (ANSWERS | {"user_query": "Wer?"}, "no column 'prompt', but user_query looks like one"),
        (ANSWERS | {"dialogue_turns": ASKED}, "no column 'prompt', but dialogue_turns looks like one"),
        (ANSWERS | {"text": "Who left?", "prompt_id": "7"}, "no column 'prompt', but text looks like one"),
        ({"chosen": [GOOD], "rejected": [BAD], "input": "x"}, "no column 'prompt', but input looks like one"),
        ({"chosen": [GOOD], "rejected": [BAD], "question": "Who?"}, "no column 'prompt', but question looks"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_pair_of_texts_is_refused_by_column(chat: Any, row: Row, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_pair(row, chat)
    assert str(caught.value).startswith(f"here:1: {says}")
    assert "\n" not in str(caught.value)


CUTS = {  # what both begin with | what is the answer's own / the other's
    "Q0: pet? Answer:| parrots/ parasites": True,
    "Q0: pet? Answer:| parrots are/ parrots were": True,
    "Q: Is it?\n|Yes, sir/No": False,
    "Say it:| good one/ bad": False,
    "A tale of| two cities/ twins": True,
    "12 and| 3.14/ 3.15": True,
    "It is| 12:30/ 12:45": True,
    "one two| three/ four": False,
    "one two|\tthree/ four": False,
    "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n|The cat/The dog": True,
    "[INST] q [/INST]| Of course: a/ Of course: b": True,
    "\nHuman: q\n\nAssistant:| I think so/ I think not": True,
    "Does Answer: come first? Then| yes/ no": False,
    "问题：你好吗？答：|苹果很好/苹果不好": True,
    "天气怎么样？|很好/不好": False,
    "天气怎么样？|很好/很坏": True,
}


@pytest.mark.parametrize("text", CUTS)
def test_an_implicit_prompt_ends_at_a_turn_or_at_white_space(text: str) -> None:
    prompt, _, answers = text.rpartition("|")
    one, other = (prompt + answer for answer in answers.split("/"))
    end, moved = cut(one, other)
    assert (one[:end], moved) == (prompt, CUTS[text]) and cut(other, one)[0] == end


def test_a_prompt_column_that_the_texts_repeat_is_no_reason_to_refuse() -> None:
    more = {"question": "Who left?", "prompt_id": "7", "note": "two words"}
    (pair,), _ = read_pair({"chosen": "Who left? She", "rejected": "Who left? He", **more})
    assert (pair.prompt, pair.chosen) == ("Who left?", " She")


def test_moved_cuts_and_dialogues_are_said_with_their_share() -> None:
    dialogue = published.dialogue("hello", "hi") + "\n\nHuman: who\n\nAssistant:"
    rows = [
        {"chosen": f"{dialogue} I think she", "rejected": f"{dialogue} I think he"},
        {"chosen": "Pets? parrots", "rejected": "Pets? parasites"},
        {"chosen": "Pets: a", "rejected": "Pets: b"},
    ]
    ledger = Ledger(records=Counter(pairs=3))
    found = list(
        preference.pairs([("x", None, row) for row in rows], preference.Templated(None, None), ledger)
    )
    assert [pair.prompt for pair in found] == [dialogue, "Pets?", "Pets:"]
    assert found[0].chosen == " I think she"
    (moved,), (hh,) = ledger.notes, ledger.read_as
    assert moved.startswith("pairs: 1 of 2 prompts (50.0 %) were cut back to the last turn or white space")
    assert hh.startswith("pairs: in 1 of 3 rows plain text is a dialogue (") and "taken as it stands" in hh
    assert "`prompt_format: chat` in the data recipe" in hh and "makes messages of its turns" in hh


def test_a_response_in_which_the_user_speaks_is_left_out(chat: Any) -> None:
    more = [GOOD, *ASKED, BAD]
    for row in (
        {"chosen": [*ASKED, *more], "rejected": [*ASKED, BAD]},
        {"prompt": ASKED, "chosen": more, "rejected": [BAD]},
    ):
        found, ledger = read_pair(row, chat)
        assert not found and ledger.counts == {"pairs/part_early": 1}


def test_an_answer_of_somebody_else_is_none(chat: Any) -> None:
    for role in ("robot", "system", "tool"):
        found, ledger = read_pair(TURNS | {"chosen": [GOOD | {"role": role}]}, chat)
        assert not found and ledger.counts == {"pairs/no_answer": 1}


def test_rows_of_both_forms_and_answers_that_were_begun_are_said(chat: Any) -> None:
    rows: list[Row] = [PLAIN_PAIR, TURNS, TURNS | {"prompt": [*ASKED, GOOD | {"content": "I think"}]}]
    ledger = Ledger(records=Counter(pairs=3))
    read = ((f"here:{number}", None, row) for number, row in enumerate(rows))
    assert len(list(preference.pairs(read, preference.Templated(chat, None), ledger))) == 3
    forms, begun = ledger.notes
    assert forms.startswith("pairs: 1 rows are plain text and 2 are messages; the chat template writes only")
    assert begun.startswith("pairs: in 1 rows the prompt ends in an answer that was begun")


def test_a_prompt_that_stands_before_both_answers_again_is_said() -> None:
    rows = [{"prompt": "Who?", "chosen": "Who? She", "rejected": "Who? He"}]
    ledger = Ledger(records=Counter(pairs=1))
    read = ((f"here:{number}", None, row) for number, row in enumerate(rows))
    assert len(list(preference.pairs(read, preference.Templated(None, None), ledger))) == 1
    (note,) = ledger.warnings()
    assert note.startswith("pairs: in 1 rows chosen and rejected begin with the prompt")


def test_columns_beside_a_prompt_that_may_belong_to_it_are_said() -> None:
    _, ledger = read_pair(PLAIN_PAIR | {"system": "be kind", "source": "x"})
    assert ledger.notes == [
        "pairs: beside prompt, rows have system (in 1), which is not read; put it into the prompt if it "
        "belongs there; `prompt_format: chat` makes a message of `system`"
    ]


def test_implicit_prompts_that_nothing_marks_are_left_out(sets: Path) -> None:
    rows = [{"chosen": f"say {n}: good", "rejected": f"say {n}: bad"} for n in range(60)]
    rows += [
        {"chosen": "say it: yes", "rejected": "say it: yes please"},
        {"chosen": "a", "rejected": "b"},
        {"chosen": "x", "rejected": "x"},
    ]
    write_parquet(sets / "p/data/train-00000-of-00001.parquet", rows)
    _, metrics = make(sets, f"source: preference\ndataset: {sets}/p\nvalidation_share: 0.2\n")
    assert (metrics["pairs/no_boundary"], metrics["pairs/no_prompt"], metrics["pairs/ties"]) == (1, 1, 1)


def test_rows_limits_tables_to_drawn_posts_that_the_rest_avoids(sets: Path) -> None:
    recipe = (
        f"source: tldr-comparisons\ndataset: {sets}/comparisons-parquet\ndata_dir: comparisons\n"
        f"sft_dataset: {sets}/tldr\n"
    )
    tables, _ = make(
        sets, recipe + "rows: {prompts_test: 2, pairs: 5, pairs_validation: 3, prompts_validation: 1}\n"
    )
    assert [len(tables[t]) for t in ("prompts_test", "pairs", "pairs_validation", "prompts_validation")] == [
        2,
        5,
        3,
        1,
    ]
    other, _ = make(sets, recipe + "rows: {prompts_test: 2}\nseed: 1\n")
    again, _ = make(sets, recipe + "rows: {prompts_test: 2}\n")
    assert again["prompts_test"] == tables["prompts_test"]
    assert len(other["prompts_test"]) == 2


# ── Splits ──────────────────────────────────────────────────────────────────────────────────────────────────


def ultrafeedback(folder: Path, *splits: str) -> Path:
    """The published layout: a file for each split, of which every one has the columns of pairs."""
    for split in splits:
        rows = [
            {"prompt": f"{split} {n}:", "chosen": " good", "rejected": " bad", "messages": None}
            for n in range(40)
        ]
        write_parquet(folder / f"data/{split}-00000-of-00001.parquet", rows)
    return folder


ALL_SPLITS = [f"{split}_{use}" for split in ("train", "test") for use in ("prefs", "gen")]


def splits_read(tables: dict[str, list[Row]]) -> dict[str, set[str]]:
    return {table: {row["prompt"].split()[0] for row in rows} for table, rows in tables.items()}


def test_ultrafeedbacks_own_splits_are_train_and_test(tmp_path: Path) -> None:
    folder = ultrafeedback(tmp_path / "ultra", *ALL_SPLITS)
    tables, counts = make(tmp_path, f"source: preference\ndataset: {folder}\nvalidation_share: 0.2\n")
    found = splits_read(tables)
    assert found["pairs"] == found["pairs_validation"] == {"train_prefs"}
    assert found["prompts_test"] == {"test_prefs"} and counts["records/pairs"] == 80
    (warned,) = manifest(tmp_path / "runs", "seed-0/data")["warnings"]
    assert warned == (
        "dataset: not read: test_gen, train_gen (splits found: test_gen, test_prefs, train_gen, train_prefs)"
        "; `split: {train: train_gen, …}` names those to read"
    )


def test_split_says_which_published_split_is_which(tmp_path: Path) -> None:
    folder = ultrafeedback(tmp_path / "ultra", *ALL_SPLITS, "extra")
    recipe = f"source: preference\ndataset: {folder}\n"
    tables, _ = make(tmp_path, recipe + "split: {train: train_gen, validation: extra, test: test_gen}\n")
    found = splits_read(tables)
    assert found["pairs"] == {"train_gen"} and found["prompts_test"] == {"test_gen"}
    assert found["pairs_validation"] == found["prompts_validation"] == {"extra"}
    assert "warnings" not in manifest(tmp_path / "runs", "seed-0/data")
    listed = "splits found: extra, test_gen, test_prefs, train_gen, train_prefs"
    with pytest.raises(BadInput, match=rf"/data: split: dataset has no split train_sft \({listed}\)"):
        make(tmp_path, recipe + "split: {train: train_sft}\n")
    (alone,) = ultrafeedback(tmp_path / "alone", "test").rglob("*.parquet")
    with pytest.raises(
        BadInput, match=r"sft_train \(pairs/read 40; splits found: test\); .* `split: {train: test}`"
    ):
        make(tmp_path, f"source: preference\ndataset: {alone}\n")
    assert make(tmp_path, f"source: preference\ndataset: {alone}\nsplit: {{train: test}}\n")[0]["pairs"]
    only = ultrafeedback(tmp_path / "only", "first", "second")
    with pytest.raises(
        BadInput, match=r"no split of dataset is known \(splits found: first, second\); `split: "
    ):
        make(tmp_path, f"source: preference\ndataset: {only}\n")


# ── All of them, to look at: pytest -s -k first_record ──────────────────────────────────────────────────────

TLDR = "source: tldr-{}\ndataset: {{sets}}/{}\nsft_dataset: {{sets}}/{}\n".format
HH = "source: hh-rlhf\ndataset: {sets}/hh\ndata_dir: helpful-base\nvalidation_share: 0.2\n"
TOKENIZER = "tokenizer: {sets}/tokenizer\n"
OAI = "vwxyzjn/summarize_from_feedback_oai_preprocessing_1706381144"
LOADERS = {
    "openai/summarize_from_feedback, Parquet export": TLDR("comparisons", "comparisons-parquet", "tldr")
    + "data_dir: comparisons\n",
    "openai/summarize_from_feedback, batch*.json": TLDR("comparisons", "comparisons-json", "tldr"),
    "trl-lib/tldr-preference with trl-lib/tldr": TLDR("preference", "tldr-preference", "tldr")
    + "newlines: flatten\n",
    f"{OAI} with its tldr_3_filtered": TLDR("preference", "oai", "filtered"),
    "mnoukhov/..._relabel_pythia6.9b with trl-lib/tldr": TLDR("preference", "relabelled", "tldr"),
    "Anthropic/hh-rlhf, raw": HH,
    "Anthropic/hh-rlhf, chat": HH + "prompt_format: chat\n" + TOKENIZER,
    "a preference set of TRL's format, conversational, implicit prompt": (
        "source: preference\ndataset: {sets}/conversations\nvalidation_share: 0.2\n" + TOKENIZER
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_row_counts_and_first_record_of_every_loader(sets: Path, name: str) -> None:
    published.tldr_preference(sets / "tldr-preference")
    published.oai_preprocessing(sets / "oai")
    published.oai_filtered(sets / "filtered")
    published.relabelled(sets / "relabelled")
    published.conversations(sets / "conversations")
    tables, metrics = make(sets, LOADERS[name].format(sets=sets))
    assert set(tables) == set(TABLES)
    kept = len(tables["pairs"]) + len(tables["pairs_validation"])
    counts = {
        key: value for key, value in metrics.items() if not key.startswith(("rows/", "shared_prompts/"))
    }
    lost = sum(counts.get(f"pairs/{why}", 0) for why in ("ties", "empty", "duplicates", "conflicts"))
    evaluated = sum(
        value
        for key, value in counts.items()
        if key.startswith("pairs") and key.endswith("of_evaluated_posts")
    )
    # Every row that was read is somewhere: in a table, among the test prompts' pairs, or in a count.
    test = 0 if "sft_dataset" in LOADERS[name] else counts["pairs/read"] - kept - lost - evaluated
    assert kept + lost + evaluated + test == counts["pairs/read"] and (test > 0) == (
        "sft_dataset" not in LOADERS[name]
    )
    first = tables["pairs"][0]
    assert first["chosen"] != first["rejected"] and not first["prompt"].endswith(" ")
    # A judge can compare with the data's own response to every prompt.
    assert all(
        row["completion"].strip() for table in ("prompts_validation", "prompts_test") for row in tables[table]
    )
    print(f"\n{name}")
    print("  rows:  ", ", ".join(f"{table} {len(rows)}" for table, rows in tables.items()))
    print("  counts:", ", ".join(f"{key} {value}" for key, value in counts.items()))
    for key, value in first.items():
        print(f"  {key:8}", json.dumps(value))


# ── Mistakes ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("source: files\ndataset: a/b\n", "dataset: no effect with source: files"),
        ("source: preference\n", "source: preference needs dataset"),
        ("source: hh-rlhf\nprompt_format: chat\n", "prompt_format: chat needs a tokenizer"),
        ("source: preference\ndataset: mine.jsonl\n", "a relative path begins with ./"),
        ("source: hh-rlhf\nfiles: {pairs: x.jsonl}\n", "files: no effect with source: hh-rlhf"),
        ("source: preference\ndataset: ./none.jsonl\n", "data.yaml:3: dataset: no such file or directory"),
        ("source: preference\ndataset: sft.yaml\n", "expected a hub name or a path, got a recipe"),
    ],
)
def test_a_wrong_data_recipe_is_named(recipe: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("stage: data\n" + recipe)
    assert (
        says
        in rpo(
            "data", "inspect", "--recipe", tmp_path / "data.yaml", "--workspace", tmp_path / "runs", code=2
        ).output
    )


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"info": post(0, "train")}, "batch3.json:41: no column 'summaries'"),
        (
            comparison(post(0, "train"), (" a", " b"), 2),
            "batch3.json:41: expected two summaries and choice 0 or 1, got 2 and 2",
        ),
        ({"prompt": "x"}, "batch3.json:41: no column 'info' (has: prompt)"),
    ],
)
def test_a_row_of_another_schema_is_named_with_its_line(
    row: dict[str, Any], says: str, tmp_path: Path
) -> None:
    write_jsonl(
        tmp_path / "raw/batch3.json",
        [*(comparison(post(n, "train"), (" a", f" b {n}"), 0) for n in range(40)), row],
    )
    with pytest.raises(BadInput) as error:
        make(tmp_path, f"source: tldr-comparisons\ndataset: {tmp_path}/raw\n")
    assert says in str(error.value)


def test_a_set_that_leaves_a_table_empty_says_what_was_left_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "raw/batch3.json", [published.cnndm()])
    with pytest.raises(BadInput, match=r"no rows for sft_train \(cnndm 1; splits found: train\)"):
        make(tmp_path, f"source: tldr-comparisons\ndataset: {tmp_path}/raw\n")


def test_splits_are_read_from_the_names_the_hub_gives() -> None:
    names = {
        "data/train-00000-of-00007-3d41a76ca5845f49.parquet": "train",
        "data/validation_cnndm-00000-of-00001.parquet": "validation_cnndm",
        "comparisons/validation/0000.parquet": "validation",
        "comparisons/summarize_from_feedback-train.parquet": "train",
        "helpful-base/test.jsonl.gz": "test",
        "tldr_3_filtered/valid.jsonl": "validation",
        "comparisons/batch10.json": None,
        "own/TEST.JSONL": "test",
        "own/Pairs-Dev.jsonl.GZ": "validation",
        "own/pairs.v2.test.jsonl": "test",
        "own/test.v2.jsonl": "test",
        "own/test_prefs.jsonl": "test_prefs",
        "own/latest_news.jsonl": None,
        "own/test_of_time.jsonl": None,
    }
    assert {name: split_of(Path(name)) for name in names} == names


def test_a_data_recipe_of_another_source_keeps_its_key() -> None:
    """The loaders' keys are no part of the miniature's or a file's tables."""
    from rpo_cli.recipes import schema

    plain = schema.result_fields(schema.DataRecipe(stage="data", source="miniature"))
    assert not {"dataset", "tokenizer", "newlines", "max_prompt_tokens", "validation_share"} & plain.keys()
    loaded = schema.result_fields(schema.DataRecipe(stage="data", source="hh-rlhf"))
    assert {"validation_share", "prompt_format"} <= loaded.keys() and "newlines" not in loaded


def test_the_manifest_of_the_tables_has_the_counts(sets: Path) -> None:
    suite = sets / "tldr-suite"
    suite.mkdir()
    (suite / "data.yaml").write_text(
        PLAIN + f"stage: data\nsource: tldr-comparisons\ndataset: {sets}/comparisons-json\n"
        f"sft_dataset: {sets}/tldr\ntokenizer: {sets}/tokenizer\n"
    )
    out = rpo(
        "data", "inspect", "--recipe", suite / "data.yaml", "--workspace", sets / "runs", "--json"
    ).stdout
    assert "pairs" in json.loads(out)["seed-0/data"]["tables"]
    metrics = manifest(sets / "runs", "seed-0/data")["metrics"]
    assert metrics["cnndm"] == 1 and metrics["rows/pairs"] == 12


def test_a_set_without_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(b"\n")
    with pytest.raises(BadInput, match=rf"nothing was read of {tmp_path}/pairs.jsonl; splits found: train"):
        make(tmp_path, f"source: preference\ndataset: {tmp_path / 'pairs.jsonl'}\n")


def test_a_set_of_one_prompt_says_that_it_has_too_few(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": f" good {n}", "rejected": f" bad {n}"} for n in range(30)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(BadInput, match=r"no rows for .*; the rows have 1 distinct prompt, which goes whole"):
        make(tmp_path, f"source: preference\ndataset: {tmp_path / 'pairs.jsonl'}\n")


def asked_elsewhere(count: int, elsewhere: Collection[int]) -> list[Row]:
    """Whole conversations with a prompt of text beside them, which in some rows is none of their turns."""
    rows = []
    for number in range(count):
        asked = {"role": "user", "content": f"my dog {number}"}
        sides = {side: [asked, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
        rows.append({"prompt": "be kind" if number in elsewhere else asked["content"], **sides})
    return rows


def test_rows_whose_prompt_is_no_turn_of_theirs_are_left_out_and_a_file_of_them_stops_with_one_line(
    tmp_path: Path,
) -> None:
    published.word_tokenizer(tmp_path / "chat", published.CHAT)
    file = tmp_path / "pairs.jsonl"
    recipe = f"source: preference\ndataset: {file}\ntokenizer: {tmp_path / 'chat'}\nvalidation_share: 0.2\n"
    write_jsonl(file, asked_elsewhere(60, {2, 30}))
    _, counts = make(tmp_path, recipe)
    assert counts["pairs/prompt_elsewhere"] == 2 and counts["pairs/read"] == 58
    assert counts["left_out_examples"] == {"pairs/prompt_elsewhere": [f"{file}:3", f"{file}:31"]}
    write_jsonl(file, asked_elsewhere(60, range(60)))
    with pytest.raises(BadInput) as raised:
        make(tmp_path, recipe)
    (line,) = str(raised.value).splitlines()
    assert "; all 60 rows of pairs are left out: a `prompt` of text that is no turn" in line
    assert f"({file}:1, {file}:2, {file}:3, …)" in line


def test_control_tokens_that_a_person_typed_are_told_from_those_that_a_template_wrote(tmp_path: Path) -> None:
    published.word_tokenizer(tmp_path / "tokenizer", published.CHAT, ["<user>", "<assistant>"])
    rows: list[Row] = []
    for number in range(60):
        asked = [{"role": "user", "content": f"my dog {number}"}]
        row: Row = {"prompt": asked}
        for name in ("chosen", "rejected"):
            row[name] = [{"role": "assistant", "content": f"the {name} {number}"}]
        rows.append(row)
    recipe = f"source: preference\ndataset: {tmp_path / 'pairs.jsonl'}\ntokenizer: {tmp_path / 'tokenizer'}\n"
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    make(tmp_path, recipe)
    assert "warnings" not in manifest(tmp_path / "runs", "seed-0/data")
    rows[6]["chosen"][0]["content"] += " </s> again"
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    make(tmp_path, recipe)
    (line,) = manifest(tmp_path / "runs", "seed-0/data")["warnings"]
    assert line.startswith("pairs: in 1 rows a message itself holds the control token </s>")
    assert f"({tmp_path / 'pairs.jsonl'}:7)" in line
    rows[6]["chosen"][0]["content"] = "the dog again"
    for row in rows[:3]:  # the template writes </s> between two messages of an answer
        row["chosen"].append({"role": "assistant", "content": "it was late"})
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    tables, _ = make(tmp_path, recipe)
    assert any("</s>" in row["chosen"] for row in tables["pairs"])
    data = tmp_path / "runs/seed-0/data"
    said: list[str] = []
    tokenizer = load_tokenizer(tmp_path / "tokenizer", need_pad=False)
    read = find_rows([data], "pairs", TokenCache(tmp_path / "runs"))
    read.tokens(("chosen", "rejected"), tokenizer, "pairs", warn=said.append)
    assert not any("control tokens" in line for line in said)
    assert "warnings" not in manifest(tmp_path / "runs", "seed-0/data")
    (data / "places/pairs.parquet").unlink()  # as an older version read them: nobody told of what was typed
    read.tokens(("chosen", "rejected"), tokenizer, "pairs", warn=said.append)
    assert any("control tokens inside a response: </s>" in line for line in said)


def test_where_each_row_was_read_from_stands_beside_its_table(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {n}", "chosen": f" the chosen {n}", "rejected": " r"} for n in range(60)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    make(tmp_path, f"source: preference\ndataset: {tmp_path / 'pairs.jsonl'}\n")
    places = read_rows(tmp_path / "runs/seed-0/data/places/pairs.parquet")
    pairs = read_rows(tmp_path / "runs/seed-0/data/pairs.parquet")
    chosen = read_rows(tmp_path / "runs/seed-0/data/places/sft_train.parquet")
    assert chosen == places  # of which those are the chosen responses
    for row, found in zip(pairs, places, strict=True):
        number = int(found["place"].rpartition(":")[2]) - 1
        assert row["chosen"].split()[:3] == ["the", "chosen", str(number)]
