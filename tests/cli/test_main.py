"""The program: quick, quiet on standard output, one sentence for an error, and the exit codes that were promised."""

from __future__ import annotations

import errno
import inspect
import json
import os
import resource
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from thrifty.base.errors import GateError, InputError, RunError
from thrifty.cli.main import main
from thrifty.measure.certificate import Certificate

SOURCE = str(Path(__file__).resolve().parents[2] / "src")
COMMANDS = [
    ["compress"],
    ["compress", "model", "--bits", "4"],
    ["plan", "model"],
    ["describe", "model"],
    ["evaluate", "model", "--against", "original", "--text", "a.txt"],
    ["compare", "a", "b"],
    ["export", "small", "--to", "gguf"],
    ["repeat", "small"],
    ["try", "small", "def"],
    ["recipes"],
    ["recipes", "w4"],
    ["methods"],
    ["methods", "gptq"],
    ["doctor"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_json_is_one_value_and_nothing_else(api: types.ModuleType, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("\n")
    assert printed.out.count("\n") == 1
    assert isinstance(json.loads(printed.out), dict | list)
    if words[0] != "recipes":
        assert "an expert saw few tokens" in printed.err
        assert "blocks (2)" in printed.err


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_shows_something(api: types.ModuleType, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out.strip()
    assert "expert" not in printed.out or words[0] == "methods"


def test_compress_shows_before_and_after_and_the_worst_layers(api: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress"]) == 0
    printed = capsys.readouterr().out
    for word in ("tiny/model -> ", "8.40 MB", "2.90 MB", "12.31 [11.8, 12.9]", "+3.10 %", "91.2 %", "layers.0.mlp.down_proj", "42.5 s"):
        assert word in printed
    assert "layers.5" not in printed
    assert "warning: layer 8 is [far] out of line" in printed


def test_compare_puts_results_side_by_side(api: types.ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["compare", "a", "b"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "b"] in lines and ["bits", "per", "weight", "4.56", "8"] in lines
    assert ["note:", "read", "with", "[care]"] in lines
    assert main(["compare", "a", "b", "--json", "--out", "c.html"]) == 0
    assert api.calls["compare"] == (([Path("a"), Path("b")],), {"out": Path("c.html")})
    assert [row["bits_per_weight"] for row in json.loads(capsys.readouterr().out)["results"]] == [4.56, 8.0]


def test_a_method_is_shown_with_its_formula_source_and_settings(api: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    assert "Frantar, Alistarh (2022), arXiv 2210.17323" in capsys.readouterr().out
    assert main(["methods", "gptq"]) == 0
    printed = capsys.readouterr().out
    for word in ("min tr(E G E^T)", "Frantar, Alistarh (2022), GPTQ, arXiv 2210.17323", "integer, at least 2, at most 8"):
        assert word in printed


def test_plan_shows_the_price_and_what_it_is_made_of(api: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 0
    printed = capsys.readouterr().out
    for word in ("1.00 GB", "5.00 MB", "3.00 MB", "3.0 s", "900.00 MB", "refused: the run needs"):
        assert word in printed
    assert printed.index("weights") < printed.index("gram")


def test_try_puts_the_answers_side_by_side(api: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["try", "small", "def"]) == 0
    words = {"prompt": "def", "memory": None, "cache": None, "allow_pickle": False, "trust_remote_code": False}
    assert api.calls["try_out"] == ((Path("small"),), words)
    assert any("the original text" in line and "the result text" in line for line in capsys.readouterr().out.splitlines())
    assert main(["try", "small", "--cache", "kivi: {bits: 4}", "--json"]) == 0
    assert api.calls["try_out"][1] == {**words, "prompt": None, "cache": "kivi: {bits: 4}"}


def test_compress_hands_every_word_on(api: types.ModuleType) -> None:
    words = "compress model --recipe w4 --out small --calibration a.txt --calibration b.jsonl --samples 8 --tokens 64 --seed 7 --device cpu"
    assert (
        main(
            [
                *words.split(),
                "--force",
                "--verify",
                "full",
                "--max-perplexity-increase",
                "5%",
                "--allow-pickle",
                "--trust-remote-code",
                "--format",
                "thrifty",
                "--check",
                "safety",
                "--pairs",
                "pairs.jsonl",
            ]
        )
        == 0
    )
    assert api.calls["compress"] == (
        ("model",),
        {
            "recipe": "w4",
            "bits": None,
            "out": Path("small"),
            "calibration": ["a.txt", "b.jsonl"],
            "evaluation": None,
            "samples": 8,
            "tokens": 64,
            "seed": 7,
            "device": "cpu",
            "force": True,
            "verify": "full",
            "max_perplexity_increase": "5%",
            "allow_pickle": True,
            "trust_remote_code": True,
            "format": "thrifty",
            "check": "safety",
            "pairs": "pairs.jsonl",
        },
    )
    assert main(["compress"]) == 0
    assert api.calls["compress"][0] == (None,)
    safe = {"force": False, "verify": "exact", "allow_pickle": False, "trust_remote_code": False, "format": "compressed-tensors"}
    assert safe.items() <= api.calls["compress"][1].items()


def test_the_commands_fit_the_functions(api: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in COMMANDS:
        assert main([*words, "--json"]) == 0
    calls = api.calls
    monkeypatch.undo()
    from thrifty import api as real

    assert len(calls) == 10
    for name, (given, options) in calls.items():
        inspect.signature(getattr(real, name)).bind(*given, **options)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["compress", "--recipe", "w4", "--bits", "4"], "--recipe and --bits"),
        (["compress", "--bits", "9"], "2 to 8; got 9"),
        (["compress", "--bits", "0"], "got 0"),
        (["compress", "--samples", "0"], "--samples must be at least 1"),
        (["compress", "--tokens", "-5"], "--tokens must be at least 2"),
        (["plan", "--seed", "-1"], "--seed must be at least 0"),
        (["recipes", "w4-asymetric"], "'w4-asymmetric'"),
    ],
)
def test_bad_words_give_one_sentence_and_code_2(
    api: types.ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert "Traceback" not in printed.err
    assert "compress" not in api.calls


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["compres"], "compress"),
        (["compress", "--recpie", "w4"], "--recipe"),
        (["compress", "--samples", "many"], "--samples"),
        (["compress", "--device", "tpu"], "cuda"),
        (["compress", "a", "b"], "b"),
        (["export", "small"], "--to"),
        (["compare"], "DIR"),
    ],
)
def test_words_that_are_no_command_line_give_code_2(
    api: types.ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert sentence in printed.err
    assert not api.calls
    assert main([*words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [(RunError("The disk is full."), 1), (InputError("The recipe is empty."), 2), (GateError("Perplexity rose by 7 %, more than 5 %."), 3)],
)
def test_exit_codes(api: types.ModuleType, capsys: pytest.CaptureFixture[str], error: Exception, code: int) -> None:
    def fail(*words: Any, **options: Any) -> None:
        raise error

    api.compress = fail  # type: ignore[attr-defined]
    assert main(["compress"]) == code
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"error: {error}\n")
    assert main(["compress", "--json"]) == code
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"error": str(error), "exit_code": code}
    assert printed.err == f"error: {error}\n"


def test_a_result_that_misses_its_gate_is_shown(api: types.ModuleType, capsys: pytest.CaptureFixture[str], small: Path) -> None:
    found = Certificate.read(small).result(small)

    def fail(*words: Any, **options: Any) -> None:
        raise GateError("Perplexity rose by 7 %, more than 5 %.", found)

    api.compress = fail  # type: ignore[attr-defined]
    assert main(["compress", "--json"]) == 3
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {**found, "error": "Perplexity rose by 7 %, more than 5 %.", "exit_code": 3}
    assert main(["compress"]) == 3
    printed = capsys.readouterr()
    assert "12.69 [12.1, 13.3]" in printed.out and printed.err == "error: Perplexity rose by 7 %, more than 5 %.\n"


@pytest.mark.parametrize("way", ["before", "after", "environment"])
def test_debug_shows_the_traceback(
    api: types.ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "environment":
        monkeypatch.setenv("THRIFTY_DEBUG", "1")
    words = {"before": ["--debug", "recipes", "w5"], "after": ["recipes", "w5", "--debug"]}.get(way, ["recipes", "w5"])
    assert main(words) == 2
    assert "Traceback" in capsys.readouterr().err
    assert os.environ.get("THRIFTY_DEBUG") == ("1" if way == "environment" else None)


def test_what_a_library_prints_does_not_reach_standard_output(api: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def chatter() -> dict[str, int]:
        print("hello from a library")
        return {"cores": 2}

    api.doctor = chatter  # type: ignore[attr-defined]
    assert main(["doctor", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"cores": 2}
    assert "hello from a library" in printed.err


def test_a_defect_of_ours_is_not_hidden(api: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    api.doctor = fail  # type: ignore[attr-defined]
    assert main(["doctor", "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["exit_code"] == 1
    assert printed.err.startswith("error: ZeroDivisionError") and "defect of thrifty" in printed.err and "Traceback" not in printed.err
    assert main(["doctor", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_the_system_refuses_is_no_defect_of_ours(api: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "model/tokenizer.json")

    api.doctor = fail  # type: ignore[attr-defined]
    assert main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: model/tokenizer.json: Permission denied;") and "defect" not in said and said.count("\n") == 1


def test_numbers_that_json_cannot_say_are_null(api: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    api.doctor = lambda: {"a": float("nan"), "b": (1, float("inf")), "c": Path("x")}  # type: ignore[attr-defined]
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1, None], "c": "x"}


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)


@pytest.mark.parametrize("words", [["--help"], ["compress", "--help"], ["--version"], ["recipes"]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    heavy = ["torch", "transformers", "numpy", "matplotlib", "safetensors", "jinja2"]
    loaded = f"[m for m in {heavy} if m in sys.modules]"
    code = f"import sys; from thrifty.cli.main import main; code = main({words}); print('loaded', {loaded}, code)"
    assert run(code).stdout.splitlines()[-1] == "loaded [] 0"


def test_help_answers_in_half_a_second() -> None:
    """By the time of the processor: a test beside this one may have the other one busy."""
    code = "from thrifty.cli.main import main; main(['--help'])"
    took = []
    while len(took) < 20 and min(took, default=1.0) >= 0.5:
        begun = resource.getrusage(resource.RUSAGE_CHILDREN)
        printed = run(code).stdout
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime)
    assert "compress" in printed
    assert min(took) < 0.5, took


def test_a_stopped_run_gives_130_and_no_traceback(api: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*words: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    api.compress = stop  # type: ignore[attr-defined]
    assert main(["compress"]) == 130
    assert capsys.readouterr().err == "stopped; finished work is kept\n"


def test_alone_it_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "compress" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["recipes"], ["recipes", "--json"]], ids=" ".join)
def test_an_output_that_cannot_be_written(words: list[str]) -> None:
    """A reader that has gone is no mistake; a disk that is full is, and one sentence says so."""
    command = {"args": [sys.executable, "-m", "thrifty", *words], "stderr": subprocess.PIPE, "env": {**os.environ, "PYTHONPATH": SOURCE}}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(**command, stdout=writer, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(**command, stdout=full, check=False)
    assert done.returncode == 1
    assert done.stderr.decode() == "error: No space left on device; mend that, then run the same command again\n"


def test_it_runs_as_a_program() -> None:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    program = "import sys; from thrifty.cli.main import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program, "recipes", "w9"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
