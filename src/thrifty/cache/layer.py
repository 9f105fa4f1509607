"""A layer of a transformers cache that keeps old tokens packed and new ones plain.

Attention gets both parts joined, decoded, together with the tokens of the call as they are; only then are tokens packed. So a prompt that
is read in one call attends to itself exactly, and attention functions need nothing new.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from thrifty.cache.base import Packed, PackedCache

Change = Callable[[Tensor], Tensor]


class PackedLayer(CacheLayerMixin):
    """Keys and values of one attention layer. method: how they are packed, and how many of the newest are not.

    keys, values: the plain part, [batch, kv_heads, length, head_dim]. packed_keys, packed_values: what is before it (None: nothing). The
    two parts may end at different tokens. Raises InputError at the first token when the method cannot pack heads of its size.
    """

    is_sliding = False
    # As transformers has it for layers that roll back exactly while they record: see `activate_past_recording`.
    is_croppable = True

    def __init__(self, method: PackedCache) -> None:
        super().__init__()
        self.method = method
        self.packed_keys: Packed | None = None
        self.packed_values: Packed | None = None
        self.record_past = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take over type, device and shapes of the first keys and values, [batch, kv_heads, length, head_dim]."""
        self.method.check(key_states.shape[-1], value_states.shape[-1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (states[:, :, :0].clone() for states in (key_states, value_states))
        self.is_initialized = True

    def update(
        self,
        key_states: Float[Tensor, "batch kv_heads new key_dim"],
        value_states: Float[Tensor, "batch kv_heads new value_dim"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "batch kv_heads length key_dim"], Float[Tensor, "batch kv_heads length value_dim"]]:
        """Add tokens; returns (keys, values) of all tokens for attention, the new ones and all that were plain before exact."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], dim=2)
        self.values = torch.cat([self.values, value_states], dim=2)
        found = self._all_keys(), self._all_values()
        if not self.record_past:
            self._pack()
        return found

    def _all_keys(self) -> Tensor:
        return self.keys if self.packed_keys is None else torch.cat([self.method.load_keys(self.packed_keys), self.keys], dim=2)

    def _all_values(self) -> Tensor:
        return self.values if self.packed_values is None else torch.cat([self.method.load_values(self.packed_values), self.values], dim=2)

    def _pack(self) -> None:
        """Pack what need not stay plain. After a crop fewer may be plain than could be; then nothing is done."""
        plain_keys, plain_values = self.method.plain(self.get_seq_length())
        if (count := self.keys.shape[2] - plain_keys) > 0:
            self.packed_keys = _joined(self.packed_keys, self.method.store_keys(self.keys[:, :, :count]))
            self.keys = self.keys[:, :, count:].clone()
        if (count := self.values.shape[2] - plain_values) > 0:
            self.packed_values = _joined(self.packed_values, self.method.store_values(self.values[:, :, :count]))
            self.values = self.values[:, :, count:].clone()

    def get_seq_length(self) -> int:
        """Tokens that are known."""
        if not self.is_initialized:
            return 0
        return self.keys.shape[2] + (0 if self.packed_keys is None else self.packed_keys.length)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens that attention sees, the first of them) in a call with `query_length` new ones."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: it grows without end."""
        return -1

    @property
    def nbytes(self) -> int:
        """Bytes held: packed and plain."""
        if not self.is_initialized:
            return 0
        return self.keys.nbytes + self.values.nbytes + sum(part.nbytes for part in (self.packed_keys, self.packed_values) if part)

    @property
    def plain_nbytes(self) -> int:
        """Bytes that the same tokens take in a cache that packs nothing."""
        if not self.is_initialized:
            return 0
        return self.get_seq_length() * sum(part.element_size() * _per_token(part) for part in (self.keys, self.values))

    def activate_past_recording(self) -> None:
        """From now on pack only when `crop` is called, so that what it takes back leaves no trace (assisted generation)."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last -`tokens_to_remove` tokens. Raises ValueError for a positive number, as transformers' layers do.

        The plain part is cut. Where the cut goes through a packed piece, what is left of that piece becomes plain, as it reads.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the number of tokens to take back as a negative number; got {tokens_to_remove}")
        if not self.is_initialized:
            return
        length = max(0, self.get_seq_length() + tokens_to_remove)
        self.packed_keys, self.keys = _cut(self.packed_keys, self.keys, length, self.method.load_keys)
        self.packed_values, self.values = _cut(self.packed_values, self.values, length, self.method.load_values)
        if self.record_past:
            self._pack()

    def reset(self) -> None:
        """Forget all tokens."""
        self.keys = self.values = self.packed_keys = self.packed_values = None
        self.is_initialized = False

    def _each(self, change: Change) -> None:
        """Change every tensor, packed or plain."""
        if self.is_initialized:
            self.keys, self.values = change(self.keys), change(self.values)
            self.packed_keys, self.packed_values = (part and part.map(change) for part in (self.packed_keys, self.packed_values))

    def reorder_cache(self, beam_idx: Int[Tensor, "batch"]) -> None:
        """Let row i be what row `beam_idx[i]` was."""
        self._each(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only: indices, or a mask."""
        self._each(lambda tensor: tensor[indices.to(tensor.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Let every row stand there `repeats` times."""
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def offload(self) -> None:
        """Move everything to the processor's memory."""
        self._each(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move everything back to the layer's device."""
        if self.is_initialized:
            self._each(lambda tensor: tensor.to(self.device, non_blocking=True))


def _joined(before: Packed | None, later: Packed) -> Packed:
    return later if before is None else before.joined(later)


def _per_token(part: Float[Tensor, "batch kv_heads length head_dim"]) -> int:
    return part.shape[0] * part.shape[1] * part.shape[3]


def _cut(packed: Packed | None, plain: Tensor, length: int, load: Callable[[Packed], Tensor]) -> tuple[Packed | None, Tensor]:
    """(packed, plain) parts of the first `length` tokens."""
    held = 0 if packed is None else packed.length
    if packed is None or length >= held:
        return packed, plain[:, :, : length - held].clone()
    whole = length // packed.step * packed.step
    plain = plain[:, :, :0].clone()
    if whole < length:
        plain = load(packed.between(whole, whole + packed.step))[:, :, : length - whole].clone()
    return (packed.between(0, whole) if whole else None), plain
