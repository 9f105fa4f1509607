"""The anatomy of an architecture that nobody described: found by running it.

The blocks are the largest list of modules. The model is run once, without its blocks and with made-up values around them, to learn what
each block is called with; one random copy of every kind of block is then watched and probed on the CPU. What comes out is a form like
those in `families/`, and a list in words of what was worked out and what could not be.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.base.anatomy import Anatomy, Block
from thrifty.models.blocks import Call, get_weight, tensors_of
from thrifty.models.experts import Experts
from thrifty.models.probes import Probe
from thrifty.models.shell import Shell
from thrifty.models.template import AttentionForm, BlockForm, ExpertsForm, Family, NormForm, SpaceForm, StageForm, StateSpaceForm
from thrifty.models.trace import Specimen, Watched, is_linear, is_norm, norm_traits, random_block, specimen, watch

_ROLES = {
    **dict.fromkeys(("q_proj", "query", "q", "q_lin"), "q"),
    **dict.fromkeys(("k_proj", "key", "k", "k_lin"), "k"),
    **dict.fromkeys(("v_proj", "value", "v", "v_lin"), "v"),
    **dict.fromkeys(("o_proj", "out_proj", "dense", "c_proj", "out_lin", "Wo"), "o"),
    **dict.fromkeys(("c_attn", "qkv_proj", "qkv", "query_key_value", "Wqkv"), "qkv"),
    **dict.fromkeys(("gate_proj", "w1"), "gate"),
    **dict.fromkeys(("up_proj", "w3"), "up"),
    **dict.fromkeys(("down_proj", "w2"), "down"),
    **dict.fromkeys(("gate_up_proj",), "gate_up"),
    **dict.fromkeys(("fc1", "c_fc", "dense_h_to_4h", "lin1", "Wi"), "fc1"),
    **dict.fromkeys(("fc2", "dense_4h_to_h", "lin2"), "fc2"),
    **dict.fromkeys(("in_proj",), "in_proj"),
    **dict.fromkeys(("x_proj",), "x_proj"),
    **dict.fromkeys(("dt_proj",), "dt_proj"),
}
_LARGE = 1 << 20
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "top_k")


@dataclass
class Inferred:
    """The form of every block, where the blocks are, and what to tell the user."""

    family: Family
    path: str = ""
    forms: list[BlockForm] = field(default_factory=list)
    inferred: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def infer(model: Any, core: str) -> Inferred:
    """Work out the blocks below the module path `core` of a model whose parameters are on the meta device."""
    inner = model.get_submodule(core)
    empty = Family(model_types=(inner.config.model_type,))
    path = _find_blocks(model, core)
    if path is None:
        return Inferred(empty, missing=[f"{core or type(model).__name__}: no list of repeated blocks was found; nothing can be compressed"])
    blocks = model.get_submodule(path)
    found = Inferred(empty, path)
    found.inferred.append(f"blocks: {path}, {len(blocks)} of {', '.join(sorted({type(block).__name__ for block in blocks}))}")
    prefix = f"{core}." if core else ""
    found.missing.extend(f"{other}: a second list of blocks; left as it is" for other in _outer_lists(model, core) if other != path)
    try:
        calls, after = _record(inner, path.removeprefix(prefix), len(blocks))
        _check_broadcast(inner, path.removeprefix(prefix), len(blocks), calls)
    except Exception as error:
        # Whatever an unknown model raises on made-up inputs, the answer is the same: it cannot be described.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        found.missing.append(f"{path}: the model could not be run to see what its blocks do ({reason}); nothing can be compressed")
        return found
    found.family = _around(inner, path.removeprefix(prefix), after)
    known: dict[str, BlockForm] = {}
    for index, block in enumerate(blocks):
        signature = _signature(block)
        if signature not in known:
            known[signature] = _read_block(block, calls[f"{path}.{index}".removeprefix(prefix)], inner.config, f"{path}.{index}", found)
        found.forms.append(known[signature])
    return found


def _outer_lists(model: Any, core: str) -> list[str]:
    """Paths of the lists of modules that lie in no other list and hold parameters."""
    modules = [(path, module) for path, module in model.named_modules() if path.startswith(core)]
    lists = [path for path, module in modules if isinstance(module, nn.ModuleList) and next(module.parameters(), None) is not None]
    return [path for path in lists if not any(path.startswith(other + ".") for other in lists)]


def _find_blocks(model: Any, core: str) -> str | None:
    """The path of the outermost list of modules that holds most parameters."""
    sizes = {path: sum(parameter.numel() for parameter in model.get_submodule(path).parameters()) for path in _outer_lists(model, core)}
    return max(sizes, key=lambda path: sizes[path], default=None)


def _record(inner: Any, path: str, count: int, rows: int = 1) -> tuple[dict[str, tuple[Call, Tensor]], list[str]]:
    """(what each block is called with, and its hidden states; the norms called after the last block). Paths are inside `inner`."""
    around = copy.deepcopy(inner)
    paths = [f"{path}.{index}" for index in range(count)]
    _fill(around, path)
    after: list[str] = []
    hidden: dict[str, Tensor] = {}
    for name, module in around.named_modules():
        if is_norm(module) and not name.startswith(path + "."):
            module.register_forward_hook(lambda _, __, ___, name=name: after.append(name))
    for name in paths:
        module = around.get_submodule(name)
        module.register_forward_hook(lambda _, __, out, name=name: _note(hidden, after, name, out))
    blocks = tuple(Block(name, index, "chain", (), ()) for index, name in enumerate(paths))
    shell = Shell(
        around,
        Anatomy(type(inner).__name__, inner.config.model_type, "other", ("chain",), blocks, 0),
        lambda block: random_block(inner.get_submodule(block.path)),
        "cpu",
    )
    calls = shell.calls(_inputs(inner, rows), {}, rows)
    return {name: (calls[name], hidden[name]) for name in paths}, after


def _note(hidden: dict[str, Tensor], after: list[str], name: str, out: Any) -> None:
    """A stand-in puts out what it was given."""
    hidden[name] = out[0] if isinstance(out, tuple | list) else out
    after.clear()


def _fill(around: nn.Module, path: str) -> None:
    """Values for everything outside the blocks. Large matrices get one value that is repeated without taking memory."""
    generator = torch.Generator().manual_seed(0)
    for name, module in around.named_modules():
        if name.startswith(path + "."):
            continue
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            small = parameter.numel() <= _LARGE
            values = torch.randn(parameter.shape, generator=generator) if small else torch.full((), 0.02).expand(parameter.shape)
            module._parameters[leaf] = nn.Parameter(values, requires_grad=False)
        for leaf, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                module._buffers[leaf] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def _check_broadcast(inner: Any, path: str, count: int, calls: dict[str, tuple[Call, Tensor]]) -> None:
    """Refuse blocks that get a tensor with entries for every row and head at once: what one row was called with fits no other number."""
    twice, _ = _record(inner, path, count, rows=2)
    for name, (call, _) in calls.items():
        single, double = _shapes(call), _shapes(twice[name][0])
        if any(one[:1] != two[:1] and one[:1] != (1,) for one, two in zip(single, double, strict=False)):
            raise ValueError(f"what {name} is called with depends on the number of rows")


def _shapes(call: Call) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors_of(call)]


def _inputs(model: Any, rows: int) -> dict[str, Tensor]:
    """Rows of made-up inputs: one image each, or eight tokens."""
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {"pixel_values": torch.randn(rows, getattr(model.config, "num_channels", 3), height, width, generator=generator)}
    return {"input_ids": torch.arange(3, 11).expand(rows, 8) % model.config.get_text_config().vocab_size}


def _around(inner: Any, path: str, after: list[str]) -> Family:
    """Embeddings and final norms, by path inside `inner`."""
    outside = [(name, module) for name, module in inner.named_modules() if not name.startswith(path + ".")]
    embeddings = [name for name, module in outside if isinstance(module, nn.Embedding | nn.Conv2d)]
    forms = [_norm_form(_real_norm(inner.get_submodule(name)), name) for name in dict.fromkeys(after)]
    norms = tuple(form for form in forms if form is not None)
    return Family(model_types=(inner.config.model_type,), embeddings=tuple(embeddings), final_norms=norms)


def _real_norm(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to_empty(device="cpu")


def _signature(block: nn.Module) -> str:
    parts = [f"{name}:{type(module).__name__}" for name, module in block.named_modules()]
    return " ".join(parts + [f"{name}:{tuple(parameter.shape)}" for name, parameter in block.named_parameters()])


def _read_block(block: nn.Module, recorded: tuple[Call, Tensor], config: Any, path: str, found: Inferred) -> BlockForm:
    call, hidden = recorded
    try:
        subject = specimen(block, call, hidden)
        watched = watch(subject)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        found.missing.append(f"{path}: a random copy of this block could not be run ({reason}); left as it is")
        return BlockForm()
    return _BlockInference(subject, watched, config, path, found).form()


@dataclass
class _BlockInference:
    """Turns what was watched in one block into its form."""

    subject: Specimen
    watched: Watched
    config: Any
    path: str
    found: Inferred

    def __post_init__(self) -> None:
        self.norms = self._norms()
        self.probe = Probe(self.subject)
        self.experts = next((path for path, module in self.subject.module.named_modules() if isinstance(module, Experts)), None)
        self.shared_key = self.watched.reads.get(self.experts) if self.experts else None
        self.routers = self._routers()
        self.heads = getattr(self.config, "num_attention_heads", None)

    def form(self) -> BlockForm:
        """The form of the block."""
        spaces: dict[str, SpaceForm] = {}
        stages: list[StageForm] = []
        order = list(dict.fromkeys(self.watched.reads.values()))
        groups = {key: [path for path in self.watched.reads if self.watched.reads[path] == key] for key in order}
        for key, readers in groups.items():
            linears = [path for path in readers if path not in self.routers and path != self.experts]
            name = "experts.input" if key == self.shared_key else f"{(linears or readers)[0]}.input"
            spaces[name] = self._space(key, [path for path in readers if path != self.experts])
            if linears:
                stages.append(StageForm(reads=name, linears=tuple((self._role(path), path) for path in linears)))
        if self.experts is not None:
            stages.append(StageForm(experts=True))
        self._say_uncovered()
        return BlockForm(
            norms=tuple(self.norms.values()),
            attention=self._attention(),
            experts=self._experts_form(),
            routers=tuple(self.routers),
            state_space=self._state_space(),
            untouched=self._untouched(),
            spaces=spaces,
            stages=tuple(stages),
        )

    def _norms(self) -> dict[str, NormForm]:
        norms = {}
        for path, module in self.subject.module.named_modules():
            if is_norm(module):
                form = _norm_form(copy.deepcopy(module), path)
                if form is None:
                    self.found.missing.append(f"{self.path}.{path}: neither a layer norm nor an RMS norm; not rescaled")
                    continue
                norms[path] = form
                one = ", multiplies by one plus its weight" if form.plus_one else ""
                self.found.inferred.append(f"{self.path}.{path}: {form.kind} norm{one}")
        return norms

    def _routers(self) -> tuple[str, ...]:
        """What decides who gets a token: so called, or it reads what the experts read and puts out one value, or one an expert."""
        named = [path for path in self.watched.reads if path.rpartition(".")[2] in ("router", "gate") and path != self.experts]
        if self.experts is None:
            return tuple(named)
        count = len(self.subject.module.get_submodule(self.experts))
        same = [path for path, key in self.watched.reads.items() if key == self.shared_key and path != self.experts]
        return tuple(dict.fromkeys([path for path in same if self._shape(path)[0] in (1, count)] + named))

    def _shape(self, path: str) -> tuple[int, int]:
        rows, columns = get_weight(self.subject.module.get_submodule(path)).shape
        return rows, columns

    def _space(self, key: Any, readers: list[str]) -> SpaceForm:
        producer = self.watched.writes.get(key)
        shared = key == self.shared_key
        everyone = readers + (self._expert_readers() if shared else [])
        if producer in self.norms:
            if self.probe.norm_scales(producer, everyone, self.norms[producer].plus_one):
                self.found.inferred.append(f"{self.path}.{producer}: its gain can be moved into {', '.join(readers)} (tried)")
                return SpaceForm(producers=(producer,), consumers=tuple(readers), commutes_with="scale")
            self.found.inferred.append(f"{self.path}.{producer}: feeds more than {', '.join(readers)}; not rescaled (tried)")
        elif len(readers) == 1:
            found = self._written_by(readers[0])
            if found is not None:
                return found
        unit = "kv_group" if self.heads and [self._role(path) for path in readers] == ["o"] else "channel"
        return SpaceForm(unit=unit, consumers=tuple(readers))

    def _expert_readers(self) -> list[str]:
        count = len(self.subject.module.get_submodule(self.experts or ""))
        return [f"{self.experts}.{index}.{side}_proj" for index in range(count) for side in ("gate", "up")]

    def _written_by(self, reader: str) -> SpaceForm | None:
        """The space between an earlier linear and this one, if some map can be moved from the one to the other."""
        width = self._shape(reader)[1]
        earlier = list(self.watched.reads)
        for writer in earlier[: earlier.index(reader)]:
            if writer == self.experts or writer in self.routers:
                continue
            rows = self._shape(writer)[0]
            heads = self._head_split(rows, width)
            if heads is not None and self.probe.mixes(writer, reader, *heads):
                return self._moved(writer, reader, "kv_group", "any")
            if rows == width and self.probe.scales(writer, reader, width):
                return self._moved(writer, reader, "neuron", "scale")
            if rows == width and self.probe.permutes(writer, reader, width):
                return self._moved(writer, reader, "neuron", "permutation")
        return None

    def _moved(self, writer: str, reader: str, unit: Any, commutes: Any) -> SpaceForm:
        words = {"any": "any map within a head", "scale": "a scale for each channel", "permutation": "a reordering of channels"}
        self.found.inferred.append(f"{self.path}.{writer} to {reader}: {words[commutes]} can be moved (tried)")
        return SpaceForm(unit=unit, producers=(writer,), consumers=(reader,), commutes_with=commutes, shifts=False)

    def _head_split(self, rows: int, width: int) -> tuple[int, int, int] | None:
        """(groups, repeat, head size) if these are the widths of values and attention output."""
        if not self.heads or width % self.heads:
            return None
        groups = getattr(self.config, "num_key_value_heads", None) or self.heads
        size = width // self.heads
        return (groups, self.heads // groups, size) if rows == groups * size and self.heads % groups == 0 else None

    def _role(self, path: str) -> str:
        parent, _, leaf = path.rpartition(".")
        role = _ROLES.get(leaf, "other")
        if leaf == "out_proj" and ("mixer" in parent or "mamba" in parent):
            return "out_proj"
        if leaf == "dense" and "intermediate" in parent:
            return "fc1"
        return "fc2" if role == "o" and "att" not in parent.lower() else role

    def _attention(self) -> AttentionForm | None:
        query = next((path for path in self.watched.reads if path != self.experts and self._role(path) in ("q", "qkv")), None)
        if query is None or not self.heads:
            return None
        return AttentionForm(path=query.rpartition(".")[0])

    def _experts_form(self) -> ExpertsForm | None:
        if self.experts is None:
            return None
        per_token = next((name for name in _PER_TOKEN if hasattr(self.config, name)), None)
        if per_token is None or not self.routers:
            self.found.missing.append(f"{self.path}.{self.experts}: no router, or no number of experts per token; left as it is")
            return None
        count = len(self.subject.module.get_submodule(self.experts))
        router = next((path for path in self.routers if self._shape(path)[0] == count), self.routers[0])
        return ExpertsForm(path=self.experts, input="experts.input", router=router, per_token=per_token)

    def _state_space(self) -> StateSpaceForm | None:
        path = next((path for path, module in self.subject.module.named_modules() if "A_log" in module._parameters), None)
        inner = f"{path}.out_proj"
        if path is None or not hasattr(self.config, "state_size") or inner not in self.watched.reads:
            return None
        return StateSpaceForm(path=path, inner=inner, num_heads="num_heads" if hasattr(self.config, "num_heads") else None)

    def _say_uncovered(self) -> None:
        """Name the large parameters that belong to no linear."""
        for path, module in self.subject.module.named_modules():
            owned = is_linear(module) or (self.experts is not None and path.startswith(self.experts))
            for name, parameter in module.named_parameters(recurse=False):
                if not owned and parameter.ndim >= 2 and min(parameter.shape[-2:]) >= 8:
                    self.found.missing.append(f"{self.path}.{path}.{name}: is not the matrix of a linear; left as it is")

    def _untouched(self) -> tuple[str, ...]:
        experts = f"{self.experts}."
        linears = [path for path, module in self.subject.module.named_modules() if is_linear(module)]
        return tuple(path for path in linears if path not in self.watched.reads and not path.startswith(experts))


def _norm_form(module: nn.Module, path: str) -> NormForm | None:
    try:
        traits = norm_traits(module)
    except TypeError:  # it takes more than the hidden states
        return None
    return None if traits is None else NormForm(path=path, kind=traits[0], plus_one=traits[1])
