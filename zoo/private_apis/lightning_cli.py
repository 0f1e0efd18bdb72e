"""LightningCLI with its private hooks under public names. Written for lightning 2.6.

Private members used: `_subcommand_parsers`, `_parse_ckpt_path`, `_instantiate_trainer`, `_prepare_subcommand_kwargs`.
tests/private_apis/test_lightning_cli.py fails when one of them changes.
"""

from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI


class OpenLightningCLI(LightningCLI):
    """A LightningCLI whose parser defaults, callbacks and method arguments a subclass can change."""

    def verb_parser(self, verb: str) -> LightningArgumentParser:
        """The parser of one subcommand."""
        return self._subcommand_parsers[verb]

    def more_callbacks(self, trainer_config: dict[str, Any]) -> list[Callback]:
        """Callbacks added to those of the command line. Override this.

        Args:
            trainer_config: the Trainer's arguments.
        """
        return []

    def more_arguments(self, verb: str) -> dict[str, Any]:
        """Arguments added to those of the Trainer's method `verb`. Override this."""
        return {}

    def _parse_ckpt_path(self) -> None:
        # Lightning would replace what the user typed by the checkpoint's settings, without saying so. ZooCLI makes the
        # stored settings defaults instead.
        pass

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Any:
        return super()._instantiate_trainer(config, [*callbacks, *self.more_callbacks(config)])

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return super()._prepare_subcommand_kwargs(subcommand) | self.more_arguments(subcommand)
