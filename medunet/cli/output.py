"""The JSON document of a command with --json; docs/reference/json.md lists its fields."""

import functools
import inspect
import io
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Any, TextIO

import typer

import medunet
from medunet.cli.options import EXIT_BAD_INPUT, EXIT_INTERNAL, EXIT_INTERRUPTED
from medunet.config import strict_json
from medunet.errors import find_cause, first_lines

SCHEMA = 1  # increases if a key changes its meaning
JSON_OPTION = typer.Option("--json", help="Print one JSON document instead of text, for programs.")


@dataclass
class _Call:
    """A call of a command."""

    command: str = ""
    stream: TextIO | None = None  # for the document; None if it is not wanted, or printed
    at_end: list[Callable[[int], None]] = field(default_factory=list)


_call: ContextVar[_Call] = ContextVar("call", default=_Call())  # noqa: B039 (without a command, nothing changes it)


def with_json(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add --json to a command, which calls :func:`print_json` once.

    With --json, standard output has only the document, also if the command or a library prints other text.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command, eval_str=True).parameters.values()
        option = inspect.Parameter(
            "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, JSON_OPTION]
        )

        @functools.wraps(command)
        def extended(*, as_json: bool, **arguments: Any) -> None:
            call = _Call(name, sys.stdout if as_json else None)
            token = _call.set(call)
            code = 0
            try:
                with redirect_stdout(io.StringIO() if as_json else sys.stdout):
                    command(**arguments)
            except typer.Exit as end:
                code = end.exit_code
                raise
            except KeyboardInterrupt:
                code = EXIT_INTERRUPTED
                raise
            except Exception as error:
                cause = find_cause(error)
                code = EXIT_INTERNAL if cause is None else EXIT_BAD_INPUT
                message = first_lines(error) if cause is None else str(cause)
                print_json(error={"type": type(cause or error).__name__, "message": message})
                raise
            finally:
                for report in call.at_end:
                    report(code)
                _call.reset(token)

        extended.__signature__ = inspect.Signature([*parameters, option])  # type: ignore[attr-defined] # typer reads it
        extended.__annotations__ = {}
        return extended

    return decorate


def print_json(**content: Any) -> None:
    """Print the document of the running command. Does nothing without --json, or if the document is printed."""
    call = _call.get()
    if call.stream is not None:
        stream, call.stream = call.stream, None
        stream.write(document_text(call.command, **content))
        stream.flush()


def at_end(report: Callable[[int], None]) -> None:
    """Call a function with the exit code when the running command ends, also after an error or Ctrl-C."""
    _call.get().at_end.append(report)


def document_text(command: str, **content: Any) -> str:
    """Return a document with what every document starts with."""
    return strict_json({"schema": SCHEMA, "command": command, "version": medunet.__version__, **content})
