"""Call what an entry names with the options of the entry."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from subspace.study.entries.entry import Choice
from subspace.study.entries.lookup import lookup, require_known


def call_with_options(function: Callable[..., Any], choice: Choice, facts: Mapping[str, Any]) -> Any:
    """Call the function with its `arguments`."""
    return function(**arguments(function, choice, facts))


def arguments(function: Callable[..., Any], choice: Choice, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the choice, and those of the facts that the function has a parameter for.

    Raises ValueError, naming the nearest, for an option that it has no parameter for, and for one that it needs.
    """
    require_options(function, choice)
    known, _ = parameters(function)
    given = {**{name: fact for name, fact in facts.items() if name in known}, **choice.options}
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        raise ValueError(f"{choice.name} must be given what it needs, got {error}") from None
    except ValueError:  # of what is not written in Python there is no signature
        pass
    return given


def require_options(function: Callable[..., Any], choice: Choice, others: Iterable[str] = ()) -> None:
    """ValueError, naming the nearest, for an option that the function has no parameter for and that is no other."""
    known, takes_any = parameters(function)
    if not takes_any:
        require_known(choice.options, sorted({*known - {"key"}, *others}), f"options of {choice.name} must be")


def parameters(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names that can be given to a function as keywords, and whether it takes any other as well."""
    try:
        found = inspect.signature(function).parameters.values()
    except ValueError:  # of what is not written in Python
        return set(), True
    named = {p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind == p.VAR_KEYWORD for p in found)


def instantiate(module: ModuleType, choice: Choice, *arguments: Any, **more: Any) -> Any:
    """An optimizer or schedule: the chosen class of torch's module, called.

    Raises ValueError for a name that the module does not have, or with what the call says of the options.
    """
    known = {name: value for name, value in vars(module).items() if inspect.isclass(value) and name[0] != "_"}
    made = lookup(choice.name, known, module.__name__.removeprefix("torch."))
    for option, value in choice.options.items():
        if type(value) is int and value < 0 and option != "last_epoch":  # torch takes a step_size of -1
            raise ValueError(f"{option} of {choice.name} must be at least 0, got {value}")
    try:
        return made(*arguments, **more, **choice.options)
    except (TypeError, ValueError) as error:
        named = f"{module.__name__}.{choice.name}"
        raise ValueError(f"options of {choice.name} must be those of {named}, got: {error}") from error
