"""The commands: each reads its words, calls the function of `thrifty.api` of the same name, and shows what came back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from thrifty.base.errors import InputError
from thrifty.cli import inspect, papers

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output; progress goes to standard error.")]
Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="A model folder or hub id; the model inside the package if left out.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A result folder.")]
RecipeWord = Annotated[str | None, typer.Option("--recipe", metavar="FILE|NAME|INLINE", help="What to do, as in 'gptq: {bits: 4}'.")]
Bits = Annotated[int | None, typer.Option("--bits", metavar="N", help="Take the recipe that suits this many bits (2 to 8).")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the result goes; an unfinished one is resumed.")]
NewOut = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where it is written; nothing may be there yet.")]
CalibrationText = Annotated[
    list[str] | None, typer.Option("--calibration", metavar="FILE", help="Calibration text, jsonl chats or image folder; may be repeated.")
]
EvaluationText = Annotated[
    list[str] | None, typer.Option("--evaluation", metavar="FILE", help="Text or image folder to judge on; may be repeated.")
]
Samples = Annotated[int | None, typer.Option("--samples", metavar="N", help="Calibration windows or images.")]
Tokens = Annotated[int | None, typer.Option("--tokens", metavar="N", help="Tokens of a calibration window.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything that is drawn.")]
Device = Annotated[Literal["cpu", "cuda"] | None, typer.Option("--device", help="Where to compute; CUDA if there is one.")]
Force = Annotated[bool, typer.Option("--force", help="Replace another result of thrifty in --out.")]
Verify = Annotated[Literal["exact", "full"], typer.Option("--verify", help="Read every tensor back; `full` also compares logits.")]
Gate = Annotated[str | None, typer.Option("--max-perplexity-increase", metavar="5%", help="Exit with code 3 when more is lost.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read pickled weights, which can run code on this machine.")]
Format = Annotated[
    Literal["compressed-tensors", "thrifty"],
    typer.Option("--format", help="How weights are stored; `thrifty` holds every result at its own rate, but needs `import thrifty`."),
]
Check = Annotated[
    Literal["safety"] | None, typer.Option("--check", help="Ask both models what should be refused, and harmless twins of it.")
]
Pairs = Annotated[
    str | None, typer.Option("--pairs", metavar="FILE", help='Such requests, {"refuse": .., "answer": ..} a line, for --check safety.')
]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the model.")]

EXAMPLES = """
[dim]thrifty compress MODEL --bits 4
thrifty compress MODEL --recipe recipe.yaml --calibration text.txt --out small
thrifty compress MODEL --recipe 'gptq: {bits: 4, group_size: 32}'[/dim]
"""


def register(app: typer.Typer) -> None:
    """Give the program its commands, in the order in which the help lists them."""
    app.command(epilog=EXAMPLES)(compress)
    app.command("try")(try_out)
    for command in (plan, describe, evaluate, compare, export, repeat, recipes, methods, doctor):
        app.command()(command)
    app.add_typer(inspect.app)
    app.add_typer(papers.app)


def compress(
    model: Model = None,
    recipe: RecipeWord = None,
    bits: Bits = None,
    out: Out = None,
    calibration: CalibrationText = None,
    evaluation: EvaluationText = None,
    samples: Samples = None,
    tokens: Tokens = None,
    seed: Seed = 0,
    device: Device = None,
    force: Force = False,
    verify: Verify = "exact",
    max_perplexity_increase: Gate = None,
    allow_pickle: Pickle = False,
    trust_remote_code: RemoteCode = False,
    format: Format = "compressed-tensors",
    check: Check = None,
    pairs: Pairs = None,
    json: Json = False,
) -> None:
    """Make a model smaller and prove what was lost."""
    request = _request(recipe, bits, out, calibration, evaluation, samples, tokens, seed, device, max_perplexity_increase)
    safety = {"force": force, "verify": verify, "allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    call_and_show("compress", lambda api: api.compress(model, **request, **safety, format=format, check=check, pairs=pairs), json)


def plan(
    model: Model = None,
    recipe: RecipeWord = None,
    bits: Bits = None,
    out: Out = None,
    calibration: CalibrationText = None,
    evaluation: EvaluationText = None,
    samples: Samples = None,
    tokens: Tokens = None,
    seed: Seed = 0,
    device: Device = None,
    max_perplexity_increase: Gate = None,
    allow_pickle: Pickle = False,
    trust_remote_code: RemoteCode = False,
    format: Format = "compressed-tensors",
    check: Check = None,
    pairs: Pairs = None,
    json: Json = False,
) -> None:
    """Say what compress would do and need (memory, disk, time, size), without doing it."""
    request = _request(recipe, bits, out, calibration, evaluation, samples, tokens, seed, device, max_perplexity_increase)
    allowed = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    call_and_show("plan", lambda api: api.plan(model, **request, **allowed, format=format, check=check, pairs=pairs), json)


def try_out(
    folder: Folder,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to complete.")] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="What may be held in memory, as 512MiB; the rest stays on disk.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option("--cache", metavar="METHOD", help="Keep keys and values in fewer bits, as in 'kivi: {bits: 4}'.")
    ] = None,
    allow_pickle: Pickle = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Let original and result answer side by side, with the tokens per second of each."""
    allowed = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    call_and_show("try", lambda api: api.try_out(folder, prompt=prompt, memory=memory, cache=cache, **allowed), json)


def describe(model: Model = None, allow_pickle: Pickle = False, trust_remote_code: RemoteCode = False, json: Json = False) -> None:
    """Show what a model is made of, and what was inferred or is missing."""
    call_and_show("describe", lambda api: api.describe(model, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code), json)


def evaluate(
    model: Model = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="ORIGINAL", help="Compare with this model on the same tokens.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", metavar="FILE", help="Text to measure on; may be repeated.")] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="FOLDER", help="Images to measure on; sub-folders name their classes.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--task", metavar="NAME|FILE", help="A task of lm-eval, by name or as a YAML file; may be repeated.")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", metavar="N", help="Windows, images, or documents of each task.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", metavar="N", help="Tokens of a window.")] = None,
    stride: Annotated[int | None, typer.Option("--stride", metavar="N", help="Let windows overlap, N tokens from one to the next.")] = None,
    check: Check = None,
    pairs: Pairs = None,
    seed: Seed = 0,
    allow_pickle: Pickle = False,
    trust_remote_code: RemoteCode = False,
    json: Json = False,
) -> None:
    """Measure a model, alone or against its original."""
    rows = {"text": _one_or_many(text), "images": images, "tasks": tasks or None, "samples": samples, "tokens": tokens, "stride": stride}
    allowed = {"allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    call_and_show(
        "evaluate", lambda api: api.evaluate(model, against=against, **rows, check=check, pairs=pairs, seed=seed, **allowed), json
    )


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Result folders.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write them as an HTML page, with plots.")] = None,
    json: Json = False,
) -> None:
    """Put the certificates of several results side by side."""
    call_and_show("compare", lambda api: api.compare(folders, out=out), json)


def export(
    folder: Folder,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="dense, gguf, thrifty or aqlm.")],
    out: NewOut = None,
    verify: Verify = "exact",
    json: Json = False,
) -> None:
    """Write a result in another format, and read it back."""
    call_and_show("export", lambda api: api.export(folder, to, out, verify=verify), json)


def repeat(folder: Folder, out: Out = None, json: Json = False) -> None:
    """Repeat the run that made a result, and compare the bytes."""
    call_and_show("repeat", lambda api: api.repeat(folder, out=out), json)


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this recipe.")] = None,
    json: Json = False,
) -> None:
    """List the recipes that come along, or show one."""
    # Not through `thrifty.api`, which imports torch: the list is there at once.
    from thrifty.cli import render
    from thrifty.recipe.parse import recipes as found

    if json:
        render.print_json(found(name))
    elif name is None:
        render.show("recipes", found())
    else:
        typer.echo(found(name)["text"], nl=False)  # as it is, so that it can be kept as a file


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this method, with its formula and source.")] = None,
    json: Json = False,
) -> None:
    """List the methods that a recipe can name, or show one."""
    call_and_show("methods" if name is None else "method", lambda api: api.methods(name), json)


def doctor(json: Json = False) -> None:
    """Check this machine and the installation."""
    call_and_show("doctor", lambda api: api.doctor(), json)


def _request(
    recipe: str | None,
    bits: int | None,
    out: Path | None,
    calibration: list[str] | None,
    evaluation: list[str] | None,
    samples: int | None,
    tokens: int | None,
    seed: int,
    device: str | None,
    gate: str | None,
) -> dict[str, Any]:
    """The arguments that compress and plan share, checked as far as words can be."""
    if recipe is not None and bits is not None:
        raise InputError("--recipe and --bits both say what to do; give one of them")
    for word, value, least in (("--samples", samples, 1), ("--tokens", tokens, 2), ("--seed", seed, 0), ("--bits", bits, 2)):
        if value is not None and value < least:
            raise InputError(f"{word} must be at least {least}; got {value}")
    if bits is not None and bits > 8:
        raise InputError(f"--bits must be a whole number from 2 to 8; got {bits}")
    return {
        "recipe": recipe,
        "bits": bits,
        "out": out,
        "calibration": _one_or_many(calibration),
        "evaluation": _one_or_many(evaluation),
        "samples": samples,
        "tokens": tokens,
        "seed": seed,
        "device": device,
        "max_perplexity_increase": gate,
    }


def _one_or_many(words: list[str] | None) -> str | list[str] | None:
    return None if not words else words[0] if len(words) == 1 else words


def _call(action: Callable[[Any], Any]) -> Any:
    """Do the work with progress drawn on standard error, where anything goes that a library prints."""
    from thrifty import api
    from thrifty.cli.progress import drawing

    with redirect_stdout(sys.stderr), drawing():
        return action(api)


def call_and_show(name: str, action: Callable[[Any], Any], as_json: bool) -> None:
    """Do the work, then show what came back."""
    result = _call(action)
    from thrifty.cli import render

    if as_json:
        render.print_json(result)
    else:
        render.show(name, result)
