"""Ratios, quartiles and memory of the measurements, on figures made by hand."""

import mmap
import time

import pytest

from tests.paths import ROOT
from tool.bench.report import FOLDER, Report, Table, page, read_report
from tool.bench.timing import Row, alternate, peak_memory_added, summarise


def test_contenders_take_turns_and_the_warmup_does_not_count():
    calls = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=2)
    assert "".join(calls) == "ab" * 5
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_a_contender_settles_before_each_of_its_runs():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "ab"}
    alternate(contenders, rounds=1, warmup=1, settle=lambda run: (calls.append("-"), run()))
    assert "".join(calls) == "-aa-bb" * 2


def test_a_sleeping_contender_costs_wall_time_and_no_cpu():
    contenders = {"sleep": lambda: time.sleep(0.05)}
    assert alternate(contenders, 1, 0, "wall")["sleep"][0] >= 0.05
    assert alternate(contenders, 1, 0, "cpu")["sleep"][0] < 0.05


def test_ratios_are_taken_within_the_rounds():
    """A neighbour slows the second round threefold: the ratio does not see it."""
    rows = summarise({"old": [4.0, 12.0, 4.4], "new": [2.0, 6.0, 2.0]}, units=2)
    assert rows[0] == Row("old", 2.2, 2.1, 4.1, 1.0, 1.0, 1.0)
    assert rows[1].median == 1.0 and rows[1].ratio == 2.0
    assert (rows[1].ratio_low, rows[1].ratio_high) == pytest.approx((2.0, 2.1))


def test_memory_that_a_function_adds():
    def use_40_mib():  # of the system, not what the process had before, and freed again
        with mmap.mmap(-1, 40 * 2**20) as memory:
            memory.write(b"x" * len(memory))

    assert 38 < peak_memory_added(use_40_mib) < 100
    with pytest.raises(RuntimeError, match="failed"):
        peak_memory_added(lambda: 1 / 0)


def test_a_report_survives_its_file_and_makes_a_page(tmp_path, capsys):
    rows = summarise({"plain": [0.2, 0.2], "ours": [0.05, 0.05]})
    table = Table("one picture", rows, "ms", 1000, {"ours": {"agreement": 0.99999, "from": "PNG"}})
    figures = {"memory": {"a": 1.5}}
    report = Report("data", "toy small", "one thread", "decoding", "uint8", [table], figures, ("made up",))
    report.show(tmp_path / "deep" / "data.json")
    text = capsys.readouterr().out
    assert "ours" in text and "4.00" in text and "50.0" in text and "PNG" in text
    again, where = read_report(tmp_path / "deep" / "data.json")
    assert again == report and where["cores"] >= 1
    written = page(tmp_path / "deep")
    assert "| ours | 50.0 (50.0 to 50.0) | 4.00 (4.00 to 4.00) | 1 | PNG |" in written
    assert "made up" in written and "| memory |  |\n|---|---|\n| a | 1.5 |" in written


def test_the_page_of_measurements_is_that_of_the_files():
    folder = ROOT / FOLDER
    assert (folder.parent / "performance.md").read_text(encoding="utf-8") == page(folder) + "\n"
