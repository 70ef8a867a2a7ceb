"""Turns a function that returns a record into a command.

The parameters of the function are the arguments and options of the command. A parameter that is annotated with a
function stands for the options of that function and receives its result. So a group of options is declared once.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import cache, wraps
from inspect import Parameter, Signature, isfunction, signature
from typing import Any

from mint.cli.options import Json
from mint.cli.screen import Record, Screen


def command(function: Callable[..., Record | list[Record]]) -> Callable[..., int]:
    """The command of a function, with --json; it prints the records and returns the exit code.

    The function may take the `Screen`. Results of groups that are context managers, such as connections, are closed
    before anything is printed. The exit code is 1 for a record with `passed` false.
    """

    @wraps(function)
    def run(as_json: bool, **options: Any) -> int:
        with ExitStack() as stack:
            screen = stack.enter_context(Screen(as_json))
            result = _call(function, {**options, "screen": screen}, stack)
        records = result if isinstance(result, list) else [result]
        screen.answer(*records)
        return int(any(record.get("passed") is False for record in records))

    parameters = [*_options(function), Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=Json)]
    vars(run)["__signature__"] = Signature(parameters)  # read by typer
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(function: Callable[..., Any]) -> Iterator[Parameter]:
    """The parameters of a function, those of its groups in their place."""
    for parameter, group in _parameters(function):
        if group:
            yield from _options(group)
        elif parameter.annotation is not Screen:
            yield parameter.replace(kind=Parameter.KEYWORD_ONLY)


def _call(function: Callable[..., Any], options: dict[str, Any], stack: ExitStack) -> Any:
    """Call a function with its own options and the results of its groups; `stack` closes the result."""
    arguments = {
        parameter.name: _call(group, options, stack) if group else options[parameter.name]
        for parameter, group in _parameters(function)
    }
    result = function(**arguments)
    return stack.enter_context(result) if isinstance(result, AbstractContextManager) else result


@cache
def _parameters(function: Callable[..., Any]) -> tuple[tuple[Parameter, Callable[..., Any] | None], ...]:
    """The parameters of a function, each with the group that it stands for."""
    parameters = signature(function).parameters.values()
    return tuple(
        (parameter, next(filter(isfunction, getattr(parameter.annotation, "__metadata__", ())), None))
        for parameter in parameters
    )
