"""`rpo report`: a comparison as one HTML page that needs nothing else, from its numbers alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from io import StringIO
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING
from zlib import crc32

from rpo_cli.artifacts import publish
from rpo_cli.errors import BadInput
from rpo_cli.figures.cells import BASELINE, FORMAT
from rpo_cli.figures.compare import compared
from rpo_cli.figures.run import require_folder, require_kept_alone
from rpo_cli.figures.tabled import FORMS, table_of
from rpo_cli.runs.options import Comparing
from rpo_cli.runs.session import Session
from rpo_cli.text import clock

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rpo_cli.figures.drawing import Looks
    from rpo_cli.figures.numbers import Comparison, Line, Panel

PAGE = "report.html"  # the template beside this file
WIDE = 4.2  # inches of a picture, which is as wide as there is room
FORWARD = "forward KL, KL(π_ref ‖ π_θ)"  # what training logs; the table's is KL(π_θ ‖ π_ref)
INK = "#010203"  # drawn in this, shown in the colour of the page's text
STYLE: dict[str, object] = {
    "svg.fonttype": "none", "svg.hashsalt": "rpo", "text.parse_math": False, "lines.markersize": 5,
    "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "none",
    "axes.facecolor": "none", "axes.titlesize": 10, "axes.titlelocation": "left",
    "axes.titleweight": "bold", "legend.frameon": False,
}  # fmt: skip


def run_report(
    session: Session, recipes: Sequence[str], how: Comparing, kept: Path | None, out: Path
) -> None:
    """Write the page of a comparison, made now or kept as JSON, or its table; print its path."""
    if kept is not None and recipes:
        raise BadInput("--from: takes the place of recipes; give one or the other")
    if kept is not None:
        require_kept_alone(session, how)
    if kept is None and not recipes:
        raise BadInput("name the recipes to compare, a folder of them, or --from RESULTS.json")
    if out.is_dir():
        raise BadInput(f"--out {out}: is a folder; name the file, such as {out / 'report.html'}")
    require_folder(out.parent)
    found = read_kept(kept) if kept is not None else compared(session, recipes, how, None, whole=True)
    if found is not None:
        form = out.suffix.lower()
        publish(out, table_of(found, form) if form in FORMS else page_of(found).encode())
        print(out)


def read_kept(file: Path) -> Comparison:
    """What `rpo compare --json` printed.

    Raises:
        BadInput: the file holds something else.
    """
    try:
        found: Comparison = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: cannot be read as JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT or "rows" not in found:
        how = f"`rpo compare … --json > {quote(str(file))}`"
        raise BadInput(f"{file}: holds no comparison; {how} writes one")
    return found


def page_of(found: Comparison) -> str:
    """The whole page; every text of it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rpo_cli.figures", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": clock, "number": number}
    rows = {(row["policy"], row["measure"]): row for row in found["rows"]}
    names = list(dict.fromkeys(row["policy"] for row in found["rows"]))
    facts = {
        "names": names,
        "rows": rows,
        "differences": list(differences(found)),
        "curves": list(curves(found["curves"])),
        "baseline": BASELINE,
        "seconds": sum(cost["seconds"] for cost in found["costs"]),
    }
    return environment.get_template(PAGE).render(found=found, **facts)


def number(value: object, digits: int = 4, sign: bool = False) -> str:
    """A number with so many decimals, a whole one without any; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    whole = isinstance(value, int)
    kept = value if whole else round(value, digits) + 0.0  # no minus zero
    return format(kept, ("+" if sign else "") + ("," if whole else f",.{digits}f"))


def differences(found: Comparison) -> Iterator[str]:
    """A picture for each measure: every policy's difference to the one compared with, and its interval."""
    from rpo_cli.figures.numbers import ends

    for measure in found["measures"]:
        own = [row for row in found["rows"] if row["measure"] == measure["name"]]
        rows = [(row["policy"], apart) for row in own if (apart := ends(row["difference"]))]
        said = (f"{policy} {number(mean, measure['digits'], True)}" for policy, (mean, *_) in rows)
        title = f"{measure['title']}, {measure['unit']}"
        if rows:
            yield picture(
                title, 0.9 + 0.3 * len(rows), f"Difference in {title}: {', '.join(said)}", partial(bars, rows)
            )


def bars(rows: Sequence[tuple[str, tuple[float, float, float]]], axes: Axes) -> None:
    """A dot with its interval for each row, from the top; zero marked."""
    for height, (_, (mean, low, high)) in enumerate(rows):
        axes.hlines(height, low, high, color=INK, linewidth=2)
        axes.plot(mean, height, "o", color=INK, markersize=6)
    axes.axvline(0, color=INK, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [policy for policy, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)


def curves(panels: Sequence[Panel]) -> Iterator[str]:
    """A picture for each logged number."""
    from rpo_cli.figures.drawing import looks_of

    policies = list(dict.fromkeys(line["policy"] for each in panels for line in each["lines"]))
    for each in panels:
        name = each["name"].replace("kl_to_reference", FORWARD)
        said = f"{name} by training step, of {', '.join(policies)}"
        yield picture(name, 2.6, said, partial(draw_lines, each["lines"], looks_of(policies)))


def draw_lines(lines: Sequence[Line], looks: Looks, axes: Axes) -> None:
    """A line for each policy and seed; policies are told apart by colour and marker."""
    for line in lines:
        colour, marker = looks[line["policy"]]
        label = line["policy"] if line["seed"] == lines[0]["seed"] else None
        colour = INK if colour == "#000000" else colour
        axes.plot(line["step"], line["value"], color=colour, marker=marker, markevery=0.2, label=label)
    axes.legend(fontsize=8)
    axes.set_xlabel("step")


def picture(title: str, height: float, said: str, draw: Callable[[Axes], None]) -> str:
    """What is drawn as an SVG element of a page, in the page's font and ink; `said`: in its place."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    text = StringIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDE, height))
        axes = figure.subplots()
        axes.set_title(title)
        axes.locator_params(axis="x", nbins=4)
        draw(axes)
        # By hand: a layout engine takes twice the time, and a page has a dozen pictures.
        longest = max((len(label.get_text()) for label in axes.get_yticklabels()), default=0)
        left = min(0.5, (0.2 + 0.085 * max(6, longest)) / WIDE)
        figure.subplots_adjust(left=left, right=0.94, top=1 - 0.3 / height, bottom=0.5 / height)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.S)
    drawn = re.sub(r' (width|height)="[\d.]+pt"', "", drawn)  # as wide as there is room
    drawn = re.sub(r' id="[A-Za-z][\w.]*_\d+"', "", drawn)  # the same in every picture, and unused
    drawn = re.sub(r'(id="|#)([mp][0-9a-f]{10})', rf"\g<1>{crc32(said.encode()):x}-\2", drawn)
    drawn = drawn.replace(INK, "currentColor").replace("sans-serif", "inherit")
    return drawn.replace("<svg", f'<svg role="img" aria-label="{escape(said)}"', 1)
