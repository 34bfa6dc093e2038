"""What `lgo hessian` costs, in plain forward passes over the same samples in the same process.

    python tests/benchmarks/curvature.py [--data-root DIR] [--runs DIR] [--only NAME …] [--peers]

Prints one JSON line for each measurement; --markdown turns lines like these, from stdin, into the
README's table. Needs Fashion-MNIST. Networks are trained by `lgo train` into --runs when they are
not there: an MLP 784-256-128-10 for 5 epochs, a ResNet-20 on 3×32×32 for 1, and for 3 to above 90 %
accuracy. With --peers, and the extra `bench` installed, PyHessian, curvlinops and
hessian-eigenthings measure the same: the cheapest of their settings that is right to 1e-3.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))

import users_models
from peers import PEERS, SCHEDULES

from lgo_cli import checkpoint
from lgo_cli.cli.allocator import keep_memory
from lgo_cli.config import HessianConfig
from lgo_cli.curvature.analysis import analyze_spectrum
from lgo_cli.curvature.eigenpairs import extreme_eigenpairs
from lgo_cli.curvature.exact_trace import ExactTrace, exact_trace
from lgo_cli.curvature.lanczos import Lanczos
from lgo_cli.curvature.networks import GaussNewtonOperator, HessianOperator
from lgo_cli.curvature.search import Wanted
from lgo_cli.curvature.spectrum import Setting, Spectrum
from lgo_cli.curvature.trace import estimate_trace
from lgo_cli.data.loading import load_dataset
from lgo_cli.models.building import build_model
from lgo_cli.objective import Objective
from lgo_cli.samples import Samples
from lgo_cli.seeding import standard_normal
from lgo_cli.vectors import Block

IMAGES = {"image_size": 32, "channels": 3}
RUNS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "mlp": ("mlp", {"hidden": [256, 128]}, ["--epochs", "5"]),
    "resnet20-1": ("resnet20", {}, ["--epochs", "1"]),
    "resnet20-3": ("resnet20", {}, ["--epochs", "3", "--schedule", "cosine", "--lr", "0.05"]),
}
TARGET = 1e-3
SEEDS = range(5)
Record = dict[str, Any]


class Bench:
    """The networks and their samples."""

    def __init__(self, runs: Path, data_root: Path) -> None:
        self.runs = runs
        self.data_root = data_root

    def network(self, name: str) -> tuple[torch.nn.Module, Samples, Samples, float]:
        """Model, probe set (1,024 samples, 4,096 of the MLP), all training samples, accuracy."""
        model_name, model_arg, options = RUNS[name]
        data_arg = IMAGES if model_name.startswith("resnet") else {}
        out = self.runs / name
        if not (out / "train.json").is_file():
            arguments = [
                f"--model-arg={key}={json.dumps(value)}" for key, value in model_arg.items()
            ]
            arguments += [f"--dataset-arg={key}={value}" for key, value in data_arg.items()]
            subprocess.run(
                [
                    sys.executable, "-m", "lgo_cli", "train", "--model", model_name, "--dataset",
                    "fashion-mnist", "--data-root", str(self.data_root), *arguments, *options,
                    "--out", str(out), "--quiet",
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
        data = load_dataset("fashion-mnist", data_arg, self.data_root)
        model = build_model(model_name, model_arg, data.input_shape, data.num_classes, 0)
        model.load_state_dict(checkpoint.load_fitting(out / "model.pth", model))
        accuracy = json.loads((out / "train.json").read_text())["results"]["test_accuracy"]
        everything = Samples(data.x_train, data.y_train)
        return model, everything.head(4096 if name == "mlp" else 1024), everything, accuracy


def forward_seconds(model: torch.nn.Module, samples: Samples) -> float:
    """The median of seven plain passes, in the objective's own micro-batches."""
    with Objective(model, samples) as objective:
        return statistics.median(timed(objective.evaluate)[0] for _ in range(7))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def analyzed(model: torch.nn.Module, samples: Samples, config: HessianConfig) -> Spectrum:
    """Everything from a loaded model to the numbers, as in the phase `compute`."""
    with Objective(model, samples) as objective:
        return analyze_spectrum(objective, config)


def products(bench: Bench) -> Iterator[Record]:
    """One product over one forward pass, graph kept, of models from a user's file."""
    del bench
    for name, build, shape, n in (
        ("mlp", users_models.mlp, (1, 28, 28), 4096),
        ("resnet20", users_models.resnet20, (3, 32, 32), 1024),
    ):
        draw = torch.Generator().manual_seed(0)
        samples = Samples(torch.randn(n, *shape, generator=draw), torch.arange(n) % 10)
        model = build(shape, 10)
        with torch.no_grad():
            model.train()(samples.inputs[:256])
        forward = forward_seconds(model, samples)
        with Objective(model, samples) as objective:
            for kind in (HessianOperator, GaussNewtonOperator):
                operator = kind(objective)
                vector = torch.randn(operator.dim, generator=draw)
                operator.matvec(vector)
                cost = statistics.median(
                    timed(lambda: operator.matvec(vector))[0]  # noqa: B023
                    for _ in range(7)
                )
                yield {
                    "what": f"{kind.__name__} product, {name} of a user's file",
                    "forward_passes": cost / forward, "forward_s": forward, "samples": n,
                    "rewriting": operator.model.note,
                }  # fmt: skip


def eigenvalues(bench: Bench, names: list[str], k: int, *, peers: bool) -> Iterator[Record]:
    """The k largest to 1e-3, everything counted, against a reference to 1e-6."""
    for name in names:
        model, samples, _, accuracy = bench.network(name)
        reference = analyzed(
            model, samples, HessianConfig(top_k=k, bottom_k=0, rtol=1e-6, audit=False)
        ).eigenpairs.values
        config = HessianConfig(top_k=k, bottom_k=0, audit=False)
        rows = []
        for seed in SEEDS:
            # Each run over passes of the same minute, since a machine's speed drifts.
            forward = forward_seconds(model, samples)
            seconds, spectrum = timed(
                lambda: analyzed(model, samples, config.model_copy(update={"seed": seed}))  # noqa: B023
            )
            error = float(((spectrum.eigenpairs.values - reference) / reference).abs().max())
            rows.append((seconds / forward, spectrum.num_matvecs, error, forward))
        forward = statistics.median(row[3] for row in rows)
        yield {
            "what": f"{k} largest of {name}", "by": "lgo", "accuracy": accuracy,
            "samples": len(samples), "forward_s": forward,
            "products": statistics.median(row[1] for row in rows),
            "products_worst": max(row[1] for row in rows),
            "forward_passes": statistics.median(row[0] for row in rows),
            "forward_passes_worst": max(row[0] for row in rows),
            "error_worst": max(row[2] for row in rows), "seeds": len(rows),
        }  # fmt: skip
        if peers:
            yield from _peers(name, model, samples, k, reference)


def _peers(
    name: str,
    model: torch.nn.Module,
    samples: Samples,
    k: int,
    reference: torch.Tensor,
) -> Iterator[Record]:
    """The cheapest setting of each peer with every value right to 1e-3, and its default."""
    for peer, call in PEERS.items():
        best = None
        for settings in SCHEDULES[peer]:
            forward = forward_seconds(model, samples)
            model.eval()
            found = call(model, samples.inputs, samples.labels, k, settings)
            values = torch.tensor(found.values, dtype=torch.float64)
            error = float(((values - reference) / reference).abs().max())
            record = {
                "what": f"{k} largest of {name}", "by": peer, "settings": settings,
                "products": found.num_products, "forward_passes": found.seconds / forward,
                "error_worst": error if math.isfinite(error) else None,
            }  # fmt: skip
            if settings.get("default"):
                yield {**record, "by": f"{peer} (its defaults)"}
            if error <= TARGET:
                best = record
                break
        yield best or {"what": f"{k} largest of {name}", "by": peer, "products": None}


def trace(bench: Bench) -> Iterator[Record]:
    """The exact trace, and RMS errors of estimates at fixed totals, ten eigenvalues included."""
    for name in ("mlp", "resnet20-1"):
        yield exact(bench, name)
    model, samples, _, _ = bench.network("mlp")
    with Objective(model, samples) as objective:
        operator = HessianOperator(objective)
        process = Lanczos(operator, standard_normal(operator.dim, 999, "reference"), 999)
        reference = estimate_trace(process, num_total=1000, max_basis=150, seed=999)
        found = exact_trace(objective, "hessian", Block.whole(objective.layout))
        assert isinstance(found, ExactTrace)
        difference = sum(found.parts) - reference.value
        yield {
            "what": "exact trace of mlp against 1000 products", "by": "lgo",
            "error": difference / reference.value,
            "reference_error": reference.standard_error / reference.value,
            "deviation": difference / reference.standard_error,
        }  # fmt: skip
        for total in (60, 100):
            errors, claimed = [], []
            for seed in range(20):
                pairs = extreme_eigenpairs(operator, Wanted(10, seed=seed))
                assert pairs.process is not None
                found = estimate_trace(pairs.process, num_total=total, seed=seed)
                errors.append(found.value / reference.value - 1)
                claimed.append(found.standard_error / reference.value)
            yield {
                "what": f"trace of mlp at {total} products", "by": "lgo",
                "rms_error": math.sqrt(statistics.fmean(error**2 for error in errors)),
                "printed_standard_error": statistics.fmean(claimed),
                "within_two": statistics.fmean(
                    abs(error) <= 2 * bar for error, bar in zip(errors, claimed, strict=True)
                ),
                "reference": reference.value,
                "reference_error": reference.standard_error / reference.value, "seeds": 20,
            }  # fmt: skip


def exact(bench: Bench, name: str) -> Record:
    """What the exact trace costs, proof and check included, and how far float32 rounds it."""
    model, samples, _, _ = bench.network(name)
    forward = forward_seconds(model, samples)
    traces = {}
    for dtype in (torch.float64, torch.float32):
        with Objective(model, samples, dtype=dtype) as objective:
            whole = Block.whole(objective.layout)
            runs = [timed(lambda: exact_trace(objective, "hessian", whole)) for _ in range(3)]  # noqa: B023
            found = runs[-1][1]
            assert isinstance(found, ExactTrace), found
            traces[dtype] = found.of(whole)
            cost = statistics.median(seconds for seconds, _ in runs)
    return {
        "what": f"exact trace of {name}", "by": "lgo", "samples": len(samples),
        "value": traces[torch.float32], "forward_passes": cost / forward, "forward_s": forward,
        "rounding": traces[torch.float32] / traces[torch.float64] - 1,
    }  # fmt: skip


def warm_start(bench: Bench) -> Iterator[Record]:
    """λmax again after 50 more optimiser steps, from the eigenvector before."""
    for name in RUNS:
        model, samples, everything, _ = bench.network(name)
        config = HessianConfig(top_k=1, bottom_k=0, audit=False)
        before = analyzed(model, samples, config)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        draw = torch.Generator().manual_seed(0)
        model.train()
        for _ in range(50):
            rows = torch.randint(0, len(everything), (128,), generator=draw)
            optimizer.zero_grad()
            F.cross_entropy(model(everything.inputs[rows]), everything.labels[rows]).backward()
            optimizer.step()
        optimizer.zero_grad()
        with Objective(model, samples) as objective:
            reference = analyze_spectrum(objective, config.model_copy(update={"rtol": 1e-6}))
            cold = analyze_spectrum(objective, config)
            setting = Setting(warm_start=before.eigenpairs.eigenvectors)
            warm = analyze_spectrum(objective, config, setting)
        truth = float(reference.eigenpairs.values[0])
        yield {
            "what": f"largest of {name} after 50 more steps, warm start", "by": "lgo",
            "products": warm.num_matvecs, "products_cold": cold.num_matvecs,
            "moved_by": truth / float(before.eigenpairs.values[0]) - 1,
            "error_worst": abs(float(warm.eigenpairs.values[0]) / truth - 1),
        }  # fmt: skip


def memory(bench: Bench) -> Iterator[Record]:
    """Ten largest of an MLP of ten million parameters, in a process of its own."""
    out = bench.runs / "wide"
    lgo = [sys.executable, "-m", "lgo_cli"]
    shape = ["--model-arg", "hidden=[3160,3160]", "--dataset-arg", "num_train=2048"]
    subprocess.run(
        [*lgo, "train", *shape, "--epochs", "1", "--out", str(out), "--quiet", "--force"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    results = []
    for extra in ([], ["--memory", "1GiB"], ["--memory", "10MiB"], ["--basis-device", "disk"]):
        done = subprocess.run(
            [*lgo, "hessian", str(out), "--bottom-k", "0", "--force", "--json", *extra],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        manifest = json.loads(done.stdout)
        results.append(manifest["results"]["largest"])
        yield {
            "what": f"10 largest of an MLP of {manifest['results']['num_parameters']:,} parameters"
            + f" {' '.join(extra)}".rstrip(),
            "by": "lgo", "peak_gib": manifest["provenance"]["peak_memory_bytes"] / 2**30,
            "products": manifest["results"]["num_matvecs"],
            "seconds": manifest["provenance"]["phases_s"]["compute"],
            "plan": manifest["results"]["product_plan"], "same_bits": results[-1] == results[0],
        }  # fmt: skip


def machine() -> Record:
    """Where and when."""
    versions = {}
    for name in ("torch", "pyhessian", "curvlinops-for-pytorch", "hessian-eigenthings"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "what": "machine", "date": datetime.now(UTC).date().isoformat(),
        "cpu": _processor(), "threads": torch.get_num_threads(), **versions,
    }  # fmt: skip


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def markdown(lines: list[Record]) -> str:
    """The README's table of eigenvalues, from the lines of a run."""
    rows = ["| what | by | products | forward passes | error |", "|---|---|---|---|---|"]
    for line in lines:
        if "by" not in line or "products" not in line:
            continue
        passes, error = line.get("forward_passes"), line.get("error_worst")
        rows.append(
            f"| {line['what']} | {line['by']} | {line['products'] or 'not reached'} | "
            f"{'' if passes is None else f'{passes:.0f}'} | "
            f"{'' if error is None else f'{error:.0e}'} |"
        )
    return "\n".join(rows)


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks of networks share."""
    shared = argparse.ArgumentParser(description=description.splitlines()[0])
    shared.add_argument("--data-root", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    shared.add_argument("--runs", type=Path, default=Path("benchmark-runs"))
    shared.add_argument("--only", nargs="*")
    shared.add_argument("--peers", action="store_true")
    shared.add_argument("--markdown", action="store_true")
    return shared


def run(parts: dict[str, Callable[[], Iterator[Record]]], only: list[str] | None) -> None:
    """Print a line for each record of the parts that are asked for."""
    for name, part in parts.items():
        if only is None or name in only:
            for record in part():
                print(json.dumps(record), flush=True)


def main() -> None:
    """Print what is asked for."""
    arguments = parser(__doc__).parse_args()
    if arguments.markdown:
        print(markdown([json.loads(line) for line in sys.stdin]))
        return
    keep_memory()
    bench = Bench(arguments.runs, arguments.data_root)
    resnets = [name for name in RUNS if name.startswith("resnet")]
    parts: dict[str, Callable[[], Iterator[Record]]] = {
        "products": lambda: products(bench),
        "mlp": lambda: eigenvalues(bench, ["mlp"], 10, peers=arguments.peers),
        "resnet": lambda: eigenvalues(bench, resnets, 1, peers=arguments.peers),
        "trace": lambda: trace(bench),
        "warm": lambda: warm_start(bench),
        "memory": lambda: memory(bench),
    }
    print(json.dumps(machine()), flush=True)
    run(parts, arguments.only)


if __name__ == "__main__":
    main()
