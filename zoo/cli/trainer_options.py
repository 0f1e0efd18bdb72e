"""The Trainer's options: what Lightning would report less clearly or refuse, as `barebones` and no checkpoints."""

import re
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import BackboneFinetuning, Callback, ProgressBar
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zoo.callbacks import Checkpoint, EarlyStopping, Samples
from zoo.cli.trainer_classes import describe_text
from zoo.errors import UserError, check_counts, check_number
from zoo.sharding.strategy import NAME as fsdp2
from zoo.sharding.strategy import FullySharded

OFF_IN_BAREBONES = (  # options that `barebones` turns off, also where a config sets them
    "enable_checkpointing", "logger", "enable_progress_bar", "log_every_n_steps", "enable_model_summary",
    "num_sanity_val_steps",
)  # fmt: skip
LIMITS = {
    "fit": "limit_train_batches", "validate": "limit_val_batches", "test": "limit_test_batches",
    "predict": "limit_predict_batches",
}  # fmt: skip
UNUSED_STATE = "Be aware that when using .ckpt_path., callbacks used to create"  # the beginning of Lightning's warning
PROFILERS = ("simple", "advanced", "pytorch", "xla")
SWA = "StochasticWeightAveraging"
EVERY_EPOCH = "SWA is currently only supported every epoch"  # Lightning's warning, which prints an object of the zoo
CONFIGURES = "You're using the WeightAveraging callback with a model that overrides"  # models divide themselves there
NOT_IN_BAREBONES = ("fast_dev_run", "detect_anomaly", "profiler")


def check_trainer(trainer: Any, verb: str) -> None:
    """Check the Trainer's options, and complete them in place where `barebones` is set.

    Args:
        trainer: the options.
        verb: verb of the command.

    Raises:
        UserError: a requested GPU is not available, or an option is outside its range, excluded by another or without
            effect on the verb.
    """
    if verb == "generate" and trainer.precision is not None:
        raise UserError("--trainer.precision has no effect on generate: set --precision to fp32, bf16 or int8")
    if (name := LIMITS.get(verb)) and trainer[name] == 0:
        raise UserError(f"--trainer.{name} 0 leaves nothing to {verb}: set it to at least 1, or drop it")
    if trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"--trainer.accelerator {trainer.accelerator}: torch finds no CUDA GPU here; drop it, or set it to cpu"
        )
    if trainer.default_root_dir is not None:
        raise UserError(
            f"--trainer.default_root_dir has no effect here: set the run's folder with --output_dir "
            f"{trainer.default_root_dir}"
        )
    check_counts(**{"--trainer.num_nodes": trainer.num_nodes})
    if isinstance(trainer.strategy, str):
        trainer.strategy = strategy_name(trainer.strategy)
    elif (arguments := getattr(trainer.strategy, "init_args", None)) and arguments.get("shard_size") is not None:
        # jsonargparse would report what the constructor raises as a wrong type.
        check_counts(**{"--trainer.strategy.shard_size": arguments.shard_size})
    check_numbers(trainer, verb)
    check_names(trainer)
    apply_barebones(trainer)
    if verb == "fit" and named(trainer.callbacks, SWA):
        warnings.filterwarnings("ignore", message=EVERY_EPOCH)
        rank_zero_warn(
            f"{SWA} replaces the learning-rate schedule, and best.ckpt does not have its average: WeightAveraging and "
            "EMAWeightAveraging keep the schedule, and best.ckpt and last.ckpt have their average"
        )
    if isinstance(trainer.strategy, str) and trainer.strategy != fsdp2:
        warnings.filterwarnings("ignore", message=CONFIGURES)
    if verb != "fit":  # other verbs need no callback of the training, such as the timer of --trainer.max_time
        warnings.filterwarnings("ignore", message=UNUSED_STATE)


def as_list(value: Any) -> list[Any]:
    """The entries of an option that accepts one object or a list of them."""
    return value if isinstance(value, list) else [value]


def named(option: Any, name: str) -> list[Any]:
    """The entries of an option that name a class, by the name of the class without its package."""
    return [entry for entry in as_list(option) if str(getattr(entry, "class_path", "")).rpartition(".")[2] == name]


def check_numbers(trainer: Any, verb: str) -> None:
    """Raises UserError if a number among the Trainer's options is outside its range."""
    if verb == "fit":
        for name in ("max_steps", "max_epochs"):
            if trainer[name] is not None:
                check_number(
                    f"--trainer.{name}", trainer[name], "at least 1, or -1 for no limit", lambda n: n >= 1 or n == -1,
                    whole=True,
                )  # fmt: skip
    counts = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "log_every_n_steps": 0}
    for name, minimum in counts.items():
        if trainer[name] is not None:
            check_counts(minimum, **{f"--trainer.{name}": trainer[name]})
    if trainer.gradient_clip_val is not None:
        check_number("--trainer.gradient_clip_val", trainer.gradient_clip_val, "at least 0", lambda value: value >= 0)
    check_interval(trainer)
    for name in (*LIMITS.values(), "overfit_batches"):
        if trainer[name] is not None:
            check_number(
                f"--trainer.{name}", trainer[name], "a whole number of batches, or a share of them from 0 to 1",
                lambda limit: 0 <= limit <= 1 or (limit > 1 and limit % 1 == 0),
            )  # fmt: skip
    for logger in named(trainer.logger, "CSVLogger"):
        if (every := logger.init_args.get("flush_logs_every_n_steps")) is not None:
            check_counts(**{"--trainer.logger.flush_logs_every_n_steps": every})


def check_interval(trainer: Any) -> None:
    """Raises UserError unless val_check_interval is a number of batches, a duration, or a share of each epoch."""
    name, interval = "--trainer.val_check_interval", trainer.val_check_interval
    # Where another library has made the type Optional[Union[float, int]] first, Python gives the Trainer that one, and
    # 400 is read as 400.0.
    if isinstance(interval, float) and interval > 1 and interval.is_integer():
        trainer.val_check_interval = interval = int(interval)
    if isinstance(interval, int):
        check_counts(**{name: interval})
    elif isinstance(interval, float) and trainer.check_val_every_n_epoch is None:
        remedy = ": for a share of each epoch add --trainer.check_val_every_n_epoch 1" if 0 < interval <= 1 else ""
        raise UserError(f"{name} must be a whole number of batches, not {interval}{remedy}")
    elif isinstance(interval, float):
        check_number(
            name, interval, "a whole number of batches, or a share of the epoch above 0 and at most 1",
            lambda share: 0 < share <= 1,
        )  # fmt: skip


def check_names(trainer: Any) -> None:
    """Raises UserError where a text among the Trainer's options means nothing: durations, devices, names of classes."""
    for name in ("max_time", "val_check_interval"):
        text = trainer[name]
        if isinstance(text, str) and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", text.strip()):
            raise UserError(f"--trainer.{name} must be days:hours:minutes:seconds, such as 00:01:30:00, not {text!r}")
    devices = trainer.devices
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())
    is_count = isinstance(devices, int) or (isinstance(devices, str) and re.fullmatch(r"\s*-?\d+\s*", devices))
    is_list = isinstance(devices, list) or re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*,?\s*", str(devices))
    is_known = is_count or devices == "auto" or (is_list and not on_cpu)  # a list of GPUs
    if not is_known or (is_count and (int(devices) == 0 or int(devices) < (1 if on_cpu else -1))) or devices == []:
        raise UserError(f"--trainer.devices must be a number of processes from 1, or auto, not {devices!r}")
    if isinstance(trainer.profiler, str) and trainer.profiler.lower() not in PROFILERS:
        raise UserError(describe_text("trainer.profiler", trainer.profiler, PROFILERS))
    is_xla = str(trainer.profiler).lower() == "xla" or named(trainer.profiler, "XLAProfiler")
    if is_xla and not find_spec("torch_xla"):
        raise UserError("--trainer.profiler xla needs the package torch_xla: drop it, or set it to simple or pytorch")
    accelerators = ("auto", "gpu", *AcceleratorRegistry.available_accelerators())
    if isinstance(trainer.accelerator, str) and trainer.accelerator not in accelerators:
        raise UserError(describe_text("trainer.accelerator", trainer.accelerator, accelerators))


def shows_own_bar(trainer: dict[str, Any]) -> bool:
    """Whether the zoo's progress bar is shown: unless bars are turned off, or the user's callbacks include one.

    Args:
        trainer: the Trainer's arguments, with its callbacks.
    """
    is_on = trainer["enable_progress_bar"] is not False and not trainer["barebones"]
    return is_on and not any(isinstance(callback, ProgressBar) for callback in as_list(trainer.get("callbacks")))


def check_callbacks(callbacks: list[Callback], model: Any) -> None:
    """Raises UserError if a callback of Lightning needs what the model lacks."""
    if any(isinstance(callback, BackboneFinetuning) for callback in callbacks) and not hasattr(model, "backbone"):
        raise UserError(
            f"trainer.callbacks names BackboneFinetuning, which needs a model with an attribute `backbone`, and "
            f"{type(model).__name__} has none: drop it"
        )


def strategy_name(name: str) -> str:
    """The name under which Lightning knows a strategy; "FullySharded", the class, is called "fsdp2".

    Raises:
        UserError: there is no strategy of that name, or the models do not train with it.
    """
    own = fsdp2 if name.lower() == FullySharded.__name__.lower() else name.lower()
    known = StrategyRegistry.available_strategies()
    if own in ("auto", "single_device", fsdp2) or (own in known and own.startswith("ddp")):
        return own
    if own in known:  # Lightning's FSDP, DeepSpeed and TPUs
        raise UserError(
            f"--trainer.strategy {name} is not supported: set it to ddp, or to {fsdp2} to divide the parameters among "
            "the processes"
        )
    names = ("auto", "ddp", "ddp_spawn", "ddp_fork", fsdp2)
    raise UserError(describe_text("trainer.strategy", name, names))


def apply_barebones(trainer: Any) -> None:
    """Where `trainer.barebones` is set, turn off in place what a config sets and barebones excludes.

    Warnings about what the user has turned off are not shown.

    Args:
        trainer: the Trainer's options.

    Raises:
        UserError: an option is set that barebones cannot override.
    """
    if not saves_checkpoints(trainer):
        warnings.filterwarnings("ignore", message=UNUSED_STATE)
    if not trainer.barebones:
        return
    for name in NOT_IN_BAREBONES:
        if trainer[name]:
            raise UserError(f"--trainer.barebones true excludes --trainer.{name}: drop one of them")
    for name in OFF_IN_BAREBONES:
        trainer[name] = None
    warnings.filterwarnings("ignore", message=".*Trainer.barebones=True.. is configured")  # models log as always


def suits(callback: Callback, trainer: dict[str, Any]) -> bool:
    """Whether a callback that every run has is used with these options of the Trainer."""
    if isinstance(callback, Checkpoint):
        return saves_checkpoints(trainer)
    # In barebones mode no metric is logged that could stop a run.
    return not (trainer["barebones"] and isinstance(callback, EarlyStopping | Samples))


def saves_checkpoints(trainer: Any) -> bool:
    """Whether a run with these options of the Trainer saves checkpoints."""
    return not trainer["barebones"] and trainer["enable_checkpointing"] is not False
