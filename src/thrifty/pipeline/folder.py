"""The run folder: what is finished, recognised by content.

A result folder holds `.run/` while it is being made: the request, a file a finished block (its stored tensors and its report), and the
rows at the last block boundary. Every file is whole or absent. A block's report is written last, with the digests of the other two: only
what still has them counts as finished. The folder disappears when the result is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from thrifty.base.errors import InputError
from thrifty.base.events import note
from thrifty.base.store import content_key, file_digest, settled, write_json, write_unsettled, writing
from thrifty.pipeline.block import LayerReport
from thrifty.pipeline.streams import Streams

CERTIFICATE = "certificate.json"
REQUEST = "request.json"
"""What a run that is not done has among its working files."""


@dataclass(frozen=True)
class BlockRecord:
    """A finished block: its tensors' file, what happened to its linears, and what it cost."""

    key: str
    tensors: Path
    layers: tuple[LayerReport, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    packed: dict[str, dict[str, Any]]
    losses: dict[str, list[float]] = field(default_factory=dict)
    """Where targets are only tried (`pipeline.mixing`): what each option loses, by linear."""


def seconds_of(records: Sequence[BlockRecord]) -> dict[str, float]:
    """What the blocks took, those of earlier attempts included."""
    names = dict.fromkeys(name for record in records for name in record.seconds)
    return {name: sum(record.seconds.get(name, 0.0) for record in records) for name in names}


class RunFolder:
    """`out/.run`: claimed by one request, identified by its key."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out / ".run"

    def inside(self, name: str) -> RunFolder:
        """A place in this run's folder for the blocks of a pass of its own; it goes when the run's folder goes."""
        folder = RunFolder(self.out)
        folder.path = self.path / name
        return folder

    @property
    def rejected(self) -> Path:
        """Where a result is kept that did not meet its gate."""
        out = self.out.absolute()
        return out.with_name(out.name + ".rejected")

    def free(self, force: bool) -> None:
        """Raise InputError unless `out` is absent, empty, or of thrifty's making: known before any work starts."""
        try:
            present = self.out.exists()
            parent = next((path for path in self.out.absolute().parents if path.exists()), self.out)
        except OSError as error:
            raise InputError(f"{self.out} is no possible folder ({error.strerror}); choose another --out") from None
        if self.out.is_symlink() and not present:
            raise InputError(f"{self.out} is a link to {self.out.readlink()}, which is not there; make that folder or choose another --out")
        if present and not self.out.is_dir():
            raise InputError(f"{self.out} is a file; give --out a folder that does not exist yet")
        if not parent.is_dir():
            raise InputError(f"{self.out} lies inside {parent}, which is a file; choose another --out")
        if self._recorded_key() is None and present and any(path.name != self.path.name for path in self.out.iterdir()):
            advice = "choose another --out"
            if force:
                advice = f"it was not made by thrifty, so --force does not remove it either; {advice}"
            raise InputError(f"{self.out} exists and is not a run of thrifty; {advice}")

    def spare(self, model: Path, others: Iterable[Path], *, gated: bool) -> None:
        """Raise InputError when a model, or another file that a run reads, lies where its result may go: replacing that would remove it.

        What is called as that folder itself is no such file, but a name that both have, as `--recipe w4 --out w4`.
        """
        for place in (self.out, self.rejected) if gated else (self.out,):
            inside = (path for path in others if place.resolve() in path.resolve().parents)
            found = model if model.resolve().is_relative_to(place.resolve()) else next(inside, None)
            if found is not None:
                raise InputError(f"{found} would be replaced by the result in {place}; choose another --out")

    def free_rejected(self, key: str, force: bool) -> None:
        """Raise InputError when a rejected result would have to replace something else: what thrifty did not make, or another request's
        result, unless `force` gives that up."""
        if not self.rejected.exists():
            return
        recorded = RunFolder(self.rejected)._recorded_key()
        if recorded is None:
            raise InputError(f"{self.rejected}, where a rejected result would go, is not a run of thrifty; move it or choose another --out")
        if recorded != key and not force:
            raise InputError(f"{self.rejected} holds a result of another request; choose another --out, or --force to replace it")

    def claim(self, key: str, request: dict[str, Any], *, force: bool = False) -> bool:
        """Take the folder for this request; True when an earlier attempt of the same request is continued.

        force: give up whatever attempt is there; a finished result stays until the new one takes its place.
        Raises InputError when `out` holds something else, RunError when it cannot be written.
        """
        self.free(force)
        if force and self.path.exists():
            with writing(self.path):
                shutil.rmtree(self.path)
        recorded = None if force else self._own_key(key)
        if recorded is None or not (self.path / REQUEST).exists():
            write_json(self.path / REQUEST, {"key": key, **request})
        return recorded is not None

    def _own_key(self, key: str) -> str | None:
        """The key of what `out` holds, which is this one, or None. Raises InputError when it is another request's."""
        recorded = self._recorded_key()
        if recorded is not None and recorded != key:
            raise InputError(f"{self.out} holds the result of another request; choose another --out, or --force to replace it")
        return recorded

    def swap(self, key: str, *, to_rejected: bool) -> Path:
        """Move a finished result of this request from `out` to `rejected`, or back; returns where it is then.

        Raises InputError when that place holds something else, and then nothing was moved.
        """
        if to_rejected:
            self.free_rejected(key, force=False)
            start, end, earlier = self.out, self.rejected, self.rejected
        else:
            self.free(force=False)
            self._own_key(key)
            start, end, earlier = self.rejected, self.out, self.path
        with writing(end):
            if earlier.exists():
                shutil.rmtree(earlier)
            move_folder(start, end)
        return end

    @property
    def begun(self) -> bool:
        """Whether a block is finished, or a link of a chain."""
        return any(path.parent.name == "blocks" or path.name == CERTIFICATE for path in self.path.rglob("*.json"))

    def finished(self) -> dict[str, Any] | None:
        """The certificate of a complete result, or None."""
        path = self.out / CERTIFICATE
        return None if (self.path / REQUEST).exists() or not path.exists() else json.loads(path.read_text())

    def sweep(self) -> None:
        """Remove what a run left that was stopped while it removed its working files."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _recorded_key(self) -> str | None:
        for path, read in ((self.path / REQUEST, lambda d: d["key"]), (self.out / CERTIFICATE, lambda d: d["run_key"])):
            try:
                return str(read(json.loads(path.read_text())))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return None

    # -- blocks --------------------------------------------------------------------------------------------------------

    def tensors_path(self, key: str) -> Path:
        """Where the stored tensors of the block with this key are."""
        return self.path / "blocks" / f"{key[:32]}.safetensors"

    def block(self, key: str) -> BlockRecord | None:
        """The finished block with this key; None, and a note where it was one, when its files are not as they were written."""
        tensors = self.tensors_path(key)
        report = tensors.with_suffix(".json")
        if not report.exists():
            return None
        try:
            data = json.loads(report.read_text())
            record = BlockRecord(
                key,
                tensors,
                tuple(LayerReport(**layer) for layer in data["layers"]),
                tuple(data["warnings"]),
                data["seconds"],
                data["packed"],
                data["losses"],
            )
            whole = data["tensors"] == file_digest(tensors)
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            note(f"{tensors} is not as it was written; the block is done again")
            return None
        return record

    def finish(self, record: BlockRecord) -> None:
        """Mark a block finished: its tensors and the rows that leave it must be in place. Rows of earlier blocks are removed."""
        rows = self._streams_path(record.key)
        written, left = settled(record.tensors, rows)
        write_json(
            record.tensors.with_suffix(".json"),
            {
                "tensors": written,
                "rows": left,
                "layers": [asdict(layer) for layer in record.layers],
                "warnings": list(record.warnings),
                "seconds": record.seconds,
                "packed": record.packed,
                "losses": record.losses,
            },
        )
        for other in rows.parent.glob("*.safetensors"):
            if other != rows:
                other.unlink()

    # -- rows at the last boundary -------------------------------------------------------------------------------------

    def save_streams(self, key: str, streams: Streams) -> None:
        """Keep the rows that leave the block with this key, beside those of the block before it until it is finished."""
        streams.save(self._streams_path(key), write_unsettled)

    def load_streams(self, key: str) -> Streams | None:
        """The rows that left the finished block with this key, if they are still there and as they were written."""
        path = self._streams_path(key)
        written = json.loads(self.tensors_path(key).with_suffix(".json").read_text())["rows"]
        return Streams.load(path) if path.exists() and file_digest(path) == written else None

    def _streams_path(self, key: str) -> Path:
        return self.path / "streams" / f"{key[:32]}.safetensors"

    def clear(self) -> None:
        """Remove an earlier result, its certificate first, so that what is left of it at any moment does not pass for one."""
        for path in sorted(self.out.iterdir(), key=lambda path: path.name != CERTIFICATE):
            if path.is_dir() and path != self.path and not path.is_symlink():
                shutil.rmtree(path)
            elif path != self.path:
                path.unlink()

    def close(self) -> None:
        """The result is complete, here or beside: remove the working files, and the folder where nothing else is in it."""
        (self.path / REQUEST).unlink(missing_ok=True)  # what is left without it is waste
        shutil.rmtree(self.path)
        if not any(self.out.iterdir()):
            with suppress(OSError):  # a link, or where something is mounted, stays
                self.out.rmdir()


def move_folder(start: Path, end: Path) -> None:
    """Move a folder in one step to where none is, or an empty one; what is a link, or on another disk, file by file, the certificate
    last."""
    try:
        if start.is_symlink():
            raise IsADirectoryError
        os.replace(start, end)
    except OSError:
        end.mkdir(exist_ok=True)
        for path in sorted(start.iterdir(), key=lambda path: path.name == CERTIFICATE):
            shutil.move(path, end / path.name)
        with suppress(OSError):
            start.rmdir()


def block_key(previous: str, parts: Any) -> str:
    """The content key of a block: everything before it, its weights, and what is done to it."""
    return content_key([previous, parts])
