"""lm-eval held quiet, and its interface to models: progress as events, warnings gathered and told once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from thrifty.base import events
from thrifty.base.errors import InputError

LOGGERS = ("lm_eval", "datasets", "evaluate")
LONGEST = 240
QUOTED = 60


class Collected(logging.Handler):
    """Warnings, one for each place that they come from, with how often it spoke."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: dict[tuple[str, int], list[str]] = {}
        self._errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what is said."""
        self._said.setdefault((record.pathname, record.lineno), []).append(record.getMessage())
        if record.levelno >= logging.ERROR:
            self._errors.append(shorten(record.getMessage()))

    def error(self) -> str | None:
        """The last error that was said, which may tell more than the exception after it."""
        return self._errors[-1] if self._errors else None

    def clear(self) -> None:
        """Forget what was said so far."""
        self._said.clear()
        self._errors.clear()

    def warn(self) -> None:
        """Announce the first warning of each place."""
        for said in self._said.values():
            more = f" ({len(said)} such warnings)" if len(said) > 1 else ""
            events.warn(f"lm-eval: {shorten(said[0])}{more}", "tasks")


@contextmanager
def quiet(level: int, handler: logging.Handler | None = None) -> Iterator[None]:
    """Nothing of lm-eval and the libraries under it is printed; records from `level` on go to the handler."""
    import datasets
    import lm_eval.api.task as prompts

    loggers = [logging.getLogger(name) for name in LOGGERS]
    models = logging.getLogger("transformers")
    spoken = models.level
    before = [(logger.level, logger.handlers, logger.propagate) for logger in loggers]
    bars, drawn = datasets.are_progress_bars_disabled(), getattr(prompts, "tqdm", None)
    for logger in loggers:
        logger.setLevel(level)
        logger.handlers = [handler or logging.NullHandler()]
        logger.propagate = False
    # It warns of texts longer than the context, which are cut up before they come to the model.
    models.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # The one bar in lm-eval that no argument turns off.
    prompts.tqdm = lambda items, **_: items  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for logger, (level_before, handlers, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level_before)
            logger.handlers, logger.propagate = handlers, propagate
        models.setLevel(spoken)
        if not bars:
            datasets.enable_progress_bars()
        prompts.tqdm = drawn  # type: ignore[attr-defined]


def answering(model: nn.Module, tokenizer: Any, batch: int) -> Any:
    """The model as lm-eval asks it: an `HFLM` that announces its progress as events."""
    from lm_eval.models.huggingface import HFLM

    class Answering(HFLM):
        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            return self._counted("tasks: choices", requests, super().loglikelihood)

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
            return self._counted("tasks: texts", requests, super().loglikelihood_rolling)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
            return self._counted("tasks: answers", requests, super().generate_until)

        def _counted(self, what: str, requests: Sequence[Any], answer: Callable[..., Any]) -> Any:
            with events.task(what, len(requests)) as advance:
                self.set_cache_hook(_Counter(advance))
                return answer(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Sequence[Any], disable_tqdm: bool = True, **settings: Any) -> Any:
            for texts, prompt, answer in requests:
                if not prompt:
                    raise InputError(f"the prompt {_quoted(texts[0])} holds no token; give it some text, or none at all")
                if not answer:
                    # lm-eval gives such an answer the probability 1, or stops.
                    raise InputError(
                        f"the tokenizer joins the answer {_quoted(texts[1])} to the end of the prompt {_quoted(texts[0])}, so that it has "
                        "no token of its own to score; begin the answer, or end the prompt, otherwise"
                    )
                if len(answer) > self.max_length:
                    raise InputError(
                        f"the answer {_quoted(texts[1])} is {len(answer)} tokens long, and the model's context holds {self.max_length}"
                    )
            # Whole texts come a batch of windows at a time, and are answered only after the last one.
            answers = super()._loglikelihood_tokens(requests, disable_tqdm=True, **settings)
            self.cache_hook.scored(len(requests))
            return answers

    return Answering(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch)


class _Counter:
    """lm-eval hands each answer to a cache as soon as it has it; here it is only counted."""

    def __init__(self, advance: Callable[[float, str], None]) -> None:
        self._advance = advance
        self._done = self._windows = 0

    def add_partial(self, *answer: Any) -> None:
        """One more request is answered."""
        self._done += 1
        self._advance(self._done, "")

    def scored(self, windows: int) -> None:
        """More windows of texts are through the model."""
        self._windows += windows
        self._advance(self._done, f"{self._windows} windows")


def reason(error: BaseException) -> str:
    """An error in a few words on one line, from where it began."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = shorten(str(error))
    if isinstance(error, KeyError):
        return f"it asks for {text}, which is not there"
    bare = isinstance(error, IndexError | TypeError | AttributeError | ArithmeticError)
    return f"{type(error).__name__}, {text}" if bare and text else text or type(error).__name__


def _quoted(text: str) -> str:
    return repr(text if len(text) <= QUOTED else f"...{text[-QUOTED:]}")


def shorten(text: str) -> str:
    """The first line of a text, without what cannot be printed."""
    line = " ".join(next((line for line in text.splitlines() if line.strip()), "").split()).rstrip(".:")
    printable = "".join(letter if letter.isprintable() else " " for letter in line)
    return printable if len(printable) <= LONGEST else printable[:LONGEST] + "..."
