"""What a run does to each linear: the steps of a recipe, sorted by the place they act at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from thrifty.base.anatomy import Anatomy, Block, Linear, Space
from thrifty.base.errors import InputError
from thrifty.base.method import Method
from thrifty.tune.base import Tuner
from thrifty.weights.base import Activation, Healer, Preset, Target, Transform, Treatment, Turn, check_zero
from thrifty.weights.layerwise import Layerwise, Part
from thrifty.weights.preset.mix import Mix
from thrifty.weights.solve.round import Round
from thrifty.weights.target.dense import Dense

AS_IT_IS = Treatment(Round(), Dense())
"""What is done to a matrix that is only trained."""


@dataclass(frozen=True)
class Step:
    """One step of a recipe: its method for each linear that it selects (settings may differ by override).

    whole: whether it acts on the whole model alike, with no choice of linears.
    """

    name: str
    methods: Mapping[str, Method]
    whole: bool = False


@dataclass(frozen=True)
class Work:
    """Every step, by linear: `transforms` to rewrite spaces, then `treatments` to solve, in recipe order.

    tuner: what trains the solved matrices together afterwards, and `tuned`, their paths. turn: what is done to the hidden states of the
    whole model before anything else, and `turned`, the linears that its step selects.
    mixes: of linears whose target is still to be chosen (`pipeline.mixing`), the step that does and the place of its treatment, which
    stands for all that it may become.
    """

    transforms: tuple[Mapping[str, Transform], ...]
    treatments: Mapping[str, tuple[Treatment, ...]]
    names: Mapping[str, str]
    mixes: Mapping[str, tuple[Mix, int]] = field(default_factory=dict)
    tuner: Tuner | None = None
    tuned: tuple[str, ...] = ()
    turn: Turn | None = None
    turned: tuple[str, ...] = ()

    @classmethod
    def of(cls, steps: Sequence[Step], changed: bool = False) -> Work:
        """Sort the steps. changed: whether the model was changed before, so that a step which trains may stand alone.

        Raises InputError for a method that does not act on weights, or a transform with nothing after it.
        """
        transforms: list[Mapping[str, Transform]] = []
        treatments: dict[str, tuple[Treatment, ...]] = {}
        names: dict[str, list[str]] = {}
        mixes: dict[str, tuple[Mix, int]] = {}
        tuner, tuned = _tuner(steps)
        turn, turned = _turn(steps)
        names.update((path, [turn.name]) for path in turned if turn is not None)
        steps = [step for step in steps if not any(isinstance(method, Tuner | Turn) for method in step.methods.values())]
        for position, step in enumerate(steps, 2 if turn else 1):
            chosen: dict[str, Transform] = {}
            for path, method in step.methods.items():
                names.setdefault(path, []).append(method.name)
                if isinstance(method, Transform):
                    chosen[path] = method
                elif isinstance(method, Preset):
                    if isinstance(method, Mix):
                        if path in mixes:
                            raise InputError(f"step {position}: the target of {path} is already chosen by an earlier mix; skip it in one")
                        mixes[path] = (method, len(treatments.get(path, ())))
                    treatment = method.expand()
                    if path in treatments:
                        for target in method.into if isinstance(method, Mix) else (treatment.target,):
                            check_zero(target, f"step {position}: ")
                    if treatment.heal is not None and path in treatments:
                        raise InputError(f"step {position}: {step.name} would not keep what an earlier step pruned of {path}; drop one")
                    treatments[path] = (*treatments.get(path, ()), treatment)
                else:
                    raise InputError(f"step {position}: {method.name} belongs to {method.family} and cannot stand as a step of its own")
            if chosen:
                if treatments.keys() & chosen.keys():
                    raise InputError(f"step {position}: {step.name} rewrites weights and must stand before the steps that solve them")
                last = next(
                    (before[path] for before in transforms for path in before if path in chosen and before[path].while_running), None
                )
                if last is not None:
                    raise InputError(f"step {position}: {step.name} rewrites what {last.name} has turned; put {last.name} behind it")
                transforms.append(chosen)
        if tuner is not None and any(method.while_running for chosen in transforms for method in chosen.values()):
            raise InputError(f"{tuner.name} does not train matrices whose inputs are turned while the model runs; leave `online` out")
        if (transforms or turn) and not treatments:
            raise InputError("the recipe only rewrites weights; add a step that quantizes or prunes them (for example `gptq`)")
        if tuner is not None and changed and not treatments:
            treatments, names = {path: (AS_IT_IS,) for path in tuned}, {path: [] for path in tuned}
        if tuner is not None:
            tuned = _trainable(tuner, tuned, treatments, mixes)
            for path in tuned:
                names[path].append(tuner.name)
        return cls(
            tuple(transforms), treatments, {path: "+".join(words) for path, words in names.items()}, mixes, tuner, tuned, turn, turned
        )

    @property
    def needs_calibration(self) -> bool:
        """Whether any step looks at calibration data."""
        return self.tuner is not None or self.solving_needs_calibration

    @property
    def solving_needs_calibration(self) -> bool:
        """Whether any step but the one that trains does."""
        return bool(self.transforms or self.mixes) or any(
            treatment.calibrated for chosen in self.treatments.values() for treatment in chosen
        )

    @property
    def quantizes(self) -> bool:
        """Whether matrices come onto a grid, or into codebooks; zeros alone are none."""
        chosen = [treatment.target for treatments in self.treatments.values() for treatment in treatments]
        return any(not target.masks for target in (*chosen, *(target for mix, _ in self.mixes.values() for target in mix.into)))

    @property
    def heals(self) -> bool:
        """Whether blocks are compared with the original's once they are solved."""
        return any(self.healer(path) is not None for path in self.treatments)

    @property
    def shares(self) -> tuple[Treatment, ...]:
        """Treatments whose sparsity is still to be shared out (`pipeline.sharing`), in the order in which they appear."""
        every = (treatment for chosen in self.treatments.values() for treatment in chosen)
        return tuple(dict.fromkeys(treatment for treatment in every if isinstance(treatment.allocator, Layerwise)))

    def parts(self, block: Block, treatment: Treatment) -> list[Part]:
        """The parts of a block that the sparsity of one of `shares` goes to."""
        assert isinstance(treatment.allocator, Layerwise)
        return treatment.allocator.parts(block, [linear for linear in block.linears if treatment in self.treatments.get(linear.path, ())])

    def with_sparsity(self, sparsity: Mapping[str, Mapping[Treatment, float]]) -> Work:
        """The same work with the shares of zeros of these treatments decided, by path of the linear."""
        treatments = dict(self.treatments)
        for path, decided in sparsity.items():
            treatments[path] = tuple(
                replace(treatment, target=treatment.target.with_sparsity(decided[treatment]), allocator=None)
                if treatment in decided
                else treatment
                for treatment in treatments[path]
            )
        return replace(self, treatments=treatments)

    def healer(self, path: str) -> Healer | None:
        """What the last step does about a linear once its block is solved."""
        return self.treatments[path][-1].heal if path in self.treatments else None

    def activation(self, path: str) -> Activation | None:
        """What the last step rounds the inputs of a linear to while the model runs."""
        return self.treatments[path][-1].activation if path in self.treatments else None

    def check(self, anatomy: Anatomy) -> None:
        """Raise InputError when a target cannot hold one of the matrices, or where there is nobody to share sparsity out to."""
        if self.turn is not None and set(self.turned) != {linear.path for linear in anatomy.linears}:
            raise InputError(f"{self.turn.name} turns the hidden states of the whole model, so only and skip cannot narrow it down")
        for linear in anatomy.linears:
            for treatment in self.treatments.get(linear.path, ()):
                treatment.target.check(linear.out_features, linear.in_features, linear.path)
            for target in self.mixes[linear.path][0].into if linear.path in self.mixes else ():
                target.check(linear.out_features, linear.in_features, linear.path)
        for treatment in self.shares:
            allocator = treatment.allocator
            assert isinstance(allocator, Layerwise)
            if not any(self.parts(block, treatment) for block in anatomy.blocks):
                raise InputError(
                    f"{allocator.name} shares sparsity out among {allocator.wants}, and the linears chosen in {anatomy.architecture} "
                    "are none; take another `share`, as uniform"
                )

    def idle(self, anatomy: Anatomy) -> tuple[str, ...]:
        """A sentence for each step that rewrites nothing, for want of a space that suits it."""
        said = []
        for position, chosen in enumerate(self.transforms, 1):
            idle = [method for method in chosen.values() if method.for_rounded_inputs]
            if idle and not any(self.activation(path) is not None for path in chosen):
                said.append(
                    f"{idle[0].name} changes nothing: no step rounds the inputs of the linears chosen for it; give one an `activation`"
                )
                continue
            spaces = [space for block in anatomy.blocks for space in block.spaces]
            if not any((found := self.transform_for(position - 1, space)) is not None and found.suits(space) for space in spaces):
                method = next(iter(chosen.values()))
                said.append(f"{method.name} changes nothing: the linears chosen for it in {anatomy.architecture} have not {method.wants}")
        return tuple(said)

    def with_options(self, options: Mapping[str, int]) -> Work:
        """The same work with the targets of these linears chosen."""
        treatments = dict(self.treatments)
        for path, option in options.items():
            mix, place = self.mixes[path]
            treatments[path] = (*treatments[path][:place], mix.treatment(option), *treatments[path][place + 1 :])
        return replace(self, treatments=treatments, mixes={path: mix for path, mix in self.mixes.items() if path not in options})

    def transform_for(self, position: int, space: Space) -> Transform | None:
        """The transform of step `position` for a space: the one chosen for its first selected consumer."""
        chosen = self.transforms[position]
        return next((chosen[path] for path in space.consumers if path in chosen), None)

    def turned_while_running(self, anatomy: Anatomy) -> tuple[str, ...]:
        """The linears whose inputs a step asks to turn while the model runs."""
        spaces = [space for block in anatomy.blocks for space in block.spaces]
        found: list[str] = []
        for position in range(len(self.transforms)):
            for space in spaces:
                transform = self.transform_for(position, space)
                if transform is not None and transform.while_running and transform.suits(space):
                    found.extend(space.consumers)
        return tuple(found)

    def treatment_for(self, space: Space) -> Treatment | None:
        """What happens first to the consumers of a space, as far as any of them is solved, and what their inputs are rounded to in the
        end."""
        path = next((path for path in space.consumers if path in self.treatments), None)
        return None if path is None else replace(self.treatments[path][0], activation=self.activation(path))

    def settings(self, block: Block) -> list[object]:
        """Everything that decides what happens to a block, as JSON values: part of its content key."""
        chosen = [{path: {m.name: m.settings()} for path, m in step.items() if _inside(path, block)} for step in self.transforms]
        solved = {linear.path: [_plain(t) for t in self.treatments.get(linear.path, ())] for linear in block.linears}
        mixed = {path: [mix.settings(), place] for path, (mix, place) in self.mixes.items() if _inside(path, block)}
        turned = {self.turn.name: self.turn.settings()} if self.turn is not None else {}
        return [chosen, solved, *(part for part in (mixed, turned) if part)]

    def solves(self, linear: Linear) -> bool:
        """Whether a step gives this linear new values."""
        return linear.path in self.treatments


def _tuner(steps: Sequence[Step]) -> tuple[Tuner | None, tuple[str, ...]]:
    """The step that trains, and the linears that it selects. Raises InputError where it is not the last step, or has several settings."""
    for position, step in enumerate(steps, 1):
        found = {method for method in step.methods.values() if isinstance(method, Tuner)}
        if not found:
            continue
        if position < len(steps):
            raise InputError(f"step {position}: {step.name} trains what the steps before it solved and must be the last one")
        if len(found) > 1:
            raise InputError(f"step {position}: {step.name} trains all matrices together, so override cannot change its settings for some")
        return found.pop(), tuple(step.methods)
    return None, ()


def _turn(steps: Sequence[Step]) -> tuple[Turn | None, tuple[str, ...]]:
    """The step that turns the whole model, and the linears that it names. Raises InputError where it is not the first, or has several
    settings."""
    for position, step in enumerate(steps, 1):
        found = {method for method in step.methods.values() if isinstance(method, Turn)}
        if not found:
            continue
        if position > 1:
            raise InputError(f"step {position}: {step.name} turns the model before anything else is done to it and must be the first step")
        if len(found) > 1:
            raise InputError(f"step {position}: {step.name} turns the whole model, so override cannot change its settings for some linears")
        return found.pop(), tuple(step.methods)
    return None, ()


def _trainable(
    tuner: Tuner, chosen: Sequence[str], treatments: Mapping[str, tuple[Treatment, ...]], mixes: Mapping[str, tuple[Mix, int]]
) -> tuple[str, ...]:
    """The chosen linears that earlier steps solved. Raises InputError where a result cannot be trained."""
    solved = tuple(path for path in chosen if path in treatments)
    if not solved:
        raise InputError(f"{tuner.name} trains what the steps before it solved, and they solve none of its linears; add one, as `gptq`")
    targets = {path: mixes[path][0].into if path in mixes else (treatments[path][-1].target,) for path in solved}
    _check_idle(tuner, [target for found in targets.values() for target in found])
    for path in solved:
        *earlier, last = treatments[path]
        for target in targets[path]:
            if target.codes is None and not target.masks and not target.sums:
                raise InputError(
                    f"{tuner.name} trains plain values, evenly spaced grids (int, zero_free, ternary) and additive codebooks; "
                    f"{path} is solved into {target.name}"
                )
            if earlier and target.codes is not None:
                raise InputError(f"{tuner.name} would not keep what an earlier step pruned of {path}; drop one")
        if last.allocator is not None and last.allocator.within_matrix:
            raise InputError(f"{tuner.name} trains one grid a matrix; {path} has inputs of different widths")
    return solved


def _check_idle(tuner: Tuner, targets: Sequence[Target]) -> None:
    """Raise InputError where a setting is for a kind of target that no matrix is solved into."""
    if tuner.ends != "learned" and all(target.codes is None for target in targets):
        raise InputError(f"{tuner.name}: ends is for even grids (int, zero_free, ternary), and no matrix is solved into one; drop it")
    if tuner.moves and not any(target.sums for target in targets):
        raise InputError(f"{tuner.name}: moves is for additive codebooks, and no matrix is solved into any; drop it")


def _inside(path: str, block: Block) -> bool:
    return path.startswith(block.path + ".")


def _plain(treatment: Treatment) -> dict[str, object]:
    parts = {
        "solver": treatment.solver,
        "target": treatment.target,
        "allocator": treatment.allocator,
        "heal": treatment.heal,
        "activation": treatment.activation,
    }
    return {key: {method.name: method.settings()} for key, method in parts.items() if method is not None}
