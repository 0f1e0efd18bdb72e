"""Write a run's checkpoint into zoo/weights without the state of its training, and print what its entry there needs.

python benchmarks/project_weights.py runs/regress_lm_pretrain/best.ckpt regress-lm
"""

import argparse
import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zoo.files.checkpoints import read_checkpoint, write_checkpoint  # noqa: E402
from zoo.weights import FOLDER  # noqa: E402

TRAINING = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch", "MixedPrecision", "hparams_name")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("name", help="zoo:NAME will mean the file")
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.checkpoint, required=("state_dict", "zoo"), mmap=False)
    file = FOLDER / f"{args.name}.ckpt"
    write_checkpoint({name: value for name, value in checkpoint.items() if name not in TRAINING}, file)
    data = file.read_bytes()
    print(f"{file.relative_to(ROOT)}: {len(data) / 1e6:.2f} MB, SHA-256 {hashlib.sha256(data).hexdigest()}")
    print(f"left: {', '.join(checkpoint.keys() - set(TRAINING))}")


if __name__ == "__main__":
    main()
