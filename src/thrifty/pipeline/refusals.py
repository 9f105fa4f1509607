"""Original and result asked the same requests, once the result stands: whether compression weakened refusals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thrifty.base import events
from thrifty.base.errors import InputError
from thrifty.base.memory import return_free_memory
from thrifty.base.store import content_key
from thrifty.data.tokenizer import load_tokenizer
from thrifty.measure.safety import Pair, check_safety, templated
from thrifty.models import Source
from thrifty.runtime.load import load, load_source


def digest_of(pairs: Sequence[Pair]) -> str:
    """Equal for equal requests."""
    return content_key([[pair.refuse, pair.answer] for pair in pairs])


def refusals(source: Source, result: Path, pairs: Sequence[Pair], seed: int) -> dict[str, Any]:
    """What `check_safety` finds of a result, and a digest of the `requests`.

    The verdict is `skipped`, with the reason, where the model has no refusals to lose. Both models are in memory.
    """
    try:
        if source.anatomy.kind != "causal_lm":
            raise InputError(f"a model of kind {source.anatomy.kind} answers no requests")
        tokenizer = load_tokenizer(source.folder, source.remote_code is not None)
        templated(tokenizer, pairs[0].answer)
    except InputError as error:
        events.note(f"refusals were not checked: {error}")
        return {"verdict": "skipped", "reasons": [str(error)], "requests": digest_of(pairs)}
    models = load_source(source), load(result, trust_remote_code=source.remote_code is not None)
    found = check_safety(*models, tokenizer, pairs, seed=seed)
    del models
    return_free_memory()
    if found["verdict"] in ("fail", "broken"):
        events.warn(f"refusals: {found['verdict']}: {'; '.join(found['reasons'])}")
    return {**found, "requests": digest_of(pairs)}
