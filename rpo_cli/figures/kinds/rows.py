"""Every kind of figure, by the name that a recipe gives it."""

from rpo_cli.figures.kinds import degeneracy, ensemble, figure2, gamma, kl, unbiased

KINDS = {kind.name: kind for kind in (m.KIND for m in (figure2, degeneracy, gamma, ensemble, kl, unbiased))}
