"""Bad input on the command line: exit code 2, one sentence that says what was wrong and where, and nothing written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.tiny import IMAGE, tiny
from thrifty.cli.main import main

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \n.,:;()=+-*/_[]\"'#"
LINEAR = "model.layers.0.mlp.down_proj"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
RTN = "rtn: {bits: 4, group_size: 32}"
GPTQ = "gptq: {bits: 4, group_size: 32}"

Change = Callable[[Path], None]


@dataclass(frozen=True)
class World:
    """What every case starts from. model: a folder that works. result: what `compress` made of it. other: a model of another vocabulary.
    vision: a model that sees.
    """

    model: Path
    result: Path
    other: Path
    vision: Path


@dataclass(frozen=True)
class Case:
    """A command that cannot be right.

    words: the command line, with {places}. says: what the sentence must hold. change: what is broken first.
    """

    name: str
    words: list[str]
    says: tuple[str, ...]
    change: Change | None = None


def add_tokenizer(folder: Path, letters: str = LETTERS) -> Path:
    """A tokenizer of single characters, with fewer tokens than the tiny models have rows."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *letters])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    return folder


def text(path: Path, lines: int = 60) -> None:
    path.write_text("".join(f"value_{number} = compute({number * number}, [{number}, 'x'])\n" for number in range(lines)))


def compress(*words: str, recipe: str = "", model: str = "{model}", calibration: str = "{text}") -> list[str]:
    """A `compress` that would work, were it not for `words`, the recipe, the model or the text."""
    data = ["--calibration", calibration, "--samples", "4", "--tokens", "16"]
    return ["compress", model, "--recipe", recipe or QUICK, *data, "--out", "{out}", *words]


def steps(*written: str) -> list[str]:
    """`compress` with these steps, each as inline YAML."""
    return compress(recipe=HEAD + "".join(f"  - {step}\n" for step in written))


HEAD = "evaluation: {text: '{text}', samples: 2, tokens: 16}\nsteps:\n"
QUICK = HEAD + f"  - {GPTQ}\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    base = tmp_path_factory.mktemp("world")
    add_tokenizer(tiny("llama", base / "model"))
    other = tiny("llama", base / "other")
    config = json.loads((other / "config.json").read_text())
    tensors = load_file(other / WEIGHTS)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[key] = tensors[key][:90].clone()
    save_file(tensors, other / WEIGHTS, metadata={"format": "pt"})
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 90}))
    add_tokenizer(other)
    text(base / "text.txt")
    words = fill(compress(), {"model": base / "model", "text": base / "text.txt", "out": base / "result"})
    assert main(words) == 0
    vision = tiny("vit", base / "vision")
    ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE}).save_pretrained(vision)
    return World(base / "model", base / "result", other, vision)


def fill(words: list[str], places: dict[str, Path]) -> list[str]:
    """Words with {places} put in; other braces stay."""
    for name, path in places.items():
        words = [word.replace("{" + name + "}", str(path)) for word in words]
    return words


def listing(folder: Path) -> dict[str, str]:
    """Everything under a folder: digests of files by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


# -- what is broken ----------------------------------------------------------------------------------------------------


def edit_config(**changes: Any) -> Change:
    def change(place: Path) -> None:
        file = place / "model" / "config.json"
        config = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return change


def edit_weights(edit: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    def change(place: Path) -> None:
        tensors = load_file(place / "model" / WEIGHTS)
        edit(tensors)
        save_file(tensors, place / "model" / WEIGHTS, metadata={"format": "pt"})

    return change


def poison(value: float) -> Change:
    return edit_weights(lambda tensors: tensors[f"{LINEAR}.weight"][3].fill_(value))


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{LINEAR}.weight"]


def whole_numbers(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LINEAR}.weight"] = torch.ones_like(tensors[f"{LINEAR}.weight"], dtype=torch.int8)


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LINEAR}.weight"] = tensors[f"{LINEAR}.weight"][:, :64].clone()


def write(name: str, content: str | bytes) -> Change:
    """A file beside the model, or in it."""

    def change(place: Path) -> None:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def remove(*names: str) -> Change:
    def change(place: Path) -> None:
        for name in names:
            for path in (place / "model").glob(name):
                path.unlink()

    return change


def only_adapter(place: Path) -> None:
    remove("*")(place)
    write("model/adapter_config.json", '{"peft_type": "LORA"}')(place)
    write("model/adapter_model.safetensors", b"")(place)


def truncate(place: Path) -> None:
    file = place / "model" / WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def pickle(place: Path) -> None:
    tensors = load_file(place / "model" / WEIGHTS)
    (place / "model" / WEIGHTS).unlink()
    torch.save(tensors, place / "model" / "pytorch_model.bin")


def shard(missing_file: bool) -> Change:
    """The weights in two shards; then either one file, or one tensor that the index names, is gone."""

    def change(place: Path) -> None:
        model = place / "model"
        tensors = load_file(model / WEIGHTS)
        (model / WEIGHTS).unlink()
        names = {key: f"model-0000{1 + (key >= 'model.layers.1')}-of-00002.safetensors" for key in tensors}
        (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
        if not missing_file:
            del tensors[f"{LINEAR}.weight"]
        for name in sorted(set(names.values())):
            save_file({key: tensors[key] for key in tensors if names[key] == name}, model / name, metadata={"format": "pt"})
        if missing_file:
            (model / sorted(set(names.values()))[1]).unlink()

    return change


def foreign_out(place: Path) -> None:
    write("out/thesis.tex", "years of work")(place)


def finished(place: Path) -> None:
    """In `out` what could be a result of thrifty: a model with its certificate, and a text."""
    shutil.copytree(place / "model", place / "out")
    write("out/certificate.json", '{"run_key": "another"}')(place)
    text(place / "out" / "text.txt")


def another_run(place: Path) -> None:
    words = compress(recipe=HEAD + f"  - {RTN}\n")
    assert main(fill(words, {"model": place / "model", "text": place / "text.txt", "out": place / "out"})) == 0


def orphan(place: Path) -> None:
    """A result in `r` whose original is gone."""
    words = compress(model="{here}/gone")
    (place / "model").rename(place / "gone")
    assert main(fill(words, {"here": place, "text": place / "text.txt", "out": place / "r"})) == 0
    (place / "gone").rename(place / "model")


# -- the cases ---------------------------------------------------------------------------------------------------------

RECIPES = [
    Case("unknown method", steps("gptk: {bits: 4}"), ("step 1", "'gptk'", "did you mean 'gptq'")),
    Case("unknown setting", steps("gptq: {bitz: 4}"), ("step 1", "'bitz'", "did you mean 'bits'")),
    Case("unknown key of a recipe", compress(recipe="step: [{rtn: {}}]\n"), ("'step'", "did you mean 'steps'")),
    Case("wrong type", steps("gptq: {symmetric: 3}"), ("step 1", "gptq", "symmetric", "boolean", "3")),
    Case("bits 0", steps("gptq: {bits: 0}"), ("step 1", "gptq: bits", "greater than or equal to 2", "got 0")),
    Case("bits 9", steps("gptq: {bits: 9}"), ("step 1", "gptq: bits", "less than or equal to 8", "got 9")),
    Case("bits as text", steps("gptq: {bits: four}"), ("step 1", "gptq: bits", "integer", "got 'four'")),
    Case("bits true", steps("gptq: {bits: true}"), ("step 1", "gptq: bits", "integer", "got True")),
    Case("group size that does not divide", steps("rtn: {group_size: 48}"), ("group_size", "48", "64", "model.layers.0.")),
    Case("group size negative", steps("rtn: {group_size: -1}"), ("step 1", "group_size", "greater than or equal to 0", "got -1")),
    Case("damping not finite", steps("gptq: {damping: .nan}"), ("line 3", ".nan", "not a finite number")),
    Case("two methods in a step", steps("{gptq: {}, rtn: {}}"), ("step 1", "gptq, rtn", "one step for each")),
    Case("no such linear to override", steps("{rtn: {}, override: {'*.down_prj': {bits: 8}}}"), ("override", "'*.down_prj'", "down_proj")),
    Case("override of an unknown setting", steps("{rtn: {}, override: {'*.down_proj': {bit: 8}}}"), ("override", "'bit'", "'bits'")),
    Case("no such linear to skip", steps("{rtn: {}, skip: ['*.gate']}"), ("skip", "'*.gate'", "gate_proj")),
    Case("nothing left after skip", steps("{rtn: {}, skip: ['*']}"), ("step 1", "selects no linear")),
    Case("no such linear to take", steps("{rtn: {}, only: ['down_proj']}"), ("only", "'down_proj'", "'*.down_proj'")),
    Case("target alone", steps("int: {bits: 4}"), ("step 1", "int", "part of a step")),
    Case("transform only", steps("awq: {}"), ("only rewrites", "add a step")),
    Case("transform after the solver", steps(GPTQ, "awq: {}"), ("step 2", "awq", "before")),
    Case("act order over n:m", steps("solve: {by: {obs: {act_order: true}}, into: {n_m: {n: 2, m: 4}}}"), ("act_order", "n_m")),
    Case("baq on a symmetric grid", steps("solve: {by: obs, into: {int: {symmetric: true}}, share: baq}"), ("baq", "symmetric: false")),
    Case("n over m", steps("solve: {by: obs, into: {n_m: {n: 5, m: 4}}}"), ("n_m", "at most m", "5")),
    Case("recipe file missing", compress(recipe="{here}/recipe.yaml"), ("no recipe file", "recipe.yaml", "thrifty recipes")),
    Case("recipe is a folder", compress(recipe="{here}"), ("is a folder", "recipe.yaml")),
    Case("broken YAML", compress(recipe="{here}/r.yaml"), ("r.yaml, line 3", "not YAML"), write("r.yaml", "steps:\n  - [rtn: {\n")),
    Case("recipe is a list", compress(recipe="{here}/r.yaml"), ("r.yaml", "not a list", "steps:"), write("r.yaml", "- rtn: {}\n")),
    Case("recipe empty", compress(recipe="{here}/r.yaml"), ("r.yaml", "is empty", "needs steps"), write("r.yaml", "")),
    Case("recipe is binary", compress(recipe="{here}/r.yaml"), ("r.yaml", "not UTF-8"), write("r.yaml", b"\xff\xfe\x00")),
    Case("recipe key twice", compress(recipe="{here}/r.yaml"), ("r.yaml, line 2", "'rtn'", "twice"), write("r.yaml", "rtn: {}\nrtn: {}\n")),
    Case("no such recipe", compress(recipe="w4-asymetric"), ("'w4-asymetric'", "did you mean 'w4-asymmetric'", "thrifty recipes")),
    Case("settings that are a number", steps("gptq: 4"), ("step 1", "gptq", "mapping", "4")),
    Case("a step that is empty", steps("null"), ("step 1",)),
    Case("steps that are a word", compress(recipe="steps: rtn\n"), ("steps", "a list")),
    Case("calibration that is a number", compress(recipe="calibration: 3\nsteps: [rtn: {}]\n"), ("calibration", "mapping", "3")),
    Case("samples 0 in a recipe", compress(recipe="calibration: {samples: 0}\nsteps: [rtn: {}]\n"), ("calibration", "samples", "0")),
    Case("unknown key of calibration", compress(recipe="calibration: {sample: 3}\nsteps: [rtn: {}]\n"), ("'sample'", "'samples'")),
    Case("recipe of an unknown user", compress(recipe="~nobody-here/r.yaml"), ("~nobody-here/r.yaml",)),
    Case("recipe empty on the line", compress("--recipe", ""), ("recipe", "empty", "thrifty recipes")),
    Case("recipe and bits", compress("--bits", "4"), ("--recipe", "--bits", "one of them")),
]

OPTIONS = [
    Case("samples 0", compress("--samples", "0"), ("--samples", "at least 1", "got 0")),
    Case("samples -1", compress("--samples", "-1"), ("--samples", "at least 1", "got -1")),
    Case("tokens 0", compress("--tokens", "0"), ("--tokens", "at least 2", "got 0")),
    Case("tokens 1", compress("--tokens", "1"), ("--tokens", "at least 2", "got 1")),
    Case("more tokens than the model takes", compress("--tokens", "300"), ("300 tokens", "at most 256", "256 or fewer")),
    Case("seed -1", compress("--seed", "-1"), ("--seed", "at least 0", "got -1")),
    Case("seed beyond 64 bits", compress("--seed", str(2**70)), ("seed",)),
    Case("--bits 9", ["compress", "{model}", "--bits", "9"], ("--bits", "2 to 8", "got 9")),
    Case("--bits 1", ["compress", "{model}", "--bits", "1"], ("--bits", "at least 2", "got 1")),
    Case("--bits four", ["compress", "{model}", "--bits", "four"], ("--bits", "valid integer", "thrifty compress --help")),
    Case("no CUDA", compress("--device", "cuda"), ("--device cuda", "no CUDA device", "leave the option out")),
    Case("no such device", compress("--device", "tpu"), ("--device", "'tpu'", "cuda")),
    Case("negative gate", compress("--max-perplexity-increase", "-5%"), ("perplexity", "5%", "'-5%'")),
    Case("gate in words", compress("--max-perplexity-increase", "little"), ("perplexity", "5%", "'little'")),
    Case("gate without its sign", compress("--max-perplexity-increase", "5"), ("perplexity", "5% or 0.05", "'5'")),
    Case(
        "a gate for a model without perplexity",
        compress("--max-perplexity-increase", "5%", model="{vision}"),
        ("perplexity", "kind vision"),
    ),
    Case("gate not a number", compress("--max-perplexity-increase", "nan"), ("perplexity", "'nan'")),
    Case("no such check", compress("--verify", "some"), ("--verify", "'some'", "exact", "full")),
    Case("no such command", ["compres", "{model}"], ("'compres'", "compress")),
    Case("no such option", compress("--sample", "4"), ("--sample", "--samples")),
    Case("option without a value", ["compress", "{model}", "--out"], ("--out", "argument")),
    Case("one word too many", compress("again"), ("again", "thrifty compress --help")),
    Case("out is a file", compress(), ("out", "is a file", "--out"), write("out", "a file")),
    Case("out is inside a file", compress("--out", "{here}/file/out"), ("file", "--out"), write("file", "a file")),
    Case("out holds something else", compress(), ("out", "not a run of thrifty", "another --out"), foreign_out),
    Case("out holds something else, forced", compress("--force"), ("out", "not made by thrifty", "--force does not", "--out"), foreign_out),
    Case("out is the model", compress("--out", "{model}", "--force"), ("model", "--out")),
    Case("out is the model, itself a result", compress("--force", model="{out}"), ("out", "would be replaced", "another --out"), finished),
    Case("out holds the text", compress("--force", calibration="{out}/text.txt"), ("text.txt", "would be replaced"), finished),
    Case(
        "out holds a recipe's text",
        compress("--force", recipe=QUICK.replace("{text}", "{out}/text.txt")),
        ("text.txt", "would be"),
        finished,
    ),
    Case("out is the root", compress("--out", "/", "--force"), ("/ exists and is not a run of thrifty", "another --out")),
    Case(
        "out is a link to nowhere",
        compress(),
        ("out", "is a link to gone", "another --out"),
        lambda place: (place / "out").symlink_to("gone"),
    ),
    Case("out holds an odd certificate", compress(), ("out", "--out"), write("out/certificate.json", "[]")),
    Case("out name too long", compress("--out", "{here}/" + "n" * 300), ("n" * 300, "--out")),
    Case("out holds another run", compress(), ("out", "another request", "--force to replace"), another_run),
]

TEXTS = [
    Case("text missing", compress(calibration="{here}/no.txt"), ("no file", "no.txt", "check the path")),
    Case("text empty", compress(calibration="{here}/a.txt"), ("a.txt is empty", "with text in it"), write("a.txt", "")),
    Case("text of spaces", compress(calibration="{here}/a.txt"), ("a.txt is empty",), write("a.txt", " \n\n\t ")),
    Case("text of one line", compress(calibration="{here}/a.txt"), ("a.txt", "too short", "5 tokens", "16"), write("a.txt", "x = 1")),
    Case("binary file", compress(calibration="{here}/a.bin"), ("a.bin, line 1", "not valid UTF-8", "0xff"), write("a.bin", b"\xff\x00")),
    Case("line not UTF-8", compress(calibration="{here}/a.txt"), ("a.txt, line 2", "UTF-8", "0xe9"), write("a.txt", b"one\ncaf\xe9\n")),
    Case(
        "jsonl with a broken line",
        compress(calibration="{here}/a.jsonl"),
        ("a.jsonl, line 2", "not valid JSON", "one JSON object a line"),
        write("a.jsonl", '{"text": "fine"}\n{"text": \n'),
    ),
    Case(
        "jsonl without messages",
        compress(calibration="{here}/a.jsonl"),
        ("a.jsonl, line 1", '"text"', '"messages"'),
        write("a.jsonl", '{"prompt": "fine"}\n'),
    ),
    Case(
        "messages without a role",
        compress(calibration="{here}/a.jsonl"),
        ("a.jsonl, line 1", '"role"'),
        write("a.jsonl", '{"messages": [{"content": "fine"}]}\n'),
    ),
    Case(
        "messages without a chat template",
        compress(calibration="{here}/a.jsonl"),
        ("a.jsonl, line 1", "no chat template"),
        write("a.jsonl", '{"messages": [{"role": "user", "content": "fine"}]}\n'),
    ),
    Case("a folder for a text", compress(calibration="{model}"), ("model is a folder", "text file")),
    Case("text name empty", compress(calibration=""), ("calibration",)),
    Case("text name too long", compress(calibration="t" * 300), ("t" * 300,)),
    Case("a model that sees, and no images", compress(model="{vision}"), ("images", ".png")),
    Case("a folder without images", compress(model="{vision}", calibration="{here}"), ("image",)),
    Case(
        "a broken image",
        compress("--evaluation", "{here}", model="{vision}", calibration="{here}/i"),
        ("a.png",),
        write("i/a.png", b"\x89PNG\r\n no"),
    ),
    Case(
        "one image to calibrate and to judge on",
        compress(model="{vision}", calibration="{here}/i"),
        ("one image",),
        write("i/a.png", b"\x89PNG\r\n no"),
    ),
    Case("evaluation text missing", compress(recipe=QUICK.replace("{text}", "{here}/no.txt")), ("no file", "no.txt")),
    Case("tokenizer missing", compress(), ("no tokenizer", "model", "copy the tokenizer files"), remove("tokenizer*", "special*")),
    Case("tokenizer broken", compress(), ("tokenizer", "cannot be loaded", "model"), write("model/tokenizer.json", "{")),
    Case(
        "tokenizer of another model",
        compress(),
        ("tokenizer gives token", "96 entries", "do not belong together"),
        lambda place: add_tokenizer(place / "model", "".join(chr(number) for number in range(200, 330)) + LETTERS),
    ),
]

MODELS = [
    Case("weights of whole numbers", compress(), (f"{LINEAR}.weight", "whole numbers", "int8"), edit_weights(whole_numbers)),
    Case("no such activation", compress(), ("config.json", "LlamaForCausalLM", "'swish9'"), edit_config(hidden_act="swish9")),
    Case(
        "no such rotary scaling",
        compress(),
        ("config.json",),
        edit_config(rope_parameters={"rope_type": "spiral", "rope_theta": 10000.0}),
    ),
    Case("a class of another family", compress(), ("config.json", "BertForMaskedLM"), edit_config(architectures=["BertForMaskedLM"])),
    Case("a width beyond all memory", compress(), ("config.json",), edit_config(hidden_size=10**12)),
    Case("a broken generation_config.json", compress(), ("generation_config.json", "JSON"), write("model/generation_config.json", "{")),
    Case("NaN in the weights", compress(), (WEIGHTS, f"{LINEAR}.weight", "NaN"), poison(float("nan"))),
    Case("infinite weights", compress(), (WEIGHTS, f"{LINEAR}.weight", "infinite"), poison(float("inf"))),
    Case("already quantized", compress(model="{result}"), ("result", "already quantized", "compressed-tensors", "original")),
    Case("quantized with GPTQ", compress(), ("already quantized (gptq)",), edit_config(quantization_config={"quant_method": "gptq"})),
    Case("adapter", compress(), ("model", "adapter", "merge"), only_adapter),
    Case("no config.json", compress(), ("model", "no config.json"), remove("config.json")),
    Case("config.json is not JSON", compress(), ("config.json", "not valid JSON", "download"), write("model/config.json", "{broken")),
    Case(
        "config.json is a folder",
        compress(),
        ("config.json", "cannot be read", "directory"),
        lambda place: (remove("config.json")(place), write("model/config.json/a", "")(place))[0],
    ),
    Case("config.json is a list", compress(), ("config.json", "model_type"), write("model/config.json", "[]")),
    Case("no model_type", compress(), ("config.json", "no model_type"), edit_config(model_type=None)),
    Case("unknown architecture", compress(), ("config.json", "'lama99'", "update transformers"), edit_config(model_type="lama99")),
    Case("a width that is text", compress(), ("config.json", "llama", "hidden_size"), edit_config(hidden_size="wide")),
    Case("a number for model_type", compress(), ("config.json", "model_type"), edit_config(model_type=3)),
    Case("a word for text_config", compress(), ("config.json", "text_config"), edit_config(text_config="wide")),
    Case("no heads", compress(), ("config.json", "not a valid llama config"), edit_config(num_attention_heads=0)),
    Case("more heads than the weights have", compress(), ("model", "shape", "config"), edit_config(num_key_value_heads=4)),
    Case("config.json empty", compress(), ("config.json", "not valid JSON"), write("model/config.json", "")),
    Case("another width in config.json", compress(), ("model", "shape", "128", "config"), edit_config(intermediate_size=128)),
    Case("pickled weights", compress(), ("pytorch_model.bin", "can run code", "--allow-pickle"), pickle),
    Case(
        "a pickle that is more than tensors",
        compress("--allow-pickle"),
        ("pytorch_model.bin", "more than tensors", "safetensors"),
        lambda place: (remove(WEIGHTS)(place), torch.save({"run": print}, place / "model" / "pytorch_model.bin"))[0],
    ),
    Case(
        "code of its own",
        compress(),
        ("model", "Python code", "--trust-remote-code"),
        edit_config(auto_map={"AutoModelForCausalLM": "modeling_own.Own"}),
    ),
    Case("no weights", compress(), ("model", "no weights", WEIGHTS), remove(WEIGHTS)),
    Case("weights cut short", compress(), (WEIGHTS, "bytes where its header promises", "again"), truncate),
    Case("weights empty", compress(), (WEIGHTS, "no header", "again"), write(f"model/{WEIGHTS}", b"")),
    Case(
        "weights are not safetensors", compress(), (WEIGHTS, "cannot be read as safetensors"), write(f"model/{WEIGHTS}", b"PK\x03\x04" * 9)
    ),
    Case("index broken", compress(), (INDEX, "not a valid index"), write(f"model/{INDEX}", "{}")),
    Case("index without names", compress(), (INDEX, "not a valid index"), write(f"model/{INDEX}", '{"weight_map": []}')),
    Case("index of numbers", compress(), (INDEX, "not a valid index"), write(f"model/{INDEX}", '{"weight_map": {"a": 1}}')),
    Case("shard missing", compress(), ("model", "model-00002-of-00002.safetensors is missing", "download"), shard(missing_file=True)),
    Case("tensor not in its shard", compress(), (f"{LINEAR}.weight is not in", "00001", "download"), shard(missing_file=False)),
    Case("tensor missing", compress(), ("model", f"lack {LINEAR}.weight", "again"), edit_weights(drop)),
    Case("tensor of another shape", compress(), ("model", f"{LINEAR}.weight", "[64, 64]", "[64, 96]"), edit_weights(reshape)),
    Case("model is a file", compress(model="{model}/config.json"), ("config.json is a file", "folder")),
    Case("model folder missing", compress(model="{here}/gone"), ("no folder", "gone")),
    Case("not on the hub", compress(model="nobody/nothing-of-the-kind"), ("nobody/nothing-of-the-kind", "hub")),
    Case("model named by nothing", compress(model=""), ("model",)),
    Case("model of an unknown user", compress(model="~nobody-here/model"), ("~nobody-here/model",)),
    Case("model name too long", compress(model="m" * 300), ("m" * 300,)),
    Case("no possible hub name", compress(model="no//name"), ("no//name", "folder")),
]

COMMANDS = [
    Case("plan: unknown method", ["plan", "{model}", "--recipe", "gptk: {bits: 4}"], ("'gptk'", "did you mean 'gptq'")),
    Case("plan: weights cut short", ["plan", *compress()[1:]], (WEIGHTS, "promises"), truncate),
    Case("describe: no config.json", ["describe", "{here}"], ("not a model folder", "config.json")),
    Case("evaluate: no model", ["evaluate", "{here}"], ("not a model folder", "config.json")),
    Case("evaluate: config.json is not JSON", ["evaluate", "{model}"], ("config.json", "not valid JSON"), write("model/config.json", "{")),
    Case("evaluate: text missing", ["evaluate", "{model}", "--text", "{here}/no.txt"], ("no file", "no.txt")),
    Case(
        "evaluate: another vocabulary",
        ["evaluate", "{model}", "--against", "{other}", "--text", "{text}"],
        ("vocabular", "96", "90"),
    ),
    Case("evaluate: another kind", ["evaluate", "{vision}", "--against", "{model}"], ("kind vision", "kind causal_lm", "compared")),
    Case("evaluate: images for a reader", ["evaluate", "{model}", "--images", "{here}"], ("reads text", "--text")),
    Case("evaluate: text for one that sees", ["evaluate", "{vision}", "--text", "{text}"], ("sees images", "--images")),
    Case("evaluate: seed beyond 64 bits", ["evaluate", "{model}", "--seed", str(2**70)], ("seed", "2^63")),
    Case("evaluate: seed -1", ["evaluate", "{model}", "--seed", "-1"], ("seed", "2^63")),
    Case("try: a prompt that leaves no room", ["try", "{result}", "x" * 256], ("256 tokens", "256 positions", "shorter")),
    Case("export: repeated", ["repeat", "{result}", "--out", "{result}"], ("is the result itself", "--out")),
    Case("evaluate: no such original", ["evaluate", "{model}", "--against", "{here}/gone", "--text", "{text}"], ("no folder", "gone")),
    Case("export: no such format", ["export", "{result}", "--to", "ggfu"], ("'ggfu'", "did you mean 'gguf'")),
    Case("export: no format", ["export", "{result}"], ("--to", "thrifty export --help")),
    Case(
        "export: out exists", ["export", "{result}", "--to", "dense", "--out", "{here}/e"], ("exists", "another --out"), write("e", "mine")
    ),
    Case(
        "export: weights are a folder",
        ["export", "{model}", "--to", "dense"],
        ("b.safetensors", "directory"),
        write("model/b.safetensors/a", ""),
    ),
    Case("export: no model", ["export", "{here}", "--to", "dense"], ("not a model folder", "config.json")),
    Case("repeat: no certificate", ["repeat", "{model}"], ("model", "certificate.json", "thrifty compress")),
    Case("compare: no certificate", ["compare", "{result}", "{model}"], ("model", "certificate.json", "thrifty compress")),
    Case("try: no certificate", ["try", "{model}"], ("model", "certificate.json", "thrifty compress")),
    Case("try: no folder", ["try", "{here}/gone"], ("gone", "certificate.json")),
    Case("try: no size", ["try", "{result}", "x", "--memory", "much"], ("'much'", "4GB")),
    Case("try: no such cache", ["try", "{result}", "x", "--cache", "kivy"], ("'kivy'", "'kivi'", "thrifty methods")),
    Case("try: no cache", ["try", "{result}", "x", "--cache", "gptq: {bits: 4}"], ("'gptq'", "cache")),
    Case("try: a cache of too few bits", ["try", "{result}", "x", "--cache", "kivi: {bits: 1}"], ("bits", "2", "got 1")),
    Case("try: a cache for other heads", ["try", "{result}", "x", "--cache", "kivi"], ("group_size 32", "head size 16", "16 does")),
    Case("try: no prompt", ["try", "{result}", ""], ("no token", "give some text")),
    Case("compare: broken certificate", ["compare", "{here}/c"], ("certificate.json", "cannot be read"), write("c/certificate.json", "{")),
    Case("compare: empty certificate", ["compare", "{here}/c"], ("certificate.json",), write("c/certificate.json", "{}")),
    Case("export: no GGUF of such a model", ["export", "{vision}", "--to", "gguf", "--out", "{here}/g.gguf"], ("ViT", "GGUF")),
    Case("export: out is inside a file", ["export", "{result}", "--to", "dense", "--out", "{text}/out"], ("text.txt",)),
    Case("try: the original is gone", ["try", "{here}/r", "x"], ("no folder", "gone"), orphan),
    Case("repeat: the original is gone", ["repeat", "{here}/r", "--out", "{here}/again"], ("no folder", "gone"), orphan),
    Case("repeat: out is a file", ["repeat", "{result}", "--out", "{text}"], ("text.txt is a file", "--out")),
    Case("evaluate: no such task", ["evaluate", "{model}", "--task", "no-such-task"], ("task",)),
    Case("methods: unknown", ["methods", "gptk"], ("'gptk'", "did you mean 'gptq'", "thrifty methods")),
    Case("recipes: unknown", ["recipes", "w44"], ("'w44'", "did you mean 'w4'", "thrifty recipes")),
]

CASES = [*RECIPES, *OPTIONS, *TEXTS, *MODELS, *COMMANDS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shutil.copytree(world.model, tmp_path / "model")
    text(tmp_path / "text.txt")
    if case.change is not None:
        case.change(tmp_path)
    places = {"model": tmp_path / "model", "text": tmp_path / "text.txt", "out": tmp_path / "out", "here": tmp_path}
    words = fill(case.words, {**places, "result": world.result, "other": world.other, "vision": world.vision})
    before, result = listing(tmp_path), listing(world.result.parent)
    capsys.readouterr()

    assert main(words) == 2
    said = sentence(capsys.readouterr(), case.says)
    assert main([words[0], "--json", *words[1:]]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"error": said, "exit_code": 2}
    assert printed.out.count("\n") == 1
    assert printed.err.splitlines()[-1] == f"error: {said}"
    assert listing(tmp_path) == before
    assert listing(world.result.parent) == result


def sentence(printed: Any, says: tuple[str, ...]) -> str:
    """The one sentence on standard error: the last line, and the only one of its kind."""
    assert printed.out == ""
    assert "Traceback" not in printed.err
    errors = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and printed.err.splitlines()[-1] == errors[0], printed.err
    said = errors[0].removeprefix("error: ")
    missing = [word for word in says if word not in said]
    assert not missing, f"{said!r} does not say {missing}"
    assert 20 <= len(said) <= 500
    assert said.isprintable() and not said.endswith(":"), f"{said!r} is no sentence"
    return said


def test_the_command_that_the_cases_break_works(world: World) -> None:
    assert (world.result / "certificate.json").is_file() and (world.result / WEIGHTS).is_file()
    assert len(CASES) == len({case.name for case in CASES})
