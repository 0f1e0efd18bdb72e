"""The command line: LightningCLI in subclass mode, for every model of the zoo.

On top of LightningCLI: configs by name; a checkpoint alone is enough for every verb, its settings being the defaults
that config files and the command line override (`fit` resumes with the config.yaml next to it); `--data_dir`,
`--output_dir` and `--ckpt_path` mean the same everywhere; the shared callbacks are top-level keys; a run's folder is
never overwritten; errors are one sentence.

A config or the command line may name any class by its import path, a class of the user's own package included, as any
Python program may import it. A checkpoint is a file from elsewhere: only names in `zoo.registry`, and classes that the
user names in the same command, are accepted from it.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.loggers import CSVLogger

from zoo.callbacks import Checkpoint, Predictions
from zoo.callbacks.budget import seconds_left
from zoo.callbacks.progress import Progress
from zoo.cli.arguments import read_arguments
from zoo.cli.automatic import choose, print_choices
from zoo.cli.checkpoint_info import CheckpointInfo, read_checkpoint_info
from zoo.cli.class_names import ClassNames
from zoo.cli.config_names import UnknownWordError
from zoo.cli.linked_arguments import find_linked, find_missing, given_options, linked_arguments
from zoo.cli.options import CALLBACKS, NOT_OPTIONS, add_shared_options
from zoo.cli.parsed_settings import (
    check_fit,
    check_settings,
    checkpoint_folder,
    compare_with_checkpoint,
    fill_data_settings,
    find_null,
    move_data_dir,
    output_dir,
    record_used,
    refuse_contradictions,
    set_log_folder,
)
from zoo.cli.parser import ZooParser, refuse
from zoo.cli.ranks import Ranks, connect
from zoo.cli.renamed_arguments import find_renamed
from zoo.cli.resume import copy_remote_config, refuse_overridden_checkpoint, saved_run, with_chosen_settings
from zoo.cli.run_callbacks import callbacks_of_run
from zoo.cli.run_folder import SaveConfig, check_pattern, find_checkpoint, refuse_other_run
from zoo.cli.run_lock import locked_and_watched
from zoo.cli.time_limit import print_shares
from zoo.cli.trainer import ZooTrainer
from zoo.cli.trainer_options import check_callbacks, check_trainer, suits
from zoo.cli.without_effect import refuse_without_effect
from zoo.console.exit_codes import is_out_of_memory, user_error_behind
from zoo.console.messages import silence_lightning
from zoo.console.slurm import was_requeued
from zoo.datamodules import ZooDataModule
from zoo.datamodules.row_module import RowModule
from zoo.errors import UserError
from zoo.files.remote_files import is_url
from zoo.private_apis.csv_log import continue_csv
from zoo.private_apis.jsonargparse_api import original_error
from zoo.private_apis.lightning_cli import OpenLightningCLI, repeated_callback
from zoo.private_apis.lightning_logger import DeferredTensorBoardLogger
from zoo.private_apis.lightning_trainer import explain_long_interval, keep_signal_handlers
from zoo.training.module import ZooModule
from zoo.weights import is_project_weights

NOT_VERBOSE = {"verbose": False}


class ZooCLI(OpenLightningCLI):
    """Build model, data and trainer from a command's words, and run the verb.

    Args:
        argv: the verb, then its options.
        callbacks: further callbacks for the Trainer.
        ranks: the processes of the run, where its launcher has started several.
        started: `time.monotonic()` at the start of the command, from which --budget counts; default: now.
    """

    names_next_command = True  # at the end of fit; False for one run of many

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
        except UnknownWordError as error:
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
        stored = self._stored_settings()
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
        if ckpt_path is None and self.verb == "fit" and self.runs_verb and was_requeued():
            ckpt_path = "auto"
        self.may_restart = ckpt_path == "auto"
        if ckpt_path is None and self.verb != "fit":
            ckpt_path = self.arguments.weights_alone()
        if ckpt_path == "auto" and self.verb != "fit":
            raise UserError(f"--ckpt_path auto is for fit: give last, best or a file to {self.verb}")
        if self.verb == "fit" and is_project_weights(ckpt_path):
            raise UserError(
                f"{ckpt_path} is not a resumable run: start from its weights with --config NAME --model.weights "
                f"{ckpt_path}"
            )
        if self.verb == "fit" and ckpt_path is not None and is_url(ckpt_path):
            copy_remote_config(ckpt_path)
        self.is_project_weights = is_project_weights(ckpt_path)
        return find_checkpoint(ckpt_path, given.get("output_dir"), self.verb)

    def _read_checkpoint(self, ckpt_path: str | None) -> CheckpointInfo | None:
        info = read_checkpoint_info(ckpt_path, self.class_names.own) if ckpt_path else None
        if info and info.is_external and self.verb == "fit":
            raise UserError(
                f"cannot resume from {ckpt_path}: it was not written by `zoo fit`, or is damaged. To start from its "
                f"weights, use --model.weights {ckpt_path}"
            )
        return info

    def _stored_settings(self) -> dict[str, dict[str, Any]]:
        """Model and data of the checkpoint: the defaults of every verb but `fit`, which builds what its config says."""
        return self.checkpoint_info.defaults() if self.checkpoint_info and self.verb != "fit" else {}

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
        parser.usage = f"zoo {self.verb} [--config NAME_OR_FILE ...] [--ckpt_path FILE] [options]"
        parser.described, parser.verb = self.classes, self.verb
        of_stored = {
            f"{group}.{name}": value
            for group, spec in self._stored_settings().items()
            for name, value in spec["init_args"].items()
        }
        parser.given = of_stored | self.arguments.settings
        if parser.given:
            parser.epilog = "The defaults are those of this command: of its config, its checkpoint and its options."
        if not any(self.classes.values()):
            parser.epilog = (
                f"`zoo {self.verb} --config NAME --help` also shows the options of the config's model and data."
            )
        add_shared_options(parser)
        # A model class declares which constructor arguments come from attributes of the data module.
        for name in linked_arguments(self.classes["model"]):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse with the checkpoint's settings as defaults, so that what is typed overrides them."""
        info = self.checkpoint_info
        if stored := self._stored_settings():
            self.verb_parser(self.verb).set_defaults(stored)
        parser.verb = self.verb
        self.config = parser.parse_args(args)
        config = self.config[self.verb]
        if message := find_null(self.verb_parser(self.verb), config, self.classes):
            parser.error(message)
        check_settings(config, self.verb, info)
        # Lightning loads the checkpoint that was found, and the model itself weights of another project.
        config.ckpt_path = None if info is None or info.is_external else info.path
        move_data_dir(config)
        decided = self.arguments.keys  # also settings of the data that follow from the model's
        if self.verb == "fit" or not info:
            decided = [*decided, *fill_data_settings(config, self.classes["model"], decided)]
        if info:
            compare_with_checkpoint(info, config, self.verb, self.classes["data"])
        config.output_dir = output_dir(config, self.is_project_weights)
        if self.verb == "generate":
            refuse_without_effect(self.arguments.keys)
        check_trainer(config.trainer, self.verb)
        set_log_folder(config.trainer, config.output_dir)
        if self.verb == "fit" and self.runs_verb:
            check_fit(config, self.classes["model"], self.ranks, self.may_restart)
        left = seconds_left(config.budget, self.started)
        # Everything that can be refused without reading the data has been refused: choose settings by the data.
        if config.automatic and self.verb == "fit":
            config.automatic = False  # for the saved config, which has the settings chosen
            if left is not None:
                print_shares(config.budget, left)
            chosen = choose(config, decided, self.classes["model"], self.classes["data"], left)
            seconds_left(config.budget, self.started)  # refuses a run without any
            print_choices(chosen)

    # ---- building

    def before_instantiate_classes(self) -> None:
        config = self.config[self.verb]
        trainer = config.trainer
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
        # Libraries raise it without a module's name for a package that a logger or callback needs.
        if isinstance(cause, ModuleNotFoundError) and cause.name is None:
            raise UserError(str(cause)) from cause
        data, model = vars(self).get("datamodule"), self.classes["model"]
        if data and model and "model" not in vars(self) and (sentence := find_missing(model, data, cause)):
            raise UserError(sentence) from cause
        raise cause

    def after_instantiate_classes(self) -> None:
        if self.checkpoint_info and not self.checkpoint_info.is_external:
            self.checkpoint_info.check_tokenizer(self.datamodule)
        settings = self.config[self.verb].model.get("init_args") or {}
        if weights := settings.get("weights"):
            refuse_contradictions(self.arguments.keys, settings, self.model, weights)
            record_used(settings, self.model)
        named = {"columns", "text_column"} & {*given_options(self.arguments.keys, "data")}
        if self.verb != "fit" and self.checkpoint_info and isinstance(self.datamodule, RowModule) and not named:
            self.datamodule.reader.has_stored_columns = True
        if self.verb != "generate":  # which reads no data, only its tokenizer
            self.model.check_data(self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        config = self.config[self.verb]
        kwargs["default_root_dir"] = config.output_dir
        if config.trainer.enable_model_summary is None:
            kwargs["enable_model_summary"] = False  # one line takes its place
        if config.trainer.logger in (None, True) and not config.trainer.barebones:
            # Empty name and version: one run, one folder, and the curves of a resumed run continue where they stopped.
            # Verbs other than fit log only where the user wants it.
            is_on = self.verb == "fit" or config.trainer.logger is True
            kwargs["logger"] = is_on and DeferredTensorBoardLogger(
                config.output_dir, name="", version="", default_hp_metric=False
            )
        try:
            trainer = super().instantiate_trainer(**kwargs)
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
        # The user's checkpoint callbacks follow that of the run, which is then `trainer.checkpoint_callback`.
        _callbacks(trainer).sort(key=lambda c: isinstance(c, LightningCheckpoint) and not isinstance(c, Checkpoint))
        if self.verb == "fit" and config.ckpt_path:
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    continue_csv(logger, config.output_dir)
        return trainer

    def more_callbacks(self, trainer_config: dict[str, Any]) -> list[Callback]:
        return callbacks_of_run(self, trainer_config)

    def build_progress(self) -> Progress:
        """The progress line of the run."""
        return Progress()

    def keep_callback(self, callback: Callback, trainer_config: dict[str, Any]) -> bool:
        return suits(callback, trainer_config)

    def more_arguments(self, verb: str) -> dict[str, Any]:
        # Predictions are in the file; those of a long input would fill the memory. ScoreTable prints scores.
        return {"predict": {"return_predictions": False}, "validate": NOT_VERBOSE, "test": NOT_VERBOSE}.get(verb, {})

    # ---- running

    def while_running(self, verb: str) -> AbstractContextManager[None]:
        keep_signal_handlers(self.trainer)
        explain_long_interval(self.trainer)
        if verb == "generate":  # in one process
            return nullcontext()
        connect(self.ranks, self.trainer, silence_lightning)
        fit = self.config[verb] if verb == "fit" else None
        folder = checkpoint_folder(fit) if fit and self.trainer.is_global_zero else None
        return locked_and_watched(folder, self.ranks, self.trainer)

    def before_predict(self) -> None:
        # Refuse to replace files before the data is read.
        for callback in _callbacks(self.trainer):
            if isinstance(callback, Predictions) and self.trainer.is_global_zero:
                callback.check(self.trainer, self.model, self.datamodule, self.config.predict.ckpt_path)

    def before_fit(self) -> None:
        check_callbacks(_callbacks(self.trainer), self.model)
        config = self.config.fit
        if self.trainer.is_global_zero:  # the others may have another {time}, and write nothing
            refuse_other_run(
                checkpoint_folder(config), config.ckpt_path, None if self.may_restart else Path(config.output_dir)
            )


def _callbacks(trainer: Any) -> list[Callback]:
    return trainer.callbacks
