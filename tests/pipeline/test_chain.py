"""Chains: links are the runs that they would be by themselves, all judged against the first model, and a stop anywhere changes nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from rich.console import Console

import thrifty
from tests.tiny import ARCHITECTURES, inputs, tiny
from thrifty.api.request import Request, prepare
from thrifty.base.errors import InputError
from thrifty.measure.certificate import Certificate
from thrifty.models import open_model
from thrifty.pipeline import chain, reshape, stored, tuning
from thrifty.recipe.chain import parts_of
from thrifty.recipe.parse import parse_recipe
from thrifty.report.console import render_certificate
from thrifty.train import loop

LENGTH = 24
CUT = {"magnitude_units": {"ratio": 0.5}}
HEAL = {"distill": {"steps": 4, "batch": 2}}
SPARSE = {"wanda": {"sparsity": 0.5}}
CODES = {"rtn": {"bits": 8, "group_size": 0}}


def run(folder: Path, out: Path, steps: list[dict], architecture: str = "llama", **words) -> dict:
    rows = {"calibration": inputs(architecture, 6, LENGTH), "evaluation": inputs(architecture, 2, LENGTH, seed=1)}
    return thrifty.compress(folder, {"steps": steps}, out=out, speed=False, **rows, **words)


def bytes_of(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted([*out.glob("*.safetensors"), out / "config.json"])}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_chain_is_its_links_one_after_the_other(architecture: str, tmp_path: Path) -> None:
    """The bytes are those of separate runs; the figures are against the first model, as a comparison of both folders finds them."""
    folder = tiny(architecture, tmp_path / "model")
    try:
        first = run(folder, tmp_path / "first", [CUT], architecture)
    except InputError as error:
        assert open_model(folder).anatomy.architecture in str(error)
        return
    second = run(tmp_path / "first", tmp_path / "second", [SPARSE], architecture)
    found = run(folder, tmp_path / "out", [CUT, SPARSE], architecture)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "second")
    assert [link["words"] for link in found["links"]] == ["magnitude_units", "wanda"]
    assert found["links"][0]["bytes"] == first["bytes"]["after"]
    assert found["bytes"] == {"before": first["bytes"]["before"], "after": second["bytes"]["after"]}
    for name in ("perplexity", "kl", "relative_error"):
        if first[name] is not None:
            assert found["links"][0][name] == (first[name]["after"] if name == "perplexity" else first[name])
    if found["perplexity"] is not None:
        assert found["perplexity"]["before"] == first["perplexity"]["before"]
        assert found["perplexity"]["after"]["value"] == pytest.approx(second["perplexity"]["after"]["value"], rel=1e-5)
    assert found["structure"]["parameters"] == first["structure"]["parameters"]
    assert Certificate.read(tmp_path / "out").model.digest == Certificate.read(tmp_path / "first").model.digest
    assert not (tmp_path / "out" / ".run").exists()


def test_it_is_judged_against_the_first_model(llama: Path, tmp_path: Path) -> None:
    """KL from the first model is more than each link's from the one before it: what a plain comparison of the folders says."""
    found = run(llama, tmp_path / "out", [CUT, SPARSE])
    rows = inputs("llama", 2, LENGTH, seed=1)
    from thrifty.measure.evaluate import evaluate

    plain = evaluate(thrifty.load(tmp_path / "out"), rows, against=thrifty.load(llama))
    assert found["kl"]["value"] == pytest.approx(plain["kl"]["value"], rel=1e-3)
    assert found["links"][-1]["kl"] == found["kl"]


def test_training_right_after_a_cut_heals_it(tmp_path: Path) -> None:
    """On held-out text, the model inside the package; by every value and by changes of a low rank."""
    data = {"calibration": {"samples": 32, "tokens": 64}, "evaluation": {"samples": 16, "tokens": 64}}
    cut = {"magnitude_units": {"ratio": 0.25}}
    full, low = ({"distill": {"steps": 20, "rank": rank}} for rank in (0, 8))
    healed, adapted = (
        thrifty.compress(recipe={**data, "steps": steps}, out=tmp_path / name, speed=False)
        for name, steps in (("healed", [cut, full, {"rtn": {"bits": 4}}]), ("adapted", [cut, low]))
    )
    assert [link["words"] for link in healed["links"]] == ["magnitude_units", "distill", "rtn"]
    before, after = (link["kl"]["value"] for link in healed["links"][:2])
    assert after < adapted["kl"]["value"] < 0.9 * before
    assert healed["links"][1]["bytes"] == healed["links"][0]["bytes"] > healed["bytes"]["after"]
    page, shown = (tmp_path / "healed" / "report.html").read_text(), Console(record=True, width=160)
    shown.print(render_certificate(Certificate.read(tmp_path / "healed")))
    for told in (page, shown.export_text()):
        assert "step by step" in told.lower() and "magnitude_units" in told and "KL from the original" in told
    assert healed["seconds"] == pytest.approx(sum(link["seconds"] for link in healed["links"]))


STOPS = {
    "first link": (reshape, "write_result", 2),
    "between": (chain, "open_model", 1),
    "training": (tuning.Network, "loss", 3),
    "last link": (stored, "save_file", 2),
}
"""What breaks, and at which call."""


@pytest.mark.parametrize("place", STOPS)
def test_a_chain_that_stops_anywhere_ends_with_the_same_bytes(
    place: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [CUT, HEAL, CODES]
    whole = run(llama, tmp_path / "whole", steps)
    calls: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(loop, "SAVED", -1.0)
        owner, name, last = STOPS[place]
        sound = getattr(owner, name)

        def stops(*arguments, **words):
            calls.append(1)
            if len(calls) == last:
                raise KeyboardInterrupt
            return sound(*arguments, **words)

        patched.setattr(owner, name, stops)
        with pytest.raises(KeyboardInterrupt):
            run(llama, tmp_path / "out", steps)
    assert (tmp_path / "out" / ".run").exists()
    again = run(llama, tmp_path / "out", steps)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert again["kl"] == whole["kl"]
    assert run(llama, tmp_path / "out", steps) == again  # and a finished one is not made again


def test_finished_links_are_not_carried_out_again(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(stored, "save_file", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(llama, tmp_path / "out", [CUT, CODES])
    monkeypatch.setattr(reshape, "write_result", lambda *_: pytest.fail("the first link was carried out again"))
    assert len(run(llama, tmp_path / "out", [CUT, CODES])["links"]) == 2


@pytest.mark.parametrize(
    ("steps", "parts"),
    [
        ([CUT], [1]),
        ([SPARSE, CODES], [1]),
        ([CUT, CODES, HEAL], [1, 2]),
        ([CUT, HEAL, CODES, HEAL], [1, 2, 3]),
        ([SPARSE, CUT, CUT, CODES], [1, 2, 3, 4]),
        ([CODES, HEAL], [1]),
    ],
)
def test_what_changes_the_structure_stands_alone(steps: list[dict], parts: list[int]) -> None:
    assert [part.first for part in parts_of(parse_recipe({"steps": steps}))] == parts


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([CODES, CUT], "rtn stores codes"),
        ([CUT, {"awq": {}}], "only rewrites weights"),
        ([HEAL, CUT], "they solve none of its linears"),
        ([CUT, {"rtn": {"bits": 4}, "only": ["*.nowhere"]}], "step 2"),
        ([CUT, {"gptq": {"bits": 4, "group_size": 96}}], "group_size 96 does not divide"),
    ],
)
def test_chains_that_cannot_be_right_are_refused_before_anything_is_done(
    steps: list[dict], words: str, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        run(llama, tmp_path / "out", steps)
    assert not (tmp_path / "out").exists()


def test_a_plan_prices_every_link(llama: Path) -> None:
    rows = {"calibration": inputs("llama", 6, LENGTH), "evaluation": inputs("llama", 2, LENGTH, seed=1)}
    job = prepare(Request(llama, {"steps": [CUT, HEAL, CODES]}, **rows))
    assert len(job.links) == 3
    whole = thrifty.plan(llama, {"steps": [CUT, CODES]}, **rows).cost
    cut = thrifty.plan(llama, {"steps": [CUT]}, **rows).cost
    assert whole.output < cut.output < whole.disk
    assert whole.seconds > cut.seconds
    assert whole.memory >= cut.memory * 0.9


def test_a_chain_is_repeated_to_the_byte(tmp_path: Path) -> None:
    recipe = {
        "calibration": {"samples": 8, "tokens": 64},
        "evaluation": {"samples": 4, "tokens": 64},
        "steps": [{"magnitude_units": {"ratio": 0.25}}, {"rtn": {"bits": 4}}],
    }
    thrifty.compress(recipe=recipe, out=tmp_path / "out", speed=False)
    from thrifty import api

    assert api.repeat(tmp_path / "out")["equal"]
