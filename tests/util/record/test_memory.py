"""Freed memory that is kept costs no page faults when it is asked for again, and lies in huge pages."""

import subprocess
import sys
from pathlib import Path

import pytest

from util.record import memory

FAULTS = """
import resource, torch
from util.record.memory import keep_memory
assert not {keep} or keep_memory()
def faults():
    torch.ones(24 << 20)  # freed at once; the next is smaller, since aligned blocks need some room around them
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)  # 64 MiB: more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(6)))
"""

HUGE = """
import numpy, torch
{before}
def huge():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("AnonHugePages"))
before = huge()
made = {made}
print(huge() - before)
"""


def huge_pages() -> bool:
    file = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return file.exists() and "[never]" not in file.read_text() and memory._glibc() is not None


def printed(code: str) -> int:
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(memory._glibc() is None, reason="needs glibc")
def test_a_large_tensor_is_given_the_pages_of_the_last():
    def count(keep: bool) -> int:
        return printed(FAULTS.format(keep=keep))

    assert count(keep=True) < 20 < count(keep=False)


@pytest.mark.skipif(not huge_pages(), reason="needs a system that gives huge pages on request")
def test_large_memory_lies_in_huge_pages():
    # what a command imports makes no tensor yet
    before = "import tool.train, tool.test; from util.record.memory import keep_memory; keep_memory()"
    assert printed(HUGE.format(before=before, made="torch.ones(16 << 20)")) > 32 << 10  # KiB, of 64 MiB


def test_a_platform_without_glibc_says_so(monkeypatch, caplog):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.log, "propagate", True)
    with caplog.at_level("INFO", logger=memory.log.name):
        assert memory.keep_memory() is False
    assert "no glibc" in caplog.text
