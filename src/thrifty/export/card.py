"""The model card of a result: what it was made from, what it lost, how to load it, how to make it again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from thrifty.base.anatomy import Library
from thrifty.export.side import library_of

_CARD = """---
{front}---

# {title}

Made from {base} with thrifty. The figures compare it with the original on the same tokens;
`certificate.json` and `report.html` in this folder hold all of them, layer by layer, with what is needed to repeat the run.

{table}

## Load it

{reader}:

```python
{imports}from {library} import {classes}

model = {model}.from_pretrained({name}{words}){prepare}
```

{beside}

## Make it again

{command}

with `recipe.yaml`:

{recipe}

Versions: {versions}.
"""

_PLAIN = "Plain transformers (with the package `compressed-tensors` where the weights are quantized)"
_DIFFUSERS = "Plain diffusers, as the transformer of a pipeline or by itself"
_CONTAINER = "The weights lie in thrifty's own container, which transformers reads after `import thrifty` and not without"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_FRONT = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_LICENSE = ("license", "license_name", "license_link")


def model_card(
    *,
    name: str,
    base_model: str,
    license: Mapping[str, Any],
    classes: tuple[str, str],
    table: str,
    recipe_yaml: str,
    command: str,
    quantized: bool,
    library_note: str,
    container: bool = False,
    own_code: bool = False,
    library: Library = "transformers",
) -> str:
    """README.md as text.

    table: the certificate's headline in Markdown. base_model: hub id or folder; only an id goes into the front matter. license: see
    `license_of`. classes: see `classes_of`. quantized: whether weights are rounded, which the hub has a word for; any other change of
    weights is a finetune there. container: whether the weights lie in our own container. own_code: whether the folder brings code.
    library: whose classes these are.
    """
    front: dict[str, Any] = {}
    if _HUB_ID.fullmatch(base_model):
        front |= {"base_model": base_model, "base_model_relation": "quantized" if quantized else "finetune"}
    front |= {**license, "library_name": library, "tags": ["thrifty", "compressed"]}
    quoted = json.dumps(name, ensure_ascii=False)
    model, preparer = classes
    return _CARD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        title=" ".join(name.split()),
        name=quoted,
        base=f"`{base_model}`",
        table=table,
        library=library,
        reader=_CONTAINER if container else _PLAIN if library == "transformers" else _DIFFUSERS,
        imports="import thrifty\n" if container else "",
        words=_words(library, own_code),
        beside=_beside(library, quoted, container),
        classes=", ".join(sorted(filter(None, classes))),
        model=model,
        prepare=f"\n{'tokenizer' if 'Tokenizer' in preparer else 'processor'} = {preparer}.from_pretrained({quoted})" if preparer else "",
        command=_fenced(command),
        recipe=_fenced(recipe_yaml.strip(), "yaml"),
        versions=library_note,
    )


def _words(library: Library, own_code: bool) -> str:
    """What the class is told besides the name."""
    return ("", ', dtype="auto"')[library == "transformers"] + (", trust_remote_code=True" if own_code else "")


def _beside(library: Library, name: str, container: bool) -> str:
    """What else reads the result."""
    if library != "transformers":
        return f"`thrifty.load({name})` gives the same model."
    others = "" if container else "vLLM reads the same format by its documentation. "
    return f"{others}`thrifty.load({name})` keeps the weights packed on the processor."


def license_of(folder: Path) -> dict[str, Any]:
    """What the model card in a folder says of the license, as front matter: license, license_name, license_link; empty without a card."""
    front = _front_of(folder)
    return {key: front[key] for key in _LICENSE if front.get(key)}


def says_quantized(folder: Path) -> bool:
    """Whether the model card in a folder calls it a quantized model, or says nothing about it."""
    return bool(_front_of(folder).get("base_model_relation", "quantized") == "quantized")


def _front_of(folder: Path) -> dict[str, Any]:
    """The front matter of the model card in a folder; empty without one."""
    try:
        found = _FRONT.match((folder / "README.md").read_text())
        front = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return front if isinstance(front, dict) else {}


def classes_of(folder: Path) -> tuple[str, str]:
    """(the class that loads the model in a folder, the one that prepares its inputs; empty where none does)."""
    config = json.loads((folder / "config.json").read_text())
    if library_of(config) != "transformers":
        return str(config["_class_name"]), ""
    model = next(iter(config.get("architectures") or ()), "ForCausalLM")
    brought = [auto for auto, place in _auto_map(config).items() if auto.startswith("AutoModelFor") and str(place).endswith("." + model)]
    model = "AutoModelForCausalLM" if model.endswith("ForCausalLM") else next(iter(brought), model)
    images = any((folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json"))
    return model, "AutoProcessor" if images else "AutoTokenizer"


def brings_code(folder: Path) -> bool:
    """Whether the model in a folder is of classes that lie beside it."""
    return bool(_auto_map(json.loads((folder / "config.json").read_text())))


def _auto_map(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("auto_map") or {}


def _fenced(text: str, language: str = "") -> str:
    """A code block that `text` cannot end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
