"""Everything that decides a result, settled before any work starts; a recipe of several kinds of steps is a chain of such jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from thrifty.base.store import content_key
from thrifty.data import Rows
from thrifty.measure.certificate import Link, weights_digest
from thrifty.measure.gate import Gate
from thrifty.measure.hardware import versions
from thrifty.measure.safety import Pair
from thrifty.models import Source
from thrifty.pipeline.packing import Packing
from thrifty.pipeline.plan import Setting
from thrifty.pipeline.price import Load
from thrifty.pipeline.shaping import Shaping
from thrifty.pipeline.steps import Work


@dataclass(frozen=True)
class Job:
    """Everything that decides a result.

    name: the model as the user named it. recipe: canonical text; steps: those of the recipe, as plain JSON values. load: how much data
    there is, for the price; device_load: the same where blocks pass through a device other than the processor. calibration, evaluation:
    the rows; None where there are none. request: what else the user asked for, as plain JSON values. gate: the loss that the user allows.
    speed: whether both models are timed at the end, which is no part of the result. safety: pairs of requests that both are asked then.
    shaping: what a structural step makes of the model, where the steps are one; then nothing is solved.
    then: the links after this one, where the recipe is a chain. against: what a link after the first is judged by. ending: the file in
    which the first keeps the evaluation rows as they leave the original.
    """

    name: str
    source: Source
    recipe: str
    steps: list[dict[str, Any]]
    work: Work
    packing: Packing
    setting: Setting
    load: Load
    calibration: Rows | None
    evaluation: Rows | None
    gate: Gate | None = None
    request: dict[str, Any] = field(default_factory=dict)
    speed: bool = True
    safety: tuple[Pair, ...] = ()
    shaping: Shaping | None = None
    then: Then | None = None
    against: Against | None = None
    ending: Path | None = None
    device_load: Load | None = None

    @property
    def original(self) -> Source:
        """The model that the result is judged against."""
        return self.source.original if self.against is None else self.against.source

    @property
    def links(self) -> tuple[Job, ...]:
        """This one and those that follow it, as far as they are foreseen."""
        return (self, *(() if self.then is None else self.then.foreseen))

    @property
    def words(self) -> str:
        """The methods of this link's steps."""
        if self.shaping is not None:
            return self.shaping.step.name
        return " + ".join(dict.fromkeys(name for names in self.work.names.values() for name in names.split("+")))

    def key(self, digest: dict[str, str]) -> str:
        """What names the run: two jobs with one key make the same bytes. Where model and texts lie is no part of it, nor is
        the gate, which only judges them."""
        return content_key(
            {
                "thrifty": versions().get("thrifty", ""),
                "model": [weights_digest(digest), _placeless(self.source.config.to_dict())],
                "steps": self.steps,
                "setting": self.setting.to_json(),
                "rows": [None if rows is None else rows.digest for rows in (self.calibration, self.evaluation)],
                **({} if self.packing.format == Packing.format else {"format": self.packing.format}),
            }
        )


@dataclass(frozen=True)
class Against:
    """What a link of a chain is judged by: the model that the chain began with, its digest, the evaluation rows as they leave its last
    blocks, by chain of blocks; and what became of it so far."""

    source: Source
    digest: str
    ending: Mapping[str, Tensor]
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Then:
    """The links after the first. foreseen: their jobs, on models that have the right shapes and no values yet. follow: the job of the link
    at a place (the first is 0) on the model that really came out of the one before."""

    foreseen: tuple[Job, ...]
    follow: Callable[[int, Source], Job]


def _placeless(config: Any) -> Any:
    """A configuration without the folder that it was read from."""
    if not isinstance(config, dict):
        return config
    return {name: _placeless(value) for name, value in config.items() if name != "_name_or_path"}
