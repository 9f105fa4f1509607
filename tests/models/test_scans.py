"""What goes into a scan against what transformers' mixer makes of it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from thrifty.base.errors import InputError
from thrifty.models.scans import scan_of


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_the_scan_gives_what_the_mixer_puts_out(name, source_of):
    """Its output, gated, normed where the mixer has a norm, and projected, is the mixer's own."""
    source = source_of(name)
    mixer = source.block(source.anatomy.blocks[0], torch.float32).mixer
    hidden = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    scan = scan_of(mixer, hidden)
    skip = mixer.D.repeat_interleave(scan.x.shape[-1] // len(mixer.D))
    y = scan.output() + scan.x * skip
    with torch.no_grad():
        if name == "mamba":
            gate = mixer.in_proj(hidden).chunk(2, dim=-1)[1]
            found = mixer.out_proj(y * functional.silu(gate))
        else:
            gate = mixer.in_proj(hidden)[..., : y.shape[-1]]
            found = mixer.out_proj(mixer.norm(y, gate))
        torch.testing.assert_close(found, mixer(hidden), rtol=1e-4, atol=1e-5)


def test_anything_else_is_refused(source_of):
    source = source_of("llama")
    block = source.block(source.anatomy.blocks[0], torch.float32)
    with pytest.raises(InputError, match="no mixer of Mamba"):
        scan_of(block.self_attn, torch.zeros(1, 2, 64))
