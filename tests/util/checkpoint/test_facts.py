"""What a checkpoint knows beside its weights."""

import pytest

from util.checkpoint.facts import Facts, check_facts, facts_of

pytestmark = pytest.mark.fast

KNOWN = Facts(
    dataset="custom",
    classes=("sky", "grass"),
    colors=((1, 2, 3), (4, 5, 6)),
    label_map={"7": 0, "1,2,3": 1},
    mean=(1.0, 2.0, 3.0),
    std=(4.0, 5.0, 6.0),
    channel_order="bgr",
    protocol={"scales": [1.0], "flip": True},
)


def test_facts_come_back_from_the_entries_of_a_checkpoint():
    assert facts_of(KNOWN.entries()) == KNOWN
    assert Facts().entries() == {} and facts_of({}) == Facts()


def test_a_checkpoint_of_an_earlier_version_has_them_in_its_experiment():
    config = {
        "data": {"name": "rugd", "mean": [9, 9, 9], "std": [8, 8, 8], "classes": None},
        "test": {
            "scales": [0.5, 1.0],
            "flip": True,
            "window": "none",
            "stride_rate": 0.5,
            "base_size": 96,
            "amp": "off",
        },
    }
    found = facts_of({"config": config, "classes": ["a", "b"], "colors": [[0, 0, 1], [0, 0, 2]]})
    assert (found.dataset, found.mean, found.std, found.channel_order) == ("rugd", (9, 9, 9), (8, 8, 8), "rgb")
    assert found.classes == ("a", "b") and found.colors == ((0, 0, 1), (0, 0, 2)) and found.label_map is None
    assert found.protocol == {
        "scales": [0.5, 1.0], "flip": True, "window": "none", "stride_rate": 0.5, "base_size": 96
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"dataset": 3}, "'dataset'"),
        ({"label_map": {"7": "sky"}}, "'label_map'"),
        ({"label_map": {"7": 2}, "classes": ["a", "b"]}, "'7' to 2, which is none of 2 classes"),
        ({"label_map": {"road": 0}}, "'label_map'"),
        ({"label_map": {"7": -1}}, "'label_map'"),
        ({"protocol": [1]}, "'protocol'"),
        ({"preprocessing": {"mean": [1, 2, 3], "std": [0, 1, 1]}}, "'preprocessing' has no sound mean and std"),
        ({"preprocessing": {"mean": [1, 2, float("nan")], "std": [1, 1, 1]}}, "no sound mean and std"),
        ({"preprocessing": {"mean": [1, 2, 3], "std": [1, 1]}}, "no sound mean and std"),
        ({"preprocessing": {"channel_order": "grb"}}, "channel order 'grb'"),
        ({"config": {"data": {"mean": "white"}}}, "'config.data' has no sound mean"),
    ],
)
def test_unsound_facts_are_named(entries, told):
    with pytest.raises(ValueError, match=told):
        check_facts(entries)
