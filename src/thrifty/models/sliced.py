"""A model with fewer channels in its hidden states: one map for all of them, folded into every tensor as it is read.

    h' = h Q,  Q [D, D']    matrices that read a norm: W' = W diag(g) R    matrices that write: W' = Q^T W    embeddings: E' = E Q
                            norms: g' = sqrt(D / D'), and D / D' of what they add to the mean square, so that ||h'||^2 is still divided by D

R is Q, or what makes up for the channels that are gone as well as what is left can. At D' = D nothing changes. The result is of the same
architecture: its config has a smaller hidden size, and says how wide a head is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.base.anatomy import Norm, Part
from thrifty.base.errors import InputError
from thrifty.core.slicing import Slice
from thrifty.models.resize import Resizer
from thrifty.models.rotated import ROUNDED, TOLERANCE, Rotated
from thrifty.models.source import Source

Reading = Callable[[Norm], Float[Tensor, "width kept"]]
"""What a matrix that reads through a norm is multiplied by."""


class _Narrow(Rotated):
    """The tensors of `original` with Q in them; its anatomy is that of the original, without shared matrices."""

    def __init__(self, original: Source, width: int, step: str) -> None:
        hidden = original.anatomy.hidden_size
        super().__init__(original, lambda *_: Slice(torch.empty(hidden, width, device="meta")), step)
        self.width, self.gain = width, (hidden / width) ** 0.5
        self.reads: Reading | None = None
        self.louder = 1.0  # what tables of embeddings are multiplied by

    def reading(self, norm: Norm) -> Callable[[Tensor], Tensor]:
        return self.rotation.of if self.reads is None else Slice(self.reads(norm).to(torch.float32)).of

    def _turned(self, key: str, stored: Tensor) -> Tensor:
        turned = super()._turned(key, stored)
        tables = [self.disk_name(f"{path}.weight") for path in self.anatomy.embeddings]
        return turned * self.louder if self.louder != 1.0 and key in tables else turned


class Sliced(Source):
    """`original` with `width` channels in its hidden states. It has shapes from the beginning, and values once it is `settled`.

    step: the method that asks for it, for people. raw: its config.json. keeps_mean: whether a norm takes the mean off. Raises InputError
    for a model whose hidden states cannot be turned, and for one whose class cannot have them narrower.
    """

    def __init__(self, original: Source, width: int, step: str) -> None:
        self._narrow = _Narrow(original, width, step)
        self._step = step
        shapes = {key: info.shape for key, info in self._narrow.tensors.items()}
        shapes |= {key: place.shape(shapes[key], width) for key, place in self._narrow.places.items()}
        resizer = Resizer(self._narrow, {block.path: () for block in original.anatomy.blocks})
        resizer.raw |= self._narrow.config_changes
        try:
            resizer.channels(width, shapes)
        except InputError as error:
            raise InputError(f"{error}; leave `{step}` out") from None
        infos = {key: info.of_shape(shapes[key]) for key, info in self._narrow.tensors.items()}
        super().__init__(original.folder, resizer.config(resizer.raw), infos, original._pickled, original.remote_code)
        self.raw = resizer.raw

    @property
    def original(self) -> Source:
        return self._narrow.original

    @property
    def lies_in_files(self) -> bool:
        return False

    @property
    def keeps_mean(self) -> bool:
        """Whether one of the channels stands for the mean, which norms take off."""
        return self._narrow.keeps_mean

    def gain(self, norm: Norm) -> Float[Tensor, "width"]:
        """What a norm of the original multiplies by, float32."""
        return self._narrow.norm(norm)[0]

    @property
    def head(self) -> Float[Tensor, "out width"]:
        """The matrix of the original's head, float32."""
        return self.original.read(self.original.disk_name(f"{self.anatomy.head}.weight") or "").to(torch.float32)

    @property
    def matrix(self) -> Float[Tensor, "width kept"]:
        """Q."""
        assert isinstance(self._narrow.rotation, Slice)
        return self._narrow.rotation.matrix

    def digest(self) -> dict[str, str]:
        """That of the original."""
        return self.original.digest()

    def read(self, key: str) -> Tensor:
        return self._narrow.read(key)

    def read_part(self, key: str, part: Part) -> Tensor:
        return self._narrow.read_part(key, part)

    def settled(self, matrix: Float[Tensor, "width kept"], reads: Reading | None, inputs: dict[str, Tensor]) -> Sliced:
        """The same with this Q.

        reads: R for each norm, where it is another. inputs: of one row, to see how loud embeddings enter the blocks.

        Some architectures multiply embeddings by a number that follows from the width; the tables make up for it. Raises InputError where
        what stands before the blocks makes something else of the inputs than Q makes of the original's hidden states.
        """
        made = copy.copy(self)
        made._narrow = narrow = copy.copy(self._narrow)
        narrow.rotation, narrow.reads, chain = Slice(matrix.to(torch.float32)), reads, self.anatomy.chains[0]
        wanted = narrow.rotation.of(self.original.shell(torch.float32).enter(inputs, chain, {}))
        found = made.shell(torch.float32).enter(inputs, chain, {})
        ratio = float((found * wanted).sum() / wanted.square().sum().clamp_min(1e-30))
        if abs(ratio - 1) > TOLERANCE and ratio > 0:
            narrow.louder = 1 / ratio
            found = made.shell(torch.float32).enter(inputs, chain, {})
        apart = float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))
        if not apart < (TOLERANCE if self.dtype == torch.float32 else ROUNDED):
            name = self.anatomy.architecture
            raise InputError(f"{name}: what stands before its blocks is off by {apart:.2g} with fewer channels; leave `{self._step}` out")
        return made
