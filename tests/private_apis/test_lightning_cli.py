"""The private members of LightningCLI that the zoo overrides or reads still exist and are still called."""

import inspect

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI

from zoo.private_apis.lightning_cli import OpenLightningCLI


class Model(LightningModule):
    pass


class Extra(Callback):
    pass


class RecordingTrainer(Trainer):
    def validate(self, model, datamodule=None, ckpt_path=None, verbose=True):
        self.validated_with = {"ckpt_path": ckpt_path, "verbose": verbose}


class CLI(OpenLightningCLI):
    def subcommands(self):
        return {"validate": {"model", "datamodule"}}

    def parse_arguments(self, parser, args):
        self.verb_parser("validate").set_defaults({"ckpt_path": "no/such/file"})
        super().parse_arguments(parser, args)

    def more_callbacks(self, trainer_config):
        assert trainer_config["max_steps"] == 3
        return [Extra()]

    def more_arguments(self, verb):
        return {"verbose": False}


def test_hooks_are_called(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["zoo"])  # LightningCLI warns where both it and args hold words
    words = ["validate", "--trainer.max_steps=3", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    words.append("--seed_everything=0")
    cli = CLI(Model, LightningDataModule, trainer_class=RecordingTrainer, save_config_callback=None, args=words)
    assert cli.trainer.validated_with == {"ckpt_path": "no/such/file", "verbose": False}
    assert any(isinstance(callback, Extra) for callback in cli.trainer.callbacks)


def test_signatures():
    names = {
        "_parse_ckpt_path": ["self"],
        "_instantiate_trainer": ["self", "config", "callbacks"],
        "_prepare_subcommand_kwargs": ["self", "subcommand"],
    }
    for name, parameters in names.items():
        assert list(inspect.signature(getattr(LightningCLI, name)).parameters) == parameters
    assert "_parse_ckpt_path()" in inspect.getsource(LightningCLI.__init__)  # it is what reads the checkpoint
