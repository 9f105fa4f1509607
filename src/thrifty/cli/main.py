"""The program `thrifty`: commands, and errors turned into one sentence and an exit code.

Nothing heavy is imported before a command runs, so that `thrifty --help` answers at once.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from contextlib import suppress
from typing import Annotated

import typer

import thrifty
from thrifty.base.errors import GateError, InputError, RunError, ThriftyError
from thrifty.cli import commands

# Libraries leave progress and advice to this program. Threads that wait spin so briefly that another busy program costs a share of the
# time, not thirty times as much (GNU OpenMP spins for 300,000 rounds otherwise). All can be set otherwise from outside.
DEFAULTS = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "GOMP_SPINCOUNT": "3000"}
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.EISDIR, errno.ENOTDIR)
"""What the system says of files that are no business of ours."""

INTERRUPTED = 130  # what a shell expects of a program that was stopped with Ctrl-C

app = typer.Typer(
    name="thrifty",
    help="Make neural networks cheaper to run: a Hugging Face model in, a smaller one out, with proof of what was lost.",
    epilog="Exit codes: 0 done, 1 a valid request failed, 2 bad input (nothing was written), 3 the quality gate was not met.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
commands.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"thrifty {thrifty.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error (also THRIFTY_DEBUG=1).")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")] = False,
) -> None:
    if debug:
        os.environ["THRIFTY_DEBUG"] = "1"


def main(arguments: list[str] | None = None) -> int:
    """Run the program with `arguments` (those of the process by default) and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug_before = os.environ.get("THRIFTY_DEBUG")
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        code = app(args=_debug_first(given) or ["--help"], prog_name="thrifty", standalone_mode=False)
        code = code if isinstance(code, int) else 0
        sys.stdout.flush()
    except BrokenPipeError:
        _let_go()
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        return _report(_foreseen(error), as_json="--json" in given)
    finally:
        _restore_debug(debug_before)
    if code == INTERRUPTED:
        print("stopped; finished work is kept", file=sys.stderr)
    return code


def _foreseen(error: Exception) -> ThriftyError:
    """The error as one of ours: those of the option parser are known by having a message for the user, any other is a defect of ours."""
    if isinstance(error, ThriftyError):
        return error
    if isinstance(error, OSError) and error.errno in REFUSED:
        place = "" if error.filename is None else f"{error.filename}: "
        said = f"{place}{error.strerror}; mend that, then run the same command again"
        return RunError(said).with_traceback(error.__traceback__)
    message = getattr(error, "format_message", None)
    if message is None:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        advice = "this is a defect of thrifty; please report it with what --debug shows"
        return RunError(f"{said}; {advice}").with_traceback(error.__traceback__)
    context = getattr(error, "ctx", None)
    hint = f"; see `{context.command_path} --help`" if context is not None else ""
    return InputError(str(message()).rstrip(".?") + hint).with_traceback(error.__traceback__)


def _let_go() -> None:
    """Write nothing more to a standard output that nobody reads, as behind `head`, or that takes no more, not even when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _debug_first(arguments: list[str]) -> list[str]:
    """`--debug` may stand anywhere on the line, though it belongs to the program and not to a command."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--debug" not in arguments[:end]:
        return arguments
    return ["--debug", *(word for word in arguments[:end] if word != "--debug"), *arguments[end:]]


def _restore_debug(before: str | None) -> None:
    os.environ.pop("THRIFTY_DEBUG", None)
    if before is not None:
        os.environ["THRIFTY_DEBUG"] = before


def _report(error: ThriftyError, as_json: bool) -> int:
    """The sentence on standard error; with --json also an object on standard output, which is the result where a gate was not met."""
    if os.environ.get("THRIFTY_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    result = error.result if isinstance(error, GateError) else None
    try:
        if as_json:
            print(json.dumps({**(result or {}), "error": str(error), "exit_code": error.exit_code}, ensure_ascii=False))
        elif result is not None:
            from thrifty.cli import render

            render.show("compress", result)
        sys.stdout.flush()
    except OSError:  # then standard error alone tells
        _let_go()
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
