"""From a family's form and a model without weights to an `Anatomy`: one reader for every architecture.

Widths come from the modules, head counts from the config, names on disk from the name map. A module that the family declares and the model
lacks is left out; a linear whose values do not lie on disk as one matrix is left out and said in `missing`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from thrifty.base.anatomy import (
    Anatomy,
    Attention,
    Block,
    Commutes,
    Experts,
    Kind,
    Linear,
    Modulation,
    Norm,
    Part,
    Space,
    Stage,
    StateSpace,
)
from thrifty.models.diffusion import DiffusionConfig
from thrifty.models.experts import is_fused
from thrifty.models.infer import infer
from thrifty.models.names import NameMap
from thrifty.models.pieces import with_pieces
from thrifty.models.template import BlockForm, Family, ModulationForm, NormForm, SpaceForm, families, family_of

_SCALING_ACTIVATIONS = ("relu",)


@dataclass
class _Findings:
    """What is gathered while reading."""

    chains: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    embeddings: list[str] = field(default_factory=list)
    final_norms: list[Norm] = field(default_factory=list)
    inferred: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def lacks(self, path: str, what: str) -> None:
        """Say once for all blocks what could not be had."""
        note = f"{re.sub(r'[.][0-9]+(?=[.]|$)', '.*', path)}: {what}"
        if note not in self.missing:
            self.missing.append(note)


def describe_model(model: Any, names: NameMap, *, declared: bool = True) -> Anatomy:
    """The anatomy of a model whose parameters may be on the meta device.

    declared: use the declared family where there is one; False infers everything from the model itself.
    """
    findings = _Findings()
    core = model.base_model_prefix if isinstance(getattr(model, model.base_model_prefix or "-", None), nn.Module) else ""
    composition = family_of(model.config)
    family = composition if declared else None
    if composition is not None and composition.chains:
        for form in composition.chains:
            path = _join(core, form.module)
            own = families()[form.family] if form.family and declared else None
            _read_chain(model, names, path, form.name, declared, _used_blocks(model.config, form.hidden_state), findings, own)
    else:
        name = "vision" if _reads_pixels(model) else "text"
        _read_chain(model, names, core, family.chain if family else name, declared, None, findings)
    head = _head(model)
    return Anatomy(
        architecture=type(model).__name__,
        model_type=model.config.model_type,
        kind=(composition.kind if composition else None) or _kind(model),
        chains=tuple(findings.chains),
        blocks=tuple(findings.blocks),
        hidden_size=_hidden_size(findings, model.config),
        embeddings=tuple(findings.embeddings),
        head=head,
        tied=head is not None and f"{head}.weight" in names.tied,
        final_norms=tuple(findings.final_norms),
        inferred=tuple(findings.inferred),
        missing=tuple(findings.missing),
        library="diffusers" if isinstance(model.config, DiffusionConfig) else "transformers",
        shared=tuple(_join(core, item) for item in composition.shared) if composition else (),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _read_chain(
    model: Any, names: NameMap, core: str, chain: str, declared: bool, used: int | None, findings: _Findings, own: Family | None = None
) -> None:
    """Read the blocks of one chain below the module path `core`. own: their form, where the config there does not say."""
    inner = model.get_submodule(core)
    family = own or (family_of(inner.config) if declared else None)
    if used == 0:
        findings.lacks(core, "its blocks are read at several layers at once, so they are left as they are")
        return
    if family is not None:
        path = _join(core, family.blocks)
        forms: list[BlockForm] = [with_pieces(family, block) for block in model.get_submodule(path)]
        count = len(forms)
    else:
        inferred = infer(model, core)
        findings.inferred.extend(inferred.inferred)
        findings.missing.extend(inferred.missing)
        family, path, forms = inferred.family, inferred.path, inferred.forms
        count = len(forms)
    if not forms:
        return
    if used is not None and used < count:
        findings.missing.append(f"{path}.{used} and later: nothing reads what they put out, so they are left as they are")
        forms = forms[:used]
    findings.chains.append(chain)
    findings.embeddings.extend(_join(core, item) for item in family.embeddings if _module(model, _join(core, item)) is not None)
    findings.final_norms.extend(filter(None, (_norm(model, _join(core, form.path), form) for form in family.final_norms)))
    for index, form in enumerate(forms):
        reader = _BlockReader(model, names, _config_of(inner.config, index), f"{path}.{index}", form, findings)
        reader.leave(family.kept)
        findings.blocks.append(replace(reader.read(index, chain), carries=family.carries, returns=family.returns))


def _config_of(config: Any, index: int) -> Any:
    """The config of one block: that of the model, but where blocks differ in width."""
    return config.of_layer(index) if hasattr(config, "of_layer") else config


@dataclass
class _BlockReader:
    """Expands the form of one block."""

    model: Any
    names: NameMap
    config: Any
    path: str
    form: BlockForm
    findings: _Findings

    def __post_init__(self) -> None:
        self.routers = self._linears([("router", path) for path in self.form.routers])
        self.stages = [self._linears(stage.linears) for stage in self.form.stages]
        self.known = {linear.path: linear for group in (self.routers, *self.stages) for linear in group}
        plain = [form for form in self.form.norms if form.modulated is None]
        moved = [self._modulated(form.path, form.kind, form.modulated) for form in self.form.norms if form.modulated is not None]
        self.norms = tuple(filter(None, [*(_norm(self.model, self._full(form.path), form) for form in plain), *moved]))
        self.attention = self._attention()
        self.experts = self._experts()
        for path in self.form.untouched:
            self.findings.lacks(self._full(path), "used without being called, so its input cannot be seen; left as it is")

    def read(self, index: int, chain: str) -> Block:
        """The block, number `index` of its chain."""
        own = [self._expert(expert) for expert in range(self.experts.num_experts)] if self.experts else []
        spaces = {name: self._space(name, form, own) for name, form in self.form.spaces.items()}
        stages: list[Stage] = []
        for form, linears in zip(self.form.stages, self.stages, strict=True):
            if form.experts:
                stages.extend(stage for pair in own for stage in pair)
            elif linears and form.reads is not None:
                stages.append(Stage(spaces[form.reads], tuple(linears)))
        return Block(
            path=self.path,
            index=index,
            chain=chain,
            stages=tuple(stages),
            spaces=tuple(space for space in spaces.values() if space.consumers) + tuple(stage.reads for pair in own for stage in pair),
            norms=self.norms,
            attention=self.attention,
            experts=self.experts,
            state_space=self._state_space(),
            routers=tuple(self.routers),
        )

    def leave(self, kept: dict[str, tuple[str, ...]]) -> None:
        """Say which linears are left as they are, and why."""
        for reason, paths in kept.items():
            for path in paths:
                if _module(self.model, self._full(path)) is not None:
                    self.findings.lacks(self._full(path), reason)

    def _modulated(self, path: str, kind: Literal["rms", "layer"], form: ModulationForm) -> Norm | None:
        """A norm that a linear moves, where that adds a bias of its own."""
        linear = self.known.get(self._full(form.by))
        if linear is None or linear.bias_source is None or _module(self.model, self._full(path)) is None:
            return None
        width = linear.out_features // form.parts
        return Norm(self._full(path), kind, width, True, True, Modulation(linear.path, form.gain * width, form.shift * width))

    def _full(self, path: str) -> str:
        return _join(self.path, path)

    def _linears(self, entries: Any) -> list[Linear]:
        found = []
        for role, path in entries:
            module = _module(self.model, self._full(path))
            if module is None:
                continue
            linear = make_linear(self.names, self._full(path), role, module)
            if linear is None:
                self.findings.lacks(self._full(path), "does not lie on disk as a matrix of its own; left as it is")
            else:
                found.append(linear)
        return found

    def _space(self, name: str, form: SpaceForm, own: list[tuple[Stage, Stage]]) -> Space:
        present = [path for path in map(self._full, form.consumers) if _module(self.model, path) is not None]
        consumers = [path for path in present if path in self.known]
        if self.form.experts is not None and name == self.form.experts.input:
            consumers += [linear.path for stage, _ in own for linear in stage.linears]
        usable = [norm.path for norm in self.norms] + list(self.known)
        producers = tuple(path for path in map(self._full, form.producers) if path in usable)
        commutes = self._commutes(form) if len(present) == len([path for path in present if path in self.known]) else "none"
        width = next((linear.in_features for path in consumers for linear in self._all(own) if linear.path == path), 0)
        unit, size, repeat = self._unit(form, width)
        if commutes in ("scale", "any", "rotation") and not self._fits(producers, width, repeat):
            producers, commutes = (), "none"
        if commutes == "none":
            producers = ()
        shift = form.shifts and self._holds_shift(producers, consumers, commutes)
        normed = bool(producers) and set(producers) <= {norm.path for norm in self.norms}
        return Space(name, width, unit, size, producers, tuple(consumers), commutes, repeat, holds_shift=shift, normed=normed)

    def _holds_shift(self, producers: tuple[str, ...], consumers: list[str], commutes: Commutes) -> bool:
        """Whether a constant passes from the one producer's bias to the biases of all consumers: nothing lies between, or an average."""
        biased = {norm.path for norm in self.norms if norm.bias}
        if commutes == "any":
            biased |= {path for path, linear in self.known.items() if linear.bias_source}
        given_back = all(path in self.known and self.known[path].bias_source for path in consumers)
        return len(producers) == 1 and producers[0] in biased and given_back

    def _all(self, own: list[tuple[Stage, Stage]]) -> list[Linear]:
        return [*self.known.values(), *(linear for pair in own for stage in pair for linear in stage.linears)]

    def _commutes(self, form: SpaceForm) -> Commutes:
        if form.needs is not None and not getattr(self.config, form.needs, False):
            return "none"
        if form.unless is not None and getattr(self.config, form.unless, None):
            return "none"
        if form.commutes_with == "activation":
            activation = getattr(self.config, form.activation or "", None)
            return "scale" if activation in _SCALING_ACTIVATIONS else "permutation"
        return form.commutes_with

    def _fits(self, producers: tuple[str, ...], width: int, repeat: int) -> bool:
        """Whether every producer writes exactly this space, so that a rescaling can be folded into it."""
        widths = {norm.path: norm.width for norm in self.norms}
        written = [widths[path] if path in widths else self.known[path].out_features * repeat for path in producers]
        return bool(written) and all(item == width for item in written)

    def _unit(self, form: SpaceForm, width: int) -> tuple[Any, int, int]:
        if form.unit != "kv_group" or self.attention is None:
            return form.unit, 1, 1
        heads, groups, size = self.attention.num_heads, self.attention.num_key_value_heads, self.attention.head_dim
        if heads * size != width or heads % groups:
            return "channel", 1, 1
        repeat = heads // groups
        return ("kv_group", size * repeat, repeat) if repeat > 1 else ("head", size, 1)

    def _attention(self) -> Attention | None:
        if self.form.attention is None or _module(self.model, self._full(self.form.attention.path)) is None:
            return None
        heads = self.config.num_attention_heads
        groups = getattr(self.config, "num_key_value_heads", None) or heads
        size = getattr(self.config, "head_dim", None) or self.config.hidden_size // heads
        return Attention(self._full(self.form.attention.path), heads, groups, size)

    def _experts(self) -> Experts | None:
        form = self.form.experts
        module = _module(self.model, self._full(form.path)) if form else None
        if form is None or module is None:
            return None
        if not is_fused(module):
            self.findings.lacks(self._full(form.path), "its experts are held in a way that is not known; left as they are")
            return None
        count = module.gate_up_proj.shape[0]
        return Experts(self._full(form.path), count, getattr(self.config, form.per_token), self._full(form.router))

    def _expert(self, expert: int) -> tuple[Stage, Stage]:
        """The two stages of one expert: what it reads of the shared space, and its own neurons."""
        assert self.experts is not None and self.form.experts is not None
        prefix = f"{self.form.experts.path}.{expert}"
        gate, up, down = (self._expert_linear(expert, role) for role in ("gate", "up", "down"))
        view = Space(f"{prefix}.input", gate.in_features, consumers=(gate.path, up.path), within=self.form.experts.input)
        neurons = Space(f"{prefix}.hidden", down.in_features, "neuron", 1, (up.path,), (down.path,), "scale")
        return Stage(view, (gate, up)), Stage(neurons, (down,))

    def _expert_linear(self, expert: int, role: str) -> Linear:
        assert self.experts is not None
        module = self.model.get_submodule(self.experts.path)
        _, doubled, hidden = module.gate_up_proj.shape
        inner = doubled // 2
        out, into = (hidden, inner) if role == "down" else (inner, hidden)
        path = f"{self.experts.path}.{expert}.{role}_proj"
        fused = f"{self.experts.path}.{'down_proj' if role == 'down' else 'gate_up_proj'}"
        position = 1 if role == "up" else 0
        whole = self.names.disk_name(fused)
        if whole is not None:
            part = Part(expert, position * inner, position * inner + out)
            return Linear(path, role, out, into, whole, None, "fused", part, expert)
        own = self.names.expert_key(fused, expert, position)
        return Linear(path, role, out, into, own or "", expert=expert)

    def _state_space(self) -> StateSpace | None:
        form = self.form.state_space
        if form is None or _module(self.model, self._full(form.path)) is None:
            return None
        reader = self._full(form.inner)
        places = (reader, f"{reader}.down")  # the second where two matrices stand in its place
        inner = next(linear.in_features for linear in self.known.values() if linear.path in places)
        heads = getattr(self.config, form.num_heads) if form.num_heads else 0
        return StateSpace(self._full(form.path), self.config.state_size, inner, heads)


def make_linear(names: NameMap, path: str, role: str, module: nn.Module) -> Linear | None:
    """The description of a module that multiplies by a matrix; None when that matrix does not lie on disk as one."""
    source = names.disk_name(f"{path}.weight")
    if source is None:
        return None
    transposed = isinstance(module, Conv1D)
    rows, columns = module.weight.shape
    out, into = (columns, rows) if transposed else (rows, columns)
    bias = names.disk_name(f"{path}.bias") if getattr(module, "bias", None) is not None else None
    return Linear(path, role, out, into, source, bias, "conv1d" if transposed else "linear")


def _norm(model: Any, path: str, form: NormForm) -> Norm | None:
    module = _module(model, path)
    weight = getattr(module, "weight", None)
    if weight is None:
        return None
    return Norm(path, form.kind, weight.shape[0], form.plus_one, getattr(module, "bias", None) is not None)


def _module(model: Any, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _used_blocks(config: Any, attribute: str | None) -> int | None:
    """How many blocks lie below the hidden state that the config attribute names; None for all, 0 where several are named."""
    if attribute is None:
        return None
    layer = getattr(config, attribute)
    if not isinstance(layer, int):
        return 0
    return layer if layer >= 0 else config.vision_config.num_hidden_layers + 1 + layer


def _reads_pixels(model: Any) -> bool:
    return model.main_input_name == "pixel_values"


def _kind(model: Any) -> Kind:
    name = type(model).__name__
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal_lm"
    if name.endswith(("ForMaskedLM", "ForPreTraining")):
        return "masked_lm"
    return "vision" if _reads_pixels(model) else "other"


def _head(model: Any) -> str | None:
    head = model.get_output_embeddings() or getattr(model, "classifier", None)
    return next((path for path, module in model.named_modules() if module is head), None) if head is not None else None


def _hidden_size(findings: _Findings, config: Any) -> int:
    text = [block for block in findings.blocks if block.chain == "text"] or findings.blocks
    if text and text[0].stages:
        return text[0].stages[0].reads.width
    return getattr(config, "hidden_size", 0)
