"""Rewards of, and samples for, the rows of a plain file."""

from rpo_cli.stages.files.sampler import Sampler
from rpo_cli.stages.files.scorer import FORMS, Scorer, form_in, unanswered
from rpo_cli.stages.files.table import Columns, Make, Table, extend
