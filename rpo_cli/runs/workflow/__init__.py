"""Workflows for engines of other programs, each a folder with a plan and what carries it out."""

from rpo_cli.runs.workflow.write import write
