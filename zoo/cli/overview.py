"""What `zoo --help` and `zoo list` show, read from the source and the configs without importing torch."""

import ast
import re
from pathlib import Path

from zoo.registry import MODELS

ROOT = Path(__file__).parents[2]
CONFIGS = Path(__file__).parents[1] / "configs"

VERBS = {
    "fit": "train a model; validates on the way and keeps best.ckpt and last.ckpt",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split",
    "predict": "write a checkpoint's predictions as JSON lines",
    "generate": "let a language model continue a prompt",
    "list": "show every config: model, data, size, what it needs",
}


def models() -> dict[str, str]:
    """Registered model -> first line of its class's docstring, read without importing it."""
    described = {}
    for name, path in MODELS.items():
        file = ROOT.joinpath(*path.split(".")[:-1]).with_suffix(".py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                described[name] = (ast.get_docstring(node) or "").split("\n")[0]
    return described


def usage() -> str:
    """The text of `zoo --help`."""
    width = max(map(len, [*VERBS, *models()]))
    lines = ["usage: zoo VERB [--config FILE ...] [--ckpt_path FILE] [options]", "", "verbs:"]
    lines += [f"  {verb:<{width}}  {sentence}" for verb, sentence in VERBS.items()]
    lines += ["", "models:"]
    lines += [f"  {name:<{width}}  {sentence}" for name, sentence in models().items()]
    lines += [
        "",
        "the same for every model and verb:",
        "  --config FILE      settings; several are laid over one another, the command line over all",
        "  --data_dir PATH    your data, instead of the config's",
        "  --output_dir DIR   where the run lives (default: the config's, runs/<name>)",
        "  --ckpt_path FILE   a checkpoint; `last` and `best` are those of --output_dir",
        "",
        "  zoo fit --config configs/tiny/llama.yaml",
        "  zoo generate --ckpt_path runs/tiny-llama/best.ckpt --prompt 'The '",
        "",
        "`zoo VERB --help` shows all options of a verb. ZOO_DEBUG=1 shows the traceback behind an error.",
    ]
    return "\n".join(lines)


def configs() -> list[dict[str, str]]:
    """One row per file in configs/: its name, model, data, size and needs."""
    rows = []
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        about = dict(re.findall(r"^# (size|needs): (.*)$", text, re.MULTILINE))
        class_paths = re.findall(r"^(model|data):\n  class_path: (\w+)", text, re.MULTILINE)
        rows.append(
            {
                "config": path.relative_to(ROOT).as_posix(),
                **({"model": "", "data": ""} | dict(class_paths)),
                "size": about.get("size", ""),
                "needs": about.get("needs", ""),
            }
        )
    return rows
