"""Names of the two files of a checkpoint in safetensors, for code that must not load torch."""

CONTENT, TENSORS = "zoo.json", "model.safetensors"
