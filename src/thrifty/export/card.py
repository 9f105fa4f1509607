"""The model card of a result: what it was made from, what it lost, how to load it, how to make it again."""

from __future__ import annotations

_CARD = """---
{front}---

# {name}

Made from {base} with [thrifty](https://pypi.org/project/thrifty/). The figures compare it with the original on the same tokens;
`certificate.json` and `report.html` in this folder hold all of them, layer by layer, with what is needed to repeat the run.

{table}

## Load it

Plain transformers (with the package `compressed-tensors` where the weights are quantized):

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```

vLLM reads the same format by its documentation. `thrifty.load("{name}")` keeps the weights packed on the processor.

## Make it again

```
{command}
```

with `recipe.yaml`:

```yaml
{recipe}
```

Versions: {versions}.
"""


def model_card(*, name: str, base_model: str, license: str | None, table: str, recipe_yaml: str, command: str, library_note: str) -> str:
    """README.md as text. table: the certificate's headline in Markdown. base_model: hub id or folder; only an id goes into the front
    matter."""
    front = []
    if base_model.count("/") == 1 and not base_model.startswith(("/", ".")):
        front += [f"base_model: {base_model}", "base_model_relation: quantized"]
    if license:
        front.append(f"license: {license}")
    front += ["library_name: transformers", "tags:", "- thrifty", "- compressed"]
    return _CARD.format(
        front="".join(f"{line}\n" for line in front),
        name=name,
        base=f"`{base_model}`",
        table=table,
        command=command,
        recipe=recipe_yaml.strip(),
        versions=library_note,
    )
