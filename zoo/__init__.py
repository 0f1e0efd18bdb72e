"""The zoo: five research models in PyTorch Lightning, driven by one command line.

Importing `zoo` imports nothing else: each package (`zoo.llama`, ...) loads what it needs when it is imported.
"""

__version__ = "0.1.0"
