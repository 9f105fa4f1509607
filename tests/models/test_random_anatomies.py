"""Removing is zeroing, whatever the sizes of a model are and whichever of its units stay: on every architecture, in float64.

Three models are compared: the dense one in which the values of the removed units are zeroed (`silencing`, which does not know the
dependency model), the dense one whose tensors `core.cut.zeroed` has changed, and the one of the smaller config whose tensors were cut.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.anatomies import Draw, Drawn, anatomies
from tests.models.cutting import tensors_of
from tests.models.silencing import held_to, outputs, silenced, whole
from tests.tiny import ARCHITECTURES, DIFFUSION, inputs
from tests.uneven import LAYERS
from thrifty.base.anatomy import Units
from thrifty.base.errors import InputError
from thrifty.base.records import Cut
from thrifty.core.cut import cut, zeroed
from thrifty.core.slicing import drawn as rotation
from thrifty.core.slicing import keeping_mean
from thrifty.models import Source, open_model
from thrifty.models.resize import Resized, Resizer
from thrifty.models.sliced import Sliced
from thrifty.models.units import units_of
from thrifty.pipeline.rebuild import shaped
from thrifty.pipeline.uneven import resize_unevenly
from thrifty.structure.magnitude_units import MagnitudeUnits

EXAMPLES = 3
TOLERANCE = 1e-9
ROUNDED = 1e-4
"""Where matrices are multiplied, which is done in float32; what is left in a few channels can be small, and norms divide by it."""

HEADS_STAY = {
    "gpt2": ("text",),
    "opt": ("text",),
    "bert": ("text",),
    "clip": ("vision", "text"),
    "siglip": ("vision", "text"),
    "llava": ("vision",),
    "gemma3_vision": ("vision",),
}
"""Chains whose config has no number for fewer heads: how wide one is follows from how many there are."""

NO_UNITS = {
    "olmoe": "q_norm averages over all heads",
    "mamba2": "norm averages over all heads",
    "pixart": "attn1.to_out.0.weight belongs to the heads in a way that is not known",
    "flux": "attn.to_q.weight belongs to the heads in a way that is not known",
}
"""What is said of heads that are no units."""

Cuts = Mapping[str, Sequence[Cut]]


@contextmanager
def opened(drawn: Drawn) -> Iterator[Source]:
    with tempfile.TemporaryDirectory() as folder:
        drawn.model.save_pretrained(folder)
        yield open_model(Path(folder))


def units_in(source: Source, name: str) -> dict[str, tuple[Units, ...]]:
    """The units of each block: all that its parts suggest, but for those of `NO_UNITS`."""
    found = {block.path: units_of(source, block) for block in source.anatomy.blocks}
    several = getattr(source.config, "num_attention_heads", 2) > 1  # one head is all there is to average over
    expected = NO_UNITS.get(name) if several else None
    said = {sentence for one in found.values() for sentence in one.missing}
    assert len(said) == (expected is not None) and all(expected in sentence for sentence in said), said
    return {path: tuple(one.units) for path, one in found.items()}


def by_name(units: Mapping[str, Sequence[Units]]) -> dict[str, Units]:
    return {item.alike: item for items in units.values() for item in items}


def held(name: str, drawn: Drawn) -> set[str]:
    """Names of units of which none can go with all else as it is."""
    found = {f"{chain}:attention.output" for chain in HEADS_STAY.get(name, ())}
    if name in ("siglip", "gemma3_vision") or drawn.sizes.get("vision_feature_layer", -1) != -1:
        found.add("vision:mlp.hidden")  # a head with as many neurons stands behind the blocks, or a block that nothing reads
    if drawn.sizes.get("qk_layernorm"):
        found.add("text:attention.output")  # its norms are as wide as the hidden size over the heads
    return found


def some_count(draw: Draw, units: Units) -> int:
    """How many stay: the fewest possible, or any number."""
    return draw(st.one_of(st.just(units.least), st.integers(units.least, units.count)))


def some_units(draw: Draw, units: Mapping[str, Sequence[Units]], counts: Mapping[str, Mapping[str, int]]) -> Cuts:
    """Which units stay, drawn for each space of each block."""
    return {
        path: [
            Cut(item, torch.tensor(sorted(draw(st.permutations(range(item.count)))[: counts[path][item.alike]])))
            for item in items
            if item.alike in counts[path]
        ]
        for path, items in units.items()
    }


def kept_of(resizer: Resizer, units: Units, count: int) -> int:
    """How many stay when `count` are wanted; all of them where no config has fewer, which is said in a sentence."""
    try:
        return resizer.keep(units.alike, count)
    except InputError as error:
        assert f"fewer {units.kind} of {units.space.name} with all else as it is" in str(error)
        return units.count


def removed(source: Source, resized: Resized, cuts: Cuts, rows: Mapping[str, Tensor]) -> Tensor:
    """What the smaller model puts out, whole, in its own class."""
    tensors: dict[str, Tensor] = {}
    for block in resized.source.anatomy.blocks:
        old = resized.blocks[block.path]
        small = cut(tensors_of(source, old), cuts.get(old.path, ()))
        tensors |= {resized.key(source, block, key): tensor for key, tensor in small.items()}
    return outputs(whole(resized.source, tensors), rows)


def switched_off(source: Source, cuts: Cuts, rows: Mapping[str, Tensor]) -> Tensor:
    """What the dense model puts out whose tensors say nothing of the removed units any more; experts have no such tensors."""
    tensors = {}
    for block in source.anatomy.blocks:
        tensors |= zeroed(tensors_of(source, block), [item for item in cuts[block.path] if item.units.kind != "experts"])
    experts = {path: [item for item in items if item.units.kind == "experts"] for path, items in cuts.items()}
    return silenced(source, experts, rows, tensors=tensors)


def assert_same(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equally_many_in_every_block(name: str) -> None:
    @settings(max_examples=EXAMPLES)
    @given(anatomies(name), st.data())
    def check(drawn: Drawn, data: st.DataObject) -> None:
        with opened(drawn) as source:
            units = units_in(source, name)
            resizer, kept = Resizer(source, units), {}
            for alike, item in by_name(units).items():
                count = some_count(data.draw, item)
                if count < item.count:
                    kept[alike] = kept_of(resizer, item, count)
                    if alike in held(name, drawn):
                        assert kept[alike] == item.count
                    else:
                        assert kept[alike] == count or any("stay, not" in sentence for sentence in resizer.warnings)
            cuts = some_units(data.draw, units, dict.fromkeys(units, kept))
            expected = silenced(source, cuts, drawn.rows)
            assert_same(switched_off(source, cuts, drawn.rows), expected)
            assert_same(removed(source, resizer.result(), cuts, drawn.rows), expected)

    check()


def heads_are_some(units: Mapping[str, Sequence[Units]], counts: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether a block keeps neither all nor one of its heads: norms of heads as wide as the hidden size over their number do not fit."""
    return any(item.kind == "heads" and 1 < counts[path][item.alike] < item.count for path, items in units.items() for item in items)


@pytest.mark.parametrize("name", LAYERS)
def test_different_numbers_by_block(name: str) -> None:
    @settings(max_examples=EXAMPLES)
    @given(anatomies(name), st.data())
    def check(drawn: Drawn, data: st.DataObject) -> None:
        with opened(drawn) as source:
            found = units_in(source, name)
            counts = {path: {item.alike: some_count(data.draw, item) for item in items} for path, items in found.items()}
            fewer = {item.alike for path, items in found.items() for item in items if counts[path][item.alike] < item.count}
            units = {path: tuple(item for item in items if item.alike in fewer) for path, items in found.items()}
            counts = {path: {item.alike: counts[path][item.alike] for item in items} for path, items in units.items()}
            cuts = some_units(data.draw, units, counts)
            if drawn.sizes.get("qk_layernorm") and heads_are_some(units, counts):
                with pytest.raises(InputError, match="q_layernorm"):
                    resize_unevenly(source, units, counts, ())
                return
            resized = resize_unevenly(source, units, counts, ())
            assert_same(removed(source, resized, cuts, drawn.rows), silenced(source, cuts, drawn.rows))

    check()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_whole_blocks(name: str) -> None:
    @settings(max_examples=EXAMPLES)
    @given(anatomies(name, blocks=(2, 3, 4)), st.data())
    def check(drawn: Drawn, data: st.DataObject) -> None:
        with opened(drawn) as source:
            chain = data.draw(st.sampled_from(source.anatomy.chains[::-1]))
            blocks = [block for block in source.anatomy.blocks if block.chain == chain]
            stay = sorted(len(blocks) - 1 - place for place in data.draw(st.sets(st.integers(0, len(blocks) - 1), min_size=1)))
            resizer = Resizer(source, {block.path: () for block in source.anatomy.blocks})
            if chain == "vision" and drawn.sizes.get("vision_feature_layer", -1) != -1:  # counts the blocks, some of which nothing reads
                with pytest.raises(InputError, match=f"of its {len(blocks)} vision blocks"):
                    resizer.keep_blocks(chain, stay)
                return
            resizer.keep_blocks(chain, stay)
            gone = [block.path for block in blocks if block.index not in stay]
            assert_same(removed(source, resizer.result(), {}, drawn.rows), silenced(source, {}, drawn.rows, skipped=gone))

    check()


NARROWED = ("llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen2_moe", "qwen3_moe", "mamba", "phi", "vit")
"""Architectures whose hidden states can be narrower; `test_sliced` says what is said of the others."""


def some_channels(draw: Draw, width: int, *, keeps_mean: bool) -> Tensor:
    """Which channels stay, as columns [width, kept]; where a mean is taken off later, directions that keep it."""
    if keeps_mean:
        kept = draw(st.integers(2, width))
        return keeping_mean(rotation(width - 1, keeps_mean=False)[:, : kept - 1]).float()
    keep = sorted(draw(st.sets(st.integers(0, width - 1), min_size=1)))
    return torch.eye(width)[:, keep]


def refused_width(drawn: Drawn, kept: int) -> str | None:
    """What is said where no config has hidden states of this width."""
    config = drawn.model.config
    if config.model_type == "llama" and kept % config.num_attention_heads:
        return "not a multiple of the number of attention heads"
    return "q_layernorm.weight would change" if drawn.sizes.get("qk_layernorm") and kept != config.hidden_size else None


@pytest.mark.parametrize("name", NARROWED)
def test_channels_of_the_hidden_states(name: str) -> None:
    @settings(max_examples=EXAMPLES)
    @given(anatomies(name), st.data())
    def check(drawn: Drawn, data: st.DataObject) -> None:
        with opened(drawn) as source:
            matrix = some_channels(data.draw, source.anatomy.hidden_size, keeps_mean=name in ("phi", "vit"))
            kept = matrix.shape[1]
            refusal = refused_width(drawn, kept)
            if refusal is not None:
                with pytest.raises(InputError, match=refusal):
                    Sliced(source, kept, "slice_gpt")
                return
            one = {key: row[:1] for key, row in drawn.rows.items()}
            sliced = Sliced(source, kept, "slice_gpt").settled(matrix, None, one)
            assert_same(outputs(whole(sliced), drawn.rows), held_to(source, matrix @ matrix.T, drawn.rows), ROUNDED)

    check()


@pytest.mark.parametrize("name", DIFFUSION)
def test_diffusion_transformers_are_not_made_smaller(name: str, source_of: Callable[[str], Source]) -> None:
    """Their units are what they are said to be, and the step that would remove some says that it cannot."""
    pytest.importorskip("diffusers")
    source, units = source_of(name), units_in(source_of(name), name)
    with pytest.raises(InputError, match=f"{source.anatomy.architecture} is of diffusers"):
        shaped(source, MagnitudeUnits())

    @settings(max_examples=EXAMPLES)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        counts = {path: {item.alike: some_count(data.draw, item) for item in items} for path, items in units.items()}
        cuts, rows = some_units(data.draw, units, counts), inputs(name, rows=2, length=7)
        assert_same(switched_off(source, cuts, rows), silenced(source, cuts, rows))

    check()
