"""The private members of LightningCLI that the zoo overrides or reads still exist and are still called."""

import inspect

import pytest
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.cli import LightningCLI

from zoo.private_apis.lightning_cli import OpenLightningCLI, missing_metric, repeated_callback


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


def test_the_data_is_known_when_the_model_fails(monkeypatch):
    known = []

    class Data(LightningDataModule):
        name = "x"

    class Failing(LightningModule):
        def __init__(self, name: str) -> None:
            raise ZeroDivisionError

    class Linked(CLI):
        def add_arguments_to_parser(self, parser):
            parser.link_arguments("data.name", "model.name", apply_on="instantiate")

        def instantiate_classes(self):
            try:
                super().instantiate_classes()
            finally:
                known.append(self.datamodule)

    monkeypatch.setattr("sys.argv", ["zoo"])
    with pytest.raises(ZeroDivisionError):
        Linked(Failing, Data, trainer_class=RecordingTrainer, args=["validate", "--trainer.max_steps=3"])
    assert isinstance(known[0], Data)


def test_two_callbacks_of_one_type():
    with pytest.raises(RuntimeError) as error:
        Trainer(callbacks=[EarlyStopping("x"), EarlyStopping("x")], logger=False, enable_checkpointing=False)
    assert repeated_callback(error.value) == "EarlyStopping"
    assert repeated_callback(RuntimeError("other")) is None


def test_signatures():
    names = {
        "_parse_ckpt_path": ["self"],
        "_instantiate_trainer": ["self", "config", "callbacks"],
        "_prepare_subcommand_kwargs": ["self", "subcommand"],
    }
    for name, parameters in names.items():
        assert list(inspect.signature(getattr(LightningCLI, name)).parameters) == parameters
    assert "_parse_ckpt_path()" in inspect.getsource(LightningCLI.__init__)  # it is what reads the checkpoint


def test_the_error_about_a_metric_that_is_not_logged_names_it_and_the_others():
    callback = EarlyStopping("val_accuracy")
    with pytest.raises(RuntimeError) as caught:
        callback._validate_condition_metric({"val_loss": 1.0, "val_ppl": 2.0})
    assert missing_metric(caught.value) == ("val_accuracy", "val_loss, val_ppl")
    assert missing_metric(RuntimeError("another error")) is None
