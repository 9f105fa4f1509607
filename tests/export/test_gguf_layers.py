"""GGUF files of networks whose layers differ in width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from tests.export.test_gguf import byte_level, put_tokenizer, values_of
from tests.export.test_uneven import write_pieces
from tests.uneven import write_by_hand
from thrifty.base.errors import InputError
from thrifty.export.gguf import write
from thrifty.export.gguf_tensors import rotary_order


def test_sizes_by_layer(tmp_path: Path) -> None:
    """A Llama whose layers differ in width is written for the graph that has sizes by layer."""
    model, _ = write_by_hand("llama", tmp_path / "model")
    out = tmp_path / "model.gguf"
    write(put_tokenizer(tmp_path / "model", byte_level()), out)
    fields = GGUFReader(out).fields
    assert fields["general.architecture"].contents() == "deci"
    for key, expected in (("feed_forward_length", [96, 32]), ("attention.head_count", [4, 2]), ("attention.head_count_kv", [2, 1])):
        assert fields[f"deci.{key}"].contents() == expected
    assert fields["deci.attention.key_length"].contents() == 16 and fields["deci.rope.dimension_count"].contents() == 16
    values = values_of(out)
    for index, (heads, groups) in enumerate(((4, 2), (2, 1))):
        layer = model.model.layers[index]
        for name, weight, count in (("attn_q", layer.self_attn.q_proj.weight, heads), ("attn_k", layer.self_attn.k_proj.weight, groups)):
            expected = weight.detach()[rotary_order(weight.shape[0], count)]
            assert np.array_equal(values[f"blk.{index}.{name}.weight"], expected.numpy())
        assert np.array_equal(values[f"blk.{index}.ffn_down.weight"], layer.mlp.down_proj.weight.detach().numpy())


def test_matrices_in_pieces_are_refused(tmp_path: Path) -> None:
    write_pieces(tmp_path / "model")
    with pytest.raises(InputError, match="more than one matrix"):
        write(put_tokenizer(tmp_path / "model", byte_level()), tmp_path / "model.gguf")
