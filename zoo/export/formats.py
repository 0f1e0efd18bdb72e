"""Export formats, and the models that each of them can hold."""

from typing import Any

from zoo.errors import UserError, check_choice
from zoo.registry import registered_name
from zoo.training.language_model import LanguageModel

FORMATS = {  # name -> what it is
    "hf": "Hugging Face folder with tokenizer, for AutoTokenizer and AutoModelForCausalLM of transformers",
    "llama2c": "model.bin and tokenizer.bin for llama2.c's run.c",
    "gguf": "one file with tokenizer, for llama.cpp and transformers",
    "onnx": "graphs for onnxruntime, with dynamic batch and length, and the tokenizer",
    "safetensors": "folder with weights, settings and tokenizer, for --ckpt_path and other programs",
}
SUFFIXES = {"llama2c": ".bin", "gguf": ".gguf", "onnx": ".onnx"}  # of formats that may be one file
_LLAMA_ONLY = ("hf", "llama2c", "gguf")
_LLAMAS = ("LlamaLM", "LlamaZeroShot")
_ONNX = ("LlamaLM", "LlamaClassifier", "RevDEQLM", "ICRTransformer", "MiniRLM", "RegressLM")


def formats_of(module: Any) -> list[str]:
    """The formats that can hold a module."""
    names = {base.__name__ for base in type(module).__mro__}
    is_llama = not names.isdisjoint(_LLAMAS)
    has_graph = isinstance(module, LanguageModel) or not names.isdisjoint(_ONNX)
    return [name for name in FORMATS if (is_llama if name in _LLAMA_ONLY else has_graph or name != "onnx")]


def check_format(module: Any, format: str) -> None:
    """Raises UserError if a format is unknown or cannot hold a module; the message names those that can."""
    check_choice("format", format, tuple(FORMATS))
    working = formats_of(module)
    if format in working:
        return
    name = registered_name(module)
    reason = "which holds only language models of the Llama architecture"
    if format == "onnx":
        of_prompts = "as its scores depend on a prompt and on class names"
        reason = of_prompts if name == "LlamaZeroShot" else "as the zoo knows no graph of this class"
    raise UserError(f"{a(name)} cannot be exported to {format}, {reason}: use --format {' or '.join(working)}")


def a(name: str) -> str:
    """The name of a class with its article."""
    return f"{'an' if name[0] in 'AEIO' else 'a'} {name}"
