"""Families of architectures as data: the form of the files in `families/`.

A file describes the blocks of one family once, with module paths relative to a block; `anatomy.py` expands it with a model's own widths.
A family may also be a composition of several (an image encoder and a text decoder), each described by its own file.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from thrifty.base.anatomy import Commutes, Kind


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModulationForm(_Form):
    """The linear whose outputs, in so many equal `parts`, hold the gain and the shift of a norm; counted from 0."""

    by: str
    parts: int
    gain: int
    shift: int


class NormForm(_Form):
    """A norm, by path."""

    path: str
    kind: Literal["rms", "layer"]
    plus_one: bool = False
    modulated: ModulationForm | None = None


class SpaceForm(_Form):
    """A space. Producers and consumers that a model lacks are left out.

    commutes_with `activation`: `scale` where the activation named by the config attribute `activation` is ReLU, else `permutation`.
    needs, unless: config attributes that must, or must not, be true for the space to commute with anything.
    unit `kv_group`: the channels of the query heads that share one value head.
    shifts: whether a constant passes through, as through an average; False where that is not known.
    """

    unit: Literal["channel", "kv_group", "neuron"] = "channel"
    producers: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    commutes_with: Commutes | Literal["activation"] = "none"
    activation: str | None = None
    needs: str | None = None
    unless: str | None = None
    shifts: bool = True


class StageForm(_Form):
    """Linears that share one input, as (role, path); or the place where the experts run."""

    reads: str | None = None
    linears: tuple[tuple[str, str], ...] = ()
    experts: bool = False


class AttentionForm(_Form):
    """Where the attention is; its head counts stand in the config under their usual names."""

    path: str


class ExpertsForm(_Form):
    """Where the experts are, the space they all read, the router, and the config attribute that tells how many see a token."""

    path: str
    input: str
    router: str
    per_token: str


class StateSpaceForm(_Form):
    """Where the state-space mixer is, and the linear whose input is its inner width."""

    path: str
    inner: str
    num_heads: str | None = None


class ChainForm(_Form):
    """One member of a composition. hidden_state: config attribute that tells which layer's hidden state the next member reads.

    family: the form of its blocks, where its own config does not say.
    """

    name: str
    module: str
    hidden_state: str | None = None
    family: str | None = None


class BlockForm(_Form):
    """What one block is made of."""

    norms: tuple[NormForm, ...] = ()
    attention: AttentionForm | None = None
    experts: ExpertsForm | None = None
    routers: tuple[str, ...] = ()
    state_space: StateSpaceForm | None = None
    untouched: tuple[str, ...] = ()
    spaces: dict[str, SpaceForm] = {}
    stages: tuple[StageForm, ...] = ()


class Family(BlockForm):
    """A family: one chain of blocks, or a composition of chains.

    carries, returns: see `anatomy.Block`. shared: modules inside blocks that the model uses outside of them, too. kept: linears of a block
    that are left as they are, by the reason in words.
    """

    model_types: tuple[str, ...]
    kind: Kind | None = None
    chain: str = "text"
    chains: tuple[ChainForm, ...] = ()
    blocks: str = ""
    embeddings: tuple[str, ...] = ()
    final_norms: tuple[NormForm, ...] = ()
    carries: tuple[str, ...] = ()
    returns: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    kept: dict[str, tuple[str, ...]] = {}


@cache
def families() -> dict[str, Family]:
    """Every declared family, by model type."""
    found = {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, a tenth of the time, where it was built along
    for file in sorted((Path(__file__).parent / "families").glob("*.yaml")):
        family = Family.model_validate(yaml.load(file.read_text(), Loader=loader))
        found.update(dict.fromkeys(family.model_types, family))
    return found


def family_of(config: Any) -> Family | None:
    """The declared family of a model; that of the original for one whose blocks differ in width."""
    outline = getattr(config, "uneven", None) or {}
    return families().get(outline.get("model_type", config.model_type))
