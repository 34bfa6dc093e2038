"""What batch norm normalises by decides what a path looks like: four policies in one figure.

    python examples/batchnorm_policies.py runs/a --to runs/b --save_dir batchnorm

is `lgo interp runs/a --to runs/b --batchnorm POLICY --out batchnorm/POLICY` for each policy, and
batchnorm/policies.png from the four interp.npz. The network must have batch norm.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from lgo_cli import Execution, InterpConfig, execute
from lgo_cli.figures.files import save_figure
from lgo_cli.figures.style import (
    ACCENT,
    INK,
    TEST,
    TRAIN,
    caption,
    house_style,
    legend,
    log_axis_if_wide,
    loss_label,
    new_figure,
    settle,
)

STYLES = {
    "frozen": (TRAIN, "-"),
    "recompute": (TEST, "--"),
    "interpolate": (INK, "-."),
    "batch": (ACCENT, ":"),
}
SIZE = (5.5, None)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", default="init")
    parser.add_argument("--data_root", type=Path, default=None)
    parser.add_argument("--save_dir", type=Path, default=Path("batchnorm"))
    parser.add_argument("--analysis_samples", type=int, default=1024)
    parser.add_argument("--num_points", type=int, default=41)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    found = {}
    for policy in STYLES:
        config = InterpConfig(
            to=(arguments.to,),
            batchnorm=policy,
            analysis_samples=arguments.analysis_samples,
            num_points=arguments.num_points,
        )
        out = arguments.save_dir / policy
        done = execute(
            config, arguments.run, execution=Execution(out=out, data_root=arguments.data_root)
        )
        results = done.manifest.results.model_dump(mode="json")
        with np.load(out / "interp.npz") as arrays:
            found[policy] = (results, dict(arrays))
        print(f"{policy:12s} barrier {float(results['barrier']):.4g}")
    with house_style():
        figure = new_figure(SIZE, 2.6)
        losses, accuracies = figure.subplots(1, 2)
        for policy, (_, arrays) in found.items():
            colour, style = STYLES[policy]
            losses.plot(arrays["alpha"], arrays["loss"], style, color=colour, label=policy)
            accuracies.plot(arrays["alpha"], arrays["accuracy"], style, color=colour)
        log_axis_if_wide(losses, *(arrays["loss"] for _, arrays in found.values()))
        losses.set_ylabel(loss_label(results))
        accuracies.set_ylabel("accuracy (fraction)")
        for axes in (losses, accuracies):
            axes.set_xlabel(f"α (0: run, 1: {arguments.to})")
        legend(figure, losses.get_legend_handles_labels()[0])
        # The policies are in the legend.
        shared = {**results, "measured": {**results["measured"], "batchnorm": "none"}}
        caption(figure, shared, f"micro-batches of {results['measured']['micro_batch_size']}")
        settle(figure, SIZE)
    with (arguments.save_dir / "policies.png").open("wb") as handle:
        save_figure(figure, handle, "png", dpi=300)
    print(f"figure       {arguments.save_dir / 'policies.png'}")


if __name__ == "__main__":
    main()
