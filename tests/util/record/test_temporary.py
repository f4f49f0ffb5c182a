"""Temporary folders of killed processes are deleted by the next, and nothing else is."""

import os
import signal
import tempfile

from tests.faults.runs import CONTEXT
from util.record.temporary import OWNER, SIGN, temporary_folder


def hold(place, pipe):
    tempfile.tempdir = str(place)
    with temporary_folder("launch") as folder:
        (folder / "experiment.yaml").write_text("x")
        pipe.send(folder)
        signal.pause()


def test_a_folder_of_a_killed_process_is_deleted_by_the_next_and_no_other(tmp_path, monkeypatch):
    place = tmp_path
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(place, theirs))
    process.start()
    left = ours.recv()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    # what looks like one, but is none: not signed, of another purpose, a link
    (place / f"segmentation_{os.getuid()}_launch_mine").mkdir()
    (place / f"segmentation_{os.getuid()}_launch_mine" / OWNER).write_text("mine")
    (place / f"segmentation_{os.getuid()}_run_x").mkdir()
    (place / f"segmentation_{os.getuid()}_run_x" / OWNER).write_bytes(SIGN)
    (place / f"segmentation_{os.getuid()}_launch_link").symlink_to(f"segmentation_{os.getuid()}_run_x")
    others = sorted(path.name for path in place.iterdir() if path != left)
    with temporary_folder("launch") as folder:
        assert left.is_dir(), "its process lives"
        assert folder.is_dir()
    process.kill()
    process.join()
    with temporary_folder("launch"):
        assert not left.exists()
    assert sorted(path.name for path in place.iterdir()) == others
