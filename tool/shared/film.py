"""Films and cameras, frame by frame, with the prediction over them."""

import shutil
import subprocess
from pathlib import Path

import cv2
from tqdm import tqdm

from tool.shared.segmenter import Segmenter
from util import UserError
from util.record.files import replacing, write_bytes
from util.record.log import log
from util.report.visual import png

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".mts")
END = ".mp4"  # of a film that is written
LOST = 0.02  # share of the frames that may be missing: containers do not always know their number
CAMERA_RATE = 25.0  # frames a second of a camera that does not say its own


def predict_film(source: str, target: Path, segmenter: Segmenter, masks: bool) -> int:
    """Write the film with the prediction over it; return its frames.

    Frame rate and size are the film's, a side of an odd length one pixel shorter. A film of a changing rate is written
    at its mean rate, and frames are repeated or left out so that picture and sound stay together. The sound is kept
    where ffmpeg is installed. A camera, given by its number, is recorded until Ctrl-C.

    Args:
        masks: also write the class ids of each frame, as 000000.png and so on in a folder named as the film.

    Raises:
        UserError: it cannot be read or written; or it is cut short, after what could be read is written.
    """
    camera = source.isdecimal()
    if not camera and not Path(source).is_file():
        raise UserError(f"{source}: no such film")
    capture = cv2.VideoCapture(int(source) if camera else source)
    if not capture.isOpened():
        raise UserError(f"{'camera ' if camera else ''}{source}: cannot be opened, or is no film that OpenCV reads")
    if not camera and target.resolve() == Path(source).resolve():
        raise UserError(f"{source} would be overwritten by its result; choose another folder with --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    expected = 0 if camera else int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    try:
        with replacing(target) as temporary:
            silent = temporary.with_name(f"{temporary.name}.mp4")
            try:
                frames = _draw(capture, silent, target.with_suffix("") if masks else None, segmenter, camera)
                if not frames:
                    raise UserError(f"{source}: holds no frame that can be decoded")
                if camera or not _with_sound(silent, Path(source), temporary):
                    silent.replace(temporary)
            finally:
                silent.unlink(missing_ok=True)
    finally:
        capture.release()
    if expected - frames > max(LOST * expected, 1):
        raise UserError(f"{source}: {frames} of {expected} frames could be decoded; {target} holds these")
    return frames


def _draw(capture: cv2.VideoCapture, file: Path, masks: Path | None, segmenter: Segmenter, camera: bool) -> int:
    """Write the frames; return their number."""
    rate, expected = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    rate = rate if rate > 0 else CAMERA_RATE
    writer, last, number, written, start = None, None, 0, 0, 0.0
    progress = tqdm(total=expected if expected > 0 else None, unit="frame", disable=None, leave=False)
    try:
        while True:
            there, frame = capture.read()
            if not there:
                break
            result = segmenter(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            if writer is None:
                size = (frame.shape[1], frame.shape[0])
                writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
                if not writer.isOpened():
                    raise UserError(f"{file.parent}: OpenCV cannot write a film of {size[0]}x{size[1]} here")
            # A frame that comes more than one frame's time late is waited for, one that comes early is left out.
            drawn, time = cv2.cvtColor(result.overlay(), cv2.COLOR_RGB2BGR), capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            start, last = (time, drawn) if number == 0 else (start, last)
            late = 0.0 if camera or expected <= 0 or time <= start else (time - start) * rate - written
            for _ in range(min(round(late), expected - written - 1) if late >= 1 else 0):
                writer.write(last)
                written += 1
            if late > -1:
                writer.write(drawn)
                written += 1
            last = drawn
            if masks is not None:
                write_bytes(masks / f"{number:06}.png", png(result.mask), parents=True)
            number += 1
            progress.update()
    except KeyboardInterrupt:
        if not camera:
            raise
    finally:
        progress.close()
        if writer is not None:
            writer.release()
    if number:
        _check_written(file, written)
    return number


def _check_written(file: Path, frames: int) -> None:
    """Refuse a film that is not whole: OpenCV does not tell of a full disk."""
    capture = cv2.VideoCapture(str(file))
    there = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    capture.release()
    if there != frames:
        raise UserError(f"{file.parent}: {there} of {frames} frames of a film were written; is the disk full?")


def _with_sound(silent: Path, source: Path, target: Path) -> bool:
    """Join the frames with the film's sound, where there is ffmpeg to do it."""
    if shutil.which("ffmpeg") is None:
        log.info("without sound: ffmpeg is not installed")
        return False
    words = ["ffmpeg", "-nostdin", "-y", "-loglevel", "error", "-i", str(silent), "-i", str(source)]
    words += ["-map", "0:v", "-map", "1:a?", "-c:v", "copy", "-f", "mp4"]
    # MP4 does not hold every kind of sound.
    for sound in (("-c:a", "copy"), ("-c:a", "aac")):
        done = subprocess.run([*words, *sound, str(target)], capture_output=True, text=True, check=False)
        if not done.returncode:
            return True
    log.warning("%s: without sound: %s", source, (done.stderr.strip().splitlines() or ["ffmpeg failed"])[-1])
    return False
