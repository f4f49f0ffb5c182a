"""TensorBoard's file: read by TensorBoard's own rules, and a disk that is full ends no run."""

import errno
import os
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from util.record import events

pytestmark = pytest.mark.fast


def crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli), bit by bit, RFC 3720, masked as TFRecord does."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read(folder) -> list[Event]:
    """Every record of the folder's only event file; its checksums are right."""
    (file,) = folder.glob("events.out.tfevents.*")
    content, found = file.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        body = content[12 : 12 + size]
        sums = struct.unpack("<I", content[8:12]) + struct.unpack("<I", content[12 + size : 16 + size])
        assert sums == (crc32c(content[:8]), crc32c(body))
        found.append(Event.FromString(body))
        content = content[16 + size :]
    return found


def test_what_is_written_is_read_again(tmp_path):
    writer = events.Events(tmp_path, purge_step=7)
    writer.add_scalar("train/loss", 0.5, 7)
    writer.add_image("val/a", np.zeros((2, 3, 3), np.uint8), 8)
    first, purge, scalar, picture = read(tmp_path)
    writer.close()
    assert first.file_version == "brain.Event:2"
    assert (purge.step, purge.session_log.status) == (7, SessionLog.START)
    assert (scalar.step, scalar.summary.value[0].tag, scalar.summary.value[0].simple_value) == (7, "train/loss", 0.5)
    assert (picture.summary.value[0].image.height, picture.summary.value[0].image.width) == (2, 3)


def test_a_curve_is_one_that_its_plugin_draws(tmp_path):
    """Of TensorBoard's documentation: six rows over the thresholds, in float32, and their number for the plugin."""
    curve = np.arange(6 * 127, dtype=float).reshape(6, 127)
    writer = events.Events(tmp_path)
    writer.add_curve("curve/sky", curve, 9)
    writer.close()
    value = read(tmp_path)[-1].summary.value[0]
    assert value.tag == "curve/sky" and value.metadata.plugin_data.plugin_name == "pr_curves"
    assert value.metadata.plugin_data.content == bytes((0x10, 127))  # field 2, num_thresholds
    assert [side.size for side in value.tensor.tensor_shape.dim] == [6, 127]
    assert np.array_equal(np.reshape(value.tensor.float_val, (6, 127)), curve)


def test_a_full_disk_is_one_warning_and_the_record_goes_on_once_there_is_room(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(events.log, "propagate", True)
    writer, write, room = events.Events(tmp_path), os.write, [5, 0]

    def full(number, content):
        left = room.pop(0)
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(number, content[:left])  # a disk that fills up takes half a record

    monkeypatch.setattr(events.os, "write", full)
    for step in range(2):
        writer.add_scalar("loss", 1.0, step)
    monkeypatch.undo()
    writer.add_scalar("loss", 1.0, 2)
    writer.close()
    assert [event.step for event in read(tmp_path)] == [0, 2]
    # pytest may hand a record of a logger that did not propagate before to its handler twice
    told = {(record.created, record.getMessage()) for record in caplog.records}
    assert [text.partition(": ")[2] for _, text in told] == [
        "TensorBoard's record has gaps (No space left on device); the run goes on"
    ]


def test_nothing_is_written_without_a_folder(tmp_path):
    events.Events(None).add_scalar("loss", 1.0, 0)
    assert not [*tmp_path.iterdir()]
