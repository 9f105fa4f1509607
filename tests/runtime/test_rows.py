"""Matrices left in their files: embeddings and heads against the modules with everything in memory, bit for bit."""

from __future__ import annotations

import copy
import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from thrifty.base.errors import InputError
from thrifty.models.disk import scan
from thrifty.runtime import rows as module
from thrifty.runtime.rows import DiskEmbedding, DiskHead, MappedMatrix, looks_up

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def matrix(rows: int, width: int, dtype: torch.dtype, folder: Path, before: int = 0) -> tuple[MappedMatrix, Tensor]:
    """A random matrix, in a file behind so many other bytes, and in memory."""
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows + width)).to(dtype)
    file = folder / f"{rows}-{width}-{dtype}-{before}.safetensors"
    if not file.exists():
        save_file({"a": torch.zeros(before, dtype=torch.uint8), "b": values}, file)
    return MappedMatrix(scan(file)["b"]), values


@given(
    count=st.integers(1, 70),
    width=st.integers(1, 40),
    dtype=st.sampled_from(TYPES),
    before=st.integers(0, 9),
    held=st.sampled_from([1, 300_000, 1 << 24]),
    data=st.data(),
)
def test_rows_and_pieces_are_the_matrix(
    count: int, width: int, dtype: torch.dtype, before: int, held: int, data: st.DataObject, folder: Path
) -> None:
    mapped, values = matrix(count, width, dtype, folder, before)
    index = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), max_size=12)), dtype=torch.long)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TABLE_BYTES", held)
        assert torch.equal(mapped.rows(index), values[index])
        pieces = list(mapped.pieces())
    assert torch.equal(torch.cat([piece for _, _, piece in pieces]), values)
    assert [stop for _, stop, _ in pieces[:-1]] == [start for start, _, _ in pieces[1:]]
    assert torch.equal(mapped.whole(), values)


@pytest.mark.parametrize("computes", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", TYPES)
def test_an_embedding(dtype: torch.dtype, computes: torch.dtype | None, folder: Path) -> None:
    mapped, values = matrix(90, 48, dtype, folder)
    to = computes or dtype
    for lookup in (nn.Embedding(90, 48, padding_idx=89), Gemma3TextScaledWordEmbedding(90, 48, 0, 48**0.5)):
        lookup.to(to).weight.data = values.to(to)
        whole, ours = copy.deepcopy(lookup), DiskEmbedding(lookup, mapped, to)
        assert torch.equal(ours.weight, whole.weight)
        for shape in ((3, 7), (1, 1), (5,), (2, 0)):
            ids = torch.randint(0, 90, shape, generator=torch.Generator().manual_seed(len(shape)))
            found = ours(ids)
            assert found.dtype == to and torch.equal(found, whole(ids))
        assert torch.equal(ours.to(torch.float64)(ids), values[ids].to(to).double() * getattr(lookup, "embed_scale", 1.0))
        with pytest.raises(IndexError, match="vocabulary has 90"):
            ours(torch.tensor([3, 90]))


def test_what_is_more_than_a_lookup() -> None:
    class Shifted(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) + ids[..., None]

    class Masked(nn.Embedding):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return super().forward(ids) * mask

    assert looks_up(nn.Embedding(9, 4, padding_idx=8)) and looks_up(Gemma3TextScaledWordEmbedding(9, 4, 0, 2.0))
    assert not any(looks_up(lookup) for lookup in (Shifted(9, 4), Masked(9, 4), nn.Linear(4, 9), nn.Embedding(9, 4, max_norm=1.0)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [64, 1000, 4099])
def test_a_head(vocabulary: int, dtype: torch.dtype, bias: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped, values = matrix(vocabulary, 96, dtype, folder, 4)
    head = nn.Linear(96, vocabulary, bias, dtype=dtype)
    head.weight.data = values
    ours = DiskHead(head, mapped, dtype)
    monkeypatch.setattr(module, "TABLE_BYTES", 1 << 17)
    assert len(list(mapped.pieces())) > (vocabulary > 1000)
    for shape in ((1, 1, 96), (2, 5, 96), (96,), (33, 96), (0, 96)):
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        with torch.no_grad():
            assert torch.equal(ours(inputs), head(inputs))
    assert torch.equal(ours.weight, values)


def test_copies_and_pickles_read_the_same_file(folder: Path) -> None:
    mapped, values = matrix(90, 48, torch.float32, folder)
    ids = torch.tensor([[4, 88]])
    for ours in (DiskEmbedding(nn.Embedding(90, 48), mapped, torch.float32), DiskHead(nn.Linear(48, 90), mapped, torch.float32)):
        inputs = ids if isinstance(ours, DiskEmbedding) else values[ids]
        for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert torch.equal(twin(inputs), ours(inputs))
    assert len(pickle.dumps(mapped)) < 1000


def test_a_file_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    info = scan(folder / "90-48-torch.float32-0.safetensors")["b"]
    (tmp_path / "short").write_bytes(b"1234")
    for file in (tmp_path / "absent", tmp_path / "short"):
        with pytest.raises(InputError, match="cannot be mapped"):
            MappedMatrix(type(info)(file, info.dtype, info.shape, info.start, info.bytes))


CHILD = """
import sys, torch
from pathlib import Path
from torch import nn
from thrifty.base.memory import status_bytes
from thrifty.models.disk import scan
from thrifty.runtime.rows import DiskEmbedding, DiskHead, MappedMatrix
mapped = MappedMatrix(scan(Path(sys.argv[1]))["table"])
rows, width = mapped.shape
embedding = DiskEmbedding(nn.Embedding(rows, width, device="meta"), mapped, torch.bfloat16)
head = DiskHead(nn.Linear(width, rows, bias=False, device="meta"), mapped, torch.bfloat16)
hidden = embedding(torch.tensor([[rows - 1]]))
head(hidden)
Path("/proc/self/clear_refs").write_text("5")
before = status_bytes("VmRSS")
for ids in torch.arange(rows).split(8192):  # every row there is
    assert not embedding(ids).any()
after_rows = status_bytes("VmHWM")
head(hidden)
print(before, after_rows, status_bytes("VmHWM"), status_bytes("VmRSS"))
"""


def test_a_table_of_160_megabytes_is_never_in_memory(tmp_path: Path) -> None:
    """In a process of its own: every row read, and the head's product; nothing but what is at hand is held."""
    rows, width = 80_000, 1024
    header = json.dumps({"table": {"dtype": "BF16", "shape": [rows, width], "data_offsets": [0, rows * width * 2]}}).encode()
    with (tmp_path / "table.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + rows * width * 2)  # zeros that take no room
    words = [sys.executable, "-c", CHILD, str(tmp_path / "table.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True)
    if "clear_refs" in done.stderr:
        pytest.skip("/proc/self/clear_refs may not be written here")
    assert done.returncode == 0, done.stderr
    before, after_rows, after_head, left = map(int, done.stdout.split())
    # 8192 rows of a call and their copy where they are placed are 2 * 16 MiB
    assert after_rows - before < 2 * 8192 * width * 2 + module.TABLE_BYTES + (4 << 20)
    assert after_head - before < 60e6 < rows * width * 2 / 2
    assert left - before < 24e6
