"""What both commands share: error handling, addresses, and formatting of money."""

from __future__ import annotations

import asyncio
import re
import sys
import warnings
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, TypeVar

import grpc
import typer
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement

from iemas.core.errors import ConfigurationError, IemasError, MalformedMessageError
from iemas.core.types import MICROS_PER_CREDIT
from iemas.files import naming_os_errors
from iemas.rpc_errors import from_rpc_error
from iemas.tls import Address, parse_address

EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
EXIT_INTERRUPTED = 130
MAX_WIDTH = 1000

T = TypeVar("T")

console = Console()


def run_cli(app: typer.Typer) -> NoReturn:
    """Run a command line; an error is one line on stderr, never a traceback.

    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.
    """
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        with naming_os_errors():
            app()
    except ConfigurationError as error:
        fail(str(error), EXIT_CONFIGURATION)
    except IemasError as error:
        fail(str(error), EXIT_FAILED)
    except grpc.RpcError as error:
        fail(str(from_rpc_error(error)), EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody left to tell.
        sys.stdout = None
        sys.exit(EXIT_FAILED)
    sys.exit(0)


def _show_warning(message: Warning | str, *_: object) -> None:
    """Write a warning as one line, without the place in our code that it came from."""
    sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")


def fail(message: str, exit_code: int) -> NoReturn:
    """Write ``error: …`` as one line on stderr and exit."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(exit_code)


def create_app(help_text: str) -> typer.Typer:
    """Create a command group that leaves errors to `run_cli`."""
    return typer.Typer(
        help=help_text,
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,
    )


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"iemas {version('iemas')}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
]


def add_version(app: typer.Typer) -> None:
    """Give a command line the option --version."""

    @app.callback()
    def take(*, _version: VersionOption = False) -> None:
        pass


def print_wide(renderable: RenderableType) -> None:
    """Print a table whose ids stay in one piece, to be copied, however narrow the terminal is."""
    console.print(_Whole(renderable), crop=False)


class _Whole:
    """Draws something as wide as it is, however narrow the terminal."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, drawer: Console, options: ConsoleOptions) -> RenderResult:
        unbound = options.update(width=MAX_WIDTH)
        width = Measurement.get(drawer, unbound, self._renderable).maximum
        yield from drawer.render(self._renderable, options.update(width=width))


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine on a new event loop."""
    return asyncio.run(coroutine)


def read_address(text: str) -> Address:
    """Read ``nodeid@host:port`` from the command line. Raises: ConfigurationError."""
    try:
        return parse_address(text)
    except MalformedMessageError as error:
        raise ConfigurationError(str(error)) from error


def parse_credits(text: str) -> int:
    """Read an amount in credits, exactly, as micro-credits: ``1.5`` is 1500000.

    Raises: ConfigurationError if it is no positive amount of at most six decimals.
    """
    match = re.fullmatch(r"(\d{1,12})(?:\.(\d{1,6}))?", text)
    micros = 0
    if match is not None:
        whole, rest = match[1], (match[2] or "").ljust(6, "0")
        micros = int(whole) * MICROS_PER_CREDIT + int(rest)
    if micros == 0:
        raise ConfigurationError(
            f"AMOUNT is in credits, above 0 and with at most six decimals, such as 12.5; "
            f"got {text!r}"
        )
    return micros


def format_credits(micros: int) -> str:
    """Write micro-credits as credits, exactly: 1234567 is ``1.234567``."""
    sign = "-" if micros < 0 else ""
    whole, rest = divmod(abs(micros), MICROS_PER_CREDIT)
    return f"{sign}{whole:,}.{rest:06d}"
