"""What `lgo contour` costs, beside plain forward passes over the same samples and other tools.

    python tests/benchmarks/surface.py [--data-root DIR] [--runs DIR] [--only NAME …] [--peers]

Prints one JSON line for each measurement; --markdown turns lines like these, from stdin, into the
README's tables. Needs Fashion-MNIST; networks are trained as for curvature.py. The parts:

- cells: one cell over one plain pass, and how far the two are apart.
- peers (with --peers): the same of a clone-and-copy loop, loss-landscapes and landscaper, each with
  all samples in one batch and in micro-batches, the faster one counting.
- mlp, mlp-init, resnet20-noise, resnet20-1, exponential: surfaces at a tolerance of 0.01, against
  the plain loop's time and the surface with every cell measured. That takes most of an hour for a
  ResNet, and is kept in --runs.
- samples, parameters, resolution: how the costs grow.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import users_models
from curvature import Bench, Record, machine, parser, run, timed
from surface_peers import PEERS, clone_and_copy

from lgo_cli import checkpoint
from lgo_cli.cli.allocator import keep_memory
from lgo_cli.landscape.evaluator import Evaluator
from lgo_cli.landscape.grids import linspace
from lgo_cli.landscape.planes import Plane, random_plane
from lgo_cli.landscape.surface import Surface, measure_surface
from lgo_cli.models.building import build_model
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples

TOLERANCE = 0.01
RESOLUTION = 51
NUM_PLANES = 3
ROUNDS = 7
SHORT_S = 5.0
"""A surface that takes less is measured up to `ROUNDS` times, and so is the loop beside it."""
RANGES = {"exponential": 3.5}
"""Half widths of the planes that are not 1."""


def network(bench: Bench, name: str) -> tuple[nn.Module, Samples]:
    """A network and its probe set: 4,096 samples, 1,024 of a ResNet."""
    if name == "exponential":
        _, samples, everything, _ = bench.network("mlp")
        return exponential(everything), samples
    if name == "resnet20-noise":
        return fitted_to_noise()
    model, samples, _, _ = bench.network(name.removesuffix("-init"))
    if name.endswith("-init"):
        init = bench.runs / name.removesuffix("-init") / "init.pth"
        model.load_state_dict(checkpoint.load_fitting(init, model))
    return model, samples


class Exp(nn.Module):
    """e^x, which float32 has no room for beyond 88."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


def exponential(everything: Samples) -> nn.Module:
    """Two hidden layers of exponential units after 1,000 steps: infinite a few norms away."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = everything.inputs[0].numel()
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(size, 64), Exp(), nn.Linear(64, 32), Exp(), nn.Linear(32, 10)
        )
        with torch.no_grad():
            model[1].weight.mul_(0.2)
            model[3].weight.mul_(0.3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        for _ in range(1000):
            rows = torch.randint(0, len(everything), (128,))
            optimizer.zero_grad()
            F.cross_entropy(model(everything.inputs[rows]), everything.labels[rows]).backward()
            optimizer.step()
        optimizer.zero_grad()
    return model


def fitted_to_noise() -> tuple[nn.Module, Samples]:
    """A user's ResNet-20 after one epoch of 8,192 images of Gaussian noise, and 1,024 of them.

    Its planes are far smoother than those of one that has learned: a bicubic spline of the log
    loss through every other row and column is off by 0.006 % in the median, 4 % at worst.
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(8192, 3, 32, 32, generator=draw)
    labels = torch.arange(len(images)) % 10
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = users_models.resnet20((3, 32, 32), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for rows in torch.randperm(len(images), generator=draw).split(128):
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval(), Samples(images, labels).head(1024)


def cell_and_pass(objective: Objective) -> Record:
    """Seconds of a cell and of a plain pass, the least of some rounds of one after the other."""
    setup_s, evaluator = timed(lambda: Evaluator(objective, random_plane(objective, 0).directions))
    cell_s, forward_s = [], []
    for index in range(ROUNDS + 1):
        x = (index + 1) / 16  # no cell twice
        cell_s.append(timed(lambda: evaluator(x, -x))[0])  # noqa: B023
        forward_s.append(timed(objective.evaluate)[0])
    return {
        "forward_passes": min(cell_s[1:]) / min(forward_s[1:]), "cell_s": min(cell_s[1:]),
        "forward_s": min(forward_s[1:]), "setup_s": setup_s, "plan": evaluator.plan,
        "samples": len(objective.samples), "parameters": objective.dim,
    }  # fmt: skip


def cells(bench: Bench) -> Iterator[Record]:
    """One cell over one pass, lgo's networks and a user's."""
    for name, build, shape in (
        ("mlp", users_models.mlp, (1, 28, 28)),
        ("resnet20-1", users_models.resnet20, (3, 32, 32)),
    ):
        model, samples = network(bench, name)
        users = build(shape, 10)
        with torch.no_grad():
            users.train()(samples.inputs[:256])  # gives batch norm statistics
        for whose, candidate in (("", model), (" of a user's file", users)):
            with Objective(candidate, samples) as objective:
                record = cell_and_pass(objective)
                yield {
                    "what": f"a cell, {name}{whose}", "by": "lgo", **record,
                    "difference_worst": _difference(objective),
                }  # fmt: skip


def _difference(objective: Objective) -> float:
    """The largest relative difference of cells from the model's own pass at the same point."""
    directions = random_plane(objective, 0).directions
    evaluator = Evaluator(objective, directions)
    draw = np.random.default_rng(0)
    worst = 0.0
    for x, y in [(0.0, 0.0), *draw.uniform(-1, 1, (8, 2)).tolist()]:
        fast = evaluator(x, y).loss
        objective.displace((x, directions[0]), (y, directions[1]))
        plain = objective.evaluate().loss
        worst = max(worst, abs(fast - plain) / abs(plain))
    return worst


def peers(bench: Bench) -> Iterator[Record]:
    """A cell of each peer over one pass, on a 5×5 grid."""
    for name in ("mlp", "resnet20-1"):
        model, samples = network(bench, name)
        with Objective(model, samples) as objective:
            forward_s = min(timed(objective.evaluate)[0] for _ in range(ROUNDS))
            sizes = (len(samples), objective.micro_batch_size)
        model.eval()
        for peer, measure in PEERS.items():
            found = {
                size: min(
                    (measure(model, samples.inputs, samples.labels, 5, size) for _ in range(2)),
                    key=lambda surface: surface.seconds,
                )
                for size in sizes
            }
            size = min(found, key=lambda size: found[size].seconds)
            assert found[size].num_passes == found[size].loss.size
            yield {
                "what": f"a cell, {name}", "by": peer, "samples": len(samples),
                "forward_passes": found[size].seconds_per_cell / forward_s,
                "forward_passes_one_batch": found[sizes[0]].seconds_per_cell / forward_s,
                "batch_size": size, "forward_s": forward_s, "setup_s": found[size].setup_s,
            }  # fmt: skip


def surface_of(
    objective: Objective,
    plane: Plane,
    half_width: float = 1.0,
    resolution: int = RESOLUTION,
    tolerance: float | None = TOLERANCE,
) -> Surface:
    """The surface from a loaded model and a plane on, planning and checks included."""
    evaluator = Evaluator(objective, plane.directions)
    axis = linspace((-half_width, half_width), resolution)
    return measure_surface(evaluator, axis, axis, tolerance=tolerance)


def truth(
    bench: Bench, name: str, objective: Objective, plane: Plane, resolution: int
) -> np.ndarray[Any, Any]:
    """Losses [ny, nx] with every cell measured, from --runs if they are there.

    The file's name holds a digest of all that they depend on.
    """
    half_width = RANGES.get(name, 1.0)
    digest = hashlib.sha256(f"{half_width} {resolution} {len(objective.samples)}".encode())
    for tensor in (objective.theta, plane.directions, objective.samples.inputs):
        digest.update(tensor.numpy().tobytes())
    path = bench.runs / f"surface-{name}-{digest.hexdigest()[:16]}.npz"
    if not path.is_file():
        surface = surface_of(objective, plane, half_width, resolution, tolerance=None)
        np.savez(path, loss=surface.loss)
    loss: np.ndarray[Any, Any] = np.load(path)["loss"]
    return loss


def surfaces(bench: Bench, name: str, num_planes: int, resolution: int) -> Iterator[Record]:
    """Surfaces to a tolerance: time against the plain loop's, errors against every cell."""
    model, samples = network(bench, name)
    half_width = RANGES.get(name, 1.0)
    with Objective(model, samples) as objective:
        batch_size = objective.micro_batch_size
        planes = [random_plane(objective, seed) for seed in range(num_planes)]
        found = []
        for plane in planes:
            # The loop's cells all cost the same: a few dozen, measured beside the surface, tell.
            times: list[float] = []
            loops: list[float] = []
            while len(times) < ROUNDS and sum(times) < SHORT_S:
                loop = clone_and_copy(model.eval(), samples.inputs, samples.labels, 5, batch_size)
                loops.append(loop.setup_s + loop.seconds_per_cell * resolution**2)
                seconds, surface = timed(
                    lambda: surface_of(objective, plane, half_width, resolution)  # noqa: B023
                )
                times.append(seconds)
            found.append((statistics.median(times), statistics.median(loops), surface))
        for index, (plane, (seconds, loop_s, surface)) in enumerate(
            zip(planes, found, strict=True)
        ):
            yield {
                "what": f"{resolution}×{resolution} at {TOLERANCE:.0%}, {name}, plane {index}",
                "network": name, "seconds": seconds, "loop_s": loop_s, "ratio": loop_s / seconds,
                "measured": surface.num_measured, "few_samples": surface.filled.num_small,
                **_errors(surface, truth(bench, name, objective, plane, resolution)),
                "plan": surface.plan, "samples": len(samples),
            }  # fmt: skip


def _errors(surface: Surface, every: np.ndarray[Any, Any]) -> Record:
    """True errors, relative to the loss at each cell and, where it is less, the stated floor."""
    assert surface.filled is not None
    finite = np.isfinite(every)
    masks_equal = bool(np.array_equal(finite, np.isfinite(surface.loss)))
    both = finite & np.isfinite(surface.loss)
    size = np.maximum(np.abs(every), surface.filled.floor)[both]
    error = np.abs(surface.loss - every)[both] / size
    stated = surface.error_estimate[both] / size
    check = surface.filled.check
    return {
        "within": float((error <= TOLERANCE).mean()), "error_p99": float(np.quantile(error, 0.99)),
        "error_worst": float(error.max()), "stated_worst": float(stated.max()),
        "nonfinite": int((~finite).sum()), "masks_equal": masks_equal,
        "loss_min": float(every[finite].min()), "loss_max": float(every[finite].max()),
        "floor": surface.filled.floor, "converged": surface.filled.converged,
        "checks": surface.filled.num_checks,
        "check_worst": None if check is None else check.worst_error,
    }  # fmt: skip


def growth_with_samples(bench: Bench) -> Iterator[Record]:
    """A cell, from 256 samples on."""
    for name, counts in (
        ("mlp", (256, 1024, 4096, 16384, 60000)),
        ("resnet20-1", (256, 1024, 4096)),
    ):
        model, _, everything, _ = bench.network(name)
        for count in counts:
            with Objective(model, everything.head(count)) as objective:
                record = cell_and_pass(objective)
            yield {"what": f"a cell, {name}, {count:,} samples", **record}


def growth_with_parameters(bench: Bench) -> Iterator[Record]:
    """A cell, from half the width on."""
    for name, arguments in (
        ("mlp", [{"hidden": [width, width // 2]} for width in (64, 256, 1024, 4096)]),
        ("resnet20-1", [{"width": width} for width in (0.5, 1.0, 2.0)]),
    ):
        _, samples = network(bench, name)
        shape = tuple(samples.inputs.shape[1:])
        for argument in arguments:
            model = build_model(name.partition("-")[0], argument, shape, 10, 0)
            with Objective(model, samples) as objective:
                record = cell_and_pass(objective)
            yield {
                "what": f"a cell, {name.partition('-')[0]}, {record['parameters']:,} parameters",
                **record,
            }


def growth_with_resolution(bench: Bench) -> Iterator[Record]:
    """A surface of the MLP to the tolerance and in full."""
    model, samples = network(bench, "mlp")
    with Objective(model, samples) as objective:
        plane = random_plane(objective, 0)
        for resolution in (26, 51, 101, 201):
            seconds, surface = timed(lambda: surface_of(objective, plane, 1.0, resolution))  # noqa: B023
            yield {
                "what": f"{resolution}×{resolution} at {TOLERANCE:.0%}, mlp", "seconds": seconds,
                "cells": surface.num_cells, "measured": surface.num_measured,
                "few_samples": surface.filled.num_small,
            }  # fmt: skip


def markdown(lines: list[Record]) -> str:
    """The README's tables, from the lines of a run."""
    rows = ["| one cell | by | plain passes | relative difference |", "|---|---|---|---|"]
    rows += [
        f"| {line['what'].removeprefix('a cell, ')} | {line['by']} | "
        f"{line['forward_passes']:.2f} | "
        f"{format(line['difference_worst'], '.0e') if 'difference_worst' in line else ''} |"
        for line in lines
        if "by" in line
    ]
    rows += [
        "",
        "| network | planes | cells measured (on a sixteenth) | times faster than the plain loop "
        "| cells within 1 % | worst error | worst stated | cells not finite |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(line["network"] for line in lines if "network" in line):
        mine = [line for line in lines if line.get("network") == name]

        def middle(key: str, mine: list[Record] = mine) -> float:
            return statistics.median(line[key] for line in mine)

        rows.append(
            f"| {name} | {len(mine)} | {middle('measured'):.0f} ({middle('few_samples'):.0f}) | "
            f"{min(line['ratio'] for line in mine):.0f}–{max(line['ratio'] for line in mine):.0f} |"
            f" {min(line['within'] for line in mine):.1%} | "
            f"{max(line['error_worst'] for line in mine):.1%} | "
            f"{max(line['stated_worst'] for line in mine):.1%} | "
            f"{'–'.join(str(f(line['nonfinite'] for line in mine)) for f in (min, max))}"
            f"{'' if all(line['masks_equal'] for line in mine) else ', not all found'} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Print what is asked for."""
    options = parser(__doc__)
    options.add_argument("--planes", type=int, default=NUM_PLANES, help="of each network")
    options.add_argument("--resolution", type=int, default=RESOLUTION)
    options.add_argument("--default-allocator", action="store_true", help="as in any other process")
    arguments = options.parse_args()
    if arguments.markdown:
        print(markdown([json.loads(line) for line in sys.stdin]))
        return
    if not arguments.default_allocator:
        keep_memory()
    bench = Bench(arguments.runs, arguments.data_root)
    parts: dict[str, Callable[[], Iterator[Record]]] = {"cells": lambda: cells(bench)}
    if arguments.peers:
        parts["peers"] = lambda: peers(bench)
    for name in ("mlp", "mlp-init", "resnet20-noise", "resnet20-1", "exponential"):
        parts[name] = lambda name=name: surfaces(
            bench, name, arguments.planes, arguments.resolution
        )
    parts |= {
        "samples": lambda: growth_with_samples(bench),
        "parameters": lambda: growth_with_parameters(bench),
        "resolution": lambda: growth_with_resolution(bench),
    }
    known = {**machine(), "allocator_keeps": not arguments.default_allocator}
    for package in ("loss-landscapes", "landscaper"):
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            known[package] = None
    print(json.dumps(known), flush=True)
    run(parts, arguments.only)


if __name__ == "__main__":
    main()
