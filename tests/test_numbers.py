"""The numbers of the pages are those of the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Pages in which every difference stands in a written table.
DECIDING = ["docs/results.md", "docs/when-to-use-what.md", "docs/results/*.md"]
DIFFERENCE = re.compile(r"[+−]\d+\.\d+")
NUMBER = r"([+−]?\d+\.\d+)"
UNIT = r"(?:\s+(?:sd|points|nats))?"
BETWEEN = re.compile(rf"{NUMBER}{UNIT}\s*\(\s*{NUMBER}\s*…\s*{NUMBER}")  # +0.10 (+0.06 … +0.15)
IN_A_ROW = re.compile(rf"\|\s*{NUMBER}\s*\|\s*{NUMBER}\s*…\s*{NUMBER}\s*\|")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.slow
def test_every_table_of_results_is_what_the_committed_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    from tools import results

    assert results.main(["--check"]) == 0, f"{capsys.readouterr().out}run: python -m tools.results"


def test_every_difference_in_prose_stands_in_a_table_that_is_written_from_results() -> None:
    from tools.results import MARKED

    pages = {path.name: path.read_text() for pattern in DECIDING for path in sorted(ROOT.glob(pattern))}
    assert len(pages) >= 9
    pages["README.md"] = (ROOT / "README.md").read_text().partition("## Results")[2]
    tables = {
        found
        for page in pages.values()
        for table in MARKED.finditer(page)
        for found in DIFFERENCE.findall(table[0])
    }
    assert len(tables) > 20
    for name, page in pages.items():
        typed = DIFFERENCE.findall(MARKED.sub("", page))
        assert not [number for number in typed if number not in tables], name


def intervals(text: str, *forms: re.Pattern[str]) -> set[tuple[float, ...]]:
    """A number and the ends of its interval, wherever a text has them in one of the forms."""
    found = (match.groups() for form in forms for match in form.finditer(text))
    return {tuple(float(each.replace("−", "-")) for each in three) for three in found}


def test_every_interval_in_prose_stands_beside_its_number_in_one_row_of_a_written_table() -> None:
    """Either way round: the lead of one over another is the other's lead, negated."""
    from tools.results import MARKED, PAGES

    tables = [table[0] for page in PAGES for table in MARKED.finditer(page.read_text())]
    known = intervals("\n".join(tables), BETWEEN, IN_A_ROW)
    known |= {(-middle, -high, -low) for middle, low, high in known}
    assert len(known) > 1000
    pages = [path for pattern in DECIDING for path in sorted(ROOT.glob(pattern))]
    pages += [ROOT / "README.md", ROOT / "docs/small-model.md"]
    typed = {path.name: intervals(MARKED.sub("", path.read_text()), BETWEEN) for path in pages}
    assert sum(map(len, typed.values())) > 150
    assert {name: missing for name, found in typed.items() if (missing := found - known)} == {}


def results_of(rows: list[dict[str, Any]]) -> str:
    verdict = {
        "claim": "e-dpo beats dpo",
        "detail": "at rho 0.2",
        "low": -0.1,
        "high": None,
        "difference": 0.25,
    }
    orderings = [{**verdict, "by_seed": [0.3, -0.1, None], "status": "not significant"}]
    return json.dumps({"provenance": {"unit": "sd"}, "table": rows, "orderings": orderings})


def test_a_table_has_every_policy_and_claim_and_a_dash_where_nothing_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools import results

    row = {"rho": 0.2, "policy": "dpo", "advantage": -0.125, "low": -0.25, "high": 0.0, "tokens": 5.18}
    won = {
        **row,
        "rho": None,
        "win": 0.5135,
        "win_low": 0.48,
        "win_high": 0.54,
        "kl": 1.96,
        "unfinished": 0.0,
    }
    (tmp_path / "results/mine").mkdir(parents=True)
    (tmp_path / "results/mine/figure2.json").write_text(results_of([row, won]))
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    page = "# Page\n<!-- cells of mine -->\nold\n<!-- end -->\ntext\n<!-- claims of mine -->\n<!-- end -->\n"
    assert results.written(page).splitlines() == [
        "# Page",
        "<!-- cells of mine -->",
        "",
        "| ρ | policy | advantage, sd | wins, % | utility | tokens | KL, nats | unfinished, % |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| none | dpo | −0.12 (−0.25 … +0.00) | 51.3 (48.0 … 54.0) | – | 5.2 | 2.0 | 0.0 |",
        "| 0.2 | dpo | −0.12 (−0.25 … +0.00) | – | – | 5.2 | – | – |",
        "",
        "<!-- end -->",
        "text",
        "<!-- claims of mine -->",
        "",
        "| claim | difference | 95 % interval | positive in | verdict |",
        "| --- | --- | --- | --- | --- |",
        "| e-dpo beats dpo: at rho 0.2 | +0.25 | −0.10 … – | 1 of 2 seeds | not significant |",
        "",
        "<!-- end -->",
    ]
    assert results.written(results.written(page)) == results.written(page)
