"""YAML with the line of every key, and problems as plain sentences instead of exceptions.

A recipe is read by PyYAML's safe loader with the words and numbers of YAML 1.2's core schema: `1e-6` is a
number, `010` is ten; `yes`, `1:30`, `1_000` and a date are text.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from rpo_cli.text import cut

Keys = tuple[str | int, ...]
TAG = "tag:yaml.org,2002:"
SCALARS = {TAG + name for name in ("null", "bool", "int", "float", "str")}
# YAML 1.2, section 10.3.2, and the characters that may come first.
CORE = {
    "null": (r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    "bool": (r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    "int": (r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
    "float": (
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list("-+0123456789."),
    ),
}
BASES = {"0o": 8, "0x": 16}
# Mappings that are handed on as they are: nothing else would say of a word there that it is no number.
OPEN: tuple[Keys, ...] = (("model_config_kwargs",), ("judge", "extra_body"))
DEEPEST = 40  # mappings and lists inside each other
COLUMN = "what belongs together begins in one column"
SUITE = "recipes"  # the key of a suite in one file, under which its recipes stand by name


class Loader(yaml.SafeLoader):
    """The safe loader with the core schema of YAML 1.2, and without aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            problem = "an alias (*name): repeat the value, or use extends"
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, problem, mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value, BASES.get(node.value[:2], 10))


class Dumper(yaml.SafeDumper):
    """The safe dumper, which quotes also the text that only our loader takes for a number."""


Loader.yaml_implicit_resolvers = {}
Loader.add_constructor(TAG + "int", Loader.construct_yaml_int)
for _tag, (_pattern, _first) in CORE.items():
    for _side in (Loader, Dumper):
        _side.add_implicit_resolver(TAG + _tag, re.compile(f"^{_pattern}$"), _first)


def formerly(text: str) -> bool | int | float | None:
    """What YAML 1.1 takes a word for that is text here: true for `yes`, 90 for `1:30`, 1000 for `1_000`."""
    try:
        if yaml.load(text, Loader) == text:
            value = yaml.safe_load(text)
            return value if isinstance(value, bool | int | float) else None
    except (yaml.YAMLError, ValueError, RecursionError):
        pass
    return None


def instead(value: bool | int | float) -> str:
    """What to write for a value that YAML 1.1 reads in a word: `write true if that is meant`."""
    return f"write {str(value).lower()} if that is meant"


@dataclass
class Document:
    """What a file says: its values, the line (from 1) of each key and list item, and what is wrong.

    `recipes`: those of a suite in one file, by name, which says nothing else. `first`: the line of its name.
    """

    values: dict[str, object] = field(default_factory=dict)
    lines: dict[Keys, int] = field(default_factory=dict)
    problems: list[tuple[int, Keys, str]] = field(default_factory=list)
    recipes: dict[str, Document] = field(default_factory=dict)
    first: int = 1


def read(path: Path) -> Document:
    """The YAML mapping in a file; a file that cannot be read gives a document with one problem."""
    try:
        data = path.read_bytes()
        return parse(data.decode("utf-8"))
    except OSError as error:
        return Document(problems=[(1, (), f"cannot be read: {error.strerror}")])
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Document(problems=[(line, (), f"not UTF-8 text (byte 0x{data[error.start]:02x})")])


def parse(text: str, below: Keys = ()) -> Document:
    """The YAML mapping in a text; `below`: the keys under which it stands."""
    made: Document = _copied(_parsed(text, below))  # the caller may change it
    return made


def _copied(value: Any) -> Any:
    """A value whose lists and mappings nobody else has; `copy.deepcopy` takes five times as long."""
    if isinstance(value, Document):
        fields = {each.name: _copied(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return Document(**fields)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


@lru_cache(maxsize=256)  # a plan of hundreds of cells reads the same few files again and again
def _parsed(text: str, below: Keys) -> Document:
    document = Document()
    try:
        loader = Loader(text)
        node = loader.get_single_node()
    except RecursionError:
        document.problems.append((1, (), f"more than {DEEPEST} lists or mappings inside each other"))
        return document
    except yaml.YAMLError as error:
        line, message = _syntax(error, text)
        document.problems.append((line, (), message))
        return document
    if node is None:
        document.problems.append((1, (), "empty: a recipe has at least a stage"))
    elif not isinstance(node, yaml.MappingNode):
        document.problems.append((node.start_mark.line + 1, (), _no_mapping(node)))
    elif not below and any(key.value == SUITE for key, _ in node.value):
        _read_suite(loader, node, document)
    else:
        document.values = _value(loader, node, below, document)
    return document


def _no_mapping(node: yaml.Node) -> str:
    kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
    return f"expected lines of `key: value`, got {kind}"


def _read_suite(loader: Loader, node: yaml.MappingNode, document: Document) -> None:
    """The recipes of a suite in one file, each a document of its own with the lines of the file."""
    for key, value in node.value:
        if key.value != SUITE:
            alone = f"a suite in one file has nothing beside `{SUITE}:`; what its recipes share goes into one"
            document.problems.append((key.start_mark.line + 1, (), f"{key.value}: {alone} that they extend"))
        elif not isinstance(value, yaml.MappingNode):
            document.problems.append((value.start_mark.line + 1, (SUITE,), _no_mapping(value)))
        for name, body in value.value if key.value == SUITE and isinstance(value, yaml.MappingNode) else ():
            own = Document(first=name.start_mark.line + 1)
            if isinstance(body, yaml.MappingNode):
                own.values = _value(loader, body, (), own)
            else:
                own.problems.append((own.first, (), _no_mapping(body)))
            if (before := document.recipes.setdefault(str(name.value), own)) is not own:
                twice = f"given twice, first in line {before.first}"
                document.problems.append((own.first, (str(name.value),), twice))


def parse_value(text: str, below: Keys = ()) -> object:
    """One value as `--set key=value` writes it, `below` being the key's parts.

    Raises:
        ValueError: it is not YAML; the message says why.
    """
    document = parse("value: " + text, below)
    if not document.problems and document.values.keys() != {"value"}:
        raise ValueError("expected a single value")
    if document.problems:
        raise ValueError(document.problems[0][2])
    return document.values["value"]


def one_line(value: object) -> str:
    """A value as YAML on one line, which `parse` reads back."""
    text = yaml.dump(
        value, Dumper=Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf
    )
    text = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value) if "\n" in text else text


def replace_key(text: str, key: str, value: str | Sequence[str], inside: Sequence[str]) -> str:
    """The YAML text with the value of a key replaced, or the key added at the end; all other lines stay.

    `value`: what stands behind `key:`, or the lines below it, unindented. `inside`: the keys of the mapping
    that it stands in, if that is not the whole. A comment on the line of the key stays, behind a value in its
    column.

    Raises:
        ValueError: that mapping is not in block style.
    """
    node: yaml.Node | None = Loader(text).get_single_node()
    for name in inside:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        node = next((value for key_node, value in pairs if key_node.value == name), None)
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        raise ValueError("expected lines of `key: value`")
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines(keepends=True)
    if not lines[-1].endswith(("\n", "\r")):
        lines[-1] += newline
    first = after = _last_line(node) + 1 if inside else len(lines)
    header, comment, column = f"{' ' * node.start_mark.column}{key}:", "", 0
    for key_node, old in node.value:
        if key_node.value == key:
            first, after = key_node.start_mark.line, _last_line(old) + 1
            line = lines[first].rstrip("\r\n")
            after_value = line[old.end_mark.column :]
            after_key = line[key_node.end_mark.column :].lstrip(" :")
            rest = (after_value if old.end_mark.line == first else after_key).lstrip()
            comment = rest if rest.startswith("#") else ""
            column = len(line) - len(comment)
    if isinstance(value, str):
        header, value = f"{header} {value}".ljust(column - 2 if comment else 0), ()
    below = (f"{' ' * node.start_mark.column}  {line}" for line in value)
    block = [f"{header}  {comment}" if comment else header, *below]
    return "".join([*lines[:first], *(line + newline for line in block), *lines[after:]])


def _value(loader: Loader, node: yaml.Node, keys: Keys, document: Document) -> Any:
    """Construct a node, noting lines and problems on the way."""
    line = node.start_mark.line + 1
    if len(keys) > DEEPEST:
        document.problems.append((line, keys[:1], f"more than {DEEPEST} lists or mappings inside each other"))
        return None
    if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
        made: dict[object, object] = {}
        for key_node, value_node in node.value:
            at = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                document.problems.append((at, keys, "a key must be a single word or number"))
                continue
            # At the top `on:` is a (misspelt) key, not true; below it 0.2 is a number.
            key = _value(loader, key_node, keys, document) if keys else key_node.value
            below = (*keys, str(key))
            if key in made:
                document.problems.append((at, below, f"given twice, first in line {document.lines[below]}"))
            document.lines[below] = at
            made[key] = _value(loader, value_node, below, document)
        return made
    if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
        for index, item in enumerate(node.value):
            document.lines[(*keys, index)] = item.start_mark.line + 1
        return [_value(loader, item, (*keys, index), document) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and node.tag in SCALARS:
        word = cut(node.value, 60)
        meant = (
            formerly(word)
            if node.style is None and any(keys[: len(open_)] == open_ for open_ in OPEN)
            else None
        )
        if meant is not None:
            document.problems.append((line, keys, f"{word} is text: {instead(meant)}, or put it in quotes"))
        try:
            return loader.construct_object(node)
        except (ValueError, KeyError):
            document.problems.append((line, keys, f"{word!r} cannot be read as {node.tag.removeprefix(TAG)}"))
            return None
    tag = node.tag.replace(TAG, "!!")
    document.problems.append((line, keys, f"{tag} is not understood; if it is text, put it in quotes"))
    return None


def _syntax(error: yaml.YAMLError, text: str) -> tuple[int, str]:
    """Line and sentence for an error of PyYAML."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return line, f"not YAML: character {error.character!r} is not allowed"
    if not isinstance(error, yaml.MarkedYAMLError):
        return 1, f"not YAML: {error}"
    problem, context = error.problem or "", error.context or ""
    # A quote or a key that never ends is noticed far below the line where it starts.
    scanning = context.startswith("while scanning")
    mark = (scanning and error.context_mark) or error.problem_mark
    line = mark.line + 1 if mark else 1
    if "'\\t'" in problem:
        return error.problem_mark.line + 1 if error.problem_mark else line, "a tab: indent with spaces"
    if problem.startswith("mapping values are not allowed"):
        before = text[mark.index - mark.column : mark.index] if mark else ": "
        if ": " in before:
            return line, "not YAML: a second `: ` in the line; put text that holds one in quotes"
        return line, f"not YAML: indented deeper than the keys above; {COLUMN} (text with a `: ` in quotes)"
    if problem.endswith(("found '<block mapping start>'", "found '<block sequence start>'")):
        return line, f"not YAML: indented otherwise than the lines above; {COLUMN}"
    if problem.startswith("an alias"):
        return line, problem
    if problem.startswith("could not find expected ':'"):
        return line, "not YAML: expected `key: value`"
    return line, "not YAML: " + ", ".join(filter(None, [context, problem]))


def _last_line(node: yaml.Node) -> int:
    """Index of the last line that belongs to a node's content, comments below it not counted."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    ends_below = node.end_mark.column == 0 and node.end_mark.line > node.start_mark.line
    return int(node.end_mark.line) - int(ends_below)
