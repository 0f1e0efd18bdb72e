"""The command line: LightningCLI in subclass mode, for every model of the zoo.

On top of LightningCLI: configs by name; a checkpoint alone is enough for every verb, its settings being the defaults
that config files and the command line override (`fit` resumes with the config.yaml next to it); `--data_dir`,
`--output_dir` and `--ckpt_path` mean the same everywhere; the shared callbacks are top-level keys; a run's folder is
never overwritten; errors are one sentence.

A config or the command line may name any class by its import path, a class of the user's own package included, as any
Python program may import it. A checkpoint is a file from elsewhere: only names in `zoo.registry`, and classes that the
user names in the same command, are accepted from it.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo import callbacks
from zoo.baselines.of_data import baselines_of
from zoo.callbacks.budget import Budget, count_validations, parse_duration
from zoo.callbacks.progress import Progress
from zoo.cli.arguments import read_arguments
from zoo.cli.automatic import choose, print_choices
from zoo.cli.checkpoint_info import CheckpointInfo, read_checkpoint_info
from zoo.cli.class_names import ClassNames
from zoo.cli.closing_message import ClosingMessage
from zoo.cli.config_names import UnknownConfigError
from zoo.cli.equal_ranks import EqualRanks, comparable_settings
from zoo.cli.linked_arguments import find_linked, find_missing, given_options, linked_arguments
from zoo.cli.parsed_settings import check_settings, move_data_dir
from zoo.cli.parser import ZooParser, refuse
from zoo.cli.ranks import FailureReport, Ranks, connect
from zoo.cli.renamed_arguments import find_renamed
from zoo.cli.resume import (
    refuse_changed_settings,
    refuse_overridden_checkpoint,
    saved_run,
    with_chosen_settings,
)
from zoo.cli.run_folder import (
    CommonFolder,
    EmptyFolders,
    SaveConfig,
    check_pattern,
    check_writable,
    fill_in,
    find_checkpoint,
    refuse_other_run,
)
from zoo.cli.run_lock import locked_and_watched
from zoo.cli.trainer import ZooTrainer
from zoo.cli.trainer_options import check_trainer, suits
from zoo.console.exit_codes import is_out_of_memory, user_error_behind
from zoo.console.messages import silence_lightning
from zoo.console.slurm import was_requeued
from zoo.datamodules import ZooDataModule
from zoo.datamodules.row_data import RowViews
from zoo.datamodules.sources.corpus import data_label
from zoo.errors import UserError
from zoo.private_apis.jsonargparse_api import original_error, wrong_null, wrong_null_argument
from zoo.private_apis.lightning_cli import OpenLightningCLI, repeated_callback
from zoo.private_apis.lightning_logger import DeferredTensorBoardLogger
from zoo.private_apis.lightning_trainer import keep_signal_handlers
from zoo.training.module import ZooModule
from zoo.weights import FOLDER as project_weights_folder
from zoo.weights import is_project_weights

CALLBACKS: dict[str, type[Callback]] = {  # top-level key -> class
    "checkpoint": callbacks.Checkpoint,
    "early_stopping": callbacks.EarlyStopping,
    "mixed_precision": callbacks.MixedPrecision,
    "non_finite": callbacks.NonFinite,
    "throughput": callbacks.Throughput,
    "samples": callbacks.Samples,
    "predictions": callbacks.Predictions,
    "plots": callbacks.Plots,
}
NOT_OPTIONS = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule", "weights_only"}


class ZooCLI(OpenLightningCLI):
    """Build model, data and trainer from a command's words, and run the verb.

    Args:
        argv: the verb, then its options.
        callbacks: further callbacks for the Trainer.
        ranks: the processes of the run, where its launcher has started several.
        started: `time.monotonic()` at the start of the command, from which --budget counts; default: now.
    """

    def __init__(
        self,
        argv: list[str],
        callbacks: Sequence[Callback] = (),
        ranks: Ranks | None = None,
        started: float | None = None,
    ) -> None:
        self.verb = argv[0]
        self.callbacks = callbacks
        self.ranks = ranks or Ranks()
        self.started = time.monotonic() if started is None else started
        silence_lightning()
        # The checkpoint and the classes decide which options exist, so they are read first.
        try:
            self.arguments = read_arguments(argv[1:])
        except UnknownConfigError as error:
            refuse(str(error))
        ckpt_path = self._checkpoint_path()
        # A checkpoint alone resumes its run: fit then reads the config next to it first.
        if self.verb == "fit" and (run := saved_run(ckpt_path, self.arguments)):
            self.arguments = read_arguments([*run, *argv[1:]])
        elif self.verb == "fit" and self.arguments.automatic_from is not None:
            self.arguments = read_arguments(with_chosen_settings(ckpt_path, self.arguments))
        self.class_names = ClassNames(self.arguments.class_paths)
        self.checkpoint_info = self._read_checkpoint(ckpt_path)
        if self.verb == "fit" and ckpt_path and not any(self.arguments.class_paths.values()):
            refuse(f"there is no config.yaml next to {ckpt_path}: add --config NAME, the config of the run to resume")
        # All other verbs take model and data from the checkpoint, unless the command names classes.
        stored = self.checkpoint_info.defaults() if self.checkpoint_info and self.verb != "fit" else {}
        self.classes = self.class_names.load({group: spec["class_path"] for group, spec in stored.items()})
        # Refuse what the parser would accept silently: old names, arguments taken from the data, another model.
        self._refuse_renamed()
        if sentence := find_linked(self.arguments.keys, self.classes["model"], self.classes["data"]):
            refuse(sentence)
        if self.checkpoint_info:
            named = self.arguments.class_paths["model"]
            self.checkpoint_info.check_model(named[-1] if named else None, self.classes["model"])
        super().__init__(
            ZooModule,
            ZooDataModule,
            trainer_class=ZooTrainer,
            parser_class=ZooParser,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"use_distributed_sampler": False},  # the data's own sampler knows about ranks
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=[self.verb, *self.arguments.words],
        )

    def _checkpoint_path(self) -> str | None:
        given = self.arguments.values
        check_pattern(given.get("output_dir"))
        refuse_overridden_checkpoint(self.arguments)
        ckpt_path = given.get("ckpt_path")
        if ckpt_path is None and self.verb == "fit" and was_requeued():
            ckpt_path = "auto"
        if ckpt_path == "auto" and self.verb != "fit":
            raise UserError(f"--ckpt_path auto is for fit: give last, best or a file to {self.verb}")
        if self.verb == "fit" and is_project_weights(ckpt_path):
            raise UserError(
                f"{ckpt_path} is no run that can be resumed: start from its weights with --model.weights {ckpt_path}"
            )
        return find_checkpoint(ckpt_path, given.get("output_dir"))

    def _read_checkpoint(self, ckpt_path: str | None) -> CheckpointInfo | None:
        info = read_checkpoint_info(ckpt_path, self.class_names.own) if ckpt_path else None
        if info and info.is_external and self.verb == "fit":
            raise UserError(
                f"cannot resume from {ckpt_path}: it was not written by `zoo fit`, or is damaged. To start from its "
                f"weights, use --model.weights {ckpt_path}"
            )
        return info

    def _refuse_renamed(self) -> None:
        """Refuse old names of options on the command line, in configs, and in the checkpoint's settings."""
        if sentence := find_renamed(self.arguments.keys, {**CALLBACKS, **self.classes}):
            refuse(sentence)
        if self.checkpoint_info and self.verb != "fit":
            self.checkpoint_info.check_names(self.classes)

    # ---- the parser

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # Only the verb's parser: building each takes a second.
        return {self.verb: NOT_OPTIONS | ({"return_predictions"} if self.verb == "predict" else set())}

    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.add_argument("--data_dir", type=str | None, help="your data, instead of the config's: a file or folder")
        parser.add_argument(
            "--output_dir",
            type=str | None,
            help="folder of the run; {data} is replaced by the data's label, {time} by the start time. Default: "
            "the checkpoint's folder, else runs/<model>",
        )
        parser.add_argument(
            "--allow_other_data",
            type=bool,
            default=False,
            help="let fit --ckpt_path continue with data of another label than the checkpoint's",
        )
        parser.add_argument(
            "--automatic",
            type=bool,
            default=False,
            help="let fit choose the settings that neither a config nor an option gives from the data, by the rules of "
            "the model; they are printed and saved in the run's config.yaml",
        )
        parser.add_argument(
            "--budget",
            type=str | None,
            help="time limit of fit, such as 90s, 5min or 1.5h: the learning-rate schedule is planned to end with it",
        )
        # Every callback's settings are options under its key.
        for key, cls in CALLBACKS.items():
            parser.add_lightning_class_args(cls, key)
        # A model class declares which constructor arguments come from attributes of the data module.
        for name in linked_arguments(self.classes["model"]):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse with the checkpoint's settings as defaults, so that what is typed overrides them."""
        info = self.checkpoint_info
        if info and self.verb != "fit":
            self.verb_parser(self.verb).set_defaults(info.defaults())
        # Parse; Lightning loads the checkpoint that was found, and the model itself weights of another project.
        self.config = parser.parse_args(args)
        config = self.config[self.verb]
        self._refuse_null(config)
        check_settings(config, self.verb, info)
        config.ckpt_path = None if info is None or info.is_external else info.path
        move_data_dir(config)
        if self.verb == "fit" or not info:
            self._fill_data_settings(config)
        if info and self.verb == "fit":  # a resumed run
            if not config.allow_other_data:
                info.check_label(config.data.init_args.get("data"))
            refuse_changed_settings(info.path, config)
        elif info:
            self._check_texts(info, config)
        if config.automatic and self.verb == "fit":
            config.automatic = False  # for the saved config, which has the settings chosen
            print_choices(choose(config, self.arguments.keys, self.classes["model"], self.classes["data"]))
        config.output_dir = self._output_dir(config)

    def _check_texts(self, info: CheckpointInfo, config: Any) -> None:
        """Refuse texts that are written in another way than those of the training; warn of other columns."""
        if warning := info.check_texts(self.classes["data"], config.data.get("init_args") or {}):
            rank_zero_only(print)(f"zoo: {warning}", file=sys.stderr)

    def _fill_data_settings(self, config: Any) -> None:
        """Set options of the data that follow from the model's and were not given, as the tokenizer of an encoder."""
        model = self.classes["model"]
        if model is None or not issubclass(model, ZooModule):
            return
        given = given_options(self.arguments.keys, "data")
        settings = config.model.get("init_args") or {}  # a class may have no arguments
        for name, value in model.data_settings(settings).items():
            if name in config.data.init_args and name not in given:
                config.data.init_args[name] = value

    def _refuse_null(self, config: Any) -> None:
        """Refuse null for an option whose type excludes it."""
        parser: Any = self.verb_parser(self.verb)
        message = wrong_null(parser, config)
        for group, cls in self.classes.items():
            if message is None and cls is not None:
                skip = linked_arguments(cls)
                message = wrong_null_argument(cls, config[group].get("init_args", {}), skip)
                message = message and message.replace('Parser key "', f'Parser key "{group}.', 1)
        if message:
            parser.error(message)

    def _output_dir(self, config: Any) -> str:
        """The run's folder: as typed or configured, else the checkpoint's, else one named after the model."""
        pattern = config.output_dir
        is_run = config.ckpt_path and Path(config.ckpt_path).parent != project_weights_folder
        if is_run and (pattern is None or "{time}" in pattern):
            return str(Path(config.ckpt_path).parent)
        if pattern is None:
            return f"runs/{config.model.class_path.rsplit('.', 1)[-1].lower()}"
        # Fill the data's label and the time into the pattern.
        label = data_label(config.data.init_args.get("data") or config.data.class_path.rsplit(".", 1)[-1].lower())
        return fill_in(pattern, label)

    # ---- building

    def before_instantiate_classes(self) -> None:
        config = self.config[self.verb]
        trainer = config.trainer
        check_trainer(trainer, self.verb)
        if trainer.barebones:
            self.save_config_callback = None
        if trainer.precision is not None:
            config.mixed_precision.dtype = "off"  # an explicit precision wins

    def instantiate_classes(self) -> None:
        stored = self.checkpoint_info if self.verb != "fit" else None  # fit builds what config and options say
        try:
            with stored.memory_limit() if stored else nullcontext():
                super().instantiate_classes()
            return
        except Exception as error:
            original = original_error(error)  # jsonargparse wraps what a constructor raises
            cause = user_error_behind(error) or original
        # Not in the handler, so that a traceback ends with the original exception, without jsonargparse's around it.
        if is_out_of_memory(cause):
            raise UserError("the model does not fit into memory: reduce its sizes") from cause
        data, model = vars(self).get("datamodule"), self.classes["model"]
        if data and model and "model" not in vars(self) and (sentence := find_missing(model, data, cause)):
            raise UserError(sentence) from cause
        raise cause

    def after_instantiate_classes(self) -> None:
        if self.checkpoint_info and not self.checkpoint_info.is_external:
            self.checkpoint_info.check_tokenizer(self.datamodule)
        named = {"columns", "text_column"} & {*given_options(self.arguments.keys, "data")}
        if self.verb != "fit" and self.checkpoint_info and isinstance(self.datamodule, RowViews) and not named:
            self.datamodule.reader.has_stored_columns = True
        if self.verb != "generate":  # which reads no data, only its tokenizer
            self.model.check_data(self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        config = self.config[self.verb]
        kwargs["default_root_dir"] = config.output_dir
        if config.trainer.logger in (None, True) and not config.trainer.barebones:
            # Empty name and version: one run, one folder, and the curves of a resumed run continue where they stopped.
            kwargs["logger"] = self.verb == "fit" and DeferredTensorBoardLogger(
                config.output_dir, name="", version="", default_hp_metric=False
            )
        try:
            return super().instantiate_trainer(**kwargs)
        except ModuleNotFoundError as error:  # the package of an accelerator, logger or strategy
            raise UserError(str(error)) from error
        except RuntimeError as error:
            keys = {cls.__name__: key for key, cls in CALLBACKS.items()}
            if (name := repeated_callback(error)) in keys:
                raise UserError(
                    f"trainer.callbacks names {name}, which every run has: drop it there, and set its options with the "
                    f"top-level key {keys[name]}"
                ) from error
            raise

    def more_callbacks(self, trainer_config: dict[str, Any]) -> list[Callback]:
        more: list[Callback] = []
        if trainer_config["logger"]:
            more.append(callbacks.Charts(baselines_of))
        shows_progress = trainer_config["enable_progress_bar"] is not False and not trainer_config["barebones"]
        if shows_progress and self.verb != "generate":
            more.append(Progress())
        if self.verb == "fit":
            more.append(ClosingMessage(self.checkpoint_info.step if self.checkpoint_info else None))
        if self.verb == "fit" and (budget := self.config.fit.budget) is not None:
            self.config.fit.budget = None  # for the saved config, which has the steps that the time allowed
            validations = count_validations(self.config.fit.trainer)
            more.append(Budget(parse_duration(budget), self.started, validations, self._record_plan))
        config = self.config[self.verb]
        files = [config.predictions.path, config.predictions.text_path] if self.verb == "predict" else []
        folders = [Path(file).parent for file in files if file]
        equal = EqualRanks(comparable_settings(config, self.checkpoint_info.step if self.checkpoint_info else None))
        own = [equal, CommonFolder(), FailureReport(self.ranks), EmptyFolders([Path(config.output_dir), *folders])]
        return [*more, *self.callbacks, *own]

    def keep_callback(self, callback: Callback, trainer_config: dict[str, Any]) -> bool:
        return suits(callback, trainer_config)

    def _record_plan(self, settings: dict[str, Any]) -> None:
        """Write the numbers of steps that --budget allows into the run's config.yaml."""
        config, trainer = self.config.fit, cast(Any, self.trainer)
        if "total_steps" in settings:  # not those of a pretraining only
            config.trainer.max_steps = settings.pop("total_steps")
            config.trainer.max_epochs = None
            config.trainer.val_check_interval = settings.pop("val_check_interval")
        for name, value in settings.items():
            config.model.init_args[name] = value
        for callback in trainer.callbacks:
            if isinstance(callback, SaveConfig):
                callback.save_config(trainer, self.model, "fit")

    def more_arguments(self, verb: str) -> dict[str, Any]:
        # Predictions are in the file; those of a long input would fill the memory.
        return {"return_predictions": False} if verb == "predict" else {}

    # ---- running

    def while_running(self, verb: str) -> AbstractContextManager[None]:
        keep_signal_handlers(self.trainer)
        if verb == "generate":  # in one process
            return nullcontext()
        connect(self.ranks, self.trainer, silence_lightning)
        fit = self.config[verb] if verb == "fit" else None
        folder = Path(fit.checkpoint.dirpath or fit.output_dir) if fit and self.trainer.is_global_zero else None
        return locked_and_watched(folder, self.ranks, self.trainer)

    def before_fit(self) -> None:
        config = self.config.fit
        folder = Path(config.checkpoint.dirpath or config.output_dir)
        if self.trainer.is_global_zero:  # the others may have another {time}, and write nothing
            refuse_other_run(folder, config.ckpt_path)
            check_writable(folder)
