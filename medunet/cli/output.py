"""The JSON document of a command with --json; docs/reference/json.md lists its fields."""

from __future__ import annotations

import functools
import inspect
import io
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from contextvars import ContextVar
from typing import Annotated, Any, TextIO

import typer

import medunet
from medunet.config import strict_json
from medunet.errors import find_cause, first_lines

SCHEMA = 1  # increases if a key changes its meaning
JSON_OPTION = typer.Option("--json", help="Print one JSON document instead of text, for programs.")

_reply: ContextVar[tuple[str, TextIO] | None] = ContextVar("reply", default=None)  # the command, and where to print


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
            token = _reply.set((name, sys.stdout) if as_json else None)
            try:
                with redirect_stdout(io.StringIO() if as_json else sys.stdout):
                    command(**arguments)
            except Exception as error:
                if not isinstance(error, typer.Exit | typer.Abort):
                    cause = find_cause(error)
                    message = first_lines(error) if cause is None else str(cause)
                    print_json(error={"type": type(cause or error).__name__, "message": message})
                raise
            finally:
                _reply.reset(token)

        extended.__signature__ = inspect.Signature([*parameters, option])  # type: ignore[attr-defined] # typer reads it
        extended.__annotations__ = {}
        return extended

    return decorate


def print_json(**content: Any) -> None:
    """Print the document of the running command. Does nothing without --json, or if the document is printed."""
    if (reply := _reply.get()) is not None:
        name, stream = reply
        _reply.set(None)
        stream.write(strict_json({"schema": SCHEMA, "command": name, "version": medunet.__version__, **content}))
        stream.flush()
