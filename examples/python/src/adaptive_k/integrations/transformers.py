"""Any Mixture-of-Experts model of transformers, with fewer experts a token: patch and unpatch.

The model's router keeps its logits, ids and weights; a hook behind it asks the library which of its slots
a token keeps, drops the others and multiplies the kept weights by r^-a. An experts implementation of the
package (experts.py) skips what was dropped. At full K every bit is the model's own.
"""
from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Iterator, Optional

import torch

from .._core import Gating, Metrics, Policy
from ..router import Router
from . import experts as own_experts
from .gatings import GATINGS, UnsupportedModel, bias_of, gating_differs, gating_of
from .probe import routing_differs
from .routing_op import LayerRouting, keep, layers_of

_PROBE_TOKENS = 32
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclasses.dataclass
class Block:
    """One MoE layer: its block, the router in it, its experts, and the gating."""

    name: str
    block: torch.nn.Module
    router: torch.nn.Module
    experts: torch.nn.Module
    gating: Gating


def _router_of(block: torch.nn.Module) -> Optional[torch.nn.Module]:
    for name in ("gate", "router"):
        child = getattr(block, name, None)
        if isinstance(child, torch.nn.Module):
            return child
    return None


def _check_quantised(model: torch.nn.Module) -> None:
    quantised = getattr(model, "hf_quantizer", None)
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if quantised is not None or config is not None:
        method = getattr(config, "quant_method", None) or type(quantised or config).__name__
        raise UnsupportedModel(
            f"{type(model).__name__}: its weights are quantised ({method}), expected float32, float16 "
            "or bfloat16 experts"
        )


def _check_experts(name: str, experts: torch.nn.Module) -> None:
    kind = type(experts).__name__
    needs = ("has_gate", "has_bias", "is_transposed", "num_experts")
    missing = [field for field in needs if not hasattr(experts, field)]
    if missing:
        raise UnsupportedModel(
            f"{name}: {kind} cannot be given an implementation of its experts (no "
            f"{', '.join(missing)}): its class does not use transformers' ExpertsInterface"
        )
    weight = getattr(experts, "gate_up_proj" if experts.has_gate else "up_proj", None)
    if not isinstance(weight, torch.Tensor) or weight.dtype not in _FLOATS:
        told = getattr(weight, "dtype", None) or f"no {'gate_up_proj' if experts.has_gate else 'up_proj'}"
        raise UnsupportedModel(
            f"{name}: {kind} holds {told}, expected float32, float16 or bfloat16 weights: "
            "quantised experts are not run"
        )


def moe_blocks(model: torch.nn.Module, gating: Optional[Gating] = None) -> list[Block]:
    """The MoE layers of a model in their order. Raises UnsupportedModel, which says what is missing."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: {type(model).__name__}, expected a torch.nn.Module of transformers")
    _check_quantised(model)
    blocks = []
    for name, module in model.named_modules():
        experts = getattr(module, "experts", None)
        if not isinstance(experts, torch.nn.Module):
            continue
        router = _router_of(module)
        if router is None:
            raise UnsupportedModel(
                f"{name}: {type(module).__name__} has experts and no module `gate` or `router`"
            )
        if gating is None and type(router).__name__ not in GATINGS:
            gating_of(router, None)  # says so
        _check_experts(name, experts)
        config = getattr(experts, "config", None)
        blocks.append(Block(name, module, router, experts, gating or gating_of(router, config)))
    if not blocks:
        raise UnsupportedModel(
            f"{type(model).__name__}: no MoE layer was found, expected modules with `experts` and a "
            "`gate` or `router`: it is no Mixture-of-Experts model that this version knows"
        )
    first = blocks[0].gating
    for block in blocks:
        if repr(block.gating) != repr(first):
            raise UnsupportedModel(
                f"{block.name}: {block.gating!r}, unlike the first MoE layer's {first!r}; layers of "
                "different gatings are not supported"
            )
    return blocks


def _probe_input(router: torch.nn.Module, block: torch.nn.Module) -> torch.Tensor:
    weight = next(iter(router.parameters()))
    width = getattr(router, "hidden_dim", None) or weight.shape[-1]
    of_block = next((p for p in block.experts.parameters()), weight)
    generator = torch.Generator().manual_seed(20241130)
    x = torch.randn(_PROBE_TOKENS, width, generator=generator)
    device = weight.device if weight.device.type != "meta" else "cpu"
    return x.to(device=device, dtype=of_block.dtype)


def _check_router(block: Block) -> None:
    """At full K the library chooses and weighs as the router does: checked on random inputs."""
    where = f"{block.name}: {type(block.router).__name__}"
    x = _probe_input(block.router, block.block)
    given = block.router(x)
    if not (isinstance(given, tuple) and len(given) == 3):
        size = len(given) if isinstance(given, tuple) else type(given).__name__
        raise UnsupportedModel(
            f"{where}: its forward returns {size} value(s), expected (router_logits, weights, indices)"
        )
    logits, weights, ids = given
    gating = block.gating
    if logits.shape != (len(x), gating.num_experts) or ids.shape != (len(x), gating.top_k):
        raise UnsupportedModel(
            f"{where}: gives logits {list(logits.shape)} and indices {list(ids.shape)}, expected "
            f"{[len(x), gating.num_experts]} and {[len(x), gating.top_k]}"
        )
    if differs := routing_differs(gating, logits, ids, weights, bias_of(block.router)):
        raise UnsupportedModel(f"{where}: {differs}")


class PatchedModel:
    """What a patched model carries: its layers' routing, hooks, and what unpatch puts back."""

    def __init__(
        self,
        model: torch.nn.Module,
        policy: Policy,
        *,
        gating: Optional[Gating] = None,
        expected: Optional[Gating] = None,
        shadow: bool = False,
        experts: str = own_experts.NAME,
        skip_padding: bool = True,
    ) -> None:
        if getattr(model, "_adaptive_k", None) is not None:
            raise ValueError(f"{type(model).__name__} is patched already: unpatch it first")
        if model.training:
            raise ValueError(f"{type(model).__name__} is in training mode: call model.eval() first")
        if experts not in (own_experts.NAME, "stock"):
            raise ValueError(f"experts: {experts!r}, expected {own_experts.NAME!r} or 'stock'")
        self.blocks = moe_blocks(model, gating)
        self.gating = self.blocks[0].gating
        if expected is not None and (differs := gating_differs(expected, self.gating)):
            raise ValueError(f"the router is made for another model: its {differs}")
        layers_of(policy, len(self.blocks))
        router = Router(self.gating, policy)
        self.model = model
        self.skips = experts == own_experts.NAME
        self.skip_padding = skip_padding
        self.layers = [LayerRouting(router, i, shadow) for i in range(len(self.blocks))]
        self._padding: Optional[torch.Tensor] = None
        self._handles: list[Any] = []
        with torch.no_grad():
            for block in self.blocks:
                _check_router(block)
        self._implementation = model.get_experts_implementation() if self.skips else None
        try:
            self._install()
            with torch.no_grad(), self.uncounted():
                for block, layer in zip(self.blocks, self.layers):
                    self._check_block(block, layer)
        except BaseException:
            self.remove()
            raise
        model._adaptive_k = self

    # --- hooks -------------------------------------------------------------------------------

    def _install(self) -> None:
        if self.skips:
            own_experts.register()
            self.model.set_experts_implementation(own_experts.NAME)
            for block in self.blocks:
                own_experts.number_of(block.experts)
                used = getattr(block.experts.config, "_experts_implementation", None)
                if used != own_experts.NAME:
                    raise UnsupportedModel(
                        f"{block.name}: {type(block.experts).__name__} stays with the experts "
                        f"implementation {used!r}: this model's class does not let it be set"
                    )
        for block, layer in zip(self.blocks, self.layers):
            self._handles.append(block.router.register_forward_hook(self._hook_of(block, layer)))
        if self.skip_padding:
            self._handles.append(
                self.model.register_forward_pre_hook(self._note_padding, with_kwargs=True)
            )
            self._handles.append(
                self.model.register_forward_hook(self._forget_padding, always_call=True)
            )

    def _hook_of(self, block: Block, layer: LayerRouting):
        num_experts, number, skips = self.gating.num_experts, layer.number, self.skips

        def narrow(router: torch.nn.Module, args: Any, output: Any) -> Any:
            logits, weights, ids = output
            padding = self._padding
            if padding is not None and padding.numel() != logits.shape[0]:
                raise RuntimeError(
                    f"{block.name}: {logits.shape[0]} tokens come to the router, and the attention "
                    f"mask has {padding.numel()}: patch with skip_padding=False"
                )
            if padding is not None:
                padding = padding.to(logits.device)
            kept, factor = keep(logits.detach(), ids, bias_of(router), padding, number)
            narrowed = weights.float() * factor.unsqueeze(-1) * kept
            if skips:
                ids = ids.masked_fill(~kept, num_experts)
            return logits, narrowed.to(weights.dtype), ids

        return narrow

    def _note_padding(self, model: torch.nn.Module, args: Any, kwargs: Any) -> None:
        mask = kwargs.get("attention_mask")
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            tokens = kwargs.get("inputs_embeds")
        self._padding = None
        if isinstance(mask, torch.Tensor) and mask.dim() == 2 and tokens is not None:
            # With a cache the mask is as long as all that was read; the last tokens are this call's.
            self._padding = (mask[:, -tokens.shape[1] :] == 0).reshape(-1)

    def _forget_padding(self, model: torch.nn.Module, args: Any, output: Any) -> None:
        self._padding = None

    # --- the self-test -----------------------------------------------------------------------

    def _check_block(self, block: Block, layer: LayerRouting) -> None:
        """The block asks its router, and at full K its output is its own to the bit."""
        adaptive, shadow, calls = layer.router, layer.shadow, []
        layer.observer = lambda *call: calls.append(call)
        layer.shadow = False
        x = _probe_input(block.router, block.block)[:8].unsqueeze(0)
        width = getattr(self.model.config.get_text_config(), "hidden_size", x.shape[-1])
        x = x[..., :width]
        try:
            layer.router = Router(self.gating, Policy.full())
            ours = block.block(x.clone())
            handles, block.router._forward_hooks = block.router._forward_hooks, type(
                block.router._forward_hooks
            )()
            try:
                theirs = block.block(x.clone())
            finally:
                block.router._forward_hooks = handles
        finally:
            layer.router, layer.shadow, layer.observer = adaptive, shadow, None
        if not calls:
            raise UnsupportedModel(
                f"{block.name}: {type(block.block).__name__} does not call its router "
                f"{type(block.router).__name__} (a kernel that routes by itself?): nothing to patch"
            )
        first = [out[0] if isinstance(out, tuple) else out for out in (ours, theirs)]
        if not torch.equal(*first):
            raise UnsupportedModel(
                f"{block.name}: {type(block.block).__name__} gives another output at full K than "
                f"unpatched (by {float((first[0] - first[1]).abs().max()):g}): not patched"
            )

    # --- what users do -----------------------------------------------------------------------

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Within it nothing is counted: warm-ups, probes."""
        for layer in self.layers:
            layer.counting = False
        try:
            yield
        finally:
            for layer in self.layers:
                layer.counting = True

    def set_policy(self, policy: Policy) -> None:
        """Another policy from the next call on. Raises ValueError where it does not fit."""
        layers_of(policy, len(self.layers))
        router = Router(self.gating, policy)
        for layer in self.layers:
            layer.router = router

    def set_shadow(self, shadow: bool) -> None:
        for layer in self.layers:
            layer.shadow = shadow

    def metrics(self) -> Metrics:
        """Of all layers together."""
        total = Metrics()
        for layer in self.layers:
            total += layer.metrics
        return total

    def layer_metrics(self) -> list[Metrics]:
        """One for each MoE layer."""
        return [layer.metrics for layer in self.layers]

    def reset_metrics(self) -> None:
        for layer in self.layers:
            layer.metrics = Metrics()
            layer.seconds = 0.0

    def remove(self) -> None:
        """Puts back what was there before."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._implementation is not None:
            self.model.set_experts_implementation(self._implementation)
            self._implementation = None
        if getattr(self.model, "_adaptive_k", None) is self:
            del self.model._adaptive_k


def patch(model: Any, policy: Policy, **options: Any) -> PatchedModel:
    """Patches `model` in place; see AdaptiveKRouter.patch for the options."""
    return PatchedModel(model, policy, **options)


def unpatch(model: Any) -> None:
    """The model as it was. Raises ValueError where it is not patched."""
    patched = getattr(model, "_adaptive_k", None)
    if patched is None:
        raise ValueError(f"{type(model).__name__} is not patched")
    patched.remove()
