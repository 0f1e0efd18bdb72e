"""The command line: LightningCLI in subclass mode, for every model of the zoo.

What is ours on top of Lightning's: a checkpoint alone is enough for every verb but `fit`, its settings being the
defaults that config files and the command line override; `--data_dir`, `--output_dir` and `--ckpt_path` mean the same
everywhere; the shared callbacks are top-level keys; a run's folder is never overwritten; errors are one sentence.
"""

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from zoo import callbacks, datamodules
from zoo.callbacks.progress import Progress
from zoo.cli.checkpoint_info import CheckpointInfo, read_checkpoint_info
from zoo.cli.parser import ZooParser
from zoo.cli.trainer import ZooTrainer
from zoo.datamodules.sources.corpus import data_label
from zoo.errors import UserError
from zoo.registry import MODELS, load_all
from zoo.training.module import ZooModule

METHOD_SKIPS = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule", "weights_only"}


class ZooCLI(LightningCLI):
    """Parse `argv` (verb first), build model, data and trainer, with more `callbacks` if given, and run the verb."""

    def __init__(self, argv: list[str], callbacks: Sequence[Callback] = ()) -> None:
        self.verb = argv[0]
        self.classes = load_all()  # so that a config can say `class_path: LlamaLM`
        self.callbacks = callbacks
        # Lightning's chatter would drown the one sentence that matters, and `generate` prints nothing but text.
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="You have overridden `on_before_batch_transfer`")  # on purpose
        super().__init__(
            ZooModule,
            datamodules.ZooDataModule,
            trainer_class=ZooTrainer,
            parser_class=ZooParser,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"use_distributed_sampler": False},  # the data's own sampler knows about ranks
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=argv,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # One parser, not five: building each takes a second.
        return {self.verb: METHOD_SKIPS | ({"return_predictions"} if self.verb == "predict" else set())}

    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.add_argument("--data_dir", type=str | None, help="your data, instead of the config's")
        parser.add_argument(
            "--output_dir",
            type=str | None,
            help="the run's folder (default: runs/<model>); {data} is the data's label, {time} the time of the start",
        )
        parser.add_argument(
            "--allow_other_data", type=bool, default=False, help="fit --ckpt_path may go on with data of another label"
        )
        parser.add_lightning_class_args(callbacks.Checkpoint, "checkpoint")
        parser.add_lightning_class_args(callbacks.EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(callbacks.Half, "half")
        parser.add_lightning_class_args(callbacks.Throughput, "throughput")
        parser.add_lightning_class_args(callbacks.Samples, "samples")
        parser.add_lightning_class_args(callbacks.Predictions, "predictions")
        parser.add_lightning_class_args(callbacks.Plots, "plots")
        # A model class declares which constructor arguments come from attributes of the data module.
        linked = {name for model in MODELS for name in getattr(self.classes[model], "data_arguments", ())}
        for name in sorted(linked):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    # ---- parsing

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse with the checkpoint's settings as defaults, so that whatever is typed beats them."""
        typed = _typed(args, "ckpt_path", "output_dir")
        ckpt_path = _checkpoint_file(typed.get("ckpt_path"), typed.get("output_dir"))
        self.checkpoint_info = read_checkpoint_info(ckpt_path) if ckpt_path else None
        if self.checkpoint_info and self.checkpoint_info.is_external and self.verb == "fit":
            raise UserError(
                f"{ckpt_path} is no run to go on with: to start from its weights, --model.weights {ckpt_path}"
            )
        if self.checkpoint_info and self.verb != "fit":
            self._subcommand_parsers[self.verb].set_defaults(self.checkpoint_info.defaults())
        self.config = parser.parse_args(_flags(args))
        config = self.config[self.verb]
        config.ckpt_path = None if self.checkpoint_info and self.checkpoint_info.is_external else ckpt_path
        if self.verb != "fit" and not ckpt_path and not config.model.init_args.get("weights"):
            raise UserError(f"zoo {self.verb} needs a trained model: add --ckpt_path FILE")
        if config.data_dir is not None:
            if "data" not in config.data.init_args:
                raise UserError(f"{config.data.class_path} draws its own data and reads none: drop --data_dir")
            config.data.init_args.data, config.data_dir = config.data_dir, None  # one place, for the saved config
        if self.checkpoint_info and self.verb == "fit" and not config.allow_other_data:
            _same_label(self.checkpoint_info, config.data.init_args.get("data"))
        config.output_dir = self._output_dir(config, ckpt_path)

    def _output_dir(self, config: Any, ckpt_path: str | None) -> str:
        """The run's own folder: as typed or configured, else the checkpoint's, else one named after the model."""
        pattern = config.output_dir
        ours = not (self.checkpoint_info and self.checkpoint_info.is_external)
        if ckpt_path and ours and (pattern is None or "{time}" in pattern):
            return str(Path(ckpt_path).parent)
        if pattern is None:
            return f"runs/{config.model.class_path.rsplit('.', 1)[-1].lower()}"
        if "{time}" in pattern and "TORCHELASTIC_RUN_ID" in os.environ:
            raise UserError(f"under torchrun every process has its own time: give another --output_dir than {pattern}")
        now = time.strftime("%Y%m%d-%H%M%S")
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the other processes of this machine inherit it
            os.environ["ZOO_STARTED"] = now
        label = data_label(config.data.init_args.get("data") or config.data.class_path.rsplit(".", 1)[-1].lower())
        return pattern.replace("{data}", label).replace("{time}", os.environ.get("ZOO_STARTED", now))

    def _parse_ckpt_path(self) -> None:
        """Lightning's own would let the checkpoint's settings override, silently, what the user typed."""

    # ---- building

    def before_instantiate_classes(self) -> None:
        config = self.config[self.verb]
        if config.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise UserError(
                f"--trainer.accelerator {config.trainer.accelerator}: torch finds no CUDA GPU here; drop it, or say cpu"
            )
        if config.trainer.accumulate_grad_batches < 1:
            raise UserError(
                f"trainer.accumulate_grad_batches must be at least 1, not {config.trainer.accumulate_grad_batches}"
            )
        if config.trainer.precision is not None:
            config.half.precision = "off"  # an explicit precision wins

    def after_instantiate_classes(self) -> None:
        if self.checkpoint_info and not self.checkpoint_info.is_external:
            self.checkpoint_info.check_tokenizer(self.datamodule)
        self.model.check_data(self.datamodule)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ModuleNotFoundError as error:  # of an accelerator, logger or strategy that was asked for
            raise UserError(str(error)) from error
        except ValueError as error:
            # jsonargparse wraps what a constructor raises: the sentence for the user is inside.
            if user_error := _user_error_within(error):
                raise user_error from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        config = self.config[self.verb]
        kwargs["default_root_dir"] = config.output_dir
        if config.trainer.logger in (None, True):
            # name and version empty: one run, one folder, and a resumed run's curve goes on where it stopped.
            kwargs["logger"] = self.verb == "fit" and TensorBoardLogger(
                config.output_dir, name="", version="", default_hp_metric=False
            )
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Any:
        if config["logger"]:
            callbacks.append(LearningRateMonitor())
        if config["enable_progress_bar"] is not False and self.verb != "generate":
            callbacks.append(Progress())
        callbacks += self.callbacks
        return super()._instantiate_trainer(config, callbacks)

    # ---- running

    def before_fit(self) -> None:
        """Refuse a folder that already holds a run, unless that run is what is being resumed."""
        config = self.config.fit
        folder = Path(config.checkpoint.dirpath or config.output_dir)
        taken = [name for name in ("last.ckpt", "best.ckpt") if (folder / name).exists()]
        if self.trainer.is_global_zero and taken and not _inside(config.ckpt_path, folder):
            raise UserError(
                f"{folder} already holds a run ({taken[0]}): add --ckpt_path last to go on with it, "
                "or give another --output_dir"
            )
        _probe(folder)

    def after_fit(self) -> None:
        """Close with one line: how far the run came, and how well."""
        trainer: Any = self.trainer
        checkpoint = trainer.checkpoint_callback
        if not trainer.is_global_zero or trainer.fast_dev_run or not isinstance(checkpoint, callbacks.Checkpoint):
            return
        best = f", best {checkpoint.monitor} {checkpoint.best_score:.4g}" if checkpoint.best_model_path else ""
        more = ""
        if self.checkpoint_info and self.checkpoint_info.step == trainer.global_step:
            more = "; nothing was left to do: raise --trainer.max_steps to go on"
        print(f"{trainer.default_root_dir}: {trainer.global_step} steps{best}{more}", file=sys.stderr)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict":
            kwargs["return_predictions"] = False  # they are in the file; a long input would fill the memory
        return kwargs


class SaveConfig(SaveConfigCallback):
    """Write the run's settings beside its checkpoints, so that `--config <run>/config.yaml` repeats it."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            config = self.config.clone()
            config.ckpt_path = None
            path = Path(trainer.default_root_dir) / "config.yaml"
            self.parser.save(config, path, skip_none=False, overwrite=True)


def _user_error_within(error: BaseException) -> UserError | None:
    """The UserError that led to `error`, if one did."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _typed(argv: list[str], *names: str) -> dict[str, str]:
    """The last value of each option that configs and command line give, before any real parsing."""
    found: dict[str, str] = {}
    options = {f"--{name}": name for name in names}
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option in ("-c", "--config"):
            path = Path(value if equals else next(words, ""))
            if path.is_file():
                try:
                    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
                except yaml.YAMLError as error:
                    where = getattr(error, "problem_mark", None)
                    line = f" at line {where.line + 1}" if where else ""
                    raise UserError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', error)}") from error
                if not isinstance(settings, dict | None):
                    raise UserError(f"{path} holds no settings: a config is a mapping of names to values")
                found |= {k: v for k, v in (settings or {}).items() if k in names and v is not None}
        elif option in options:
            found[options[option]] = value if equals else next(words, "")
    return found


def _flags(argv: list[str]) -> list[str]:
    """`--compile` alone means true, as a flag should; jsonargparse wants the word."""
    alone = [following.startswith("--") for following in [*argv[1:], "--"]]
    flags = ("--compile", "--allow_other_data")
    return [f"{word}=true" if word in flags and a else word for word, a in zip(argv, alone, strict=True)]


def _checkpoint_file(ckpt_path: str | None, output_dir: str | None) -> str | None:
    """The file that `--ckpt_path` means: `last` and `best` are the output folder's."""
    if ckpt_path in ("last", "best"):
        if not output_dir or "{" in output_dir:
            where = f"which run of {output_dir} is meant" if output_dir else "the run's folder"
            raise UserError(f"--ckpt_path {ckpt_path} needs to know {where}: add --output_dir, or name the file")
        ckpt_path = str(Path(output_dir) / f"{ckpt_path}.ckpt")
    if ckpt_path and not Path(ckpt_path).exists():
        beside = sorted(str(p) for p in Path(ckpt_path).parent.glob("*.ckpt"))
        hint = f"; there is {' and '.join(beside)}" if beside else ""
        raise FileNotFoundError(f"there is no checkpoint {ckpt_path}{hint}")
    return ckpt_path


def _same_label(info: CheckpointInfo, data: str | None) -> None:
    before = (info.data or {}).get("init_args", {}).get("data")
    if before and data and data_label(before) != data_label(data):
        raise UserError(
            f"{info.path} was trained on {data_label(before)!r}, and this is {data_label(data)!r}: "
            "give its own data, or add --allow_other_data"
        )


def _inside(ckpt_path: str | None, folder: Path) -> bool:
    return ckpt_path is not None and Path(ckpt_path).resolve().parent == folder.resolve()


def _probe(folder: Path) -> None:
    """Find out now, not after an hour of training, that the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}): give another --output_dir") from error
