"""A process that will end with a failure waits for torchrun's other processes, which would be ended with it."""

import threading

import pytest
import torch.distributed as dist

from tests.conftest import free_port
from util.dist import leave


@pytest.fixture
def store(monkeypatch):
    """torchrun's store, and the environment of its first of two processes."""
    port = free_port()
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in (known | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    return dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)


def test_it_waits_for_the_others(store, monkeypatch):
    waiting = threading.Thread(target=leave, args=(True,))
    waiting.start()
    store.wait(["leave/0/0"])
    assert waiting.is_alive()
    monkeypatch.setenv("RANK", "1")
    leave(False)  # of the other process, which has no failure, and does not wait
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_start_anew_is_another_time(store, monkeypatch):
    leave(False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    leave(False)
    assert store.check(["leave/0/0", "leave/1/0"])


@pytest.mark.parametrize("name", ["WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"])
def test_without_torchrun_nobody_is_waited_for(store, monkeypatch, name):
    monkeypatch.delenv(name)
    leave(True)
