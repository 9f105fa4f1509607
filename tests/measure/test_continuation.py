"""What both models write: the share before the first difference, and that generation is greedy and of one length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import build, inputs
from thrifty.measure.continuation import agreeing_share, continued, same_continuation


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_the_share_ends_at_the_first_difference(pairs: list[tuple[int, int]]) -> None:
    one, other = (torch.tensor([[pair[side] for pair in pairs]]) for side in (0, 1))
    same = 0
    while same < len(pairs) and pairs[same][0] == pairs[same][1]:
        same += 1
    assert float(agreeing_share(one, other)) == pytest.approx(same / len(pairs))


def test_each_token_is_the_likeliest_and_the_end_of_a_text_does_not_stop() -> None:
    model, prompts = build("llama"), inputs("llama", 3, 9)["input_ids"]
    found = continued(model, prompts, 7)
    assert found.shape == (3, 7)
    whole = torch.cat([prompts, found], dim=1)
    with torch.inference_mode():
        logits = model(input_ids=whole).logits[:, 8:-1]
    logits = logits.clone()
    logits[:, :, 2] = -torch.inf  # the end of a text
    assert torch.equal(logits.argmax(-1), found)


def test_a_model_goes_on_as_itself_and_not_as_another() -> None:
    prompts = inputs("llama", 6, 9)["input_ids"]
    same = same_continuation(build("llama"), build("llama"), prompts, new_tokens=8)
    assert (same["metric"], same["before"], same["after"], same["difference"]) == ("same_continuation", 1.0, 1.0, 0.0)
    other = same_continuation(build("llama"), build("llama", seed=1), prompts, new_tokens=8)
    assert other["after"] < 0.5 and other["low"] <= other["difference"] <= other["high"] < 0
