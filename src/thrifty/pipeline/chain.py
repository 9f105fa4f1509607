"""Steps of several kinds after each other: a chain of runs, each on the result of the one before, all judged against the first model.

What changes the network's structure makes another model, so the steps after it begin anew, on that one: a link of its own. So does training
right after it. The links before the last leave their results in the folder of the run, where a stopped chain finds them again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from thrifty.base import events
from thrifty.measure.certificate import Certificate, Link
from thrifty.models import open_model
from thrifty.pipeline.folder import RunFolder
from thrifty.pipeline.job import Against, Job
from thrifty.pipeline.streams import Streams


def through(job: Job, folder: RunFolder, carry: Callable[[Job, Path], Certificate]) -> Job:
    """Carry out all links of a chain but the last; returns the job of the last, on the model that came out of them.

    job: the first link. folder: of the whole run. carry: carries a job out and leaves its result in a folder.
    """
    assert job.then is not None
    last = len(job.then.foreseen)
    ending = folder.path / "ending.safetensors"
    link = replace(job, ending=ending)
    told: list[Link] = []
    for position in range(last):
        events.note(f"link {position + 1} of {last + 1}: {link.words}")
        place = folder.path / "links" / str(position)
        certificate = carry(replace(link, then=None, gate=None, speed=False, safety=()), place)
        told.append(Link.of(link.words, certificate))
        against = link.against or Against(job.source.original, certificate.model.digest, _ending(ending), ())
        following = job.then.follow(position + 1, open_model(place, trust_remote_code=job.source.remote_code is not None))
        link = replace(following, against=replace(against, links=tuple(told)))
    events.note(f"link {last + 1} of {last + 1}: {link.words}")
    return link


def _ending(path: Path) -> dict[str, Tensor]:
    """The evaluation rows as they left the original, by chain of blocks; none where nothing is judged."""
    return {chain: states["before"] for chain, states in Streams.load(path).done.items()} if path.exists() else {}
