"""Fisher-weighted SVD: the factors' own measure, ranks for those that need them, and results that transformers loads."""

from __future__ import annotations

import dataclasses
import itertools
import json
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

import thrifty
from tests.structure.rebuilding import block_of, compressed
from tests.tiny import inputs
from tests.weights.problems import correlated_gram
from thrifty.base.errors import InputError, RunError
from thrifty.core.low_rank import truncate
from thrifty.data import Rows
from thrifty.models import open_model
from thrifty.pipeline import rebuild
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.reshape import ReshapeWalk
from thrifty.pipeline.slopes import products
from thrifty.structure.fisher_svd import FisherSVD
from thrifty.structure.rebuild import Plan


def seen_block(source):
    """(the first block, what was seen of it, with slopes that were drawn)."""
    view, seen, _ = block_of(source, "llama")
    slopes = {linear.path: correlated_gram(place, linear.out_features).float() for place, linear in enumerate(view.block.linears)}
    return view, dataclasses.replace(seen, slope_products=slopes)


def test_what_is_foretold_is_what_the_factors_lose(source_of):
    source = source_of("llama")
    view, seen = seen_block(source)
    step = FisherSVD(ratio=0.4, multiple_of=4, damp=1e-9)
    found = step.survey(view, seen)
    plan = Plan({path: form for path, form in step.plan(source.anatomy).forms.items() if path in found})
    made = step.rebuild(view, seen, plan).matrices
    assert set(made) == set(found) == {linear.path for linear in view.block.linears}
    for path, (up, down) in made.items():
        space = next(stage.reads.name for stage in view.block.stages if any(linear.path == path for linear in stage.linears))
        gone, gram, fisher = view.read(path) - up @ down, seen.grams[space].gram.double(), seen.slope_products[path].double()
        lost = float((fisher @ gone.double() @ gram * gone.double()).sum())
        assert lost == pytest.approx(float(found[path][plan.forms[path].rank]), rel=1e-3)
        other = truncate(view.read(path), plan.forms[path].rank, gram.float())
        gone = (view.read(path) - other[0] @ other[1]).double()
        assert lost < float((fisher @ gone @ gram * gone).sum())


def test_ranks_are_the_best_of_all_that_fit(source_of):
    """Against every combination, on a small set of options."""
    anatomy = source_of("llama").anatomy
    step = FisherSVD(ratio=0.5, multiple_of=16)
    draws = torch.Generator().manual_seed(3)
    linears = [linear for linear in anatomy.linears if linear.path in step.plan(anatomy).forms]
    found = {}
    for linear in linears:
        drops = torch.rand(min(linear.out_features, linear.in_features), generator=draws, dtype=torch.float64).sort(descending=True).values
        losses = drops.flip(0).cumsum(0).flip(0) * 10 ** float(torch.rand((), generator=draws))
        found[linear.path] = torch.cat([losses, losses.new_zeros(1)])
    plan = step.settle(anatomy, found)
    shapes = {linear.path: (linear.out_features, linear.in_features) for linear in linears}
    weights = {path: out * into for path, (out, into) in shapes.items()}
    taken = {path: plan.forms[path].parameters if path in plan.forms else size for path, size in weights.items()}
    assert sum(taken.values()) <= 0.5 * sum(weights.values())
    assert all(form.rank % 16 == 0 for form in plan.forms.values())
    least = sum(float(found[path][form.rank]) for path, form in plan.forms.items())
    for one, other in itertools.permutations(linears, 2):  # no rank is better off elsewhere
        for more, less in itertools.product((16, 32), (16, 32)):
            ranks = {path: form.rank for path, form in plan.forms.items()}
            if one.path not in ranks or other.path not in ranks or ranks[other.path] <= less:
                continue
            ranks[one.path] += more
            ranks[other.path] -= less
            sizes = {path: ranks[path] * sum(shapes[path]) if path in ranks else weights[path] for path in weights}
            if ranks[one.path] < min(shapes[one.path]) and sum(sizes.values()) <= 0.5 * sum(weights.values()):
                assert sum(float(found[path][rank]) for path, rank in ranks.items()) >= least - 1e-9


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "mamba", "mixtral"])
def test_the_result_is_the_original_with_products_in_place(name, folder_of, tmp_path):
    auto = AutoModelForImageClassification if name == "vit" else AutoModelForCausalLM
    step = {"fisher_svd": {"ratio": 0.3, "multiple_of": 2, "rows": 4}}
    certificate = compressed(folder_of(name), name, tmp_path / "out", step)
    original = auto.from_pretrained(folder_of(name), dtype=torch.float32).eval()
    result = auto.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    counts = certificate["structure"]["parameters"]
    assert counts["before"] - counts["after"] == original.num_parameters() - result.num_parameters() > 0
    for layer in certificate["layers"]:
        factors = result.get_submodule(layer["name"])
        product = factors.up.weight @ factors.down.weight
        original.get_submodule(layer["name"]).weight.data = product.T if name == "gpt2" else product
    assert certificate["layers"]
    rows = inputs(name, rows=2, length=12, seed=5)
    with torch.no_grad():
        torch.testing.assert_close(result(**rows).logits, original(**rows).logits, rtol=1e-3, atol=1e-4)
    assert "auto_map" in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_products_of_slopes_are_those_of_the_whole_model(name, folder_of):
    source, rows = open_model(folder_of(name)), inputs(name, rows=3, length=12, seed=4)
    auto = AutoModelForImageClassification if name == "vit" else AutoModelForCausalLM
    model = auto.from_pretrained(folder_of(name), dtype=torch.float32).eval()
    paths = [linear.path for linear in source.anatomy.linears]
    held, drawn = {}, torch.Generator().manual_seed(7)

    def keep(path, _, given, out):
        out.retain_grad()
        held[path] = given[0], out

    for path in paths:
        model.get_submodule(path).register_forward_hook(partial(keep, path))
    expected = {path: [] for path in paths}
    read = {path: [] for path in paths}
    for row in range(3):
        one = {key: tensor[row : row + 1] for key, tensor in rows.items()}
        model.zero_grad()
        logits = model(**one).logits.flatten(0, -2)
        if name == "vit":
            labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=drawn).flatten()
        else:
            logits, labels = logits[:-1], one["input_ids"][0, 1:]
        torch.nn.functional.cross_entropy(logits, labels).backward()
        for path, (given, out) in held.items():
            expected[path].append(out.grad.flatten(0, -2))
            read[path].append(given.detach().flatten(0, -2))
    for block, seen in products(source, Rows.of(rows), Setting(seed=7, batch=2), paths):
        assert set(seen.slope_products) == {linear.path for linear in block.linears}
        for stage in block.stages:
            for linear in stage.linears:
                each, inside = torch.cat(expected[linear.path]), torch.cat(read[linear.path])
                wanted = each.T @ each / len(each)
                assert float((seen.slope_products[linear.path] - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
                wanted = inside.T @ inside / len(inside)
                assert float((seen.grams[stage.reads.name].gram - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def test_it_loses_less_than_the_same_share_of_every_matrix_on_the_embedded_model(tmp_path):
    divergence = {}
    for name in ("fisher_svd", "svd_llm"):
        data = {"calibration": {"samples": 24, "tokens": 128}, "evaluation": {"samples": 8, "tokens": 128}}
        result = thrifty.compress(recipe={**data, "steps": [{name: {"ratio": 0.25}}]}, out=tmp_path / name, speed=False)
        divergence[name] = result["kl"]["value"]
    assert divergence["fisher_svd"] < 0.4 * divergence["svd_llm"]


def small(folder_of, out) -> dict:
    return compressed(folder_of("llama"), "llama", out, {"fisher_svd": {"ratio": 0.4, "multiple_of": 2, "rows": 4}})


def test_a_stopped_run_does_not_follow_the_loss_again(folder_of, tmp_path, monkeypatch):
    small(folder_of, tmp_path / "undisturbed")

    def stop(self, key):
        raise RunError("stopped")

    with monkeypatch.context() as patched, pytest.raises(RunError, match="stopped"):
        patched.setattr(ReshapeWalk, "run", stop)
        small(folder_of, tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(rebuild, "products", lambda *_: pytest.fail("followed again"))
        small(folder_of, tmp_path / "out")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("undisturbed", "out"))
    assert first == second


def test_a_run_that_was_stopped_while_it_followed_the_loss_begins_that_anew(folder_of, tmp_path, monkeypatch):
    small(folder_of, tmp_path / "undisturbed")

    def broken(*arguments):
        yield next(iter(products(*arguments)))
        raise RunError("stopped")

    with monkeypatch.context() as patched, pytest.raises(RunError, match="stopped"):
        patched.setattr(rebuild, "products", broken)
        small(folder_of, tmp_path / "out")
    small(folder_of, tmp_path / "out")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("undisturbed", "out"))
    assert first == second


def test_a_matrix_whose_outputs_change_no_loss_is_given_the_least_and_named(folder_of, tmp_path, monkeypatch):
    def unreached(*arguments):
        for block, seen in products(*arguments):
            yield block, dataclasses.replace(seen, slope_products={path: 0 * one for path, one in seen.slope_products.items()})

    monkeypatch.setattr(rebuild, "products", unreached)
    result = small(folder_of, tmp_path / "out")
    assert sum("the loss of no row changes with what it puts out" in warning for warning in result["warnings"]) == 14
    assert {layer["details"]["rank"] for layer in result["layers"]} == {2.0}


def test_bad_settings_and_models_without_a_loss_are_refused(folder_of, tmp_path):
    with pytest.raises(InputError, match="ratio"):
        FisherSVD(ratio=1.0)
    with pytest.raises(InputError, match=r"fisher_svd follows the loss .* does not have"):
        compressed(folder_of("clip"), "clip", tmp_path / "out", {"fisher_svd": {}})
