"""Every kind of figure, by the name that a recipe gives it."""

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

MODULES = (figure2, degeneracy, gamma, ensemble, kl, unbiased, curves, teachers, reward_kl)
KINDS = {module.KIND.name: module.KIND for module in MODULES}
