"""A comparison's table: what it shows of each number, in a terminal, a spreadsheet and a paper."""

from __future__ import annotations

import io
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from rpo_cli.errors import BadInput
from rpo_cli.figures.frames import Frame
from rpo_cli.figures.numbers import MEASURES, Apart, Comparison, Row, _rows
from rpo_cli.figures.selection import Selection
from rpo_cli.figures.table import Bootstrap
from rpo_cli.figures.tabled import FORMS, require_form, table_of, text_of


def apart(mean: float | None, low: float | None = None, high: float | None = None) -> Apart:
    return {"mean": mean, "low": low, "high": high, "by_seed": [mean]}


def compared(names: list[str], difference: Apart, own: Apart | None = None) -> Comparison:
    """A comparison in which all policies have all measures, the same but for the first, to which all are."""
    own = own or apart(-0.0001, -12.3456, 345.678)
    rows: list[Row] = [
        {"policy": name, "measure": measure, **own, "difference": None if name == names[0] else difference}
        for name in names
        for measure in MEASURES
    ]
    measures = [{"name": name, **each._asdict(), "prompts": 300} for name, each in MEASURES.items()]
    found = {"format": 1, "seeds": [0, 1], "against": names[0], "rows": rows, "measures": measures}
    return cast(Comparison, {**found, "notes": ["50 % of\nthese"], "left_out": []})


def lines(found: Comparison) -> list[list[str]]:
    return [line.split() for line in text_of(found).plain.splitlines()]


def test_a_table_of_any_number_of_policies_and_measures_fits_a_terminal() -> None:
    names = ["dpo", *(f"e-dpo-{number}" for number in range(12))]
    shown = text_of(compared(names, apart(-0.04, -100, 12.5))).plain.splitlines()
    assert max(map(len, shown)) <= 80
    assert len(shown) == 1 + len(MEASURES) * (1 + len(names))
    blocks = [line for line in shown[1:] if not line.startswith("  ")]
    assert blocks == [f"{measure.title}, {measure.unit}" for measure in MEASURES.values()]


def test_a_number_stands_with_its_own_interval_before_its_difference_and_zero_has_no_sign() -> None:
    _, _, first, second, *_ = lines(compared(["a", "b"], apart(-0.04, -0.5, 0.5)))
    own = ["0.0", "[-12.3,", "345.7]"]
    assert first == ["a", *own] and second == ["b", *own, "+0.0", "[-0.5,", "+0.5]"]


def test_a_difference_without_an_interval_is_shown_without_one() -> None:
    *_, last = lines(compared(["a", "b"], apart(-10.0), apart(50.0)))
    assert last == ["b", "50.0", "-10.0"]
    *_, nothing = lines(compared(["a", "b"], apart(None), apart(None)))
    assert nothing == ["b", "-"]


def test_a_spreadsheet_has_every_number_unrounded() -> None:
    found = compared(["a", "b"], apart(-0.04, -0.5, 0.5))
    table = pd.read_csv(io.BytesIO(table_of(found, ".csv")))
    assert list(table["measure"].unique()) == [measure.title for measure in MEASURES.values()]
    assert len(table) == 2 * len(MEASURES) and (table["prompts"] == 300).all() and (table["seeds"] == 2).all()
    ours = table[table["policy"] == "b"]
    assert (ours[["mean", "low", "high"]].to_numpy() == [-0.0001, -12.3456, 345.678]).all()
    named = ["difference", "difference_low", "difference_high"]
    assert (ours[named].to_numpy() == [-0.04, -0.5, 0.5]).all()
    assert table.loc[table["policy"] == "a", named].isna().all(axis=None) and (table["against"] == "a").all()


def test_markdown_has_a_row_for_each_line_and_the_notes() -> None:
    table, notes = table_of(compared(["a|b", "c"], apart(-0.04, -0.5, 0.5)), ".md").decode().split("\n\n")
    rows = [line.replace(r"\|", "").count("|") for line in table.splitlines()]
    assert rows == [7] * (2 + 2 * len(MEASURES)) and notes == "- 50 % of these\n"
    assert "|  | c | 0.0 | [-12.3, 345.7] | +0.0 | [-0.5, +0.5] |" in table


def test_latex_has_no_sign_that_it_would_read_otherwise() -> None:
    text = table_of(compared(["a_1-2", "c&d"], apart(-4.0, -50, 0.5)), ".tex").decode()
    comments, rows = (
        [line for line in text.splitlines() if line.startswith("%") == which] for which in (True, False)
    )
    assert comments[1:] == ["% 50 % of these"] and rows[0].startswith(r"\begin{tabular}{llrrrr}")
    cells = [row.replace(r"\&", "").count("&") for row in rows if row.endswith(r" \\")]
    assert cells == [5] * (1 + 2 * len(MEASURES)) and len(rows) == len(cells) + 4 + len(MEASURES)
    body = "".join(rows)
    assert body.count("%") == body.count(r"\%") and body.count("_") == body.count(r"\_")
    assert rows[2] == r"measure & policy & mean & 95 \% interval & against a\_1-2 & 95 \% interval \\"
    assert rows[5] == r" & c\&d & 0.0 & [$-$12.3, 345.7] & $-$4.0 & [$-$50.0, $+$0.5] \\"


@pytest.mark.parametrize("name", ["table", "table.txt", "page.html"])
def test_a_file_of_another_kind_is_refused(name: str, tmp_path: Any) -> None:
    with pytest.raises(BadInput, match=r"name a file that ends in \.csv, \.md, \.tex") as error:
        require_form(tmp_path / name)
    assert ("rpo report writes a page" in str(error.value)) == name.endswith("html")
    for form in FORMS:
        require_form(tmp_path / f"table{form}")


def own_rows(values: list[list[float]], measure: str, *, shared: bool) -> Row:
    """What one policy has of values [seeds, prompts]; shared: seeds have the same prompts."""
    cells = pd.DataFrame(
        {"prompt_id": f"p{p}" if shared else f"{seed}-{p}", measure: value, "policy": "dpo", "rho": np.nan,
         "seed": seed} for seed, each in enumerate(values) for p, value in enumerate(each)
    )  # fmt: skip
    frame, selection = Frame("x", (measure,), cells), Selection(["dpo"], [None], list(range(len(values))))
    (row,) = _rows(frame, ["dpo"], selection, "dpo", Bootstrap(200))
    return row


@pytest.mark.parametrize("shared", [False, True])
def test_a_share_over_seeds_has_no_end_beyond_all(shared: bool) -> None:
    most, least = ([[at] * 60, [abs(at - 20)] * 60, [at] * 60] for at in (100.0, 0.0))
    high, low = (own_rows(values, "unfinished", shared=shared) for values in (most, least))
    assert high["mean"] == pytest.approx(280 / 3) and low["mean"] == pytest.approx(20 / 3)
    assert high["high"] == 100.0 and high["low"] is not None and high["low"] > 0
    assert low["low"] == 0.0 and low["high"] is not None and low["high"] < 100


@pytest.mark.parametrize(
    ("value", "prompts", "known"), [(8.0, 20, False), (8.0, 60, True), (0.0, 20, False), (0.0, 60, True)]
)
def test_equal_values_of_few_prompts_have_no_interval(value: float, prompts: int, known: bool) -> None:
    row = own_rows([[value] * prompts], "tokens", shared=True)
    assert row["mean"] == value
    ends = [end for end in (row["low"], row["high"]) if end is not None and np.isfinite(end)]
    assert ends == ([value] * 2 if known else [])
