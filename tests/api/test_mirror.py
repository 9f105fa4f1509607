"""The functions of the package are the commands of the program: same names, same words, names that load when they are used."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import thrifty
from thrifty import api
from thrifty.cli import commands
from thrifty.cli.main import app

SOURCE = str(Path(__file__).resolve().parents[2] / "src")
# Words of the program that are no arguments of a function.
OF_THE_PROGRAM = {"json"}


def test_every_command_is_a_function() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {"try_out" if name == "try" else name for name in names} == set(api.__all__)


@pytest.mark.parametrize("name", api.__all__)
def test_a_function_takes_the_words_of_its_command(name: str) -> None:
    function = inspect.signature(getattr(api, name)).parameters
    command = inspect.signature(getattr(commands, name)).parameters
    assert command.keys() - OF_THE_PROGRAM <= function.keys()
    for word in command.keys() - OF_THE_PROGRAM - {"calibration"}:
        given, expected = command[word].default, function[word].default
        assert given == expected or (given is inspect.Parameter.empty) == (expected is inspect.Parameter.empty)


def test_a_plan_takes_what_changes_it() -> None:
    """All words of compress but those that only say what becomes of files."""
    words = {name: set(inspect.signature(getattr(commands, name)).parameters) for name in ("compress", "plan")}
    assert words["compress"] - words["plan"] == {"force", "verify"} and words["plan"] <= words["compress"]


@pytest.mark.parametrize("name", api.__all__)
def test_every_function_says_what_it_does(name: str) -> None:
    said = inspect.getdoc(getattr(api, name))
    assert (said and said.split("\n")[0].rstrip().endswith((".", ";", ":", ","))) or len(said.split("\n")[0]) > 60


def test_the_names_of_the_package() -> None:
    assert {"compress", "evaluate", "load", "plan", "describe", "__version__"} <= set(thrifty.__all__)
    assert dir(thrifty) == sorted(thrifty.__all__)
    for name in set(thrifty.__all__) - {"__version__", "load"}:
        assert getattr(thrifty, name) is getattr(api, name)
    from thrifty.runtime.load import load

    assert thrifty.load is load
    assert thrifty.__version__.split(".")[0].split("+")[0].isdigit()
    with pytest.raises(AttributeError, match="quantise"):
        thrifty.quantise  # noqa: B018


def test_the_package_loads_nothing_until_it_is_asked() -> None:
    code = "import sys, thrifty; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "[]\n"
