"""The tables of `zoo --help` and `zoo list`, read from source files and configs without importing torch."""

import ast
import re
from pathlib import Path

from zoo.cli.config_names import config_files
from zoo.console.messages import nearest
from zoo.console.plain_parser import PlainParser
from zoo.registry import MODELS
from zoo.weights import weights_rows

PACKAGE = Path(__file__).parents[1]

VERBS = {
    "fit": "train a model; validates during training and saves best.ckpt and last.ckpt",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split",
    "predict": "write a checkpoint's predictions as JSON lines",
    "generate": "continue a prompt with a language model",
    "consolidate": "write the checkpoint of a sharded run, a folder, as one file",
    "export": "write a checkpoint for other programs: Hugging Face, llama2.c, GGUF, ONNX, safetensors",
    "pull": "download weights from the Hugging Face hub",
    "push": "upload a folder to the Hugging Face hub, with a model card",
    "list": "show every config: model, data, size, what it needs; --weights: every zoo:NAME",
    "completion": "print a script for bash, zsh or tcsh that completes verbs, options and configs",
}
OTHER_NAMES = {  # what other programs call a verb
    "train": "fit", "resume": "fit", "finetune": "fit", "eval": "validate", "evaluate": "test", "sample": "generate",
    "complete": "generate", "chat": "generate", "infer": "predict", "configs": "list", "models": "list",
}  # fmt: skip


def nearest_verb(word: str) -> str | None:
    """The verb that a mistyped one, or its name in another program, most likely means; None if none is similar."""
    near = nearest(word, [*VERBS, *OTHER_NAMES], cutoff=0.6) if word not in OTHER_NAMES else word
    return OTHER_NAMES.get(near, near) if near else None


def models() -> dict[str, str]:
    """Registered model -> first line of its class's docstring, read without importing it."""
    described = {}
    for name, path in MODELS.items():
        file = PACKAGE.parent.joinpath(*path.split(".")[:-1]).with_suffix(".py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                described[name] = (ast.get_docstring(node) or "").split("\n")[0]
    return described


def usage() -> str:
    """The text of `zoo --help`."""
    described = models()
    width = max(map(len, [*VERBS, *described]))
    lines = ["usage: zoo VERB [--config NAME_OR_FILE ...] [--ckpt_path FILE] [options]", "", "verbs:"]
    lines += [f"  {verb:<{width}}  {sentence}" for verb, sentence in VERBS.items()]
    lines += ["", "models:"]
    lines += [f"  {name:<{width}}  {sentence}" for name, sentence in described.items()]
    lines += [
        "",
        "options of every model and verb:",
        "  --config NAME      settings: a name that `zoo list` shows, or a YAML file; a later one overrides an earlier",
        "                     one, and options after it override them all",
        "  --data_dir PATH    your data, instead of the config's",
        "  --output_dir DIR   folder of the run (default: the config's, else runs/<model>)",
        "  --ckpt_path FILE   a checkpoint; `last` and `best` are those in --output_dir, and `auto`",
        "                     is `last` if it exists: fit then continues, or starts a run; zoo:NAME is one",
        "                     that `zoo list --weights` shows",
        "",
        "  zoo fit --config tiny/llama",
        "  zoo generate --ckpt_path zoo:llama-wikitext2 --prompt 'The '",
        "",
        "`zoo VERB --help` shows all options of a verb. ZOO_DEBUG=1 shows the traceback behind an error.",
    ]
    return "\n".join(lines)


def listed(options: list[str]) -> list[dict[str, str]]:
    """The rows that `zoo list` prints: every config, or with --weights every `zoo:NAME`.

    Raises:
        UsageError: another option is given.
    """
    return weights_rows() if list_parser().parse_args(options).weights else configs()


def list_parser() -> PlainParser:
    """The options of `zoo list`."""
    parser = PlainParser(prog="zoo list", description="Show every config of the zoo.")
    parser.add_argument("--weights", action="store_true", help="show trained weights instead, for --ckpt_path zoo:NAME")
    return parser


def configs() -> list[dict[str, str]]:
    """One row per config of the zoo: its name, model, data, size and needs."""
    rows = []
    for name, path in config_files().items():
        text = path.read_text(encoding="utf-8")
        about = dict(re.findall(r"^# (size|needs): (.*)$", text, re.MULTILINE))
        class_paths = re.findall(r"^(model|data):\n  class_path: (\w+)", text, re.MULTILINE)
        rows.append(
            {
                "config": name,
                **({"model": "", "data": ""} | dict(class_paths)),
                "size": about.get("size", ""),
                "needs": about.get("needs", ""),
            }
        )
    return rows
