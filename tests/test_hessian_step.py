"""`lgo hessian` from the command line to the manifest: what each option adds."""

from __future__ import annotations

import json
import math
import os
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, Lgo

from lgo_cli.cli.tables import summary_lines
from lgo_cli.errors import NumericsError
from lgo_cli.manifest import read_manifest
from lgo_cli.runs.evidence import load_arrays
from lgo_cli.runs.steps.described import _clusters, _layers

FEW = ("--top-k", 2, "--bottom-k", 1, "--analysis-samples", 64)


def _results(lgo: Lgo, run: Path, *arguments: object) -> dict[str, Any]:
    result = lgo("hessian", run, *FEW, *arguments, "--json")
    found: dict[str, Any] = json.loads(result.stdout)["results"]
    return found


def test_everything_at_once(lgo: Lgo, small_run: Path) -> None:
    results = _results(
        lgo, small_run, "--trace", "--trace-rtol", 0.05, "--density", "--per-layer", "--halves",
        "--multiplicity", "--recheck",
    )  # fmt: skip
    assert results["converged"]
    assert sum(results["matvecs"].values()) == results["num_matvecs"]
    assert results["density"]["num_matvecs"] == results["matvecs"]["density"]
    assert set(results["matvecs"]) == {
        "audit", "eigenvalues", "multiplicity", "recheck", "density", "trace", "layers", "halves",
    }  # fmt: skip
    assert results["multiplicity_checked"]
    assert results["audit"]["clean"]
    assert 0 < results["gradient_share"] < 1
    blocks = results["per_layer"]["blocks"]
    assert [block["name"] for block in blocks] == ["linear1", "output"]
    assert sum(block["num_parameters"] for block in blocks) == results["num_parameters"]
    share = results["per_layer"]["off_block_share"]
    assert 0 < share < 1
    whole = results["frobenius_norm"]
    total, inside = whole["value"] ** 2, sum(block["frobenius_norm"] ** 2 for block in blocks)
    assert share == pytest.approx(1 - inside / total)
    # To first order: a square's error is 2x times that of x, relative to it twice.
    errors = [2 * b["frobenius_norm"] * b["frobenius_standard_error"] / total for b in blocks]
    errors.append(2 * inside / total * whole["standard_error"] / whole["value"])
    error = results["per_layer"]["off_block_share_standard_error"]
    assert 0 < error == pytest.approx(math.hypot(*errors))
    halves = results["halves"]
    assert (halves["first"]["num_samples"], halves["second"]["num_samples"]) == (32, 32)
    first, second = (halves[key]["largest"][0]["value"] for key in ("first", "second"))
    assert halves["spread_of_largest"] == pytest.approx(abs(first - second) / (first + second))
    text = lgo(
        "hessian", small_run, *FEW, "--trace", "--trace-rtol", 0.05, "--density", "--per-layer",
        "--halves", "--multiplicity", "--recheck",
    ).stdout  # fmt: skip
    for word in ("per layer", "off blocks", "halves 1", "trace", "norm", "density", "gradient"):
        assert word in text
    with np.load(small_run / "hessian.npz") as arrays:
        assert arrays["layer_largest"].shape == (2,)


def test_what_the_smallest_cost_beside_the_largest(lgo: Lgo, small_run: Path) -> None:
    lgo("hessian", small_run, *FEW)
    manifest = read_manifest(small_run / "hessian.json")
    results = manifest.results
    spent = results.matvecs["eigenvalues"]
    assert 0 < results.num_largest_matvecs <= spent
    for early, is_told in ((spent // 2 - 1, True), (spent - 1, False), (None, False)):
        changed = results.model_copy(update={"num_largest_matvecs": early})
        changed = manifest.model_copy(update={"results": changed})
        text = "\n".join(summary_lines(changed, small_run, None))
        advice = f"the largest had converged after {early}: --bottom-k 0 ends about there"
        assert (advice in text) == is_told
    lgo("hessian", small_run, *FEW, "--bottom-k", 0)
    assert read_manifest(small_run / "hessian.json").results.num_largest_matvecs is None


def test_audit_is_one_line_and_can_be_skipped(lgo: Lgo, small_run: Path) -> None:
    lines = [
        line for line in lgo("hessian", small_run, *FEW).stderr.splitlines() if "audit" in line
    ]
    assert len(lines) == 1
    assert lines[0].startswith("audit: clean (symmetric to ")
    assert "kinks of ReLU ignored" in lines[0]
    skipped = lgo("hessian", small_run, *FEW, "--no-audit", "--json")
    assert json.loads(skipped.stdout)["results"]["audit"] is None
    assert "audit" not in skipped.stderr


def test_memory_moves_no_bit_of_the_request_or_the_numbers(lgo: Lgo, small_run: Path) -> None:
    kept = _results(lgo, small_run)
    rebuilt = _results(lgo, small_run, "--memory", "1KiB", "--force")
    assert (kept["keeps_graph"], rebuilt["keeps_graph"]) == (True, False)
    assert "graph rebuilt for each product" in rebuilt["product_plan"]
    assert kept["largest"] == rebuilt["largest"]
    assert lgo("hessian", small_run, *FEW, "--memory", "2 GB").stderr.startswith(
        "hessian: up to date"
    )
    result = lgo("hessian", small_run, *FEW, "--memory", "much", code=2)
    assert "--memory" in result.stderr


def test_basis_on_disk(lgo: Lgo, small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate, allocated = os.posix_fallocate, []

    def spy(handle: int, offset: int, length: int) -> None:
        allocated.append(length)
        allocate(handle, offset, length)

    monkeypatch.setattr("os.posix_fallocate", spy)
    memory = _results(lgo, small_run)
    assert not allocated
    disk = _results(lgo, small_run, "--basis-device", "disk", "--force")
    assert min(allocated) >= 4 * disk["num_parameters"]  # a row of float32, or more
    assert memory["largest"] == disk["largest"]
    left = {path.suffix for path in (small_run / ".lgo").iterdir()}
    assert left <= {".lock", ".written"}


@pytest.mark.parametrize(
    "other",
    [
        "--operator ggn",
        "--scaling elementwise",
        "--layers output",
        "--loss squared_error",
        "--label-smoothing 0.1",
    ],
)
def test_a_threshold_beside_another_matrix_says_so(lgo: Lgo, small_run: Path, other: str) -> None:
    """Which is not to be compared with the eigenvalues above it."""
    words = " of the curvature that the run's steps see, which was not measured"
    assert words not in lgo("hessian", small_run, *FEW).stdout
    results = _results(lgo, small_run, *other.split())
    assert results["sharpness_ratio"] is None
    assert words in lgo("show", small_run).stdout


def test_layers_and_their_vectors(lgo: Lgo, small_run: Path) -> None:
    results = _results(lgo, small_run, "--layers", "output")
    assert results["layers"] == ["output"]
    assert results["sharpness_ratio"] is None
    with np.load(small_run / "hessian.npz") as arrays:
        vectors = arrays["eigenvectors"]
    assert vectors.shape == (3, results["num_parameters"])
    assert not vectors[:, : -(8 * 10 + 10)].any()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    parts = ("--layers", "linear1", "--layers", "output.weight")
    assert _results(lgo, small_run, *parts)["layers"] == ["linear1", "output.weight"]
    error = lgo("hessian", small_run, *FEW, "--layers", "lineer1", code=2).stderr
    assert "did you mean linear1" in error


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_has_a_threshold(lgo: Lgo, tmp_path: Path, optimizer: str) -> None:
    run = tmp_path / "adam"
    lgo("train", "--out", run, *SMALL, "--optimizer", optimizer, "--save-every", 4, "--quiet")
    results = _results(lgo, run)
    rate = json.loads((run / "train.json").read_text())["results"]["final_lr"]
    decay = 0.0 if optimizer == "adam" else 0.0005
    expected = pytest.approx(19 * (2 - rate * decay) / rate, rel=1e-12)
    assert results["stability_threshold"] == expected
    assert f"threshold {results['stability_threshold']:,.0f}, " in lgo("show", run).stdout
    top = results["preconditioned"]["value"]
    # What it is of is said: Adam's decay is a part of its gradient, AdamW's is not.
    assert results["preconditioned_weight_decay"] == (0.0005 if optimizer == "adam" else 0.0)
    what = {"adam": "D^-1·(H + 0.0005·I): Adam's weight decay is in", "adamw": "D^-1·H"}[optimizer]
    assert f"largest of {what}\n" in lgo("show", run).stdout
    assert results["sharpness_ratio"] == pytest.approx(top / results["stability_threshold"])
    alone = _results(lgo, run, "--scaling", "adam", "--rtol", 1e-4)
    assert alone["largest"][0]["value"] == pytest.approx(top, rel=2e-3)
    # Adam's coupled decay is a part of what it preconditions, and not of the Hessian asked for.
    assert (alone["preconditioned"] is None) == (optimizer == "adamw")
    assert alone["sharpness_ratio"] == pytest.approx(results["sharpness_ratio"], rel=2e-3)
    error = lgo("hessian", run / "init.pth", "--scaling", "adam", code=2).stderr
    assert "--scaling adam needs weights of a run trained by adam or adamw with which" in error
    if optimizer == "adamw":
        error = lgo("hessian", run, "--include-weight-decay", code=2).stderr
        assert "no decay term in its loss" in error


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adams_checkpoints_have_its_state(lgo: Lgo, tmp_path: Path, optimizer: str) -> None:
    """One on the way is measured as the end of a training that stopped there."""
    run, half = tmp_path / "run", tmp_path / "half"  # of sixteen steps, and of the first eight
    recipe = (*SMALL, "--optimizer", optimizer, "--schedule", "constant", "--quiet")
    lgo("train", "--out", run, *recipe, "--save-every", 8)
    lgo("train", "--out", half, *recipe, "--epochs", 1)
    assert {path.name for path in (run / "optimizer").iterdir()} == {
        path.name for path in (run / "checkpoints").iterdir()
    }
    checkpoint = run / "checkpoints" / "step-00000008.pth"
    line = (checkpoint, "--out", tmp_path / "way")
    on_the_way, at_the_end = _results(lgo, *line), _results(lgo, half)
    for name in ("preconditioned", "stability_threshold", "sharpness_ratio", "largest"):
        assert on_the_way[name] == at_the_end[name]
    assert on_the_way["sharpness_ratio"] != _results(lgo, run)["sharpness_ratio"]
    scaled = _results(lgo, *line, "--scaling", "adam")["largest"]
    assert scaled == _results(lgo, half, "--scaling", "adam")["largest"]
    lgo("verify", run, tmp_path / "way")
    # As a release that kept weights alone left its runs.
    manifest = json.loads((run / "train.json").read_text())
    del manifest["outputs"]["optimizer/step-00000008.pth"]
    (run / "train.json").write_text(json.dumps(manifest))
    results = _results(lgo, *line)
    assert results["sharpness_ratio"] is None
    assert "second moments were not saved with these weights" in results["stability_threshold_note"]


def test_changed_second_moments_are_refused(lgo: Lgo, tmp_path: Path) -> None:
    run = tmp_path / "adam"
    lgo("train", "--out", run, *SMALL, "--optimizer", "adam", "--save-every", 8, "--quiet")
    for state, weights in (
        ("state.pth", run),
        ("optimizer/step-00000008.pth", run / "checkpoints" / "step-00000008.pth"),
    ):
        assert "no weights alone" in lgo("hessian", run / state, code=3).stderr
        whole = (run / state).read_bytes()
        (run / state).write_bytes(b"x")
        error = lgo("hessian", weights, *FEW, code=3).stderr
        assert f"{run / state} is not the file that {run / 'train.json'} records" in error
        (run / state).unlink()
        error = lgo("hessian", weights, *FEW, code=3).stderr
        assert f"{run / state} is gone: it was the file that {run / 'train.json'} records" in error
        lgo(*shlex.split(error.rstrip("\n").rpartition(": lgo ")[2]), "--quiet")
        assert (run / state).read_bytes() == whole


def test_warm_start(lgo: Lgo, small_run: Path, tmp_path: Path) -> None:
    line = ("--top-k", 1, "--bottom-k", 0, "--analysis-samples", 64, "--no-audit")
    out = tmp_path / "before"
    near = sorted((small_run / "checkpoints").iterdir())[-1]
    lgo("hessian", near, "--out", out, *line, "--quiet")
    manifest = json.loads(lgo("hessian", small_run, *line, "--warm-start", out, "--json").stdout)
    assert manifest["request"]["config"]["warm_start"] == "warm_start.npz"
    assert manifest["request"]["inputs"]["warm_start.npz"]["produced_by"]
    cold = json.loads(lgo("hessian", small_run, *line, "--json").stdout)["results"]
    warm = manifest["results"]
    assert warm["largest"][0]["value"] == pytest.approx(cold["largest"][0]["value"], rel=2e-3)
    assert warm["num_matvecs"] < cold["num_matvecs"]
    error = lgo("hessian", small_run, *line, "--warm-start", small_run, code=2).stderr
    assert "is where this step's own results go" in error
    same = small_run / "checkpoints" / ".."
    assert lgo("hessian", small_run, *line, "--warm-start", same, code=2).stderr.startswith(
        f"lgo: error: --warm-start {same} is where this step's own results go\n"
    )
    assert (
        "has no hessian.json" in lgo("hessian", small_run, "--warm-start", tmp_path, code=3).stderr
    )
    other = tmp_path / "other"
    lgo("train", "--out", other, "--model-arg", "hidden=5", *SMALL[2:], "--quiet")
    error = lgo("hessian", other, *line, "--warm-start", out, code=3).stderr
    assert "this model has" in error
    (out / "hessian.npz").write_bytes(b"damaged")
    assert lgo("hessian", small_run, *line, "--warm-start", out, code=3).stderr == (
        f"lgo: error: {out / 'hessian.npz'} is not what lgo hessian wrote\n"
        "hint: run lgo hessian there again\n"
    )


def test_warm_start_is_of_the_ends_that_are_asked_for(
    lgo: Lgo, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--analysis-samples", 64, "--no-audit", "--quiet")
    lgo("hessian", small_run, "--top-k", 3, "--bottom-k", 2, "--out", tmp_path / "before", *few)
    vectors = load_arrays(tmp_path / "before" / "hessian.npz")["eigenvectors"]
    taken: list[Any] = []

    def look(problem: object, config: object, setting: Any, progress: object) -> None:
        taken.append(setting.warm_start)
        raise NumericsError("seen")

    monkeypatch.setattr("lgo_cli.curvature.analysis.analyze_spectrum", look)
    for top_k, bottom_k, rows in (
        (1, 1, [0, 3]),
        (4, 1, [0, 1, 2, 3]),
        (2, 0, [0, 1]),
        (0, 3, [3, 4]),
    ):
        line = ("--top-k", top_k, "--bottom-k", bottom_k, "--warm-start", tmp_path / "before")
        lgo("hessian", small_run, *line, *few, code=4)
        assert np.array_equal(taken.pop().numpy(), vectors[rows])


def test_clusters_are_of_ranks_from_one_at_either_end() -> None:
    pairs: Any = SimpleNamespace(top_k=2, clusters=((0, 1), (2, 3, 4)))
    assert _clusters(pairs) == {"largest": [[1, 2]], "smallest": [[1, 2, 3]]}


def test_blocks_that_chance_makes_more_than_the_whole_leave_no_share() -> None:
    def trace(norm: float) -> Any:
        estimate = SimpleNamespace(
            frobenius_norm=norm, frobenius_standard_error=0.1, frobenius_rounding=0.0
        )
        return SimpleNamespace(value=1.0, standard_error=0.1, rounding=0.0, estimate=estimate)

    def layer(name: str) -> Any:
        one = {"largest": 1.0, "residual_bound": 0.0, "error_estimate": 0.0}
        return SimpleNamespace(name=name, num_parameters=1, trace=trace(2.0), **one)

    found = _layers((layer("a"), layer("b")), trace(2.5))
    assert found.off_block_share == 0
    assert found.off_block_share_standard_error > 0


def test_trace_of_a_total(lgo: Lgo, small_run: Path) -> None:
    trace = _results(lgo, small_run, "--bottom-k", 0, "--trace-matvecs", 60)["trace"]
    assert trace["num_total_matvecs"] == 60
    results = _results(lgo, small_run, "--trace-matvecs", 5)
    assert results["trace"]["num_probes"] == 20
    assert any("all of --trace-matvecs 5: the trace took 20" in x for x in results["warnings"])


def test_a_single_layer_is_the_whole(lgo: Lgo, small_run: Path) -> None:
    results = _results(
        lgo, small_run, "--layers", "linear1", "--per-layer", "--top-k", 1, "--bottom-k", 0,
        "--trace-matvecs", 20, "--scaling", "elementwise",
    )  # fmt: skip
    (block,) = results["per_layer"]["blocks"]
    trace = results["trace"]
    assert block["trace"] == trace["value"]
    assert block["trace_standard_error"] == trace["standard_error"] > 0
    assert block["trace_rounding_allowance"] == trace["rounding_allowance"] > 0
    assert results["per_layer"]["off_block_share"] == 0
    assert results["per_layer"]["off_block_share_standard_error"] == 0


def test_rounding_is_said_where_chance_is_below_it(lgo: Lgo, small_run: Path) -> None:
    lgo("hessian", small_run, *FEW, "--per-layer")
    manifest = read_manifest(small_run / "hessian.json")
    lines = {line.split()[0]: line for line in summary_lines(manifest, small_run, None)}
    assert all("exact to" in lines[name] for name in ("trace", "linear1", "output"))
    results = manifest.results
    norm = results.frobenius_norm
    assert f"± {norm.standard_error:.2g} (Frobenius)" in lines["norm"]
    below = norm.model_copy(update={"rounding_allowance": norm.standard_error})
    results = results.model_copy(update={"frobenius_norm": below})
    lines = summary_lines(manifest.model_copy(update={"results": results}), small_run, None)
    assert any(f"exact to {norm.standard_error:.1e} (Frobenius)" in line for line in lines)


def test_density_of_all_eigenvalues(lgo: Lgo, small_run: Path) -> None:
    asked = ("--layers", "output.bias", "--density")
    density = _results(lgo, small_run, *asked)["density"]
    assert (density["num_nodes"], density["sampling_bound"]) == (10, 0)
    assert density["num_matvecs"] < 10  # beside those of the eigenvalues
    assert (
        "in Wasserstein distance (all eigenvalues)"
        in lgo("hessian", small_run, *FEW, *asked).stdout
    )


def test_strict_takes_the_trace_into_account(lgo: Lgo, small_run: Path) -> None:
    asked = ("--trace", "--trace-rtol", 1e-5, "--scaling", "elementwise", "--max-basis", 40)
    loose = _results(lgo, small_run, *asked)
    assert not loose["converged"]
    assert any("trace's standard error" in text for text in loose["warnings"])
    before = (small_run / "hessian.json").read_bytes()
    # One reading of what failed, of what is there already and of what is computed again.
    for again in ((), ("--force",)):
        error = lgo("hessian", small_run, *FEW, *asked, "--strict", *again, code=4).stderr
        assert "the trace did not converge" in error
        assert "hint: lgo hessian with a larger --trace-rtol" in error
    assert (small_run / "hessian.json").read_bytes() == before


def test_strict_takes_the_audit_of_what_is_there_already_into_account(
    lgo: Lgo, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Centred(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x - x.mean(dim=0))\n"
        "def build(): return Centred(20, 10)\n"
    )
    named = ("--model", "net.py:build")
    lgo("train", "--out", "run", *named, *SMALL[2:], "--quiet")
    line = ("hessian", "run", *named, *FEW, "--micro-batch-size", 32)
    assert "warning: the audit found: samples see each other" in lgo(*line).stderr
    before = Path("run/hessian.json").read_bytes()
    for again in ((), ("--dry-run",), ("--format", "pdf"), ("--force",)):
        error = lgo(*line, "--strict", *again, code=4).stderr
        assert error.startswith("lgo: error: the audit found: samples see each other")
    assert Path("run/hessian.json").read_bytes() == before
    assert "up to date" in lgo(*line).stderr


def test_nothing_is_called_exact_that_the_audit_doubts(lgo: Lgo, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "class Product(torch.autograd.Function):\n"
        "    @staticmethod\n"
        "    def forward(ctx, x, y):\n"
        "        ctx.save_for_backward(x, y)\n"
        "        return x * y\n"
        "    @staticmethod\n"
        "    def backward(ctx, grad):\n"
        "        x, y = ctx.saved_tensors\n"
        "        return grad * y, (grad * x.detach()).sum(0)\n"
        "class Scaled(torch.nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(20, 10)\n"
        "        self.scale = torch.nn.Parameter(torch.ones(10))\n"
        "    def forward(self, x):\n"
        "        return Product.apply(super().forward(x), self.scale)\n"
    )
    lgo("train", "--out", "run", "--model", "net.py:Scaled", *SMALL[2:], "--quiet")
    few = (*FEW, "--max-matvecs", 30)
    ran = lgo("hessian", "run", "--model", "net.py:Scaled", *few, "--trace", "--per-layer")
    assert "products are not symmetric" in ran.stderr
    assert "exact" not in ran.stdout
    assert ran.stdout.count("DOUBTFUL") >= 3  # trace, norm, layer


def test_small_subset_points_to_halves(lgo: Lgo, small_run: Path) -> None:
    warnings = _results(lgo, small_run, "--analysis-samples", 20)["warnings"]
    assert any("--halves shows the spread" in text for text in warnings)
    warnings = _results(lgo, small_run, "--analysis-samples", 20, "--halves")["warnings"]
    assert not any("--halves" in text for text in warnings)


@pytest.mark.parametrize("operator", ["ggn", "fisher", "empirical-fisher"])
def test_other_matrices_are_positive(lgo: Lgo, small_run: Path, operator: str) -> None:
    results = _results(lgo, small_run, "--operator", operator, "--bottom-k", 0)
    assert results["operator"] == operator
    assert results["sharpness_ratio"] is None
    assert all(pair["value"] > 0 for pair in results["largest"])
