"""Configs by name: `--config tiny/llama` is the file configs/tiny/llama.yaml of the zoo, from any working directory."""

import os
from pathlib import Path

from zoo.console.messages import did_you_mean, nearest
from zoo.errors import UserError
from zoo.files import regular_file

CONFIGS = Path(__file__).parents[1] / "configs"


class UnknownWordError(UserError):
    """A word of the command means nothing. The command ends with the exit code of a usage error."""


class UnknownConfigError(UnknownWordError):
    """`--config` names neither a config of the zoo nor a file."""


def config_files() -> dict[str, Path]:
    """The configs that come with the zoo, by name: the path below configs/ without its suffix."""
    # os.walk rather than rglob: in the repository zoo/configs is a link, and Python versions differ on those.
    paths = [Path(folder) / file for folder, _, files in os.walk(CONFIGS) for file in files if file.endswith(".yaml")]
    return {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in sorted(paths)}


def find_config(name: str) -> Path:
    """The file of a config, given by name or path. A name of the zoo wins over a file; write ./NAME for the file.

    Raises:
        UnknownConfigError: there is neither such a name nor such a file.
        UserError: it is a folder, a pipe or a device.
    """
    if not name.strip():
        raise UnknownConfigError("--config is empty: give a name that `zoo list` shows, or a file")
    files = config_files()
    if name in files:
        return files[name]
    path = Path(name)
    if name and os.path.exists(name):  # unlike Path.exists, False for a name that is too long
        return regular_file(path)
    if Path("configs").is_dir() and path.parts[:1] == ("configs",):  # from the repository: suggest a path there
        here = [p.as_posix() for p in Path("configs").rglob("*.yaml")]
        raise UnknownConfigError(f"there is no config file {name}{did_you_mean(name, here)}")
    bare = name.removeprefix("configs/").removesuffix(".yaml")
    raise UnknownConfigError(f"there is no config {name}{did_you_mean(bare, files, '; `zoo list` shows the names')}")


def describe_stray_word(word: str, before: tuple[str, str] | None = None) -> str:
    """A sentence about a word that is neither an option nor the value of one, with the option that it needs.

    Args:
        word: the word.
        before: the option before it, and its value.
    """
    config = word.removeprefix("configs/").removesuffix(".yaml")
    continued = f"{before[0]} '{before[1]} {word}'" if before is not None and before[1] else None
    if before is not None and before[0] == "--budget":  # "5 min", where "min" is also similar to a config's name
        option = continued or f"--budget {word}"
    elif (near := config if config in (files := config_files()) else nearest(config, files)) and "=" not in word:
        option = f"--config {near}"
    elif "=" in word:  # as in Hydra
        option = f"--{word}"
    elif word in ("last", "best", "auto") or word.endswith(".ckpt"):
        option = f"--ckpt_path {word}"
    elif word.endswith((".yaml", ".yml")):
        option = f"--config {word}"
    elif os.path.exists(word):
        option = f"--data_dir {word}"
    elif continued is not None:
        option = continued
    else:
        return f"{word!r} belongs to no option: options begin with --, and a value that contains blanks needs quotes"
    return f"{word!r} belongs to no option: did you mean {option}?"
