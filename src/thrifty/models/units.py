"""Which parts of a block can be cut out one by one, and which entries of which tensors go with each: the dependency model.

    neurons   of an MLP, plain, gated or fused: rows of what writes them, columns of what reads them, and their biases
    heads     a head of keys and values with the query heads that share it: rows of q, k and v, columns of o; norms of one head stay
    experts   everything of an expert, and its row of the router
    channels  of a Mamba mixer: both halves of its input projection, convolution, time step, scan and output
    states    of a Mamba or Mamba-2 mixer: the rows that make B and C, and the decay of each channel

Removing units equals switching them off: that is what makes them units. Where it would not (a norm that averages over all of them, a tensor
that nobody knows the meaning of), they are left out and a sentence says why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from thrifty.base.anatomy import Block, Linear, Member, Space, Units
from thrifty.models.source import Source

Runs = tuple[tuple[int, int], ...]

_WRITES_NEURONS = ("gate", "up", "gate_up", "fc1")
_READS_NEURONS = ("down", "fc2")


@dataclass
class Found:
    """Units that can be cut, and one sentence for each kind of unit that cannot."""

    units: list[Units] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def units_of(source: Source, block: Block) -> Found:
    """The units of a block, those of its experts included."""
    return _Reader(source, block).read()


class _Lacks(Exception):
    """Says in one sentence why some units cannot be cut."""


@dataclass
class _Reader:
    source: Source
    block: Block

    def __post_init__(self) -> None:
        self.linears = {linear.path: linear for linear in (*self.block.linears, *self.block.routers)}
        self.found = Found()
        self.names = self._names()

    def _names(self) -> list[str]:
        """Names of every parameter of the block in the model."""
        module = self.source.hollow_block(self.block, self.source.dtype)
        return [f"{self.block.path}.{name}" for name in module.state_dict()]

    def read(self) -> Found:
        for space in self.block.spaces:
            readers = [self.linears[path] for path in space.consumers if path in self.linears]
            roles = {linear.role for linear in readers}
            if len(readers) == 1 and roles <= set(_READS_NEURONS):
                self._try(self._neurons, space, readers[0])
            elif len(readers) == 1 and roles == {"o"} and self.block.attention is not None:
                self._try(self._heads, space, readers[0])
        if self.block.experts is not None:
            self._try(self._experts)
        if self.block.state_space is not None:
            self._try(self._mamba2 if self.block.state_space.num_heads else self._mamba)
        return self.found

    def _try(self, reader: Any, *arguments: Any) -> None:
        try:
            reader(*arguments)
        except _Lacks as error:
            self._say(str(error))

    def _say(self, sentence: str) -> None:
        """The same for each block of a model: without the block's number."""
        self.found.missing.append(sentence.replace(f"{self.block.path}.", f"{self.block.path.rpartition('.')[0]}.*."))

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _rows(self, linear: Linear, runs: Runs, *, reads: bool = False) -> list[Member]:
        """The rows of a matrix, and the entries of its bias."""
        dim = 1 if linear.storage == "conv1d" else 0
        offset, expert = (linear.part.start, linear.part.expert) if linear.part else (0, None)
        members = [Member(linear.source, dim, runs, reads, linear.path, "rows", expert, offset)]
        if linear.bias_source is not None:
            members.append(Member(linear.bias_source, 0, runs, reads, linear.path, "bias"))
        return members

    def _columns(self, linear: Linear, runs: Runs) -> Member:
        dim = 0 if linear.storage == "conv1d" else 1
        expert = linear.part.expert if linear.part else None
        return Member(linear.source, dim, runs, True, linear.path, "columns", expert)

    def _other(self, name: str, dim: int, runs: Runs, *, reads: bool = False) -> list[Member]:
        """A tensor that is no linear's; an empty list where the block has none of this name."""
        if name not in self.names:
            return []
        key = self.source.disk_name(name)
        if key is None:
            raise _Lacks(f"{name} does not lie on disk as one tensor, so nothing that it belongs to can be cut")
        return [Member(key, dim, runs, reads)]

    def _alike(self, space: str) -> str:
        return f"{self.block.chain}:{re.sub(r'[.][0-9]+[.]', '.', space)}"

    # -- neurons and heads ---------------------------------------------------------------------------------------------

    def _neurons(self, space: Space, reader: Linear) -> None:
        parent = reader.path.rpartition(".")[0]
        width = reader.in_features
        writers = [self.linears[path] for path in space.producers if path in self.linears]
        known = {linear.path for linear in writers}
        for linear in self.linears.values():
            if linear.path.rpartition(".")[0] == parent and linear.role in _WRITES_NEURONS and linear.path not in known:
                writers.append(linear)
        members = [self._columns(reader, ((0, 1),))]
        for linear in writers:
            halves = 2 if linear.role == "gate_up" else 1
            if linear.out_features != halves * width:
                raise _Lacks(f"{linear.path} has {linear.out_features} outputs for {width} neurons, so neurons cannot be cut")
            members += self._rows(linear, tuple((half * width, 1) for half in range(halves)))
        if not writers:
            raise _Lacks(f"nothing is known to write the neurons that {reader.path} reads, so they cannot be cut")
        self.found.units.append(Units(space, "neurons", width, tuple(members), self._alike(space.name)))

    def _heads(self, space: Space, reader: Linear) -> None:
        attention = self.block.attention
        assert attention is not None
        heads, groups, size = attention.num_heads, attention.num_key_value_heads, attention.head_dim
        inside = [linear for linear in self.linears.values() if linear.path.startswith(attention.path + ".")]
        by_role = {linear.role: linear for linear in inside}
        if reader.in_features != heads * size or heads % groups:
            raise _Lacks(f"{reader.path} does not read {heads} heads of {size}, so heads cannot be cut")
        shared = size * (heads // groups)
        wanted = {"q": ((0, shared),), "k": ((0, size),), "v": ((0, size),)}
        if "qkv" in by_role:
            wanted = {"qkv": ((0, shared), (heads * size, size), ((heads + groups) * size, size))}
        members = [self._columns(reader, ((0, shared),))]
        for role, runs in wanted.items():
            linear = by_role.get(role)
            rows = sum(groups * each for _, each in runs)
            if linear is None or linear.out_features != rows:
                lacking = f"{attention.path} has no {role} projection of {rows} outputs"
                raise _Lacks(f"{lacking}, so its heads cannot be cut")
            members += self._rows(linear, runs)
        self._check_attention(attention.path, size, {member.source for member in members})
        self.found.units.append(Units(space, "heads", groups, tuple(members), self._alike(space.name)))

    def _check_attention(self, path: str, size: int, known: set[str]) -> None:
        """Refuse attention with a tensor that belongs to its heads in a way that is not known, or to all of them at once."""
        norms = {norm.path: norm for norm in self.block.norms}
        for name in self.names:
            owner = name.rpartition(".")[0]
            if not name.startswith(path + ".") or self.source.disk_name(name) in known | self._outputs(path):
                continue
            if owner in norms and norms[owner].width != size:
                raise _Lacks(f"{owner} averages over all heads at once, so removing a head would change the others")
            if owner not in norms:
                raise _Lacks(f"{name} belongs to the heads in a way that is not known, so heads cannot be cut")

    def _outputs(self, path: str) -> set[str | None]:
        """Biases that are added after the heads are mixed."""
        return {linear.bias_source for linear in self.linears.values() if linear.role == "o" and linear.path.startswith(path + ".")}

    # -- experts -------------------------------------------------------------------------------------------------------

    def _experts(self) -> None:
        experts = self.block.experts
        assert experts is not None
        count = experts.num_experts
        routers = [linear for linear in self.block.routers if linear.path == experts.router]
        if not routers or routers[0].out_features != count:
            raise _Lacks(f"{experts.router} has no row for each of {count} experts, so experts cannot be cut")
        members = self._rows(routers[0], ((0, 1),))
        known = {member.source for member in members}
        beside = [name for name in self.names if name.startswith(experts.router + ".") and self.source.disk_name(name) not in known]
        if beside:
            raise _Lacks(f"{beside[0]} belongs to the experts in a way that is not known, so experts cannot be cut")
        owned: list[tuple[str, ...]] = []
        for expert in range(count):
            mine = [linear for linear in self.block.linears if linear.expert == expert]
            for key in dict.fromkeys(linear.source for linear in mine if linear.part is not None):
                if expert == 0:
                    members.append(Member(key, 0, ((0, 1),)))
            owned.append(tuple(linear.source for linear in mine if linear.part is None))
        name = experts.path.removeprefix(self.block.path + ".")
        space = Space(name, count, "expert", 1, (), (experts.router,))
        self.found.units.append(
            Units(space, "experts", count, tuple(members), self._alike(name), tuple(owned) if owned[0] else (), experts.experts_per_token)
        )

    # -- state spaces --------------------------------------------------------------------------------------------------

    def _mixer(self) -> tuple[str, int, int, dict[str, Linear]]:
        space = self.block.state_space
        assert space is not None
        return space.path, space.inner_size, space.state_size, {linear.role: linear for linear in self.linears.values()}

    def _mamba(self) -> None:
        path, inner, states, by_role = self._mixer()
        if not {"in_proj", "x_proj", "out_proj"} <= by_role.keys() or by_role["in_proj"].out_features != 2 * inner:
            raise _Lacks(f"{path} is not made of the projections of a Mamba mixer, so nothing of it can be cut")
        rank = by_role["x_proj"].out_features - 2 * states
        one: Runs = ((0, 1),)
        members = self._rows(by_role["in_proj"], ((0, 1), (inner, 1)))
        members += [self._columns(by_role["x_proj"], one), self._columns(by_role["out_proj"], one)]
        for name in ("conv1d.weight", "conv1d.bias", "dt_proj.weight", "dt_proj.bias", "A_log", "D"):
            members += self._other(f"{path}.{name}", 0, one)
        space = next(space for space in self.block.spaces if by_role["out_proj"].path in space.consumers)
        self.found.units.append(Units(space, "channels", inner, tuple(members), self._alike(space.name)))
        states_members = self._rows(by_role["x_proj"], ((rank, 1),)) + self._rows(by_role["x_proj"], ((rank + states, 1),), reads=True)
        self._states(path, states, states_members + self._other(f"{path}.A_log", 1, one))

    def _mamba2(self) -> None:
        """Rows of the input projection: gate, inputs, B and C of each group, time steps. The convolution runs over inputs, B and C."""
        path, inner, states, by_role = self._mixer()
        space = self.block.state_space
        assert space is not None
        projection = by_role.get("in_proj")
        groups, left = divmod((projection.out_features if projection else 0) - 2 * inner - space.num_heads, 2 * states)
        if projection is None or left or groups < 1:
            raise _Lacks(f"{path} is not made of the projections of a Mamba-2 mixer, so nothing of it can be cut")
        first, second = (tuple(((part * groups + group) * states, 1) for group in range(groups)) for part in (0, 1))
        members: list[Member] = []
        for runs, reads in ((first, False), (second, True)):
            members += self._rows(projection, tuple((2 * inner + start, size) for start, size in runs), reads=reads)
            for name in ("conv1d.weight", "conv1d.bias"):
                members += self._other(f"{path}.{name}", 0, tuple((inner + start, size) for start, size in runs), reads=reads)
        self._states(path, states, members)
        self._say(f"{path}.norm averages over all heads at once, so removing a head would change the others")

    def _states(self, path: str, states: int, members: list[Member]) -> None:
        name = f"{path.removeprefix(self.block.path + '.')}.states"
        space = Space(name, states, "state")
        self.found.units.append(Units(space, "states", states, tuple(members), self._alike(name)))
