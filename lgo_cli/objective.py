"""The one place where model, data and loss meet.

L(θ) = (1/N) Σ ℓ(f_θ(x_n), y_n) over a fixed set of samples (theory.md, section 1). Shapes: P
parameters, N samples, C classes; "..." are the axes along which a sample has several labels,
usually none.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from lgo_cli.buffers import (
    buffer_tables,
    forget,
    keepers,
    modes_of,
    moved_buffers,
    put_back,
    set_modes,
)
from lgo_cli.determinism import coupling, nondeterministic_module, sensitivities
from lgo_cli.errors import LgoError, NumericsError, UsageError, a_kind
from lgo_cli.gradients import gradients
from lgo_cli.loss import LossFunction, Recording
from lgo_cli.modes import own_modes, uncompiled
from lgo_cli.outputs import call
from lgo_cli.samples import (
    Evaluation,
    Samples,
    check_outputs,
    default_micro_batch_size,
    evaluate_model,
)
from lgo_cli.second_derivatives import ByDefinition, twice_differentiable
from lgo_cli.vectors import ParameterLayout, combine, flatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NUM_CALLS = 8
"""Calls of a model in each of the two evaluations that must agree."""

CALL_SIZE = 4
"""Samples in each of them."""

SAME = 1e-5
"""Difference, relative to the largest output, up to which two ways to compute them are one."""

COUPLED = 1e-3
"""Coupling from which on samples see each other. Kernels that depend on the size of a call move
outputs by 1e-7, in float64 too where a part of a model computes in float32, and models may amplify
that; attention over the batch and normalisation by its statistics have 5e-3 to 1."""


class Objective:
    """Mean loss over fixed samples as a function of the flat parameter vector θ [P].

    A context manager: inside, the model is in eval mode (but see `_follow_parameters`), and its
    trainable parameters are views of one flat contiguous buffer: moving to a point is one fused
    pass. On leaving, parameters, buffers, modes, `requires_grad` and the random generators' states
    are exactly what they were (the model's own tensors are set aside, never written). Batch norm
    uses its running statistics wherever θ goes, unless landscape/batchnorm.py puts others in their
    place for a while. Gradients are on, autocast is off, and nothing runs compiled, whatever
    surrounds it.

    Args:
        model: Maps inputs [n, *input_shape] to outputs [n, ..., C]; sits on the device to use.
        samples: What the mean runs over.
        loss_function: Loss of each sample.
        micro_batch_size: Samples per forward pass; `None` takes `default_micro_batch_size`. Moves
            no more than the last bits of a result.
        dtype: Of parameters and arithmetic inside; sums over samples are always float64.
        checked: Whether this model is known to be fit for such samples in this dtype, as inside
            another objective. Nothing is evaluated on entering then, and there is no `center`.

    Raises:
        TypeError, UsageError: if the model is no module, the loss no `LossFunction`, or a
            micro-batch has no sample.
        RuntimeError: on entering, if it is entered already; by what it measures, if it is not.
        InputError: on entering, if the model cannot take the samples, its outputs do not fit their
            labels, or the loss is none of such labels.
        NumericsError: on entering, if the loss is not finite, or if two evaluations differ.
    """

    theta: Tensor
    """The centre [P]: where the parameters were on entering. Not to be written."""

    center: Evaluation
    """The untouched model on the samples, measured before any parameter moves."""

    sensitivity: float = 0.0
    """Σ (|ℓ| + ‖∂ℓ/∂z‖₁ ‖z‖_∞) over Σ |ℓ|, of the first samples at the centre."""

    coupling: float | None = None
    """How far the losses of the first samples at the centre depend on which are evaluated with them
    (`determinism.coupling`, of `CALL_SIZE` and of a micro-batch), zero in exact arithmetic; `None`
    if the calls are the same, or nothing was evaluated."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        loss_function: LossFunction | None = None,
        *,
        micro_batch_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        checked: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"the model is {a_kind(model)}, not an nn.Module")
        if not isinstance(loss_function, LossFunction | None):
            raise TypeError(f"the loss is {a_kind(loss_function)}, not a LossFunction")
        if micro_batch_size is not None and micro_batch_size < 1:
            raise UsageError(f"a micro-batch of {micro_batch_size} samples")
        self.model = model
        self.layout = ParameterLayout.of(model)
        self._is_recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
        self.loss_function = loss_function or LossFunction()
        self.micro_batch_size = micro_batch_size or default_micro_batch_size(model, samples.labels)
        self.dtype = dtype
        self._is_checked = checked
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.samples = samples.to(self.device, dtype)
        self._own_data: list[tuple[Tensor, Tensor]] = []
        self._has_keepers = False

    @property
    def dim(self) -> int:
        """P."""
        return self.layout.dim

    def replaced(
        self,
        *,
        samples: Samples | None = None,
        dtype: torch.dtype | None = None,
        checked: bool = False,
    ) -> Objective:
        """The same objective on other samples or in another dtype, to be entered."""
        return Objective(
            self.model,
            self.samples if samples is None else samples,
            self.loss_function,
            micro_batch_size=self.micro_batch_size,
            dtype=dtype or self.dtype,
            checked=checked,
        )

    def __enter__(self) -> Self:
        if self._own_data:
            raise RuntimeError("the objective is already entered")
        tensors = [*self.model.parameters(), *self.model.buffers()]
        self._own_data = [(tensor, tensor.data) for tensor in tensors]
        self._own_buffers = buffer_tables(self.model)
        self._modes = modes_of(self.model)
        on_gpus = torch.cuda.get_rng_state_all() if self.device.type == "cuda" else []
        self._rng_states = (torch.get_rng_state(), on_gpus)
        self._surroundings = ExitStack()
        self._surroundings.enter_context(own_modes())
        self._surroundings.enter_context(uncompiled())
        try:
            self._prepare(tensors)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _prepare(self, tensors: Sequence[Tensor]) -> None:
        if not self._is_checked:  # or it is in the modes that were found to be right
            self.model.eval()
        for tensor in tensors:
            dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
            moves = isinstance(tensor, nn.Parameter) and tensor.requires_grad  # to the buffer
            tensor.data = tensor.data.to(dtype, copy=not moves)
        if not self._is_checked:
            self.loss_function.check(self.samples.labels)
            check_outputs(self.model, self.samples, self.loss_function)
            self._measure_center()
            self._follow_parameters()
        self.theta = flatten(parameter.detach() for parameter in self.parameters)
        self._buffer = self.theta.clone()
        needs_definition = False
        for parameter, view in zip(self.parameters, self.layout.split(self._buffer), strict=True):
            parameter.data = view
            # Of real and imaginary parts, which the model may want to view as complex numbers.
            is_pairs = view.shape[-1:] == (2,)
            needs_definition |= is_pairs and bool(view.storage_offset() % 2)
        if needs_definition:
            self._surroundings.enter_context(ByDefinition())

    def _restore(self) -> None:
        if self._has_keepers:
            self.model.eval()  # as it was when they were set aside
        for tensor, data in self._own_data:
            tensor.data = data
        self._own_data = []
        if self._has_keepers:
            self.model.train()
        set_modes(self._modes)
        cpu_state, cuda_states = self._rng_states
        torch.set_rng_state(cpu_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        put_back(self._own_buffers)
        self._surroundings.close()

    @torch.no_grad()
    def _follow_parameters(self) -> None:
        """Have what modules keep of their parameters in eval mode made anew at each call.

        Such a module is in training mode, without what it contains, where outputs stay the same:
        what it keeps may have been made without gradients. Where not, it forgets before each call.
        """
        keeping = keepers(self.model)
        self._has_keepers = bool(keeping)
        inputs = self.samples.head(self.micro_batch_size).inputs
        if keeping and not train_alone(self.model, keeping, inputs):
            self._surroundings.callback(self.model.register_forward_pre_hook(forget).remove)

    @torch.no_grad()
    def _measure_center(self) -> None:
        """Measure the centre, and compare it with the first samples in a few small calls.

        Many calls, since a model may draw one number for all samples of a call; of another size
        than the centre's where that can be, to see whether samples see each other.
        """
        whole = min(self.micro_batch_size, len(self.samples))
        size = min(CALL_SIZE, whole + 1, len(self.samples))
        if size == whole and size > 2:
            size -= 1  # a single sample has no batch statistics
        first = self.samples.head(size * min(NUM_CALLS, len(self.samples) // size))

        def in_calls() -> tuple[Tensor, Tensor]:
            calls = ((call(self.model, b.inputs).double(), b.labels) for b in first.batches(size))
            return sensitivities(self.loss_function, calls)

        losses, scales = in_calls()
        self.sensitivity = float(scales.sum() / losses.abs().sum().clamp_min(1e-300))
        recording = Recording(self.loss_function)
        self.center = evaluate_model(self.model, self.samples, recording, self.micro_batch_size)
        again, _ = in_calls()
        self._check_center(float(losses.mean()), float(again.mean()), first.batches(size))
        if size != whole:
            self.coupling = coupling(losses, scales, recording.losses[: len(first)])

    def _check_center(self, before: float, after: float, batches: Iterator[Samples]) -> None:
        if before != after and not (math.isnan(before) and math.isnan(after)):
            moved = moved_buffers(self.model, self._own_buffers, self._own_data)
            culprit = nondeterministic_module(
                self.model, self.samples.head(self.micro_batch_size).inputs
            )
            raise NumericsError(
                "the objective is not deterministic: two evaluations at one point gave "
                f"{before!r} and {after!r}"
                + (f"; the module that differs is {culprit}" if culprit else ""),
                hint=f"forward changes the buffer {_listed(moved)}, which it may in training mode "
                "only: if self.training"
                if moved
                else f"{self.loss_function.called} must give the same loss for the same outputs, "
                "without random numbers"
                if culprit is None and self.loss_function.function is not None
                else "dropout must be off in eval mode: F.dropout needs training=self.training",
            )
        if not math.isfinite(self.center.loss):
            outputs = (call(self.model, batch.inputs) for batch in batches)
            hints = map(self.loss_function.advice, outputs)
            raise NumericsError(
                f"the loss at the given weights is {self.center.loss}",
                hint=next(filter(None, hints), None),
            )

    @property
    def complaints(self) -> tuple[str, ...]:
        """What keeps the centre's loss from being a mean over samples."""
        if self.coupling is None or self.coupling <= COUPLED:
            return ()
        return (
            "samples see each other: the loss depends on which are evaluated together (by "
            f"{self.coupling:.1e}), and so on --micro-batch-size; look at batch_first of attention "
            "and recurrence, and at normalisation by batch statistics in eval mode",
        )

    def _check_entered(self) -> None:
        """Outside, the model is where its own parameters are, and may be in training mode."""
        if not self._own_data:
            raise RuntimeError("the objective is not entered: measure inside `with objective:`")

    def move(self, theta: Tensor) -> None:
        """Put the model at θ [P]."""
        self._check_entered()
        self._buffer.copy_(theta)

    def displace(self, *terms: tuple[float, Tensor]) -> None:
        """Put the model at centre + Σ c·d, computed from the centre and never by steps."""
        self._check_entered()
        combine(self.theta, terms, self._buffer)

    @contextmanager
    def at(self, theta: Tensor) -> Iterator[None]:
        """Be at θ [P] for a while, then at the centre again."""
        self.move(theta)
        try:
            yield
        finally:
            self.move(self.theta)

    def micro_batches(self) -> Iterator[Samples]:
        """The samples in the batches of every evaluation."""
        self._check_entered()
        return self.samples.batches(self.micro_batch_size)

    def differentiating(self) -> AbstractContextManager[None]:
        """Where the model's derivatives are taken (`twice_differentiable`)."""
        return twice_differentiable(is_recurrent=self._is_recurrent)

    def batch_outputs(
        self, batch: Samples, model: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Outputs [n, ..., C] on a micro-batch, as a graph that can be differentiated twice.

        Args:
            batch: The samples.
            model: The same function of the same parameters, to be called in the model's place.

        Raises:
            InputError, UsageError: as `outputs.call`.
        """
        with self.differentiating():
            return call(self.model if model is None else model, batch.inputs)

    def batch_loss(self, batch: Samples) -> Tensor:
        """A micro-batch's share of the objective, Σ ℓ / N: the shares of all add up to L.

        Of the outputs in float64, as everywhere (samples.py).
        """
        losses = self.loss_function(self.batch_outputs(batch).double(), batch.labels)
        return losses.sum() / len(self.samples)

    @torch.no_grad()
    def evaluate(self, samples: Samples | None = None) -> Evaluation:
        """Loss, its standard error and accuracy where the model stands; one synchronisation.

        Args:
            samples: Other samples than the objective's own, such as a test set.
        """
        self._check_entered()
        samples = self.samples if samples is None else samples
        return evaluate_model(self.model, samples, self.loss_function, self.micro_batch_size)

    def sample_losses(self, samples: Samples) -> tuple[Evaluation, Tensor]:
        """What `evaluate` measures, to the bit, and the loss of each sample in the same pass.

        Returns:
            The evaluation, and losses [N], float64, on the device.
        """
        self._check_entered()
        recording = Recording(self.loss_function)
        evaluation = evaluate_model(self.model, samples, recording, self.micro_batch_size)
        return evaluation, recording.losses

    def loss(self, theta: Tensor) -> float:
        """L(θ) for θ [P]."""
        with self.at(theta):
            return self.evaluate().loss

    def loss_and_gradient(self, theta: Tensor | None = None) -> tuple[float, Tensor]:
        """L(θ) and ∇L(θ) [P], at the centre if no θ is given; summed in float64 over batches."""
        self._check_entered()
        with self.at(self.theta if theta is None else theta), self.differentiating():
            gradient = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
            loss = torch.zeros((), dtype=torch.float64, device=self.device)
            for batch in self.micro_batches():
                share = self.batch_loss(batch)
                pieces = gradients(share, self.parameters)
                gradient += flatten(pieces)
                loss += share.detach()
        return float(loss), gradient.to(self.dtype)


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = [f"{len(names) - 2} more"] if len(names) > 2 else []
    return " and ".join([*names[:2], *more])


@torch.no_grad()
def train_alone(model: nn.Module, modules: Sequence[nn.Module], inputs: Tensor) -> bool:
    """Put some modules of a model in eval mode in training mode, if outputs stay the same so."""
    expected = call(model, inputs)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    set_modes([(module, module in modules) for module in model.modules()])
    try:
        found = call(model, inputs, training=True)
        if found.shape == expected.shape and bool(
            (found - expected).abs().max() <= SAME * expected.abs().max()
        ):
            return True
    except LgoError:  # such as for outputs of training alone
        pass
    model.eval()
    for buffer, value in buffers:
        buffer.copy_(value)
    return False
