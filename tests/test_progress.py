"""Properties of an ETA, under a clock that the test sets."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping

import pytest
from conftest import Tiny
from rich.console import Console

from rpo_cli.artifacts import Report, Workspace, job_of
from rpo_cli.runs.progress import QUIET_SECONDS, PlanProgress


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def plan(
    expected: Mapping[str, float], kinds: Mapping[str, str] | None = None, jobs: int = 1
) -> tuple[PlanProgress, Clock, io.StringIO]:
    clock, said = Clock(), io.StringIO()
    return (
        PlanProgress(
            Console(file=said, width=200), expected, jobs, kinds or {path: path for path in expected}, clock
        ),
        clock,
        said,
    )


def run(progress: PlanProgress, clock: Clock, path: str, each: float, steps: range, of: int) -> None:
    """Report steps that take `each` seconds."""
    for step in steps:
        clock.seconds += each
        progress.step(path, step, of)


def test_before_anything_ran_the_eta_is_what_was_expected() -> None:
    progress, _, _ = plan({"a": 10, "b": 20})
    assert progress.eta() == 30 and progress.share() == 0
    assert plan({"a": 10, "b": 20}, jobs=2)[0].eta() == 20  # not 15: b is one process


def test_a_running_stages_eta_is_its_own_rate_not_the_guess() -> None:
    progress, clock, _ = plan({"sft": 10})
    progress.start("sft")
    clock.seconds += 40  # loading a model
    run(progress, clock, "sft", 3.0, range(1, 6), 100)
    assert progress.eta() == pytest.approx(95 * 3)
    run(progress, clock, "sft", 3.0, range(6, 51), 100)
    assert progress.eta() == pytest.approx(50 * 3)
    assert progress.share() == pytest.approx((40 + 150) / (40 + 300))
    clock.seconds += 2
    assert progress.eta() == pytest.approx(50 * 3 - 2)


def test_a_resumed_stage_counts_the_steps_it_does_itself() -> None:
    progress, clock, _ = plan({"sft": 10})
    progress.start("sft")
    run(progress, clock, "sft", 2.0, range(81, 91), 100)
    assert progress.eta() == pytest.approx(10 * 2)


def test_a_resumed_stage_says_nothing_wrong_of_those_that_wait() -> None:
    """It did a tenth of its steps itself, which took a tenth of what a whole one takes."""
    progress, clock, _ = plan({"b1": 100, "b2": 100}, {"b1": "reward", "b2": "reward"})
    progress.start("b1")
    run(progress, clock, "b1", 1.0, range(91, 92), 100)
    assert progress.eta() == pytest.approx(10 - 1 + 100)
    run(progress, clock, "b1", 1.0, range(92, 101), 100)
    assert progress.eta() == pytest.approx(100)
    progress.finish("b1", "done")
    assert progress.eta() == pytest.approx(100)


def test_a_resumed_stages_loading_counts_once_for_those_that_wait() -> None:
    """30 seconds until its model is there, then a second for each step: 130 for a whole one."""
    progress, clock, _ = plan({"b1": 130, "b2": 130}, {"b1": "reward", "b2": "reward"})
    progress.start("b1")
    clock.seconds += 30
    run(progress, clock, "b1", 1.0, range(96, 101), 100)
    progress.finish("b1", "done")
    assert progress.eta() == pytest.approx(130)


def test_loading_a_model_is_no_step_of_its_training() -> None:
    progress, clock, _ = plan({"sft": 300}, {"sft": "sft"})
    progress.start("sft")
    clock.seconds += 40
    run(progress, clock, "sft", 3.0, range(1, 2), 100)
    assert progress.eta() == pytest.approx(300 - 43)
    run(progress, clock, "sft", 3.0, range(2, 3), 100)
    assert progress.eta() == pytest.approx(98 * 3)


def test_the_start_of_a_worker_is_no_time_of_its_first_stage() -> None:
    progress, clock, _ = plan({"data": 2, "sft": 100}, {"data": "data", "sft": "sft"})
    progress.start("data")
    clock.seconds += 30
    progress.step("data", 0, 1)
    clock.seconds += 2
    progress.finish("data", "done")
    assert progress.eta() == pytest.approx(100)


def test_the_first_report_is_already_an_estimate() -> None:
    progress, clock, _ = plan({"scores": 10})
    progress.start("scores")
    run(progress, clock, "scores", 6.0, range(64, 65), 640)
    assert progress.eta() == pytest.approx(54)


def test_stages_that_wait_take_what_others_of_their_kind_took() -> None:
    kinds = {"b1": "reward", "b2": "reward", "b3": "reward", "splits": "splits"}
    progress, clock, _ = plan({"splits": 1, "b1": 10, "b2": 10, "b3": 10}, kinds)
    progress.start("splits")
    clock.seconds += 1
    progress.finish("splits", "done")
    assert progress.eta() == 30
    progress.start("b1")
    run(progress, clock, "b1", 5.0, range(1, 41), 40)
    assert progress.eta() == pytest.approx(400)  # from one that still runs
    clock.seconds += 20  # saving
    progress.finish("b1", "done")
    assert progress.eta() == pytest.approx(440)  # from one that is done
    progress.start("b2")
    clock.seconds += 30
    assert progress.eta() == pytest.approx(410)


def test_expected_times_that_were_measured_elsewhere_keep_their_proportions() -> None:
    kinds = {"oracle": "reward", "rm": "reward", "policy": "policy"}
    progress, clock, _ = plan({"oracle": 25, "rm": 8, "policy": 10}, kinds)
    progress.start("oracle")
    clock.seconds += 50
    progress.finish("oracle", "done")
    assert progress.remaining() == pytest.approx({"rm": 16, "policy": 20})  # this machine is half as fast


def test_a_short_stage_says_nothing_of_how_long_others_take() -> None:
    kinds = {"data": "data", "splits": "splits", "dpo": "policy", "d-dpo": "policy", "evaluate": "evaluate"}
    expected = {"data": 5, "splits": 1, "dpo": 20, "d-dpo": 20, "evaluate": 10}
    progress, clock, _ = plan(expected, kinds)
    progress.start("data")
    run(progress, clock, "data", 10.0, range(1, 2), 6)
    assert progress.eta() == pytest.approx(50 + 51)  # its own rate for itself, for others what was expected
    progress.finish("data", "done")
    progress.start("splits")
    clock.seconds += 30
    progress.finish("splits", "done")
    assert progress.eta() == 50
    progress.start("dpo")
    clock.seconds += 60
    progress.finish("dpo", "done")
    assert progress.remaining() == pytest.approx({"d-dpo": 60, "evaluate": 30})


def test_two_jobs_share_the_work_and_end_at_nothing() -> None:
    progress, clock, said = plan(
        {"a": 10, "b": 10, "c": 10, "d": 10}, dict.fromkeys("abcd", "reward"), jobs=2
    )
    for one, other in (("a", "b"), ("c", "d")):
        progress.start(one)
        progress.start(other)
        clock.seconds += 30
        progress.finish(one, "done")
        progress.finish(other, "done")
    assert progress.eta() == 0 and progress.share() == 1
    lines = said.getvalue().splitlines()
    assert lines[0] == "a: started  [0/4 stages, ETA 20s]"
    assert "c: started" not in said.getvalue()  # said within a few seconds of the line before
    assert "b: done  [2/4 stages, ETA 30s]" in lines and lines[-1] == "d: done  [4/4 stages, ETA 0s]"


def test_lines_of_a_running_stage_come_every_few_seconds() -> None:
    progress, clock, said = plan({"sft": 10})
    progress.start("sft")
    run(progress, clock, "sft", 1.0, range(1, 101), 100)
    assert len(said.getvalue().splitlines()) == 1 + 100 // int(QUIET_SECONDS)


def test_what_the_package_warns_of_below_a_stage_is_told_once_and_recorded_nowhere(tiny: Tiny) -> None:
    stage = tiny.stage("splits.yaml")
    job = job_of(stage, Workspace(tiny.root, tiny.suite.name), {})
    with Report(job, lambda step, of: None) as report:
        for _ in range(2):
            logging.getLogger("rpo").warning("%s cannot share prompts", "m")
        report.warn("a leak")
    logging.getLogger("rpo").warning("afterwards")
    assert (report.told, report.warnings) == (["m cannot share prompts"], ["a leak"])


def test_a_line_of_a_running_stage_says_what_its_journal_says() -> None:
    progress, clock, said = plan({"policy": 10})
    progress.latest = lambda path: f"loss of {path}"
    progress.start("policy")
    run(progress, clock, "policy", 10.0, range(1, 3), 10)
    progress.finish("policy", "done")
    lines = said.getvalue().splitlines()
    assert lines[1].startswith("policy: 1/10  loss of policy  [") and "loss of" not in lines[-1]


def test_a_warning_of_several_stages_is_said_once_and_counted_at_the_end() -> None:
    progress, _, said = plan(dict.fromkeys("abc", 1.0))
    for path in "abc":
        progress.finish(path, "done", ["the same", f"{path} alone"])
    progress.close()
    lines = [line for line in said.getvalue().splitlines() if "the same" in line]
    assert lines == ["warning: a: the same", "warning: 3 stages in all warned: the same"]
    assert said.getvalue().count("alone") == 3
