"""Networks whose layers differ in width: what is written is what transformers loads, with this package and without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import thrifty
from tests.tiny import build, inputs
from tests.uneven import LAYERS, blocks, sizes_of, tensors_of, write_by_hand, write_model
from thrifty.base.errors import InputError
from thrifty.export.uneven.folder import write_beside
from thrifty.export.uneven.known import ARCHITECTURES
from thrifty.export.uneven.outline import plain_config, uneven_config
from thrifty.models.shell import main_output

_APART = Path(__file__).with_name("uneven_apart.py")


def _put_out(model: Any, name: str) -> torch.Tensor:
    with torch.no_grad():
        return main_output(model(**inputs(name, 2, 12)))


def _auto(config: dict[str, Any]) -> Any:
    kinds = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForImageClassification")
    return getattr(transformers, next(auto for auto in kinds if auto in config["auto_map"]))


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uneven")


@pytest.fixture(scope="module")
def written(base: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """By name: the model put together by hand, and the config of the folder of that name."""
    return {name: write_by_hand(name, base / name) for name in LAYERS}


def test_every_known_architecture_is_tried(written):
    assert {plain_config(config)[0]["model_type"] for _, config in written.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_layers_of_plain_models(name, written, base):
    """Registered with transformers, nothing of the folder's code is asked for."""
    model, config = written[name]
    loaded = _auto(config).from_pretrained(base / name).eval()
    assert _close(_put_out(loaded, name), _put_out(model, name))
    assert {key: value.shape for key, value in loaded.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    assert loaded._no_split_modules == model._no_split_modules
    assert all(type(own) is type(plain) for own, plain in zip(blocks(loaded), blocks(model), strict=True))


def test_without_this_package(written, base):
    """In a process that cannot import it: the same logits, generation with and without a cache, in two types, saved and loaded again."""
    others = {"pieces": write_pieces(base / "pieces"), "heads": _write_heads("gpt2", [[1, 2, 3], [0]], base / "heads")}
    others["experts"] = _write_as_published("mixtral", base / "experts")
    for name, (model, config) in {**written, **others}.items():
        kept = {"inputs": inputs(name, 2, 12), "logits": _put_out(model, name), "auto": _auto(config).__name__}
        torch.save(kept, base / name / "expected.pt")
    environment = {**os.environ, "HF_MODULES_CACHE": str(base / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-I", str(_APART), str(base)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == sorted([*LAYERS, *others])


def _write_as_published(name: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The same with the names, and the pieces, that such a checkpoint has on disk: experts one by one."""
    model, config = write_by_hand(name, folder)
    model.save_pretrained(folder)
    write_beside(folder, config)
    return model, config


def test_names_on_disk_are_those_of_the_architecture(tmp_path):
    model, _ = _write_as_published("mixtral", tmp_path / "model")
    keys = load_file(tmp_path / "model" / "model.safetensors")
    assert any("experts.3." in key for key in keys) and not any(key in model.state_dict() for key in keys if "experts" in key)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert _close(_put_out(loaded, "mixtral"), _put_out(model, "mixtral"))
    assert _close(_put_out(thrifty.load(tmp_path / "model"), "mixtral"), _put_out(model, "mixtral"))


def test_saved_again_under_this_package(written, base, tmp_path):
    model, config = written["llama"]
    loaded = _auto(config).from_pretrained(base / "llama")
    loaded.save_pretrained(tmp_path)
    assert (tmp_path / "modeling_uneven.py").read_bytes() == (base / "llama" / "modeling_uneven.py").read_bytes()
    again = json.loads((tmp_path / "config.json").read_text())
    assert again["auto_map"] == config["auto_map"] and again["uneven"] == config["uneven"]
    assert _close(_put_out(_auto(config).from_pretrained(tmp_path), "llama"), _put_out(model, "llama"))


# -- heads of classes that take their number from the hidden size --------------------------------------------------------


def _rows(heads: list[int], parts: int = 1, width: int = 16, of: int = 64) -> torch.Tensor:
    channels = torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])
    return torch.cat([part * of + channels for part in range(parts)])


def _cut_heads(name: str, kept: list[list[int]]) -> tuple[Any, dict[str, torch.Tensor]]:
    """(a dense model whose other heads are read by nobody, its tensors without them)."""
    model = build(name)
    tensors = {key: tensor.clone() for key, tensor in tensors_of(model).items()}
    start = next(path for path, module in model.named_modules() if module is blocks(model))
    into = {"gpt2": ("attn.c_attn",), "opt": tuple(f"self_attn.{part}_proj" for part in "qkv"), "bert": ()}[name]
    into = into or tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
    out = {"gpt2": "attn.c_proj", "opt": "self_attn.out_proj", "bert": "attention.output.dense"}[name]
    transposed = name == "gpt2"
    for index, heads in enumerate(kept):
        removed = [head for head in range(4) if head not in heads]
        weight = model.get_parameter(f"{start}.{index}.{out}.weight")
        with torch.no_grad():
            (weight.T if transposed else weight)[:, _rows(removed)] = 0
        rows = _rows(heads, 3 if transposed else 1)
        for path in into:
            key = f"{start}.{index}.{path}"
            tensors[f"{key}.weight"] = tensors[f"{key}.weight"][:, rows] if transposed else tensors[f"{key}.weight"][rows]
            tensors[f"{key}.bias"] = tensors[f"{key}.bias"][rows]
        key = f"{start}.{index}.{out}.weight"
        tensors[key] = tensors[key][_rows(heads)] if transposed else tensors[key][:, _rows(heads)]
    return model, {key: tensor.contiguous() for key, tensor in tensors.items()}


def _write_heads(name: str, kept: list[list[int]], folder: Path) -> tuple[Any, dict[str, Any]]:
    """(the dense model, the config of the folder that one with these heads was written to)."""
    model, tensors = _cut_heads(name, kept)
    model.config.architectures = [type(model).__name__]
    return model, write_model(folder, model.config, {"num_attention_heads": [len(heads) for heads in kept]}, tensors)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert"])
@pytest.mark.parametrize("kept", [[[1, 2, 3], [0]], [[0, 2], [1, 3]]])
def test_heads_that_no_config_can_say(name, kept, tmp_path):
    """Zeroing a head in the dense model gives the oracle. The same number of heads in every layer goes this way, too."""
    model, made = _write_heads(name, kept, tmp_path / "cut")
    loaded = _auto(made).from_pretrained(tmp_path / "cut").eval()
    assert _close(_put_out(loaded, name), _put_out(model, name))
    if name != "bert":
        _check_generation(loaded)


def _check_generation(model: Any) -> None:
    prompt = torch.arange(3, 9)[None]
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with_cache = model.generate(prompt, use_cache=True, **settings)
    assert torch.equal(with_cache, model.generate(prompt, use_cache=False, **settings))
    assert with_cache.shape == (1, 12)


# -- shapes that no class has --------------------------------------------------------------------------------------------


def _pieces(tensors: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """A Llama with a matrix in two pieces, narrower values, biases that its class lacks, and branches; `model` gets the same in full."""
    layer, generator = "model.layers.0", torch.Generator().manual_seed(5)
    first, second = model.model.layers

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    made = dict(tensors)
    query = f"{layer}.self_attn.q_proj"
    del made[f"{query}.weight"]
    made |= {f"{query}.down.weight": new(8, 64), f"{query}.up.weight": new(64, 8), f"{query}.up.bias": new(64)}
    first.self_attn.q_proj = nn.Linear(64, 64)
    first.self_attn.q_proj.weight.data = made[f"{query}.up.weight"] @ made[f"{query}.down.weight"]
    first.self_attn.q_proj.bias.data = made[f"{query}.up.bias"]

    values, out = f"{layer}.self_attn.v_proj", f"{layer}.self_attn.o_proj"
    rows = torch.cat([torch.arange(head * 16, head * 16 + 12) for head in range(4)])
    made[f"{values}.kept.weight"] = made.pop(f"{values}.weight")[rows[:24]].contiguous()
    made[f"{out}.kept.weight"] = made.pop(f"{out}.weight")[:, rows].contiguous()
    dropped = torch.tensor([channel for channel in range(32) if channel % 16 >= 12])
    first.self_attn.v_proj.weight.data[dropped] = 0

    made["model.layers.1.mlp.down_proj.bias"] = new(64)
    second.mlp.down_proj.bias = nn.Parameter(made["model.layers.1.mlp.down_proj.bias"])

    for path, module in (("model.layers.1.mlp", second.mlp), ("model.layers.1.self_attn.k_proj", second.self_attn.k_proj)):
        width = 64 if path.endswith("mlp") else module.weight.shape[0]
        down, up = new(8, 64), new(width, 8)
        made |= {f"{path}.branch.down.weight": down, f"{path}.branch.up.weight": up}
        module.register_forward_hook(lambda _, arguments, output, down=down, up=up: output + arguments[0] @ down.T @ up.T)
    return made


def write_pieces(folder: Path) -> tuple[Any, dict[str, Any]]:
    """(a plain Llama that computes the same, the config of the folder that one in pieces was written to)."""
    model = build("llama")
    model.config.architectures = ["LlamaForCausalLM"]
    tensors = _pieces(tensors_of(model), model)
    return model, write_model(folder, model.config, {"v_head_dim": [12, 16]}, tensors)


def test_pieces_narrow_values_biases_and_branches(tmp_path):
    model, config = write_pieces(tmp_path / "pieces")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pieces")
    assert _close(_put_out(loaded, "llama"), _put_out(model, "llama"))
    _check_generation(loaded)
    assert loaded.num_parameters() < build("llama").num_parameters() + 64 + 64 + 8 * (64 + 64) + 8 * (64 + 32)
    assert config["uneven"]["linears"][0] == {
        "self_attn.q_proj": {"rank": 8, "bias": True},
        "self_attn.v_proj": {"out_features": 24, "pad": [12, 16]},
        "self_attn.o_proj": {"in_features": 48, "take": [12, 16]},
    }


def test_a_norm_over_all_heads(tmp_path):
    """OLMoE's norms of queries and keys are as wide as all heads together."""
    model = build("olmoe")
    model.config.architectures = ["OlmoeForCausalLM"]
    tensors = {}
    for key, tensor in tensors_of(model).items():
        if ".1.self_attn." in key:
            channels = 32 if "q_" in key or "o_proj" in key else 16
            tensor = tensor[:, :channels] if "o_proj" in key else tensor[:channels]
        tensors[key] = tensor.contiguous()
    config = write_model(tmp_path / "cut", model.config, {"num_attention_heads": [4, 2], "num_key_value_heads": [2, 1]}, tensors)
    assert config["uneven"]["widths"] == [{}, {"self_attn.q_norm": 32, "self_attn.k_norm": 16}]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    attention = model.model.layers[1].self_attn
    for path in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
        attention.get_submodule(path).weight = nn.Parameter(tensors[f"model.layers.1.self_attn.{path}.weight"])
    assert _close(_put_out(loaded, "olmoe"), _put_out(model, "olmoe"))


def test_an_inner_width_that_is_no_multiple_of_the_hidden_size():
    config = build("mamba2").config
    for inner in range(32, 128, 32):
        sizes = {"intermediate_size": [inner, 128], "num_heads": [inner // 32, 4]}
        shapes = {name: tuple(value.shape) for name, value in build("mamba2").state_dict().items()}
        for name, shape in shapes.items():
            if ".0.mixer." in name:
                shapes[name] = _mamba2_shape(name, shape, inner)
        made = uneven_config({**config.to_dict(), "architectures": ["Mamba2ForCausalLM"]}, sizes, shapes)
        assert int(made["uneven"]["sizes"]["expand"][0] * 64) == inner


def _mamba2_shape(name: str, shape: tuple[int, ...], inner: int) -> tuple[int, ...]:
    state, heads = 2 * 2 * 16, inner // 32
    widths = {
        "in_proj.weight": 2 * inner + state + heads,
        "conv1d.weight": inner + state,
        "conv1d.bias": inner + state,
        "norm.weight": inner,
    }
    end = name.partition(".mixer.")[2]
    if end == "out_proj.weight":
        return (shape[0], inner)
    return (widths.get(end, heads), *shape[1:])


# -- a network is cut again ----------------------------------------------------------------------------------------------


def test_cut_again(written, base, tmp_path):
    _, config = written["llama"]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(base / "llama")
    tensors = tensors_of(loaded)
    for path, cut in (("gate_proj", slice(0, 40)), ("up_proj", slice(0, 40))):
        tensors[f"model.layers.0.mlp.{path}.weight"] = tensors[f"model.layers.0.mlp.{path}.weight"][cut]
    tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"][:, :40].contiguous()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    again = uneven_config(config, {"intermediate_size": [40, 32]}, shapes)
    assert again["uneven"]["sizes"] == config["uneven"]["sizes"] | {"intermediate_size": [40, 32]}
    assert again["architectures"] == config["architectures"] and again["auto_map"] == config["auto_map"]


# -- refusals --------------------------------------------------------------------------------------------------------------


def _refusal(config: dict[str, Any], sizes: dict[str, list[int]], shapes: dict[str, tuple[int, ...]]) -> str:
    with pytest.raises(InputError) as caught:
        uneven_config(config, sizes, shapes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals(written):
    model, config = written["llama"]
    plain, _ = plain_config(config)
    sizes = sizes_of("llama")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
    assert "layers of t5 cannot differ in width" in _refusal({**plain, "model_type": "t5"}, sizes, shapes)
    assert "names no model class" in _refusal({**plain, "architectures": ["NoSuchModel"]}, sizes, shapes)
    assert "has no size depth" in _refusal(plain, {**sizes, "depth": [1, 2]}, shapes)
    assert "must have 2 values" in _refusal(plain, {**sizes, "intermediate_size": [96]}, shapes)
    assert "above 0" in _refusal(plain, {**sizes, "num_key_value_heads": [2, 0]}, shapes)
    assert "layer 0: mlp.gate_proj has 96 out_features, where its sizes ask for 64" in _refusal(
        plain, {**sizes, "intermediate_size": [64, 32]}, shapes
    )
    assert "lack model.norm.weight" in _refusal(
        plain, sizes, {name: shape for name, shape in shapes.items() if name != "model.norm.weight"}
    )
    assert "has no place" in _refusal(plain, sizes, {**shapes, "model.layers.0.mlp.extra.weight": (3, 3)})
    assert "has the shape [96, 63]" in _refusal(plain, sizes, {**shapes, "lm_head.weight": (96, 63)})


def test_a_tokenizer_keeps_the_class_that_its_model_type_chose(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    write_beside(tmp_path, {"uneven": {"model_type": "gpt2"}})
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"].startswith("GPT2Tokenizer")
