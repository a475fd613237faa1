"""What each kind of figure gathers and draws."""

from rpo_cli.figures.kinds import (
    curves,
    degeneracy,
    ensemble,
    figure2,
    gamma,
    kl,
    reward_kl,
    teachers,
    unbiased,
)
from rpo_cli.figures.kinds.base import FigureKind

MODULES = (figure2, degeneracy, gamma, ensemble, kl, unbiased, curves, teachers, reward_kl)
KINDS = {module.KIND.name: module.KIND for module in MODULES}
