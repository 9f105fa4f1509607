"""Does a completion of Python code parse? A check of what a model writes that needs no reference answer."""

from __future__ import annotations

import ast
import codeop
import warnings
from collections.abc import Sequence

_COMPLETE = ast.PyCF_ONLY_AST
_INCOMPLETE = ast.PyCF_ONLY_AST | codeop.PyCF_ALLOW_INCOMPLETE_INPUT


def parses(prompt: str, completion: str) -> bool:
    """Whether the prompt, continued by the completion, is Python as far as it goes.

    A completion is cut off after some number of tokens, often in the middle of a statement: that is no error of the model. The prompt
    must begin at the start of a statement, which may be indented. Exactly, the completion parses if either

    1. prompt and completion together parse (`ast.parse`) and the completion holds code, that is, more than blank lines and comments; or
    2. with the last line of both together taken away (it may be cut off anywhere), the parser meets no error before the end of the
       text, where only the end of a block, a bracket or a triple-quoted string may be missing; and the longest run of whole lines from
       the beginning that does parse reaches a line of code that the completion wrote or finished.

    A completion that finishes no statement of its own does not parse. Nothing is executed. Names and types are not checked.
    """
    lines = [*_headers(prompt + completion), *(prompt + completion).split("\n")]
    written = len(lines) - (completion.count("\n") + 1)
    if not any(_is_code(line) for line in completion.split("\n")):
        return False
    if _outcome(lines) == "complete":
        return True
    lines.pop()
    if _outcome(lines) == "error":
        return False
    while len(lines) > written and _outcome(lines) != "complete":
        lines.pop()
    return any(_is_code(line) for line in lines[written:])


def _headers(text: str) -> list[str]:
    """Block headers above a text whose first line is indented, one for each smaller indentation in it, so that it stands in a block."""
    indents = [line[: len(line) - len(line.lstrip(" \t"))] for line in text.split("\n") if _is_code(line)]
    if not indents or not indents[0]:
        return []
    levels = {"", *(indent for indent in indents if len(indent) < len(indents[0]))}
    return [f"{indent}if True:" for indent in sorted(levels, key=len)]


def _is_code(line: str) -> bool:
    stripped = line.strip()
    return bool(stripped) and not stripped.startswith("#")


def _outcome(lines: Sequence[str]) -> str:
    """What the parser makes of the lines: `complete`, `incomplete` (no error before the end of the text) or `error`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                compile("\n".join(lines), "<completion>", "exec", _COMPLETE)
                return "complete"
            except SyntaxError:
                compile("\n".join(lines), "<completion>", "exec", _INCOMPLETE)
                return "incomplete"
    except SyntaxError as error:
        return "incomplete" if "incomplete input" in str(error) else "error"
    except (ValueError, RecursionError, MemoryError):  # null bytes; nesting deeper than the parser's stack
        return "error"
