"""From a model's name to an initialised module, and what no module may have."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lgo_cli.errors import InputError, a_kind, dtype_name
from lgo_cli.factories import call_factory, parse_factory
from lgo_cli.models.registry import MODELS, ModelSpec, resolve_model
from lgo_cli.seeding import derive_seed, seed_default

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

REFERENCE_VECTOR = (20,)
REFERENCE_IMAGE = (3, 32, 32)
REFERENCE_CLASSES = 10


def build_model(
    model: str,
    model_arg: Mapping[str, JsonValue],
    input_shape: tuple[int, ...],
    num_classes: int,
    seed: int,
) -> nn.Module:
    """Build a model and initialise it from `seed` alone.

    The weights are drawn from PyTorch's CPU generator, which is put back afterwards.

    Args:
        model: A name in `MODELS`, or a factory's reference. Naming a factory permits its code to
            run.
        model_arg: Its arguments.
        input_shape: Shape of one sample; offered to a factory.
        num_classes: Number of classes; offered to a factory.
        seed: The user's seed.

    Returns:
        The module in float32, on the CPU, in train mode.

    Raises:
        UsageError: if the name or an argument is unknown, or the model does not take such samples.
        InputError: if a factory fails or returns anything but a module with its weights in place.
    """
    arguments = resolve_model(model, model_arg)
    factory = parse_factory(model)
    with torch.random.fork_rng(devices=[]):
        seed_default(derive_seed(seed, "model", "init"))
        if factory is None:
            module = _build(MODELS[model], arguments, input_shape, num_classes)
        else:
            offered = {"input_shape": input_shape, "num_classes": num_classes}
            module = _checked(model, call_factory(model, factory, arguments, offered))
    module.cpu().float()  # complex numbers stay what they are
    module.train()
    return module


def _build(
    spec: ModelSpec,
    arguments: Mapping[str, JsonValue],
    input_shape: tuple[int, ...],
    num_classes: int,
) -> nn.Module:
    module, _, function = spec.builder.partition(":")
    build = getattr(importlib.import_module(module), function)
    built: nn.Module = build(input_shape, num_classes, **spec.fixed, **arguments)
    return built


def _checked(model: str, returned: object) -> nn.Module:
    if not isinstance(returned, nn.Module):
        what = f"the class {returned.__name__}" if isinstance(returned, type) else None
        raise InputError(f"{model} returned {what or a_kind(returned)}, not an nn.Module")
    for name, tensor in (*returned.named_parameters(), *returned.named_buffers()):
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
        whose = f"{model} returned a module whose {kind} {name}"
        if is_lazy(tensor) or tensor.is_meta:
            raise InputError(
                f"{whose} has no values yet",
                hint="give each layer its size; a factory may take input_shape and num_classes",
            )
        if tensor.layout is not torch.strided:
            raise InputError(f"{whose} is sparse, not plain numbers", hint="keep it dense")
        if tensor.is_complex() and tensor.requires_grad:
            raise InputError(
                f"{whose} is {dtype_name(tensor.dtype)}, in which no loss has a Hessian",
                hint="keep it as real numbers [..., 2], and take torch.view_as_complex in forward",
            )
    for name, value in returned.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{model} returned a module whose state_dict holds {a_kind(value)} as {name}",
                hint="leave out get_extra_state, or quantisation: weights are tensors alone",
            )
    return returned


def refuse_sparse_gradients(model: nn.Module) -> None:
    """Refuse what optimisers with momentum or weight decay, and second derivatives, cannot take.

    Raises:
        InputError: naming the embedding that has them.
    """
    for name, module in model.named_modules():
        is_embedding = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        if is_embedding and module.sparse and module.weight.requires_grad:
            raise InputError(
                f"{name or 'the model'} is an embedding with sparse=True: most optimisers do not "
                "take its gradients, which have no second derivative either",
                hint="sparse=False, which is the same function of the same weights",
            )


def parameter_counts() -> dict[str, tuple[int, str]]:
    """Count the parameters of each model in `MODELS` with its default arguments.

    Returns:
        By name, the number and what it was counted for: a data set like `synthetic` for the fully
        connected, like CIFAR-10 for the convolutional models.
    """
    counts = {}
    for name in MODELS:
        shape = REFERENCE_IMAGE if name.startswith("resnet") else REFERENCE_VECTOR
        # On the meta device initialisers cost more: PyTorch imports its compiler for them.
        module = build_model(name, {}, shape, REFERENCE_CLASSES, seed=0)
        number = sum(parameter.numel() for parameter in module.parameters())
        inputs = "x".join(map(str, shape)) if len(shape) > 1 else f"{shape[0]}"
        counts[name] = (number, f"{inputs} inputs, {REFERENCE_CLASSES} classes")
    return counts
