"""Experiments: choose on validation, evaluate on test, keep, claim, draw."""

from rpo_cli.figures.compare import run_compare
from rpo_cli.figures.plan import PlanOptions, run_plan
from rpo_cli.figures.report import run_report
from rpo_cli.figures.run import run_figure
from rpo_cli.figures.status import show_status
from rpo_cli.figures.sweep import run_sweep
