"""Turns a function that returns a record into a command.

The parameters of the function are the arguments and options of the command. A parameter that is annotated with a
function stands for the options of that function and receives its result. So a group of options is declared once.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cache, wraps
from inspect import Parameter, Signature, isfunction, signature
from typing import Any

from mint.cli.options import screen_of
from mint.cli.terminal.interruption import Interrupted
from mint.cli.terminal.screen import Answer, Overview, Record, Screen

Result = Record | Answer
Results = list[Answer] | Overview


def command(function: Callable[..., Result | Results]) -> Callable[..., int]:
    """The command of a function, with the options of the output; it prints the results and returns the exit code.

    The function may take the `Screen`. Results of groups that are context managers, such as connections, are closed
    before anything is printed. The exit code is 1 for a record with `passed` false. An interrupt is raised as
    `Interrupted`, with the progress so far.
    """

    @wraps(function)
    def run(**options: Any) -> int:
        screen = _call(screen_of, options, ExitStack())
        try:
            with screen, ExitStack() as stack:
                result = _call(function, {**options, "screen": screen}, stack)
            _print(screen, result)
        except KeyboardInterrupt as error:
            raise Interrupted(screen.meter) from error
        records = [answer.record if isinstance(answer, Answer) else answer for answer in _answers(result)]
        return int(any(record.get("passed") is False for record in records))

    parameters = [*_options(function), *_options(screen_of)]
    vars(run)["__signature__"] = Signature(parameters)  # read by typer
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _answers(result: Result | Results) -> Sequence[Result]:
    if isinstance(result, Overview):
        return result.answers
    return result if isinstance(result, list) else [result]


def _print(screen: Screen, result: Result | Results) -> None:
    """Print the result; a reader that has enough, such as `head`, is no error."""
    try:
        if isinstance(result, Overview):
            screen.overview(result)
        else:
            screen.answer(*_answers(result))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is left in the buffer


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
