"""`zoo push`: uploads a folder to the Hugging Face hub, with a model card."""

from pathlib import Path

from zoo.cli.arguments import load_config
from zoo.cli.run_folder import find_checkpoint
from zoo.console.plain_parser import PlainParser
from zoo.hub.push import push


def push_parser() -> PlainParser:
    """The options of the verb."""
    parser = PlainParser(
        prog="zoo push",
        description="Upload a folder to the Hugging Face hub. Of the folder of a run the best checkpoint is uploaded, "
        "without the state of its training; of any other folder all files. A README.md in the folder is the model "
        "card; without one it is generated from the checkpoint: settings, data, steps, best score, config, licence. "
        "Log in first with `hf auth login`. HF_ENDPOINT sets another address of the hub.",
    )
    parser.add_argument("folder", type=Path, help="folder of a run, or one that was exported")
    parser.add_argument("repository", help="OWNER/NAME on the hub; it is created where it does not exist")
    parser.add_argument(
        "--licence", required=True, help="of the weights, as the hub writes it, such as apache-2.0 or cc-by-sa-4.0"
    )
    parser.add_argument(
        "--ckpt_path",
        help="checkpoint of the run to upload, a file or last; of an export, the checkpoint that the card describes; "
        "default: best.ckpt in the folder",
    )
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--dry_run", action="store_true", help="print the card and the names of the files only")
    return parser


def run_push(argv: list[str]) -> None:
    """Run the verb.

    Args:
        argv: the options.

    Raises:
        UserError: as `zoo.hub.push.push`.
    """
    options = push_parser().parse_args(argv)
    path = find_checkpoint(options.ckpt_path, str(options.folder))
    checkpoint = Path(path) if path else None
    config = (checkpoint.parent if checkpoint else options.folder) / "config.yaml"
    settings = load_config(str(config))[1] if config.is_file() else None
    target = (options.folder, options.repository, options.licence)
    print(push(*target, checkpoint, settings, options.private, options.dry_run))
