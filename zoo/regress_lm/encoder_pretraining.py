"""Pretraining of RegressLM's encoder on texts without targets, in Python or before the first step of a fit."""

import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from zoo.console.progress_display import counting
from zoo.errors import UserError
from zoo.optim import OptimizerConfig
from zoo.regress_lm.denoising import Denoising, DenoisingConfig, check_state
from zoo.regress_lm.encoder_user import EncoderUser
from zoo.training.random_streams import global_seed
from zoo.training.settings import part
from zoo.training.unlabelled_texts import UnlabelledTexts

REPORTS = 10  # losses that are printed


class EncoderPretrainer(EncoderUser):
    """EncoderUser that can pretrain its own encoder by span denoising.

    Its setting `pretrain_steps` is the number of steps that a fit with `unlabelled_texts` does before its first step.
    They are part of the run: a signal saves and stops, and a resumed run continues them bitwise.

    Attributes:
        unlabelled_texts: the texts to pretrain on in a fit; None for no pretraining.
    """

    unlabelled_texts: UnlabelledTexts | None = None
    _denoising: Denoising | None = None  # while it runs
    _stored_pretraining: Any = None  # not checked, of the checkpoint from which a run is resumed

    def check_data(self, data: Any) -> None:
        """Texts without targets need an encoder of the model's own, all of whose weights are trained."""
        super().check_data(data)
        if self.unlabelled_texts is not None:
            self._check_pretrainable("--data.unlabelled")

    def _check_pretrainable(self, what: str) -> None:
        if self.pretrained_encoder is not None:
            raise UserError(f"{what} pretrains the model's own encoder, but this model has a pretrained one: drop it")
        if self.hparams["lora_rank"]:
            raise UserError(f"{what} pretrains all weights of the encoder: set lora_rank to 0")

    # ---- in Python

    def pretrain_on_tokens(
        self, texts: Sequence[Sequence[int]], config: DenoisingConfig, progress: bool = True
    ) -> list[float]:
        """Pretrain the encoder on texts, given by their token ids.

        Args:
            texts: token ids of each text.
            config: settings.
            progress: show a progress line.

        Returns:
            The loss of each step: nats per token of the spans and sentinels.
        """
        self._check_pretrainable("pretraining")
        denoising = self._new_denoising(texts, config)
        losses = []
        with counting(config.steps, "step", "pretraining", progress) as add:
            for _ in range(config.steps):
                losses.append(denoising.train_step())
                add(1)
        self.zero_grad()
        return losses

    def _new_denoising(self, texts: Sequence[Sequence[int]], config: DenoisingConfig) -> Denoising:
        return Denoising(self.model.encoder, texts, part(self.optimizer_config, OptimizerConfig), config)

    # ---- in a fit

    def on_train_start(self) -> None:
        """Pretrain the encoder before the first step of a run, or continue its pretraining."""
        super().on_train_start()
        stored, self._stored_pretraining = self._stored_pretraining, None
        if self.unlabelled_texts is None or self.global_step:
            return
        if stored is not None and "head" not in check_state(stored):  # it is complete
            return
        if not isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise UserError(
                "--data.unlabelled works on one device and with --trainer.strategy ddp: pretrain there, and start from "
                "the weights with --model.weights"
            )
        steps = 1 if self.trainer.fast_dev_run else self.hparams["pretrain_steps"]  # type: ignore[attr-defined]
        batch_size = self.unlabelled_texts.batch_size * self.trainer.world_size
        config = DenoisingConfig(steps, batch_size, seed=global_seed())
        denoising = self._denoising = self._new_denoising(self.unlabelled_texts.read(), config)
        if stored is not None:
            denoising.load_state_dict(stored)
        self._report(
            f"pretraining the encoder on {denoising.n_texts:,} texts of {self.unlabelled_texts.name} and the training "
            f"rows: span denoising, steps {denoising.step + 1:,} to {steps:,}"
        )
        self._run(denoising)
        # The weights stay; all else of the pretraining is dropped.
        self._denoising = None
        self.zero_grad()
        self._save(denoising.step, is_last=True)
        self._report("pretraining is complete; training on the rows with targets")

    def plan_pretraining(self, steps: int) -> dict[str, int]:
        """Shorten the pretraining that is running.

        Args:
            steps: its number of steps, if it is smaller than the one that was set.

        Returns:
            The settings that repeat it: `pretrain_steps`.
        """
        assert self._denoising is not None
        self._denoising.set_steps(min(steps, self._denoising.config.steps))
        settings = {"pretrain_steps": self._denoising.config.steps}
        self.hparams.update(settings)
        return settings

    def _run(self, denoising: Denoising) -> None:
        trainer = self.trainer

        def add_up(tensor: Tensor) -> Tensor:
            return trainer.strategy.reduce(tensor, reduce_op="sum")

        losses = []
        while denoising.step < (total := denoising.config.steps):
            losses.append(denoising.train_step(trainer.global_rank, trainer.world_size, add_up))
            if denoising.step % max(1, total // REPORTS) == 0 or denoising.step == total:
                loss = sum(losses) / len(losses)
                self._report(f"  step {denoising.step:,}: loss {loss:.3f} nats per token")
                for logger in trainer.loggers:
                    logger.log_metrics({"pretrain_loss": loss}, denoising.step)
                losses = []
            if denoising.step < total:
                self._save(denoising.step, is_last=False)

    def _save(self, step: int, is_last: bool) -> None:
        """Let the callbacks of the run save, and stop after a signal."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "on_pretraining_step_end"):
                callback.on_pretraining_step_end(self.trainer, self, step, is_last)

    @rank_zero_only
    def _report(self, message: str) -> None:
        print(f"zoo: {message}", file=sys.stderr, flush=True)

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._denoising is not None:
            checkpoint["pretraining"] = self._denoising.state_dict()
        elif self.unlabelled_texts is not None:
            checkpoint["pretraining"] = {"step": self.hparams["pretrain_steps"]}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._stored_pretraining = checkpoint.get("pretraining")
