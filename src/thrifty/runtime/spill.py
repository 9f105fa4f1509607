"""Keys and values in a file: the newest stay in memory, older ones are read back layer by layer, one layer ahead.

A layer's keys and values are put together whole, in the order and the layout that the ordinary cache gives them, so attention computes the
same. While one layer computes, a thread puts those of the next together. The file has no name: it is gone when the cache is, however the
process ends. It lies where temporary files do (`TMPDIR`), which should be a disk.
"""

from __future__ import annotations

import inspect
import mmap
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from thrifty.base.errors import RunError
from thrifty.runtime.budget import SPILL_STEP

States = Float[Tensor, "batch heads length width"]


class SpillFile:
    """A file without a name that only grows; copies share it."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="thrifty-")  # noqa: SIM115
        self._end = 0
        self.ahead = ThreadPoolExecutor(1, "thrifty-cache")

    def append(self, values: Tensor) -> int:
        """Where the bytes begin, at a multiple of the page. Raises RunError where the disk is full."""
        content = memoryview(values.contiguous().view(torch.uint8).reshape(-1).numpy())
        start = self._end
        self._end += -(-len(content) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        try:
            written = 0
            while written < len(content):
                written += os.pwrite(self._file.fileno(), content[written:], start + written)
        except OSError as error:
            place = tempfile.gettempdir()
            raise RunError(f"keys and values cannot be written to {place} ({error.strerror}); free some space, or set TMPDIR") from error
        return start

    def read(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The values, mapped for as long as the tensor is there."""
        count = torch.Size(shape).numel() * dtype.itemsize
        mapped = mmap.mmap(self._file.fileno(), count, access=mmap.ACCESS_COPY, offset=start)
        return torch.frombuffer(mapped, dtype=torch.uint8).view(dtype).view(shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


@dataclass(frozen=True)
class Stretch:
    """Keys and values of neighbouring tokens in the file.

    starts, shapes: where each of the two lies, and its [batch, heads, length, width]. used: how many of the tokens still count.
    rows: which of the batch as it was written are the batch of now, None for all.
    """

    starts: tuple[int, int]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    used: int
    rows: Int[Tensor, "batch"] | None = None

    def choose(self, rows: Int[Tensor, "batch"]) -> Stretch:
        """The same for other rows of the batch."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])


class SpilledLayer(DynamicLayer):
    """A cache layer of full attention; `keys` and `values` are those of the newest tokens, `kept` or a few more.

    following: the layer that is put together while this one's attention computes.
    """

    def __init__(self, file: SpillFile, kept: int) -> None:
        super().__init__()
        self.file, self.kept = file, kept
        self.older: list[Stretch] = []
        self.following: SpilledLayer | None = None
        self.wraps = False
        self._ready: Future[tuple[Tensor, Tensor]] | None = None

    def update(self, key_states: States, value_states: States, *args: Any, **kwargs: Any) -> tuple[States, States]:
        """All keys and values, these included."""
        count = key_states.shape[-2]
        if self.older:
            keys, values = self._whole(count)
            if self.following is not None:
                self.following.prepare(1 if self.wraps else count)
            keys[..., -count:, :], values[..., -count:, :] = key_states, value_states
            held = self.keys.shape[-2] + count
        else:
            keys, values = super().update(key_states, value_states, *args, **kwargs)
            held = keys.shape[-2]
            if self.following is not None:
                self.following.prepare(1 if self.wraps else count)
        self._hold(keys, values, held)
        return keys, values

    def prepare(self, count: int) -> None:
        """Begin to put all keys and values together, with room for `count` new ones."""
        if self.older and self._ready is None:
            self._ready = self.file.ahead.submit(self._gather, count)

    def _whole(self, count: int) -> tuple[Tensor, Tensor]:
        ready, self._ready = self._ready, None
        if ready is not None:
            found = ready.result()
            if found[0].shape[-2] == self.get_seq_length() + count:
                return found
        return self._gather(count)

    def _gather(self, count: int) -> tuple[Tensor, Tensor]:
        return self._put_together(0, self.keys, count), self._put_together(1, self.values, count)

    def _put_together(self, which: int, newest: States, count: int) -> States:
        """All keys (0) or values (1), with room for `count` more at the end."""
        batch, heads, held, width = newest.shape
        length = self.get_seq_length()
        out = torch.empty(batch, heads, length + count, width, dtype=newest.dtype, device=newest.device)
        place = 0
        for stretch in self.older:
            found = self.file.read(stretch.starts[which], stretch.shapes[which], newest.dtype)
            found = found if stretch.rows is None else found[stretch.rows]
            out[:, :, place : place + stretch.used] = found[:, :, : stretch.used]
            place += stretch.used
        out[:, :, length - held : length] = newest
        return out

    def _hold(self, keys: Tensor, values: Tensor, held: int) -> None:
        """Keep the newest of `held` tokens that are in no stretch, and write the others once they are enough."""
        length = keys.shape[-2]
        if held >= self.kept + SPILL_STEP:
            parts = [whole[:, :, length - held : length - self.kept].detach().cpu() for whole in (keys, values)]
            starts = (self.file.append(parts[0]), self.file.append(parts[1]))
            self.older.append(Stretch(starts, (tuple(parts[0].shape), tuple(parts[1].shape)), held - self.kept))
            held = self.kept
        if held < length:  # copies: a part of the whole would keep all of it
            keys, values = keys[:, :, length - held :].clone(), values[:, :, length - held :].clone()
        self.keys, self.values = keys.detach(), values.detach()

    def get_seq_length(self) -> int:
        """Tokens in memory and in the file."""
        newest = self.keys.shape[-2] if self.is_initialized and self.keys.ndim == 4 else 0
        return newest + sum(stretch.used for stretch in self.older)

    def _settle(self) -> None:
        """Wait for what is being put together, and forget it: it will not be what is needed."""
        ready, self._ready = self._ready, None
        if ready is not None:
            ready.result()

    def reset(self) -> None:
        """Forget everything."""
        self._settle()
        self.older = []
        super().reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest `-tokens_to_remove` tokens."""
        self._settle()
        newest = self.keys.shape[-2] if self.is_initialized and self.keys.ndim == 4 else 0
        more = abs(tokens_to_remove) - newest
        if tokens_to_remove >= 0 or more < 0:
            super().crop(tokens_to_remove)
            return
        self.keys, self.values = self.keys[:, :, :0], self.values[:, :, :0]
        while more > 0 and self.older:
            last = self.older.pop()
            if last.used > more:
                self.older.append(replace(last, used=last.used - more))
            more -= last.used

    def reorder_cache(self, beam_idx: Int[Tensor, "batch"]) -> None:
        """Other rows of the batch, as beam search asks."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row of the batch `repeats` times."""
        if self.is_initialized:
            self.batch_select_indices(torch.arange(self.keys.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Int[Tensor, "batch"]) -> None:
        """Only these rows of the batch."""
        self._settle()
        if self.is_initialized and self.keys.ndim == 4:
            here = indices.to(self.keys.device)
            self.keys, self.values = self.keys[here], self.values[here]
            self.older = [stretch.choose(indices.cpu()) for stretch in self.older]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None}


def spill(cache: DynamicCache, kept: int, layers: int) -> None:
    """Let an empty cache keep `kept` tokens a layer in memory. Layers of other kinds (sliding windows, states) stay what they are.

    layers: how many the model has, for a cache that would make its own as they are used.
    """
    file = SpillFile()
    if not cache.layers:
        cache.layers.extend(DynamicLayer() for _ in range(layers))
    found = []
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = SpilledLayer(file, kept)
            found.append(cache.layers[index])
    for layer, following in zip(found, [*found[1:], *found[:1]], strict=True):
        layer.following, layer.wraps = following, following is found[0]


def takes_caches(model: nn.Module) -> bool:
    """Whether a model takes caches whose layers can spill."""
    takes = "past_key_values" in inspect.signature(model.forward).parameters
    return takes and bool(getattr(model, "_supports_default_dynamic_cache", bool)()) and not model.config.is_encoder_decoder


def _is_begun(layer: Any) -> bool:
    return isinstance(layer, SpilledLayer) or (isinstance(layer, DynamicLayer) and layer.is_initialized)


def spill_caches(model: nn.Module, kept: int) -> None:
    """Let every empty `DynamicCache` that reaches the model spill, and give it one where it would make its own."""
    config = model.config.get_text_config(decoder=True)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cache, use = kwargs.get("past_key_values"), kwargs.get("use_cache")
        if cache is None and len(args) <= 1 and (config.use_cache if use is None else use):
            cache = kwargs["past_key_values"] = DynamicCache(config=config)
        if type(cache) is DynamicCache and not cache.offloading and not any(map(_is_begun, cache.layers)):
            spill(cache, kept, config.num_hidden_layers)
        return args, kwargs

    model.register_forward_pre_hook(before, with_kwargs=True)
