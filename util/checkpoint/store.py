"""The checkpoints of a run, in the folder `model/` of it.

    epoch_0003.pth  epoch_0003.json     a checkpoint at the end of an epoch, and its manifest
    step_00000123.pth  ...json          one inside an epoch
    last.pth  best.pth                  the newest and the best of them (links; copies where there are none)

A checkpoint counts once its manifest is there, which is written last and holds the file's size and SHA-256. Older ones
are deleted only then. What is found damaged is named, put aside, and the one before it is used.

Only what a run has written is deleted: a file whose bytes a manifest of the folder describes, or a half-written one.
What else is in the way of a name gets another, with the end .kept or .damaged.
"""

import errno
import os
import re
import shutil
import stat
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeout
from dataclasses import dataclass
from pathlib import Path

from util import UserError, checkpoint, dist
from util.checkpoint.manifest import NAME, Manifest, checkpoint_files, epoch_name, read_manifests, write_manifest
from util.dist.peers import Lost
from util.record import status
from util.record.files import TEMPORARY, replacing, sha256
from util.record.log import log

# What file systems answer that have no hard links.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@dataclass(frozen=True)
class Found:
    """A whole checkpoint.

    best, run: see `Manifest`, None where the file has no manifest.
    """

    path: Path
    best: str | None = None
    run: str | None = None


class SavedCheckpoints:
    """Finds the checkpoint from which a run continues.

    It sets the folder in order.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def newest(self) -> Found | None:
        """Return the newest whole checkpoint, or None; damaged ones are put aside.

        Raises:
            UserError: there are checkpoints, and every one is damaged; lists them.
        """
        manifests, unreadable = read_manifests(self.folder)
        newest, damaged = None, {}
        for manifest in manifests:
            reason = manifest.damage(self.folder)
            if reason is None:
                newest = manifest
                break
            damaged[manifest.file] = reason
        self._put_aside(damaged)
        for name, reason in unreadable.items():
            aside = _rename_aside((self.folder / name).with_suffix(".json"), "damaged")
            log.warning("checkpoint %s: %s; put aside as %s", self.folder / name, reason, aside)
        if newest is None:
            return self._without_manifest(damaged)
        self._tell_of_strangers({manifest.file for manifest in manifests})
        self._restore_best(manifests, newest.best)
        _point(self.folder, "last", newest.file, manifests)
        return Found(self.folder / newest.file, newest.best, newest.run)

    def _put_aside(self, damaged: dict[str, str]) -> None:
        for name, reason in damaged.items():
            path = self.folder / name
            _rename_aside(path.with_suffix(".json"), "damaged")
            aside = _rename_aside(path, "damaged")
            outcome = f"put aside as {aside}" if aside else "its file is missing"
            log.warning("checkpoint %s is damaged: %s; not used, %s", path, reason, outcome)

    def _tell_of_strangers(self, known: set[str]) -> None:
        """Log checkpoints without manifest.

        Their run was killed in between, or somebody copied them here.
        """
        for path in checkpoint_files(self.folder, ".pth"):
            if path.name not in known:
                log.warning("checkpoint %s has no manifest; not used, and left as it is", path)

    def _without_manifest(self, damaged: dict[str, str]) -> Found | None:
        """Return a checkpoint that was copied here, if its own checksums are right.

        last.pth, or else the newest other, or else best.pth.
        """
        others = [path for path in checkpoint_files(self.folder, ".pth") if path.is_file()]
        others.sort(key=lambda path: (path.stat().st_mtime, path.name), reverse=True)
        reasons = dict(damaged)
        for path in [self.folder / "last.pth", *others, self.folder / "best.pth"]:
            if not path.is_file():
                continue
            reason = checkpoint.damage(path)
            if reason is None:
                log.info("%s has no manifest; its own checksums are right", path)
                return Found(path)
            reasons[path.name] = reason
        if not reasons:
            return None
        raise UserError(
            "no checkpoint of this run is whole:\n  "
            + "\n  ".join(f"{self.folder / name}: {reason}" for name, reason in reasons.items())
            + "\nPut one back from a copy, start anew with train.resume=never, or use another --exp folder"
        )

    def _restore_best(self, manifests: list[Manifest], best: str | None) -> None:
        """Have best.pth be what the newest checkpoint says."""
        if best is None:
            return
        manifest = next((manifest for manifest in manifests if manifest.file == best), None)
        reason = "it is missing" if manifest is None else manifest.damage(self.folder)
        if reason is None:
            _point(self.folder, "best", best, manifests)
        else:
            told = "checkpoint %s, the best so far, is lost: %s; the next better one takes its place"
            log.warning(told, self.folder / best, reason)


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread.

    One at a time. Only the main process has one that is used.

    Args:
        found: where the run continues; None for a new run, whose first checkpoint replaces those of the run before.
        keep_last: how many of the newest stay.
        keep_every: each epoch whose number it divides stays as well, 0: none.
    """

    def __init__(self, folder: Path, found: Found | None = None, keep_last: int = 2, keep_every: int = 0):
        self.folder, self.keep_last, self.keep_every = folder, keep_last, keep_every
        self.continued = found
        self.best = found.best if found else None
        self.run = (found and found.run) or uuid.uuid4().hex
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None
        self._patience = dist.seconds("SAVE_TIMEOUT", 1800)
        self._lost = False
        self._newest = ""
        self._written: set[tuple[int, ...] | None] = set()

    def save(self, name: str, state: dict, facts: dict, improved: bool, wait: bool) -> None:
        """Start to write `state`, which nobody may change any more, as NAME.pth.

        Args:
            facts: step, epoch, config and data of its manifest.
            improved: it is the best so far.
            wait: until it is on the disk.

        Raises:
            OSError: this one (if waited for), or the one before, could not be written.
        """
        self.wait()
        if name != self._newest or improved:  # else it was just written
            self._newest = name
            self._pending = self._pool.submit(self._write, name, state, facts, improved)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Its error is raised here.

        Raises:
            Lost: it is not there after SAVE_TIMEOUT seconds.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            if not pending.done():
                status.note(state="saving")
            try:
                pending.result(self._patience)
            except FuturesTimeout:
                self._lost = True
                raise Lost(
                    f"{self.folder}: the newest checkpoint is not written after {self._patience:g} s: its disk or file "
                    "server does not answer; the same command continues from the one before"
                ) from None

    def close(self) -> None:
        """End the thread, once its file is on the disk.

        An error that nobody waited for is logged.
        """
        try:
            self.wait()
        except OSError as error:
            log.error("the last checkpoint was not written: %s", error)
        self._pool.shutdown(wait=not self._lost)

    def keep(self, path: Path) -> bool:
        """Give the newest checkpoint a second name; tell whether there is one."""
        self.wait()
        if self._newest:
            newest = self.folder / f"{self._newest}.pth"
        elif self.continued:
            newest = self.continued.path
        else:
            return False
        _link(newest, path)
        return True

    def _write(self, name: str, state: dict, facts: dict, improved: bool) -> None:
        path = self.folder / f"{name}.pth"
        manifests, unreadable = read_manifests(self.folder)
        before = next((manifest for manifest in manifests if manifest.file == path.name), None)
        aside = None
        if path.name in unreadable:
            _rename_aside(path.with_suffix(".json"), "kept")
        if before is None or not (_identity(path) in self._written or before.describes(path)):
            aside = _rename_aside(path, "kept")
        path.with_suffix(".json").unlink(missing_ok=True)
        try:
            digest, size = checkpoint.save(path, state)
        except OSError:
            if aside is not None:
                os.rename(aside, path)
            raise
        if aside is not None and aside.is_file() and not aside.is_symlink() and sha256(aside) == digest:
            aside.unlink()  # this run, killed before it wrote the manifest: the same bytes again
        elif aside is not None:
            log.warning("%s was not written by this run; it is %s now", path, aside)
        best = path.name if improved else self.best
        serial = 1 + max((manifest.serial for manifest in manifests), default=0)
        manifest = Manifest(path.name, digest, size, serial, self.run, best=best, **facts)
        write_manifest(path.with_suffix(".json"), manifest)
        self._written.add(_identity(path))
        self.best = best
        manifests = read_manifests(self.folder)[0]
        _point(self.folder, "last", path.name, manifests)
        if improved:
            _point(self.folder, "best", path.name, manifests)
        elif best is None and self.continued is None:
            _clear(self.folder / "best.pth", manifests)  # that of the run before
        self._prune()
        status.saved(path, manifest.step)

    def _prune(self) -> None:
        """Delete what neither the newest, nor their best, nor `keep_every` hold."""
        manifests, _ = read_manifests(self.folder)
        own = [manifest for manifest in manifests if manifest.run == self.run]
        newest = own[: self.keep_last]
        kept = {manifest.file for manifest in newest} | {manifest.best for manifest in newest}
        if self.keep_every:
            ends = [manifest for manifest in own if manifest.file == f"{epoch_name(manifest.epoch)}.pth"]
            kept |= {manifest.file for manifest in ends if manifest.epoch % self.keep_every == 0}
        for manifest in manifests:
            path = self.folder / manifest.file
            if manifest.file in kept:
                continue
            if _identity(path) not in self._written and os.path.lexists(path) and not manifest.describes(path):
                log.warning("%s is no longer what its manifest says; left as it is", path)
                continue
            path.with_suffix(".json").unlink(missing_ok=True)  # first: without it the other does not count
            path.unlink(missing_ok=True)


def prepare_folder(folder: Path) -> None:
    """Make the folder, and remove what a killed run left half written.

    Such a file has the name that `replacing` gives, and begins as a checkpoint or a JSON file does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = rf"({NAME.pattern}|last|best)\.(pth|json)"
    own = rf"\.({checkpoints}|status\.json|env\.json|config\.yaml)\.\d+(\.[0-9a-f]{{8}})?{re.escape(TEMPORARY)}"
    for path in [*folder.glob(f".*{TEMPORARY}"), *folder.parent.glob(f".*{TEMPORARY}")]:
        name = re.fullmatch(own, path.name)
        if name is None or not stat.S_ISREG(path.lstat().st_mode):
            continue
        begin = {".pth": b"PK", ".json": b"{", ".yaml": b"data"}[Path(name[1]).suffix]
        with open(path, "rb") as file:
            if file.read(len(begin)) not in (b"", begin):
                continue
        log.info("removed %s, which a killed run left half written", path)
        path.unlink()


def _point(folder: Path, alias: str, name: str, manifests: list[Manifest]) -> None:
    """Have last.pth or best.pth be the checkpoint `name`."""
    link, target = folder / f"{alias}.pth", folder / name
    if not link.is_symlink() and link.is_file() and os.path.samefile(link, target):
        return
    _clear(link, manifests, remove=False)
    _link(target, link)


def _clear(path: Path, manifests: list[Manifest], remove: bool = True) -> None:
    """Give a name free: what a run has written there is deleted, what else is there gets another name.

    remove: false where `replacing` is going to delete it.
    """
    if not os.path.lexists(path):
        return
    if path.is_file() and not path.is_symlink():
        # A second name of a checkpoint is what `_point` makes, and the bytes keep the first.
        second = any(os.path.samefile(path, file) for file in checkpoint_files(path.parent, ".pth") if file.is_file())
        if second or any(manifest.describes(path) for manifest in manifests):
            if remove:
                path.unlink()
            return
    log.warning("%s was not written by this run; it is %s now", path, _rename_aside(path, "kept"))


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return what tells that a file was not touched since, or None."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _link(source: Path, path: Path) -> None:
    """Have `path`, whatever was there, be the same file as `source`.

    A copy where the file system has no links.
    """
    with replacing(path, durable=True) as temporary:
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            shutil.copyfile(source, temporary)
            with open(temporary, "rb") as copy:
                os.fsync(copy.fileno())


def _rename_aside(path: Path, end: str) -> Path | None:
    """Rename whatever is in the way; return its new name, or None."""
    if not os.path.lexists(path):
        return None
    target, count = path.with_name(f"{path.name}.{end}"), 1
    while os.path.lexists(target):
        count += 1
        target = path.with_name(f"{path.name}.{end}{count}")
    os.rename(path, target)
    return target
