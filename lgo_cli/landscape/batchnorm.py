"""What batch norm normalises by away from the run's point: four policies (theory.md, section 29).

In eval mode batch norm is affine with stored statistics, those of the checkpoint. At a displaced
point its inputs have other ones, so a surface of a network with batch norm is not one surface but
as many as there are answers to which statistics are meant.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lgo_cli.errors import InputError, UsageError
from lgo_cli.outputs import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from lgo_cli.config import BatchNormPolicy
    from lgo_cli.objective import Objective

_SIGNATURE = inspect.signature(F.batch_norm)
_RUNNING = ("running_mean", "running_var")


class BatchNorm:
    """A policy for the statistics of an objective's batch norms, wherever its parameters are.

    Batch norm is found by watching a pass, and switched in `F.batch_norm`, which modules and
    functional code share; modules and their modes stay as they are. Other ways to normalise, and
    TorchScript, are not seen.

    - `frozen`: the checkpoint's own running statistics everywhere. Nothing is done.
    - `recompute`: each point costs one more pass over the first samples of the probe set, by each
      micro-batch's own statistics and without dropout. Running mean and variance become the
      averages of the micro-batches' means and unbiased variances, weighted by their numbers of
      samples (Izmailov et al.'s 2018 `update_bn`, in torch, weighs micro-batches alike). They are
      constants to any derivative.
    - `interpolate`: running mean and variance are interpolated between the ends, linearly along a
      line, barycentrically on a plane through three. Beyond the ends negative weights become zero
      and the others are scaled to add up to one: a variance must not be negative.
    - `batch`: each micro-batch is normalised by its own mean and biased variance, as in training. A
      sample's loss depends on its micro-batch, and derivatives go through the statistics.

    Args:
        objective: Entered.
        policy: Which of the four.
        num_samples: Of the probe set, for `recompute`; all by default.
        ends: For `interpolate`, the buffers by name at each end (a whole state dict will do) under
            the end's coordinates: two on a line, three that span a plane.

    Attributes:
        policy: Which of the four; `frozen` also for a model without batch norm.
        num_samples: Samples that statistics are recomputed on; `None` in the other policies.
        buffers: The running statistics by their names in the model, a mean before its variance;
            empty without batch norm.
        unreachable: Why there are others, which no policy but `frozen` can follow.

    Raises:
        UsageError: if the model's batch norm cannot follow the policy, or nothing is given to
            interpolate between.
        InputError: if an end lacks running statistics.
    """

    def __init__(
        self,
        objective: Objective,
        policy: BatchNormPolicy,
        *,
        num_samples: int | None = None,
        ends: Mapping[tuple[float, ...], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.policy = policy
        self.num_samples: int | None = None
        self._objective = objective
        self.buffers, self.unreachable = _watch(objective)
        if policy == "frozen":
            return
        if self.unreachable or not self.buffers:
            reason = (
                self.unreachable or "a pass through the model sees no batch norm with statistics"
            )
            raise UsageError(f"--batchnorm {policy}: {reason}", hint="--batchnorm frozen")
        if policy == "recompute":
            self._samples = objective.samples.head(num_samples or len(objective.samples))
            self.num_samples = len(self._samples)
        elif policy == "interpolate":
            if not ends:
                raise UsageError(
                    "--batchnorm interpolate: only the run's own statistics are known here, there "
                    "is nothing to interpolate between",
                    hint="name other checkpoints by --to, or take --batchnorm recompute",
                )
            self._coordinates = np.array([*ends], dtype=np.float64)
            states = [self.statistics_of(state) for state in ends.values()]
            self._ends = {
                name: torch.stack([state[name] for state in states]) for name in self.buffers
            }

    @property
    def ends(self) -> list[Tensor]:
        """What `interpolate` goes between: coordinates and statistics; empty for the others."""
        if self.policy != "interpolate":
            return []
        return [torch.from_numpy(self._coordinates), *self._ends.values()]

    def statistics_of(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The running statistics among a checkpoint's tensors, in float64 on the device.

        Raises:
            InputError: if some are missing.
        """
        missing = [name for name in self.buffers if name not in state]
        if missing:
            raise InputError(f"the checkpoint has no running statistics {', '.join(missing)}")
        return {
            name: state[name].to(own.device, torch.float64) for name, own in self.buffers.items()
        }

    @contextmanager
    def at(self, *coordinates: float) -> Iterator[None]:
        """Follow the policy at the point where the parameters are, for passes through the model.

        Afterwards the buffers are what they were, to the bit.

        Args:
            coordinates: Of the point, in the coordinates of the ends.

        Raises:
            UsageError: if a micro-batch has one value for each channel, hence no variance.
        """
        if self.policy == "frozen":
            yield
            return
        if self.policy == "batch":
            with _Intercepting(_normalise_by_batch):
                yield
            return
        own = {name: buffer.clone() for name, buffer in self.buffers.items()}
        try:
            if self.policy == "recompute":
                self._recompute()
            else:
                weights = torch.from_numpy(self._weights(coordinates)).to(self._objective.device)
                for name, buffer in self.buffers.items():
                    buffer.copy_(torch.tensordot(weights, self._ends[name], dims=1))
            yield
        finally:
            for name, buffer in self.buffers.items():
                buffer.copy_(own[name])

    @torch.no_grad()
    def _recompute(self) -> None:
        for buffer in self.buffers.values():
            buffer.zero_()  # what is not finite would stay so in a moving average
        seen: dict[int, int] = {}

        def accumulate(call: dict[str, Any]) -> None:
            count = call["input"].numel() // call["input"].shape[1]  # values of each channel
            layer = id(call["running_mean"])
            seen[layer] = seen.get(layer, 0) + count
            # A moving average with these momenta is the weighted mean of all that came so far.
            call.update(training=True, momentum=count / seen[layer])

        with _Intercepting(accumulate):
            for batch in self._samples.batches(self._objective.micro_batch_size):
                call(self._objective.model, batch.inputs)

    def _weights(self, coordinates: tuple[float, ...]) -> np.ndarray:
        """Barycentric coordinates [n], of the point or of the hull's point that stands for it."""
        system = np.vstack([np.ones(len(self._coordinates)), self._coordinates.T])
        weights = np.linalg.solve(system, np.array([1.0, *coordinates])).clip(min=0.0)
        inside: np.ndarray = weights / weights.sum()
        return inside


def is_frozen(batchnorm: BatchNorm | None) -> bool:
    """Whether statistics are the checkpoint's own at every point, as they are without a policy."""
    return batchnorm is None or batchnorm.policy == "frozen"


def statistics_at(batchnorm: BatchNorm | None, *coordinates: float) -> AbstractContextManager[None]:
    """What is to be in force around passes at a point; nothing where no policy is given."""
    return nullcontext() if batchnorm is None else batchnorm.at(*coordinates)


class _Intercepting(TorchFunctionMode):
    """Lets a function change the arguments of each call to `F.batch_norm` with statistics.

    Args:
        change: Takes the call's arguments by name and changes them in place.
    """

    def __init__(self, change: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._change = change

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func is F.batch_norm:
            call = _SIGNATURE.bind(*args, **kwargs)
            call.apply_defaults()
            if call.arguments["running_mean"] is not None:
                self._change(call.arguments)
            args, kwargs = call.args, call.kwargs
        return func(*args, **kwargs)


def _normalise_by_batch(call: dict[str, Any]) -> None:
    call.update(running_mean=None, running_var=None, training=True)


@torch.no_grad()
def _watch(objective: Objective) -> tuple[dict[str, Tensor], str | None]:
    """Run two samples; return the running statistics in use by name, and why others are not."""
    names = {id(buffer): name for name, buffer in objective.model.named_buffers()}
    found: dict[str, Tensor] = {}
    unreachable = None

    def note(call: dict[str, Any]) -> None:
        nonlocal unreachable
        for tensor in (call[key] for key in _RUNNING):
            if id(tensor) in names:
                found[names[id(tensor)]] = tensor
            else:
                unreachable = "the model's batch norm takes statistics that are no buffers of it"

    with _Intercepting(note):
        call(objective.model, objective.samples.head(2).inputs)
    return found, unreachable
