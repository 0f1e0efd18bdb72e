"""Table of the weights that come with the zoo, and of public weights that `zoo pull` downloads by a short name."""

from typing import NamedTuple


class ProjectWeights(NamedTuple):
    """A checkpoint of the project.

    Args:
        file: its name in this folder.
        sha256: SHA-256 digest of the file, 64 hex digits.
        command: that trained it.
        metric: name and value of what `zoo validate --ckpt_path zoo:NAME` logs; on WikiText-2 with the option
            `--trainer.limit_val_batches 60`, which is the first 61,440 tokens of the validation split.
        model: name of its class in zoo.registry.
        data: what it was trained and validated on.
        baseline: what a simple method reaches on the same validation data, in the same unit.
        licence: licence of the weights, which follows from that of the data.
        formats: those of `zoo export` that hold the model with its tokenizer.
    """

    file: str
    sha256: str
    command: str
    metric: tuple[str, float]
    model: str
    data: str
    baseline: str
    licence: str = "Apache-2.0"
    formats: str = "onnx, safetensors"


class PublicWeights(NamedTuple):
    """Weights of another project on the Hugging Face hub.

    Args:
        repository: owner and name on the hub.
        file: the weights in it.
        megabytes: size of the file.
        data: what it was trained on.
        licence: as stated in the repository.
        formats: those of `zoo export` that hold the model with its tokenizer.
    """

    repository: str
    file: str
    megabytes: float
    data: str
    licence: str
    formats: str = "hf, llama2c, gguf, onnx, safetensors"


WEIGHTS: dict[str, ProjectWeights] = {
    "regress-lm": ProjectWeights(
        "regress-lm.ckpt",
        "7a9ea1082bf1f4c6f83f0bf2367af1aa5e568148b63da77fffbf436773f6268e",
        "zoo fit --config regress_lm_pretrain --budget 30min",
        ("val_loss", 0.9131),
        "RegressLM",
        "rows of 64 random tables",
        "marginal distribution 1.637",
    ),
    "mini-rlm": ProjectWeights(
        "mini-rlm.ckpt",
        "7202710c5890e017e0db87d6d250afd84ffdbcb2d6155c1ee4a6e50a88138a5f",
        "zoo fit --config mini_rlm",
        ("val_mae", 4.542),
        "MiniRLM",
        "synthetic configurations",
        "median 34.93",
    ),
    "icr-linear": ProjectWeights(
        "icr-linear.ckpt",
        "abda7e90cbe482970837d315ac876fbf3e552ef1261a0cfff4385a3644ed02e3",
        "zoo fit --config tiny/icr",
        ("val_true_to_ridge", 0.1052),
        "ICRTransformer",
        "linear regression tasks, D = 4, K = 8",
        "predicting 0 2.31",
    ),
    "llama-opinions": ProjectWeights(
        "llama-opinions.ckpt",
        "295c31aae0db8088ee5f397d244abc83cd77581273584634fba5f77d0bb13bcd",
        "zoo fit --config tiny/llama_classifier",
        ("val_accuracy", 1.0),
        "LlamaClassifier",
        "synthetic opinions",
        "naive Bayes on words and pairs of words 0.744",
    ),
    "llama-wikitext2": ProjectWeights(
        "llama-wikitext2.ckpt",
        "2946b1f67dd3768b49da6087df5e7d19c43405882c80c7bef2d3833c48c6899b",
        "zoo fit --config wikitext2/llama_small --data_dir wikitext-2",
        ("val_loss", 3.689),
        "LlamaLM",
        "WikiText-2",
        "Kneser-Ney bigram 4.037, trigram 3.389",
        "CC BY-SA 4.0",
        "hf, gguf, onnx, safetensors",
    ),
    "revdeq-wikitext2": ProjectWeights(
        "revdeq-wikitext2.ckpt",
        "2fa1a95ea1ed52591c4182f0ee129253fa44a69b6f5e1bb1b71cda46c057ff76",
        "zoo fit --config wikitext2/revdeq_small --data_dir wikitext-2",
        ("val_loss", 3.950),
        "RevDEQLM",
        "WikiText-2",
        "Kneser-Ney bigram 4.037, trigram 3.389",
        "CC BY-SA 4.0",
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
