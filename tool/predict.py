"""Predicts pictures and films with a checkpoint.

    python -m tool.predict last.pth photo.jpg holiday/ --out predicted
    python -m tool.predict last.pth list.txt --out predicted --save color,overlay,polygons
    python -m tool.predict last.pth street.mp4 --out predicted
    find /data -name '*.jpg' | python -m tool.predict last.pth - --out predicted
    cat photo.jpg | python -m tool.predict last.pth - --out predicted

In Python:

    from tool.predict import Segmenter
    mask = Segmenter("last.pth")("photo.jpg").mask

An input is a picture, a folder, a .txt with a path a line, a film, the number of a camera, or - for the standard
input: paths, or pictures. Each picture becomes a PNG of class ids, named by its stem (a georeferenced TIFF a TIFF with
the same georeference, where rasterio is installed); --save adds folders beside it: color and overlay (pictures),
polygons and rle (annotations as COCO writes them). A film becomes a film of overlays; --save mask writes one PNG a
frame too. index.jsonl lists what is done; the same command continues after a kill. Under torchrun, or in a SLURM
array, the processes share the inputs.
"""

import errno
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from itertools import chain, islice
from pathlib import Path

import cv2
from tqdm import tqdm

from dataset.read import DataError
from model.table import ModelError
from tool.shared import cli
from tool.shared.film import END, predict_film
from tool.shared.geotiff import MAP, is_georeferenced, predict_geotiff, read_result
from tool.shared.inputs import Inputs, pictures_of
from tool.shared.pictures import named
from tool.shared.predictions import KINDS, STREAM, Predictions, share_of_this_process
from tool.shared.segmenter import Segmentation as Segmentation
from tool.shared.segmenter import Segmenter as Segmenter
from tool.shared.segmenter import add_arguments, from_arguments
from util import UserError, dist
from util.record.log import log, open_log, printable

SHOWN = 20  # failures that are listed
EVERY = 60.0  # seconds between two lines of progress where there is no terminal
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what would meet every further result, too


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m tool.predict", description=__doc__, example="python -m tool.predict last.pth photo.jpg"
    )
    add_arguments(parser)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, folder, list, film, camera, or -")
    parser.add_argument("--out", default="exp/predict", metavar="DIR", help="of the results (default: exp/predict)")
    parser.add_argument("--save", default="", metavar="KINDS", help=f"of {', '.join(KINDS)}, with commas between")
    args = parser.parse_intermixed_args(argv)
    open_log(None)
    kinds = [kind for kind in args.save.split(",") if kind]
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"--save {unknown[0]}: there are {', '.join(KINDS)}")
    share, out = share_of_this_process(), Path(args.out)
    if share.count > 1 and STREAM in args.inputs:
        raise UserError("-: several processes cannot share a standard input; write the paths into a list.txt")
    inputs = Inputs(args.inputs, out)
    pictures, films = named(inputs.pictures, out, ".png"), named(inputs.films, out, END)
    _refuse_mixture(pictures, out, kinds)
    mine, my_films = share.of(pictures), share.of(films)
    work = Work(Predictions(out, from_arguments(args), kinds), "mask" in kinds)
    work.failures += inputs.failures if share.first == 0 else []
    if share.count > 1:
        log.info("process %d of %d: %d of %d pictures", share.first + 1, share.count, len(mine), len(pictures))
    del pictures, films, inputs.pictures, inputs.films  # of millions this process keeps its share
    work.predictions.discard_unfinished(Path(target) for target in (*mine, *my_films))
    try:
        for target, path in _shown(mine, "picture"):
            work.do(work.picture, Path(target), Path(path))
        for number, (data, end, alone) in enumerate(_numbered(inputs.stream)):
            work.do(work.piece, out / ("stdin.png" if alone else f"stdin/{number:06}.png"), number, data, end)
        for target, film in my_films.items():
            work.do(work.film, Path(target), film)
        for camera in inputs.cameras if share.first == 0 else []:
            work.do(work.film, out / f"camera{camera}{END}", camera)
    finally:
        work.tell(out)
    dist.leave(wait=bool(work.failures))
    return 1 if work.failures else 0


class Work:
    """Predicts one input after the other, and remembers which of them failed."""

    def __init__(self, predictions: Predictions, frames: bool):
        self.predictions, self.segmenter, self.frames = predictions, predictions.segmenter, frames
        self.done, self.before, self.failures = 0, 0, list[str]()

    def do(self, way: Callable[..., bool], target: Path, *given: object) -> None:
        """Predict an input in its way, and count it.

        A failure is remembered, and stops nothing.

        Raises:
            OSError: the disk takes nothing more.
        """
        try:
            if way(target, *given):
                self.done += 1
            else:
                self.before += 1
        except (UserError, DataError, ModelError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            self.failures.append(cli.message(error))
        except (MemoryError, RuntimeError, cv2.error) as error:
            if not cli.is_out_of_memory(error):
                raise
            self.failures.append(f"{given[0]}: takes more memory than there is; try a smaller --tile, as 1025")

    def picture(self, target: Path, path: Path) -> bool:
        """Predict a picture, unless it is done."""
        predictions, map_target = self.predictions, target.with_suffix(MAP)
        predictions.update()
        if predictions.has(target, path) or (predictions.knows(map_target) and predictions.has(map_target, path)):
            return False
        if not is_georeferenced(path):
            predictions.write(target, path, self.segmenter(path))
            return True
        predictions.has(map_target, path)  # is not somebody's file
        size, counts = predict_geotiff(path, map_target, self.segmenter)
        if predictions.kinds:
            result = read_result(path, map_target, self.segmenter)
            if result is None:
                log.warning("%s: too large for --save %s; its mask alone is written", path, ",".join(predictions.kinds))
            else:
                predictions.draw(map_target, path, result)
        predictions.note(map_target, path, size, counts)
        return True

    def piece(self, target: Path, number: int, data: bytes, end: str) -> bool:
        """Predict a picture of the standard input."""
        self.predictions.has(target, STREAM)  # is not somebody's file
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"picture{end}")
            file.write_bytes(data)
            try:
                result = self.segmenter(file)
            except DataError as error:
                name = f"picture {number + 1} of the standard input"
                raise DataError(str(error).replace(str(file), name)) from None
        self.predictions.write(target, STREAM, result)
        return True

    def film(self, target: Path, source: str) -> bool:
        """Predict a film, unless it is done, or record a camera."""
        if self.predictions.has(target, source, ["mask"] if self.frames else []) and not source.isdecimal():
            return False
        if self.predictions.kinds:
            log.warning("%s: --save %s is for pictures", source, ",".join(self.predictions.kinds))
        frames = predict_film(source, target, self.segmenter, self.frames)
        log.info("%s -> %s", source, target)
        self.predictions.note_film(target, source, frames, self.frames)
        return True

    def tell(self, out: Path) -> None:
        """Log what was done, and what failed."""
        before = f", {self.before} done before" if self.before else ""
        log.info("%d predicted%s: %s", self.done, before, out)
        for failure in self.failures[:SHOWN]:
            log.error("not predicted: %s", printable(failure))
        if self.failures:
            inputs = "1 input" if len(self.failures) == 1 else f"{len(self.failures)} inputs"
            log.error("%s could not be predicted", inputs)


def _refuse_mixture(pictures: dict[str, str], out: Path, kinds: Sequence[str]) -> None:
    """Refuse pictures of a folder that has the name of one of ours."""
    if not kinds:
        return
    for target, path in pictures.items():
        first, *more = Path(target).relative_to(out).parts
        if more and first in kinds:
            raise UserError(f"{path}: its mask would lie in the folder of --save {first}; predict its folder by itself")


def _shown(items: dict[str, str], unit: str) -> Iterator[tuple[str, str]]:
    """Yield items under a progress bar; where there is no terminal, log a line a minute."""
    start = last = time.monotonic()
    with tqdm(items.items(), unit=unit, disable=None, leave=False) as bar:
        for number, item in enumerate(bar):
            now = time.monotonic()
            if bar.disable and now - last >= EVERY:
                last = now
                log.info("%d of %d %ss, %.3g a second", number, len(items), unit, number / (now - start))
            yield item


def _numbered(stream: BufferedReader | None) -> Iterator[tuple[bytes, str, bool]]:
    """Yield the pictures of a stream, each with its suffix, and whether it is the only one."""
    pictures = iter(()) if stream is None else pictures_of(stream)
    first = list(islice(pictures, 2))
    for data, end in chain(first, pictures):
        yield data, end, len(first) == 1


if __name__ == "__main__":
    cli.command(main, on_memory="use a smaller --tile", on_interrupt="continues with what is left")
