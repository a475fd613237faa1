"""Which of the shared options several commands take."""

from dataclasses import fields

from rpo_cli.runs.options import Options

# Options that commands share: all of them, those of a command for one artifact, those of one for a figure.
EVERY = frozenset(field.name for field in fields(Options))
ONE, FIGURE = EVERY - {"rho", "jobs"}, EVERY - {"seed", "force"}
COMPARING = FIGURE - {"recipe"}
COMPARED = "Policy recipes, or suites (a folder, one file): all their policies."
