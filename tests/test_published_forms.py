"""Rows as published sets have them: which response is chosen, which rejected, and what is refused.

Every form is read twice, once turned round: a label read the wrong way fails.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import published
import pytest
from conftest import SEED, Tiny, rpo
from transformers import PreTrainedTokenizerFast

from rpo_cli.errors import BadInput
from rpo_cli.models import Row
from rpo_cli.recipes.schema import DataRecipe
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.sources import preference
from rpo_cli.stages.data.sources.base import Pair

GOOD, BAD = "Because it scatters, naïvely 🌱.", "写一首诗"
HUMAN = "\n\nHuman: why\n\nAssistant:"


def read(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast | None = None, **columns: str
) -> tuple[list[Pair], Ledger]:
    """What `source: preference` makes of rows, under the data's names for columns."""
    recipe = DataRecipe.model_validate(
        {"stage": "data", "source": "preference", "dataset": "x", "columns": columns}
    )
    ledger = Ledger(place="here:1")
    renamed = []
    for number, row in enumerate(rows, 1):
        others = {name: value for name, value in row.items() if name not in columns.values()}
        named = {ours: row[theirs] for ours, theirs in columns.items()}
        renamed.append((f"here:{number}", None, others | named))
    found = preference.pairs(renamed, preference.Templated(tokenizer, None), ledger, recipe)
    return list(found), ledger


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template."""
    return published.word_tokenizer(tmp_path_factory.mktemp("chat"), published.CHAT)


def two(first: str, second: str, good_first: bool) -> Row:
    return dict(zip((first, second), (GOOD, BAD) if good_first else (BAD, GOOD), strict=True))


def ranked(name: str, text: str, number: str, numbers: Sequence[float], good_first: bool) -> Row:
    texts = [GOOD, "so so", BAD]
    objects = [{text: one, number: score, "model": "m"} for one, score in zip(texts, numbers, strict=True)]
    return {name: objects if good_first else objects[::-1]}


def talk(answer: str) -> list[Row]:
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]


# What a row of a published set has beside its prompt, by whether the better response comes first.
FORMS = {
    "openbmb/UltraFeedback": lambda first: ranked(
        "completions", "response", "overall_score", [8.5, 6, 2.0], first
    ),
    "berkeley-nest/Nectar": lambda first: ranked("answers", "answer", "rank", [1.0, 2.0, 7.0], first),
    "a list of objects with a rating": lambda first: ranked("candidates", "text", "rating", [5, 3, 1], first),
    "PKU-Alignment/PKU-SafeRLHF": lambda first: {
        **two("response_0", "response_1", first),
        "better_response_id": int(not first),
        "safer_response_id": int(first),
        "response_0_source": "x",
        "response_1_source": "y",
    },
    "nvidia/HelpSteer3": lambda first: {
        **two("response1", "response2", first),
        "overall_preference": -2 if first else 1,
    },
    "nvidia/HelpSteer2, preference": lambda first: {
        **two("response_1", "response_2", first),
        "preference_strength": -1 if first else 3,
    },
    "stanfordnlp/SHP": lambda first: {
        **two("human_ref_A", "human_ref_B", first),
        "labels": int(first),
        "score_A": 4,
        "c_root_id_A": "i",
        "c_root_id_B": "j",
    },
    "openai/summarize_from_feedback": lambda first: {
        "summaries": [{"text": text, "policy": "ref"} for text in ((GOOD, BAD) if first else (BAD, GOOD))],
        "choice": int(not first),
    },
    "a winner by its model": lambda first: {
        **two("response_a", "response_b", first),
        "winner": "model_a" if first else "model_b",
    },
    "a letter": lambda first: {**two("answer_A", "answer_B", first), "preference": "a" if first else "b"},
    "a number from 1": lambda first: {
        **two("completion_1", "completion_2", first),
        "preferred": 1.0 if first else 2.0,
    },
    "lmarena-ai/arena-human-preference-55k": lambda first: {
        **{name: json.dumps([text]) for name, text in two("response_a", "response_b", first).items()},
        **{"prompt": json.dumps(["q"]), "model_a": "koala", "model_b": "vicuna", "id": 53567},
        **{"winner_model_a": int(first), "winner_model_b": int(not first), "winner_tie": 0},
    },
    "the same, as Parquet with lists": lambda first: {
        **{name: [text] for name, text in two("response_a", "response_b", first).items()},
        **{"prompt": ["q"], "winner_a": float(first), "winner_b": float(not first)},
    },
    "the words of a label": lambda first: {
        **two("output1", "output2", first),
        "label": "Response 1" if first else "output2",
    },
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_the_better_response_of_a_published_form_is_chosen(name: str, first: bool) -> None:
    (pair,), ledger = read([{"prompt": "q", **FORMS[name](first)}])
    assert (pair.prompt, pair.chosen, pair.rejected) == ("q", GOOD, BAD)
    assert not ledger.counts
    assert not ledger.notes
    (note,) = ledger.read_as  # how the label was read is said, and is no warning
    assert note.startswith("pairs: in 1 rows ") and note.endswith(("is chosen", " is 1", "is above"))


@pytest.mark.parametrize("first", [True, False])
def test_of_two_whole_conversations_the_winner_is_chosen(chat: PreTrainedTokenizerFast, first: bool) -> None:
    """lmsys/chatbot_arena_conversations; where they part before the last answer nothing can be compared."""
    sides = two("conversation_a", "conversation_b", first)
    row = {name: talk(text) for name, text in sides.items()}
    row |= {"model_a": "koala", "model_b": "vicuna", "winner": "model_a" if first else "model_b"}
    (pair,), _ = read([row], chat)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("<user>q</s><assistant>", GOOD, BAD)
    longer = {name: [*turns, *talk("again")] for name, turns in row.items() if name in sides}
    found, ledger = read([{**row, **longer}], chat)
    assert not found and ledger.counts == {"pairs/part_early": 1}


def test_a_conversation_as_context_is_the_prompt_of_two_texts(chat: PreTrainedTokenizerFast) -> None:
    context = [*talk("why"), {"role": "user", "content": "so?"}]
    row = {"context": context, **FORMS["nvidia/HelpSteer3"](False)}
    with pytest.raises(BadInput, match=r"but context looks like one: set columns: \{prompt: context\}"):
        read([row], chat)
    (pair,), _ = read([row], chat, prompt="context")
    asked = "<user>q</s><assistant>why</s><user>so?</s><assistant>"
    assert (pair.prompt, pair.chosen, pair.rejected) == (asked, GOOD, BAD)


def test_rows_of_one_response_are_compared_with_others_of_their_prompt() -> None:
    """nvidia/HelpSteer2: rows of one prompt need not stand behind each other."""
    rows = [
        {"prompt": "q", "response": BAD, "helpfulness": 0, "verbosity": 2},
        {"prompt": "alone", "response": "x", "helpfulness": 4, "verbosity": 2},
        {"prompt": "tie", "response": "x", "helpfulness": 3, "verbosity": 2},
        {"prompt": "q", "response": GOOD, "helpfulness": 4, "verbosity": 2},
        {"prompt": "tie", "response": "y", "helpfulness": 3, "verbosity": 2},
        {"prompt": "q", "response": "so so", "helpfulness": 2, "verbosity": 1},
    ]
    with pytest.raises(
        BadInput, match=r"^here:1: no column 'chosen' .*columns: {score: …} in the data recipe"
    ):
        read(rows)
    (pair,), ledger = read(rows, score="helpfulness")
    assert (pair.prompt, pair.chosen, pair.rejected) == ("q", GOOD, BAD)
    assert ledger.counts == {"pairs/few_responses": 1, "pairs/equal_numbers": 1}
    assert ledger.examples == {"pairs/few_responses": ["here:2"], "pairs/equal_numbers": ["here:3"]}


def test_the_numbers_of_objects_stay_beside_the_pair_and_ranks_do_not() -> None:
    """A rank is better when smaller: a teacher that learnt from it would learn the contrary."""
    recipe = DataRecipe.model_validate(
        {
            "stage": "data",
            "source": "preference",
            "dataset": "x",
            "keep_columns": ["overall_score_chosen", "overall_score_rejected"],
        }
    )
    templated = preference.Templated(None, None)

    def kept(row: Row) -> object:
        (pair,) = preference.pairs([("here:1", None, row)], templated, Ledger(), recipe)
        return pair.kept

    scored = {"prompt": "q", **FORMS["openbmb/UltraFeedback"](False)}
    assert kept(scored) == {"overall_score_chosen": 8.5, "overall_score_rejected": 2.0}
    with pytest.raises(BadInput, match=r"no column 'overall_score_chosen' \(has: chosen, prompt, rejected\)"):
        kept({"prompt": "q", **FORMS["berkeley-nest/Nectar"](False)})


ARENA = {"prompt": '["q"]', "response_a": '["x"]', "response_b": '["y"]', "winner_model_a": 1,
         "winner_model_b": 0, "winner_tie": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"response_a": "x", "response_b": "y", "winner": "tie"}, "undecided"),
        ({"response_a": "x", "response_b": "y", "winner": "tie (bothbad)"}, "undecided"),
        ({"response_a": "x", "response_b": "y", "winner": "Both_bad"}, "undecided"),
        ({"response_a": "x", "response_b": "y", "winner": None}, "no_label"),
        ({**ARENA, "winner_model_a": 0, "winner_tie": 1}, "undecided"),
        ({**ARENA, "winner_model_a": None, "winner_model_b": None, "winner_tie": None}, "no_label"),
        ({"response_a": "x", "response_b": "y", "winner_a": False, "winner_b": False}, "undecided"),
        ({**ARENA, "response_b": "[null]"}, "few_responses"),
        ({**ARENA, "response_a": '["\\ud83d"]'}, "half_sign"),
        (
            {name: ["a", "b"] if isinstance(value, str) else value for name, value in ARENA.items()},
            "several_turns",
        ),
        (
            {**ARENA, "prompt": '["q", null]', "response_a": '["x", ""]', "response_b": '["x", "y"]'},
            "several_turns",
        ),
        ({"response1": "x", "response2": "y", "overall_preference": 0}, "undecided"),
        ({"response1": "x", "response2": "y", "overall_preference": None}, "no_label"),
        ({"response1": "x", "response2": "y", "overall_preference": float("nan")}, "no_label"),
        ({"human_ref_A": "x", "human_ref_B": "y", "labels": None}, "no_label"),
        ({"response_a": "x", "response_b": None, "winner": "model_a"}, "few_responses"),
        ({"response_a": "x", "response_b": "x", "winner": "model_a"}, "ties"),
        ({"summaries": [{"text": "x"}, {"text": "y"}], "choice": None}, "no_label"),
        ({"completions": [], "models": []}, "few_responses"),
        ({"completions": [{"response": "x", "overall_score": 3}]}, "few_responses"),
        ({"answers": [{"answer": "x", "rank": 1}, {"answer": "y", "rank": 1.0}]}, "equal_numbers"),
        ({"answers": [{"answer": "x", "rank": 1}, {"answer": "y", "rank": None}]}, "no_numbers"),
        ({"answers": [{"answer": "x", "rank": 1}, {"answer": None, "rank": 2}]}, "few_responses"),
    ],
)
def test_what_prefers_nothing_is_left_out_and_counted(row: Row, why: str) -> None:
    found, ledger = read([{"prompt": "q", **row}])
    assert not found and ledger.counts == {f"pairs/{why}": 1}


AB = {"prompt": "q", "response_a": "x", "response_b": "y"}
ONE_TWO = {"prompt": "q", "response_1": "x", "response_2": "y"}
SUMMARIES = {"prompt": "q", "summaries": [{"text": "x"}, {"text": "y"}]}
LETTER = FORMS["a letter"](True)
PAIR = {"prompt": "q", "chosen": "x", "rejected": "y"}


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        # SHP's 1 is the first, others' 1 is the second.
        (AB | {"label": 1}, {}, "label: 1 names neither response_a nor response_b; write a where response_a"),
        (AB | {"label": True}, {}, "label: true names neither"),
        (AB | {"winner": "gpt-2"}, {}, "winner: 'gpt-2' names neither"),
        (ONE_TWO | {"preferred": "gpt-2"}, {}, "preferred: 'gpt-2' names neither"),
        (ONE_TWO | {"preferred": 0}, {}, "preferred: 0 names neither response_1 nor response_2; write 1"),
        (ONE_TWO | {"preferred": -1}, {}, "preferred: -1 names neither"),
        (ONE_TWO | {"overall_preference": "1"}, {}, "overall_preference: expected a number, got text"),
        ({"prompt": "q", "human_ref_A": "x", "human_ref_B": "y", "labels": 2}, {}, "labels: 2 names neither"),
        (AB, {}, "no known column says which is better; columns: {label: …} in the data recipe names the"),
        (AB | {"winner_model_a": 1}, {}, "and no known column says which is better"),
        (
            ARENA | {"winner_model_b": 1},
            {},
            "winner_model_a, winner_model_b, winner_tie: expected one 1 and z",
        ),
        (ARENA | {"winner_model_a": 0}, {}, "expected one 1 and zeros, got 0, 0, 0"),
        (ARENA | {"winner_model_a": 0.4, "winner_tie": 0.6}, {}, "expected one 1 and zeros, got 0.4, 0, 0.6"),
        (ARENA | {"winner_model_a": "1"}, {}, "expected one 1 and zeros, got 1, 0, 0"),
        (ARENA | {"winner": "model_a"}, {}, "winner_model_b, winner_tie, winner may say which is better"),
        (
            ARENA | {"response_b": '["y", "z"]'},
            {},
            "response_b: expected as many turns as in prompt, 1, got 2",
        ),
        (AB | {"winner": "a", "preference": "b"}, {}, "winner, preference may say which is better"),
        (SUMMARIES | {"choice": 2}, {}, "choice: expected a place in a list of 2, from 0, got 2"),
        (SUMMARIES | {"choice": "1"}, {}, "choice: expected a place in a list of 2, from 0, got '1'"),
        (SUMMARIES | {"choice": 1, "prompt": None, "info": {"post": "p"}}, {}, "`source: tldr-comparisons`"),
        ({"note": "p", **LETTER}, {}, "no column 'prompt' (has: chosen, note, rejected); columns: {prompt: "),
        ({"question": "p", **LETTER}, {}, "question looks like one: set columns: {prompt: question}"),
        (
            AB | {"winner": "model_b"},
            {"chosen": "response_a", "rejected": "response_b"},
            "response_a and response_b are two responses, and winner may say which is better; leave chosen",
        ),
        (PAIR | {"w": 1}, {"label": "w"}, "columns: label: no use beside chosen and rejected"),
        (PAIR | {"w": 1}, {"score": "w"}, "columns: score: no use beside chosen and rejected"),
        ({"prompt": "q", "one": "x", "two": "y", "winner": "one"}, {}, "winner is read beside two columns"),
        ({"prompt": "q", "answers": [{"answer": "x"}]}, {}, "as objects with a score or a rank"),
    ],
)
def test_a_label_that_could_be_read_both_ways_is_refused_in_one_line(
    row: Row, columns: dict[str, str], message: str
) -> None:
    with pytest.raises(BadInput) as error:
        read([row], **columns)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_text_that_is_written_like_a_list_stays_a_text_beside_plain_ones() -> None:
    (pair,), _ = read([{**ARENA, "response_b": "y"}])
    assert (pair.prompt, pair.chosen, pair.rejected) == ('["q"]', '["x"]', "y")
    (pair,), _ = read([{"prompt": "q", "chosen": '["x"]', "rejected": '["y"]'}])
    assert (pair.chosen, pair.rejected) == ('["x"]', '["y"]')


def test_of_lists_of_chosen_and_rejected_texts_the_first_of_each_is_the_pair() -> None:
    rows: list[Row] = [{"prompt": "q", "chosen": [GOOD], "rejected": [BAD, "x", "y"]}]
    (pair, other), ledger = read([*rows, {"prompt": "r", "chosen": [GOOD], "rejected": [BAD]}])
    assert (pair.chosen, pair.rejected) == (other.chosen, other.rejected) == (GOOD, BAD)
    said = (
        "in 1 rows chosen and rejected are lists: the first of each is the pair; 2 more texts are left over"
    )
    assert ledger.read_as == [f"pairs: {said}"]


def unpaired(prompt: str, completion: str, label: object) -> Row:
    return {"prompt": prompt, "completion": completion, "label": label}


def test_unpaired_rows_are_paired_with_rows_of_their_prompt_each_once_and_the_rest_is_counted() -> None:
    rows = [
        unpaired("q", "good 1", True), unpaired("r", "alone", True), unpaired("q", "bad 1", False),
        unpaired("q", "bad 2", 0), unpaired("s", "none", None), unpaired("q", "bad 3", False),
        unpaired("q", "good 2", 1.0), {**unpaired("q", "other", False), "system": "s"},
    ]  # fmt: skip
    pairs, ledger = read(rows)
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [
        ("q", "good 1", "bad 1"), ("q", "good 2", "bad 2")
    ]  # fmt: skip
    assert ledger.counts == {"pairs/unpaired": 3, "pairs/no_label": 1}
    assert ledger.examples["pairs/unpaired"] == ["here:6", "here:2", "here:8"]
    (said,) = ledger.read_as
    assert said.startswith("pairs: 2 pairs of 7 unpaired rows: of a prompt the first whose label is true is")


def test_what_trl_makes_unpaired_is_paired_again(chat: PreTrainedTokenizerFast) -> None:
    from datasets import Dataset
    from trl.data_utils import unpair_preference_dataset

    def told(role: str, text: str) -> list[Row]:
        return [{"role": role, "content": text}]

    rows = [
        {"prompt": told("user", prompt), "chosen": told("assistant", f"{prompt} a"),
         "rejected": told("assistant", f"{prompt} b")} for prompt in "qqr"
    ]  # fmt: skip
    rows[1] |= {"chosen": told("assistant", "c"), "rejected": told("assistant", "d")}
    apart = unpair_preference_dataset(Dataset.from_list(rows))
    assert {"prompt", "completion", "label"} == set(apart.column_names) and len(apart) == 6
    wanted, found = (read(list(each), chat)[0] for each in (rows, apart))
    assert found == wanted and len(found) == 3


def test_a_score_beside_a_label_is_what_responses_are_ordered_by() -> None:
    rows = [{"prompt": "q", "response": text, "score": number, "label": text == BAD} for text, number in
            ((BAD, 1), (GOOD, 2))]  # fmt: skip
    (pair,), _ = read(rows)
    assert (pair.chosen, pair.rejected) == (GOOD, BAD)


def test_columns_say_which_of_several_labels_is_meant() -> None:
    row = {"prompt": "q", **FORMS["PKU-Alignment/PKU-SafeRLHF"](True)}
    (pair,), ledger = read([row], label="safer_response_id")
    assert (pair.chosen, pair.rejected) == (BAD, GOOD)
    assert ledger.read_as[0].endswith("label names is chosen (label is safer_response_id)")


def test_a_pair_without_a_label_may_be_two_columns_that_end_alike() -> None:
    (pair,), _ = read([AB], chosen="response_b", rejected="response_a")
    assert (pair.chosen, pair.rejected) == ("y", "x")


def test_dialogues_in_two_columns_bring_their_prompt() -> None:
    row = {"response_a": f"{HUMAN} yes", "response_b": f"{HUMAN} no", "winner": "model_b"}
    (pair,), _ = read([row])
    assert (pair.prompt, pair.chosen, pair.rejected) == (HUMAN, " no", " yes")


@pytest.mark.parametrize("names", [("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating")])
def test_a_pair_whose_own_scores_do_not_prefer_the_chosen_response_is_said(names: tuple[str, str]) -> None:
    rows = [
        {"prompt": f"q{index}", "chosen": "x", "rejected": "y", **dict(zip(names, scores, strict=True))}
        for index, scores in enumerate([(2, 1), (1, 1), (1, 2.5), (None, 1)])
    ]
    found, ledger = read(rows)
    assert len(found) == 4
    (note,) = ledger.notes
    assert note.startswith("pairs: in 2 rows the score of chosen is not above that of rejected")


def test_init_reads_two_columns_by_their_label_and_says_where_tokens_reach_over(
    built: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = pd.read_parquet(built.root / SEED / "data/pairs.parquet").head(60).to_dict("records")
    rows = [
        {
            "prompt": row["prompt"],
            "response_0": row["rejected"] if number % 3 else row["chosen"],
            "response_1": row["chosen"] if number % 3 else row["rejected"],
            "helpful_id": int(number % 3 > 0),
        }
        for number, row in enumerate(pairs)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("mine", "--pairs", "pairs.jsonl", "--model", built.root / SEED / "sft")
    refused = rpo("init", *options, code=2).stderr
    assert "--columns label=… names the one that does" in refused
    said = rpo("init", *options, "--columns", "label=helpful_id").stderr
    told = "response_0 and response_1 the one that label names is chosen (label is helpful_id)"
    assert f"{SEED}/data: pairs: in 60 rows of {told}" in said and f"warning: {SEED}/data" not in said
    assert "reach over the boundary" not in said
    chosen = dict(zip((row["prompt"] for row in pairs), (row["chosen"] for row in pairs), strict=True))
    made = pd.read_parquet(f"runs/mine/{SEED}/data/pairs.parquet")
    assert len(made) > 30 and all(chosen[row.prompt] == row.chosen for row in made.itertuples())
    assert rpo("recipe", "check", "mine.yaml").stdout == "6 recipes, no problems\n"
    # Without its white space the first word of a response goes on with the last of the prompt.
    short = [
        {"prompt": f"{row['prompt']} so", "chosen": f"o{row['chosen']}", "rejected": "me"} for row in pairs
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short))
    said = rpo("init", *options, "--force").stderr
    assert (
        "in 100.0 % of" in said
        and "rows a token would reach over the boundary of prompt and response" in said
    )
