"""An argument parser whose errors are one sentence, with the nearest name where a name is unknown."""

import os
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser

from zoo.cli.linked_arguments import linked_arguments
from zoo.cli.trainer_classes import KINDS, class_names, noun_of, settings_of, suggestion
from zoo.console.exit_codes import UsageError
from zoo.console.messages import did_you_mean, nearest
from zoo.errors import UserError
from zoo.private_apis import jsonargparse_api as api
from zoo.registry import DATA_MODULES, MODELS, load_all, load_class

CKPT_PATH = (
    "a checkpoint: a file, a sharded run's folder, a URL or zoo:NAME; last and best are those in --output_dir, and for "
    "fit auto is last if it exists. Its settings of model and data are the defaults. A fit resumes from it"
)
LONGEST = 1000  # characters of a message
PUBLIC = re.compile(r"zoo\.callbacks\.[A-Z]\w+|zoo\.sharding\..*")  # classes of the zoo that users name, except models

# A saved config has the default of StochasticWeightAveraging's `device` as text; unknown names raise RuntimeError.
register_type(torch.device, str, torch.device, (RuntimeError, TypeError))


class ZooParser(LightningArgumentParser):
    """LightningArgumentParser with readable errors, exit code 2, and no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    # Both are replaced, not changed.
    described: dict[str, type | None] = {}  # noqa: RUF012 - group -> class, at the end of the help
    verb: str | None = None  # of the command
    given: dict[str, Any] = {}  # noqa: RUF012 - dotted key -> value in the command, shown as the default

    def format_help(self, formatter: Any = None) -> str:
        """The help text, with the options of the model and the data that the command names, and its values."""
        api.hide_classes(self, is_internal)
        api.show_as_defaults(self, self.given)
        api.describe(self, "ckpt_path", CKPT_PATH)
        text = super().format_help(formatter)
        for group, cls in self.described.items():
            if cls is not None:
                skip = {*linked_arguments(cls), *getattr(cls, "internal_arguments", ())}
                text += f"\n{cls.__name__}, the {group} of this command:\n" + api.class_help(
                    cls, group, skip, self.given
                )
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of one class, inside that of the command, which then reports
            super().error(message, ex)
        if os.environ.get("ZOO_DEBUG") and ex is not None:
            raise UserError(self.sentence(message)) from ex
        refuse(self.sentence(message))

    def sentence(self, message: str) -> str:
        """jsonargparse's message as one sentence, with what the user probably meant."""
        # Recognise the kind of message, and suggest the name that was probably meant.
        if option := api.unknown_option(message):
            rule = "" if option.startswith("--") else ": all options but -c and -h begin with two dashes"
            return f"there is no option {option}{did_you_mean(option, self._option_names(), rule)}"
        if option := api.without_value(message):
            return f"{option} needs a value: write {option} VALUE"
        # An unknown key inside a class or config: compare with the settings of the same group.
        if setting := api.unknown_setting(message):
            group = f"--{api.key_of(message) or ''}".removesuffix(".init_args")
            names = [name.removeprefix(group).lstrip(".-") for name in self._option_names() if name.startswith(group)]
            names += settings_of(group[2:], api.class_with_settings(message))
            prefix = f"{group[2:]}." if group[2:] else ""
            if group[2:] in ("model", "data") and (owners := self._owners(group[2:], setting)):
                return f"there is no setting {prefix + setting!r} here: it is one of {', '.join(owners)}"
            near = nearest(setting, names)
            hint = f"; did you mean {prefix}{near}?" if near else ""
            return f"there is no setting {prefix + setting!r}{hint}"
        if ambiguous := api.ambiguous_class(message):
            return f"there are several classes {ambiguous[0]}: write {' or '.join(sorted(ambiguous[1], reverse=True))}"
        # A class that does not exist, cannot be imported, or is of another kind.
        key = api.key_of(message)
        option, noun = f"--{key}: " if key in KINDS else "", noun_of(key)
        if name := api.unknown_class(message):
            return f"{option}there is no {noun} {name!r}{suggestion(key, name)}"
        if failed := api.failed_import(message):
            reason = did_you_mean(failed[0], class_names(key) if key in KINDS else (), f": {failed[1]}")
            return f"{option}there is no {noun} {failed[0]!r}{reason}"
        if name := api.class_of_another_kind(message):
            return f"--{key}: {name} is no {noun}{suggestion(key, name)}"
        # Missing files and missing arguments.
        if path := api.missing_file(message):
            return f"there is no file {os.path.relpath(path)}"
        if missing := api.missing_arguments(message):
            return _about_missing(missing, api.key_of(message), self.verb)
        return api.one_sentence(message)

    def _option_names(self) -> Iterator[str]:
        """Every option of this parser and of its subcommand, with those of all registered models and data."""
        # Names of all classes, because the wrong word may be an option of a class that is not chosen.
        yield from (option.name for option in api.options(self) if not option.name.endswith(".help"))
        for name, cls in load_all().items():
            group = "model" if name in MODELS else "data"
            yield from (option.name.replace("--", f"--{group}.", 1) for option in api.class_options(cls))

    def _owners(self, group: str, setting: str) -> list[str]:
        """The registered models or data modules that have a setting."""
        names = MODELS if group == "model" else DATA_MODULES
        return [name for name in names if f"--{setting}" in {o.name for o in api.class_options(load_class(name))}]


def is_internal(path: str) -> bool:
    """Whether a class is one that only the zoo itself uses, by its import path."""
    name = path.rpartition(".")[2]
    return path.startswith("zoo.") and name not in MODELS and name not in DATA_MODULES and not PUBLIC.fullmatch(path)


def refuse(sentence: str) -> NoReturn:
    """Exit with code 2 and a sentence about what is wrong with the command, a long value in it shortened."""
    if len(sentence) > LONGEST:
        sentence = f"{sentence[: LONGEST // 2]} ... {sentence[-LONGEST // 2 :]}"
    raise UsageError(sentence)


def _about_missing(names: list[str], key: str | None, verb: str | None) -> str:
    """A sentence about required arguments that were not given.

    Args:
        names: the arguments, "model" and "data" perhaps behind the verb.
        key: the class they belong to, "model" or "data", where they are constructor arguments.
        verb: verb of the command, if it is known.
    """
    # Model and data themselves are missing: a config would name them.
    classes = [name for name in ("model", "data") if not key and any(n.split(".")[-1] == name for n in names)]
    if len(classes) == 2 and verb not in ("fit", None):
        return f"zoo {verb} needs a trained model: add --ckpt_path FILE"
    if classes:
        what = {"model": "no model is named", "data": "no data is named"}
        said = "a model and its data must be named" if len(classes) == 2 else what[classes[0]]
        also = "" if len(classes) == 2 else f"--{classes[0]} CLASS, or "
        return f"{said}: add {also}--config NAME, one of those that `zoo list` shows"
    # Otherwise constructor arguments without default are missing.
    options = [f"--{key}.{name}" if key else f"--{name.split('.', 1)[-1]}" for name in names]
    return f"{' and '.join(options)} must be given"
