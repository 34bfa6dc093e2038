"""A model rewritten so that its second derivatives are cheap: the same function of the same θ.

Two rewrites of the traced graph (torch.fx), neither of which knows a model by its name:

- Batch norm in eval mode is affine, so it is folded into the convolution before it inside the graph
  that autograd sees: conv(x, w·γ/σ) + β + (b − μ)·γ/σ.
- A convolution gets derivatives of its own (`convolutions`).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.operator_schemas import normalize_function

from lgo_cli.curvature.convolutions import Geometry, convolution
from lgo_cli.curvature.tracing import ForwardError, is_customised, strange_forward, trace
from lgo_cli.gradients import gradients, pull_back
from lgo_cli.models.building import refuse_sparse_gradients
from lgo_cli.results import counted
from lgo_cli.vectors import flatten, norm

if TYPE_CHECKING:
    from collections.abc import Callable

    from lgo_cli.objective import Objective

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONVOLUTION_FUNCTIONS = (F.conv1d, F.conv2d, F.conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

OUTPUT_TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest, at which a rewritten float32 model counts
as the same function. Folding multiplies where the model divides: on a ResNet-20 outputs differ by
1e-6."""

PRODUCT_TOLERANCE = 1e-2
"""The same for a Hessian product, in the norm. Where a rounding carries an activation over a kink
of ReLU, a product over few samples moves by up to 1e-3; a rewriting that lost a parameter's
gradient would be off by its whole share."""


def _folded(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of convolution and batch norm in one: w·γ/σ and β + (b − μ)·γ/σ."""
    scale = torch.rsqrt(variance + eps)
    if gamma is not None:
        scale = scale * gamma
    shift = (-mean if bias is None else bias - mean) * scale
    if beta is not None:
        shift = shift + beta
    return weight * scale.view(-1, *[1] * (weight.ndim - 1)), shift


@dataclass(frozen=True)
class Rewritten:
    """A function of a model's parameters that may be called in the model's place.

    Attributes:
        call: Maps inputs [n, *input_shape] to outputs [n, ..., C].
        note: What was done, or why nothing was.
    """

    call: Callable[[Tensor], Tensor]
    note: str


def fold(objective: Objective, *, own_derivatives: bool = True) -> Rewritten:
    """Rewrite an objective's model for cheap second derivatives.

    The result shares the model's parameters and buffers. It is used only if it is found to be the
    same function of them: outputs on some samples and on one alone, and a Hessian product on those
    samples, are compared with the model's own; the product in float64 too, if float32 leaves doubt.

    Args:
        objective: Entered.
        own_derivatives: Whether to rewrite convolutions, beside folding; of use only where second
            derivatives in θ are taken, as those of a Hessian are.

    Raises:
        InputError: as `refuse_sparse_gradients`.
    """
    model = objective.model
    refuse_sparse_gradients(model)
    if not any(parameter.ndim > 2 for parameter in model.parameters()):
        return Rewritten(model, "no convolution to rewrite")
    traced = trace(model)
    if isinstance(traced, str):
        return Rewritten(model, f"not rewritten: {traced}")
    num_folded, num_convolutions = rewrite_convolutions(traced, own_derivatives=own_derivatives)
    if not num_convolutions:
        return Rewritten(model, "no convolution that tracing finds")
    candidates: list[Callable[[Tensor], Tensor]] = [traced]
    if wants_channels_last(objective):
        candidates.insert(0, _channels_last(traced))
    for call in candidates:
        try:
            with strange_forward():
                outputs, product = _differences(objective, call)
            break
        # A view of channels that come last is an error: such a model keeps them first.
        except ForwardError as error:
            failure = str(error)
    else:
        return Rewritten(model, f"not rewritten: the rewritten model fails ({failure})")
    where = ""
    if outputs <= OUTPUT_TOLERANCE and not product <= PRODUCT_TOLERANCE:
        product, where = _difference_in_float64(objective, call), " (float64)"
    if not (outputs <= OUTPUT_TOLERANCE and product <= PRODUCT_TOLERANCE):
        return Rewritten(
            model,
            f"not rewritten: it would move outputs by {outputs:.1e}, products by {product:.1e}"
            f"{where}",
        )
    return Rewritten(
        call,
        f"{in_words(num_folded, num_convolutions)}, "
        f"outputs equal to {outputs:.0e}, a product to {product:.0e}{where}",
    )


def in_words(num_folded: int, num_convolutions: int) -> str:
    """What `rewrite_convolutions` did."""
    convolutions = counted(num_convolutions, "convolution")
    if not num_folded:
        return f"{convolutions} rewritten"
    return f"{counted(num_folded, 'batch norm')} folded into {convolutions}"


def wants_channels_last(objective: Objective) -> bool:
    """On a CPU, two-dimensional convolutions are faster with channels last."""
    return objective.samples.inputs.ndim == 4 and objective.device.type == "cpu"


def _channels_last(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def call(inputs: Tensor) -> Tensor:
        outputs: Tensor = model(inputs.contiguous(memory_format=torch.channels_last))
        return outputs

    return call


def _differences(objective: Objective, call: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Relative differences of outputs (largest entry) and of one Hessian product (norm)."""
    batch = objective.samples.head(8)
    with torch.no_grad():
        outputs = 0.0
        for part in (batch, batch.head(1)):
            expected = objective.batch_outputs(part)
            found = objective.batch_outputs(part, call)
            if found.shape != expected.shape:
                return math.inf, math.inf
            scale = float(expected.abs().amax()) or 1.0
            outputs = max(outputs, float((found - expected).abs().amax()) / scale)
    products = []
    with objective.differentiating():
        for function in (objective.model, call):
            losses = objective.loss_function(
                objective.batch_outputs(batch, function).double(), batch.labels
            )
            gradient = gradients(losses.mean(), objective.parameters, create_graph=True)
            curved = [g for g in gradient if g.requires_grad]
            cotangents = [g.detach() for g in curved]
            products.append(flatten(pull_back(curved, objective.parameters, cotangents)))
    plain, rewritten = products
    scale = norm(plain)
    return outputs, norm(rewritten - plain) / scale if scale > 0 else norm(rewritten)


def _difference_in_float64(objective: Objective, call: Callable[[Tensor], Tensor]) -> float:
    """That of products, where float32 may have lost them; infinite if the model does not run there.

    Such as those of a network before training, whose activations shrink from layer to layer until
    the least rounding carries many of them over a kink.
    """
    few = objective.samples.head(8)
    try:
        with (
            objective.replaced(samples=few, dtype=torch.float64, checked=True) as twin,
            strange_forward(),
        ):
            return _differences(twin, call)[1]
    except ForwardError:
        return math.inf


def rewrite_convolutions(traced: fx.GraphModule, *, own_derivatives: bool) -> tuple[int, int]:
    """Rewrite in place; return how many batch norms were folded and convolutions seen."""
    modules = dict(traced.named_modules())
    num_folded = num_convolutions = 0
    for node in list(traced.graph.nodes):
        if _is_identity(node, modules):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    for node in list(traced.graph.nodes):
        found = as_convolution(node, modules)
        if found is None:
            continue
        num_convolutions += 1
        _ask_the_input(node, found[0])
        users = list(node.users)
        norm = _as_batch_norm(users[0], node, modules) if len(users) == 1 else None
        replaced = node if norm is None else users[0]
        with traced.graph.inserting_before(replaced):
            weights = [_node(traced, value) for value in found[1:3]]
            if norm is not None:
                num_folded += 1
                statistics = [_node(traced, value) for value in norm[:4]]
                both = traced.graph.call_function(_folded, (*weights, *statistics, norm[4]))
                weights = [
                    traced.graph.call_function(operator.getitem, (both, index)) for index in (0, 1)
                ]
            new = traced.graph.call_function(
                convolution, (found[0], *weights, tuple(found[3]), own_derivatives)
            )
        replaced.replace_all_uses_with(new)
        traced.graph.erase_node(replaced)
        if norm is not None:
            traced.graph.erase_node(node)
    traced.graph.lint()
    traced.recompile()
    return num_folded, num_convolutions


def _is_identity(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    return not is_customised(modules[str(node.target)], (nn.Identity,))


def _ask_the_input(node: fx.Node, inputs: Any) -> None:
    """Have a convolution's input say what its output would say too, which nothing else then reads.

    A batch norm of a user's own may begin by asking for the number of axes.
    """
    for user in list(node.users):
        asks = user.target is getattr and user.args[1] in ("ndim", "dtype", "device")
        if asks or (user.op == "call_method" and user.target == "dim"):
            user.replace_input_with(node, inputs)


def _node(traced: fx.GraphModule, value: Any) -> Any:
    """A node that reads a parameter by its name; nodes and `None` as they are."""
    return traced.graph.get_attr(value) if isinstance(value, str) else value


def as_convolution(
    node: fx.Node, modules: dict[str, nn.Module]
) -> tuple[Any, Any, Any, Geometry] | None:
    """Input, weight, bias and geometry if the node is a plain convolution.

    Weight and bias are names of attributes, or nodes.
    """
    if node.op == "call_module":
        module = modules[str(node.target)]
        if not isinstance(module, _CONVOLUTIONS) or is_customised(module, _CONVOLUTIONS):
            return None
        padding = _padding(module)
        if module.padding_mode != "zeros" or padding is None:
            return None
        geometry = Geometry(module.stride, padding, module.dilation, module.groups)
        bias = None if module.bias is None else f"{node.target}.bias"
        inputs = node.args[0] if node.args else node.kwargs["input"]
        return inputs, f"{node.target}.weight", bias, geometry
    if node.op == "call_function" and node.target in _CONVOLUTION_FUNCTIONS:
        dims = _CONVOLUTION_FUNCTIONS.index(node.target) + 1
        given = dict(zip(_FUNCTION_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
        stride, padding, dilation = (
            as_tuple(given.get(name, default), dims) for name, default in GEOMETRY_DEFAULTS
        )
        geometry = Geometry(stride, padding, dilation, given.get("groups", 1))  # type: ignore[arg-type]
        plain = [*geometry.stride, *geometry.padding, *geometry.dilation, geometry.groups]
        if all(isinstance(value, int) for value in plain):
            return given["input"], given["weight"], given.get("bias"), geometry
    return None


_FUNCTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
GEOMETRY_DEFAULTS = (("stride", 1), ("padding", 0), ("dilation", 1))
"""Of the functions of convolutions."""


def _padding(module: nn.modules.conv._ConvNd) -> tuple[int, ...] | None:
    """Padding in numbers; `None` for `same` where it is not the same on both sides."""
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(total % 2 for total in totals) else tuple(t // 2 for t in totals)


def as_tuple(value: Any, dims: int) -> tuple[Any, ...]:
    """One number for each of some axes, where it may be one for all of them."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * dims


def _as_batch_norm(
    node: fx.Node, before: fx.Node, modules: dict[str, nn.Module]
) -> tuple[Any, Any, Any, Any, float] | None:
    """Mean, variance, γ, β and ε if the node normalises `before` by running statistics."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if (
            not isinstance(module, _BATCH_NORMS)
            or is_customised(module, _BATCH_NORMS)
            or module.running_mean is None
            or module.training
        ):
            return None
        gamma = f"{node.target}.weight" if module.affine else None
        beta = f"{node.target}.bias" if module.affine else None
        mean, variance = f"{node.target}.running_mean", f"{node.target}.running_var"
        return mean, variance, gamma, beta, module.eps
    if node.op == "call_function" and node.target is F.batch_norm:
        normalized = normalize_function(
            F.batch_norm, node.args, dict(node.kwargs), normalize_to_only_use_kwargs=True
        )
        given = normalized.kwargs if normalized else {}
        if given.get("input") is before and given.get("training") is False:
            return (
                given["running_mean"], given["running_var"], given["weight"], given["bias"],
                given["eps"],
            )  # fmt: skip
    return None
