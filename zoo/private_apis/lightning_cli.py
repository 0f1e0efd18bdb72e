"""LightningCLI with its private hooks under public names. Written for lightning 2.6.

Private members used: `_subcommand_parsers`, `_parse_ckpt_path`, `_instantiate_trainer`, `_prepare_subcommand_kwargs`,
`_run_subcommand`, `_add_instantiators`, `_InstantiatorFn`, and the wording of the errors about two callbacks of one
type and about the metric of an EarlyStopping.
tests/private_apis/test_lightning_cli.py fails when one of them changes.
"""

import re
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, _InstantiatorFn

from zoo.errors import UserError


class _DataBuilder(_InstantiatorFn):
    """Builds the data module and stores it as `datamodule` of the command line."""

    def __call__(self, class_type: type, *args: Any, applied_instantiation_links: dict, **kwargs: Any) -> Any:
        data: Any = super().__call__(
            class_type, *args, applied_instantiation_links=applied_instantiation_links, **kwargs
        )
        self.cli.datamodule = data
        return data


class OpenLightningCLI(LightningCLI):
    """A LightningCLI whose parser defaults, callbacks and method arguments a subclass can change."""

    runs_verb = True  # False in a subclass that only reads settings

    def verb_parser(self, verb: str) -> LightningArgumentParser:
        """The parser of one subcommand."""
        return self._subcommand_parsers[verb]

    def more_callbacks(self, trainer_config: dict[str, Any]) -> list[Callback]:
        """Callbacks added to those of the command line. Override this.

        Args:
            trainer_config: the Trainer's arguments.
        """
        return []

    def keep_callback(self, callback: Callback, trainer_config: dict[str, Any]) -> bool:
        """Whether a callback of the command line is used. Override this.

        Args:
            callback: built from the command line's settings.
            trainer_config: the Trainer's arguments.
        """
        return True

    def more_arguments(self, verb: str) -> dict[str, Any]:
        """Arguments added to those of the Trainer's method `verb`. Override this."""
        return {}

    def while_running(self, verb: str) -> AbstractContextManager[Any]:
        """A context for the run of a verb, with `before_<verb>` and `after_<verb>`. Override this."""
        return nullcontext()

    def _run_subcommand(self, subcommand: str) -> None:
        if not self.runs_verb:
            return
        with self.while_running(subcommand):
            try:
                super()._run_subcommand(subcommand)
            except RuntimeError as error:
                if (missing := missing_metric(error)) is None:
                    raise
                raise UserError(
                    f"the callback EarlyStopping watches {missing[0]!r}, which this model does not log: set its "
                    f"monitor to one of {missing[1]}"
                ) from error

    def _add_instantiators(self) -> None:
        super()._add_instantiators()
        build = _DataBuilder(cli=self, key="data")
        # `datamodule` is then known when the model's constructor fails.
        self.parser.add_instantiator(build, self._datamodule_class, subclasses=self.subclass_mode_data)

    def _parse_ckpt_path(self) -> None:
        # Lightning would silently replace what the user typed by the checkpoint's settings. ZooCLI makes the
        # stored settings defaults instead.
        pass

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Any:
        kept = [callback for callback in callbacks if self.keep_callback(callback, config)]
        return super()._instantiate_trainer(config, [*kept, *self.more_callbacks(config)])

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return super()._prepare_subcommand_kwargs(subcommand) | self.more_arguments(subcommand)


def repeated_callback(error: Exception) -> str | None:
    """The class name in Lightning's error about two callbacks of one type and with the same settings."""
    found = re.search(r"more than one stateful callback of type `(\w+)`", str(error))
    return found[1] if found else None


def missing_metric(error: Exception) -> tuple[str, str] | None:
    """The metric in the error of Lightning's EarlyStopping about one that is not logged, and those that are."""
    found = re.search(r"Early stopping conditioned on metric `(.+?)` which is not available.*: (`.+`)$", str(error))
    return (found[1], found[2].replace("`", "")) if found else None
