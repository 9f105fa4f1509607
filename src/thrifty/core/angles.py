"""How far a block turns hidden states: the block influence of ShortGPT.

Source: Men, Xu, Zhang, Wang, Lin, Lu, Han and Chen (2024), arXiv 2403.03853.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def turned(entering: Float[Tensor, "rows *length width"], leaving: Float[Tensor, "rows *length width"]) -> Float[Tensor, "rows *length"]:
    """1 - cos of each hidden state with what became of it; 0 where both are zero."""
    before, after = entering.to(torch.float64), leaving.to(torch.float64)
    norms = before.norm(dim=-1) * after.norm(dim=-1)
    cosine = (before * after).sum(-1) / norms.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(norms > 0, 1 - cosine, (before - after).norm(dim=-1).sign())
