"""SliceGPT: what is lost by the eigenvalues, results of the same architecture, and better directions than the plain ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

import thrifty
from tests.structure.rebuilding import compressed
from tests.tiny import inputs
from thrifty.base.errors import InputError
from thrifty.data import default_model, load_rows
from thrifty.measure.language import causal_targets, score_windows
from thrifty.models import open_model
from thrifty.structure.narrow import Products
from thrifty.structure.slice_gpt import SliceGPT


def loaded(folder: Path, name: str) -> torch.nn.Module:
    auto = AutoModelForImageClassification if name == "vit" else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("keeps_mean", [False, True])
def test_energy_loses_the_smallest_eigenvalues_and_outputs_lose_less_of_what_is_read(keeps_mean):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 12, dtype=torch.float64, generator=generator) @ torch.randn(12, 12, dtype=torch.float64, generator=generator)
    rows = rows - rows.mean(1, keepdim=True) if keeps_mean else rows
    weight = torch.randn(4, 12, dtype=torch.float64, generator=generator)
    gram = rows.T @ rows
    seen = Products(gram, lambda: [(gram, weight.T @ weight)])
    eigenvalues = torch.linalg.eigvalsh(gram)[int(keeps_mean) :]
    lost = {}
    for by in ("outputs", "energy", "channels", "random"):
        matrix = SliceGPT(by=by).matrix(seen, 8, keeps_mean=keeps_mean)
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(8, dtype=torch.float64))
        read = SliceGPT(damp=0.0).reading(gram + 1e-9 * torch.eye(12), matrix)
        outputs = rows @ weight.T - rows @ matrix @ read.T @ weight.T
        lost[by] = (float((rows - rows @ matrix @ matrix.T).square().sum()), float(outputs.square().sum()))
    dropped = float(eigenvalues[: len(eigenvalues) - 8 + keeps_mean].sum())
    assert lost["energy"][0] == pytest.approx(dropped, rel=1e-6)
    assert all(lost["energy"][0] < lost[by][0] for by in ("channels", "random"))
    assert all(lost["outputs"][1] < 0.1 * lost[by][1] for by in ("energy", "channels", "random"))


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mixtral", "vit"])
def test_nothing_changes_where_no_channel_goes(name, folder_of, tmp_path):
    compressed(folder_of(name), name, tmp_path / "out", {"slice_gpt": {"ratio": 0.0}})
    rows = inputs(name, rows=2, length=12, seed=5)
    with torch.no_grad():
        before, after = (loaded(folder, name)(**rows).logits for folder in (folder_of(name), tmp_path / "out"))
    assert float((before - after).abs().max()) <= 1e-4


@pytest.mark.parametrize("name", ["llama", "phi", "vit"])
def test_the_result_is_of_the_same_class_with_fewer_channels(name, folder_of, tmp_path):
    """What transformers loads was compared with what the walk has seen."""
    certificate = compressed(folder_of(name), name, tmp_path / "out", {"slice_gpt": {"ratio": 0.4}})
    original, result = (loaded(folder, name) for folder in (folder_of(name), tmp_path / "out"))
    assert type(result) is type(original) and result.config.hidden_size == 40
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert certificate["structure"]["hidden channels"] == {"before": 64, "after": 40}
    assert certificate["structure"]["parameters"]["after"] == result.num_parameters() < 0.7 * original.num_parameters()
    for layer in certificate["layers"]:
        assert layer["sparsity"] == pytest.approx(0.375) and 0 < layer["relative_error"] < 1
    assert {layer["tokens"] for layer in certificate["layers"]} > {0}


def test_the_certificate_tells_what_a_reader_loses(folder_of, tmp_path):
    """Of the outputs of the first matrix, which reads embeddings alone."""
    step = {"ratio": 0.25, "by": "energy"}
    certificate = compressed(folder_of("llama"), "llama", tmp_path / "out", {"slice_gpt": step})
    original, result = (loaded(folder, "llama") for folder in (folder_of("llama"), tmp_path / "out"))
    rows = inputs("llama", rows=6, length=20, seed=1)["input_ids"]
    with torch.no_grad():
        hidden = [model.model.embed_tokens(rows) for model in (original, result)]
        layers = [model.model.layers[0] for model in (original, result)]
        out = [layer.self_attn.q_proj(layer.input_layernorm(states)) for layer, states in zip(layers, hidden, strict=True)]
    # the norm of the result divides by the length of what is left; the figure is for the length that was
    left = (hidden[1].square().sum(-1) / hidden[0].square().sum(-1)).sqrt()[..., None]
    error = (out[0] - out[1] * left).square().sum() / out[0].square().sum()
    told = next(layer["relative_error"] for layer in certificate["layers"] if layer["name"].endswith("layers.0.self_attn.q_proj"))
    assert told == pytest.approx(float(error), rel=1e-2)


def test_better_directions_and_the_refit_lose_less_on_the_embedded_model(tmp_path):
    model = default_model()
    config = open_model(model).config
    rows, held_out = (
        load_rows(folder=model, config=config, kind="causal_lm", purpose=purpose, samples=8, tokens=96, seed=0)
        for purpose in ("calibration", "evaluation")
    )
    windows = held_out.inputs["input_ids"]
    with torch.no_grad():
        before = loaded(model, "llama")(windows).logits
    ways = {
        "ours": {},
        "published": {"by": "energy", "normalised": False, "refit": False},
        "channels": {"by": "channels", "refit": False},
    }
    kl = {}
    for name, settings in ways.items():
        steps = {"steps": [{"slice_gpt": {"ratio": 0.25, "steps": 4, **settings}}]}
        thrifty.compress(model, steps, rows, evaluation=held_out, out=tmp_path / name, speed=False)
        with torch.no_grad():
            narrow = loaded(tmp_path / name, "llama")
            assert narrow.config.hidden_size == 192
            kl[name] = score_windows(before, narrow(windows).logits, causal_targets(windows)).kl
    # window by window: each of the eight
    assert bool((kl["ours"] < kl["published"]).all()) and float(kl["ours"].sum()) < 0.9 * float(kl["published"].sum())
    assert bool((kl["published"] < 0.5 * kl["channels"]).all())


def test_a_shared_head_gets_its_own_narrow_matrix(folder_of, tmp_path):
    compressed(folder_of("qwen2"), "qwen2", tmp_path / "out", {"slice_gpt": {"ratio": 0.25}})
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as stored:
        assert {tuple(stored.get_slice(name).get_shape()) for name in ("lm_head.weight", "model.embed_tokens.weight")} == {(96, 48)}


def test_other_structural_steps_may_stand_around_it(folder_of, tmp_path):
    """Each is planned on what the one before leaves, which does not exist then."""
    rows, judged = inputs("llama", rows=6, length=20, seed=1), inputs("llama", rows=3, length=20, seed=2)
    steps = [{"flap": {"ratio": 0.25, "cut": ["neurons"]}}, {"slice_gpt": {"ratio": 0.25}}, {"flap": {"ratio": 0.25, "cut": ["neurons"]}}]
    thrifty.compress(folder_of("llama"), {"steps": steps}, rows, evaluation=judged, out=tmp_path / "out", speed=False, verify="full")
    result = loaded(tmp_path / "out", "llama")
    assert (result.config.hidden_size, result.config.intermediate_size) == (48, 56) and not result.config.tie_word_embeddings


def test_bad_settings_are_refused(folder_of, tmp_path):
    with pytest.raises(InputError, match="ratio"):
        SliceGPT(1.0)
    with pytest.raises(InputError, match="less than half of multiple_of"):
        SliceGPT(0.05).width(64)
    assert SliceGPT(0.25, multiple_of=32).width(256) == 192 and SliceGPT(0.99).width(64) == 8
    with pytest.raises(InputError, match="leave `slice_gpt` out"):
        compressed(folder_of("gpt2"), "gpt2", tmp_path / "out", {"slice_gpt": {"ratio": 0.25}})
