"""Opening a folder: what is refused, and what is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.walking import reference, walk
from tests.tiny import ARCHITECTURES, build, inputs, tiny
from thrifty.base import events
from thrifty.base.errors import InputError
from thrifty.models import linear_modules, open_model


@pytest.fixture
def llama(tmp_path, folder_of) -> Path:
    """A copy of the tiny Llama that may be damaged."""
    folder = tmp_path / "llama"
    shutil.copytree(folder_of("llama"), folder)
    return folder


def _edit_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _refusal(folder, **settings) -> str:
    with pytest.raises(InputError) as caught:
        open_model(folder, **settings)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_such_folder(tmp_path):
    assert "there is no folder" in _refusal(tmp_path / "nothing")
    assert "there is no folder" in _refusal(str(tmp_path / "nothing"))


def test_a_file_is_not_a_folder(llama):
    assert "is a file" in _refusal(llama / "config.json")


def test_a_hub_id_out_of_reach(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert "cannot be reached" in _refusal("owner/name")

    def unknown(*args, **kwargs):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
    assert "no model of that name" in _refusal("owner/name")


def test_a_hub_id_is_downloaded(monkeypatch, folder_of):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder_of("llama")))
    assert open_model("owner/name").anatomy.model_type == "llama"


@pytest.mark.parametrize(("allowed", "weights", "fetched"), [(False, ".bin", 0), (True, ".bin", 1), (True, ".safetensors", 0)])
def test_pickles_are_fetched_only_where_they_are_allowed_and_needed(allowed, weights, fetched, tmp_path, monkeypatch, folder_of):
    import fnmatch

    import huggingface_hub

    held, asked = ["config.json", "pytorch_model.bin", "model.safetensors"], []

    def download(name, allow_patterns):
        asked.append(allow_patterns)
        for file in held:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                if file == "pytorch_model.bin":
                    torch.save(load_file(folder_of("llama") / "model.safetensors"), tmp_path / file)
                else:
                    shutil.copy(folder_of("llama") / file, tmp_path / file)
        return str(tmp_path)

    held.remove("model.safetensors" if weights == ".bin" else "pytorch_model.bin")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    if weights == ".bin" and not allowed:
        assert "no weights" in _refusal("owner/name")
    else:
        assert open_model("owner/name", allow_pickle=allowed).pickled == bool(fetched)
    assert sum("*pytorch_model*.bin" in patterns for patterns in asked) == fetched


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    assert "no config.json" in _refusal(tmp_path)


def test_broken_configs(llama):
    (llama / "config.json").write_text("{")
    assert "not valid JSON" in _refusal(llama)
    (llama / "config.json").write_text("{}")
    assert "model_type" in _refusal(llama)


def test_an_invalid_config_value(llama):
    _edit_config(llama, hidden_size="wide")
    assert "config" in _refusal(llama)


def test_an_unknown_architecture(llama):
    _edit_config(llama, model_type="brand_new", architectures=["BrandNewForCausalLM"])
    assert "'brand_new'" in _refusal(llama)


def test_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    assert "adapter" in _refusal(tmp_path)


def test_an_already_quantized_model(llama):
    _edit_config(llama, quantization_config={"quant_method": "compressed-tensors"})
    message = _refusal(llama)
    assert "already quantized (compressed-tensors)" in message
    assert "original" in message


def test_remote_code_needs_permission(llama):
    _edit_config(llama, auto_map={"AutoModelForCausalLM": "modeling_own.OwnModel"})
    assert "--trust-remote-code" in _refusal(llama)


def test_no_weights(llama):
    (llama / "model.safetensors").unlink()
    assert "no weights" in _refusal(llama)


def test_pickles_need_permission(llama, source_of):
    tensors = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    torch.save(tensors, llama / "pytorch_model.bin")
    assert "--allow-pickle" in _refusal(llama)
    rows = inputs("llama", rows=2, length=6)
    assert torch.equal(walk(open_model(llama, allow_pickle=True), rows), walk(source_of("llama"), rows))


def test_a_pickle_with_code_is_refused_even_so(llama):
    class Trap:
        def __reduce__(self):
            return (print, ("ran",))

    (llama / "model.safetensors").unlink()
    torch.save({"x": Trap()}, llama / "pytorch_model.bin")
    assert "more than tensors" in _refusal(llama, allow_pickle=True)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file(llama, keep):
    file = llama / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep if keep > 1 or keep == 0 else keep * len(data))])
    assert "cannot be read as safetensors" in _refusal(llama)


def test_a_file_cut_after_it_was_opened(llama):
    source = open_model(llama)
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(InputError, match="ends within tensor"):
        source.digest()


def test_garbage_instead_of_safetensors(llama):
    (llama / "model.safetensors").write_bytes(b"not a header at all, but long enough to be read as one")
    assert "cannot be read as safetensors" in _refusal(llama)


def test_a_missing_shard(tmp_path):
    folder = tiny("llama", tmp_path / "sharded", max_shard_size="40KB")
    victim = sorted(folder.glob("*.safetensors"))[1]
    victim.unlink()
    assert victim.name in _refusal(folder)


def test_a_shard_that_lacks_a_tensor(tmp_path):
    folder = tiny("llama", tmp_path / "sharded", max_shard_size="40KB")
    file = sorted(folder.glob("*.safetensors"))[1]
    tensors = load_file(file)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, file, metadata={"format": "pt"})
    assert lost in _refusal(folder)


def test_a_broken_index(tmp_path):
    folder = tiny("llama", tmp_path / "sharded", max_shard_size="40KB")
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "index" in _refusal(folder)


@pytest.mark.parametrize(
    ("name", "key"),
    [("llama", "model.layers.1.mlp.up_proj.weight"), ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w3.weight")],
)
def test_a_missing_tensor(name, key, tmp_path, folder_of):
    folder = tmp_path / name
    shutil.copytree(folder_of(name), folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors[key]
    save_file(tensors, folder / "model.safetensors")
    assert "lack model.layers.1." in _refusal(folder)


def test_a_tensor_of_another_shape(llama):
    _edit_config(llama, vocab_size=100)
    message = _refusal(llama)
    assert "[96, 64]" in message
    assert "[100, 64]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(llama, value):
    tensors = load_file(llama / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][3, 5] = value
    save_file(tensors, llama / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.down_proj\.weight holds NaN"):
        open_model(llama).digest()


def test_the_digest_follows_the_content(llama, source_of):
    seen = []
    with events.listening(seen.append):
        before = source_of("llama").digest()
    assert set(before) == set(source_of("llama").tensors)
    assert [event.kind for event in seen if event.task == "hashing"][-1] == "end"
    tensors = load_file(llama / "model.safetensors")
    key = "model.layers.1.self_attn.q_proj.weight"
    tensors[key][0, 0] += 1
    save_file(tensors, llama / "model.safetensors")
    after = open_model(llama).digest()
    assert {name for name in before if before[name] != after[name]} == {key}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_and_shell_share_out_the_file(name, source_of, folder_of):
    source = source_of(name)
    parts = [set(source.block_keys(block)) for block in source.anatomy.blocks] + [set(source.shell_keys())]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(source.tensors)
    size = sum(map(source.block_bytes, source.anatomy.blocks)) + source.shell_bytes()
    assert size == sum(tensor.nbytes for tensor in load_file(folder_of(name) / "model.safetensors").values())
    assert sum(map(source.block_parameters, source.anatomy.blocks)) + source.shell_parameters() == size // 4


def test_reading_gives_what_is_on_disk(source_of, folder_of):
    source = source_of("clip")
    for key, tensor in load_file(folder_of("clip") / "model.safetensors").items():
        assert torch.equal(source.read(key), tensor)
        assert source.tensors[key].shape == tuple(tensor.shape)


def test_the_commonest_type_is_the_models(tmp_path):
    model = build("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert open_model(tmp_path).dtype == torch.bfloat16


def test_disk_names(source_of):
    assert source_of("gpt2").disk_name("lm_head.weight") == "transformer.wte.weight"
    assert source_of("vit").disk_name("vit.layers.0.mlp.fc1.bias") == "vit.encoder.layer.0.intermediate.dense.bias"
    assert source_of("llava").disk_name("lm_head.weight") == "language_model.lm_head.weight"
    assert source_of("mixtral").disk_name("model.layers.0.mlp.experts.gate_up_proj") is None
    assert source_of("llama").disk_name("nothing.weight") is None


@pytest.mark.parametrize(
    ("name", "expected"), [("siglip", True), ("gemma3_vision", True), ("llama", False), ("clip", False), ("mixtral", False), ("vit", False)]
)
def test_which_classes_fill_their_linears_while_loading(name, expected, source_of):
    """Those cannot be loaded once their linears hold codes: `test_architectures.py` loads a packed file of every architecture."""
    source = source_of(name)
    assert source.fills_linears is expected
    source.block(source.anatomy.blocks[0], torch.float32)  # its own skeleton is whole


def test_side_files(llama):
    (llama / "tokenizer.json").write_text("{}")
    (llama / "chat_template.jinja").write_text("x")
    (llama / "LICENSE").write_text("x")
    (llama / "training_args.bin").write_bytes(b"x")
    names = {path.name for path in open_model(llama).side_files()}
    assert names == {"tokenizer.json", "chat_template.jinja", "LICENSE", "generation_config.json"}


def test_replacements_take_the_place_of_what_is_on_disk(source_of):
    source = source_of("mixtral")
    block = source.anatomy.blocks[0]
    linear = next(item for item in block.linears if item.expert == 2 and item.role == "up")
    other = torch.randn(linear.out_features, linear.in_features)
    module = source.block(block, torch.float32, replace={linear.source: other})
    assert torch.equal(linear_modules(module, block)[linear.path].weight, other)
    plain = linear_modules(source.block(block, torch.float32), block)
    assert torch.equal(plain[linear.path].weight, source.read(linear.source))


def test_a_trusted_model_with_code_of_its_own(tmp_path):
    folder = _remote_model(tmp_path)
    source = open_model(folder, trust_remote_code=True)
    assert [len(stage.linears) for stage in source.anatomy.blocks[0].stages] == [1, 1]
    rows = {"input_ids": torch.randint(0, 50, (3, 7))}
    out = walk(source, rows)
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(out, model(**rows).logits)


def _remote_model(tmp_path: Path) -> Path:
    """A model whose code lies beside its weights and whose blocks return tuples."""
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "modeling_plain.py").write_text(_REMOTE)
    config = {
        "model_type": "plain_tuples",
        "architectures": ["PlainForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_plain.PlainConfig", "AutoModelForCausalLM": "modeling_plain.PlainForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (50, 32), "head.weight": (50, 32), "norm.weight": (32,), "norm.bias": (32,)}
    for index in range(3):
        shapes |= {f"layers.{index}.norm.weight": (32,), f"layers.{index}.norm.bias": (32,)}
        shapes |= {f"layers.{index}.wide.weight": (64, 32), f"layers.{index}.narrow.weight": (32, 64)}
    save_file(
        {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


_REMOTE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class PlainConfig(PretrainedConfig):
    model_type = "plain_tuples"
    vocab_size = 50


class PlainBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.wide = nn.Linear(32, 64, bias=False)
        self.narrow = nn.Linear(64, 32, bias=False)

    def forward(self, hidden_states, flag=None):
        return (hidden_states + self.narrow(torch.relu(self.wide(self.norm(hidden_states)))), None)


class PlainForCausalLM(PreTrainedModel):
    config_class = PlainConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(PlainBlock() for _ in range(3))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 50, bias=False)
        self.post_init()

    def forward(self, input_ids, **kwargs):
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, flag=True)[0]
        return CausalLMOutput(logits=self.head(self.norm(hidden)))
"""


def test_reference_and_walk_share_no_reading_code(source_of, folder_of):
    """The oracle of the walk is transformers' own loader; a damaged copy must make it differ."""
    rows = inputs("llama", rows=1, length=6)
    expected = reference(folder_of("llama"), rows)
    source = open_model(folder_of("llama"))
    key = "model.norm.weight"
    source.read = lambda name, read=source.read: read(name) * (2 if name == key else 1)
    assert not torch.allclose(walk(source, rows), expected, atol=1e-3)
