"""Runs that are killed at random moments end in the weights of the uninterrupted run. FAULT_KILLS: how many kills."""

import os
import random
import signal
from functools import partial

import pytest

from tests.faults.kills import Scenario, by_signal, in_a_save

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("FAULT_KILLS", 3))  # for each line of the table
SCENARIOS = {
    "one process": {},
    "two loader workers": {"loader": {"workers": 2}},
    "two processes": {"world": 2},
    "class-uniform sampling, EMA, accumulation": {"loader": {"uniform": 0.5}, "train": {"ema": 0.9, "accumulate": 2}},
    "two processes: Sync-BN, OHEM, uniform sampling, accumulation, EMA, bf16, jitter, cache": {
        "world": 2,
        "model": {"sync_bn": True},
        "loss": {"name": "ohem", "options": {"min_kept": 500}, "extra": {"dice": 0.5}},
        "augment": {"jitter": [0.3, 0.3, 0.3, 0.1]},
        "loader": {"uniform": 0.5, "workers": 1, "cache": "memory"},
        "train": {"ema": 0.9, "accumulate": 2, "amp": "bf16"},
        "optim": {"clip_grad": 1.0},
    },
    "semantic flow with deep supervision, OHEM, recomputation, bf16, EMA": {
        "model": {"name": "semanticflow", "backbone": "resnet18", "options": {"deep_supervision": True}},
        "loss": {
            "name": "ohem",
            "options": {"min_kept": 500},
            "weights": {"out": 1, "dsn0": 0.4, "dsn1": 0.4, "dsn2": 0.4},
        },
        "train": {"ema": 0.9, "amp": "bf16", "checkpointing": True, "epochs": 2},
    },
    "fp16, packed, OHEM, uniform sampling, accumulation, EMA, jitter, two loader workers": {
        "loss": {"name": "ohem", "options": {"min_kept": 500}},
        "augment": {"jitter": [0.3, 0.3, 0.3, 0.1]},
        "loader": {"uniform": 0.5, "workers": 2, "packed": "auto"},
        "train": {"ema": 0.9, "accumulate": 2, "amp": "fp16"},
    },
    "compiled, packed, EMA, accumulation, jitter": {
        "augment": {"jitter": [0.3, 0.3, 0.3, 0.1]},
        "loader": {"packed": "auto"},
        "train": {"ema": 0.9, "accumulate": 2, "compile": True},
    },
}


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory, data):
    made = {}

    def get(name: str) -> Scenario:
        if name not in made:
            folder = tmp_path_factory.mktemp("scenario")
            made[name] = Scenario(folder, data, **SCENARIOS[name])
        return made[name]

    return get


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name
)
def test_killed_at_random_moments(scenarios, record_fault, name, number):
    scenarios(name).survive(KILLS, random.Random(f"{name} {number}"), partial(by_signal, number))
    record_fault(f"{number.name} at a random moment; {name}", KILLS, "continued, final state bitwise equal")


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_in_a_save(scenarios, record_fault, name):
    scenarios(name).survive(KILLS, random.Random(name), in_a_save)
    record_fault(f"SIGKILL at a system call of a save; {name}", KILLS, "continued, final state bitwise equal")
