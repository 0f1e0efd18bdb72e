"""`zoo fit --ckpt_path RUN/last.ckpt`: the run's own config.yaml, next to the checkpoint.

Without a config in the command it gives the settings. Otherwise settings that a resumed run cannot change, and that the
checkpoint does not contain, are compared with it.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.cli.arguments import Arguments, load_config
from zoo.errors import UserError
from zoo.files.remote_files import is_copy, local_copy
from zoo.files.safetensors_checkpoints import is_safetensors_checkpoint
from zoo.registry import DATA_MODULES, MODELS
from zoo.training.fixed_arguments import check_fixed

TRUSTED = ("zoo.", "lightning.pytorch.")  # packages whose classes a config next to a checkpoint may name

# Settings that a resumed run cannot change, because the checkpoint replaces their effect.
NOT_IN_CHECKPOINTS = {"model": ("weights", "embeddings"), "trainer": ("overfit_batches",)}


def saved_run(ckpt_path: str | None, arguments: Arguments) -> list[str]:
    """Words that repeat the run of a checkpoint, to be put before those of the command.

    Args:
        ckpt_path: the checkpoint to resume from, if any.
        arguments: what the command says.

    Returns:
        `--config RUN/config.yaml --output_dir RUN`, of a remote run only the config; nothing where the command gives a
        config, a model or data itself, or where config.yaml is missing next to the checkpoint.

    Raises:
        UserError: the config names a class outside the zoo and Lightning, which only the user can decide to trust; or
            the checkpoint is an export, which holds no state of an optimizer.
    """
    if is_safetensors_checkpoint(ckpt_path):
        raise UserError(
            f"cannot resume from {ckpt_path}: an export holds no state of the optimizer. To start from its weights, "
            f"use --model.weights {ckpt_path}"
        )
    is_named = any(word.startswith("--config=") for word in arguments.words) or any(arguments.class_paths.values())
    if ckpt_path is None or is_named or not (path := Path(ckpt_path).parent / "config.yaml").is_file():
        return []
    return _words_of(path)


def copy_remote_config(url: str) -> None:
    """Copy the config.yaml next to a remote checkpoint, if there is one, to the copy of the checkpoint."""
    with contextlib.suppress(FileNotFoundError):
        local_copy(f"{url.partition('?')[0].rpartition('/')[0]}/config.yaml")


def with_chosen_settings(ckpt_path: str | None, arguments: Arguments) -> list[str]:
    """The words of a command that resumes a run whose settings were chosen from the data.

    The settings of the run's config.yaml replace the choices; what the command says after `automatic` overrides them.

    Args:
        ckpt_path: the checkpoint to resume from, if any.
        arguments: what the command says.

    Raises:
        UserError: as in `saved_run`.
    """
    start = arguments.automatic_from
    if ckpt_path is None or start is None or not (path := Path(ckpt_path).parent / "config.yaml").is_file():
        return arguments.words
    return [*arguments.words[:start], *_words_of(path), *arguments.words[start:]]


def _words_of(path: Path) -> list[str]:
    """The words that repeat the run of a config.yaml, whose classes are checked."""
    _check_classes(path)
    # The folder of a copied remote run is in the cache: the run continues in the folder that its config names.
    return [f"--config={path}"] if is_copy(path) else [f"--config={path}", f"--output_dir={path.parent}"]


def _check_classes(path: Path) -> None:
    """Raises UserError if the config next to a checkpoint names a class outside the zoo and Lightning."""
    for name in _class_paths(load_config(str(path))[1]):
        if not name.startswith(TRUSTED) and name not in MODELS and name not in DATA_MODULES:
            raise UserError(
                f"{path} names {name}, which is not a class of the zoo: add --config {path} if you trust it"
            )


def refuse_overridden_checkpoint(arguments: Arguments) -> None:
    """Raises UserError if `ckpt_path: null` in a config follows --ckpt_path: a new run would start unnoticed."""
    sources = [source for key, source in arguments.keys if key == "ckpt_path"]
    if sources and sources[-1] and "" in sources and arguments.values["ckpt_path"] is None:
        raise UserError(f"{sources[-1]} sets ckpt_path to null: give --ckpt_path after that --config")


def refuse_changed_settings(ckpt_path: str, config: Any) -> None:
    """Raises UserError if a setting without effect on a resumed run differs from the run's config.yaml.

    Args:
        ckpt_path: the checkpoint to resume from.
        config: the settings of the command.
    """
    path = Path(ckpt_path).parent / "config.yaml"
    if not path.is_file():
        return
    saved = load_config(str(path))[1]
    for group, names in NOT_IN_CHECKPOINTS.items():
        parts = [of.get(group) or {} for of in (saved, config)]
        before, now = (part.get("init_args", {}) if group == "model" else part for part in parts)
        # A name that the config.yaml lacks has its default, as in every config that the zoo writes.
        check_fixed({name: before[name] for name in names if name in before}, now, names, f"--{group}.")


def _class_paths(settings: Any, is_trainer: bool = False) -> Iterator[str]:
    """Every class that a config may name: `class_path` entries, and import paths among the Trainer's settings."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key == "class_path":
                yield str(value)
            else:
                yield from _class_paths(value, is_trainer or key == "trainer")
    elif isinstance(settings, list):
        for value in settings:
            yield from _class_paths(value, is_trainer)
    elif is_trainer and isinstance(settings, str) and _is_import_path(settings):
        yield settings


def _is_import_path(text: str) -> bool:
    """Whether a text such as "package.Class" names something in an installed package, unlike "prof.txt" and ".3f"."""
    package, *names = text.split(".")
    is_dotted = bool(names) and all(part.isidentifier() for part in (package, *names))
    return is_dotted and (package in sys.modules or importlib.util.find_spec(package) is not None)
