"""From what the user named to a request: find the inputs, check them, resolve every name.

Nothing here computes or imports torch, so that an answer such as "up to date" comes at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lgo_cli.config import (
    DEFAULT_RUN,
    AnalysisConfig,
    ContourConfig,
    HessianConfig,
    InterpConfig,
    StepConfig,
    TrainConfig,
)
from lgo_cli.data.registry import DEFAULT_DATA, input_files, resolve_dataset
from lgo_cli.errors import InputError, UsageError
from lgo_cli.factories import parse_factory, recorded_name, source_files
from lgo_cli.files import portable_path, sha256_file
from lgo_cli.loss_names import resolve_loss
from lgo_cli.manifest import (
    ALGORITHM_VERSIONS,
    InputRef,
    Request,
    damaged_outputs,
    fingerprint,
    read_manifest,
)
from lgo_cli.models.registry import resolve_model
from lgo_cli.parsing import parse_config
from lgo_cli.runs.checkpoints import (
    Checkpoint,
    default_run,
    find_checkpoint,
    own_output,
    refuse_unrecorded,
)
from lgo_cli.runs.eigenvectors import saved_eigenvectors
from lgo_cli.runs.exclusive import refuse_exclusive
from lgo_cli.runs.inherited import inherit
from lgo_cli.runs.inputs import other_objective
from lgo_cli.runs.names import optimizer_name, saved_step, writable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lgo_cli.config import Execution
    from lgo_cli.results import TrainResults


@dataclass
class Plan:
    """A step, ready to be looked up or carried out.

    Attributes:
        config: The user's config with model, data and loss filled in; names of files and factories
            are real paths.
        request: What is recorded and hashed; holds no path.
        out: Where the outputs go.
        files: Path of each input.
        data_root: Where the data set's files are.
        trained: Results of the training that made the weights, if known.
        is_of_training: Whether model, data and loss are those of that training.
        step: Optimiser steps done when the weights were saved, if known.
        warnings: What to tell the user whatever the numbers are.
    """

    config: StepConfig
    request: Request
    out: Path
    files: dict[str, Path]
    data_root: Path
    trained: TrainResults | None = None
    is_of_training: bool = False
    step: int | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def command(self) -> str:
        """Which step it is."""
        return self.request.command

    @property
    def manifest_path(self) -> Path:
        """Where the step's manifest stands when it is done."""
        return self.out / f"{self.command}.json"

    @property
    def fingerprint(self) -> str:
        """Digest of the request."""
        return fingerprint(self.request)

    @property
    def locations(self) -> dict[str, str]:
        """Inputs relative to the manifest."""
        return {name: portable_path(path, self.out) for name, path in self.files.items()}


class Builder:
    """Collects inputs while names are resolved."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.values: dict[str, Any] = {}
        self.recorded: dict[str, Any] = {}
        self.files: dict[str, Path] = {}
        self.inputs: dict[str, InputRef] = {}
        self.warnings: list[str] = []
        self.data_root = execution.data_root or DEFAULT_DATA

    def add(self, name: str, path: Path, produced_by: str | None = None) -> None:
        """Note a file as an input."""
        self.files[name] = path
        self.inputs[name] = InputRef(sha256=sha256_file(path), produced_by=produced_by)

    def add_checkpoint(self, name: str, checkpoint: Checkpoint) -> None:
        """Note a checkpoint as an input."""
        self.files[name] = checkpoint.path
        self.inputs[name] = InputRef(sha256=checkpoint.sha256, produced_by=checkpoint.produced_by)

    def set(self, name: str, value: Any, recorded: Any = None) -> None:
        """Set a field; `recorded` stands for it in the request where the value is a path."""
        self.values[name] = value
        self.recorded[name] = value if recorded is None else recorded

    def name_code(self, key: Literal["model", "loss"], named: str, given: dict[str, Any]) -> None:
        """A model or a loss by its name, with its arguments; one's own is code, and an input."""
        arguments = {"model": resolve_model, "loss": resolve_loss}[key](named, given)
        self.set(f"{key}_arg", arguments)
        factory = parse_factory(named)
        if factory is not None:
            for name, path in source_files(factory, f"{key}.py").items():
                self.add(name, path)
            self._add_files(f"{key}_arg", arguments)
        self.set(key, named, recorded_name(named, f"{key}.py"))

    def _add_files(self, role: str, arguments: Mapping[str, Any]) -> None:
        """Files that arguments of a factory name: what it makes of them changes with them."""
        for name, value in arguments.items():
            several = isinstance(value, list)
            for index, each in enumerate(value if several else [value]):
                if isinstance(each, str) and os.path.isfile(each):
                    self.add(f"{role}/{name}/{index}" if several else f"{role}/{name}", Path(each))

    def name_dataset(self, dataset: str, dataset_arg: dict[str, Any]) -> None:
        """A data set by its name, with its arguments; its files are inputs."""
        arguments = resolve_dataset(dataset, dataset_arg)
        self.set("dataset_arg", arguments)
        if self.execution.download_data:
            from lgo_cli.data.loading import download_dataset  # imports torch

            download_dataset(dataset, self.data_root)
        for name, path in input_files(dataset, self.data_root).items():
            self.add(name, path)
        if parse_factory(dataset) is not None:
            self._add_files("dataset_arg", arguments)
        is_array = dataset.endswith(".npz")
        self.set("dataset", dataset, "data.npz" if is_array else recorded_name(dataset, "data.py"))

    def plan(self, config: StepConfig, out: Path, trained: TrainResults | None = None) -> Plan:
        """What all that makes of a config."""
        request = Request(
            command=config.command,
            algorithm_version=ALGORITHM_VERSIONS[config.command],
            config={**config.model_dump(mode="json"), **self.recorded},
            inputs=self.inputs,
        )
        return Plan(
            config=parse_config(type(config), {**config.model_dump(mode="json"), **self.values}),
            request=request,
            out=out,
            files=self.files,
            data_root=self.data_root,
            trained=trained,
            warnings=self.warnings,
        )


def _plan_training(config: TrainConfig, execution: Execution) -> Plan:
    builder = Builder(execution)
    builder.name_code("model", config.model, config.model_arg)
    builder.name_code("loss", config.loss, config.loss_arg)
    builder.name_dataset(config.dataset, config.dataset_arg)
    out = execution.out or DEFAULT_RUN
    if config.init is not None:
        begun = find_checkpoint(Path(config.init))
        is_same = begun.trained is not None and begun.trained[1].resolve() == out.resolve()
        if is_same or writable("train", [portable_path(begun.path, out)]):
            raise UsageError(
                f"--init {config.init} is of the run that this training would replace",
                hint="--out DIR",
            )
        builder.add_checkpoint("init.pth", begun)
        builder.set("init", config.init, "init.pth")
    return builder.plan(config, out)


def _plan_analysis(config: AnalysisConfig, run: Path | None, execution: Execution) -> Plan:
    """Model, data and loss are the run's; what the config says itself overrides."""
    out = execution.out
    checkpoint = find_checkpoint(default_run(config.command, out) if run is None else run)
    builder = Builder(execution)
    builder.add_checkpoint("model.pth", checkpoint)
    inherit(builder, config, checkpoint)
    if isinstance(config, InterpConfig):
        _add_target(builder, config, checkpoint)
    out = checkpoint.directory if out is None else out
    if isinstance(config, ContourConfig):
        _add_plane(builder, config, checkpoint, out)
    if isinstance(config, HessianConfig):
        _add_optimizer(builder, config, checkpoint)
        _add_warm_start(builder, config, out)
    plan = builder.plan(config, out, checkpoint.training)
    if plan.trained is not None and checkpoint.trained is not None:
        plan.is_of_training = other_objective(plan.request, checkpoint.trained[0].request) is None
        plan.step = saved_step(checkpoint.path.name, plan.trained.num_steps)
    along = plan.request.config.get("plane") or plan.request.config.get("direction")
    if along in ("eigen", "random+eigen"):
        num_vectors = 2 if isinstance(config, ContourConfig) and along == "eigen" else 1
        places = dict.fromkeys((out, checkpoint.directory))
        found = saved_eigenvectors(places, plan.request, num_vectors)
        if found is not None:  # else they will be computed
            npz, reference = found
            inputs = {**plan.request.inputs, "hessian.npz": reference}
            request = plan.request.model_copy(update={"inputs": inputs})
            return replace(plan, request=request, files={**plan.files, "hessian.npz": npz})
    return plan


def _add_target(builder: Builder, config: InterpConfig, checkpoint: Checkpoint) -> None:
    refuse_exclusive(config)
    if config.direction is not None:
        return
    wanted = config.to or ("init",)
    names = [f"to_{index}" for index in range(len(wanted))] if config.matrix else ["to"]
    hint = "say where to go: --to RUN, or --direction"
    _add_ends(builder, dict(zip(names, wanted, strict=True)), checkpoint, hint)


def _add_ends(
    builder: Builder, wanted: Mapping[str, str], checkpoint: Checkpoint, hint: str
) -> None:
    """Other checkpoints, as --to names them by the names of their inputs; `init` is the run's."""
    for name, named in wanted.items():
        if named == "init":
            builder.add_checkpoint(name, own_output(checkpoint, "init.pth", hint))
        else:
            builder.add_checkpoint(name, find_checkpoint(Path(named)))
    recorded = ["init" if named == "init" else name for name, named in wanted.items()]
    builder.set("to", [str(builder.files[name]) for name in wanted], recorded)


def _add_plane(builder: Builder, config: ContourConfig, checkpoint: Checkpoint, out: Path) -> None:
    plane = config.kind
    builder.set("plane", plane)
    if plane == "file":
        names = [f"directions_{index}" for index in range(len(config.directions))]
        for name, named in zip(names, config.directions, strict=True):
            if not Path(named).is_file():
                raise InputError(f"--directions {named}: there is no such file")
            if Path(named).resolve() == (out / "contour.npz").resolve():
                raise UsageError(f"--directions {named} is what this step writes", hint="--out DIR")
            builder.add(name, Path(named))
        builder.set("directions", [str(builder.files[name]) for name in names], names)
    elif plane == "checkpoints":
        wanted = {f"to_{index}": named for index, named in enumerate(config.to)}
        _add_ends(builder, wanted, checkpoint, "name other checkpoints: --to A --to B")
    elif plane == "pca":
        hint = "train with --save-every N, which keeps checkpoints on the way"
        builder.add_checkpoint("init.pth", own_output(checkpoint, "init.pth", hint))
        assert checkpoint.training is not None  # it has an init.pth
        kept = checkpoint.training.checkpoints
        if not kept:
            raise InputError(f"the run of {checkpoint.path} kept no checkpoints", hint=hint)
        for name in kept:
            builder.add_checkpoint(name, own_output(checkpoint, name, hint))


def _add_optimizer(builder: Builder, config: HessianConfig, checkpoint: Checkpoint) -> None:
    """Adam's second moments, where the run has saved them with these very weights."""
    trained = checkpoint.training
    optimizer = trained.recipe.optimizer if trained else "unknown"
    if config.include_weight_decay and optimizer in ("unknown", "adamw"):
        raise UsageError(
            f"--include-weight-decay: the run's optimiser is {optimizer}, "
            "which has no decay term in its loss",
        )
    name = optimizer_name(checkpoint.path.name)
    outputs = checkpoint.trained[0].outputs if checkpoint.trained else {}
    saved = trained is not None and trained.recipe.is_adaptive and name in outputs
    if config.scaling == "adam" and not saved:
        raise UsageError(
            "--scaling adam needs weights of a run trained by adam or adamw with which its second "
            f"moments were saved; {checkpoint.path} is none",
            hint="lgo train --optimizer adam, then lgo hessian RUN --scaling adam",
        )
    if saved and checkpoint.trained is not None:
        manifest, directory = checkpoint.trained
        refuse_unrecorded(directory / name, outputs[name], directory)
        builder.add("state.pth", directory / name, manifest.fingerprint)


def _add_warm_start(builder: Builder, config: HessianConfig, out: Path) -> None:
    if config.warm_start is None:
        return
    directory = Path(config.warm_start)
    if directory.resolve() == out.resolve():
        raise UsageError(
            f"--warm-start {directory} is where this step's own results go", hint="--out DIR"
        )
    if not (directory / "hessian.json").is_file():
        raise InputError(
            f"--warm-start {directory} has no hessian.json", hint=f"lgo hessian {directory}, first"
        )
    found = read_manifest(directory / "hessian.json")
    damaged = damaged_outputs(found, directory)
    if damaged:
        raise InputError(next(iter(damaged.values())), hint="run lgo hessian there again")
    builder.add("warm_start.npz", directory / "hessian.npz", found.fingerprint)
    builder.set("warm_start", str(directory), "warm_start.npz")


def plan_step(config: StepConfig, run: Path | None, execution: Execution) -> Plan:
    """Resolve any step.

    Args:
        config: What is asked.
        run: For an analysis, the run or checkpoint.
        execution: How and where.

    Raises:
        UsageError: if a name or an argument is unknown, or something must be said.
        InputError: if an input is missing or not what its manifest says.
    """
    if isinstance(config, TrainConfig):
        return _plan_training(config, execution)
    if isinstance(config, AnalysisConfig):
        return _plan_analysis(config, run, execution)
    raise TypeError(f"no step takes a {type(config).__name__}")
