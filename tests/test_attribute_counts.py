"""What is counted in responses: columns for splits, and what chosen responses have more of."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import RHO, SEED, Tiny, rpo

from rpo_cli.recipes import RecipeError, load
from rpo_cli.stages.data.attributes import PATTERNS, balance, counts_of, with_counts
from rpo_cli.stages.data.rows import PAIR
from rpo_cli.statistics import wilson


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("bold", "**one** and __two__, 2 ** 3 ** 4 and snake_case", 2),
        ("lists", "- one\n* two\n  3. three\n4) four\nfive - six\n-seven", 4),
        ("headings", "# One\n### Two\n#three\nfour # five", 2),
        ("links", "[here](https://a.org/b) or https://c.org, not [this] (that)", 2),
        ("emojis", "done \u2705 \U0001f389, \u00e9 and \u4e2d are none", 2),
        ("exclamations", "Great! Really?!", 2),
        ("affirmative", "  Sure, here it is. Sure.", 1),
        ("affirmative", "I am sure. Yes.", 0),
        ("affirmative", "Yesterday it rained", 0),
    ],
)
def test_a_pattern_finds_what_it_is_called_by_and_nothing_else(name: str, text: str, count: int) -> None:
    assert counts_of([f" {text}\n", ""], PATTERNS[name]).tolist() == [count, 0]


def test_a_balance_counts_the_pairs_that_differ_and_apart_those_of_equal_length() -> None:
    differences = np.array([2.0, -1, 0, 1, 3, 0])
    longer = np.array([1, 0, 0, 0, -1, 0])
    found = balance(differences, longer)
    assert (found.pairs, found.more, found.interval) == (4, 0.75, wilson(3, 4))
    assert (found.level_pairs, found.level) == (2, 0.5)
    assert balance(differences, np.ones(6)).level is None


@pytest.mark.slow
def test_counted_columns_bias_the_pairs_and_are_turned_with_them(empty: Tiny) -> None:
    empty.edit("data.yaml", "counts: {facts: '\\.'}\n")
    empty.edit("splits.yaml", "bias_on: [chosen_facts, rejected_facts]\n")
    empty.run("make-biased-splits", "splits.yaml", "--rho", "0.25")
    data = pq.read_table(empty.root / SEED / "data/pairs.parquet").to_pandas().set_index("id")
    assert (data.chosen_facts == data.chosen.str.count(r"\.")).all()
    assert (data.rejected_facts == data.rejected.str.count(r"\.")).all()
    turned = pq.read_table(empty.root / SEED / "relabel/pairs.parquet").to_pandas().set_index("id").swapped
    more = (data.chosen_facts - data.rejected_facts) * np.where(turned[data.index], -1, 1)
    train = pq.read_table(empty.root / "seed-0/rho-0.25/splits/train.parquet").to_pandas()
    assert (np.sign(more[train.id].to_numpy()) == train.higher_preferred).all()
    assert train.higher_preferred.eq(1).mean() == pytest.approx(0.25, abs=0.02)
    assert "chosen_facts" not in pq.read_schema(empty.root / SEED / "data/sft_train.parquet").names


@pytest.mark.slow
def test_inspect_tells_what_chosen_responses_have_more_of(empty: Tiny) -> None:
    empty.edit("data.yaml", "counts: {facts: '\\.'}\n")
    found = json.loads(empty.run("data inspect", "data.yaml", "--json").stdout)
    pairs = pq.read_table(empty.root / SEED / "data/pairs.parquet").to_pandas()
    more = (pairs.chosen_facts - pairs.rejected_facts).to_numpy()
    ((_, report),) = found.items()
    said = report["tables"]["pairs"]["more"]["facts"]
    assert said["pairs"] == (more != 0).sum() and said["more"] == (more > 0).sum() / (more != 0).sum()
    assert set(report["tables"]["pairs"]["more"]) == {"tokens", "facts"}  # nobody writes lists here
    text = empty.run("data inspect", "data.yaml").stdout
    assert re.search(rf"  facts +{said['pairs']} +{100 * said['more']:.1f} % +\d", text)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("counts: {lists: '('}", "counts.lists: no regular expression: missing"),
        ("counts: {lists: 'x*'}", "counts.lists: finds what is empty, everywhere"),
        ("counts: {a b: x}", "counts: a b: the name is to be part of a column's"),
        ("counts: {tokens: x}", "counts.tokens: the name is to be part of a column's"),
        ("polite: 0.5\ncounts: {polite: x}", "counts: there is a column chosen_polite already"),
        ("counts: [x]", "counts: expected a mapping"),
    ],
)
def test_what_cannot_be_counted_is_refused_with_its_line(empty: Tiny, written: str, said: str) -> None:
    empty.edit("data.yaml", f"{written}\n")
    with pytest.raises(RecipeError, match=re.escape(said)) as caught:
        load(str(empty.suite / "data.yaml"))
    assert re.match(r"\S*data.yaml:\d+: ", str(caught.value))


def test_without_the_key_data_are_what_they_were(built: Tiny, tmp_path: Path) -> None:
    from rpo_cli.recipes.schema import result_fields

    assert "counts" not in result_fields(load(str(built.suite / "data.yaml")).recipe)


@pytest.mark.slow
def test_compare_tells_how_often_what_is_counted_is_found_in_samples(empty: Tiny) -> None:
    empty.edit("data.yaml", "counts: {facts: '\\.'}\n")
    found = json.loads(rpo("compare", empty.suite / "dpo.yaml", "-w", empty.root, "--json").stdout)
    (head,) = [measure for measure in found["measures"] if measure["name"] == "count/facts"]
    assert (head["title"], head["unit"]) == ("facts", "found in a sample")
    rows = {row["policy"]: row["mean"] for row in found["rows"] if row["measure"] == "count/facts"}
    assert set(rows) == {"dpo", "baseline"}
    (file,) = (empty.root / RHO / "evaluations/dpo").rglob("samples.parquet")
    samples = pq.read_table(file).to_pandas()
    facts = samples.response.str.count(r"\.").groupby(samples.prompt_id).mean().mean()
    assert rows["dpo"] == pytest.approx(facts) and facts > 0


def test_a_conversation_is_counted_without_its_chat_template() -> None:
    told = json.dumps({"chosen": [{"role": "assistant", "content": "Yes."}], "rejected": "No."})
    rows = [{"prompt": "a", "chosen": "Yes.<|im_end|>", "rejected": "No.<|im_end|>", "messages": told}]
    (row,) = with_counts([*rows], {"end": r"\.\Z", "mark": "<"})
    assert [row[f"{side}_{name}"] for name in ("end", "mark") for side in PAIR] == [1, 1, 0, 0]
