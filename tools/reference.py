"""Write docs/reference: the commands from the Typer app, keys of recipes and plans from pydantic's schemas.

python -m tools.reference            writes both pages
python -m tools.reference --check    exits 1 if a page is not what would be written
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from rpo_cli.cli import app
from rpo_cli.recipes.schema import MODELS
from rpo_cli.runs.plan import Plan

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
WRITTEN = "<!-- Written by `python -m tools.reference`; do not edit. -->"
LONGEST_DEFAULT = 60
COMMAND_OF = {
    "data": "`rpo data inspect`",
    "sft": "`rpo train-sft`",
    "reward": "`rpo train-rm`",
    "relabel": "`rpo relabel`",
    "splits": "`rpo make-biased-splits`",
    "policy": "`rpo train-policy`, `rpo sweep`",
    "evaluate": "`rpo evaluate`, `rpo judge`",
    "figure": "`rpo figure`",
}
# How the pages begin.
COMMANDS = f"""\
# Commands

{WRITTEN}

Every command and option of `rpo`, from the program itself; `rpo COMMAND --help` says the same.
A recipe is a path, or a name that is looked up in `./recipes`, in `./recipes/miniature` and among the
packed recipes; its keys are in [recipes.md](recipes.md). `rpo --install-completion` has the shell complete
names of recipes.

Exit codes: 0 done, 1 the run failed, 2 the command line, a recipe or data is wrong, 130 interrupted.
stdout is data, stderr is progress.

"""
RECIPES = f"""\
# Recipe keys

{WRITTEN}

Every key of every kind of recipe, from the schema that checks them. `stage:` says which kind a file is.
An unknown key is an error that names the file, the line and the nearest key. `rpo recipe show FILE`
prints a recipe with the file and line that each value comes from.

A file with `recipes:` is a suite in one file: `recipes: {{dpo: {{stage: policy, …}}, …}}` is read as a folder
with the recipe `dpo.yaml` in it, and so on. Its recipes name each other by these names (`data: splits.yaml`),
and a command has `mine.yaml:dpo`, or `mine.yaml` where only one recipe of it fits.

A recipe may begin with `extends:`, one file or a list, whose keys it takes over and overrides.
Precedence: default < extended file < file < `by_rho` < `--set key=value` < a named option.

† cannot change a result: an artifact stays up to date when such a key changes.

| `stage:` | made by | |
|---|---|---|
"""
PLAN = f"""\
# The plan as JSON

{WRITTEN}

`rpo plan RECIPE --out plan.json` writes every stage that a recipe rests on, inputs first, for an engine of
another program to run. [plan-schema.json](plan-schema.json) is its JSON Schema. `version` is raised when a
program that reads plans must be changed; a plan of another version is refused.

- A stage is done when its `manifest` is there and has its `key`. Run `command` for each stage whose `state`
  is `build`, after its `inputs`; several at once where none needs another.
- `rpo stage PATH … --plan plan.json` takes several paths, in this order. Stages of one `group` are best made
  by one command: it starts Python once.
- Running a command again does no harm: what is there is left as it is. Two machines may be told to make the
  same stage. One of them waits, and then finds it there.
- When all stages are there, run `finish`. Where `complete` is false, `finish` writes the plan again: with
  `--tune` the test cells are known only when the validation cells have been evaluated. Then run the new plan.
- Relative paths start from the folder in which the plan was made.

"""


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    return {
        FOLDER / "commands.md": commands_page(),
        FOLDER / "recipes.md": recipes_page(),
        FOLDER / "plan.md": plan_page(),
        FOLDER / "plan-schema.json": plan_schema(),
    }


def plan_schema() -> str:
    """The JSON Schema of a plan, as text."""
    schema = Plan.model_json_schema()
    for part in (schema, *schema["$defs"].values()):  # docstrings may be wrapped
        part["description"] = " ".join(part.get("description", "any JSON").split())
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "rpo plan"}
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


# Commands


def commands_page() -> str:
    """Every command with its help, examples and options, in the order of the app."""
    root: Any = typer.main.get_command(app)
    lines = COMMANDS.splitlines()
    found = list(_commands(root, "rpo"))
    lines += [f"- [`{name}`](#{slug(name)}): {_first_sentence(command.help)}" for name, command in found]
    for name, command in found:
        lines += ["", f"## {name}", "", *_paragraphs(command.help)]
        if examples := _examples(command.epilog):
            lines += ["", "```console", *(f"$ {example}" for example in examples), "```"]
        lines += ["", *_options(command)]
    return "\n".join(lines) + "\n"


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """(full name, command) of all commands below a group."""
    for name, command in group.commands.items():
        if getattr(command, "commands", None):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _examples(epilog: str | None) -> list[str]:
    """The command lines of an epilog `Example: a` or `Examples: a | b`."""
    match = re.fullmatch(r"Examples?: (.*)", epilog or "", flags=re.S)
    return [part.strip() for part in match[1].split(" | ")] if match else []


def _options(command: Any) -> list[str]:
    rows = ["| option | default | |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.hidden or "--help" in parameter.opts:
            continue
        argument = parameter.param_type_name == "argument"
        names = (
            [parameter.metavar or parameter.name.upper()]
            if argument
            else [*parameter.opts, *parameter.secondary_opts]
        )
        option = ", ".join(f"`{name}`" for name in names) + ("" if argument else _value(parameter))
        shown = parameter.default if parameter.show_default else None
        default = "required" if parameter.required else _default(shown)
        rows.append(f"| {option} | {default} | {_markdown(parameter.help)} |")
    return rows


def _value(parameter: Any) -> str:
    """What is typed behind an option: nothing, one of several words, a number."""
    if parameter.is_flag:
        return ""
    kind = parameter.type_descriptor.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return " " + " \\| ".join(f"`{word}`" for word in get_args(kind))
    if parameter.multiple:
        return " KEY=VALUE" if "--set" in parameter.opts else " TEXT …"
    return " " + {"int": "INTEGER", "float": "NUMBER", "Path": "PATH"}.get(
        getattr(kind, "__name__", ""), "TEXT"
    )


# Recipes


def recipes_page() -> str:
    """The keys of every kind of recipe; what several kinds inherit stands once."""
    lines = RECIPES.splitlines()
    for stage, model in MODELS.items():
        made_by, about = COMMAND_OF.get(stage, ""), _first_sentence(model.__doc__)
        lines.append(f"| [`{stage}`](#{slug(stage)}) | {made_by} | {about} |")
    shared = _shared()
    sections: dict[str, type[BaseModel]] = {}
    for stage, model in MODELS.items():
        owners = _owners(model)
        above = [group for group in shared if group in owners.values()]
        lines += ["", f"## {stage}", "", *_paragraphs(model.__doc__)]
        lines += [
            "",
            "And the keys of "
            + ", ".join(f"[{_title(owner)}](#{slug(_title(owner))})" for owner in above)
            + ".",
        ]
        lines += ["", *_keys(model, [name for name, owner in owners.items() if owner is model])]
        for name, field in model.model_fields.items():
            for part in _models_in(field.annotation):
                sections.setdefault(f"{name}: of {stage}", part)
    for heading, part in sections.items():
        lines += [
            "",
            f"## {heading}",
            "",
            *_paragraphs(part.__doc__),
            "",
            *_keys(part, list(part.model_fields)),
        ]
    for group in shared:
        owned = [name for name in group.model_fields if _owner(group, name) is group]
        lines += ["", f"## {_title(group)}", "", *_paragraphs(group.__doc__), "", *_keys(group, owned)]
    return "\n".join(lines) + "\n"


def _shared() -> list[type[BaseModel]]:
    """The classes whose keys several kinds of recipe inherit, the commonest first."""
    kinds = set(MODELS.values())
    uses = Counter(owner for model in kinds for owner in set(_owners(model).values()) if owner not in kinds)
    return sorted(uses, key=lambda group: (-uses[group], group.__name__))


def _owners(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Key -> the class that says it, in the order of the class's keys."""
    return {name: _owner(model, name) for name in model.model_fields}


def _owner(model: type[BaseModel], name: str) -> type[BaseModel]:
    """The class nearest to a model that defines a key."""
    return next(
        cls for cls in model.__mro__ if issubclass(cls, BaseModel) and name in inspect.get_annotations(cls)
    )


def _title(model: type[BaseModel]) -> str:
    """A class's name as words: `TrainingRecipe` -> `training`."""
    words = re.findall(r"[A-Z][a-z0-9]*", model.__name__)
    return "every recipe" if words == ["Recipe"] else " ".join(words).removesuffix(" Recipe").lower()


def _keys(model: type[BaseModel], names: list[str]) -> list[str]:
    schema = model.model_json_schema()
    rows = ["| key | values | default | |", "|---|---|---|---|"]
    for name in names:
        field = model.model_fields[name]
        if name == "stage":
            continue
        extra = field.json_schema_extra
        mark = "†" if isinstance(extra, dict) and extra.get("cosmetic") else ""
        default = (
            "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        )
        values = _shape(schema["properties"][name], schema.get("$defs", {}))
        rows.append(f"| `{name}`{mark} | {values} | {default} | {_markdown(field.description)} |")
    return rows


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _shape(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return "keys below" if "properties" in definitions[name] else _shape(definitions[name], definitions)
    if (parts := schema.get("anyOf", schema.get("oneOf"))) is not None:
        return ", or ".join(dict.fromkeys(_shape(part, definitions) for part in parts))
    if "enum" in schema or "const" in schema:
        return " \\| ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        return f"list: {_shape(schema.get('items', {}), definitions)}"
    if kind == "object":
        inside = schema.get("additionalProperties")
        return f"mapping to {_shape(inside, definitions)}" if isinstance(inside, dict) else "mapping"
    word = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "`true` \\| `false`",
        "null": "`null`",
    }
    limits = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
    bounds = [f"{sign} {schema[name]:g}" for name, sign in limits if name in schema]
    return " ".join([word.get(str(kind), "anything"), ", ".join(bounds)]).strip()


# Plans


def plan_page() -> str:
    """The keys of a plan, and of each of its parts."""
    lines = PLAN.splitlines()
    parts = [Plan, *(part for field in Plan.model_fields.values() for part in _models_in(field.annotation))]
    parts += [part for field in parts[-1].model_fields.values() for part in _models_in(field.annotation)]
    for part in parts:
        lines += ["", f"## {part.__name__}", "", *_paragraphs(part.__doc__)]
        lines += ["", *_keys(part, list(part.model_fields))]
    return "\n".join(lines) + "\n"


# Text


def _default(value: Any) -> str:
    """A default as it would be typed; long ones are cut."""
    if value is None or value is False or value == "":
        return "" if value is None else f"`{json.dumps(value)}`"
    if value is True:
        return "`true`"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(str(text).split())
    return f"`{text if len(text) <= LONGEST_DEFAULT else text[: LONGEST_DEFAULT - 2] + ' …'}`".replace(
        "|", "\\|"
    )


def _markdown(text: str | None) -> str:
    """Help text for a cell of a table: Rich's bold as Markdown's, one line."""
    text = re.sub(r"\[/?bold\]", "**", " ".join((text or "").split()))
    return text.replace("|", "\\|").replace("<", "&lt;")


def _paragraphs(text: str | None) -> list[str]:
    parts = re.split(r"\n\s*\n", (text or "").strip())
    return [line for part in parts for line in (_markdown(part), "")][:-1]


def _first_sentence(text: str | None) -> str:
    return _markdown((text or "").strip().split("\n\n")[0])


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def main() -> int:
    """Write the pages, or say which are stale."""
    parser = argparse.ArgumentParser(description="Write docs/reference from the program.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    check = parser.parse_args().check
    stale = [
        path
        for path, text in pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[path], encoding="utf-8")
        print(f"{'stale' if check else 'written'}: {path.relative_to(FOLDER.parent.parent)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
