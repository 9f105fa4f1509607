"""Olica: exact where nothing is dropped, budgets that are met, and each part against what it replaces."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.structure.rebuilding import block_of, compressed, error
from thrifty.base.errors import InputError
from thrifty.core.low_rank import rank_for
from thrifty.models import linear_modules
from thrifty.structure.olica import Olica
from thrifty.structure.rebuild import Form, Plan


def whole(anatomy) -> Plan:
    """A plan in which everything stays: matrices in two pieces of full rank, all values, all neurons."""
    forms = {}
    for linear in anatomy.linears:
        out, into = linear.out_features, linear.in_features
        forms[linear.path] = Form(out, into, min(out, into) if linear.role in ("q", "k") else 0)
    return Plan(forms)


@pytest.mark.parametrize("decomposition", ["product", "fast"])
@pytest.mark.parametrize("name", ["llama", "vit"])
def test_where_nothing_is_dropped_the_block_computes_the_same(name, decomposition, source_of):
    """Query heads that share a value head (Llama), biases of values (ViT)."""
    source = source_of(name)
    view, seen, _ = block_of(source, name)
    expected = view.forward(seen.rows)
    made = Olica(decomposition=decomposition).rebuild(view, seen, whole(source.anatomy))
    modules = linear_modules(view.module, view.block)
    for path, values in made.matrices.items():
        modules[path].weight.data = values[0] @ values[1] if isinstance(values, tuple) else values
    for path, bias in made.biases.items():
        modules[path].bias.data = bias
    changed = [path for path in made.matrices if "v_proj" in path or "o_proj" in path]
    assert not any(torch.allclose(modules[path].weight, view.read(path), atol=1e-3) for path in changed)
    torch.testing.assert_close(view.forward(seen.rows), expected, rtol=1e-3, atol=1e-4)


def test_the_best_decomposition_loses_less_than_the_fast_one(source_of):
    source = source_of("llama")
    view, seen, read = block_of(source, "llama")
    lost = {}
    for kind in ("product", "fast"):
        step = Olica(0.4, decomposition=kind, patch="none")
        plan = step.plan(source.anatomy)
        made = step.rebuild(view, seen, plan)
        q, v, o = (f"{view.block.path}.self_attn.{role}_proj" for role in "qvo")
        assert made.matrices[v].shape[0] < view.read(v).shape[0]
        up, down = made.matrices[q]
        lost[kind, "q"] = error(read["attention.input"], view.read(q), up @ down)
        pairs = zip(view.read(v).double().chunk(2), made.matrices[v].double().chunk(2), strict=True)
        mixing = [torch.linalg.lstsq(whole.T, fewer.T).solution.T.float() for whole, fewer in pairs]
        reduction = torch.block_diag(*(part for part in mixing for _ in range(2)))
        lost[kind, "o"] = error(read["attention.output"], view.read(o), made.matrices[o] @ reduction)
    assert lost["product", "q"] < lost["fast", "q"] and lost["product", "o"] < lost["fast", "o"]


@pytest.mark.parametrize("ratio", [0.2, 0.33, 0.45])
def test_the_budget_is_met(ratio, source_of):
    anatomy = source_of("llama").anatomy
    step = Olica(ratio, multiple_of=1)
    plan = step.plan(anatomy)
    left = sum(form.parameters for form in plan.forms.values()) + sum(rank * (into + out) for into, rank, out in plan.branches.values())
    dense = sum(linear.out_features * linear.in_features for linear in anatomy.linears)
    one_neuron = 3 * 64 * len(anatomy.blocks)
    assert dense - left == pytest.approx(ratio * anatomy.parameters, abs=one_neuron)
    assert len(plan.branches) == len(anatomy.blocks) - 1
    assert next(iter(plan.branches.values())) == (64, 1, 64)
    q = next(form for path, form in plan.forms.items() if "q_proj" in path)
    assert q.rank == rank_for(q.out_features, q.in_features, 1 - (2 * ratio if ratio <= 0.4 else 1.5 * ratio))


def test_patches_are_ordered_on_what_they_were_fitted_to(source_of):
    """Regression against the published form and none, by what removed neurons put out."""
    source = source_of("llama")
    view, seen, read = block_of(source, "llama")
    path = f"{view.block.path}.mlp"
    lost = {}
    for kind in ("regression", "published", "none"):
        step = Olica(0.4, patch=kind, patch_share=0.1, damp=1e-6)
        plan = Olica(0.4, patch_share=0.1).plan(source.anatomy)
        plan = plan if kind != "none" else dataclasses.replace(plan, branches={})
        made = step.rebuild(view, seen, plan)
        modules = linear_modules(view.module, view.block)
        hidden = read["mlp.hidden"]
        gate, up = (view.read(f"{path}.{role}_proj") for role in ("gate", "up"))
        kept = [int((up == row).all(1).nonzero()[0]) for row in made.matrices[f"{path}.up_proj"]]
        assert torch.equal(gate[kept], made.matrices[f"{path}.gate_proj"])
        found = hidden[:, kept] @ made.matrices[f"{path}.down_proj"].T
        if made.branches:
            wide, narrow = made.branches[path]
            assert wide.shape == (64, 6) and narrow.shape == (6, 64)
            found = found + read["mlp.input"] @ narrow.T @ wide.T
        lost[kind] = float((modules[f"{path}.down_proj"](hidden) - found).square().sum())
        said, whole = made.lost[f"{path}.down_proj"]
        assert whole == pytest.approx(float(modules[f"{path}.down_proj"](hidden).square().sum()) / len(hidden), rel=1e-3)
    assert said == pytest.approx(lost["none"] / len(hidden), rel=1e-3)
    assert lost["regression"] < lost["none"] and lost["regression"] < lost["published"]


@pytest.mark.parametrize(("name", "settings"), [("llama", {}), ("vit", {"patch": "published"}), ("qwen3", {"decomposition": "fast"})])
def test_transformers_loads_the_result_and_computes_what_the_walk_has_seen(name, settings, folder_of, tmp_path):
    certificate = compressed(folder_of(name), name, tmp_path / "out", {"olica": {"ratio": 0.3, "patch_share": 0.1, **settings}})
    counts = certificate["structure"]["parameters"]
    assert counts["after"] < counts["before"]
    assert all(0 < layer["relative_error"] < 1 and 0 < layer["sparsity"] < 1 for layer in certificate["layers"])


def test_what_it_cannot_take_is_refused(source_of):
    with pytest.raises(InputError, match="separate q, k, v and o"):
        Olica().plan(source_of("gpt2").anatomy)
    with pytest.raises(InputError, match="separate q, k, v and o"):
        Olica().plan(source_of("mamba").anatomy)
    with pytest.raises(InputError, match="smaller"):
        Olica(0.9).plan(source_of("llama").anatomy)
