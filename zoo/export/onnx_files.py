"""ONNX files of a model: exported by torch, compared with the model in onnxruntime, with settings as metadata.

Metadata of each file: `zoo.model`, the class; `zoo.settings`, its settings as JSON; `zoo.tokenizer`, the text of the
tokenizer.json; and `zoo.number_tokens`, the tokens of RegressLM's numbers by id as JSON.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.errors import UserError
from zoo.export.onnx_graphs import Graph, graphs_of
from zoo.export.onnx_lstm import translations
from zoo.registry import registered_name
from zoo.text_formats.json_text import dump_json

TOLERANCE = 1e-5  # largest difference between onnxruntime and torch, relative to values above 1


def write_onnx(
    module: Any, folder: Path, file_name: str | None = None, tokenizer_json: str | None = None
) -> dict[str, float]:
    """Write one file per graph into a folder.

    Args:
        module: a LightningModule of the zoo in evaluation mode, on the CPU and in fp32.
        folder: an existing folder.
        file_name: name of the file, for a model of one graph; None: the graph's name with the suffix `.onnx`.
        tokenizer_json: the tokenizer as the text of a tokenizer.json, for the metadata.

    Returns:
        For each file the largest difference between onnxruntime and torch on example inputs.

    Raises:
        UserError: a package is not installed, or the model cannot be expressed.
        RuntimeError: the exported graph computes something else.
    """
    onnxruntime = _libraries()
    graphs = graphs_of(module)
    if file_name is not None and len(graphs) > 1:
        names = " and ".join(f"{graph.name}.onnx" for graph in graphs)
        raise UserError(f"a {registered_name(module)} becomes several files, {names}: name a folder, not {file_name}")
    metadata = {"zoo.model": registered_name(module), "zoo.settings": dump_json(dict(module.hparams), default=str)}
    if (vocabulary := getattr(module, "vocabulary", None)) is not None:
        metadata["zoo.number_tokens"] = dump_json(vocabulary.tokens)
    if tokenizer_json is not None:
        metadata["zoo.tokenizer"] = tokenizer_json
    differences = {}
    for graph in graphs:
        file = folder / (file_name or f"{graph.name}.onnx")
        _export(graph, file, metadata)
        differences[file.name] = _compare(onnxruntime, graph, file)
    return differences


def _libraries() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            "--format onnx needs the packages onnx, onnxscript and onnxruntime: pip install '.[export]' in the folder "
            "of the zoo's source"
        ) from error
    return onnxruntime


def _export(graph: Graph, file: Path, metadata: dict[str, str]) -> None:
    longest = graph.longest
    names = {name for axes in graph.axes for name in axes.values()}
    dims: dict[str, Any] = {name: torch.export.Dim(name, min=1) for name in names}
    if longest is not None:  # a length of at most 1 is a constant
        dims["length"] = torch.export.Dim("length", min=1, max=longest) if longest > 1 else torch.export.Dim.STATIC
    shapes = tuple({axis: dims[name] for axis, name in axes.items()} for axes in graph.axes)
    # Sizes of 0 and 1 would become constants.
    inputs = graph.inputs(3, min(longest or 4, 4))
    with _quiet_loggers(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about its own code
        program = torch.onnx.export(
            graph.module.eval(), inputs, dynamo=True, dynamic_shapes=(shapes,) if _takes_all(graph) else shapes,
            input_names=list(graph.input_names), output_names=[graph.output_name], verbose=False,
            custom_translation_table=translations(),
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(str(file))


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    """Show only errors of torch's exporter and of the packages that optimize its graph."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _takes_all(graph: Graph) -> bool:
    """Whether the module's forward collects its inputs as *inputs, which torch counts as one argument."""
    return type(graph.module).__name__ == "Call"


def _compare(onnxruntime: Any, graph: Graph, file: Path) -> float:
    """The largest difference between onnxruntime and torch for two shapes, neither of them that of the export."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch, length in ((1, 1), (2, min(graph.longest or 7, 7))):
        inputs = graph.inputs(batch, length)
        with torch.no_grad():
            expected = graph.module(*inputs).numpy()
        feed = {name: tensor.numpy() for name, tensor in zip(graph.input_names, inputs, strict=True)}
        (actual,) = session.run([graph.output_name], feed)
        difference = float(np.abs(actual - expected).max() / max(1.0, float(np.abs(expected).max())))
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{file.name} differs from the model by {difference:.1e} in onnxruntime")
        largest = max(largest, difference)
    return largest
