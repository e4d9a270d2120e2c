"""A model of transformers as the program adaptive-k measures one: windows of tokens in, logits out, every
routing decision and every expert's output passed through the program.
"""
from __future__ import annotations

import contextlib
import time
from typing import Any, Callable, Iterator, Optional

import numpy as np
import torch

from .._core import Gating
from . import experts as own_experts
from .gatings import UnsupportedModel, bias_of
from .transformers import Block, _check_router, moe_blocks

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def _decoder_layer(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """The module whose output the MoE block's is added to: the block's parent."""
    return model.get_submodule(name.rsplit(".", 1)[0]) if "." in name else model


def _shared_width(block: torch.nn.Module, hidden: int) -> int:
    """Width of the experts that every token runs, together; 0 where there are none."""
    for name in ("shared_experts", "shared_expert", "shared_mlp"):
        module = getattr(block, name, None)
        if isinstance(module, torch.nn.Module):
            down = getattr(module, "down_proj", None)
            return int(down.weight.shape[-1]) if down is not None else hidden
    return 0


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


class Engine:
    """What binding/engine.cpp asks of a model; the model is left as it was after every pass."""

    def __init__(self, model: Any, *, name: str = "", gating: Optional[Gating] = None) -> None:
        if model.training:
            raise ValueError(f"{type(model).__name__} is in training mode: call model.eval() first")
        self.model = model
        self.blocks = moe_blocks(model, gating)
        with torch.no_grad():
            for block in self.blocks:
                _check_router(block)
        self.gating = self.blocks[0].gating
        text = model.config.get_text_config()
        self.name = name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.hidden_size = int(text.hidden_size)
        weight = next(self.blocks[0].experts.parameters())
        self.expert_dtype = _DTYPES[weight.dtype]
        down = self.blocks[0].experts.down_proj
        sizes = set(down.shape[1:]) - {self.hidden_size}
        self.intermediate_size = int(sizes.pop()) if sizes else self.hidden_size
        self.num_moe_layers = len(self.blocks)
        self.max_positions = int(getattr(text, "max_position_embeddings", 0) or 1 << 20)
        shared = _shared_width(self.blocks[0].block, self.hidden_size)
        self.num_shared_experts = 1 if shared else 0
        self.shared_intermediate_size = shared
        # What a block's output is multiplied by before it is added to the stream.
        factors = ("residual_multiplier", "mlp_beta_factor")
        self.scale = float(next((getattr(text, f) for f in factors if getattr(text, f, None)), 1.0))
        self._route: Optional[Callable] = None
        self._observe: Optional[Callable] = None
        self._spent = 0.0
        own_experts.register()

    # --- one pass ----------------------------------------------------------------------------------

    def forward(
        self, tokens: np.ndarray, logits: np.ndarray, route: Callable, observe: Optional[Callable]
    ) -> tuple[float, float]:
        """tokens [n, length] int32 -> logits [n * length, vocab_size], filled. Returns the seconds of
        the MoE blocks and of all."""
        self._route, self._observe, self._spent = route, observe, 0.0
        device = self.model.get_input_embeddings().weight.device
        ids = torch.from_numpy(tokens.astype(np.int64)).to(device)
        start = time.perf_counter()
        with torch.inference_mode(), self._installed():
            out = self.model(input_ids=ids, use_cache=False).logits
            made = out.reshape(-1, out.shape[-1])[:, : self.vocab_size].float().cpu().numpy()
        total = time.perf_counter() - start
        np.copyto(logits, made)
        return self._spent, total

    @contextlib.contextmanager
    def _installed(self) -> Iterator[None]:
        handles: list[Any] = []
        before = self.model.get_experts_implementation()
        self.model.set_experts_implementation(own_experts.NAME)
        try:
            for i, block in enumerate(self.blocks):
                handles += self._hooks(i, block)
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.model.set_experts_implementation(before)

    def _hooks(self, layer: int, block: Block) -> list:
        begun: dict[str, Any] = {}

        def narrow(router: torch.nn.Module, args: Any, output: Any) -> Any:
            logits, weights, own_ids = output
            given = logits.float().cpu().contiguous().numpy()
            tokens, top_k = given.shape[0], self.gating.top_k
            ids = np.empty((tokens, top_k), np.int32)
            chosen = np.empty((tokens, top_k), np.float32)
            counts = np.empty((tokens,), np.int32)
            bias = bias_of(router)
            bias = None if bias is None else bias.detach().float().cpu().contiguous().numpy()
            self._route(layer, given, ids, chosen, counts, bias)
            dead = np.arange(top_k)[None, :] >= counts[:, None]
            ids[dead] = self.gating.num_experts
            begun.update(logits=given, bias=bias)
            return (
                logits,
                torch.from_numpy(chosen).to(device=weights.device, dtype=weights.dtype),
                torch.from_numpy(ids).to(device=own_ids.device, dtype=own_ids.dtype),
            )

        def start(module: torch.nn.Module, args: Any) -> None:
            begun["start"] = time.perf_counter()

        def stop(module: torch.nn.Module, args: Any, output: Any) -> None:
            self._spent += time.perf_counter() - begun["start"]

        hooks = [
            block.router.register_forward_hook(narrow),
            block.block.register_forward_pre_hook(start),
            block.block.register_forward_hook(stop),
        ]
        if self._observe is None:
            return hooks

        def record(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            named = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args), **kwargs)
            begun["outputs"] = _slots(module, **{k: named[k] for k in ("hidden_states", "top_k_index")})
            begun["sum"] = output

        def show(module: torch.nn.Module, args: Any, output: Any) -> None:
            if "outputs" not in begun:
                return
            stream = _first(output).reshape(-1, self.hidden_size).float()
            total = begun.pop("sum").float() * self.scale
            if total.shape != stream.shape:
                raise UnsupportedModel(
                    f"{block.name}: its experts work in {total.shape[-1]} dimensions and the stream "
                    f"has {self.hidden_size}: such a model cannot be calibrated by its distortion"
                )
            outputs = begun.pop("outputs").mul_(self.scale)
            self._observe(
                layer, begun["logits"], (stream - total).cpu().contiguous().numpy(),
                outputs.cpu().numpy(), begun["bias"],
            )  # fmt: skip

        hooks.append(block.experts.register_forward_hook(record, with_kwargs=True))
        hooks.append(_decoder_layer(self.model, block.name).register_forward_hook(show))
        return hooks


def _slots(experts: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor) -> torch.Tensor:
    """[num_tokens, top_k, hidden] float32: each expert's own output, before its weight."""
    tokens, top_k = top_k_index.shape
    flat = top_k_index.reshape(-1)
    order = torch.argsort(flat, stable=True)
    sizes = torch.bincount(flat, minlength=experts.num_experts + 1).tolist()[: experts.num_experts]
    live = order[: sum(sizes)]
    rows = own_experts.expert_rows(experts, hidden_states[live // top_k], sizes)
    made = torch.zeros(tokens * top_k, rows.shape[-1], device=rows.device)
    made[live] = rows.float()
    return made.view(tokens, top_k, -1)
