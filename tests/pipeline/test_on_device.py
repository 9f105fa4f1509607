"""What a plan says of a device's memory, from shapes alone, and what is refused there."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import thrifty
from tests.tiny import inputs, tiny
from thrifty.api.request import Request, prepare
from thrifty.base.errors import InputError
from thrifty.cli import render
from thrifty.models import open_model
from thrifty.pipeline.footprint import footprints
from thrifty.pipeline.job import Job
from thrifty.pipeline.on_device import device_memory, parts_of_job
from thrifty.pipeline.tuning import Way

GPTQ = {"gptq": {"bits": 4, "group_size": 32}}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """torch finds a device, with so much memory free: enough to plan, for shapes are all that is looked at."""
    module = importlib.import_module("thrifty.api.compress")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80e9))
    monkeypatch.setattr(module, "_seconds", lambda *_: 1.0)

    def free(count: int) -> None:
        monkeypatch.setattr(module, "free_device_bytes", lambda device: count)

    return free


def job_of(model: Path, steps: list[dict[str, Any]], rows: int = 32, tokens: int = 64) -> Job:
    data = {"input_ids": torch.randint(3, 90, (rows, tokens), generator=torch.Generator().manual_seed(0))}
    return prepare(Request(model, {"steps": steps}, calibration=data, evaluation=data, device="cuda"))


# -- beside what was measured --------------------------------------------------------------------------------------------


def test_the_plan_of_two_runs_that_were_measured(tmp_path: Path, cuda: Callable[[int], None]) -> None:
    """bench/results/on_cuda.json: peaks that torch counted on an H200. The second model's shapes are those of bench/random_llama.py."""
    measured = json.loads((Path(__file__).parents[2] / "bench" / "results" / "on_cuda.json").read_text())
    embedded = prepare(Request(device="cuda"))
    made = device_memory(parts_of_job(embedded))
    assert made == pytest.approx(measured["embedded"]["cuda"]["peak_device_bytes"], rel=0.03)

    large = prepare(
        Request(
            hollow_llama(tmp_path / "model"),
            {"steps": [GPTQ]},
            calibration={"input_ids": torch.zeros(128, 512, dtype=torch.long)},
            evaluation={"input_ids": torch.zeros(8, 512, dtype=torch.long)},
            device="cuda",
        )
    )
    assert device_memory(parts_of_job(large)) == pytest.approx(measured["large"]["cuda"]["peak_device_bytes"], rel=0.03)
    # the device that had 0.35 GB went on with two rows at a time, so it had room for one
    assert device_memory(parts_of_job(large, least=True)) < measured["short"]["peak_device_bytes"]


def hollow_llama(folder: Path) -> Path:
    """Two blocks with the shapes of bench/random_llama.py: a file with a header and a hole."""
    config = transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=32000,
        max_position_embeddings=2048,
        dtype="bfloat16",
        tie_word_embeddings=False,
    )
    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in transformers.LlamaForCausalLM(config).state_dict().items()}
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        stop = start + 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
    return folder


# -- what the figure follows ---------------------------------------------------------------------------------------------


def test_smaller_batches_take_less_until_solving_is_all(tmp_path: Path, cuda: Callable[[int], None]) -> None:
    job = job_of(tiny("llama", tmp_path / "model"), [GPTQ])
    job = replace(job, setting=replace(job.setting, order="block"))
    at = [parts_of_job(replace(job, setting=replace(job.setting, batch=batch))) for batch in (1, 2, 4)]
    assert at[0]["passing"] < at[1]["passing"] < at[2]["passing"] and at[0]["evaluating"] < at[1]["evaluating"] < at[2]["evaluating"]
    assert at[2]["passing"] - at[1]["passing"] == 2 * (at[1]["passing"] - at[0]["passing"]), "the block, and the same for every row"
    assert parts_of_job(job, least=True) == at[0]


def test_depth_costs_nothing_but_in_training(tmp_path: Path, cuda: Callable[[int], None]) -> None:
    def planned(layers: int, steps: list[dict[str, Any]]) -> dict[str, int]:
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = transformers.LlamaConfig(vocab_size=96, num_hidden_layers=layers, **sizes)
        folder = tmp_path / f"{layers}"
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        return parts_of_job(job_of(folder, steps))

    assert planned(2, [GPTQ]) == planned(5, [GPTQ])
    trained = [{**GPTQ}, {"distill": {"steps": 2, "batch": 2}}]
    shallow, deep = planned(2, trained), planned(5, trained)
    assert deep["tuning"] == pytest.approx(2.5 * shallow["tuning"], rel=0.25) and deep["solving"] == shallow["solving"]


def test_a_rewrite_is_in_the_price(tmp_path: Path, cuda: Callable[[int], None]) -> None:
    model = tiny("llama", tmp_path / "model")
    assert "transforming" not in parts_of_job(job_of(model, [GPTQ]))
    found = parts_of_job(job_of(model, [{"awq": {}}, GPTQ]))["transforming"]
    block = open_model(model).anatomy.blocks[0]
    assert found > sum(4 * stage.reads.width**2 for stage in block.stages), "all Gram matrices, and more"


def test_heads_that_share_keys_make_scores_in_float32_there(tmp_path: Path) -> None:
    source = open_model(tiny("llama", tmp_path / "model"))
    path, heads, length = source.anatomy.blocks[0].path, source.config.num_attention_heads, 128
    assert source.config.num_key_value_heads < heads
    peaks = {
        (device, dtype): footprints(source, inputs("llama", 1, length), dtype, 1, device)[path].peak
        for device in ("cpu", "cuda")
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert peaks["cuda", torch.bfloat16] == peaks["cpu", torch.bfloat16]
    assert peaks["cuda", torch.float32] > 2.25 * 4 * heads * length**2 > peaks["cpu", torch.float32]


def test_a_structural_step_is_priced_with_its_batches(tmp_path: Path, cuda: Callable[[int], None]) -> None:
    job = job_of(tiny("llama", tmp_path / "model"), [{"flap": {"ratio": 0.5}}])
    found = parts_of_job(job)
    assert found["cutting"] > 0 and parts_of_job(job, least=True) == found, "this walk halves nothing"


# -- the plan and the refusal --------------------------------------------------------------------------------------------


def test_the_plan_shows_it_where_there_is_a_device(tmp_path: Path, cuda: Callable[[int], None], capsys: pytest.CaptureFixture[str]) -> None:
    cuda(1 << 40)
    words = {"model": tiny("llama", tmp_path / "model"), "recipe": {"steps": [GPTQ]}, "calibration": inputs("llama", 4, 16)}
    there, here = thrifty.plan(**words, device="cuda"), thrifty.plan(**words, device="cpu")
    assert there.to_json()["cost"]["device_memory"] == there.cost.device_memory > 0 and not there.refusals
    assert "device_memory" not in here.to_json()["cost"] and here.cost.device_memory == 0
    shown = []
    for plan in (there, here):
        render.show("plan", plan)
        shown.append("device memory" in capsys.readouterr().out)
    assert shown == [True, False]


def test_what_does_not_fit_is_refused_before_weights_are_read(tmp_path: Path, cuda: Callable[[int], None]) -> None:
    words = {"model": tiny("llama", tmp_path / "model"), "recipe": {"steps": [GPTQ]}, "calibration": inputs("llama", 4, 16)}
    words |= {"device": "cuda"}
    job = prepare(Request(words["model"], words["recipe"], calibration=words["calibration"], device="cuda"))
    least = device_memory(parts_of_job(job, least=True))
    cuda(least)
    assert not thrifty.plan(**words).refusals
    cuda(least - 1)
    (said,) = thrifty.plan(**words).refusals
    assert "on the device even with one row at a time (solving takes most)" in said and "are free there; use --device cpu" in said
    with pytest.raises(InputError, match=r"does not fit here: it needs [\d.]+ MB on the device"):
        thrifty.compress(**words, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_that_train_go_where_the_blocks_are() -> None:
    block = torch.nn.Linear(2, 2, device="meta")
    way = Way(None, "", {}, torch.zeros(4, 3, 2), [block], [])  # type: ignore[arg-type]
    entering = way.entering(torch.tensor([2, 0]))
    assert entering.device.type == "meta" and entering.shape == (2, 3, 2)
