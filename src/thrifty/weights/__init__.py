"""Methods that change matrices: transform, allocate, target, solve, and the named points of their product.

`base.py` holds the verbs; every other file is one method. They work on bare tensors:

    from thrifty.weights.preset.gptq import GPTQ

    gram = inputs.T @ inputs / len(inputs)                                  # inputs [tokens, in]
    solution = compress_weight(weight, GPTQ(bits=4, group_size=32), gram)   # weight [out, in]
    solution.values, solution.encoded.tensors["codes"], solution.loss
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.errors import InputError
from thrifty.base.records import Problem, Solution
from thrifty.core.finite import all_finite
from thrifty.weights.base import Preset, Treatment
from thrifty.weights.base import solve as _solve  # `solve` is a folder here

__all__ = ["compress_weight"]


def compress_weight(weight: Float[Tensor, "out in"], method: Preset | Treatment, gram: Float[Tensor, "in in"] | None = None) -> Solution:
    """The matrix that `method` makes of `weight`: its values, how they are held, and tr((W - V) gram (W - V)^T).

    weight: [out, in], any float type; less than 32 bits are computed with as float32. method: a preset, as in `GPTQ(bits=4)`, or its parts,
    as in `Treatment(AWP(), NM(2, 4))`. gram: [in, in], the mean of x x^T over calibration inputs x; the identity where there are none.
    Raises InputError for shapes that do not fit together or to the method, numbers that are not finite, and a method that needs a Gram
    matrix where none is given. No gradient flows through it.
    """
    weight = _matrix("weight", weight)
    if not isinstance(method, Preset | Treatment):
        raise InputError(f"the method must be a preset, as in GPTQ(bits=4), or Treatment(solver, target); got {method!r}")
    treatment = method.expand() if isinstance(method, Preset) else method
    if gram is None and treatment.calibrated:
        raise InputError("this method weighs errors by the inputs; give gram, the mean of x x^T over calibration inputs")
    out_features, in_features = weight.shape
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    gram = torch.eye(in_features, dtype=dtype, device=weight.device) if gram is None else _matrix("gram", gram).to(weight.device, dtype)
    if gram.shape != (in_features, in_features):
        raise InputError(f"gram must be {[in_features, in_features]} for a weight {[out_features, in_features]}, got {list(gram.shape)}")
    if bool((gram.diagonal() < 0).any()) or not torch.allclose(gram, gram.T, rtol=1e-3, atol=1e-3 * float(gram.diagonal().mean())):
        raise InputError("gram is no mean of x x^T: it must be symmetric with nothing negative on its diagonal; inputs.T @ inputs is")
    treatment.target.check(out_features, in_features, "weight")
    return _solve(Problem(weight.to(dtype), gram, tokens=0, name="weight"), treatment)


def _matrix(name: str, values: Tensor) -> Tensor:
    """The values without their history, or InputError."""
    if not isinstance(values, Tensor) or values.ndim != 2 or not values.is_floating_point() or not values.numel():
        got = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"the {name} must be a float tensor of two dimensions, got {got}")
    values = values.detach()
    if not all_finite(values.to(torch.float32)):
        raise InputError(f"the {name} holds numbers that are not finite")
    return values
