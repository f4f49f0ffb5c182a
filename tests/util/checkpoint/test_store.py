"""The checkpoints of a run: the newest that is whole is found, whatever happened to the others."""

import errno
import json
import logging
import os
import threading

import pytest
import torch

from tests import reliability
from tests.faults.damages import DAMAGES
from util import checkpoint, dist
from util.checkpoint import store
from util.checkpoint.manifest import digest, epoch_name
from util.checkpoint.store import CheckpointWriter, Found, SavedCheckpoints, prepare_folder
from util.record.files import sha256

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def told(monkeypatch, caplog):
    """What is logged, as text."""
    monkeypatch.setattr(store.log, "propagate", True)
    caplog.set_level(logging.INFO, store.log.name)
    return caplog


def write(folder, count, first=1, *, best=(), found=None, **options) -> CheckpointWriter:
    """A run that saves the epochs first..count, those in `best` as the best so far."""
    prepare_folder(folder)
    checkpoints = CheckpointWriter(folder, found, **options)
    for epoch in range(first, count + 1):
        state = {"epoch": epoch, "w": torch.full((50000,), float(epoch))}
        facts = {"step": 10 * epoch, "epoch": epoch, "config": "c", "data": "d"}
        checkpoints.save(epoch_name(epoch), state, facts, epoch in best, wait=True)
    return checkpoints


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def epoch_of(path) -> int:
    return checkpoint.load(path)["epoch"]


def newest(folder) -> Found | None:
    return SavedCheckpoints(folder).newest()


def test_the_newest_is_found_and_the_last_two_and_the_best_stay(tmp_path):
    write(tmp_path, 5, best=(1, 2))
    assert names(tmp_path) == [
        "best.pth",
        "epoch_0002.json",
        "epoch_0002.pth",
        "epoch_0004.json",
        "epoch_0004.pth",
        "epoch_0005.json",
        "epoch_0005.pth",
        "last.pth",
    ]
    found = newest(tmp_path)
    assert epoch_of(found.path) == 5 and found.best == "epoch_0002.pth"
    assert epoch_of(tmp_path / "last.pth") == 5 and epoch_of(tmp_path / "best.pth") == 2
    assert os.path.samefile(tmp_path / "last.pth", tmp_path / "epoch_0005.pth"), "no second copy of the bytes"


def test_every_nth_epoch_stays_for_ever(tmp_path):
    write(tmp_path, 7, keep_last=1, keep_every=3)
    assert [n for n in names(tmp_path) if n.endswith(".pth")] == [
        "epoch_0003.pth",
        "epoch_0006.pth",
        "epoch_0007.pth",
        "last.pth",
    ]


def test_the_best_of_the_one_before_the_newest_stays_too(tmp_path):
    """If the newest is lost, the best that the one before knows must still be there."""
    write(tmp_path, 4, best=(1, 4))
    (tmp_path / "epoch_0004.pth").write_bytes(b"")
    assert epoch_of(newest(tmp_path).path) == 3 and epoch_of(tmp_path / "best.pth") == 1


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_newest_is_named_and_the_one_before_is_used(tmp_path, told, name):
    write(tmp_path, 3, best=(2,))
    DAMAGES[name](tmp_path / "epoch_0003.pth", tmp_path / "epoch_0003.json")
    prepare_folder(tmp_path)
    found = newest(tmp_path)
    assert epoch_of(found.path) == 2
    assert "epoch_0003" in told.text
    assert epoch_of(tmp_path / "last.pth") == epoch_of(tmp_path / "best.pth") == 2
    write(tmp_path, 4, first=3, found=found)
    assert epoch_of(newest(tmp_path).path) == 4 and not list(tmp_path.glob(".*"))


def test_where_all_are_damaged_the_run_is_not_started_anew_by_itself(tmp_path):
    write(tmp_path, 3)
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="no checkpoint of this run is whole") as error:
        newest(tmp_path)
    for part in ("epoch_0002.pth", "epoch_0003.pth", "train.resume=never"):
        assert part in str(error.value)


def test_a_whole_checkpoint_without_a_manifest_is_used_where_there_is_no_other(tmp_path):
    """A run killed between its first checkpoint and the manifest, or files that were copied here without theirs."""
    write(tmp_path, 2)
    for path in [*tmp_path.glob("*.json"), tmp_path / "last.pth"]:
        path.unlink()
    (tmp_path / "notes.json").write_text("of the user's own")
    os.utime(tmp_path / "epoch_0001.pth", (1, 1))
    assert epoch_of(newest(tmp_path).path) == 2
    (tmp_path / "epoch_0002.pth").write_bytes(b"PK")
    assert epoch_of(newest(tmp_path).path) == 1
    assert names(tmp_path) == ["epoch_0001.pth", "epoch_0002.pth", "notes.json"], "nothing is deleted"


def test_a_lone_last_is_continued_if_its_own_checksums_are_right(tmp_path):
    write(tmp_path, 2)
    for name in names(tmp_path):
        if name != "last.pth":
            (tmp_path / name).unlink()
    assert epoch_of(newest(tmp_path).path) == 2
    content = bytearray((tmp_path / "last.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "last.pth").write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        newest(tmp_path)


def test_aliases_are_put_right(tmp_path):
    write(tmp_path, 3, best=(2,))
    (tmp_path / "last.pth").unlink()
    (tmp_path / "last.pth").mkdir()
    (tmp_path / "best.pth").unlink()
    (tmp_path / "best.pth").write_bytes(b"torn")
    newest(tmp_path)
    assert epoch_of(tmp_path / "last.pth") == 3 and epoch_of(tmp_path / "best.pth") == 2


def test_a_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    def no_link(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    write(tmp_path, 2, best=(1,))
    assert epoch_of(tmp_path / "last.pth") == 2 and epoch_of(tmp_path / "best.pth") == 1


def test_a_new_run_replaces_the_old_one_only_when_it_has_a_checkpoint(tmp_path):
    write(tmp_path, 9, best=(9,))
    assert epoch_of(newest(tmp_path).path) == 9
    write(tmp_path, 1)
    assert epoch_of(newest(tmp_path).path) == 1, "the newest in time, not the one of the most epochs"
    assert names(tmp_path) == ["epoch_0001.json", "epoch_0001.pth", "last.pth"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_leaves_what_was_there_and_is_told_at_the_next_save(tmp_path, monkeypatch):
    checkpoints = write(tmp_path, 2)
    real = open

    def full(name, *args, **kwargs):
        return real("/dev/full" if str(name).endswith(".part") else name, *args, **kwargs)

    monkeypatch.setattr("builtins.open", full)
    facts = {"step": 30, "epoch": 3, "config": "c", "data": "d"}
    checkpoints.save("epoch_0003", {"epoch": 3}, facts, False, wait=False)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save("epoch_0004", {"epoch": 4}, facts, False, wait=False)
    monkeypatch.undo()
    assert epoch_of(newest(tmp_path).path) == 2


def test_a_save_does_not_hold_up_the_step_and_one_is_under_way_at_most(tmp_path, monkeypatch):
    gate, running, most = threading.Event(), [], []
    original = checkpoint.save

    def slow(path, state):
        running.append(path)
        most.append(len(running))
        assert gate.wait(20)
        running.remove(path)
        return original(path, state)

    monkeypatch.setattr(checkpoint, "save", slow)
    checkpoints = CheckpointWriter(tmp_path)
    facts = {"step": 1, "epoch": 1, "config": "c", "data": "d"}
    checkpoints.save("step_00000001", {"epoch": 1}, facts, False, wait=False)
    assert not (tmp_path / "last.pth").exists()
    threading.Timer(0.2, gate.set).start()
    checkpoints.save("step_00000002", {"epoch": 2}, facts, False, wait=False)
    checkpoints.wait()
    assert most == [1, 1] and epoch_of(tmp_path / "last.pth") == 2


def test_a_disk_that_does_not_answer_is_told_and_not_waited_for(tmp_path, monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(checkpoint, "save", lambda *_: answer.wait(60))
    monkeypatch.setenv("SAVE_TIMEOUT", "0.2")
    writer = CheckpointWriter(tmp_path)
    with pytest.raises(RuntimeError, match="not written after 0.2 s: its disk or file server does not answer") as error:
        writer.save("epoch_0001", {"x": 1}, {}, False, wait=True)
    assert dist.lost_peer(error.value) == str(error.value)  # its status is that of what is lost
    writer.close()  # comes back
    answer.set()


def test_the_manifest_says_what_the_file_is(tmp_path):
    write(tmp_path, 1)
    manifest = json.loads((tmp_path / "epoch_0001.json").read_text())
    assert manifest["sha256"] == sha256(tmp_path / "epoch_0001.pth")
    assert (manifest["step"], manifest["epoch"], manifest["size"]) == (
        10,
        1,
        (tmp_path / "epoch_0001.pth").stat().st_size,
    )


def test_bytes_that_come_back_wrong_are_no_checkpoint(tmp_path, monkeypatch):
    write(tmp_path, 1)
    monkeypatch.setattr("util.checkpoint.file.sha256", lambda path: "0")
    with pytest.raises(OSError, match="gives back other bytes"):
        checkpoint.save(tmp_path / "epoch_0002.pth", {"w": torch.zeros(3)})
    assert names(tmp_path) == ["epoch_0001.json", "epoch_0001.pth", "last.pth"]


def others(folder) -> dict[str, bytes]:
    """The content of every file, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_nothing_that_the_run_did_not_write_is_deleted(tmp_path, told):
    """A user's copies and notes, whatever they are called, also where a name of the run's own is taken."""
    write(tmp_path, 2)
    whole = (tmp_path / "epoch_0001.pth").read_bytes()
    mine = {
        "epoch_0001_copy.pth": whole,
        "epoch_0001_copy.json": (tmp_path / "epoch_0001.json").read_bytes(),
        "epoch_0003.pth": b"another run's",
        "epoch_0004.json": b'{"notes": "on epoch 4"}',
        "epoch_0005.pth": whole,
        ".epoch_0001.pth.1.part": b"notes under a name of ours",
        ".notes.1.part": b"",
        "best.pth": whole + b"x",
    }
    for name, content in mine.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".step_00000001.pth.1.part").mkdir()
    prepare_folder(tmp_path)
    found = newest(tmp_path)
    write(tmp_path, 8, first=3, best=(3,), found=found, keep_last=1)
    assert set(mine.values()) <= set(others(tmp_path).values())
    for name in ("epoch_0003.pth", "epoch_0005.pth", "best.pth"):
        assert f"{name} was not written by this run; it is" in told.text and (tmp_path / f"{name}.kept").is_file()
    assert epoch_of(tmp_path / "best.pth") == 3 and epoch_of(newest(tmp_path).path) == 8


def test_a_checkpoint_that_was_exchanged_is_not_deleted_by_its_name(tmp_path, told):
    write(tmp_path, 2)
    (tmp_path / "epoch_0001.pth").unlink()
    (tmp_path / "epoch_0001.pth").write_bytes(b"another run's")
    write(tmp_path, 4, first=3, found=newest(tmp_path))
    assert (tmp_path / "epoch_0001.pth").read_bytes() == b"another run's"
    assert "epoch_0001.pth is no longer what its manifest says" in told.text


def test_a_checkpoint_that_was_killed_before_its_manifest_leaves_no_second_copy(tmp_path):
    write(tmp_path, 3)
    (tmp_path / "epoch_0003.json").unlink()
    write(tmp_path, 3, first=3, found=newest(tmp_path))
    assert not [name for name in names(tmp_path) if "kept" in name or "damaged" in name]


def test_a_whole_checkpoint_whose_manifest_is_damaged_is_used_where_there_is_no_other(tmp_path, told):
    write(tmp_path, 1)
    (tmp_path / "last.pth").unlink()
    (tmp_path / "epoch_0001.json").write_bytes(b"\xff")
    found = newest(tmp_path)
    assert epoch_of(found.path) == 1 and "its own checksums are right" in told.text
    assert (tmp_path / "epoch_0001.json.damaged").read_bytes() == b"\xff"


@pytest.mark.parametrize("change", [{"serial": "x"}, {"best": 5}, {"best": "../../other.pth"}, {"run": None}])
def test_a_sealed_manifest_of_other_kinds_is_damaged(tmp_path, told, change):
    write(tmp_path, 2)
    notes = tmp_path / "epoch_0002.json"
    content = {**json.loads(notes.read_text()), **change}
    content.pop("seal")
    notes.write_text(json.dumps(content | {"seal": digest(content)}))
    assert epoch_of(newest(tmp_path).path) == 1 and f"its {next(iter(change))} is" in told.text


def test_no_checkpoint_is_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    for name in ("epoch_0001.pth", "epoch_0001.json", "last.pth", "best.pth"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).symlink_to(tmp_path / "precious")
    write(tmp_path / "model", 1, best=(1,))
    assert (tmp_path / "precious").read_text() == "mine" and epoch_of(tmp_path / "model" / "best.pth") == 1


def test_a_disk_that_is_full_leaves_the_file_that_had_the_name(tmp_path, monkeypatch):
    (tmp_path / "epoch_0001.pth").write_bytes(b"another run's")

    def full(path, state):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path, 1)
    assert (tmp_path / "epoch_0001.pth").read_bytes() == b"another run's"


def test_the_table_of_faults_is_that_of_the_recorded_ones():
    text = (reliability.DOCS / "reliability.md").read_text(encoding="utf-8")
    assert text == reliability.page(text, reliability.read(reliability.DOCS / "reliability.json"))


def test_recorded_faults_replace_those_of_the_same_name(tmp_path):
    file = tmp_path / "rows.json"
    reliability.write(file, [reliability.Row("a", 1, "x"), reliability.Row("b", 2, "y")])
    reliability.write(file, [reliability.Row("a", 9, "z")])
    assert reliability.read(file) == [reliability.Row("a", 9, "z"), reliability.Row("b", 2, "y")]
