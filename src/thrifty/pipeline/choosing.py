"""What a structural step has to know of all blocks before it cuts the first: which of them go, how many units each keeps, what a unit is
worth to the whole model.

A pass over the original finds it, in a place of its own inside the run's folder, so that a stopped run does not make it again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from safetensors.torch import save_file

from thrifty.base import events
from thrifty.base.anatomy import Block
from thrifty.base.store import write_unsettled
from thrifty.models import Call, run_block
from thrifty.pipeline.folder import BlockRecord, seconds_of
from thrifty.pipeline.following import followed
from thrifty.pipeline.reshape import CutView, ReshapeWalk
from thrifty.pipeline.shaping import Shaping, shared_out, without_blocks
from thrifty.pipeline.slopes import descent
from thrifty.pipeline.stopwatch import Stopwatch
from thrifty.pipeline.streams import Streams
from thrifty.pipeline.walk import check_finite
from thrifty.structure.base import BlockPruner, GradientPruner, Pruner, Seen, Slopes

Scores = dict[str, dict[str, list[float]]]
"""Of each unit, by path of the block and name of the space."""


@dataclass
class InfluenceWalk(ReshapeWalk):
    """The pass that only looks: calibration rows through the original's blocks, and what each block changes. Judges nothing."""

    title: str = "blocks weighed"

    def _block(self, block: Block, key: str, calls: dict[str, Call], streams: Streams) -> BlockRecord:
        local = Stopwatch()
        step = self.shaping.step
        assert isinstance(step, BlockPruner)
        path = self.folder.tensors_path(key)
        rows, total, count = streams.now["calibration"], 0.0, 0
        with local.during("forward"):
            module = self.source.block(block, self.setting.dtype, self.setting.device)
            out = []
            for batch in rows.split(self.setting.batch):
                batch = batch.to(self.setting.device)
                leaving = run_block(module, batch, calls["calibration"])
                found = step.influence(batch.float(), leaving.float()).to(torch.float64)
                total, count = total + float(found.sum()), count + found.numel()
                out.append(leaving.cpu())
            streams.now["calibration"] = torch.cat(out)
            check_finite(block, streams)
        write_unsettled(path, lambda temporary: save_file({}, temporary))
        return BlockRecord(key, path, (), (), local.seconds, {}, {"influence": [total / max(count, 1)]})


@dataclass
class ScoreWalk(ReshapeWalk):
    """The pass that only judges: what each unit of the original's blocks is worth."""

    title: str = "blocks judged"

    def _block(self, block: Block, key: str, calls: dict[str, Call], streams: Streams) -> BlockRecord:
        local = Stopwatch()
        step = self.shaping.step
        assert isinstance(step, Pruner)
        path = self.folder.tensors_path(key)
        view = CutView(self, block, calls.get("calibration"))
        with local.during("forward"):
            seen = self._look(view, streams, local)
        with local.during("solve"):
            scores = {space.name: values.tolist() for space, values in (step.score(view, seen) if view.units else {}).items()}
        if "calibration" in streams.now:
            with local.during("forward"):
                streams.now["calibration"] = view.forward(streams.now["calibration"])
                check_finite(block, streams)
        write_unsettled(path, lambda temporary: save_file({}, temporary))
        return BlockRecord(key, path, (), (), local.seconds, {}, scores)


def chosen(walk: ReshapeWalk, key: str) -> tuple[Shaping, float]:
    """(the shaping with what a pass over the whole model decides: which blocks go, or how many units stay in each; the seconds it took)."""
    if isinstance(walk.shaping.step, GradientPruner):
        scores, seconds = _by_gradients(walk)
        decided = {path: {name: torch.tensor(values) for name, values in spaces.items()} for path, spaces in scores.items()}
        return _counted(walk, replace(walk.shaping, scores=decided), scores), seconds
    kind, name = (InfluenceWalk, "influence") if walk.shaping.removed else (ScoreWalk, "scores")
    records, _, watch = walk.aside(kind, name, shaping=walk.shaping).run(key)
    seconds = sum(watch.seconds.values()) + sum(seconds_of(records).values())
    blocks = [block.path for chain in walk.source.anatomy.chains for block in walk._blocks(chain)]
    found = {path: record.losses for path, record in zip(blocks, records, strict=True)}
    if not walk.shaping.removed:
        return _counted(walk, walk.shaping, found), seconds
    influence = {path: losses["influence"][0] for path, losses in found.items()}
    shaping = without_blocks(walk.source, walk.shaping, influence)
    stay = {block.path for block in shaping.resized.blocks.values()}
    gone = [f"{path} ({influence[path]:.3g})" for path in blocks if path not in stay]
    events.note(f"{shaping.step.name} removes {', '.join(gone)}; least influence that stays {_least(influence, stay):.3g}")
    return shaping, seconds


def _counted(walk: ReshapeWalk, shaping: Shaping, scores: Scores) -> Shaping:
    """The shaping with the numbers of each block decided where they may differ, and said."""
    if not shaping.uneven:
        return shaping
    shaping = shared_out(walk.source, shaping, scores)
    for alike in shaping.kept:
        counts = [str(counted[alike]) for counted in shaping.by_block.values() if alike in counted]
        events.note(f"{shaping.step.name} keeps {', '.join(counts)} of {alike}")
    return shaping


def _by_gradients(walk: ReshapeWalk) -> tuple[Scores, float]:
    """(what the units of all blocks are worth by the loss of the whole model; the seconds that it took to find out)."""
    step = walk.shaping.step
    assert isinstance(step, GradientPruner)

    def judge(block: Block, slopes: dict[str, Slopes]) -> tuple[Scores, list[str]]:
        view = CutView(walk, block, None)
        seen = Seen(torch.empty(0), seed=walk.setting.seed, slopes=slopes)
        scores = {space.name: values.tolist() for space, values in step.score(view, seen).items()}
        return {block.path: scores}, [f"{block.path}.{name}" for name, values in scores.items() if not any(values)]

    kept = walk.folder.path / "slopes.json"
    told = followed(walk, walk.shaping.follows, kept, "blocks judged", lambda rows: descent(walk.source, rows, walk.setting), judge)
    for name in told["unreached"]:
        events.warn(f"{name}: the loss of no row changes with it, so the first of its units stay; raise rows")
    return told["found"], told["seconds"]


def _least(influence: dict[str, float], stay: set[str]) -> float:
    return min((value for path, value in influence.items() if path in stay), default=0.0)
