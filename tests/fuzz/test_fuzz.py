"""Every reader takes ten thousand changed files without a crash, a hang, an unnamed error or gigabytes."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz import hostile

SHORT = 25  # inputs a reader in the ordinary suite


def fuzz(name: str, folder, count: int, always_the_same: bool) -> int:
    """Gives `count` inputs to a reader; how many there were."""
    reader = hostile.READERS[name]
    tried = 0

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=always_the_same,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(hostile.inputs(reader))
    def each(data):
        nonlocal tried
        tried += 1
        hostile.judge(reader, folder, data)

    with hostile.bounded():
        each()
    return tried


@pytest.mark.parametrize("name", hostile.READERS)
def test_some_changed_files_are_taken_or_refused_by_name(name, tmp_path):
    assert fuzz(name, tmp_path, SHORT, True) >= SHORT


@pytest.mark.parametrize("name", hostile.READERS)
def test_the_valid_files_are_judged_too(name, tmp_path):
    reader = hostile.READERS[name]
    taken = [hostile.judge(reader, tmp_path, seed) for seed in reader.seeds()]
    assert any(taken), "the fuzzing would never get past the first check"


@pytest.mark.faults
@pytest.mark.parametrize("name", hostile.READERS)
def test_many_changed_files_are_taken_or_refused_by_name(name, tmp_path, record_fault):
    tried = fuzz(name, tmp_path, hostile.READERS[name].share, False)
    assert tried >= hostile.READERS[name].share
    record_fault(f"files with changed bytes: {name}", tried, "read, or refused with an error that names the file")


def test_the_long_run_is_of_ten_thousand():
    assert sum(reader.share for reader in hostile.READERS.values()) >= 10_000
