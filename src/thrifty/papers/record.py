"""What is kept of a paper: one validated record each, as a JSON text whose lines can be read in a diff.

arXiv gives the upper half of a record, a reader the lower half (what it is, where it belongs, whether it fits). What became of a paper is
not in its record: that is derived from the methods that there are (`status.py`).
"""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from thrifty.base.errors import InputError

Kind = Literal["method", "system", "benchmark", "theory", "survey", "hardware", "position", "dataset"]
Module = Literal[
    "quantize", "prune", "restructure", "attention", "kv", "tokens", "decode", "tune", "federated", "inspect", "profile", "audit"
]  # fmt: skip
Domain = Literal[
    "3d-gaussian", "agents", "attention-kv", "audio", "combinatorial", "decoding", "evaluation", "federated", "interpretability",
    "llm-weights", "other", "peft", "profiling", "recsys", "robotics", "science", "theory", "tokens", "training", "vision-app", "wireless",
]  # fmt: skip
Fit = Literal["core", "near", "far", "none"]

KINDS, MODULES, DOMAINS, FITS = (get_args(vocabulary) for vocabulary in (Kind, Module, Domain, Fit))

IDENTIFIER = r"(?:\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})"
"""An arXiv id without its version: `2506.10205`, or `hep-th/9901001` from before 2007."""

_LINK = re.compile(r"https?://[^\s<>{}\\|^`\"]+|(?<![\w/.@])(?:www\.)?(?:github|gitlab)\.com/[^\s<>{}\\|^`\"]+", re.IGNORECASE)
_CODE_HOST = re.compile(
    r"https?://(?:www\.)?(?:github\.com|gitlab\.[\w.]+|bitbucket\.org|codeberg\.org|huggingface\.co|hf\.co|zenodo\.org"
    r"|anonymous\.4open\.science|[\w-]+\.github\.io)(?:/|$)",
    re.IGNORECASE,
)


class Record(BaseModel):
    """A paper.

    id, version: arXiv's. published, updated: UTC dates of its first and of this version. title: with its colon. abstract: as arXiv breaks
    its lines; a line that starts with two spaces starts a paragraph. code: addresses that stand in the abstract. name: what its authors
    call the thing. module: the part of thrifty that it belongs to; also: further ones. core: what is computed. reason: why it fits as `fit`
    says. builds_on: names of what it extends or uses.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=rf"^{IDENTIFIER}$")]
    version: Annotated[int, Field(ge=1)]
    published: date
    updated: date | None = None
    title: Annotated[str, Field(min_length=1)]
    authors: Annotated[tuple[str, ...], Field(min_length=1)]
    categories: tuple[str, ...] = ()
    abstract: str
    code: tuple[str, ...] = ()

    name: str | None = None
    kind: Kind | None = None
    domain: Domain | None = None
    module: Module | None = None
    also: tuple[Module, ...] = ()
    fit: Fit | None = None
    core: str | None = None
    headline: str | None = None
    reason: str | None = None
    builds_on: tuple[str, ...] = ()

    @field_validator("title")
    @classmethod
    def _one_line(cls, title: str) -> str:
        if title != " ".join(title.split()):
            raise ValueError("must be one line, its words one space apart")
        return title

    @field_validator("authors")
    @classmethod
    def _names(cls, authors: tuple[str, ...]) -> tuple[str, ...]:
        if any(author != " ".join(author.split()) or not author for author in authors):
            raise ValueError("each author must be one line, its words one space apart")
        return authors

    @field_validator("abstract", mode="before")
    @classmethod
    def _join(cls, abstract: Any) -> Any:
        return "\n".join(abstract) if isinstance(abstract, list) else abstract

    @field_serializer("abstract")
    def _lines(self, abstract: str) -> list[str]:
        return abstract.split("\n")

    @property
    def address(self) -> str:
        """Where it can be read."""
        return f"https://arxiv.org/abs/{self.id}v{self.version}"

    @property
    def label(self) -> str:
        """Its name, or the title where it has none."""
        return self.name or self.title

    def to_json(self) -> dict[str, Any]:
        """Plain values; what nobody has said is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def to_text(self) -> bytes:
        """The same as the text of its file."""
        return f"{self.model_dump_json(indent=2, exclude_defaults=True)}\n".encode()


def read_record(path: Path) -> Record:
    """The record in a file. Raises InputError that names file, line and field."""
    text = path.read_text(encoding="utf-8")
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole record"
        raise InputError(f"{path}, line {_line_of(text, first)}, {field}: {first['msg']}; correct the record") from None


def _line_of(text: str, error: Any) -> int:
    """The line that holds the field at fault; of broken JSON, the line where it breaks."""
    try:
        json.loads(text)
    except json.JSONDecodeError as broken:
        return broken.lineno
    keys = [key for key in error["loc"] if isinstance(key, str)]
    found = re.search(rf'^\s*"{re.escape(keys[0])}":', text, re.MULTILINE) if keys else None
    return text.count("\n", 0, found.start()) + 1 if found else 1


def code_addresses(abstract: str) -> tuple[str, ...]:
    """Addresses of code in an abstract, in their order; an address broken over two lines after a slash is one.

    >>> code_addresses("Code is at https://github.com/a/b.")
    ('https://github.com/a/b',)
    """
    if "://" not in abstract and ".com/" not in abstract.lower():  # as in most abstracts: a hundred times faster
        return ()
    whole = re.sub(r"(https?://\S*/)\n(?=\S)", r"\1", abstract)
    found = []
    for link in _LINK.findall(whole):
        address = link.rstrip(".,;:!?'*")
        if address.endswith(")") and "(" not in address:
            address = address.rstrip(").,;:")
        address = address if address.lower().startswith("http") else f"https://{address}"
        if _CODE_HOST.match(address):
            found.append(address)
    return tuple(dict.fromkeys(found))
