"""Removal of layers: the outermost are protected, whatever their influence; among the others the least goes, contiguous or not."""

from __future__ import annotations

import pytest

from tests.tiny import _TEXT, hub, randomise
from thrifty.base.errors import InputError
from thrifty.models import open_model
from thrifty.pipeline.shaping import shape, without_blocks
from thrifty.structure.efficient_vla import EfficientVLA
from thrifty.structure.short_gpt import ShortGPT


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A tiny Llama of six blocks."""
    folder = tmp_path_factory.mktemp("deep")
    model = hub.LlamaForCausalLM(hub.LlamaConfig(**{**_TEXT, "num_hidden_layers": 6}))
    randomise(model)
    model.save_pretrained(folder)
    return open_model(folder)


def removed(source, step, values) -> list[int]:
    influence = {block.path: value for block, value in zip(source.anatomy.blocks, values, strict=True)}
    shaping = without_blocks(source, shape(source, step), influence)
    stay = {block.index for block in shaping.resized.blocks.values()}
    assert len(shaping.resized.source.anatomy.blocks) == len(stay) == shaping.resized.raw["num_hidden_layers"]
    return [block.index for block in source.anatomy.blocks if block.index not in stay]


@pytest.mark.parametrize(
    ("step", "values", "gone"),
    [
        (EfficientVLA(ratio=0.33), [0.0, 0.3, 0.9, 0.1, 0.8, 0.0], [1, 3]),
        (ShortGPT(ratio=0.33), [0.0, 0.3, 0.9, 0.1, 0.8, 0.0], [0, 5]),
        (EfficientVLA(ratio=0.33, first=2, last=2), [0.0, 0.0, 0.9, 0.8, 0.0, 0.0], [2, 3]),
        (ShortGPT(ratio=0.01), [0.2, 0.2, 0.2, 0.2, 0.2, 0.2], [5]),
    ],
)
def test_the_least_influence_goes_but_not_at_the_ends(deep, step, values, gone):
    assert removed(deep, step, values) == gone


def test_more_than_may_go_is_refused(deep):
    with pytest.raises(InputError, match="would remove 5 of 6 blocks, but 1 at the beginning and 1 at the end are to stay"):
        shape(deep, EfficientVLA(ratio=0.8))


def test_one_block_must_stay(deep):
    with pytest.raises(InputError, match="and one must"):
        shape(deep, ShortGPT(ratio=0.99))


def test_of_a_model_that_also_sees_the_language_blocks_are_meant(source_of):
    source = source_of("llava")
    shaping = shape(source, EfficientVLA(ratio=0.5, first=0, last=0))
    before, after = ([block.chain for block in one.anatomy.blocks] for one in (source, shaping.resized.source))
    assert before.count("text") - after.count("text") == 1
    assert before.count("vision") == after.count("vision")
