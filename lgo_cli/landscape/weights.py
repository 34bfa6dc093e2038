"""What of a traced graph is the same for all samples of a point: the weights of convolutions.

Batch norm is folded into them, and oneDNN has a layout of its own for them. Done for each
micro-batch of 128 that takes 4 % of a ResNet-20's time, and 7 % for each of 64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from lgo_cli.curvature.convolutions import convolution, laid_out
from lgo_cli.landscape.first_layer import computed_from, prefix_of, take_out
from lgo_cli.landscape.fusing import CONVOLUTIONS, SIZE

if TYPE_CHECKING:
    from torch import Tensor


class _Sizes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        if n.target is convolution:
            inputs, *_ = self.fetch_args_kwargs_from_env(n)[0]
            n.meta[SIZE] = tuple(inputs.shape[1:])
        return super().run_node(n)


def note_sizes(traced: fx.GraphModule, few: Tensor) -> None:
    """Note at each convolution how large its inputs are, where some samples come in."""
    _Sizes(traced).run(few)


def take_out_weights(traced: fx.GraphModule, batch_size: int) -> fx.GraphModule:
    """Make what no sample enters of convolutions' weights further arguments of the same function.

    Args:
        traced: Rewritten in place, and for good: after all else is.
        batch_size: Samples that it is called with, for which weights are laid out.

    Returns:
        A function of nothing that gives them, in their order, where the model stands.
    """
    graph = traced.graph
    fixed = computed_from(traced, lambda node: node.op not in ("placeholder", "output"))
    found: list[fx.Node] = []
    for node in list(graph.nodes):
        if node.target not in CONVOLUTIONS:
            continue
        weight, bias, geometry = node.args[1:4]
        if node.target is not convolution and weight in fixed:
            with graph.inserting_before(node):
                size = (batch_size, *node.meta[SIZE])
                weight = graph.call_function(laid_out, (weight, geometry, size))
            node.update_arg(1, weight)
            fixed.add(weight)
        found += [each for each in (weight, bias) if each in fixed and each.op != "get_attr"]
    found = list(dict.fromkeys(found))
    weights = prefix_of(traced, found)
    for node in list(weights.graph.nodes):
        if node.op == "placeholder":
            weights.graph.erase_node(node)
    weights.recompile()
    take_out(traced, found, "weight_")
    return weights
