"""Where training starts: a block as the steps before it left it, on disk between the first walk and the training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from thrifty.base.records import Encoded
from thrifty.base.store import write_unsettled


@dataclass(frozen=True)
class Start:
    """A block as the steps left it. found: the weight and the point that was found for it, by path. changed: all else that differs from the
    original, by disk key, in disk layout. inputs: [4] of matrices whose inputs are on a fixed grid, by path: its scale and zero point, and
    the mean and deviation of the inputs. latent: what was rounded in place of a weight, by path."""

    found: Mapping[str, tuple[Tensor, Encoded]]
    changed: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    latent: Mapping[str, Tensor] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it, whole but unsettled: the block is not finished yet."""
        # what was pruned is its own encoding, and a file holds no tensor twice
        tensors, forms = {f"changed|{key}": tensor.clone() for key, tensor in self.changed.items()}, {}
        tensors |= {f"inputs|{path}": tensor for path, tensor in self.inputs.items()}
        tensors |= {f"latent|{path}": tensor for path, tensor in self.latent.items()}
        for name, (weight, encoded) in self.found.items():
            tensors[f"weight|{name}"] = weight
            tensors |= {f"{part}|{name}": tensor for part, tensor in encoded.tensors.items()}
            forms[name] = json.dumps({form: getattr(encoded, form) for form in _FORMS})
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_unsettled(path, lambda temporary: save_file(tensors, temporary, metadata=forms))

    @classmethod
    def read(cls, path: Path) -> Start:
        """What `save` wrote."""
        tensors, found = load_file(path), {}
        inputs, latent = (
            {key.partition("|")[2]: tensors.pop(key) for key in [*tensors] if key.startswith(f"{kind}|")} for kind in ("inputs", "latent")
        )
        with safe_open(path, "pt") as file:
            forms = file.metadata() or {}
        for name, form in forms.items():
            weight = tensors.pop(f"weight|{name}")
            parts = {key.partition("|")[0]: tensors.pop(key) for key in [*tensors] if key.partition("|")[2] == name}
            found[name] = (weight, Encoded(tensors=parts, shape=(weight.shape[0], weight.shape[1]), **json.loads(form)))
        return cls(found, {key.partition("|")[2]: tensor for key, tensor in tensors.items()}, inputs, latent)


_FORMS = ("layout", "bits", "group_size", "standard", "simulated")
