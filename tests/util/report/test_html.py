"""What the page of a result shows, computed by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from util.report.html import chart, confusions, facts, rounded_top

pytestmark = pytest.mark.fast


def test_the_largest_confusions_are_those_of_the_matrix():
    matrix = np.array([[90, 0, 10], [30, 50, 20], [0, 0, 0]])
    rows = confusions(SimpleNamespace(matrix=matrix, names=("a", "b", "c")))
    assert [(row["truth"], row["prediction"], row["pixels"], row["share"]) for row in rows] == [
        ("b", "a", 30, 0.3),
        ("b", "c", 20, 0.2),
        ("a", "c", 10, 0.1),
    ]
    assert confusions(SimpleNamespace(matrix=np.diag([3, 4]), names=("a", "b"))) == []


@pytest.mark.parametrize(
    ("largest", "top"), [(1.957, 2), (2.0, 2), (2.1, 2.4), (0.37, 0.4), (100, 100), (7.3, 8), (9, 10), (1e-9, 1e-9)]
)
def test_an_axis_ends_at_a_round_number(largest, top):
    assert rounded_top(largest) == pytest.approx(top)


def test_the_points_of_a_chart_by_hand():
    found = chart([("loss", None, [(1.0, 4.0), (3.0, 1.0)])], None)
    assert found["lines"][0]["points"] == [(0.0, 0.0), (640.0, 180.0)]
    assert [text for _, text in found["ticks"]] == ["0", "1", "2", "3", "4"]


def test_facts_are_words():
    metrics = {"num_images": 3, "seconds_per_image": None, "checkpoint": None, "versions": {}, "dirty": True}
    metrics |= {"protocol": {"flip": False, "window": None, "scales": [0.5, 1], "engine": {"name": "torch"}}}
    assert facts(metrics) == [
        ("protocol: flip", "no"),
        ("protocol: window", "–"),
        ("protocol: scales", "0.5, 1"),
        ("protocol: engine", "name torch"),
        ("images", "3"),
        ("seconds per image", "–"),
        ("files differ from the commit", "yes"),
    ]
