"""Generated text in TensorBoard, to watch a language model learn to speak."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger


class Samples(Callback):
    """After a validation, write what the model says to TensorBoard's text tab.

    It calls `pl_module.sample_text(prompt, max_new_tokens, temperature) -> str` where the model has such a method.

    Args:
        prompt: what the model continues; empty for a text from its start.
        max_new_tokens: length of a sample, in tokens; 0 turns samples off.
        temperature: 0 for the likeliest text.
        every_n_validations: how often.
    """

    def __init__(
        self,
        prompt: str = "",
        max_new_tokens: int = 100,
        temperature: float = 0.8,
        every_n_validations: int = 1,
    ) -> None:
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.every_n_validations = every_n_validations
        self.validations = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or not self.max_new_tokens:
            return
        sample_text = getattr(pl_module, "sample_text", None)
        if sample_text is None or not isinstance(trainer.logger, TensorBoardLogger):
            return
        self.validations += 1
        if self.validations % self.every_n_validations == 0:
            text = sample_text(self.prompt, self.max_new_tokens, self.temperature)
            # Four spaces make TensorBoard's Markdown show the text as it is, line breaks included.
            shown = "\n".join("    " + line for line in (text.splitlines() or [""]))
            trainer.logger.experiment.add_text("sample", shown, trainer.global_step)
