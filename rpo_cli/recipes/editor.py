"""The JSON Schema by which an editor completes and checks recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from rpo_cli.errors import BadInput
from rpo_cli.recipes.schema import MODELS, NOT_BY_RHO
from rpo_cli.recipes.yaml_lines import SUITE

EXTENDS = {
    "description": "recipe(s) whose keys this file takes over, beside this file; its own keys win",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def json_schema() -> dict[str, object]:
    """One schema (draft 2020-12) for all recipes: `stage` says which keys there are; without one, all."""
    _, made = models_json_schema(
        [(model, "validation") for model in MODELS.values()], ref_template="#/$defs/{model}"
    )
    definitions: dict[str, dict[str, Any]] = made["$defs"]
    for definition in definitions.values():
        # A docstring may be wrapped.
        if "description" in definition:
            definition["description"] = " ".join(definition["description"].split())
    rules: list[dict[str, object]] = []
    for stage, model in MODELS.items():
        definition = definitions[model.__name__]
        properties = definition["properties"]
        if "by_rho" in properties:
            chosen = {key: value for key, value in properties.items() if key not in NOT_BY_RHO}
            entry = {"type": "object", "properties": chosen, "additionalProperties": False}
            properties["by_rho"] |= {"additionalProperties": entry}
            properties["by_rho"].pop("patternProperties", None)
        properties["extends"] = EXTENDS
        chosen_stage = {"properties": {"stage": {"const": stage}}, "required": ["stage"]}
        rules.append({"if": chosen_stage, "then": {"$ref": f"#/$defs/{model.__name__}"}})
        # What a recipe with `extends` lacks may stand in the file it extends.
        required = definition.pop("required")
        whole = chosen_stage | {"not": {"required": ["extends"]}}
        rules.append({"if": whole, "then": {"required": required}})
    alone = {"not": {"anyOf": [{"required": ["stage"]}, {"required": [SUITE]}]}}
    rules.append({"if": alone, "then": {"$ref": "#/$defs/Base"}})
    definitions["Base"] = {
        "description": "A file that others extend.",
        "type": "object",
        "properties": _every_key([definitions[model.__name__]["properties"] for model in MODELS.values()]),
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rpo recipe",
        "type": "object",
        "properties": {
            "stage": {"description": "what the recipe makes", "enum": list(MODELS)},
            SUITE: {
                "description": "a suite in one file: its recipes by name, and nothing beside",
                "type": "object",
                "additionalProperties": {"$ref": "#"},
            },
        },
        "allOf": rules,
        "$defs": definitions,
    }


def _every_key(stages: list[dict[str, object]]) -> dict[str, object]:
    """The keys of all stages but `stage`; a key that differs between stages may be any of its forms."""
    forms: dict[str, list[object]] = {}
    for properties in stages:
        for key, form in properties.items():
            if form not in forms.setdefault(key, []):
                forms[key].append(form)
    return {
        key: found[0] if len(found) == 1 else {"anyOf": found}
        for key, found in forms.items()
        if key != "stage"
    }


def write_schema(out: Path | None) -> None:
    """Write the JSON Schema of recipes, to stdout without a file."""
    text = json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text)
    except OSError as error:
        raise BadInput(f"{out}: cannot be written: {error.strerror}") from error
