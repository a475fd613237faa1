"""What several commands share: which options they take, and how seeds are read."""

from dataclasses import fields

from rpo_cli.errors import BadInput
from rpo_cli.runs.options import Options

# Options that commands share: all of them, those of a command for one artifact, those of one for a figure.
EVERY = frozenset(field.name for field in fields(Options))
ONE, FIGURE = EVERY - {"rho", "jobs"}, EVERY - {"seed", "force"}
COMPARING = FIGURE - {"recipe"}
COMPARED = "Policy recipes, or suites (a folder, one file): all their policies."


def numbers(text: str | None) -> list[int] | None:
    """The whole numbers of --seeds; None where it is not given."""
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"--seeds {text}: expected whole numbers with commas, such as 0,1,2") from None
    if len(set(found)) < len(found):
        raise BadInput(f"--seeds {text}: one of them twice")
    return found
