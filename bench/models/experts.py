"""Routed SwiGLU experts for training on a CPU, as an experts implementation of transformers.

Tokens are sorted by expert, each expert multiplies its own rows, and nothing else is computed.  T tokens,
H hidden size, E experts, K experts a token, F expert width; float32 outside, products of bfloat16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.moe import ExpertsInterface

NAME = "sorted_rows"


def factor(x: Tensor) -> Tensor:
    """x as a product takes it: bfloat16 for float32, as it is for others (float64, for a check)."""
    return x.bfloat16() if x.dtype == torch.float32 else x


def term(x: Tensor) -> Tensor:
    """x as sums and functions take it: float32 for bfloat16, as it is for others."""
    return x.float() if x.dtype == torch.bfloat16 else x


def swiglu(gate_up: Tensor, weight: Tensor) -> Tensor:
    """silu(gate) * up * weight: [T*K, 2F], [T*K, 1] -> [T*K, F]."""
    gate, up = term(gate_up).chunk(2, dim=-1)
    return (F.silu(gate) * up * weight).to(gate_up.dtype)


def swiglu_backward(grad: Tensor, gate_up: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`swiglu`: to gate_up [T*K, 2F] and to weight [T*K]."""
    gate, up = term(gate_up).chunk(2, dim=-1)
    grad = term(grad)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    grad_weight = (grad * silu * up).sum(-1)
    grad = grad * weight
    grad_gate = grad * up * (sigmoid + silu * (1 - sigmoid))
    return torch.cat((grad_gate, grad * silu), dim=-1).to(gate_up.dtype), grad_weight


def combine(rows: Tensor, inverse: Tensor, tokens: int) -> Tensor:
    """Sum of each token's K rows: sorted [T*K, H] -> [T, H], float32."""
    return term(rows[inverse].view(tokens, -1, rows.shape[-1])).sum(1)


class Kernels:
    """The element-wise steps, plain or compiled."""

    swiglu = staticmethod(swiglu)
    swiglu_backward = staticmethod(swiglu_backward)
    combine = staticmethod(combine)

    @classmethod
    def compile(cls) -> None:
        """Fuse them with torch.compile (they keep their meaning)."""
        for name in ("swiglu", "swiglu_backward", "combine"):
            setattr(cls, name, staticmethod(torch.compile(getattr(cls, name))))


class Experts(torch.autograd.Function):
    """x [T, H], chosen and weight [T, K], gate_up [E, 2F, H], down [E, H, F] -> [T, H]."""

    @staticmethod
    def forward(ctx, x: Tensor, chosen: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """Rows in the order of their expert, and back."""
        tokens, top_k = chosen.shape
        sorted_expert, order = torch.sort(chosen.reshape(-1), stable=True)
        counts = torch.bincount(sorted_expert, minlength=gate_up.shape[0]).tolist()
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        rows = order // top_k
        sorted_weight = weight.reshape(-1)[order].unsqueeze(1)
        x, gate_up, down = factor(x), factor(gate_up), factor(down)
        inputs = x.index_select(0, rows)
        products = x.new_empty(rows.numel(), gate_up.shape[1])
        outputs = torch.empty_like(inputs)
        for i, (a, b) in enumerate(zip(inputs.split(counts), products.split(counts))):
            torch.mm(a, gate_up[i].t(), out=b)
        hidden = Kernels.swiglu(products, sorted_weight)
        for i, (a, b) in enumerate(zip(hidden.split(counts), outputs.split(counts))):
            torch.mm(a, down[i].t(), out=b)
        ctx.counts = counts
        ctx.save_for_backward(rows, inverse, inputs, products, hidden, sorted_weight, gate_up, down)
        return Kernels.combine(outputs, inverse, tokens)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        """grad [T, H] -> gradients of x, weight, gate_up and down."""
        rows, inverse, inputs, products, hidden, sorted_weight, gate_up, down = ctx.saved_tensors
        counts, tokens = ctx.counts, grad.shape[0]
        grad_rows = factor(grad).index_select(0, rows)
        grad_hidden, grad_inputs = torch.empty_like(hidden), torch.empty_like(inputs)
        grad_gate_up, grad_down = torch.empty_like(gate_up), torch.empty_like(down)
        parts = zip(grad_rows.split(counts), hidden.split(counts), grad_hidden.split(counts))
        for i, (g, a, out) in enumerate(parts):
            torch.mm(g, down[i], out=out)
            torch.mm(g.t(), a, out=grad_down[i])
        grad_products, grad_weight = Kernels.swiglu_backward(grad_hidden, products, sorted_weight)
        parts = zip(grad_products.split(counts), inputs.split(counts), grad_inputs.split(counts))
        for i, (g, a, out) in enumerate(parts):
            torch.mm(g, gate_up[i], out=out)
            torch.mm(g.t(), a, out=grad_gate_up[i])
        grad_x = Kernels.combine(grad_inputs, inverse, tokens)
        return grad_x, None, grad_weight[inverse].view(tokens, -1), term(grad_gate_up), term(grad_down)


@torch.compiler.disable
def sorted_rows(module: torch.nn.Module, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """transformers' signature of an experts implementation."""
    return Experts.apply(x.contiguous(), chosen, weight, module.gate_up_proj, module.down_proj)


ExpertsInterface.register(NAME, sorted_rows)
