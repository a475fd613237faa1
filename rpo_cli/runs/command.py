"""How a command is added to the command line: the options it shares with others, and how its failures end."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

from rich.console import Console
from typer import Exit, Option, Typer

from rpo_cli.errors import BadInput, RunFailed
from rpo_cli.runs.interrupt import interrupted
from rpo_cli.runs.options import Options, recipe_argument

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
KEYWORD = inspect.Parameter.KEYWORD_ONLY
DEBUG = inspect.Parameter(
    "debug", KEYWORD, default=False, annotation=Annotated[bool, Option("--debug", help="Show tracebacks.")]
)


def made_of(kind: type[T], given: Mapping[str, Any]) -> T:
    """What was given of these options; the others are at their defaults."""
    return kind(
        **({"recipe": ""} if kind is Options else {})
        | {each.name: given[each.name] for each in fields(kind) if each.name in given}
    )


@cache
def _types(kind: type[DataclassInstance]) -> dict[str, Any]:
    """The evaluated annotations of a class of options, which many commands share."""
    return get_type_hints(kind, include_extras=True)


def parameters_of(
    kind: type[DataclassInstance],
    takes: Collection[str] | None = None,
    defaults: Mapping[str, object] = MappingProxyType({}),
    helps: Mapping[str, str] = MappingProxyType({}),
) -> list[inspect.Parameter]:
    """These options, or those that a command takes, as parameters; `defaults`, `helps`: for this command."""
    types, found = _types(kind), []
    for each in fields(kind):
        if takes is None or each.name in takes:
            default = each.default if each.default_factory is MISSING else each.default_factory()
            default = defaults.get(each.name, inspect.Parameter.empty if default is MISSING else default)
            default = None if each.name == "recipe" else default  # which may stand as an argument
            annotation = types[each.name]
            if each.name in helps:
                value, option = get_args(annotation)
                option = copy(option)
                option.help = helps[each.name]
                annotation = Annotated[value, option]
            found.append(inspect.Parameter(each.name, KEYWORD, default=default, annotation=annotation))
    return found


def named_recipe(argument: str | None, option: str | None, default: str | None) -> str:
    """The recipe that a command was given, as its argument or as --recipe; else its default.

    Raises:
        BadInput: both were given, or neither, and there is no default.
    """
    if argument is not None and option is not None:
        raise BadInput(f"two recipes: {argument} and --recipe {option}; name one of them")
    if (name := argument or option or default) is None:
        raise BadInput("which recipe? Name it behind the command; `rpo recipe list` shows what there is")
    return name


def sign(function: Callable[..., None], listed: Sequence[inspect.Parameter]) -> None:
    """Give a function, which takes any keywords, the parameters that Typer is to read off it."""
    parameters = [each.replace(kind=KEYWORD) for each in listed]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {}  # Typer reads the signature; it would evaluate these a second time


@contextmanager
def guarded(debug: bool) -> Iterator[None]:
    """Turn the known failures into a line on stderr and an exit code.

    2: bad input, 1: failed run, 130: interrupted.

    Interrupted is what Ctrl-C does, and SIGTERM, with which clusters take a machine back. Where a library
    caught it while it was imported, what fails then is of no other cause.
    """
    try:
        yield
    except (Exit, BrokenPipeError):  # whoever reads stdout has seen enough
        raise
    except (Exception, KeyboardInterrupt) as error:
        from rpo_cli.recipes import RecipeError

        if debug:
            traceback.print_exc()
        code = 1
        known = isinstance(error, RecipeError | BadInput | RunFailed | OSError)
        if isinstance(error, KeyboardInterrupt) or (interrupted() and not known):
            lines, code = ["interrupted; the same command goes on from here"], 130
        elif isinstance(error, RecipeError):
            lines, code = error.problems, 2
        elif isinstance(error, BadInput | RunFailed):
            lines, code = [str(error)], 1 if isinstance(error, RunFailed) else 2
        elif isinstance(error, OSError):
            lines = [f"{error.filename or 'disk'}: {error.strerror or error}"]
        else:
            lines = [f"unexpected {type(error).__name__}: {error} (--debug shows where; please report it)"]
        console = Console(stderr=True, emoji=False)
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        raise Exit(code) from None


def add_command(
    app: Typer,
    name: str,
    *examples: str,
    takes: Collection[str] = (),
    text: str | None = None,
    helps: Mapping[str, str] = MappingProxyType({}),
    **defaults: object,
) -> Callable[[Callable[..., None]], None]:
    """Add a command: the function's own parameters behind its recipe and --rho, then shared options.

    Its parameter `session` is a `Session` of those; one that is a dataclass of options, such as `Costs`,
    stands for all of them. `examples`: arguments, for the help; `text`: the help itself, where it is not the
    docstring; `helps`: of options, where they say something else here. `defaults`: of shared options;
    without one a recipe must be named.
    """
    recipe = defaults.pop("recipe", None)
    assert isinstance(recipe, str | None)
    typed = f"rpo {app.info.name} {name}" if isinstance(app.info.name, str) else f"rpo {name}"
    lines = [f"{typed} {each}".rstrip() for each in examples or [""]]

    def add(function: Callable[..., None]) -> None:
        wanted = inspect.signature(function).parameters
        annotated = {name: each.annotation for name, each in wanted.items()}
        groups = {
            name: kind for name, kind in annotated.items() if isinstance(kind, type) and is_dataclass(kind)
        }
        own = [name for name in wanted if name != "session" and name not in groups]

        @wraps(function)
        def run(*, debug: bool, **given: Any) -> None:
            with guarded(debug):
                named = bool(given.get("named") or given.get("recipe"))
                if "recipe" in takes:
                    given["recipe"] = named_recipe(given.pop("named"), given["recipe"], recipe)
                mine = {name: given[name] for name in own}
                mine |= {name: made_of(kind, given) for name, kind in groups.items()}
                if "session" in wanted:
                    from rpo_cli.devices import unheard
                    from rpo_cli.runs.session import Session

                    unheard()
                    mine["session"] = Session(**vars(made_of(Options, given)), named=named)
                function(**mine)

        shared = parameters_of(Options, takes, defaults, helps)
        first = [each for each in shared if each.name in ("recipe", "rho")]
        if "recipe" in takes:
            first.insert(
                0, inspect.Parameter("named", KEYWORD, default=None, annotation=recipe_argument(recipe))
            )
        grouped = [each for kind in groups.values() for each in parameters_of(kind, helps=helps)]
        rest = [each for each in shared if each not in first]
        listed = [*first, *(wanted[name] for name in own), *grouped, *rest, DEBUG]
        sign(run, listed)
        words = "\n\n".join(" ".join(part.split()) for part in (inspect.getdoc(function) or "").split("\n\n"))
        app.command(name, epilog=f"Example{'s' * (len(lines) > 1)}: {' | '.join(lines)}", help=text or words)(
            run
        )

    return add
