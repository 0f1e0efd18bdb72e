"""Write a run's checkpoint into zoo/weights without the state of its training, and print what its entry there needs.

python benchmarks/project_weights.py runs/regress_lm_pretrain/best.ckpt regress-lm
python benchmarks/project_weights.py runs/wikitext2-llama_small/best.ckpt llama-wikitext2 --half --data NAME_ON_THE_HUB
"""

import argparse
import hashlib
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zoo.files.checkpoints import read_checkpoint, write_checkpoint  # noqa: E402
from zoo.weights import FOLDER  # noqa: E402
from zoo.weights.strip import without_training_state  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("name", help="zoo:NAME will mean the file")
    parser.add_argument("--half", action="store_true", help="store the tensors in fp16; they are loaded as fp32")
    parser.add_argument("--data", help="name of the data in the checkpoint, instead of the local path")
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.checkpoint, required=("state_dict", "zoo"), mmap=False)
    file = FOLDER / f"{args.name}.ckpt"
    published = without_training_state(checkpoint, args.data, torch.float16 if args.half else None)
    write_checkpoint(published, file)
    data = file.read_bytes()
    print(f"{file.relative_to(ROOT)}: {len(data) / 1e6:.2f} MB, SHA-256 {hashlib.sha256(data).hexdigest()}")
    print(f"entries: {', '.join(published)}")


if __name__ == "__main__":
    main()
