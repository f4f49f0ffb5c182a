"""The measurement of long lists, on short ones."""

import json

from dataset.prepare.check import check_dataset
from tool import bench
from tool.bench import lists
from tool.bench.plain import lists as plain


def test_a_list_of_links_is_read_and_checked(tmp_path):
    lists.write_pictures(tmp_path / "f")
    file = lists.write_list(tmp_path, 250, True)
    dataset = lists.opened(tmp_path, file)
    pairs, names = plain.read(file, tmp_path)
    assert list(dataset.samples) == pairs and len(set(pairs)) == 250 and names[:100] == names[100:200]
    report = check_dataset(dataset)
    assert report.images == 250 and sum(report.pixels) == 250 * 32 * 32


def test_the_report_has_time_and_memory_of_each_list(tmp_path, capsys):
    words = ["lists", "--samples", "100", "300", "--plain", "100", "--check", "120", "230", "--rounds", "1"]
    assert bench.main([*words, "--json", str(tmp_path / "lists.json")]) == 0
    report = json.loads((tmp_path / "lists.json").read_text())
    contenders = [[row["name"] for row in table["rows"]] for table in report["tables"]]
    assert contenders == [["Python objects", "ours"], ["ours"]]
    kinds = [(100, "a start"), (300, "a start"), (120, "the check"), (230, "the check")]
    assert list(report["figures"]) == [f"{count} samples: {kind}" for count, kind in kinds]
    assert "opening the list" in capsys.readouterr().out
