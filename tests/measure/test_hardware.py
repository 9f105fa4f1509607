"""What the machine says, and peaks that belong to one block of work."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from thrifty.measure.hardware import PeakMemory, free_device_bytes, hardware, peak_rss_bytes, rss_bytes, versions

MIB = 2**20


def test_hardware_and_versions_are_plain_json():
    found = json.loads(json.dumps({"hardware": hardware(), "versions": versions()}))
    assert found["hardware"]["cores"] >= found["hardware"]["usable_cores"] >= 1
    assert found["hardware"]["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_peak_sees_memory_that_was_given_back():
    with PeakMemory() as memory:
        block = torch.ones(64 * MIB, dtype=torch.uint8)
        del block
    assert memory.peak_bytes - memory.start_bytes >= 60 * MIB
    assert peak_rss_bytes() >= memory.peak_bytes - MIB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a peak anew")
def test_an_earlier_peak_does_not_count():
    block = torch.ones(256 * MIB, dtype=torch.uint8)
    del block
    with PeakMemory() as memory:
        small = torch.ones(8 * MIB, dtype=torch.uint8)
    if not memory.own:
        pytest.skip("/proc/self/clear_refs may not be written here")
    assert small.numel() == 8 * MIB
    assert memory.peak_bytes <= memory.start_bytes + 64 * MIB
    assert peak_rss_bytes() >= memory.start_bytes


def test_memory_now_is_at_most_the_peak():
    assert 0 < rss_bytes() <= peak_rss_bytes() + MIB


def test_what_torch_keeps_of_a_device_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 20)
    assert free_device_bytes("cuda") == 130 and free_device_bytes("cpu") == 0
