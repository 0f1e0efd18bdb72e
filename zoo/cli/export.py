"""`zoo export`: writes a checkpoint in a format of other programs."""

import sys
from pathlib import Path
from typing import Any

from zoo.cli.checkpoint_info import read_checkpoint_info
from zoo.cli.class_names import ClassNames
from zoo.cli.run_folder import find_checkpoint
from zoo.console.plain_parser import PlainParser
from zoo.errors import UserError
from zoo.export.formats import FORMATS, check_format
from zoo.export.write import check_absent, export_module
from zoo.files.checkpoints import read_checkpoint
from zoo.files.remote_files import refuse_url
from zoo.llama.module import LlamaLM
from zoo.tokenizers import load_tokenizer
from zoo.tokenizers.load import adjacent_tokenizer
from zoo.training.initial_weights import refuse_other_tokenizer

NO_TOKENIZER = "none"
_EXTERNAL: dict[str, Any] = {"zoo": {"data": "TextLM"}, "datamodule_hyper_parameters": {}}


def export_parser() -> PlainParser:
    """The options of the verb."""
    parser = PlainParser(
        prog="zoo export",
        description="Write a checkpoint in a format of other programs. Nothing is overwritten.",
        epilog="formats: " + "; ".join(f"{name}: {text}" for name, text in FORMATS.items()),
    )
    parser.add_argument(
        "--ckpt_path",
        required=True,
        help="a checkpoint of the zoo, zoo:NAME, llama2.c's .bin or .pt, or a Hugging Face folder of a Llama",
    )
    parser.add_argument("--output_dir", help="folder of the run, for --ckpt_path best and last")
    parser.add_argument("--format", required=True, help=f"one of {', '.join(FORMATS)}")
    parser.add_argument(
        "--data.tokenizer",
        dest="tokenizer",
        help="the model's tokenizer, as for other verbs, or none to leave it out. Default: the one in the "
        "checkpoint, or next to it",
    )
    parser.add_argument(
        "--model.base", dest="base", help="pretrained weights of a head or LoRA checkpoint, where they have moved"
    )
    parser.add_argument(
        "--model", dest="model", help="import path of the checkpoint's class, where the zoo does not register it"
    )
    parser.add_argument(
        "destination",
        metavar="DEST",
        help="a new folder; or a new file, for llama2c with the suffix .bin, for gguf .gguf, for onnx .onnx",
    )
    return parser


def export(argv: list[str]) -> None:
    """Run the verb.

    Args:
        argv: the options.

    Raises:
        FileNotFoundError: the checkpoint or the tokenizer does not exist.
        UserError: the checkpoint is damaged, the format cannot hold the model, or the destination exists.
    """
    parser = export_parser()
    options = parser.parse_args(argv)
    if options.format not in FORMATS:
        parser.error(f"--format must be one of {', '.join(FORMATS)}, not {options.format!r}")
    if not options.destination.strip() or "\0" in options.destination:
        raise UserError("the destination is empty: name a folder or file that does not exist")
    refuse_url("the destination", options.destination)
    check_absent(Path(options.destination))
    path = find_checkpoint(options.ckpt_path, options.output_dir) or ""
    module, checkpoint = load_module(path, options.tokenizer, options.base, options.model)
    check_format(module, options.format)
    if options.format == "onnx":  # torch's exporter takes from seconds to minutes
        print("zoo: writing the graphs, and comparing them with the model in onnxruntime", file=sys.stderr, flush=True)
    for path, note in export_module(module, options.format, options.destination, checkpoint).items():
        size = Path(path).stat().st_size / 2**20
        print(f"{path}: {size:.1f} MiB{note and ', '}{note}", file=sys.stderr)
    if module.tokenizer is None and "tokenizer" in module.data_arguments:
        print("zoo: the export has no tokenizer: give one with --data.tokenizer", file=sys.stderr)


def load_module(
    ckpt_path: str, tokenizer: str | None = None, base: str | None = None, model: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """The module of a checkpoint with its tokenizer, on the CPU, and the checkpoint's entries.

    Args:
        ckpt_path: a checkpoint of the zoo, or a Llama of another project.
        tokenizer: as for `load_tokenizer`; "none" for no tokenizer; None for the one in the checkpoint or next to it.
        base: pretrained weights of a "head" or "lora" checkpoint; None for those at the stored path.
        model: import path of a class that is not registered.

    Raises:
        FileNotFoundError: a file does not exist.
        UserError: a file is damaged, or the tokenizer does not belong to the model.
    """
    path = find_checkpoint(ckpt_path, None) or ""  # of zoo:NAME, that of its file
    names = ClassNames({"model": [model] if model else [], "data": []})
    info = read_checkpoint_info(path, names.own)
    given = None if tokenizer in (None, NO_TOKENIZER) else load_tokenizer(str(tokenizer))
    if info.is_external:
        if base:
            raise UserError(f"{ckpt_path} is not a checkpoint of a LlamaClassifier: drop --model.base")
        if tokenizer is None and (adjacent := adjacent_tokenizer(Path(path))) is not None:
            given = load_tokenizer(adjacent)
        return LlamaLM(weights=path, tokenizer=given).eval(), _EXTERNAL
    assert info.model is not None  # a checkpoint of the zoo names its model
    cls: Any = names.load({"model": info.model["class_path"]})["model"]
    info.check_model(model, cls)
    changes = {} if base is None else {"base": base}
    if base is not None and "base" not in info.model["init_args"]:
        raise UserError(f"{ckpt_path} is not a checkpoint of a LlamaClassifier: drop --model.base")
    module = cls.load_from_checkpoint(path, map_location="cpu", **changes).eval()
    checkpoint = read_checkpoint(path, required=("state_dict",))
    if tokenizer is not None:
        _replace_tokenizer(module, given, ckpt_path, checkpoint.pop("tokenizer", None))
    return module, checkpoint


def _replace_tokenizer(module: Any, tokenizer: Any, ckpt_path: str, stored: dict[str, Any] | None) -> None:
    """Give the module another tokenizer with the same ids as the one that the checkpoint stores, or none."""
    size = getattr(getattr(module.model, "config", None), "vocab_size", None)
    if tokenizer is not None and size is not None and tokenizer.vocab_size != size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model in {ckpt_path} {size}: set "
            "--data.tokenizer to the model's tokenizer, or drop it"
        )
    if tokenizer is not None and stored is not None:
        refuse_other_tokenizer(ckpt_path, tokenizer, stored)
    module.tokenizer = tokenizer
