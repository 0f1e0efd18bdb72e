"""Export of a trained model to formats of other programs: Hugging Face, llama2.c, GGUF, ONNX, safetensors."""

from zoo.export.formats import FORMATS
from zoo.export.write import export_module

__all__ = ["FORMATS", "export_module"]
