"""The tables of `zoo --help` and `zoo list`, read from source files and configs without importing torch."""

import ast
import re
from pathlib import Path

from zoo.cli.config_names import CONFIGS, config_files
from zoo.registry import MODELS

PACKAGE = Path(__file__).parents[1]

VERBS = {
    "fit": "train a model; validates during training and saves best.ckpt and last.ckpt",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split",
    "predict": "write a checkpoint's predictions as JSON lines",
    "generate": "continue a prompt with a language model",
    "consolidate": "write the checkpoint of a sharded run, a folder, as one file",
    "export": "write a checkpoint for other programs: Hugging Face, llama2.c, GGUF, ONNX, safetensors",
    "list": "show every config: model, data, size, what it needs",
}


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
        "                     is `last` if it exists: fit then continues, or starts a run",
        "",
        "  zoo fit --config tiny/llama",
        "  zoo generate --ckpt_path runs/tiny-llama/best.ckpt --prompt 'The '",
        "",
        "`zoo VERB --help` shows all options of a verb. ZOO_DEBUG=1 shows the traceback behind an error.",
    ]
    return "\n".join(lines)


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


__all__ = ["CONFIGS", "VERBS", "configs", "models", "usage"]
