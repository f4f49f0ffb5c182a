"""Every value of the schema has a bound that the program can hold: beyond it one line names the key."""

from typing import get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from util.config.load import load
from util.config.schema import Config
from util.config.yamltext import ConfigError

pytestmark = pytest.mark.fast

BASE = {
    "data": {"name": "custom", "root": "x", "classes": ["a", "b"]},
    "model": {"name": "fcn"},
    "train": {"epochs": 1, "batch_size": 4},
}
BEYOND = """
seed=18446744073709551616
seed=9223372036854775808
seed=-1
seed=1e3
seed=true
augment.crop=[1000000, 1000000]
augment.crop=[32768, 32768]
augment.crop=[0, 5]
augment.crop=[3]
augment.scale=[1e-300, 1e-300]
augment.scale=[1, 1e300]
augment.scale=[.nan, 1]
augment.rotate=[-1e300, 1e300]
augment.jitter=[1e300, 0, 0, 0]
augment.flip_prob=1.5
data.mean=[1e300, 0, 0]
data.std=[1e-300, 50, 50]
data.std=[1e300, 1e300, 1e300]
data.label_map={0: 99999999999}
data.label_map={0: 256}
data.classes=["", b]
data.classes=["\\x1b[2J]", b]
data.classes=["a\\nb", c]
data.classes=["\\u202eexe", c]
data.root="\\0"
data.val_list="a\\0b"
data.long_side=99999999999
loader.workers=100000
loader.workers=-1
loader.uniform_tile=999999999
model.options={dropout: .nan}
model.options={rate: [1, {deep: -.inf}]}
model.options={"a\\x1b": 1}
model.options={width: 0xffffffffffffffffffff}
loss.options={thresh: .inf}
loss.weights={out: 1e300}
loss.weights={out: -1}
loss.class_weights=[1e300, 1]
loss.class_weights=[]
loss.extra={dice: 1e300}
optim.lr=1e300
optim.lr=0
optim.head_factor=1e300
optim.momentum=1
optim.weight_decay=1e300
optim.power=1e300
optim.warmup_iters=99999999999999999999
optim.clip_grad=1e300
train.epochs=999999999999
train.epochs=1e18
train.batch_size=0
train.batch_size=99999999
train.accumulate=99999999
train.ema=0.99999999999999999999
train.val_scale=1e6
train.val_scale=1e-300
train.save_steps=99999999999
train.log_every=99999999999999
test.scales=[]
test.scales=[1e9]
test.scales=[1e-9]
test.window=[0, 0]
test.window=[99999999, 1]
test.window_batch=99999999
test.stride_rate=1e-300
test.base_size=99999999999
""".strip().splitlines()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


@pytest.mark.parametrize("override", BEYOND)
def test_a_value_that_the_program_cannot_hold_is_refused_by_its_key(file, override):
    with pytest.raises(ConfigError) as error:
        load(file, [override])
    message = str(error.value)
    assert override.partition("=")[0] in message and message.count("\n") == 0
    assert message.isprintable() and len(message) < 400


def sections(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """A section of the schema and those in it."""
    inner = [field.annotation for field in kind.model_fields.values()]
    return [
        kind,
        *(each for one in inner if isinstance(one, type) and issubclass(one, BaseModel) for each in sections(one)),
    ]


def test_every_single_number_of_the_schema_has_an_upper_bound():
    unbounded = [
        f"{section.__name__}.{name}"
        for section in sections(Config)
        for name, field in section.model_fields.items()
        if {int, float} & {field.annotation, *get_args(field.annotation)}
        and not any(hasattr(bound, "le") or hasattr(bound, "lt") for bound in field.metadata)
        and get_origin(field.annotation) not in (tuple, dict)
    ]
    assert not unbounded


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=9223372036854775807", 9223372036854775807),
        ("augment.crop=[4096, 8192]", (4096, 8192)),
        ("augment.scale=[0.01, 100]", (0.01, 100.0)),
        ("test.scales=[0.25, 8]", (0.25, 8.0)),
        ("train.epochs=1000000", 1000000),
        ("data.classes=[a, 漢字]", ("a", "漢字")),
    ],
)
def test_a_value_within_the_bounds_is_taken(file, override, words):
    config = load(file, [override]).config
    for name in override.partition("=")[0].split("."):
        config = getattr(config, name)
    assert config == words


def test_a_text_of_megabytes_is_told_by_its_length(file):
    with pytest.raises(ConfigError, match="data.root: a text of 400,000 letters; at most 4,096") as error:
        load(file, ["data.root=" + "x" * 400_000])
    assert len(str(error.value)) < 200
