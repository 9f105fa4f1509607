"""What a result is judged on: never what it was calibrated on, in overlapping windows where asked, and by the true classes of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

import thrifty
from tests.api.conftest import Bench
from tests.tiny import add_reader, tiny
from thrifty.api.request import Request, prepare
from thrifty.base.errors import InputError
from thrifty.base.events import Event, listening
from thrifty.data import load_rows
from thrifty.models import open_model

STEPS = [{"rtn": {"bits": 4, "group_size": 32}}]
SOLVED = [{"gptq": {"bits": 4, "group_size": 32}}]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny("vit", tmp_path_factory.mktemp("vit") / "model")
    add_reader("vit", folder)
    return folder


@pytest.fixture(scope="module")
def pictures(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of random colours for each class of the model, in a folder that is called as the class."""
    top = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for name in open_model(vit).config.id2label.values():
        (top / name).mkdir()
        for number in range(4):
            colours = torch.randint(0, 256, (40, 36, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(colours.numpy()).save(top / name / f"{number}.png")
    return top


def test_one_folder_of_images_is_divided(vit: Path, pictures: Path) -> None:
    count = len(list(pictures.rglob("*.png")))
    recipes = (
        Request(vit, {"steps": SOLVED}, calibration=str(pictures), samples=count),
        Request(
            vit, {"calibration": {"images": str(pictures)}, "evaluation": {"images": f"{pictures}/../{pictures.name}"}, "steps": SOLVED}
        ),
        Request(vit, {"calibration": {"images": str(pictures)}, "steps": SOLVED}, evaluation=pictures, samples=count),
    )
    for request in recipes:
        job = prepare(request)
        assert job.calibration is not None and job.evaluation is not None
        assert job.calibration.rows == 3 * count // 4 and job.evaluation.rows == count // 4
        assert not set(job.calibration.ids) & set(job.evaluation.ids)


@pytest.mark.parametrize("tokens", [16, 24])
def test_texts_in_common_are_divided(bench: Bench, tokens: int) -> None:
    evaluation = {"text": [str(bench.test), str(bench.train)], "samples": 6, "tokens": tokens}
    recipe = {"evaluation": evaluation, "steps": SOLVED}
    job = prepare(Request(bench.model, recipe, calibration=str(bench.train), samples=8, tokens=16))
    assert job.calibration is not None and job.evaluation is not None
    taken = {(name, place) for name, first, last in job.calibration.used for place in range(first, last)}
    judged = {(name, place) for name, first, last in job.evaluation.used for place in range(first, last)}
    assert len(judged) >= 6 * tokens - 6 and not taken & judged


def test_the_texts_are_named_before_the_work(bench: Bench) -> None:
    heard: list[Event] = []
    with listening(heard.append):
        prepare(Request(bench.model, {"steps": SOLVED}, calibration=str(bench.train), evaluation=str(bench.test), samples=4, tokens=16))
    said = " ".join(event.message for event in heard)
    assert f"calibrated on {bench.train} (4 rows of 16 tokens)" in said and f"judged on {bench.test} (" in said


def test_accuracy_is_measured_where_folders_name_the_classes(vit: Path, pictures: Path, tmp_path: Path) -> None:
    found = thrifty.compress(vit, {"steps": [{"rtn": {"bits": 2}}]}, evaluation=pictures, out=tmp_path / "out")
    model = thrifty.load(vit, dtype=torch.float32)
    rows = load_rows(folder=vit, config=model.config, kind="vision", purpose="evaluation", images=str(pictures))
    assert rows.labels is not None
    truth = torch.tensor([model.config.label2id[Path(name).parts[0]] for name in rows.ids])
    assert torch.equal(rows.labels, truth)
    with torch.inference_mode():
        right = [thrifty.load(folder, dtype=torch.float32)(**rows.inputs).logits.argmax(-1) == truth for folder in (vit, tmp_path / "out")]
    row = next(row for row in found["quality"] if row["metric"] == "accuracy")
    assert (row["before"], row["after"]) == pytest.approx([float(part.float().mean()) for part in right])
    again = thrifty.evaluate(tmp_path / "out", against=vit, images=pictures)
    assert again["images"] == str(pictures) and again["accuracy"]["after"]["value"] == pytest.approx(row["after"])


def test_a_model_that_sees_says_which_option_it_lacks(vit: Path) -> None:
    with pytest.raises(InputError, match="--evaluation FOLDER"):
        thrifty.compress(vit, {"steps": STEPS})
    with pytest.raises(InputError, match=r"--images FOLDER of `thrifty evaluate`"):
        thrifty.evaluate(vit, against=vit)


def test_overlapping_windows_give_the_perplexity_of_their_own_tokens(bench: Bench) -> None:
    found = thrifty.evaluate(bench.model, text=str(bench.test), tokens=24, stride=8)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(bench.model), AutoTokenizer.from_pretrained(bench.model)
    text = torch.tensor(tokenizer(bench.test.read_text())["input_ids"])
    total, last = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(text) - 24 + 8, 8):
            start = min(start, len(text) - 24)
            chances = model(input_ids=text[None, start : start + 24]).logits[0].log_softmax(-1)
            for place in range(max(1, last - start), 24):
                total -= float(chances[place - 1, text[start + place]])
            last = start + 24
    assert found["tokens"] == len(text) - 1
    assert found["perplexity"]["value"] == pytest.approx(float(torch.tensor(total / found["tokens"]).exp()), rel=1e-4)


def test_a_recipe_can_ask_for_overlapping_windows(bench: Bench, tmp_path: Path) -> None:
    evaluation = {"text": str(bench.test), "tokens": 24, "stride": 8, "samples": 5}
    found = thrifty.compress(bench.model, {"evaluation": evaluation, "steps": STEPS}, out=tmp_path / "out")
    again = thrifty.evaluate(tmp_path / "out", against=bench.model, text=str(bench.test), tokens=24, stride=8, samples=5)
    assert found["scored"] == {"windows": 5, "tokens": again["tokens"]} and again["tokens"] < 5 * 23
    assert found["perplexity"]["before"]["value"] == pytest.approx(again["perplexity"]["before"]["value"], rel=1e-4)
