"""Operations of a network whose derivatives jump."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from lgo_cli.objective import Objective

KINKED = {
    "relu": "ReLU",
    "relu_": "ReLU",
    "threshold": "ReLU",
    "leaky_relu": "leaky ReLU",
    "leaky_relu_": "leaky ReLU",
    "_prelu_kernel": "PReLU",
    "rrelu_with_noise": "RReLU",
    "hardtanh": "hardtanh",
    "hardtanh_": "hardtanh",
    "hardswish": "hardswish",
    "hardswish_": "hardswish",
    "hardsigmoid": "hardsigmoid",
    "hardsigmoid_": "hardsigmoid",
    "softshrink": "softshrink",
    "hardshrink": "hardshrink",
    "elu": "ELU",
    "elu_": "ELU",
    "abs": "absolute value",
    "clamp": "clamp",
    "clamp_min": "clamp",
    "clamp_max": "clamp",
    "maximum": "maximum",
    "max": "maximum",
    "amax": "maximum",
    "minimum": "minimum",
    "min": "minimum",
    "amin": "minimum",
    "where": "where",
    "max_pool2d_with_indices": "max pooling",
    "max_pool3d_with_indices": "max pooling",
    "adaptive_max_pool2d": "max pooling",
    "sign": "sign",
    "round": "rounding",
    "floor": "rounding",
    "ceil": "rounding",
    "trunc": "rounding",
    "fake_quantize_per_tensor_affine_cachemask": "quantisation",
    "fake_quantize_per_channel_affine_cachemask": "quantisation",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": "quantisation",
    "_fake_quantize_learnable_per_tensor_affine": "quantisation",
    "_fake_quantize_learnable_per_channel_affine": "quantisation",
    "_fused_moving_avg_obs_fq_helper": "quantisation",
}
"""Operations whose first or second derivative jumps. Autograd takes the second derivative on either
side and ignores what is concentrated on the kink itself."""


def nonsmooth_operations(objective: Objective) -> tuple[str, ...]:
    """Operations of the forward pass, and of a loss of one's own, whose derivatives jump, by name.

    With gradients on, as products take it: without, PyTorch's transformer layers are one operation
    that hides its ReLU.
    """
    with _Recorder() as recorder, torch.enable_grad():
        first = objective.samples.head(2)
        outputs = objective.batch_outputs(first)
        if objective.loss_function.function is not None:
            objective.loss_function(outputs, first.labels)
    return tuple(dict.fromkeys(KINKED[name] for name in sorted(recorder.names & set(KINKED))))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the names of the operations that run under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing here is ever compiled, and skipping imports the compiler, for a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        # Attention makes its mask by a choice between constants, which has no kink.
        if name != "where" or any(isinstance(x, Tensor) and x.requires_grad for x in args):
            self.names.add(name)
        return func(*args, **(kwargs or {}))
