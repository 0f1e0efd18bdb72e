"""Classes of the user's own package: named in a config, unknown to zoo.registry."""

import os
import subprocess
import sys
import traceback

import pytest

from tests.commands import MICRO, ROOT, TEXT, complaint
from zoo.__main__ import main

MODULE = '''
from zoo.datamodules import TextLM
from zoo.llama.model import Llama, LlamaConfig
from zoo.optim import OptimizerConfig
from zoo.training.language_model import LanguageModel


class MyText(TextLM):
    """A data module of the user's own, with an attribute that the model takes."""

    n_letters = 26


class MyModel(LanguageModel):
    """A language model of the user's own."""

    data_arguments = ("vocab_size", "tokenizer", "n_letters")

    def __init__(self, n_letters: int, dim: int = 16, vocab_size: int | None = None, tokenizer=None):
        assert n_letters == 26
        network = Llama(LlamaConfig(vocab_size=vocab_size, dim=dim, n_layers=1, n_heads=2, max_seq_len=64))
        super().__init__(network, OptimizerConfig(), tokenizer)
        self.save_hyperparameters(ignore=["tokenizer"])


class Broken(MyModel):
    def __init__(self, **settings):
        raise ValueError("a bug in a constructor")


class NeedsDepth(MyModel):
    def __init__(self, depth: int, n_letters: int = 26):
        super().__init__(n_letters)


class BrokenStep(MyModel):
    def training_step(self, batch, batch_idx):
        tokens, targets = batch
'''
CONFIG = "model:\n  class_path: my_package.models.{model}\ndata:\n  class_path: my_package.models.MyText\n"
OPTIONS = [word for word in MICRO if not word.startswith("--model.")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with the user's package, configs and a text; the test's process works in it."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "models.py").write_text(MODULE)
    (folder / "text.txt").write_text(TEXT)
    for model in ("MyModel", "Broken", "BrokenStep"):
        (folder / f"{model}.yaml").write_text(CONFIG.format(model=model))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def checkpoint(folder):
    assert main(fit_words("MyModel")) == 0
    return folder / "MyModel" / "best.ckpt"


def fit_words(model):
    options = [*OPTIONS, "--data_dir=text.txt", f"--output_dir={model}", "--trainer.max_steps=2"]
    return ["fit", f"--config={model}.yaml", *options]


def test_own_classes_in_a_config_train_and_evaluate(checkpoint):
    assert main(["validate", "--config=MyModel.yaml", f"--ckpt_path={checkpoint}", *OPTIONS]) == 0
    names = ["--model=my_package.models.MyModel", "--data=my_package.models.MyText"]
    assert main(["validate", *names, f"--ckpt_path={checkpoint}", "--trainer.enable_progress_bar=false"]) == 0


def test_a_checkpoint_alone_does_not_import_own_classes(checkpoint, capsys):
    message = complaint(capsys, 1, "validate", f"--ckpt_path={checkpoint}")
    assert "model 'MyModel' that is not registered in zoo.registry" in message
    assert "--model IMPORT.PATH" in message


def test_the_config_next_to_a_checkpoint_does_not_import_own_classes(checkpoint, capsys):
    message = complaint(capsys, 1, "fit", f"--ckpt_path={checkpoint}")
    assert "config.yaml names my_package.models.MyModel, which is not a class of the zoo" in message
    argv = ["fit", f"--config={checkpoint.parent / 'config.yaml'}", f"--ckpt_path={checkpoint}"]
    assert main([*argv, "--trainer.max_steps=2"]) == 0


def test_a_missing_constructor_argument_is_named(folder, capsys):
    argv = ["fit", "--model=my_package.models.NeedsDepth", "--data=TextLM", "--output_dir=other"]
    assert "--model.depth must be given" in complaint(capsys, 2, *argv)


def test_a_bug_in_a_constructor_is_raised(folder, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(ValueError, match=r"^a bug in a constructor$") as error:  # not jsonargparse's message around it
        main(fit_words("Broken"))
    assert "Namespace(" not in "".join(traceback.format_exception(error.value))
    assert sys.excepthook is not sys.__excepthook__  # it adds the request for a report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "message"),
    [("Broken", "ValueError: a bug in a constructor"), ("BrokenStep", "ValueError: too many values to unpack")],
)
def test_a_bug_keeps_its_traceback_and_asks_for_a_report(folder, model, message):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "zoo", *fit_words(model)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "models.py" in done.stderr
    assert message in done.stderr
    assert done.stderr.rstrip().endswith("please report it with the traceback above")
