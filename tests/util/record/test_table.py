"""Columns of text in a terminal."""

import pytest

from util.record.table import aligned, columns

pytestmark = pytest.mark.fast


def test_columns_stand_below_one_another():
    assert aligned([["class", "IoU"], ["road", "9"], ["a", "10.5"]]) == ["class   IoU", "road      9", "a      10.5"]


def test_letters_of_two_columns_and_of_none():
    assert columns("road") == 4 and columns("道路") == 4 and columns("e\u0301") == 1 and columns("سيارة") == 5
    lines = aligned([["道路", "1"], ["road", "2"]])
    assert lines == ["道路  1", "road  2"]


def test_what_moves_the_cursor_is_written_out():
    assert aligned([["a\x1b[2J\nb", "1"]]) == ["a\\x1b[2J b  1"]
