"""What an analysis is of: the run's own model, data and loss, but for what is said anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lgo_cli.config import TrainConfig
from lgo_cli.data.registry import FILE_NAMES
from lgo_cli.errors import UsageError
from lgo_cli.factories import parse_factory, role_of
from lgo_cli.runs.inputs import differing, not_given, refuse_other

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lgo_cli.config import AnalysisConfig
    from lgo_cli.manifest import Manifest
    from lgo_cli.runs.checkpoints import Checkpoint
    from lgo_cli.runs.plan import Builder


def inherit(builder: Builder, config: AnalysisConfig, checkpoint: Checkpoint) -> None:
    """Name model, data and loss: those of the config, or else of the checkpoint's training.

    Raises:
        UsageError: if neither says what they are, or they are code that is not trusted.
        InputError: if they are no longer what the training recorded.
    """
    run = _Run(builder, config, *(checkpoint.trained or (None, checkpoint.directory)))
    for name in ("train_samples", "label_smoothing"):
        builder.set(name, run.setting(name))
    if config.model is None and run.trained is None:
        raise UsageError(
            f"{checkpoint.path} comes with no train.json that says what it is",
            hint="name its model and data: --model NAME --dataset NAME",
        )
    run.name_code("model")
    if config.dataset is None and run.trained is None:
        raise UsageError(
            f"{checkpoint.path} comes with no train.json that says what data it is for",
            hint="name its data: --dataset NAME",
        )
    run.name_dataset()
    run.name_code("loss")


@dataclass(frozen=True)
class _Run:
    """What an analysis is asked of, and where: the run's training, if it is known.

    Attributes:
        builder: Is told what they are.
        config: What is said anew.
        trained: The training's manifest.
        directory: Where that stands.
    """

    builder: Builder
    config: AnalysisConfig
    trained: Manifest | None
    directory: Path

    def setting(self, name: str) -> Any:
        """A field of the config; where that does not say it, of the training."""
        given = getattr(self.config, name)
        return self._recorded(name) if given is None else given

    def name_code(self, key: Literal["model", "loss"]) -> None:
        """A model or loss that is named anew; or the run's own, whose code is the same still."""
        role = f"{key}.py"
        code = self._digests(role)
        named = getattr(self.config, key)
        if named is None and self.trained is not None:
            self.builder.name_code(key, self._own(key), self._arguments(key))
            self._check_same(code, f"--{key}")
            self._check_arguments(key)
            return
        named = self._recorded(key) if named is None else named
        self.builder.name_code(key, named, getattr(self.config, f"{key}_arg"))
        changed = differing(self.builder.inputs, code) if role in self.builder.inputs else []
        if changed:
            names = ", ".join(name.removeprefix(f"{role}/") for name in changed)
            self.builder.warnings.append(f"the {key}'s code has changed since the run: {names}")

    def name_dataset(self) -> None:
        """Data that are named anew; or the run's own, the same still."""
        builder, trained = self.builder, self.trained
        if self.config.dataset is not None or trained is None:
            builder.name_dataset(str(self.config.dataset), self.config.dataset_arg)
            return
        data = self._digests("data.py", "data.npz", *FILE_NAMES)
        if data and builder.execution.data_root is None:
            located = Path(str(trained.place(next(iter(data)), self.directory))).parent
            if located.is_dir():
                builder.data_root = located
        if "data.npz" in data:
            dataset = str(trained.place("data.npz", self.directory))
        else:
            dataset = self._own("dataset")
        builder.name_dataset(dataset, self._arguments("dataset"))
        self._check_same(data, "--dataset")
        self._check_arguments("dataset")

    def _recorded(self, name: str) -> Any:
        default = TrainConfig.model_fields[name].get_default(call_default_factory=True)
        return default if self.trained is None else self.trained.request.config.get(name, default)

    def _digests(self, *roles: str) -> dict[str, str]:
        """SHA-256 by name of the training's inputs that have these roles."""
        inputs = {} if self.trained is None else self.trained.request.inputs
        return {name: ref.sha256 for name, ref in inputs.items() if role_of(name) in roles}

    def _arguments(self, key: str) -> dict[str, Any]:
        """The training's, and over them what is said anew."""
        return {**self._recorded(f"{key}_arg"), **getattr(self.config, f"{key}_arg")}

    def _own(self, key: str) -> str:
        """Name the run's own model, data set or loss, if that may be used without being named.

        Code that a manifest names is not run on the manifest's word alone.
        """
        assert self.trained is not None
        recorded = str(self._recorded(key))
        factory = parse_factory(recorded)
        if factory is None:
            return recorded
        path = self.trained.place(factory.source, self.directory)
        named = f"{path}:{factory.name}" if factory.is_file else recorded
        if not self.builder.execution.trust_code:
            raise UsageError(
                f"this run's {key} is code, {named}, which runs only if you name it",
                hint=f"say --{key} {named}, or --trust-code if you know where the run comes from",
            )
        return named

    def _check_arguments(self, key: str) -> None:
        role = f"{key}_arg"
        given = getattr(self.config, role)
        self._check_same(not_given(self._digests(role), given), f"--{key}-arg")

    def _check_same(self, wanted: Mapping[str, str], flag: str) -> None:
        hint = f"put the old one back, or use it as it is by naming it: {flag}"
        recorded = "the file that the run was trained with"
        refuse_other(self.builder.inputs, self.builder.files, wanted, recorded, hint)
