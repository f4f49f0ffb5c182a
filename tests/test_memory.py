"""Freed memory that is kept costs no page faults when it is asked for again."""

import subprocess
import sys

import pytest

from util import memory

FAULTS = """
import resource, torch
from util.memory import keep_memory
assert not {keep} or keep_memory()
def faults():
    torch.ones(24 << 20)  # freed at once; the next is smaller, since aligned blocks need some room around them
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)  # 64 MiB: more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(6)))
"""


@pytest.mark.skipif(memory._glibc() is None, reason="needs glibc")
def test_a_large_tensor_is_given_the_pages_of_the_last():
    def count(keep: bool) -> int:
        command = [sys.executable, "-c", FAULTS.format(keep=keep)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert count(keep=True) < 20 < count(keep=False)


def test_a_platform_without_glibc_says_so(monkeypatch, caplog):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    monkeypatch.setattr(memory.log, "propagate", True)
    with caplog.at_level("INFO", logger=memory.log.name):
        assert memory.keep_memory() is False
    assert "no glibc" in caplog.text
