"""What rows bring besides hidden states comes out as it went in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.base.errors import RunError
from thrifty.models import Call, run_block
from thrifty.models.carried import Carried


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 7),
    st.lists(st.integers(1, 4), max_size=2),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 1 << 20),
)
def test_everything_comes_back(rows, length, width, shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, width, generator=generator).to(dtype)
    values = {
        "steps": torch.randint(0, 1 << 24, (rows, *shape), generator=generator),
        "text": torch.randn(rows, *shape, 3, generator=generator).to(dtype),
        "classes": torch.randint(0, 2, (rows,), generator=generator, dtype=torch.int32),
    }
    carried = Carried.of(hidden, values, (), "hidden")
    packed = carried.pack(hidden, values)
    assert packed.dtype == dtype and packed.shape[2] == width
    back, found = carried.unpack(packed)
    assert torch.equal(back, hidden)
    assert found.keys() == values.keys()
    for name, tensor in values.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    assert torch.equal(carried.put_out(packed), hidden)
    blank, zeros = carried.unpack(carried.blank(packed))
    assert torch.equal(blank, hidden) and not any(bool(tensor.any()) for tensor in zeros.values())


class Two(torch.nn.Module):
    """Puts out a text that it changed, and then its hidden states."""

    def forward(self, hidden, text, step):
        return text + hidden.mean(1, keepdim=True), hidden * step[:, None, None]


def test_a_block_that_changes_what_it_is_given():
    hidden, text, step = torch.randn(3, 4, 5), torch.randn(3, 2, 5), torch.tensor([1, 20, 300])
    values = {"text": text, "step": step}
    carried = Carried.of(hidden, values, ("text", "hidden"), "hidden")
    out = run_block(Two(), carried.pack(hidden, values), Call((), {}, "hidden", carried))
    left, right = carried.put_out(out)
    expected = Two()(hidden, text, step)
    assert torch.equal(left, expected[0]) and torch.equal(right, expected[1])
    assert torch.equal(carried.unpack(out)[1]["step"], step)


@pytest.mark.parametrize("step", [torch.tensor(3), torch.tensor([3]), torch.tensor([-1, 2]), torch.tensor([1 << 24, 2])])
def test_what_cannot_be_carried_is_refused(step):
    with pytest.raises(RunError, match="step "):
        Carried.of(torch.zeros(2, 3, 4), {"step": step}, (), "hidden")
