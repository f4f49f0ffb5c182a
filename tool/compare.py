"""Compares results: paired intervals of mIoU, classes, keys, seeds, images.

    python -m tool.compare exp/camvid/pspnet50 exp/camvid/danet50
    python -m tool.compare exp/camvid/a/result/val-whole exp/camvid/b/result/val-whole --html comparison.html

RUN is a run's folder with one result, or the folder of a result. The first one is what the others are compared with.
The page shows the images on which they disagree most, where predictions (gray/) and data are still there.
"""

import json
import sys
from pathlib import Path

from tool.shared import cli, plugins
from tool.shared.disagreement import drawn
from util.record.files import write_named
from util.record.log import printable
from util.report.compare import compare, read_result
from util.report.comparison import text, write_csv, write_page


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m tool.compare",
        description=__doc__,
        example="python -m tool.compare exp/camvid/pspnet50 exp/camvid/danet50 --html comparison.html",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run or of a result")
    parser.add_argument("--json", metavar="FILE", help="everything that is found, for programs")
    parser.add_argument("--csv", metavar="FILE", help="a line for each result")
    parser.add_argument("--html", metavar="FILE", help="one page without network access")
    parser.add_argument("--root", metavar="DIR", help="where the data are now, for the pictures of the page")
    plugins.add_argument(parser)
    args = parser.parse_intermixed_args(argv)
    plugins.use(args.plugin)
    results = [read_result(Path(run)) for run in args.runs]
    comparison, told = compare(results), []
    # The files before the text: whoever pipes that to head gets them, too.
    if args.json:
        content = json.dumps(comparison, indent=1, allow_nan=False, default=str) + "\n"
        write_named(args.json, content.encode())
    if args.csv:
        write_csv(Path(args.csv), comparison)
    if args.html:
        shown = drawn(results, [row["name"] for row in comparison["images"]], args.root)
        write_page(Path(args.html), comparison, shown.pictures, shown.problem, shown.classes)
        told.append(f"page: {printable(args.html)}")
        if shown.problem and comparison["images"]:
            print(f"pictures: {printable(shown.problem)}", file=sys.stderr)
    print("\n".join([text(comparison), *told]))
    return 0


if __name__ == "__main__":
    cli.command(main)
