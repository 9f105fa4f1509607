"""What reaches the stages of a block, seen while rows pass through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from torch import Tensor, nn

from thrifty.base.anatomy import Block, Space, Stage
from thrifty.models import Call, linear_modules, run_block

OnStage = Callable[[Stage, Tensor], None]
OnShared = Callable[[Space, Tensor], None]


class Enough(Exception):
    """Nothing is left to look at in a pass."""


def look(block: Block, module: nn.Module, batches: Iterable[Tensor], call: Call | None, on_stage: OnStage, on_shared: OnShared) -> None:
    """Rows through a block whose output nobody reads: `on_stage` and `on_shared` as `watching` calls them.

    The first batch shows which stage is reached last; the others stop there, and do not compute what may be a fourth of the pass. Where
    tokens are sent to experts, a batch may reach other stages than the first one did, so all go to the end.
    """
    assert call is not None
    reached: list[str] = []
    last: str | None = None

    def noted(stage: Stage, inputs: Tensor) -> None:
        on_stage(stage, inputs)
        reached.append(stage.reads.name)
        if stage.reads.name == last:
            raise Enough

    with watching(block, linear_modules(module, block), module, noted, on_shared):
        for hidden in batches:
            reached.clear()
            with suppress(Enough):
                run_block(module, hidden, call)
            if last is None and block.experts is None and len(reached) == len(set(reached)) > 0:
                last = reached[-1]


@contextmanager
def watching(
    block: Block,
    linears: Mapping[str, nn.Module],
    module: nn.Module,
    on_stage: OnStage,
    on_shared: OnShared,
) -> Iterator[None]:
    """Call `on_stage` with the input of each stage when the first of its linears is reached, and `on_shared` with what all experts get."""
    leader: dict[str, str] = {}
    handles = []

    def hook(stage: Stage, path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            # A stage is taken at its first linear; the same linear seen again is the next batch.
            first = leader.setdefault(stage.reads.name, path)
            if first == path:
                on_stage(stage, arguments[0])

        return before

    for stage in block.stages:
        for linear in stage.linears:
            handles.append(linears[linear.path].register_forward_pre_hook(hook(stage, linear.path), prepend=True))  # before rounding
    if block.experts is not None:
        shared = {stage.reads.within for stage in block.stages if stage.reads.within}
        inside = module.get_submodule(block.experts.path.removeprefix(block.path + "."))
        for space in block.spaces:
            if space.name in shared:
                handles.append(inside.register_forward_pre_hook(lambda _, arguments, space=space: on_shared(space, arguments[0])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
