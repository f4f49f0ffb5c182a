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
