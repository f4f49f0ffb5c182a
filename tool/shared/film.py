"""Films and cameras, frame by frame, with the prediction over them."""

import shutil
import subprocess
from pathlib import Path

import cv2
from tqdm import tqdm

from tool.shared.segmenter import Segmenter
from util import UserError
from util.record.files import replacing
from util.record.log import log

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
CAMERA_RATE = 25.0  # frames a second of a camera that does not say its own


def predict_film(source: str, out: Path, segmenter: Segmenter, masks: bool) -> Path:
    """Write the film with the prediction over it; return its path.

    Frame rate and size are the film's; its sound is kept where ffmpeg is installed. A camera, given by its number, is
    recorded until Ctrl-C.

    Args:
        masks: also write the class ids of each frame, as OUT/STEM/000000.png and so on.

    Raises:
        UserError: it cannot be read or written.
    """
    camera = source.isdecimal()
    if not camera and not Path(source).is_file():
        raise UserError(f"{source}: no such film")
    capture = cv2.VideoCapture(int(source) if camera else source)
    if not capture.isOpened():
        raise UserError(f"{'camera ' if camera else ''}{source}: cannot be opened, or is no film that OpenCV reads")
    stem = f"camera{source}" if camera else Path(source).stem
    target = out / f"{stem}.mp4"
    if not camera and target.resolve() == Path(source).resolve():
        raise UserError(f"{source} would be overwritten by its result; choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(target) as temporary:
            silent = temporary.with_suffix(".silent.mp4")
            try:
                frames = _draw(capture, silent, out / stem if masks else None, segmenter, camera)
                if not frames:
                    raise UserError(f"{source}: holds no frame that can be decoded")
                if camera or not _with_sound(silent, Path(source), temporary):
                    silent.replace(temporary)
            finally:
                silent.unlink(missing_ok=True)
    finally:
        capture.release()
    return target


def _draw(capture: cv2.VideoCapture, file: Path, masks: Path | None, segmenter: Segmenter, camera: bool) -> int:
    """Write the frames; return their number."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    expected = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    writer, number = None, 0
    progress = tqdm(total=expected if expected > 0 else None, unit="frame", disable=None, leave=False)
    try:
        while True:
            there, frame = capture.read()
            if not there:
                break
            result = segmenter(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            if writer is None:
                size = (frame.shape[1], frame.shape[0])
                writer = cv2.VideoWriter(
                    str(file), cv2.VideoWriter.fourcc(*"mp4v"), rate if rate > 0 else CAMERA_RATE, size
                )
                if not writer.isOpened():
                    raise UserError(f"{file}: OpenCV cannot write a film here")
            writer.write(cv2.cvtColor(result.overlay(), cv2.COLOR_RGB2BGR))
            if masks is not None:
                masks.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(masks / f"{number:06}.png"), result.mask)
            number += 1
            progress.update()
    except KeyboardInterrupt:
        if not camera:
            raise
    finally:
        progress.close()
        if writer is not None:
            writer.release()
    if expected > number > 0 and not camera:
        log.warning("%d of %d frames could be decoded", number, expected)
    return number


def _with_sound(silent: Path, source: Path, target: Path) -> bool:
    """Join the frames with the film's sound, where there is ffmpeg to do it."""
    if shutil.which("ffmpeg") is None:
        log.info("without sound: ffmpeg is not installed")
        return False
    words = ["ffmpeg", "-y", "-loglevel", "error", "-i", str(silent), "-i", str(source), "-map", "0:v", "-map", "1:a?"]
    done = subprocess.run([*words, "-c", "copy", "-f", "mp4", str(target)], capture_output=True, text=True, check=False)
    if done.returncode:
        log.warning("without sound: %s", (done.stderr.strip().splitlines() or ["ffmpeg failed"])[-1])
    return not done.returncode
