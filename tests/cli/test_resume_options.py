"""Options that are changed when a run is resumed: each is applied, or refused by name, and the records tell which."""

import pytest
import torch
import yaml

from tests.commands import complaint
from zoo.__main__ import main
from zoo.cli.linked_arguments import linked_arguments
from zoo.private_apis.jsonargparse_api import class_options
from zoo.registry import DATA_MODULES, MODELS, load_class

OPTIMIZER = {"lr", "muon_lr", "warmup_steps", "min_lr_ratio", "beta1", "beta2", "weight_decay"}
NOT_TRAINED = {"LlamaZeroShot"}
NOT_STATE = {"config", "weights", "embeddings", "base", "encoder"}  # compared with config.yaml, or by their contents
# Every other argument of a class is either in this table, and applied, or in the class's `fixed_arguments`.
APPLIED = {
    "LlamaLM": OPTIMIZER | {"compile", "dropout", "gradient_checkpointing"},
    "LlamaClassifier": OPTIMIZER | {"dropout", "head_dropout", "gradient_checkpointing", "lm_weight"},
    "RegressLM": OPTIMIZER
    | {"z_loss", "point", "num_samples", "val_samples", "keep_samples", "temperature", "dropout", "residual_dropout"}
    | {"calibration", "unseen_exponents", "encoder_cache", "encoder_lr", "gradient_checkpointing"},
    "MiniRLM": OPTIMIZER | {"loss", "huber_delta", "dropout"},
    "ICRTransformer": OPTIMIZER | {"compile", "grad_clip"},
    "RevDEQLM": OPTIMIZER
    | {"compile", "num_fixed_point_iterations", "fixed_point_tol", "beta", "backward", "keep_every", "solver"}
    | {"warm_start", "dropout"},
    "TextLM": {"batch_size", "num_workers", "cache_dir", "eval_stride", "packing_processes"},
    "Reviews": {"batch_size", "num_workers", "cache_dir"},
    "TextRegression": {"batch_size", "num_workers", "cache_dir"},
    "SyntheticConfigs": {"batch_size", "num_workers", "cache_dir", "test_on"},
    "SyntheticTables": {"batch_size", "num_workers", "cache_dir", "n_val"},
    "LinearRegressionTasks": {"batch_size", "num_workers", "cache_dir", "max_M", "n_val", "n_test"},
}


def options_of(cls) -> set[str]:
    names = {option.name.removeprefix("--") for option in class_options(cls)}
    return {name for name in names if not name.endswith((".help", "+"))}


@pytest.mark.parametrize("name", [*MODELS, *DATA_MODULES])
def test_every_option_is_applied_or_fixed(name):
    if name in NOT_TRAINED:
        pytest.skip("it is not trained")
    cls = load_class(name)
    if name in MODELS:
        rest = options_of(cls) - APPLIED[name] - NOT_STATE - set(linked_arguments(cls))
        assert rest - set(cls.fixed_arguments) == set()
        assert not APPLIED[name] & set(cls.fixed_arguments)
    else:
        by_content = {"tokenizer", "bpe_vocab_size"}
        assert set(cls.changeable_arguments) - by_content == APPLIED[name]


def resume(run, tmp_path, *options):
    """Resume the fixture's run of four steps into another folder for two more steps; return its checkpoint."""
    out = tmp_path / "resumed"
    words = [f"--ckpt_path={run / 'last.ckpt'}", f"--config={run / 'config.yaml'}", f"--output_dir={out}"]
    assert main(["fit", *words, "--trainer.max_steps=6", *options]) == 0
    checkpoint = torch.load(out / "last.ckpt", weights_only=True)
    return checkpoint, yaml.safe_load((out / "config.yaml").read_text())


def test_optimizer_options_are_applied_and_recorded(run, tmp_path):
    new = {"lr": 2e-4, "weight_decay": 0.3, "beta1": 0.8, "beta2": 0.97, "min_lr_ratio": 1.0, "warmup_steps": 0}
    checkpoint, config = resume(run, tmp_path, *(f"--model.{name}={value}" for name, value in new.items()))
    [optimizer], [schedule] = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    matrices, vectors = optimizer["param_groups"]
    assert (matrices["lr"], matrices["weight_decay"], vectors["weight_decay"]) == (2e-4, 0.3, 0.0)
    assert tuple(matrices["betas"]) == (0.8, 0.97)
    assert all(state["step"] == 6 for state in optimizer["state"].values())  # the moments continue
    assert (schedule["base_lrs"], schedule["last_epoch"]) == ([2e-4, 2e-4], 6)
    for records in (checkpoint["hyper_parameters"], config["model"]["init_args"]):
        assert {name: records[name] for name in new} == new
    assert yaml.safe_load((tmp_path / "resumed" / "hparams.yaml").read_text())["lr"] == 2e-4


def test_an_applied_option_changes_the_weights_and_an_equal_one_does_not(run, tmp_path):
    weights = [resume(run, tmp_path / name, *words)[0]["state_dict"]
               for name, words in {"a": [], "b": ["--model.lr=3e-3"], "c": ["--model.lr=0"]}.items()]  # fmt: skip
    start = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])  # 3e-3 is the run's rate
        assert torch.equal(start[name], weights[2][name])


@pytest.mark.parametrize(
    ("option", "stored", "value"),
    [
        ("--model.dim", 16, 32),
        ("--model.n_heads", 2, 1),
        ("--model.optimizer", "'adamw'", "adafactor"),
        ("--model.rope_theta", 10000.0, 5000.0),
        ("--data.seq_len", 16, 8),
        ("--data.seed", 0, 5),
        ("--data.val_fraction", 0.05, 0.2),
        ("--seed_everything", 0, 1),
        ("--trainer.overfit_batches", 0.0, 1.0),
    ],
)
def test_a_fixed_option_is_refused_and_nothing_is_written(option, stored, value, run, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    capsys.readouterr()
    said = complaint(capsys, 1, "fit", f"--ckpt_path={run / 'last.ckpt'}", f"{option}={value}", "--trainer.max_steps=6")
    assert f"{option} is {value}" in said.replace("'", "")
    assert f"here and {stored} in the checkpoint" in said
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    new = tmp_path / "new"
    complaint(capsys, 1, "fit", f"--ckpt_path={run / 'last.ckpt'}", f"{option}={value}", f"--output_dir={new}/deep")
    assert not new.exists()
