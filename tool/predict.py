"""Predicts pictures and films with a checkpoint.

    python -m tool.predict last.pth photo.jpg holiday/ --out predicted
    python -m tool.predict last.pth list.txt --out predicted --save color,overlay,polygons
    python -m tool.predict last.pth street.mp4 --out predicted
    find /data -name '*.jpg' | python -m tool.predict last.pth - --out predicted

In Python:

    from tool.predict import Segmenter
    mask = Segmenter("last.pth")("photo.jpg").mask

An input is a picture, a folder, a .txt with a path a line, a film, the number of a camera, or - for paths from the
standard input. Each picture becomes a PNG of class ids, named by its stem (a georeferenced TIFF a TIFF with the same
georeference, where rasterio is installed); --save adds folders beside it: color and
overlay (pictures), polygons and rle (annotations as COCO writes them). A film becomes a film of overlays; --save mask
writes one PNG a frame too. index.jsonl lists what is done; the same command continues after a kill. Under torchrun, or
in a SLURM array, the processes share the pictures.
"""

import sys
from pathlib import Path

from tqdm import tqdm

from dataset.read import DataError
from tool.shared import cli
from tool.shared.film import SUFFIXES as FILMS
from tool.shared.film import predict_film
from tool.shared.geotiff import MAP, is_georeferenced, predict_geotiff
from tool.shared.pictures import name_results
from tool.shared.predictions import KINDS, Predictions, share_of_this_process
from tool.shared.segmenter import Segmentation as Segmentation
from tool.shared.segmenter import Segmenter as Segmenter
from tool.shared.segmenter import add_arguments, from_arguments
from util import UserError
from util.record.log import log, open_log, printable

SHOWN = 20  # failures that are listed


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
    films, pictures = sorted_inputs(args.inputs)
    out = Path(args.out)
    there = [picture for picture in pictures if Path(picture).exists()]
    failures = [f"{picture}: no such picture or folder" for picture in pictures if not Path(picture).exists()]
    targets = name_results(there, out) if there else {}
    segmenter = from_arguments(args)
    # The pictures, of which those of an earlier call are done
    predictions = Predictions(out, segmenter, kinds)
    todo = [pair for pair in share_of_this_process(list(targets.items())) if not predictions.has(pair[0])]
    done = 0
    for target, path in tqdm(todo, unit="picture", disable=None, leave=False):
        try:
            if is_georeferenced(path):
                target = target.with_suffix(MAP)
                predictions.note(target, path, *predict_geotiff(path, target, segmenter))
            else:
                predictions.write(target, path, segmenter(path))
            done += 1
        except (UserError, DataError, OSError) as error:
            failures.append(str(error))
    # The films
    for source in share_of_this_process(films):
        try:
            log.info("%s -> %s", source, predict_film(source, out, segmenter, "mask" in kinds))
            done += 1
        except (UserError, OSError) as error:
            failures.append(str(error))
    log.info("%d predicted, %d were done before: %s", done, len(targets) - len(todo), out)
    for failure in failures[:SHOWN]:
        log.error("not predicted: %s", printable(failure))
    if failures:
        log.error("%d inputs could not be predicted", len(failures))
    return 1 if failures else 0


def sorted_inputs(given: list[str]) -> tuple[list[str], list[str]]:
    """Return films and cameras, and pictures and folders.

    Lists and the standard input stand for the paths in them; a relative one starts at the list's folder, or here.

    Raises:
        FileNotFoundError: a list is missing.
    """
    films, pictures = [], []
    for word in given:
        if word == "-":
            pictures += [line.rstrip("\n") for line in sys.stdin if line.strip()]
        elif word.isdecimal() or Path(word).suffix.lower() in FILMS:
            films.append(word)
        elif Path(word).suffix.lower() == ".txt":
            lines = Path(word).read_text(encoding="utf-8").splitlines()
            pictures += [str(Path(word).parent / line.strip()) for line in lines if line.strip()]
        else:
            pictures.append(word)
    return films, pictures


if __name__ == "__main__":
    cli.command(main, on_memory="use a smaller --tile", on_interrupt="continues with what is left")
