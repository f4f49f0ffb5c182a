"""Puts a trained network on the Hugging Face Hub.

    hf auth login
    python -m tool.hub exp/street/sfnet_mobile/model/last.pth OWNER/NAME --private
    python -m tool.hub exp/street/sfnet_mobile/model/last.pth OWNER/NAME --card card.md
    python -m tool.predict hf://OWNER/NAME photo.jpg

The weights go there as safetensors, without what continues a run and without names of folders. The card says classes,
preprocessing, protocol, the scores of results of this very file that lie beside it, licence and paper. --card writes it
into a file, to be read first, and pushes nothing. In Python:

    from tool.hub import push_to_hub
"""

from tool.shared import cli, plugins
from tool.shared.hub import SCHEME, card_of
from tool.shared.hub import push_to_hub as push_to_hub
from util.record.files import write_text
from util.record.log import log, open_log


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m tool.hub", description=__doc__, example="python -m tool.hub last.pth OWNER/NAME --private"
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of ours, or a published one of a known family")
    parser.add_argument("name", metavar="OWNER/NAME", help="the repository, made where it is missing")
    parser.add_argument("--private", action="store_true", help="make it a private one")
    parser.add_argument("--licence", metavar="NAME", help="of the weights, by the Hub's name: mit, cc-by-4.0, ...")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--card", metavar="FILE", help="write the card there, and push nothing")
    plugins.add_argument(parser)
    args = parser.parse_args(argv)
    open_log(None)
    plugins.use(args.plugin)
    if args.card:
        write_text(args.card, card_of(args.checkpoint, args.name, args.licence)[1])
        log.info("the card: %s", args.card)
        return 0
    address = push_to_hub(args.checkpoint, args.name, args.private, args.licence, args.message)
    log.info("pushed: %s", address)
    own = "".join(f" --plugin {name}" for name in args.plugin)
    log.info("use it: python -m tool.predict %s%s photo.jpg%s, or as the card says", SCHEME, args.name, own)
    return 0


if __name__ == "__main__":
    cli.command(main)
