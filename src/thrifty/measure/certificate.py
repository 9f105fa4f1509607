"""The certificate: what was made from what, how, and what it lost. Everything needed to judge a result and to repeat it.

Written as `certificate.json` into the result folder. Its figures use the keys that `thrifty compress --json` prints.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thrifty.base.errors import InputError
from thrifty.base.store import content_key, write_json
from thrifty.measure.outliers import outliers

SCHEMA_VERSION = 1
FILE = "certificate.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Value(_Part):
    """A figure with the ends of its 95 % interval; the ends are absent where one window allows none."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Pair(_Part):
    """A figure of the original and of the result."""

    before: Value
    after: Value


class Bytes(_Part):
    """Bytes of the weight files of the original and of the result."""

    before: int
    after: int


class Count(_Part):
    """How many there are of something in the original and in the result."""

    before: int
    after: int


class Model(_Part):
    """The model that was compressed.

    name: as the user gave it. digest: `weights_digest` of all tensors. parameters: of the whole model; compressed_parameters: in scope.
    """

    name: str
    digest: str
    architecture: str = ""
    kind: str = ""
    revision: str | None = None
    parameters: int = 0
    compressed_parameters: int = 0


class Data(_Part):
    """Rows that were used: where from, which ones, and a digest of what the model was given.

    source: files or data set names. samples: ids of the rows in their source. tokens: of all rows.
    """

    source: str
    digest: str
    rows: int
    tokens: int = 0
    samples: list[int | str] = Field(default_factory=list)


class Sources(_Part):
    """What the statistics were taken on and what the quality was measured on; they should not overlap."""

    calibration: Data | None = None
    evaluation: Data | None = None


class Layer(_Part):
    """What happened to one matrix.

    bits: nominal bits of a code. sparsity: share of zeros. error: tr((W - V) G (W - V)^T); relative_error: the same over tr(W G W^T).
    tokens: calibration tokens that reached it. block: position of its block in the order of the run. weights: how many it has.
    simulated: held dense, as no container has this form, and left out of size claims.
    """

    name: str
    method: str
    bits: float | None
    sparsity: float | None
    error: float | None
    relative_error: float | None
    tokens: int = 0
    role: str = ""
    block: int | None = None
    weights: int = 0
    simulated: bool = False
    details: dict[str, float | None] = Field(default_factory=dict)


class Quality(_Part):
    """One metric before and after; low and high bound the difference, which is paired."""

    metric: str
    before: float | None
    after: float | None
    difference: float | None
    low: float | None = None
    high: float | None = None


class Flips(_Part):
    """Tokens whose most likely prediction became wrong, and became right."""

    right_to_wrong: int
    wrong_to_right: int


class Verdict(_Part):
    """The gate that the user set, and whether the result passed."""

    metric: str
    limit: float
    passed: bool
    reason: str


Verified = Literal["exact", "full"]


class Link(_Part):
    """What the steps of one link of a chain cost, and how its result compares with the model that the chain began with.

    words: its methods. bytes: of the weight files it left; structure: what it changed, before and after it.
    """

    words: str
    seconds: float
    peak_rss_bytes: int
    bytes: int | None
    perplexity: Value | None = None
    kl: Value | None = None
    relative_error: Value | None = None
    top1_agreement: float | None = None
    structure: dict[str, Count] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)

    @classmethod
    def of(cls, words: str, certificate: Certificate) -> Link:
        """The link whose result has this certificate; the last one where it is that of a chain."""
        if certificate.links:
            return certificate.links[-1]
        same = ("seconds", "peak_rss_bytes", "kl", "relative_error", "top1_agreement", "structure", "warnings")
        return cls(
            words=words,
            bytes=None if certificate.bytes is None else certificate.bytes.after,
            perplexity=None if certificate.perplexity is None else certificate.perplexity.after,
            **{name: getattr(certificate, name) for name in same},
        )


class Certificate(_Part):
    """Everything about one result. Figures that were not measured are absent (None).

    recipe: the full text. request: the other settings of the run. run_key: names the run. files: SHA-256 of each weight file and of
    config.json. verified: `exact` where every tensor was read back, `full` where transformers also loaded the result. seconds: wall time,
    that of earlier attempts included; phases: by what it was spent on. peak_rss_bytes: peak resident memory of the run. scored: windows and
    tokens, or rows, that the quality rests on. safety: what `measure.safety` found, where it was asked for. structure: parameters and
    widths, where a step changed them. links: of a chain, what each of its links cost.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    run_key: str = ""
    model: Model
    data: Sources = Sources()
    recipe: str
    request: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    layers: list[Layer] = Field(default_factory=list)
    scored: dict[str, int] = Field(default_factory=dict)
    quality: list[Quality] = Field(default_factory=list)
    perplexity: Pair | None = None
    perplexity_ratio: Value | None = None
    kl: Value | None = None
    top1_agreement: float | None = None
    flips: Flips | None = None
    accuracy: Pair | None = None
    relative_error: Value | None = None
    bytes: Bytes | None = None
    files: dict[str, str] = Field(default_factory=dict)
    verified: Verified = "exact"
    bits_per_weight: float | None = None
    speed: dict[str, Any] | None = None
    safety: dict[str, Any] | None = None
    seconds: float = 0.0
    phases: dict[str, float] = Field(default_factory=dict)
    peak_rss_bytes: int = 0
    warnings: list[str] = Field(default_factory=list)
    gate: Verdict | None = None
    structure: dict[str, Count] = Field(default_factory=dict)
    links: list[Link] = Field(default_factory=list)

    @classmethod
    def build(cls, *, measured: Mapping[str, Any] | None = None, warnings: Iterable[str] = (), **fields: Any) -> Certificate:
        """A certificate from its parts; `measured` is what `summarise` or `summarise_rows` returned.

        Numbers that are not finite become None and a warning; layers out of line are named in the warnings.
        Raises InputError naming the field that is wrong.
        """
        measured = measured or {}
        chosen = {name: value for name, value in measured.items() if name in cls.model_fields}
        chosen["scored"] = {name: measured[name] for name in ("windows", "tokens", "rows") if name in measured}
        values, broken = _finite({**chosen, **fields})
        found = [f"{path} is not a finite number" for path in broken if not path.startswith("layers")]
        certificate = cls._validated({**values, "warnings": []}, "the certificate")
        named = [f"{outlier.name}: {outlier.reason}" for outlier in outliers(certificate.layers)]
        return certificate.model_copy(update={"warnings": list(dict.fromkeys([*warnings, *found, *named]))})

    def after(self, links: Sequence[Link], words: str) -> Certificate:
        """The certificate of a chain, this one being that of its last link, with these methods; links: those before it."""
        every = [*links, Link.of(words, self)]
        structure: dict[str, Count] = {}
        for link in every:
            for name, count in link.structure.items():
                structure[name] = Count(before=structure.get(name, count).before, after=count.after)
        changed = {
            "links": every,
            "seconds": sum(link.seconds for link in every),
            "peak_rss_bytes": max(link.peak_rss_bytes for link in every),
            "structure": structure,
            "warnings": list(dict.fromkeys(warning for link in every for warning in link.warnings)),
        }
        return self.model_copy(update=changed)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without NaN."""
        return self.model_dump(mode="json")

    def result(self, out: str | Path) -> dict[str, Any]:
        """The object that `thrifty compress --json` prints: the certificate with the model's name for the model, and where the result
        is."""
        return {**self.to_json(), "model": self.model.name, "out": str(out)}

    def write(self, folder: str | Path) -> Path:
        """Write `certificate.json` into the folder atomically."""
        path = Path(folder) / FILE
        write_json(path, self.to_json())
        return path

    @classmethod
    def from_json(cls, values: Any, where: str = "the certificate") -> Certificate:
        """Read what `to_json` wrote.

        Raises InputError naming the first field that is missing or wrong, or the version that is not known.
        """
        if isinstance(values, Mapping) and values.get("schema_version") != SCHEMA_VERSION:
            version = values.get("schema_version")
            raise InputError(
                f"{where} has schema version {version!r}; this thrifty reads version {SCHEMA_VERSION}: use the one that wrote it"
            )
        return cls._validated(values, where)

    @classmethod
    def read(cls, folder: str | Path) -> Certificate:
        """Read the certificate of a result folder.

        Raises InputError when there is none or it cannot be read.
        """
        path = Path(folder) / FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{folder} holds no {FILE}; give a folder that thrifty compress wrote") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); compress again, or restore the file") from error
        return cls.from_json(values, str(path))

    @classmethod
    def _validated(cls, values: Any, where: str) -> Certificate:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"])) or "content"
            raise InputError(f"{where}: {place} is wrong, {problem['msg'].lower()}") from None


def made_of_bytes(path: Path) -> bool:
    """Whether a file of a result must be the same in every repetition: weights and config."""
    return path.suffix == ".safetensors" or path.name == "config.json"


def weights_digest(tensors: Mapping[str, str]) -> str:
    """One digest of a model from the digests of its tensors by disk name; shards and the order of tensors do not matter."""
    return content_key(dict(tensors))


def _finite(value: Any, path: str = "") -> tuple[Any, list[str]]:
    """The value with None for every number that is not finite, and the paths of these."""
    if isinstance(value, float):
        return (value, []) if math.isfinite(value) else (None, [path])
    if isinstance(value, BaseModel):
        return _finite(value.model_dump(), path)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _finite(dataclasses.asdict(value), path)
    if isinstance(value, Mapping):
        pairs = {key: _finite(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()}
        return {key: pair[0] for key, pair in pairs.items()}, [place for pair in pairs.values() for place in pair[1]]
    if isinstance(value, list | tuple):
        pairs = [_finite(item, f"{path}.{_label(item, index)}") for index, item in enumerate(value)]
        return [pair[0] for pair in pairs], [place for pair in pairs for place in pair[1]]
    return value, []


def _label(item: Any, index: int) -> str:
    """How a list's entry is called in a message: by its metric or name where it has one."""
    return str(item.get("metric") or item.get("name") or index) if isinstance(item, Mapping) else str(index)
