"""Table of the weights that come with the zoo, and of public weights that `zoo pull` downloads by a short name."""

from typing import NamedTuple


class ProjectWeights(NamedTuple):
    """A checkpoint of the project.

    Args:
        file: its name in this folder.
        sha256: of the file, 64 hex digits.
        command: that trained it.
        metric: name and value of what `zoo validate --ckpt_path zoo:NAME` logs.
        model: name of its class in zoo.registry.
        data: what it was trained and validated on.
        baseline: what a simple method reaches on the same validation data, in the same unit.
        licence: of the weights, which follows from that of the data.
    """

    file: str
    sha256: str
    command: str
    metric: tuple[str, float]
    model: str
    data: str
    baseline: str
    licence: str = "Apache-2.0"


class PublicWeights(NamedTuple):
    """Weights of another project on the Hugging Face hub.

    Args:
        repository: owner and name on the hub.
        file: the weights in it.
        megabytes: size of the file.
        data: what it was trained on.
        licence: as stated in the repository.
    """

    repository: str
    file: str
    megabytes: float
    data: str
    licence: str


WEIGHTS: dict[str, ProjectWeights] = {
    "regress-lm": ProjectWeights(
        "regress-lm.ckpt",
        "7a9ea1082bf1f4c6f83f0bf2367af1aa5e568148b63da77fffbf436773f6268e",
        "zoo fit --config regress_lm_pretrain --budget 30min",
        ("val_loss", 0.9131),
        "RegressLM",
        "random tables",
        "BASELINE",
    ),
}

PUBLIC: dict[str, PublicWeights] = {
    name: PublicWeights("karpathy/tinyllamas", f"{name}.bin", megabytes, "TinyStories", "MIT")
    for name, megabytes in (("stories15M", 61), ("stories42M", 167))
}
LLAMA2_TOKENIZER = (  # repository, file and SHA-256 of the tokenizer of the public weights
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "tokenizer.model",
    "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347",
)
