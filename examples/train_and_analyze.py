"""Train a model and analyse its loss landscape, end to end through the Python API.

    python examples/train_and_analyze.py --dataset digits --model mlp --epochs 5 --save_dir out

The numbers, files and caching are those of the command line: it is the same function. Writes
model.pth, hessian.png, interp_1d.png and contour_2d.png (with their .npz and .json) to --save_dir.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lgo_cli import (
    ContourConfig,
    Execution,
    HessianConfig,
    InterpConfig,
    TrainConfig,
    execute,
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--data_root", type=Path, default=None)
    parser.add_argument("--download_data", action="store_true")
    parser.add_argument("--save_dir", type=Path, default=Path("outputs"))
    parser.add_argument("--analysis_samples", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=None)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    train = TrainConfig(model=arguments.model, dataset=arguments.dataset, epochs=arguments.epochs)
    execution = Execution(
        out=arguments.save_dir,
        data_root=arguments.data_root,
        download_data=arguments.download_data,
    )
    trained = execute(train, execution=execution).manifest.results
    print(f"test accuracy      {trained.test_accuracy:.4f}")

    samples = arguments.analysis_samples
    here = Execution(data_root=arguments.data_root)
    hessian = execute(
        HessianConfig(analysis_samples=samples, top_k=5), arguments.save_dir, execution=here
    ).manifest.results
    top = hessian.largest[0]
    print(f"largest eigenvalue {top.value:.4g} ± {top.residual_bound:.1g}")
    print(f"smallest           {hessian.smallest[0].value:.4g}")
    print(f"products           {hessian.num_matvecs}, converged: {hessian.converged}")

    interp = execute(
        InterpConfig(analysis_samples=samples), arguments.save_dir, execution=here
    ).manifest.results
    print(f"barrier from init  {interp.barrier:.4g}")

    contour = execute(
        ContourConfig(analysis_samples=samples, resolution="25"), arguments.save_dir, execution=here
    ).manifest.results
    print(f"loss on the plane  {contour.loss_min:.4g} to {contour.loss_max:.4g}")
    print(f"figures            {arguments.save_dir}")


if __name__ == "__main__":
    main()
