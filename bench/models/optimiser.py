"""Muon for the matrices inside the layers, AdamW for the rest, in one optimiser with one learning rate."""

from __future__ import annotations

import torch
from torch import Tensor

MOMENTUM = 0.95
BETAS = (0.9, 0.95)
EPSILON = 1e-9
UPDATE_RMS = 0.2  # root mean square of a matrix's update, as AdamW's: one learning rate serves both


def orthogonalise(x: Tensor) -> Tensor:
    """The nearest matrices with singular values of about 1, by five steps of Newton-Schulz: [..., R, C].

    In bfloat16, which is exact enough for them.
    """
    dtype, x = x.dtype, x.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).to(dtype)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is trained by Muon: matrices of the layers, experts' included, but no router."""
    return ".layers." in name and parameter.dim() >= 2 and min(parameter.shape[-2:]) > 1 and ".gate." not in name


class Optimiser(torch.optim.Optimizer):
    """Weight decay on everything but vectors."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for n, p in named if is_matrix(n, p)], "muon": True, "decay": decay},
            {"params": [p for n, p in named if not is_matrix(n, p) and p.dim() > 1], "muon": False, "decay": decay},
            {"params": [p for n, p in named if p.dim() <= 1], "muon": False, "decay": 0.0},
        ]
        super().__init__([g for g in groups if g["params"]], {"rate": 0.0})

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """One step at ``rate``."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - rate * group["decay"])
                if group["muon"]:
                    parameter.add_(self.muon(parameter), alpha=-rate)
                else:
                    parameter.add_(self.adam(parameter), alpha=-rate)

    def muon(self, parameter: Tensor) -> Tensor:
        """Orthogonalised Nesterov momentum of the right size."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"]
        momentum.lerp_(parameter.grad, 1 - MOMENTUM)
        update = orthogonalise(parameter.grad.lerp(momentum, MOMENTUM))
        return update * (UPDATE_RMS * max(parameter.shape[-2:]) ** 0.5)

    def adam(self, parameter: Tensor) -> Tensor:
        """Adam's bias-corrected direction."""
        state = self.state[parameter]
        if not state:
            state.update(step=0, first=torch.zeros_like(parameter), second=torch.zeros_like(parameter))
        state["step"] += 1
        state["first"].lerp_(parameter.grad, 1 - BETAS[0])
        state["second"].lerp_(parameter.grad.square(), 1 - BETAS[1])
        first = state["first"] / (1 - BETAS[0] ** state["step"])
        second = state["second"] / (1 - BETAS[1] ** state["step"])
        return first / (second.sqrt() + EPSILON)
