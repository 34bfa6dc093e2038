"""The load phase: a plan's inputs as a model and tensors on a device."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lgo_cli import checkpoint
from lgo_cli.config import AnalysisConfig, TrainConfig
from lgo_cli.data.loading import load_dataset
from lgo_cli.errors import MachineError, UsageError, dtype_name
from lgo_cli.factories import parse_factory
from lgo_cli.labels import num_ignored, num_labels
from lgo_cli.landscape.batchnorm import BatchNorm
from lgo_cli.loss import LossFunction
from lgo_cli.models.building import build_model
from lgo_cli.modes import own_defaults, own_modes, use_true_float32
from lgo_cli.objective import Objective
from lgo_cli.outputs import first_outputs, model_failures
from lgo_cli.results import Measured, counted
from lgo_cli.samples import Samples, check_outputs, refuse_unknown
from lgo_cli.vectors import ParameterLayout, flatten

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lgo_cli.data.dataset import Dataset
    from lgo_cli.runs.plan import Plan


@dataclass(frozen=True)
class Loaded:
    """A plan's model, with the checkpoint in it where the step has one, and its data.

    Attributes:
        model: On the device, in train mode.
        dataset: On the CPU, the training split cut to `train_samples`.
        loss_function: Of a sample.
        device: Where to compute.
        warnings: What is worth saying about the inputs.
    """

    model: nn.Module
    dataset: Dataset
    loss_function: LossFunction
    device: torch.device
    warnings: list[str]

    def samples(self, split: str, num_samples: int | None = None) -> Samples:
        """The first rows of a split in stored order, on the device."""
        dataset = self.dataset
        inputs, labels = (
            (dataset.x_train, dataset.y_train)
            if split == "train"
            else (dataset.x_test, dataset.y_test)
        )
        head = Samples(inputs, labels).head(num_samples or len(labels))
        return head.to(self.device, torch.float32)


def load(plan: Plan, device: str) -> Loaded:
    """Build the model, fill in its weights and load the data.

    Raises:
        InputError: if a file is corrupt or does not fit.
        MachineError: if there is no such device.
    """
    config = plan.config
    target = find_device(device)
    dataset = load_dataset(str(config.dataset), config.dataset_arg, plan.data_root)
    dataset = dataset.head(config.train_samples)
    warnings = list(plan.warnings)
    if config.train_samples and len(dataset.y_train) < config.train_samples:
        warnings.append(
            f"the data set has only {counted(len(dataset.y_train), 'training sample')}, "
            f"not {config.train_samples}"
        )
    model = build_model(
        str(config.model),
        config.model_arg,
        dataset.input_shape,
        dataset.num_classes,
        config.seed,
    )
    use_true_float32()  # once more: one's own files may have said otherwise
    weights = "init.pth" if isinstance(config, TrainConfig) else "model.pth"
    if weights in plan.files:
        path = plan.files[weights]
        state = checkpoint.load_fitting(path, model)
        with model_failures(f"{path} cannot be put into the model"):
            model.load_state_dict(state)
    if isinstance(config, AnalysisConfig):
        warnings += probe_warnings(dataset, config.analysis_samples)
    smoothing = config.label_smoothing or 0.0
    loss = LossFunction.named(str(config.loss), config.loss_arg, smoothing)
    for split, labels in (("y_train", dataset.y_train), ("y_test", dataset.y_test)):
        loss.check(labels, f"{config.dataset}: {split}")
    loaded = Loaded(model.to(target), dataset, loss, target, warnings)
    if parse_factory(str(config.model)):
        warnings += output_warnings(loaded)
    return loaded


ROUNDED_SUM = 1e-3
"""How far probabilities may be from summing to one, half precision inside a model included."""


def output_warnings(loaded: Loaded) -> list[str]:
    """What to say of a model with more outputs than the data have classes, or probabilities."""
    with torch.random.fork_rng(devices=[loaded.device] if loaded.device.type == "cuda" else []):
        loaded.model.eval()
        outputs = check_outputs(loaded.model, loaded.samples("train", 2), loaded.loss_function)
        if loaded.loss_function.name == "binary_cross_entropy":  # a few may happen to look so
            outputs = first_outputs(loaded.model, loaded.samples("train", 64).inputs)
        loaded.model.train()
    if loaded.loss_function.function is not None:
        return []  # what its outputs are to be it says itself
    num_outputs, num_classes = outputs.shape[-1], loaded.dataset.num_classes
    refuse_unknown(loaded.dataset.y_test, num_outputs)
    warnings = []
    if not loaded.dataset.y_train.is_floating_point() and num_outputs != num_classes:
        warnings.append(
            f"the model puts out {counted(num_outputs, 'class')}, the data have {num_classes}: "
            "the others are in the loss too; its factory may take "
            f"--model-arg num_classes={num_classes}"
        )
    loss, positive = loaded.loss_function.name, bool((outputs >= 0).all())
    sums_to_one = bool(((outputs.double().sum(dim=-1) - 1).abs() < ROUNDED_SUM).all())
    if loss == "cross_entropy" and positive and sums_to_one:
        warnings.append(
            "the model puts out probabilities (none is negative, they sum to one), which "
            "cross_entropy takes for logits: leave out the softmax at its end"
        )
    if loss == "binary_cross_entropy" and positive and bool((outputs <= 1).all()):
        warnings.append(
            "the model puts out probabilities (all are in [0, 1]), which binary_cross_entropy "
            "takes for logits: leave out the sigmoid at its end"
        )
    return warnings


def probe_warnings(dataset: Dataset, num_samples: int) -> list[str]:
    """What to say of the probe set: too small a data set, classes that it misses."""
    warnings = []
    available = len(dataset.y_train)
    if available < num_samples:
        them = (
            "the one training sample is"
            if available == 1
            else f"all {available} training samples are"
        )
        warnings.append(f"{them} measured, not {num_samples}")
    labels = dataset.y_train[:num_samples]
    if dataset.has_real_targets or num_labels(labels) > 1:
        return warnings  # no classes; or words, of which few are in any text
    soft = labels.is_floating_point()
    seen = (labels > 0).any(dim=0).sum() if soft else len(torch.unique(labels))
    missing = dataset.num_classes - int(seen)
    if missing:
        used, which, more = len(labels), "", ""
        if used < available:
            which = f"first {used} " if used > 1 else "first "
            more = ": raise --analysis-samples"
        them = "sample misses" if used == 1 else "samples miss"
        warnings.append(
            f"the {which}training {them} {missing} of {dataset.num_classes} classes{more}"
        )
    return warnings


def find_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:1` into a device.

    Raises:
        UsageError: if it is no such name.
        MachineError: if this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if not re.fullmatch("(cpu|cuda)(:[0-9]{1,3})?", name):
        raise UsageError(f"--device: no device is called {name!r}", hint="auto, cpu, cuda, cuda:1")
    if kind == "cuda" and not int(index or 0) < torch.cuda.device_count():
        raise MachineError(
            f"there is no {name} on this machine: PyTorch finds {torch.cuda.device_count()} GPUs",
            hint="--device cpu",
        )
    return torch.device(name)


def flat_weights(loaded: Loaded, path: Path, dtype: torch.dtype) -> Tensor:
    """The trainable parameters of another checkpoint of the same model, as a flat vector [P].

    Raises:
        InputError: if it is unreadable or of another model.
    """
    state = checkpoint.load_fitting(path, loaded.model)
    names = ParameterLayout.of(loaded.model).names
    return flatten(state[name] for name in names).to(loaded.device, dtype)


def objective(plan: Plan, loaded: Loaded) -> Objective:
    """The objective of an analysis, on its probe set.

    Raises:
        TypeError: if the plan is of a training.
    """
    config = plan.config
    if not isinstance(config, AnalysisConfig):
        raise TypeError("only analyses have a probe set")
    return Objective(
        loaded.model,
        loaded.samples("train", config.analysis_samples),
        loaded.loss_function,
        micro_batch_size=config.micro_batch_size,
        dtype=torch.float64 if config.dtype == "float64" else torch.float32,
    )


def measured(
    objective: Objective,
    loaded: Loaded,
    num_test_samples: int | None = None,
    batchnorm: BatchNorm | None = None,
) -> Measured:
    """State what an objective is, for the record."""
    batchnorm = batchnorm or BatchNorm(objective, "frozen")
    return Measured(
        loss=objective.loss_function.name,
        label_smoothing=objective.loss_function.label_smoothing,
        batchnorm=batchnorm.policy if batchnorm.buffers else "none",
        batchnorm_samples=batchnorm.num_samples,
        dtype=dtype_name(objective.dtype),
        num_samples=len(objective.samples),
        num_available=len(loaded.dataset.y_train),
        num_test_samples=num_test_samples,
        micro_batch_size=objective.micro_batch_size,
        labels_per_sample=num_labels(objective.samples.labels),
        num_ignored_labels=num_ignored(objective.samples.labels),
    )


@contextmanager
def machine_settings(num_threads: int | None, device: str) -> Iterator[None]:
    """Threads, and on CUDA deterministic algorithms where there are any.

    Modes and defaults of PyTorch are a fresh process's, as the command line has them.

    The process's own are put back, but for the workspaces of cuBLAS, which reads them once.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # On a CPU nothing is set: the call imports a compiler, for a second.
    changes = device != "cpu" and torch.cuda.is_available()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if changes:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with own_modes(), own_defaults():
            yield
    finally:
        torch.set_num_threads(threads)
        if changes:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
