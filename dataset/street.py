"""Street: the embedded default data set of drawn street scenes.

This project draws them itself: no download, no licence. The scenes are drawn once into the data root, as ordinary PNG
files and list files, and read from there like any other data set. How they are drawn stands in `dataset/scene/`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np

from dataset import scene
from dataset.base import SegDataset
from dataset.read import DataError
from dataset.read.files import read_bytes
from dataset.read.remote import Url, place
from dataset.scene import CLASSES, draw_scene, draw_share

__all__ = ["Street", "draw_scene", "prepare"]

STAMP = "street.json"
CONTENTS = {"image", "label", "train.txt", "val.txt", STAMP}
SCENES_PER_WORKER = 16  # fewer are not worth the start of a process
INSTALL_TRIES = 40
ABANDONED = 3600  # seconds after which an unfinished drawing is taken for one whose process was killed

COLORS = (
    (70, 130, 180),
    (70, 70, 70),
    (128, 64, 128),
    (250, 250, 250),
    (244, 35, 232),
    (107, 142, 35),
    (153, 153, 153),
    (220, 220, 0),
    (0, 0, 142),
    (220, 20, 60),
    (119, 11, 32),
    (190, 153, 113),
)


class Street(SegDataset):
    """400 scenes for training and 80 for validation, in 12 classes.

    Pictures of 192 x 256, drawn when the root has none. A root that holds a finished set of this version, of whatever
    size and number, is used as it is.
    """

    name = "street"
    classes = CLASSES
    colors = np.array(COLORS, np.uint8)

    def __init__(self, root, list_file=None, **options):
        folder = place(root)
        facts = None if isinstance(folder, Url) else _read_stamp(folder)
        if list_file is None and not isinstance(folder, Url) and not _is_finished(folder, facts):
            drawn = {key: facts[key] for key in ("size", "train", "val", "seed")} if facts else {}
            prepare(root, **drawn)
        super().__init__(root, list_file, **options)


def prepare(root, size: tuple[int, int] = (192, 256), train: int = 400, val: int = 80, seed: int = 0) -> Path:
    """Draw the data set into `root` and return that folder.

    Nothing is drawn where just this set stands there already. size: (height, width). train, val: the number of scenes.
    A scene depends on seed, split and index alone. The set is drawn beside `root` and renamed when complete, so `root`
    never holds half of one, whoever is killed and however many draw at once. Any other street set in `root` is removed.

    Raises:
        DataError: sizes or numbers that cannot be drawn, or a folder that holds anything else than a street set.
    """
    root = Path(root).expanduser()
    facts = {"version": scene.VERSION, "size": list(size), "train": train, "val": val, "seed": seed}
    if min(size) < 32:
        raise DataError(f"street: {size[0]}x{size[1]} (height x width) is too small; draw 32x32 or larger")
    if train < 1 or val < 1 or seed < 0:
        raise DataError(f"street: train={train}, val={val} and seed={seed} must be at least 1, 1 and 0")
    if _is_finished(root, facts):
        return root
    _refuse_foreign(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    _discard(root)
    unfinished = root.with_name(_unfinished(root))
    try:
        print(f"street: drawing {train} + {val} scenes of {size[0]}x{size[1]} into {root}, once", flush=True)
        _draw(unfinished, facts)
        _install(unfinished, root, facts)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def _read_stamp(root: Path) -> dict | None:
    """What the set in `root` says of itself; None where there is none that can be understood."""
    try:
        facts = json.loads(read_bytes(root / STAMP, 1 << 12, "stamp"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    keys = {"version", "size", "train", "val", "seed"}
    return facts if isinstance(facts, dict) and set(facts) == keys else None


def _is_finished(root: Path, facts: dict | None) -> bool:
    """Whether `root` holds the whole set that `facts` describe, drawn by this version."""
    if facts is None or facts["version"] != scene.VERSION or _read_stamp(root) != facts:
        return False
    names = {f"{name}.png" for split in ("train", "val") for name in _names(split, facts[split])}
    pictures = names <= _files_in(root / "image") and names <= _files_in(root / "label")
    return pictures and {"train.txt", "val.txt"} <= _files_in(root)


def _files_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def _names(split: str, count: int) -> list[str]:
    return [f"{split}_{i:05}" for i in range(count)]


def _refuse_foreign(root: Path) -> None:
    """Raise DataError for a root that must not be replaced, because others' files are in it."""
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: is a file; name a folder for the street scenes")
    for _ in range(2):  # a set that another process is just removing looks foreign once
        present = _files_in(root)
        foreign = sorted(present - CONTENTS) if STAMP in present else sorted(present)
        if not foreign:
            return
    raise DataError(
        f"{root}: holds {foreign[0]}, which is not of the street scenes; name an empty or a "
        "new folder for them, or move that away"
    )


def _draw(folder: Path, facts: dict) -> None:
    """Draw the whole set into a new folder, on all processors; the stamp comes last."""
    (folder / "image").mkdir(parents=True)
    (folder / "label").mkdir()
    scenes = facts["train"] + facts["val"]
    workers = max(1, min(_processors(), scenes // SCENES_PER_WORKER))
    height, width = facts["size"]
    order = (str(folder), height, width, facts["train"], facts["val"], facts["seed"])
    if workers == 1:
        draw_share(*order, 0, 1)
    else:
        _draw_in_processes(order, workers)
    for split in ("train", "val"):
        lines = [f"image/{name}.png label/{name}.png\n" for name in _names(split, facts[split])]
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    with open(folder / STAMP, "w", encoding="utf-8") as file:
        file.write(json.dumps(facts, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _draw_in_processes(order: tuple, workers: int) -> None:
    """Each worker runs `dataset.scene.draw`. Threads would wait for one another, the drawing being many small calls;
    multiprocessing would start the caller's main module again."""
    command = [sys.executable, "-m", "dataset.scene.draw", *map(str, order)]
    paths = [str(Path(scene.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    read, write = os.pipe()  # ends with this process, however that ends: the workers read it, and end then as well
    children = [
        subprocess.Popen(
            [*command, str(k), str(workers)], stdin=read, stderr=subprocess.PIPE, text=True, env=environment
        )
        for k in range(workers)
    ]
    try:
        for child in children:
            _, errors = child.communicate()
            if child.returncode != 0:
                last = (errors.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
                raise OSError(f"{order[0]}: the street scenes could not be drawn: {last}")
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
            if child.stderr is not None:
                child.stderr.close()
        os.close(read)
        os.close(write)


def _install(finished: Path, root: Path, facts: dict) -> None:
    """Rename the finished folder to `root`; where another process was first with the same set, that stays."""
    for _ in range(INSTALL_TRIES):
        try:
            finished.rename(root)
            return
        except OSError as error:
            reason = error
        if _is_finished(root, facts):
            return
        time.sleep(0.05)  # another process is about to replace what stands there
    raise reason


def _discard(root: Path) -> None:
    """Remove an outdated or damaged set, all at once as others see it."""
    outdated = root.with_name(_unfinished(root))
    try:
        root.rename(outdated)
    except FileNotFoundError:
        return  # there was none, or another process has removed it
    shutil.rmtree(outdated, ignore_errors=True)


def _unfinished(root: Path) -> str:
    """A name beside `root` that no other process uses."""
    return f".{root.name}-drawing-{uuid.uuid4().hex}"


def _sweep(root: Path) -> None:
    """Remove what drawings left behind whose process was killed."""
    for folder in root.parent.glob(f".{root.name}-drawing-*"):
        try:
            abandoned = time.time() - folder.stat().st_mtime > ABANDONED
        except FileNotFoundError:
            continue  # finished in the meantime
        if abandoned:
            shutil.rmtree(folder, ignore_errors=True)
