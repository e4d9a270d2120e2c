"""A routing method for TensorRT-LLM's PyTorch backend: fewer experts a token, -1 in the slots that are none.

    from adaptive_k.tensorrt_llm import routing_method
    moe = create_moe(routing_method=routing_method("my-model.json", "calibrated", layer=3), ...)

The decision is one launch of libadaptive_k.so (ADAPTIVE_K_LIBRARY) on the current stream; nothing waits for the
device, and a captured graph follows later uploads. TensorRT-LLM's experts take -1 as none (trtllm-gen -1 alone,
CUTLASS any id out of range). Not run on a GPU: PyPI's package does not install without a driver. The class was
tested against the interface that version 1.2 has, and its decision on the host. Importing this needs neither
TensorRT-LLM nor torch.
"""
from __future__ import annotations

from typing import Any, Callable, Optional

from .integrations.c_library import CRouter


def _base() -> tuple[type, Any]:
    """(BaseMoeRoutingMethod, RoutingMethodType) of the installed TensorRT-LLM."""
    from tensorrt_llm._torch.modules.fused_moe.routing import BaseMoeRoutingMethod, RoutingMethodType

    return BaseMoeRoutingMethod, RoutingMethodType


def method_class(base: type, unspecified: Any) -> type:
    """The class on a base of TensorRT-LLM's kind; `unspecified` is RoutingMethodType.Unspecified, which
    keeps kernels that route by themselves from being chosen."""

    class AdaptiveKMoeRoutingMethod(base):  # type: ignore[misc, valid-type]
        """One MoE layer's routing."""

        def __init__(
            self,
            preset: str,
            policy: str = "",
            *,
            layer: int = 0,
            library: str = "",
            callable_e_score_correction_bias: Optional[Callable[[], Any]] = None,
        ) -> None:
            """`preset`: name or path of a calibration file; `policy`: one of its policies, or a text such
            as top_p:0.85; `layer`: among the MoE layers. Raises ValueError, OSError."""
            super().__init__()
            self.router = CRouter(preset, policy, fill="minus_one", library=library)
            self.top_k = self.router.top_k
            self.layer = layer
            self.bias = callable_e_score_correction_bias
            if self.router.selection_bias != (self.bias is not None):
                raise ValueError(
                    f"callable_e_score_correction_bias: {self.bias!r}, expected "
                    f"{'one' if self.router.selection_bias else 'None'} for the preset '{preset}'"
                )

        def apply(self, router_logits: Any) -> tuple[Any, Any]:
            """(token_selected_experts int32, token_final_scales float32) [num_tokens, experts_per_token] of
            logits [num_tokens, num_experts]."""
            bias = None if self.bias is None else self.bias()
            return self.router.route(router_logits, self.layer, bias)

        def get_experts_per_token(self) -> int:
            return self.top_k

        @property
        def routing_method_type(self) -> Any:
            return unspecified

    return AdaptiveKMoeRoutingMethod


def routing_method(preset: str, policy: str = "", **options: Any) -> Any:
    """A routing method for create_moe, of the installed TensorRT-LLM; options are those of the class."""
    base, types = _base()
    return method_class(base, types.Unspecified)(preset, policy, **options)
