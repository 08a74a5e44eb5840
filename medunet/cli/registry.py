"""How commands join the command line: options that every command takes, panels of the help page, and examples."""

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.markup import escape
from typer.models import ArgumentInfo, OptionInfo

from medunet import log
from medunet.cli.options import EXIT_INTERRUPTED, HELP, READING, TERMINAL
from medunet.errors import ConfigError

Command = Callable[..., None]

# what a value is called in help pages: by the name of its argument, else by its type
_METAVAR_OF = {"data": "DATA", "output": "DIR", "title": "TEXT", "name": "NAME"}
_METAVARS: dict[Any, str] = {bool: "", Path: "DIR", int: "N", float: "X", str: "TEXT"}
# what continues an interrupted command; of the other commands nothing is left that could be continued
RESUME = {
    "train": "add --resume to the same command to continue from the last completed epoch",
    "tune": "add --resume to the same command to continue the search",
    "predict": "all written files are complete; add --skip-existing to continue",
    "plan": "rerun the same command; cases that are measured are not measured again",
    "demo": "rerun the same command to continue",
    "resume": "rerun the same command to continue from the last completed epoch",
    "listen": "rerun the same command to continue; studies that wait are kept",
}
EVERYWHERE = "Every command"
# panels of the help pages, by the name of a command's argument
PANELS = {
    "Data": "data instances fold folds split group_by skip_bad cases labels pred ref tolerance subgroups dims "
    "query image images masks compare studies store modality folder",
    "Training": "epochs init_from resume time trials set_range",
    "Configuration": "settings preset",
    "Reading images": " ".join(READING),
    "Network": "tta ensemble",
    "Machine": "device memory jobs nproc nnodes rdzv_endpoint on case_timeout environment python torch_index host port "
    "dicom_port allow send_to settle",
    "Tracking": "tracking_uri no_tracking uri experiment",
    "Untrusted input": "trust isolate",
    "Privacy": "deidentify pseudonym_key pseudonym_table",
    "Dry run": "dry_run",
    "Output": "output manifest as_json force skip_existing probabilities result_format objects measure send_back sheet"
    " figures max_size title",
}
_PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names.split()}


def _flag(name: str, *short: str, text: str) -> Any:
    def note(is_given: bool) -> None:
        if is_given:  # an option before the command's name counts, too
            setattr(TERMINAL, name, True)

    option = typer.Option(
        f"--{name}", *short, help=text, callback=note, is_eager=True, metavar="", rich_help_panel=EVERYWHERE
    )
    return Annotated[bool, option]


_GLOBAL = {
    "quiet": _flag("quiet", "-q", text="Print only results and errors."),
    "verbose": _flag("verbose", "-v", text="Print details, such as tiles and how the network is run."),
    "debug": _flag("debug", text="Print the traceback of an error, and warnings of other libraries."),
}


def examples(*lines: str) -> Callable[[Command], Command]:
    """Give a command the examples of its help page."""

    def decorate(command: Command) -> Command:
        command.__dict__["examples"] = lines
        return command

    return decorate


def add(app: typer.Typer, command: Command, name: str | None = None, *, hidden: bool = False) -> None:
    """Add a command to an application, with the options of every command.

    A command with the parameter `reading` also gets the options of `READING`; it receives the given ones in a
    dictionary.
    """
    own = inspect.signature(command, eval_str=True).parameters
    kind = inspect.Parameter.KEYWORD_ONLY
    added = {**(READING if "reading" in own else {}), **_GLOBAL}
    more = [
        inspect.Parameter(key, kind, default=None if key in READING else False, annotation=type_)
        for key, type_ in added.items()
    ]
    parameters = [parameter for key, parameter in own.items() if key != "reading"]
    for parameter in (*parameters, *more):
        _arrange(parameter)

    def extended(**arguments: Any) -> None:
        for key in _GLOBAL:
            arguments.pop(key)
        if "reading" in own:
            reading = {key: value for key in READING if (value := arguments.pop(key)) is not None}
            arguments["reading"] = reading
        if TERMINAL.quiet and TERMINAL.verbose:
            raise ConfigError("--quiet and --verbose exclude each other")
        level = logging.ERROR if TERMINAL.quiet else logging.DEBUG if TERMINAL.verbose else logging.INFO
        log.set_up(level=level, debug=TERMINAL.debug)
        try:
            command(**arguments)
        except KeyboardInterrupt as stop:  # its text replaces the command's line
            how = str(stop) or RESUME.get(command.__name__, "rerun the same command to start again")
            typer.echo(f"interrupted: {how}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None

    extended.__signature__ = inspect.Signature([*parameters, *more])  # type: ignore[attr-defined] # typer reads it
    extended.__annotations__ = {}
    extended.__name__ = command.__name__
    lines = extended.__dict__["examples"] = command.__dict__.get("examples", ())
    epilog = "\n\n".join(["[bold]Examples[/]", *(f"  {escape(line)}" for line in lines)]) if lines else None
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    help_text = "\n\n".join(escape(" ".join(paragraph.split())) for paragraph in paragraphs)
    name = name or command.__name__.strip("_")  # such as `import_`
    app.command(name.replace("_", "-"), help=help_text, epilog=epilog, hidden=hidden)(extended)


def group(text: str, *commands: Command, **more: Any) -> typer.Typer:
    """Return a group of commands with the options of every command, so that they may precede the command's name."""
    app = typer.Typer(context_settings=HELP, help=text, no_args_is_help=True, rich_markup_mode="rich")

    def options(**_: bool) -> None: ...

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(key, kind, default=False, annotation=type_) for key, type_ in (more | _GLOBAL).items()
    ]
    options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # typer reads it
    options.__annotations__ = {}
    app.callback()(options)
    for command in commands:
        add(app, command)
    return app


def _arrange(parameter: inspect.Parameter) -> None:
    """Put an option into its panel, and name its value by the documentation's terms unless it has a name."""
    kind, info = parameter.annotation.__origin__, parameter.annotation.__metadata__[0]
    if isinstance(info, OptionInfo):
        info.rich_help_panel = info.rich_help_panel or _PANEL_OF.get(parameter.name)
    if info.metavar is None and not any(get_origin(part) is Literal for part in (kind, *get_args(kind))):
        is_argument = isinstance(info, ArgumentInfo)
        types = {part for part in (kind, *get_args(kind)) if part in _METAVARS}
        default = parameter.name.upper() if is_argument or not types else _METAVARS[types.pop()]
        info.metavar = _METAVAR_OF.get(parameter.name, default)
