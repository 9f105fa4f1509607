"""What counts as a completion that parses."""

from __future__ import annotations

import ast
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.data import embedded_text, parses

FUNCTION = "def add(a, b):\n"


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        (FUNCTION, "    return a + b\n"),
        (FUNCTION, "    return a + b\n\n\ndef subtract(a, b"),
        (FUNCTION, "    total = a + b\n    return (total,"),
        (FUNCTION, '    total = a + b\n    """never ended'),
        ("x = ", "1"),
        ("x = [1,", " 2]\ny = "),
        ("        return x\n", "\n    def other(self):\n        return 1\n\nclass "),
        ("    try:\n        go()\n", "    finally:\n        stop()\n    retu"),
        ("", "if a:\n    b = 1\nelse:\n"),
    ],
)
def test_these_parse(prompt: str, completion: str) -> None:
    assert parses(prompt, completion)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        (FUNCTION, "    return a +\n    b\n"),
        (FUNCTION, "return a\n"),
        (FUNCTION, "    return a\n      b = 2\n    c = 3\n"),
        (FUNCTION, "    x = 'abc\n    y = 2\n"),
        (FUNCTION, "    x = (1\n    y = 2\n    z = 3\n"),
        (FUNCTION, ""),
        (FUNCTION, "    # only a comment\n"),
        (FUNCTION, '    """a text that never ends\n\n    and goes on\n'),
        ("x = ", "foo("),
        ("x = 1\n", "y = \x00\nz = 1\n"),
        ("x = 1\n", "x = " + "(" * 5000 + "\n"),
        ("x = (\n", "y = 1\nz = 2\n"),
    ],
)
def test_these_do_not(prompt: str, completion: str) -> None:
    assert not parses(prompt, completion)


@given(st.data())
def test_real_code_cut_anywhere_parses_once_it_has_a_whole_statement(data: st.DataObject) -> None:
    source = data.draw(st.sampled_from([text for text in embedded_text("evaluation").split("<|endoftext|>") if 0 < len(text) < 6000]))
    first = ast.parse(source).body[0].end_lineno
    assert first is not None
    beginning = sum(len(line) + 1 for line in source.split("\n")[:first])
    cut = data.draw(st.integers(min(beginning + 1, len(source)), len(source)))
    assert parses("", source[:cut])
    assert parses("", textwrap.indent(source[:beginning], "    ")) == parses("", source[:beginning])
