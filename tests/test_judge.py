"""A judge that misbehaves costs time, never a verdict; bias is found out; what was paid for is kept."""

from __future__ import annotations

import base64
import json
import math
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RHO, Tiny, manifest, without_times
from fake_judge import FakeJudge, Script, completion, responses
from pydantic import ValidationError

from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.recipes import RecipeError, load
from rpo_cli.recipes.schema import JudgeSettings, result_fields
from rpo_cli.recipes.schema.evaluate import JUDGE_PROMPT
from rpo_cli.stages.judge import client
from rpo_cli.stages.judge.client import Answer, Judge, api_key, question_key, render, retry_after, verdict_of
from rpo_cli.stages.judge.verdicts import VERDICTS, Verdicts
from rpo_cli.stages.judge.winrates import RIDGE, fit_win_rate, judged, kappa, length_feature, scored

KEY = "sk-secret-0123456789"
JUDGED = f"{RHO}/judged/e-dpo/beta-0.2/test/fake"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, and no proxy between a test and its server."""
    monkeypatch.setattr(client, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Patience(threading.Event):
    """A signal to stop that notes how long somebody would have waited for it, and is never given."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return False


def ask(script: Script, stop: threading.Event | None = None, **settings: Any) -> tuple[Answer, FakeJudge]:
    """One question, on the endpoint's clock: how long this machine takes for an answer decides nothing."""
    with FakeJudge(script) as fake, pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "time", SimpleNamespace(monotonic=lambda: fake.clock, time=time.time))
        given = JudgeSettings(model="fake", base_url=fake.url, **settings)
        with Judge(given, api_key(given), stop or Patience()) as judge:
            return judge.ask("A or B?"), fake


def judge_of(tiny: Tiny, fake: FakeJudge, *arguments: object, code: int = 0) -> Any:
    return tiny.run("judge", "e-dpo.yaml", "--model", "fake", "--base-url", fake.url, *arguments, code=code)


# ── One question ────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_comes_through_every_passing_failure() -> None:
    said: list[Any] = [
        (500, {}, b"oops"),
        (429, {"Retry-After": "0"}, b""),
        (200, {}, b"{not json"),
        (200, {}, b'{"choices": []}'),
        "reset",
        90.0,
        (503, {}, b""),
        "Verdict: B",
    ]
    answer, fake = ask(lambda n, body: said[n], timeout=60, retries=7)
    assert answer.verdict == "B"
    assert len(fake.seen) == len(said)


def said(content: str, usage: str = '{"prompt_tokens": 1, "completion_tokens": 2}') -> bytes:
    """The body of a chat completion, whose parts need not be what they should be."""
    return f'{{"choices": [{{"message": {{"content": {content}}}}}], "usage": {usage}}}'.encode()


UNFIT = {
    "half a character": said(r'"Verdict: A \ud800"'),
    "a count of 400 digits": said('"A"', f'{{"prompt_tokens": {"9" * 400}}}'),
    "a count of 5000 digits": said('"A"', f'{{"prompt_tokens": {"9" * 5000}}}'),
    "a count below zero": said('"A"', '{"completion_tokens": -1}'),
    "no number": said('"A"', '{"prompt_tokens": NaN}'),
    "without an end": said('"A"', '{"prompt_tokens": Infinity}'),
    "nested without an end": said("[" * 100_000),
    "text that is a list": said('["Verdict: A"]'),
    "text that is a number": said("5"),
    "a choice that is text": b'{"choices": "A"}',
    "no object": b'"A"',
    "no Unicode": b'{"choices": "\xff"}',
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_answer_that_cannot_be_kept_is_asked_for_again(tmp_path: Path, name: str) -> None:
    answer, fake = ask(lambda n, body: "Verdict: B" if n else (200, {}, UNFIT[name]), retries=1)
    assert answer.verdict == "B" and len(fake.seen) == 2
    Verdicts(tmp_path / "v.jsonl").add("key", answer)
    assert Verdicts(tmp_path / "v.jsonl")["key"] == answer


@pytest.mark.parametrize("usage", ['{"prompt_tokens": "1"}', '{"prompt_tokens": 1.5}', "[]", "null", "5"])
def test_tokens_that_were_not_counted_do_not_spoil_an_answer(usage: str) -> None:
    answer, fake = ask(lambda n, body: (200, {}, said('"Verdict: A"', usage)))
    assert answer == Answer("A", "Verdict: A", None, None) and len(fake.seen) == 1


POISON = (
    r'{"key": "k", "verdict": "A", "text": "\ud800", "prompt_tokens": 1, "completion_tokens": 1}',
    f'{{"key": "k", "verdict": "A", "text": "", "prompt_tokens": {"9" * 400}, "completion_tokens": 1}}',
    '{"key": "k", "verdict": "C", "text": "", "prompt_tokens": 1, "completion_tokens": 1}',
    '{"key": "k", "verdict": "A", "text": null, "prompt_tokens": 1, "completion_tokens": 1}',
    '{"key": "k", "verdict": ["A"], "text": "", "prompt_tokens": 1, "completion_tokens": 1}',
    '{"key": ["k"], "verdict": "A", "text": "", "prompt_tokens": 1, "completion_tokens": 1}',
    "[" * 100_000,
    "5",
)


def test_kept_answers_that_cannot_be_read_are_passed_over_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    file.write_text("".join(f"{line}\n" for line in POISON))
    found = Verdicts(file)
    assert "k" not in found and found.unread == len(POISON)
    found.add("k", Answer("B", "", 1, 1))
    assert Verdicts(file)["k"].verdict == "B"


@pytest.mark.parametrize("fault", [(500, {}, b""), "reset", 90.0, (200, {}, b"[]"), (429, {}, b"")])
def test_a_failure_that_does_not_pass_ends_the_run_in_one_line(fault: Any) -> None:
    with pytest.raises(
        RunFailed, match=r"^judge 127.0.0.1:\d+: .* \(3 tries\); the same command goes on from here$"
    ) as error:
        ask(lambda n, body: fault, timeout=60, retries=2)
    assert KEY not in str(error.value)


def test_retry_after_is_waited_for() -> None:
    patience = Patience()
    answer, _ = ask(lambda n, body: "tie" if n else (429, {"Retry-After": "40"}, b""), patience)
    assert answer.verdict == "tie"
    assert [round(seconds) for seconds in patience.waits] == [40]


def test_retry_after_is_seconds_or_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.time, "time", lambda: 1445412420.0)
    assert retry_after("7") == 7
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 60
    assert retry_after("Wed, 21 Oct 2015 07:26:00 GMT") == 0
    assert [retry_after(header) for header in (None, "soon", "nan")] == [None, None, None]


def test_a_server_that_asks_to_wait_for_hours_ends_the_run() -> None:
    with pytest.raises(RunFailed, match="asks to wait 7200 s"):
        ask(lambda n, body: (429, {"Retry-After": "7200"}, b""))


@pytest.mark.slow
@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 422, 429, 500])
@pytest.mark.parametrize("quoted", [KEY, quote(KEY[:-2]), KEY[3:12], base64.b64encode(KEY.encode()).decode()])
def test_of_a_refusal_nothing_is_shown_but_its_status(status: int, quoted: str) -> None:
    """A body may quote the key whole, encoded or in part, and so may a header or where a redirect leads."""
    body = json.dumps({"error": {"message": f"bad key {quoted}\nfor you"}}).encode()
    seen: list[int] = []
    with pytest.raises(RunFailed) as error:
        headers = {"Location": f"https://elsewhere.example/{quoted}", "X-Key": quoted}
        ask(lambda n, request: seen.append(n) or (status, headers, body), retries=1)
    assert len(seen) == (2 if status in (429, 500) else 1)  # what cannot pass is not asked again
    hint = " (is OPENAI_API_KEY the key of this endpoint?)" if status in (401, 403) else ""
    again = " (2 tries); the same command goes on from here" if status in (429, 500) else ""
    assert str(error.value).partition(": ")[2] == f"HTTP {status}{hint}{again}"
    assert error.value.__cause__ is None


def test_what_is_no_http_is_not_shown_either() -> None:
    with pytest.raises(RunFailed, match=r": RemoteProtocolError \(1 tries\)") as error:
        ask(
            lambda n, body: (200, {"Content-Length": "-1", KEY: KEY, f"{KEY} ": f"\x00{KEY}"}, b""), retries=0
        )
    assert KEY not in str(error.value)


def test_a_key_that_an_answer_quotes_is_not_kept() -> None:
    answer, _ = ask(lambda n, body: f"Your key is {KEY}.\nVerdict: A")
    assert (answer.verdict, answer.text) == ("A", "Your key is ***.\nVerdict: A")


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://judge.example/v1", True), ("https://10.0.0.3:8000/v1", True),
        ("http://localhost:8000/v1", True), ("http://127.0.0.1:8000/v1", True), ("http://127.9.9.9/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://judge.example/v1", False), ("http://10.0.0.3:8000/v1", False), ("http://[::2]/v1", False),
        ("http://localhost.example/v1", False), ("http://127.0.0.1.example/v1", False),
        ("http://2130706433/v1", False), ("http://0.0.0.0:8000/v1", False),
    ],
)  # fmt: skip
def test_a_key_travels_encrypted_or_stays_on_this_machine(url: str, kept: bool) -> None:
    given = {"model": "m", "base_url": url, "api_key_env": "AWS_SECRET_ACCESS_KEY"}
    assert JudgeSettings.model_validate(given | {"api_key_env": None}).base_url == url
    if kept:
        assert JudgeSettings.model_validate(given).host in url
        return
    with pytest.raises(ValidationError, match=r"base_url: AWS_SECRET_ACCESS_KEY would go to .* unencrypted"):
        JudgeSettings.model_validate(given)


def test_no_proxy_sees_what_stays_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY")
    answer, fake = ask(lambda n, body: "Verdict: A", retries=0)
    assert (answer.verdict, fake.keys) == ("A", [f"Bearer {KEY}"])


def test_a_plan_says_which_key_goes_where_and_never_the_key(
    empty: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    empty.edit("evaluate.yaml", "judge: {model: m, api_key_env: AWS_SECRET_ACCESS_KEY}")
    result = empty.run("judge", "e-dpo.yaml", "--dry-run")
    assert "note: judge: the key in AWS_SECRET_ACCESS_KEY goes to api.openai.com\n" in result.stderr
    result = empty.run("judge", "e-dpo.yaml", "--base-url", "http://judge.example/v1", "--dry-run", code=2)
    assert "base_url: AWS_SECRET_ACCESS_KEY would go to judge.example unencrypted" in result.stderr
    assert KEY not in result.output


def test_an_answer_without_a_verdict_is_asked_for_once_more_and_both_are_billed() -> None:
    answer, fake = ask(lambda n, body: "Hard to say." if n == 0 else "Verdict: A")
    assert answer == Answer("A", "Verdict: A", 200, 20)
    answer, fake = ask(lambda n, body: "Hard to say.")
    assert (answer.verdict, len(fake.seen), answer.prompt_tokens) == (None, 2, 200)
    answer, _ = ask(lambda n, body: (200, {}, completion(None)))
    assert (answer.verdict, answer.text) == (None, "")
    answer, _ = ask(lambda n, body: (200, {}, completion("A", usage=False)))
    assert (answer.verdict, answer.prompt_tokens) == ("A", None)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Verdict: A", "A"),
        ("**Verdict:** B.", "B"),
        ("verdict: TIE\n", "tie"),
        ("Verdict: A\nOn reflection\nVerdict: B", "B"),
        ("[[A]]", "A"),
        (" b ", "B"),
        ("Verdict: Response B", "B"),
        ("Verdict:\nA", "A"),
        ("A is better", None),
        ("Verdict: a close call", None),
        ("Verdict: A tie", None),
        ("", None),
        ("Verdict: C", None),
        ("Verdict: A, at first sight.\nVerdict: C", None),
        ("Verdict: A\n**Verdict**: both are bad", None),
        ("The verdict: not easy.\nVerdict: B", "B"),
        ("Verdict: A\nReason for this verdict: it is more accurate.", "A"),
        ("Verdict: B\nJustification of verdict:\n- shorter", "B"),
        ("Verdict: A\nFinal verdict: both are bad", None),
        ("Verdict: A\n**Final verdict:** B", "B"),
        ("Verdict: A\n(My verdict rests on the facts.)", "A"),
        ("Verdict: A is better", "A"),
        ("Verdict: B is slightly better than A.", "B"),
        ("Verdict: A is worse", None),
        ("Verdict: A is not better", None),
        ("Verdict: A (slightly)", "A"),
        ("Verdict: A (or B)", None),
        ("Verdict: B wins", "B"),
        ("Verdict: **A**", "A"),
        ("It is.\n\\boxed{A}", "A"),
        ("Verdict: $\\boxed{\\text{B}}$", "B"),
        ("Verdict: draw", "tie"),
        ("Verdict: tie/draw", "tie"),
        ("## Verdict\n\n**B**\n", "B"),
        ("My verdict:\n- A\n- is shorter", None),
        ("I give no verdict. A", None),
        ("I give no verdict: A", None),
        ("This is my verdict; A", None),
    ],
)
def test_the_last_verdict_counts_and_only_where_it_is_one(text: str, verdict: str | None) -> None:
    assert verdict_of(text) == verdict


def test_the_question_is_what_the_settings_say() -> None:
    _, fake = ask(
        lambda n, body: "A", max_tokens=None, temperature=None, extra_body={"max_completion_tokens": 9}
    )
    question = [{"role": "user", "content": "A or B?"}]
    assert fake.seen == [{"model": "fake", "messages": question, "max_completion_tokens": 9}]
    assert fake.keys == [f"Bearer {KEY}"]
    _, fake = ask(lambda n, body: "A", api_key_env=None)
    assert fake.keys == [None]
    assert (fake.seen[0]["temperature"], fake.seen[0]["max_tokens"]) == (0.0, 512)


def test_braces_in_a_text_are_text() -> None:
    asked = render("{prompt}|{response_a}|{response_b}|{else}", "{response_a}", "{prompt} {0}", "b")
    assert asked == "{response_a}|{prompt} {0}|b|{else}"


def test_a_key_that_no_header_can_carry_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "  ", "sk-a b", "sk-ä"):
        monkeypatch.setenv("OPENAI_API_KEY", value)
        with pytest.raises(BadInput, match="OPENAI_API_KEY") as error:
            api_key(JudgeSettings(model="m"))
        assert "sk-" not in str(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert api_key(JudgeSettings(model="m")) == KEY


def test_verdicts_are_kept_by_all_that_is_sent_but_the_key() -> None:
    plain = JudgeSettings(model="m")
    same = [
        JudgeSettings(
            model="m",
            concurrency=1,
            timeout=1.0,
            retries=0,
            api_key_env="OTHER",
            price_per_million_input_tokens=1.0,
        )
    ]
    other = [
        JudgeSettings(model="n"),
        JudgeSettings(model="m", temperature=1.0),
        JudgeSettings(model="m", base_url="https://x/v1"),
        JudgeSettings(model="m", max_tokens=1),
        JudgeSettings(model="m", extra_body={"seed": 1}),
    ]
    assert {question_key(s, "?") for s in same} == {question_key(plain, "?")}
    assert len({question_key(s, "?") for s in (plain, *other)} | {question_key(plain, "!")}) == len(other) + 2


# ── What is kept ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_cut_short_by_a_kill_is_no_answer_and_spoils_none(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    Verdicts(file).add("one", Answer("A", "Ä\n", 1, 2))
    with file.open("ab") as handle:
        handle.write(b'{"key": "two", "verdict": "A", "te')
    found = Verdicts(file)
    assert found["one"] == Answer("A", "Ä\n", 1, 2) and "two" not in found
    found.add("two", Answer("B", "", None, None))
    found.add("one", Answer("B", "later", 1, 1))
    again = Verdicts(file)
    assert (again["one"].verdict, again["two"].verdict) == ("A", "B")


def test_threads_and_processes_may_add_to_one_file(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    keepers = [Verdicts(file), Verdicts(file)]
    threads = [
        threading.Thread(
            target=lambda k=k, i=i: [
                keepers[k].add(f"{k}/{i}/{j}", Answer("A", "x" * 5000, 1, 1)) for j in range(20)
            ]
        )
        for k in range(2)
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Verdicts(file)
    assert all(f"{k}/{i}/{j}" in found for k in range(2) for i in range(4) for j in range(20))
    assert len(file.read_bytes().splitlines()) == 160


def test_of_two_processes_that_asked_the_same_both_take_the_answer_that_is_kept(tmp_path: Path) -> None:
    one, other = Verdicts(tmp_path / "verdicts.jsonl"), Verdicts(tmp_path / "verdicts.jsonl")
    one.add("key", Answer("A", "first", 1, 1))
    other.add("key", Answer("B", "second", 1, 1))
    assert one["key"] == other["key"] == Verdicts(one.file)["key"] == Answer("A", "first", 1, 1)
    assert len(one.file.read_bytes().splitlines()) == 1


# ── What verdicts say ───────────────────────────────────────────────────────────────────────────────────────


def table_of(first: list[str | None], second: list[str | None], **columns: Any) -> pd.DataFrame:
    n = len(first)
    plain = {
        "prompt_id": [f"p{i}" for i in range(n)],
        "identical": False,
        "length_difference": 0.0,
        "oracle": np.nan,
    }
    return pd.DataFrame(
        {
            **plain,
            "first": pd.Series(first, dtype=object),
            "second": pd.Series(second, dtype=object),
            **columns,
        }
    )


def test_the_mean_of_both_orders_is_the_score() -> None:
    found = judged(table_of(["A", "A", "B", "tie", "A"], ["B", "A", "A", "tie", "tie"]), 200, 0)
    assert found["win_rate"] == pytest.approx((1 + 0.5 + 0 + 0.5 + 0.75) / 5)
    assert (found["wins"], found["ties"], found["losses"]) == (0.4, 0.4, 0.2)
    assert found["first_position_share"] == pytest.approx(5 / 7)
    assert found["position_decided_share"] == pytest.approx(1 / 5)
    assert found["win_rate_low"] < found["win_rate"] < found["win_rate_high"]


def test_a_judge_that_always_says_a_wins_nothing_for_anybody() -> None:
    rng = np.random.default_rng(0)
    found = judged(
        table_of(
            ["A"] * 50, ["A"] * 50, length_difference=rng.normal(size=50), oracle=rng.choice([-1.0, 1.0], 50)
        ),
        100,
        0,
    )
    assert [found[name] for name in ("win_rate", "win_rate_low", "win_rate_high")] == [0.5, 0.5, 0.5]
    assert found["length_controlled_win_rate"] == pytest.approx(0.5)
    assert (found["ties"], found["first_position_share"], found["position_decided_share"]) == (1.0, 1.0, 1.0)
    assert found["oracle_kappa"] == pytest.approx(0.0) and found["oracle_agreement_decided"] is None


def test_comparisons_without_a_verdict_are_counted_and_identical_ones_are_ties() -> None:
    found = judged(table_of(["A", None, None], ["B", "A", None], identical=[False, False, True]), 50, 0)
    assert (found["comparisons"], found["unread"], found["identical"]) == (2, 1, 1)
    assert found["win_rate"] == 0.75
    with pytest.raises(ValueError, match="no comparison has a verdict"):
        judged(table_of([None], ["A"]), 50, 0)


@pytest.mark.parametrize("stored", [False, True])
def test_a_column_of_verdicts_with_gaps_reads_the_same_in_whatever_type_it_has(
    tmp_path: Path, stored: bool
) -> None:
    """A table's text column holds NaN where a list held None."""
    table = table_of(["A"] * 3, ["B"] * 3)
    table["first"] = ["A", None, None]
    table["second"] = ["B", "B", None]
    if stored:
        table.to_parquet(tmp_path / "verdicts.parquet", index=False)
        table = pd.read_parquet(tmp_path / "verdicts.parquet")
    assert scored(table)["score"].fillna(-1).tolist() == [1, -1, -1]
    found = judged(table, 50, 0)
    assert (found["comparisons"], found["unread"], found["win_rate"], found["losses"]) == (1, 2, 1, 0)


def test_samples_of_one_prompt_count_as_one() -> None:
    table = table_of(["A", "B", "B", "B"], ["B", "A", "A", "A"], prompt_id=["p", "q", "q", "q"])
    assert judged(table, 50, 0)["win_rate"] == 0.5


def test_a_judge_of_length_alone_is_even_at_equal_length() -> None:
    """Wins follow sigmoid(theta + phi tanh(d / sd)): theta is found whatever the lengths do."""
    rng = np.random.default_rng(1)
    lengths = rng.normal(loc=60, scale=40, size=4000)
    for theta in (0.0, 0.7):
        p = 1 / (1 + np.exp(-(theta + 2.0 * length_feature(lengths))))
        won = rng.random(4000) < p
        table = table_of(
            ["A" if w else "B" for w in won], ["B" if w else "A" for w in won], length_difference=lengths
        )
        found = judged(table, 200, 0)
        truth = 1 / (1 + math.exp(-theta))
        assert found["win_rate"] > truth + 0.1
        assert found["length_controlled_win_rate_low"] < truth < found["length_controlled_win_rate_high"]
        assert found["length_coefficient"] == pytest.approx(2.0, abs=0.35)


def test_the_regression_is_at_its_maximum_also_where_one_side_always_wins() -> None:
    rng = np.random.default_rng(2)
    x = np.tanh(rng.normal(size=40))
    weights = rng.integers(0, 4, size=(3, 40)).astype(float)
    for wins in (rng.choice([0.0, 0.25, 0.5, 1.0], 40), np.ones(40), (x > 0).astype(float)):
        found = fit_win_rate(x, wins, weights)
        for row, (theta, phi) in zip(weights, found, strict=True):
            parameters = torch.tensor([theta, phi], dtype=torch.float64, requires_grad=True)
            logits = parameters[0] + parameters[1] * torch.tensor(x)
            losses = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, torch.tensor(wins), reduction="none"
            )
            ((torch.tensor(row) * losses).sum() + RIDGE / 2 * (parameters**2).sum()).backward()
            assert parameters.grad is not None and parameters.grad.abs().max() < 1e-7


def test_kappa_is_agreement_beyond_chance() -> None:
    assert kappa([1, -1, 0, 1], [1, -1, 0, 1]) == 1
    # Cohen's own kind of table: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: (0.7 - 0.5) / 0.5.
    one, other = [1] * 25 + [-1] * 25, [1] * 20 + [-1] * 5 + [1] * 10 + [-1] * 15
    assert kappa(one, other) == pytest.approx(0.4)
    assert kappa([1, 1], [1, 1]) is None


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────


def everything(root: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file())


def test_a_judge_that_always_says_a_makes_ties_in_the_workspace_too(tiny: Tiny) -> None:
    with FakeJudge(lambda n, body: "Verdict: A") as fake:
        result = judge_of(tiny, fake)
    metrics = manifest(tiny.root, JUDGED)["metrics"]
    assert (
        metrics["baseline/win_rate"],
        metrics["baseline/ties"],
        metrics["baseline/first_position_share"],
    ) == (0.5, 1.0, 1.0)
    assert "at equal length; the order of the two decided 100 %" in result.output
    assert (
        metrics["questions"]
        == len(fake.seen)
        == 2 * (metrics["baseline/comparisons"] - metrics["baseline/identical"])
    )
    assert (metrics["prompt_tokens"], metrics["uncounted"], metrics["cost"]) == (
        100 * len(fake.seen),
        0,
        None,
    )
    assert KEY.encode() not in everything(tiny.root) and KEY not in result.output
    assert set(fake.keys) == {f"Bearer {KEY}"}


def test_a_judge_that_agrees_with_the_oracle_is_found_to(tiny: Tiny) -> None:
    frames = [
        pd.read_parquet(tiny.root / path / "samples.parquet")
        for path in (f"{RHO}/evaluations/e-dpo/beta-0.2/test", "seed-0/evaluations/sft/test")
    ]
    # Of equal texts for one prompt the reward is equal as well.
    reward = {(row.prompt, row.response): row.reward for frame in frames for row in frame.itertuples()}

    def oracle(number: int, body: dict[str, Any]) -> str:
        a, b = responses(body)
        prompt = body["messages"][0]["content"].split("<prompt>\n")[1].split("\n</prompt>")[0]
        return "Verdict: " + (
            "A"
            if reward[prompt, a] > reward[prompt, b]
            else "B"
            if reward[prompt, a] < reward[prompt, b]
            else "tie"
        )

    with FakeJudge(oracle) as fake:
        judge_of(tiny, fake)
    metrics = manifest(tiny.root, JUDGED)["metrics"]
    assert metrics["baseline/oracle_agreement"] == 1.0 and metrics["baseline/oracle_kappa"] == 1.0
    assert metrics["baseline/position_decided_share"] == 0.0
    evaluated = manifest(tiny.root, f"{RHO}/evaluations/e-dpo/beta-0.2/test")["metrics"]
    assert -1 <= metrics["baseline/win_rate"] - evaluated["win_rate"] <= 1


def test_a_judge_that_refuses_every_third_prompt_costs_these_and_nobody_a_win(tiny: Tiny) -> None:
    """It prefers the policy's response always; what it refuses is no loss, and is not paid for twice."""
    samples = pd.read_parquet(tiny.root / f"{RHO}/evaluations/e-dpo/beta-0.2/test/samples.parquet")
    ours = set(samples["response"])
    refused = set(samples["prompt"].drop_duplicates()[::3])

    def script(number: int, body: dict[str, Any]) -> str:
        prompt = body["messages"][0]["content"].split("<prompt>\n")[1].split("\n</prompt>")[0]
        a, b = responses(body)
        better = "A" if a in ours and b not in ours else "B" if b in ours and a not in ours else "tie"
        return "I cannot say." if prompt in refused else f"Verdict: {better}"

    with FakeJudge(script) as fake:
        said = judge_of(tiny, fake).output
        metrics, sent = manifest(tiny.root, JUDGED)["metrics"], len(fake.seen)
        verdicts = pd.read_parquet(tiny.root / JUDGED / "verdicts.parquet")
        lost = verdicts[verdicts["prompt"].isin(refused) & ~verdicts["identical"]]
        assert metrics["baseline/unread"] == len(lost) > 0 and metrics["baseline/losses"] == 0
        assert metrics["baseline/comparisons"] == len(verdicts) - len(lost)
        assert f"; {len(lost)} of {len(verdicts)} left out, an answer held no verdict" in said
        assert sent == metrics["questions"] + 2 * len(lost)
        judge_of(tiny, fake, "--force")
        assert len(fake.seen) == sent


def test_kept_answers_are_read_as_they_are_read_today(tiny: Tiny) -> None:
    """An answer that an earlier version could not read, or read wrongly, is not paid for again."""
    with FakeJudge(lambda n, body: "Verdict: B is better") as fake:
        judge_of(tiny, fake)
        lines = [json.loads(line) for line in (tiny.root / VERDICTS).read_bytes().splitlines()]
        kept = [json.dumps({**line, "verdict": "A" if n % 2 else None}) for n, line in enumerate(lines)]
        (tiny.root / VERDICTS).write_text("".join(f"{line}\n" for line in kept))
        sent, before = len(fake.seen), (tiny.root / JUDGED / "verdicts.parquet").read_bytes()
        judge_of(tiny, fake, "--force")
        assert len(fake.seen) == sent
        assert (tiny.root / JUDGED / "verdicts.parquet").read_bytes() == before


def test_references_of_the_data_are_an_opponent_too(tiny: Tiny) -> None:
    tiny.edit(
        "evaluate.yaml",
        "judge: {model: fake, against: [reference, baseline], price_per_million_input_tokens: 2, "
        "price_per_million_output_tokens: 10, num_prompts: 3}",
    )
    with FakeJudge(
        lambda n, body: "Verdict: " + ("A" if len(responses(body)[0]) > len(responses(body)[1]) else "B")
    ) as fake:
        tiny.run("judge", "e-dpo.yaml", "--base-url", fake.url)
    found = manifest(tiny.root, JUDGED)
    assert found["metrics"]["reference/prompts"] == found["metrics"]["baseline/prompts"] == 3
    assert "reference/oracle_kappa" not in found["metrics"]
    assert found["metrics"]["cost"] == pytest.approx(len(fake.seen) * (100 * 2 + 10 * 10) / 1e6)
    verdicts = pd.read_parquet(tiny.root / JUDGED / "verdicts.parquet")
    data = pd.read_parquet(tiny.root / "seed-0/data/prompts_test.parquet").set_index("prompt")["completion"]
    rows = verdicts[verdicts["against"] == "reference"]
    assert rows["other"].tolist() == [data[prompt] for prompt in rows["prompt"]]


def test_an_interrupted_run_asks_only_what_is_missing_and_ends_the_same(
    built: Tiny, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def longer(number: int, body: dict[str, Any]) -> str:
        a, b = responses(body)
        return "Verdict: " + ("A" if len(a) > len(b) else "B" if len(a) < len(b) else "tie")

    with FakeJudge(
        lambda n, body: longer(n, body) if n < 10 or n >= mood[0] else (400, {}, b"enough")
    ) as fake:
        mood = [10**6]
        lines = judge_of(tiny, fake, code=1).stderr.splitlines()
        assert ": judge 127.0.0.1" in lines[-1] and lines[-1].endswith("HTTP 400")
        assert len((tiny.root / VERDICTS).read_bytes().splitlines()) == 10
        mood, answered = [len(fake.seen)], {json.dumps(body) for body in fake.seen[:10]}
        judge_of(tiny, fake)
        later = [json.dumps(body) for body in fake.seen[mood[0] :]]
        assert not answered & set(later) and len(set(later)) == len(later)
        found, count = manifest(tiny.root, JUDGED), len(fake.seen)
        assert found["metrics"]["questions"] == len(answered) + len(later)

        # Without an interruption: the same, to the bit.
        # And nothing is asked twice, not even by --force without a key.
        other = Tiny(tiny.suite, tmp_path / "other")
        shutil.copytree(built.root, other.root)
        judge_of(other, fake)
        assert without_times(manifest(other.root, JUDGED)) == without_times(found)
        for name in ("verdicts.parquet", "metrics.json"):
            assert (other.root / JUDGED / name).read_bytes() == (tiny.root / JUDGED / name).read_bytes()
        monkeypatch.delenv("OPENAI_API_KEY")
        count = len(fake.seen)
        judge_of(tiny, fake, "--force")
        assert len(fake.seen) == count
        assert without_times(manifest(tiny.root, JUDGED)) == without_times(found)


def test_a_judge_changes_no_evaluation(built: Tiny, tiny: Tiny) -> None:
    plain = load(str(built.suite / "evaluate.yaml")).recipe
    tiny.edit("evaluate.yaml", "judge: {model: fake}")
    assert result_fields(load(str(tiny.suite / "evaluate.yaml")).recipe) == result_fields(plain)
    assert "judge" not in result_fields(plain) and "sampler" not in result_fields(plain)
    assert json.loads(tiny.run("evaluate", "e-dpo.yaml", "--dry-run", "--json").stdout) == []
    planned = json.loads(tiny.run("judge", "e-dpo.yaml", "--dry-run", "--json").stdout)
    assert [item["path"] for item in planned] == [JUDGED]


def test_a_missing_key_is_said_before_anything_is_built(empty: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    result = empty.run("judge", "e-dpo.yaml", "--model", "fake", code=2)
    assert result.stderr.splitlines()[-1].startswith("judge: OPENAI_API_KEY is not set")
    assert not (empty.root / "seed-0").exists()
    result = empty.run("judge", "e-dpo.yaml", code=2)
    assert "evaluate.yaml:1: judge: missing" in result.stderr


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("{modle: x}", "judge.modle: unknown key, did you mean model?"),
        ("{}", "judge.model: missing"),
        ("gpt", "judge: expected a mapping, got text ('gpt')"),
        ("{model: m, base_url: 'https://user:pw@host/v1'}", "without user, password or query"),
        ("{model: m, base_url: 'https://host/v1?key=1'}", "without user, password or query"),
        ("{model: m, prompt: 'Which of {response_a}?'}", "judge.prompt: lacks {prompt}, {response_b}"),
        ("{model: m, retries: -1}", "judge.retries: must be at least 0"),
        ("{model: m, extra_body: {stream: true}}", "judge.extra_body: stream cannot be set here"),
        ("{model: m, against: [oracle]}", "judge.against"),
        ("{model: m, against: [baseline, baseline]}", "judge.against: lists baseline twice"),
        (
            "{model: m, base_url: 'http://judge.example'}",
            "OPENAI_API_KEY would go to judge.example",
        ),
        (
            "{model: m, api_key_env: sk-secret-0123456789}",
            "expected the name of an environment variable",
        ),
        (
            "{model: m, extra_body: {headers: [{Api-Key: x}]}}",
            "judge.extra_body: a secret has no place",
        ),
    ],
)
def test_mistakes_in_a_judge_are_named_with_their_line(tiny: Tiny, section: str, says: str) -> None:
    tiny.edit("evaluate.yaml", f"judge: {section}")
    with pytest.raises(RecipeError) as error:
        load(str(tiny.suite / "evaluate.yaml"))
    line = len((tiny.suite / "evaluate.yaml").read_text().splitlines())
    assert any(
        f"evaluate.yaml:{line}: " in problem and says in problem for problem in error.value.problems
    ), error.value.problems


def test_the_default_question_asks_for_what_is_read() -> None:
    for verdict in ("A", "B", "tie"):
        assert f"Verdict: {verdict}" in JUDGE_PROMPT and verdict_of(f"It is.\nVerdict: {verdict}") == verdict
