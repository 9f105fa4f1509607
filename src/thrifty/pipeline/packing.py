"""Which matrices of a result are stored as codes: decided for the whole model before anything is computed.

The format could hold more than its readers read. What is said here of transformers was found by loading such files in version 5.23:

- experts are read packed only where they lie one by one on disk, are all quantized alike, and have no zero points; once any matrix of a
  file is packed, plain experts are no longer read at all;
- inputs are rounded to integers in `int-quantized` files only, to small floats where weights are the same floats, and none where
  transformers decodes while loading, nor those of experts;
- small floats but `fp8` with rounded inputs are decoded to bfloat16 whatever the model computes in, so that models in bfloat16 alone run;
- zero points, other small floats but `fp8`, state-space mixers and classes that fill their linear layers while loading need
  `"dequantize": true`, and then every other matrix must be quantized alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import transformers
from jaxtyping import Float
from packaging.version import Version
from torch import Tensor

from thrifty.base.anatomy import Linear
from thrifty.base.errors import InputError
from thrifty.base.records import Encoded
from thrifty.core.reading import Reading
from thrifty.export.compressed import (
    Inputs,
    Scheme,
    library_decode,
    pack,
    pack_bytes,
    pack_rounding,
    packed_bytes,
    quantization_config,
    scheme_of,
)
from thrifty.export.compressed_floats import library_has
from thrifty.models import Source
from thrifty.pipeline.steps import Work

FLOATS_SINCE = Version("5.23")
"""The first transformers that decodes small floats to the type of the model."""

BY_CHANNEL = "no reader rounds inputs by channel; this run does, so that what the certificate says is simulated"
"""Why matrices whose inputs have a grid for each channel are stored dense."""


@dataclass(frozen=True)
class Packing:
    """How the result will be stored: here, in the formats of compressed-tensors.

    schemes: of each linear that is stored as codes, by path. dtype: the model's own type. dequantize: whether transformers must decode
    while loading. warnings: what is quantized but stored dense, and why. alone: linears whose inputs the run alone rounds, as no reader
    does.
    """

    format: ClassVar[str] = "compressed-tensors"

    schemes: Mapping[str, Any]
    dtype: torch.dtype
    dequantize: bool
    warnings: tuple[str, ...]
    alone: frozenset[str] = frozenset()

    @classmethod
    def decide(cls, source: Source, work: Work) -> Packing:
        """Which matrices of a whole model are stored as codes. Raises InputError when no reader would read the file."""
        return packing(source, work)

    def scale_types(self, linear: Linear) -> tuple[torch.dtype, ...]:
        """What the scales of a linear may be stored in, the first that holds them.

        Where transformers decodes while loading, it does so in the type of the scales. Experts keep that type, so it must be the model's;
        elsewhere it need only hold every value, which has the 7 or 8 bits of its scale and those of its code: float16 holds 11 bits.
        """
        if linear.expert is not None:
            return (self.dtype,)
        if not self.dequantize:
            return (torch.bfloat16, torch.float16)
        return (torch.float16,) if self.schemes[linear.path].bits == 4 else (torch.float32,)

    def read(self, linear: Linear, values: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """What readers get for codes that stand for `values`: those of experts are rounded to the model's type."""
        return values.to(self.dtype).to(torch.float32) if linear.expert is not None else values

    def accept(self, linear: Linear, encoded: Encoded, values: Float[Tensor, "out in"]) -> tuple[Encoded, Tensor]:
        """(what is stored for a solution, the values that readers get for it)."""
        return encoded, self.read(linear, values)

    def rounds(self, path: str) -> bool:
        """Whether readers, or the run alone, round the inputs of a linear, where a step asks for it."""
        return path in self.alone or (path in self.schemes and self.schemes[path].inputs is not None)

    def turns(self, path: str) -> bool:
        """Whether readers turn the inputs of a linear, where a step asks for it."""
        return False

    def write(self, linear: Linear, encoded: Encoded, reading: Reading) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(the stored tensors of a linear, what must be known to read them as plain JSON values). reading: of its inputs."""
        rounding, types, stem = reading.rounding, self.scale_types(linear), _stem(linear)
        scheme = replace(
            scheme_of(encoded), packed=self.schemes[linear.path].packed, inputs=None if rounding is None else Inputs.of(rounding)
        )
        parts = (pack if scheme.packed else pack_bytes)(stem, encoded, types)
        return {**parts, **pack_rounding(stem, rounding)}, scheme.to_json()

    def read_back(
        self, linear: Linear, form: Mapping[str, Any], keys: Collection[str], get: Callable[[str], Tensor]
    ) -> Float[Tensor, "out in"]:
        """What the format's own library makes of the tensors of a file. keys: all there are; get: one of them."""
        parts = {key: get(key) for key in keys if key.startswith(f"{_stem(linear)}.weight")}
        return self.read(linear, library_decode(parts, _stem(linear), Scheme.from_json(form)))

    def stored_bytes(self, linear: Linear) -> int:
        """Bytes of the stored tensors of a linear."""
        return packed_bytes(linear.out_features, linear.in_features, self.schemes[linear.path], self.scale_types(linear)[0])

    def config(self, source: Source, forms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """`quantization_config` of config.json; forms: what `write` gave, by path, at least one."""
        schemes = {path: Scheme.from_json(form) for path, form in forms.items()}
        experts = {linear.path for linear in source.anatomy.linears if linear.expert is not None}
        ignored = [path for path in source.linear_modules if path not in schemes]
        return quantization_config(schemes, ignored, experts=experts, dequantize=self.dequantize)


def _stem(linear: Linear) -> str:
    """The name that the parts of a packed matrix share on disk."""
    return linear.source.removesuffix(".weight")


def packing(source: Source, work: Work) -> Packing:
    """Decide it for a whole model.

    Raises InputError when no reader would read the file: several schemes where transformers must decode while loading.
    """
    turned = next(iter(work.turned_while_running(source.anatomy)), None)
    if turned is not None:
        raise InputError(
            f"the recipe turns the inputs of {turned} while the model runs, which only the container holds; add --format thrifty"
        )
    anatomy, plain = source.anatomy, source.plain_linears
    experts = {linear.path for linear in anatomy.linears if linear.expert is not None}
    outlines = {linear.path: (linear, outline) for linear in anatomy.linears if (outline := outline_of(linear, work)) is not None}
    outlines = {path: pair for path, pair in outlines.items() if pair[1].layout != "dense"}
    reasons = {path: reason for path, (linear, outline) in outlines.items() if (reason := _reason(linear, outline, plain)) is not None}
    by_channel = {path for path in outlines if (activation := work.activation(path)) is not None and activation.by_channel}
    alone = by_channel - experts
    reasons |= dict.fromkeys(alone, BY_CHANNEL)
    if source.library != "transformers":
        reasons = dict.fromkeys(outlines, f"{source.library} reads no such codes")
    schemes = {path: scheme_of(outline) for path, (_, outline) in outlines.items() if path not in reasons}
    if schemes and experts and (not experts <= schemes.keys() or len({schemes[path] for path in experts}) > 1):
        reasons |= dict.fromkeys(schemes, "transformers reads packed files of this architecture only where all experts are packed alike")
        schemes = {}
    if len({scheme.format for scheme in schemes.values()}) > 1:
        formats = ", ".join(sorted({scheme.format for scheme in schemes.values()}))
        raise InputError(f"a file holds codes of one format, and this recipe asks for several ({formats}); use one of them everywhere")
    kinds = {activation.outline.standard for path in schemes if (activation := work.activation(path)) is not None}
    cause = _decoded_while_loading(source, schemes, kinds)
    schemes, unrounded = _with_inputs(schemes, outlines.keys() - by_channel, work, experts, cause)
    unrounded |= dict.fromkeys(by_channel & experts, "too few tokens reach an expert for a grid of each channel")
    if cause is not None and len({scheme for path, scheme in schemes.items() if path not in experts}) > 1:
        raise InputError(
            f"transformers reads only one bit width and group size in a file that it must decode while loading, as it must here: {cause}; "
            "use the same bits and group_size everywhere"
        )
    wide = {path: "readers round inputs only there" for path, scheme in schemes.items() if scheme.bits < 8 and not scheme.packed}
    warnings = (
        *said_of(reasons, "quantized, but stored dense at full size"),
        *said_of(unrounded, "its inputs are not rounded"),
        *said_of(wide, "a code takes a byte in the file whatever its bits"),
    )
    return Packing(schemes, source.dtype, cause is not None, warnings, frozenset(alone))


def _with_inputs(
    schemes: Mapping[str, Scheme], quantized: Collection[str], work: Work, experts: Collection[str], cause: str | None
) -> tuple[dict[str, Scheme], dict[str, str]]:
    """(the schemes with what readers do to inputs, why they leave the inputs of others as they are, by path).

    quantized: all linears that become codes. cause: why transformers must decode while loading. Raises InputError where a step rounds
    inputs and no reader would round any.
    """
    asked = {path: activation for path in quantized if (activation := work.activation(path)) is not None}
    reasons: dict[str, str] = {}
    for path in asked:
        if path not in schemes:
            reasons[path] = "its weights are stored dense, where no reader rounds inputs"
        elif schemes[path].standard != asked[path].outline.standard:
            kinds = [kind or "integers" for kind in (asked[path].outline.standard, schemes[path].standard)]
            reasons[path] = f"readers round inputs to what the weights are, and these would be {kinds[0]} with {kinds[1]}"
        elif cause is not None:
            reasons[path] = f"transformers would decode the file while it loads it, and then rounds none: {cause}"
    if experts & schemes.keys():
        reasons |= dict.fromkeys(asked, "transformers reads no experts whose inputs are rounded, and a file has one format")
    if asked and not asked.keys() - reasons.keys():
        path, reason = next(iter(reasons.items()))
        raise InputError(f"no reader would round the inputs of this model ({path}: {reason}); leave `activation` out")
    if not asked:
        return dict(schemes), {}
    return {
        path: replace(
            scheme, packed=bool(scheme.standard), inputs=Inputs.of(asked[path].outline) if path in asked and path not in reasons else None
        )
        for path, scheme in schemes.items()
    }, reasons


def _decoded_while_loading(source: Source, schemes: dict[str, Scheme], inputs: Container[str]) -> str | None:
    """Why transformers must decode a file while it loads it; None where it need not. inputs: the small floats that inputs become."""
    if not schemes:
        return None
    if not all(scheme.symmetric for scheme in schemes.values()):
        return "it has zero points (symmetric: true would do without)"
    packed = next((scheme.standard for scheme in schemes.values() if scheme.standard not in ("", "fp8")), None)
    if packed is not None and packed not in inputs:
        return f"it holds {packed}"
    if packed is not None and source.dtype != torch.bfloat16:
        return f"it decodes {packed} to bfloat16 when the model runs, and this one is in {source.dtype}"
    if any(block.state_space for block in source.anatomy.blocks):
        return "the model has state-space blocks"
    if source.fills_linears:
        return f"{source.anatomy.architecture} fills its linear layers while it is loaded"
    return None


def outline_of(linear: Linear, work: Work) -> Encoded | None:
    """What a linear will be held as, before anything is solved; None where nothing treats it."""
    treatments = work.treatments.get(linear.path, ())
    outlines = [treatment.target.outline(linear.out_features, linear.in_features) for treatment in treatments]
    if not outlines:
        return None
    if treatments[-1].allocator is not None and treatments[-1].allocator.within_matrix:
        return Encoded("int_columns", {}, outlines[-1].shape, outlines[-1].bits, simulated=True)
    return outlines[-1]


def _reason(linear: Linear, outline: Encoded, plain: Container[str]) -> str | None:
    """Why a quantized linear cannot be stored as codes; None when it can."""
    if outline.layout == "numbers" and not outline.standard:
        return "no format is written for numbers with such scales"
    if outline.standard not in ("", "fp8") and Version(transformers.__version__) < FLOATS_SINCE:
        return f"transformers before {FLOATS_SINCE} decodes such floats to bfloat16, whatever the model computes in"
    if outline.standard and not library_has(outline.standard):
        return f"the package compressed-tensors that is installed has no {outline.standard}"
    if outline.layout == "int_columns":
        return "no public format holds inputs with codes of different widths"
    if outline.layout == "affine":
        return "grids that need not meet zero lie in our container only (--format thrifty), from which up to 4 bits are exported to GGUF"
    if outline.layout == "additive":
        return "codebooks lie in our container only (--format thrifty), from which they are exported to AQLM's layout"
    if outline.layout == "k_quant":
        return "blocks of llama.cpp go through our container into GGUF (--format thrifty, then export --to gguf)"
    if linear.storage == "conv1d":
        return "the format has no form for Conv1D"
    if linear.part is not None:
        return "its experts lie in one tensor on disk, for which the format has no form"
    if linear.expert is None and linear.path not in plain:
        return "transformers builds it as a layer of its own kind, into which it reads no codes"
    if linear.expert is not None and outline.standard:
        return "transformers reads no packed experts of small floats"
    if linear.expert is not None and "zero_point" in outline.tensors:
        return "transformers reads no packed experts with zero points"
    return None


def said_of(reasons: Mapping[str, str], what: str) -> list[str]:
    """Warnings: what becomes of linears, and why, by path."""
    counts = Counter(reasons.values())
    said = []
    for reason, count in counts.items():
        first = next(path for path, other in reasons.items() if other == reason)
        which = first if count == 1 else f"{first} and {count - 1} more"
        said.append(f"{which}: {what}, because {reason}")
    return said
