"""Images: which are chosen, and what the processors of the three kinds of models make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPProcessor,
    CLIPTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ViTConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from thrifty.base.errors import InputError
from thrifty.base.events import Event, listening
from thrifty.data import Rows, default_model, load_rows

Image = pytest.importorskip("PIL.Image")
SIZE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for number in range(12):
        name = f"more/{number:02}.JPG" if number % 2 else f"{number:02}.png"
        Image.new("RGB" if number % 3 else "L", (30 + number, 40), 20 * number if number % 3 == 0 else (20 * number, 0, 100)).save(
            folder / name
        )
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    ViTImageProcessorPil(size=SIZE).save_pretrained(folder)
    ViTConfig(image_size=32).save_pretrained(folder)
    return folder


def _rows(folder: Path, pictures: Path | str, **settings: Any) -> Rows:
    known = {"folder": folder, "config": ViTConfig(), "kind": "vision", "purpose": "calibration", "images": str(pictures)}
    return load_rows(**{**known, **settings})


def _clip_images() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE)


def test_pixels(vit: Path, pictures: Path) -> None:
    rows = _rows(vit, pictures)
    assert rows.inputs["pixel_values"].shape == (12, 3, 32, 32) and rows.tokens == 12
    assert sorted(rows.ids) == sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*") if path.suffix != ".txt")
    at = rows.ids.index("04.png")
    one = ViTImageProcessorPil(size=SIZE)(images=Image.open(pictures / "04.png").convert("RGB"), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(rows.inputs["pixel_values"][at], one)


def test_choice_is_seeded_and_never_repeats(vit: Path, pictures: Path) -> None:
    first = _rows(vit, pictures, samples=5)
    assert first.digest == _rows(vit, pictures, samples=5).digest
    assert first.ids != _rows(vit, pictures, samples=5, seed=1).ids
    rest = _rows(vit, pictures, purpose="evaluation", samples=7, exclude=first.used)
    assert len({*first.ids, *rest.ids}) == 12
    inside = _rows(vit, pictures / "more", purpose="evaluation", exclude=first.used)
    assert not {f"more/{name}" for name in inside.ids} & set(first.ids)
    with pytest.raises(InputError, match="all 12 images"):
        _rows(vit, pictures, exclude=(*first.used, *rest.used))


def test_a_share_is_kept_to_judge_on(vit: Path, pictures: Path, tmp_path: Path) -> None:
    heard: list[Event] = []
    with listening(heard.append):
        rows = _rows(vit, pictures, samples=12, share=0.75)
    assert rows.rows == 9 and "as 3 are kept to judge on" in heard[-1].message
    assert _rows(vit, pictures, purpose="evaluation", exclude=rows.used).rows == 3
    Image.new("RGB", (30, 30)).save(tmp_path / "only.png")
    with pytest.raises(InputError, match="another is needed to judge on"):
        _rows(vit, tmp_path, share=0.75)


def test_image_and_caption(tmp_path: Path, pictures: Path) -> None:
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz-")}
    vocabulary = {
        **letters,
        **{f"{letter}</w>": number + 27 for letter, number in letters.items()},
        "<|startoftext|>": 54,
        "<|endoftext|>": 55,
    }
    CLIPProcessor(_clip_images(), CLIPTokenizer(vocab=vocabulary, merges=[])).save_pretrained(tmp_path)
    config = CLIPConfig(text_config={"vocab_size": 56, "max_position_embeddings": 24})
    (tmp_path / "captions.txt").write_text("ab\n\nc\n")
    rows = _rows(tmp_path, pictures, config=config, kind="dual_encoder", text=[str(tmp_path / "captions.txt")], samples=3)
    assert set(rows.inputs) == {"pixel_values", "input_ids"}
    assert rows.inputs["pixel_values"].shape == (3, 3, 32, 32) and rows.inputs["input_ids"].shape == (3, 24)
    assert rows.inputs["input_ids"][:2, :4].tolist() == [[54, 0, 28, 55], [54, 29, 55, 55]]
    assert torch.equal(rows.inputs["input_ids"][2], rows.inputs["input_ids"][0])
    own = _rows(tmp_path, pictures, config=config, kind="dual_encoder", samples=3).inputs["input_ids"]
    assert own.shape == (3, 24) and len({tuple(row) for row in own.tolist()}) == 3
    with pytest.raises(InputError, match="vocabulary has 20 entries"):
        _rows(tmp_path, pictures, config=CLIPConfig(text_config={"vocab_size": 20}), kind="dual_encoder", samples=3)


def test_image_in_a_prompt(tmp_path: Path, pictures: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(default_model())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        _clip_images(), tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    processor.save_pretrained(tmp_path)
    config = LlavaConfig(text_config=LlamaConfig(vocab_size=2049))
    rows = _rows(tmp_path, pictures, config=config, kind="vision_language", samples=4)
    assert set(rows.inputs) == {"input_ids", "pixel_values"}
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert ((rows.inputs["input_ids"] == image).sum(1) == 16).all()
    assert tokenizer.decode(rows.inputs["input_ids"][0][16:]).strip() == "Describe this image."


def test_refusals(vit: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        _rows(vit, tmp_path / "gone")
    with pytest.raises(InputError, match="has no images"):
        _rows(vit, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"broken\.png is not an image"):
        _rows(vit, tmp_path)
    with pytest.raises(InputError, match="has no image processor"):
        _rows(tmp_path, pictures)
    with pytest.raises(InputError, match="at least 1"):
        _rows(vit, pictures, samples=0)
