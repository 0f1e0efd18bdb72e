"""`zoo consolidate`: writes the checkpoint of a sharded run, which is a folder, as one file.

The file is an ordinary checkpoint: every verb reads it, also `fit`, which resumes in one or several processes.
"""

import sys
from pathlib import Path

from zoo.cli.run_folder import find_checkpoint
from zoo.console.plain_parser import PlainParser
from zoo.errors import UserError
from zoo.files.checkpoint_folders import is_checkpoint_folder
from zoo.files.checkpoints import read_checkpoint, write_checkpoint
from zoo.files.remote_files import refuse_url


def consolidate_parser() -> PlainParser:
    """The options of the verb."""
    parser = PlainParser(
        prog="zoo consolidate",
        description="Write the checkpoint folder of a sharded run as one file. Needs as much memory as the folder has.",
    )
    parser.add_argument("--ckpt_path", required=True, help="the folder, such as runs/mine/best.ckpt")
    parser.add_argument("--output_dir", help="folder of the run, for --ckpt_path best and last")
    parser.add_argument("--output", help="the file; default: next to the folder, as best-full.ckpt for best.ckpt")
    return parser


def consolidate(argv: list[str]) -> None:
    """Run the verb.

    Args:
        argv: the options.

    Raises:
        FileNotFoundError: the folder does not exist.
        UserError: it is not a sharded checkpoint or is damaged, or the output exists.
    """
    options = consolidate_parser().parse_args(argv)
    folder = Path(find_checkpoint(options.ckpt_path, options.output_dir) or "")
    if not is_checkpoint_folder(folder):
        raise UserError(f"{folder} is not a checkpoint of several files: there is nothing to consolidate")
    output = Path(options.output or folder.with_name(f"{folder.stem}-full{folder.suffix}"))
    refuse_url("--output", options.output)
    if output.exists():
        raise UserError(f"{output} exists already: give another --output")
    if not output.parent.is_dir():
        raise UserError(f"the folder {output.parent} does not exist: create it, or give another --output")
    write_checkpoint(read_checkpoint(folder, required=("state_dict",)), output)
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB", file=sys.stderr)
