"""What each kind of figure gathers and draws."""

from rpo_cli.figures.kinds.base import FigureKind
from rpo_cli.figures.kinds.rows import KINDS
