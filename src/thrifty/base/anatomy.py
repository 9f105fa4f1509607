"""What a model is made of, as data: no tensors, no modules, only names, widths and roles.

Every method reads this description instead of asking which architecture it has before it. `models/` writes it.
Paths are module paths in memory (`model.layers.0.self_attn.q_proj`); `source` holds the names on disk, which may differ.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

Commutes = Literal["none", "scale", "permutation", "rotation", "any"]
UnitKind = Literal["neurons", "heads", "experts", "channels", "states"]
Kind = Literal["causal_lm", "masked_lm", "vision", "dual_encoder", "vision_language", "diffusion", "other"]
Library = Literal["transformers", "diffusers"]
STEMS: dict[Library, str] = {"transformers": "model", "diffusers": "diffusion_pytorch_model"}
"""What a library calls the files that hold weights."""


@dataclass(frozen=True)
class Modulation:
    """What stands in place of a norm's weight and bias: outputs of a linear, `gain` and `shift` where those of the norm's width begin.

    The norm multiplies by one plus the former and adds the latter, which differ from row to row.
    """

    linear: str
    gain: int
    shift: int


@dataclass(frozen=True)
class Norm:
    """A normalization: `rms` or `layer`; `plus_one` multiplies by (1 + weight), as Gemma does.

    modulation: where weight and bias are made by a linear of the block.
    """

    path: str
    kind: Literal["rms", "layer"]
    width: int
    plus_one: bool = False
    bias: bool = False
    modulation: Modulation | None = None


@dataclass(frozen=True)
class Part:
    """The slice of a fused parameter that one linear is: `parameter[expert, start:stop]` (rows are outputs)."""

    expert: int
    start: int
    stop: int


@dataclass(frozen=True)
class Linear:
    """One matrix `y = x W^T + b`, wherever and however it is stored.

    path: module path, unique in the model. An expert inside a fused 3-D parameter gets the path it would have as a module
        (`model.layers.0.mlp.experts.3.gate_proj`).
    role: what it does: q, k, v, qkv, o, gate, up, gate_up, down, fc1, fc2, in_proj, x_proj, dt_proj, out_proj, router, other.
    source: safetensors key of its weight on disk; `bias_source` that of its bias, or None.
    storage: `linear` is [out, in] on disk, `conv1d` is [in, out] (GPT-2), `fused` is a part of a 3-D parameter on disk.
    """

    path: str
    role: str
    out_features: int
    in_features: int
    source: str
    bias_source: str | None = None
    storage: Literal["linear", "conv1d", "fused"] = "linear"
    part: Part | None = None
    expert: int | None = None


@dataclass(frozen=True)
class Space:
    """A dimension that values flow through between matrices: who writes it, who reads it, and what may be done to it.

    unit, unit_size: the smallest piece that can be moved or cut as one (a head of `head_dim` channels, one neuron).
    producers: paths of the norm or the linears that write it, where a rescaling could be folded in; empty if there is none.
    consumers: paths of every module that reads it (a router too), all of which must be rescaled together.
    commutes_with: the largest class of maps that can be moved from producers to consumers without changing the function.
    repeat: channels of the consumer side per channel of the producer side (query heads sharing one value head).
    holds_shift: whether a constant can be taken off what is written here and made up for: one producer and all consumers have a bias.
    normed: whether a normalization alone writes it.
    within: for an expert's own view of a shared space, the name of that space.
    """

    name: str
    width: int
    unit: Literal["channel", "head", "kv_group", "neuron", "expert", "state"] = "channel"
    unit_size: int = 1
    producers: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    commutes_with: Commutes = "none"
    repeat: int = 1
    within: str | None = None
    holds_shift: bool = False
    normed: bool = False


@dataclass(frozen=True)
class Stage:
    """Linears that read one space: one input, one Gram matrix, one batch of problems."""

    reads: Space
    linears: tuple[Linear, ...]


@dataclass(frozen=True)
class Attention:
    """Head counts of a block's attention."""

    path: str
    num_heads: int
    num_key_value_heads: int
    head_dim: int


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: the module that holds them, how many there are and how many see a token."""

    path: str
    num_experts: int
    experts_per_token: int
    router: str


@dataclass(frozen=True)
class StateSpace:
    """A state-space mixer (Mamba, Mamba-2)."""

    path: str
    state_size: int
    inner_size: int
    num_heads: int = 0


@dataclass(frozen=True)
class Block:
    """One repeated layer. Stages stand in the order in which the forward pass reaches them.

    chain: blocks of one chain feed each other (a text decoder; a vision tower is a chain of its own).
    spaces: every space of the block, the shared ones of experts included.
    routers: linears that only choose experts; they are never compressed, but read a space.
    carries: arguments of the block that differ from row to row besides the hidden states (time steps, embeddings of a text). returns: what
        it puts out, in order, where that is more than the hidden states.
    """

    path: str
    index: int
    chain: str
    stages: tuple[Stage, ...]
    spaces: tuple[Space, ...]
    norms: tuple[Norm, ...] = ()
    attention: Attention | None = None
    experts: Experts | None = None
    state_space: StateSpace | None = None
    routers: tuple[Linear, ...] = ()
    carries: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Every compressible linear of the block, in stage order."""
        return tuple(linear for stage in self.stages for linear in stage.linears)


@dataclass(frozen=True)
class Member:
    """Where the units of a space lie in one tensor on disk.

    source: its key. dim: the dimension that counts units (of `tensor[expert]`, where `expert` is given). runs: (start, size) each; unit u
        owns the entries from start + u * size up to start + (u + 1) * size of every run. What lies in no run belongs to no unit.
    reads: whether a unit has no effect on anything once its entries in all members that read are zero.
    linear, side: the linear that this is a matrix or the bias of, and what the units are in its matrix [out, in]; None for other tensors.
    offset: where that matrix begins along `dim` in a tensor that holds several.
    """

    source: str
    dim: int
    runs: tuple[tuple[int, int], ...]
    reads: bool = False
    linear: str | None = None
    side: Literal["rows", "columns", "bias"] | None = None
    expert: int | None = None
    offset: int = 0


@dataclass(frozen=True)
class Units:
    """The parts of a block that can be cut out one by one: neurons, groups of heads, experts, channels and states of a mixer.

    space: the dimension that they make up. count: how many there are. members: every tensor that holds entries of them.
    owned: the keys of tensors that belong to one unit alone, by unit, in the same order for each (experts that lie on disk one by one).
    alike: a name that units of other blocks share where the architecture's config has one number for all of them.
    least: how many must stay.
    """

    space: Space
    kind: UnitKind
    count: int
    members: tuple[Member, ...]
    alike: str
    owned: tuple[tuple[str, ...], ...] = ()
    least: int = 1


@dataclass(frozen=True)
class Anatomy:
    """A whole model. `inferred` says what was worked out rather than declared, `missing` what no method may rely on.

    library: whose class it is. shared: modules inside blocks that the model uses outside of them, too.
    """

    architecture: str
    model_type: str
    kind: Kind
    chains: tuple[str, ...]
    blocks: tuple[Block, ...]
    hidden_size: int
    embeddings: tuple[str, ...] = ()
    head: str | None = None
    tied: bool = False
    final_norms: tuple[Norm, ...] = ()
    inferred: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    parameters: int = 0
    library: Library = "transformers"
    shared: tuple[str, ...] = ()

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Every compressible linear of the model."""
        return tuple(linear for block in self.blocks for linear in block.linears)

    def to_json(self) -> dict[str, Any]:
        """The description as plain JSON values."""
        return asdict(self)
