"""Options that every verb's parser accepts and `generate` does not use: refused where they are on the command line.

A config may hold them, because it also serves other verbs.
"""

from collections.abc import Iterable

from zoo.cli.arguments import option_parts
from zoo.cli.options import CALLBACKS
from zoo.errors import UserError

INSTEAD = {  # option -> that with the effect on `generate`
    "seed_everything": "--seed", "model.compile": "--compile", "mixed_precision.dtype": "--precision",
    "samples.prompt": "--prompt", "samples.max_new_tokens": "--max_new_tokens", "samples.temperature": "--temperature",
}  # fmt: skip
FOR_FIT = ("allow_other_data", "automatic")
FOR_LOOPS = (  # options of the Trainer, which runs no loop over data in `generate`
    "fast_dev_run", "max_epochs", "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches",
    "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches", "val_check_interval",
    "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps", "accumulate_grad_batches",
    "gradient_clip_val", "gradient_clip_algorithm", "inference_mode", "use_distributed_sampler", "sync_batchnorm",
    "reload_dataloaders_every_n_epochs",
)  # fmt: skip


def refuse_without_effect(keys: Iterable[tuple[str, str]]) -> None:
    """Raises UserError for the first option on the command line of `generate` that has no effect there.

    Args:
        keys: (dotted key, its source: a file, or "" for the command line).
    """
    for key, source in keys:
        group, *rest = parts = option_parts(key)
        is_unused = group in (*CALLBACKS, *FOR_FIT) or (group == "trainer" and {*rest[:1]} & {*FOR_LOOPS})
        instead = INSTEAD.get(".".join(parts))
        if not source and (is_unused or instead):
            raise UserError(f"--{key} has no effect on generate: {f'set {instead}' if instead else 'drop it'}")
