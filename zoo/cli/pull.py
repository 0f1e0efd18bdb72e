"""`zoo pull`: downloads weights from the Hugging Face hub into the zoo's cache."""

import sys
from pathlib import Path

from zoo.console.plain_parser import PlainParser
from zoo.hub.pull import pull
from zoo.weights import PREFIX
from zoo.weights.downloads import downloaded
from zoo.weights.table import PUBLIC


def pull_parser() -> PlainParser:
    """The options of the verb."""
    parser = PlainParser(
        prog="zoo pull",
        description="Download weights from the Hugging Face hub into $ZOO_CACHE/weights (default: ~/.cache/zoo). They "
        "are then zoo:NAME for --ckpt_path, --model.weights and --data.tokenizer. Every file is compared with its "
        "digest on the hub; an interrupted download is continued. HF_ENDPOINT sets another address of the hub.",
    )
    parser.add_argument("name", help=f"{', '.join(PUBLIC)}, or a repository with a Llama, OWNER/NAME")
    parser.add_argument("--revision", help="branch, tag or commit of the repository; default: its main branch")
    return parser


def run_pull(argv: list[str]) -> None:
    """Run the verb.

    Args:
        argv: the options.

    Raises:
        UserError: as `zoo.hub.pull.pull`.
    """
    options = pull_parser().parse_args(argv)
    name = options.name.removeprefix(PREFIX)
    folder = pull(name, options.revision, _check_config)
    downloaded(name)
    print(f"{folder}: digests verified", file=sys.stderr)
    print(f"{PREFIX}{name}")


def _check_config(path: Path) -> None:
    """Raises UserError if a config.json does not describe a Llama that the zoo can read."""
    from zoo.llama.checkpoints.hugging_face_config import read_config

    read_config(path)
