"""From rows to tokens: TRL's own, or others for a reason that docs/tokens.md gives; and draws that fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAIN, SEED, Tiny, tokenise
from preparing import (
    SORTS,
    Row,
    by_dpo_trainer,
    by_reward_trainer,
    by_sft_trainer,
    formats_of,
    rows_of_format,
    tokenizer_of,
)
from transformers import PreTrainedTokenizerBase
from trl.data_utils import apply_chat_template, extract_prompt, is_conversational

from rpo_cli.models import TokenRow, load_tokenizer, odd_tokens
from rpo_cli.recipes.schema import RewardRecipe
from rpo_cli.stages.data.ledger import Ledger
from rpo_cli.stages.data.rows import find_rows, read_rows, write_rows
from rpo_cli.stages.data.sources import preference
from rpo_cli.stages.data.token_cache import TokenCache

PAIR = ("chosen", "rejected")
EACH, FEWER = {"explicit": 370, "implicit": 370}, 50  # rows of a tokenizer and format; for the other trainers
CELLS = [(name, form) for name in SORTS for form in formats_of(name)]
WITH_PROMPTS = [cell for cell in CELLS if "implicit" not in cell[1]]


def some_rows(name: str, form: str, count: int) -> list[Row]:
    sort = SORTS[name]
    return [*rows_of_format(form, count, sort.eos, sort.bos if sort.begins else None, f"{name}, {form}")]


def tokens_of(
    texts: Sequence[Any], columns: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int = 10**6
) -> list[Row]:
    """Texts in their tokens, `*_ids`; those that fit, by the number of their row."""
    rows = [{name: getattr(text, name) for name in ("prompt", *columns)} for text in texts]
    return [
        {"row": int(row.id), "prompt_ids": row.prompt_ids}
        | {f"{name}_ids": ids for name, ids in zip(columns, row.responses, strict=True)}
        for row in tokenise(rows, columns, tokenizer, limit, "drop", "here")
    ]


def pairs_of(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """The pairs of `source: preference`, as text."""
    records = ((f"row {number}", None, row) for number, row in enumerate(rows))
    found = list(preference.pairs(records, preference.Templated(tokenizer, None), Ledger()))
    assert len(found) == len(rows)
    return found


def texts_of(row: Row, tokenizer: PreTrainedTokenizerBase) -> Row:
    """A row's prompt and responses as TRL has them as text."""
    parts = row if "prompt" in row else extract_prompt(row)
    if not is_conversational(parts):
        return dict(parts)
    tools = json.loads(row["tools"]) if "tools" in row else None
    parts = {name: parts[name] for name in parts.keys() - {"tools"}}
    return dict(apply_chat_template(parts, tokenizer, tools))


class Rules:
    """The differences from TRL that docs/tokens.md lists, done to TRL's tokens."""

    def __init__(self, name: str) -> None:
        self.tokenizer, self.sort = tokenizer_of(name), SORTS[name]
        self.eos = self.tokenizer.eos_token_id
        self.before = [self.tokenizer.bos_token_id] if self.sort.begins else []

    def begun(self, prompt: list[int]) -> list[int]:
        """One BOS, where the tokenizer has any."""
        while self.before and prompt[:1] == self.before:
            prompt = prompt[1:]
        return self.before + prompt

    def ended(self, response: list[int]) -> list[int]:
        """One EOS, and nothing after it."""
        solid = len(response)
        while solid and not self.tokenizer.decode([response[solid - 1]]).replace(self.sort.eos, "").strip():
            solid -= 1
        end = response.index(self.eos, solid) if self.eos in response[solid:] else len(response)
        return [*response[:end], self.eos]

    def apart(self, row: Row) -> Row:
        """Tokens of a row's texts, each by itself."""
        texts = texts_of(row, self.tokenizer)
        prompt = self.tokenizer(texts["prompt"])["input_ids"]
        found = {"prompt_ids": self.begun(prompt[:-1] if self.sort.ends else prompt)}
        for side in texts.keys() & {*PAIR, "completion"}:
            found[f"{side}_ids"] = self.ended(
                self.tokenizer(texts[side], add_special_tokens=False)["input_ids"]
            )
        return found

    def once(self, theirs: Row) -> Row:
        """TRL's tokens with one BOS and one EOS."""
        return {
            name: self.begun(ids) if name == "prompt_ids" else self.ended(ids) for name, ids in theirs.items()
        }


def differing(name: str, found: Sequence[Row], rows: Sequence[Row], theirs: Sequence[Row]) -> tuple[int, int]:
    """Rows that are neither TRL's nor what the rules make of them; rows of TRL's with another boundary."""
    rules = Rules(name)
    right = [rules.apart(row) for row in rows]
    wrong = sum(mine != {"row": mine["row"], **ids} for mine, ids in zip(found, right, strict=True))
    return wrong, sum(rules.once(ids) != apart for ids, apart in zip(theirs, right, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), CELLS)
def test_tokens_of_pairs_are_trls_or_differ_as_documented(name: str, form: str) -> None:
    tokenizer, rows = tokenizer_of(name), some_rows(name, form, EACH.get(form, 200))
    theirs = by_dpo_trainer(rows, tokenizer)
    wrong, moved = differing(name, tokens_of(pairs_of(rows, tokenizer), PAIR, tokenizer), rows, theirs)
    assert wrong == 0
    # The boundary is TRL's but where a token would reach over it: never before a blank.
    assert moved == 0 if form == "implicit" else moved < len(rows) / 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), WITH_PROMPTS)
def test_tokens_of_written_responses_are_trls_or_differ_as_documented(name: str, form: str) -> None:
    tokenizer = tokenizer_of(name)
    rows = [
        {("completion" if key == "chosen" else key): row[key] for key in row if key != "rejected"}
        for row in some_rows(name, form, FEWER)
    ]
    records = ((f"row {number}", None, row) for number, row in enumerate(rows))
    written = list(preference.written(records, preference.Templated(tokenizer, None), Ledger()))
    theirs = []
    for row in by_sft_trainer(rows, tokenizer):
        start = row["labels"].count(-100)
        theirs.append({"prompt_ids": row["input_ids"][:start], "completion_ids": row["input_ids"][start:]})
    found = tokens_of(written, ("completion",), tokenizer)
    wrong, moved = differing(name, found, rows, theirs)
    assert wrong == 0 and moved < FEWER / 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), WITH_PROMPTS)
def test_pairs_of_a_reward_model_and_those_too_long_for_it_are_trls(name: str, form: str) -> None:
    tokenizer, rules = tokenizer_of(name), Rules(name)
    rows = [row | {"row": number} for number, row in enumerate(some_rows(name, form, FEWER))]
    texts = pairs_of(rows, tokenizer)
    whole = tokens_of(texts, PAIR, tokenizer)
    limit = sorted(len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in whole)[FEWER // 2]
    everything = by_reward_trainer(rows, tokenizer, 10**6)
    joint = [[mine["prompt_ids"] + mine[f"{side}_ids"] for side in PAIR] for mine in whole]
    same = {
        number
        for number, row in enumerate(everything)
        if joint[number] == [row[f"{side}_ids"] for side in PAIR]
    }
    alike = {
        number
        for number, row in enumerate(everything)
        if joint[number] == [rules.begun(rules.ended(row[f"{side}_ids"])) for side in PAIR]
    }
    assert len(alike) > FEWER / 2
    kept = {row["row"] for row in tokens_of(texts, PAIR, tokenizer, limit)}
    assert kept & same == {row["row"] for row in by_reward_trainer(rows, tokenizer, limit)} & same


def double_bos(row: Row) -> Row:
    return row | {"prompt_ids": row["prompt_ids"][:1] + row["prompt_ids"]}


def lost_eos(row: Row) -> Row:
    return row | {"rejected_ids": row["rejected_ids"][:-1]}


def lost_space(row: Row) -> Row:
    return row | {"chosen_ids": row["chosen_ids"][1:]}


@pytest.mark.parametrize("mutation", [double_bos, lost_eos, lost_space])
def test_a_mutation_of_the_tokens_would_be_noticed(mutation: Callable[[Row], Row]) -> None:
    name, form = "Llama 3", "explicit"
    tokenizer, rows = tokenizer_of(name), some_rows(name, form, FEWER)
    found = [mutation(row) for row in tokens_of(pairs_of(rows, tokenizer), PAIR, tokenizer)]
    assert differing(name, found, rows, by_dpo_trainer(rows, tokenizer))[0] == FEWER


def test_a_token_over_the_boundary_would_be_noticed() -> None:
    """TRL's own tokens, with the end of the prompt cut off, where prompt and response make one token."""
    name, form = "ChatML", "explicit"
    tokenizer, rows, rules = tokenizer_of(name), some_rows(name, form, FEWER), Rules(name)
    theirs = by_dpo_trainer(rows, tokenizer)
    joint = [{"row": number, **rules.once(row)} for number, row in enumerate(theirs)]
    wrong, moved = differing(name, joint, rows, theirs)
    assert wrong == moved > 0


def test_ten_thousand_rows_are_compared() -> None:
    pairs = sum(EACH.get(form, 200) for _, form in CELLS)
    assert pairs + 2 * FEWER * len(WITH_PROMPTS) >= 10_000


# ── Control tokens ─────────────────────────────────────────────────────────────────────────────────────────


def read(name: str, *rows: tuple[str, str, str]) -> list[TokenRow]:
    """Pairs in tokens, named a, b, c."""
    columns = ("id", "prompt", *PAIR)
    texts = [dict(zip(columns, (mark, *row), strict=True)) for mark, row in zip("abcdef", rows, strict=False)]
    return tokenise(texts, PAIR, tokenizer_of(name), 1000, "error", "here")


def said(name: str, *rows: tuple[str, str, str]) -> list[str]:
    return odd_tokens(read(name, *rows), tokenizer_of(name))


PLAIN = ("Answer:", " Yes", " No")


@pytest.mark.parametrize("name", SORTS)
def test_a_text_that_went_through_a_template_has_the_tokens_of_one_that_did_not(name: str) -> None:
    bos, eos = SORTS[name].bos if SORTS[name].begins else "", SORTS[name].eos
    again = (
        (f"{bos}Answer:", f" Yes{eos}", f" No{eos}{eos}\n"),
        (f"{bos}{bos}Answer:", f" Yes{eos} ", f" No{eos}"),
    )
    once, *others = read(name, PLAIN, *again)
    if SORTS[name].model in ("first", "always") and bos:
        # A text after a control token has no dummy prefix: what the template's own text has.
        assert (
            others[0].prompt_ids
            == others[1].prompt_ids
            == tokenizer_of(name)(f"{bos}Answer:")["input_ids"][1:]
        )
    else:
        assert once.prompt_ids == others[0].prompt_ids == others[1].prompt_ids
    assert once.responses == others[0].responses == others[1].responses
    assert not [line for line in odd_tokens([once, *others], tokenizer_of(name)) if "rows have" in line]


@pytest.mark.parametrize("name", SORTS)
def test_a_text_without_control_tokens_has_the_tokens_it_always_had(name: str) -> None:
    tokenizer = tokenizer_of(name)
    (row,) = read(name, PLAIN)
    prompt = tokenizer(PLAIN[0])["input_ids"]
    assert row.prompt_ids == (prompt[:-1] if SORTS[name].ends else prompt)
    for text, ids in zip(PLAIN[1:], row.responses, strict=True):
        assert ids == [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("name", ["bytes, BOS and EOS", "WordPiece, EOS"])
def test_a_tokenizer_that_ends_texts_ends_no_prompt_and_is_named(name: str) -> None:
    (row,) = read(name, PLAIN)
    eos = tokenizer_of(name).eos_token_id
    assert eos not in row.prompt_ids and [ids.count(eos) for ids in row.responses] == [1, 1]
    (line,) = said(name, PLAIN)
    assert (
        line
        == f"the tokenizer puts {SORTS[name].eos} after every text (add_eos_token); prompts are read without"
    )


def test_control_tokens_in_a_response_are_counted_by_row_and_said() -> None:
    middle = ("Answer:", " Write <|im_end|> last", " No")
    (line,) = said("ChatML", PLAIN, middle, ("Answer:", " Yes", " No<pad>"), middle)
    assert line == (
        "3 of 4 rows have control tokens inside a response: <|im_end|> (EOS) in 2, <pad> (padding) in 1 "
        "(row b, c, d); a policy ends its answer there; take them out of the text, or set pad_token: to one "
        "that no text holds, such as '[PAD]'"
    )
    (line,) = said("Llama 3", PLAIN, ("Answer:", " Yes<|start_header_id|>", " No"))
    assert line == (
        "1 of 2 rows have control tokens inside a response: <|start_header_id|> in 1 (row b); "
        "take them out of the text, unless the chat template wrote them"
    )


def test_a_prompt_with_turns_is_no_cause_for_a_warning_but_padding_a_second_bos_and_an_end_are() -> None:
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    turns = f"{header('user')}Hi<|eot_id|>{header('assistant')}"
    assert said("Llama 3", (turns, "Yes", "No"), (f"<|begin_of_text|>{turns}", "Yes", "No")) == []
    assert said("ChatML", ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Yes", "No")) == []
    (line,) = said("Llama 3", (f"Hi <|begin_of_text|>{turns}", "Yes", "No"))
    assert line.startswith(
        "1 of 1 rows have control tokens in a prompt: <|begin_of_text|> in 1 (row a); take"
    )
    (line,) = said("ChatML", PLAIN, ("Hi <pad> there", "Yes", "No"))
    assert line.startswith("1 of 2 rows have control tokens in a prompt: <pad> (padding) in 1 (row b); take")
    (line,) = said("ChatML", PLAIN, ("Hi<|im_end|>", "Yes", "No"))
    assert line.startswith(
        "1 of 2 rows have control tokens at the end of a prompt: <|im_end|> (EOS) in 1 (row b)"
    )


def test_a_stage_and_inspect_warn_of_control_tokens(tiny: Tiny) -> None:
    file, eos = (
        tiny.root / SEED / "data/sft_train.parquet",
        load_tokenizer(tiny.root / SEED / "sft").eos_token,
    )
    first, *others = read_rows(file)
    words = first["completion"]
    write_rows([first | {"completion": f"{words} {eos} {words}{eos}"}, *others], file)
    (line,) = tiny.make("sft.yaml")[1]["warnings"]
    assert line == (
        f"1 of 200 rows have control tokens inside a response: {eos} (EOS) in 1 (row {first['id']}); "
        "a policy ends its answer there; take them out of the text"
    )
    assert f"warning: {SEED}/data: sft_train: {line}\n" in tiny.run("data inspect", "data.yaml").stderr


def test_responses_that_differ_in_nothing_but_the_eos_are_said() -> None:
    (line,) = said("ChatML", PLAIN, ("Answer:", " Yes", " Yes<|im_end|>"))
    assert line == "1 of 2 rows have the same tokens in both responses (row b)"


def test_an_unknown_word_is_no_control_token() -> None:
    assert said("WordPiece", ("Answer: \u0904", " \u0904", " No")) == []


@pytest.mark.parametrize("word", ["cat", "\u0120cat", "\u2581cat", "##s", "42", ".", " ", "", "\n", "a b"])
def test_a_word_is_no_padding(word: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="is a word or a sign, which a text may hold; set `pad_token:` to an unused token"
    ):
        RewardRecipe(stage="reward", pad_token=word)
    tokenizer_of("bytes").save_pretrained(tmp_path)
    recipe = RewardRecipe(stage="reward", pad_token="[PAD]")
    assert load_tokenizer(tmp_path, recipe).pad_token == "[PAD]"


# ── Draws from pairs that fit ──────────────────────────────────────────────────────────────────────────────

LIMIT = 21
FITTED = f"max_length: {LIMIT}\noverlong: drop"


def lengths(tiny: Tiny, table: str) -> list[int]:
    """Tokens of each drawn pair, prompt and longer response."""
    tokenizer = load_tokenizer(tiny.root / SEED / "sft")
    folders = [tiny.root / place for place in CHAIN[table == "pairs" :]]
    rows = find_rows(folders, table, TokenCache(tiny.root)).tokens(PAIR, tokenizer, table)
    return [row.longest for row in rows]


def test_d_rho_its_subsets_and_held_out_pairs_are_drawn_from_pairs_that_fit(tiny: Tiny) -> None:
    assert max(lengths(tiny, "train")) > LIMIT
    tiny.edit("rm.yaml", FITTED)
    tiny.edit("splits.yaml", "num_pairs: 40\nheld_out: 12")
    directory, found = tiny.make("splits.yaml")
    metrics = found["metrics"]
    tables = {file.stem: lengths(tiny, file.stem) for file in directory.glob("*.parquet")}
    assert set(tables) == {"train", "held_out", "b-0.2", "b-0.5", "b-0.8"}
    assert max(map(max, tables.values())) <= LIMIT
    assert metrics["train/longer_share"] == metrics["held_out/longer_share"] == 0.5
    assert len(tables["train"]) == 40 and len(tables["held_out"]) == 12
    every = lengths(tiny, "pairs")
    overlong = sum(length > LIMIT for length in every)
    assert metrics["overlong"] == overlong > 0 and metrics["max_length"] == LIMIT
    assert f"{overlong} of {len(every)} rows" in found["warnings"][0]
    # What is trained on them drops none.
    manifest = tiny.make("rm.yaml")[1]
    assert manifest["metrics"]["dropped"] == manifest["metrics"]["held_out_dropped"] == 0
    assert manifest["metrics"]["longer_share"] == 0.5 and "warnings" not in manifest


def test_the_limit_of_splits_is_the_least_of_those_beside_them_that_drop(tiny: Tiny) -> None:
    def limit(*overrides: str) -> Any:
        return tiny.stage("splits.yaml", *overrides).identity["recipe"].get("max_length")

    before = tiny.stage("splits.yaml").key
    assert limit() is None and tiny.stage("splits.yaml", "max_length=null").key == before
    tiny.edit("oracle.yaml", "max_length: 9\noverlong: drop")  # is trained on other pairs
    assert limit() is None
    tiny.edit("policy.yaml", "max_length: 30\noverlong: drop")
    tiny.edit("dpo.yaml", "max_length: 26")
    tiny.edit("rm.yaml", "max_length: 20")  # overlong: error
    (tiny.suite / "broken.yaml").write_text("extends: policy.yaml\nobjective: nosuch\nmax_length: 3\n")
    assert limit() == 26 and limit("max_length=40") == 40 and limit("max_length=null") is None
    # It is one of the folder, not of the command.
    assert tiny.stage("d-dpo.yaml", "max_length=12").inputs["data"].key == tiny.stage("splits.yaml").key  # type: ignore[union-attr]


def test_splits_that_lack_pairs_that_fit_say_so_and_what_to_write(tiny: Tiny) -> None:
    tiny.edit("splits.yaml", "max_length: 20")
    said = tiny.run("make-biased-splits", "splits.yaml", code=2).stderr
    assert re.search(
        r"needs 44 pairs whose longer response is preferred, \d+ exist; \d+ of 360 rows \(.* %\) are left "
        "out: longer than max_length 20; lower num_pairs or held_out, or set max_length: null in the splits",
        said,
    )
    tiny.edit("splits.yaml", "max_length: 2\nties: include")
    said = tiny.run("make-biased-splits", "splits.yaml", code=2).stderr
    assert (
        "preferred, 0 exist; 360 of 360 rows (100.0 %) are left out: longer than max_length 2; lower" in said
    )
