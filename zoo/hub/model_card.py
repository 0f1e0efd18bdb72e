"""The model card of an upload, README.md: what the checkpoint stores of settings, data, steps and the best score."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from zoo.weights.strip import without_paths

LANGUAGE_MODELS = ("LlamaLM", "RevDEQLM")
HIDDEN = ("_class_path", "_instantiator", "weights", "compile", "cache_dir")
LONGEST = 200  # characters of a setting


def model_card(
    repository: str,
    licence: str,
    checkpoint: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    other_format: str | None = None,
) -> str:
    """Markdown with the hub's metadata in front.

    Args:
        repository: "owner/name".
        licence: the hub's identifier of the licence.
        checkpoint: the content of a checkpoint of the zoo; empty where none is known, and then the card has only the
            metadata and the commands.
        config: the run's config.yaml, with which `zoo fit` repeats the run.
        other_format: the format of files that the zoo writes but does not read, such as "onnx": the card has no
            commands of the zoo then.
    """
    model = str(checkpoint.get("zoo", {}).get("model", "")).rpartition(".")[2]
    metadata: dict[str, Any] = {"license": licence, "library_name": "zoo", "tags": [model or other_format or "llama"]}
    if model in LANGUAGE_MODELS:
        metadata["pipeline_tag"] = "text-generation"
    lines = ["---", yaml.safe_dump(metadata, sort_keys=False).strip(), "---", "", f"# {repository}", ""]
    if model:
        size = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
        lines += [f"A {model} of the zoo, a set of models in PyTorch Lightning. Its tensors hold {size:,} numbers.", ""]
        data = checkpoint.get("datamodule_hyper_parameters", {})
        about = {"optimizer steps": checkpoint.get("global_step"), "data": data.get("data")} | _scores(checkpoint)
        lines += _table("Training", about)
        lines += _table("Settings of the model", checkpoint.get("hyper_parameters", {}))
        lines += _table("Settings of the data", data)
    if config:
        text = yaml.safe_dump(without_paths(config), sort_keys=False, allow_unicode=True).strip()
        lines += [
            "## Command",
            "",
            "`zoo fit --config config.yaml`, with this config.yaml:",
            "",
            "```yaml",
            text,
            "```",
            "",
        ]
    if other_format:
        lines += ["## Use", "", f"The files are for programs that read {other_format}; the zoo does not read them.", ""]
    else:
        commands = [f"zoo pull {repository}", f"zoo {_verb(model)} --ckpt_path zoo:{repository}"]
        lines += ["## Use", "", "```sh", *commands, "```", ""]
    lines += ["## Licence", "", licence, ""]
    return "\n".join(lines)


def _verb(model: str) -> str:
    """The verb that applies a model; without a name it is a Llama of another project."""
    if model in (*LANGUAGE_MODELS, ""):
        return "generate"
    return "validate" if model == "ICRTransformer" else "predict"


def _scores(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The best value of the metric that the run monitored, from the state of its checkpoint callback."""
    states = [state for state in checkpoint.get("callbacks", {}).values() if isinstance(state.get("monitor"), str)]
    return {f"best {state['monitor']}": state["best_score"] for state in states if state.get("best_score") is not None}


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    """A section with a table of names and plain values; none without values."""
    shown = {name: without_paths(value) for name, value in values.items() if name not in HIDDEN and value is not None}
    if not shown:
        return []
    rows = [f"| {name} | {_cell(value)} |" for name, value in shown.items()]
    return [f"## {title}", "", "| | |", "| --- | --- |", *rows, ""]


def _cell(value: Any) -> str:
    """A value in one cell of a Markdown table."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = re.sub(r"\s+", " ", text).replace("|", "\\|")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
