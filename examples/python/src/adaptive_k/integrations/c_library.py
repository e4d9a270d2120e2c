"""The C library (libadaptive_k.so) on torch tensors: on the host, and on a device without waiting for it.

One launch a layer on the caller's stream; nothing is allocated but the outputs and nothing is copied back, so a
call may be captured in a CUDA graph. Policies are uploaded once, and again where one changes.
"""
from __future__ import annotations

import ctypes
import os
from typing import Any, Optional

from .._core import Preset

ENVIRONMENT = "ADAPTIVE_K_LIBRARY"
FILLS = {"minus_one": 0, "num_experts": 1, "first_expert": 2}
_FLOATS = {"torch.float32": 0, "torch.float16": 1, "torch.bfloat16": 2}
_MESSAGE_BYTES = 512


class _Struct(ctypes.Structure):
    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


class _Gating(_Struct):
    _fields_ = [("struct_size", ctypes.c_uint32), ("kind", ctypes.c_int32), ("num_experts", ctypes.c_int32),
                ("top_k", ctypes.c_int32), ("renormalize", ctypes.c_int32), ("selection_bias", ctypes.c_int32),
                ("routed_scaling_factor", ctypes.c_float), ("n_group", ctypes.c_int32),
                ("topk_group", ctypes.c_int32), ("group_rank", ctypes.c_int32),
                ("jitter_epsilon", ctypes.c_float)]  # fmt: skip


class _Preset(_Struct):
    _fields_ = [("struct_size", ctypes.c_uint32), ("message_bytes", ctypes.c_uint32),
                ("message", ctypes.c_char_p), ("preset", ctypes.c_char_p), ("policy", ctypes.c_char_p),
                ("fill", ctypes.c_int32), ("reserved", ctypes.c_int32)]  # fmt: skip


class _Upload(_Struct):
    _fields_ = [("struct_size", ctypes.c_uint32), ("message_bytes", ctypes.c_uint32),
                ("message", ctypes.c_char_p), ("router", ctypes.c_void_p), ("one_layer", ctypes.c_int32),
                ("layer", ctypes.c_int32)]  # fmt: skip


class _Route(_Struct):
    _fields_ = [("struct_size", ctypes.c_uint32), ("message_bytes", ctypes.c_uint32),
                ("message", ctypes.c_char_p), ("logits", ctypes.c_void_p), ("num_tokens", ctypes.c_int64),
                ("topk_ids", ctypes.c_void_p), ("topk_weights", ctypes.c_void_p),
                ("logits_type", ctypes.c_int32), ("ids_type", ctypes.c_int32),
                ("weights_type", ctypes.c_int32), ("layer", ctypes.c_int32), ("row_stride", ctypes.c_int64),
                ("plans", ctypes.c_void_p), ("topk_counts", ctypes.c_void_p), ("signal", ctypes.c_void_p),
                ("chosen_counts", ctypes.c_void_p), ("routing_bias", ctypes.c_void_p),
                ("padding_mask", ctypes.c_void_p), ("k_min", ctypes.c_void_p), ("k_max", ctypes.c_void_p),
                ("replay_ids", ctypes.c_void_p), ("replay_counts", ctypes.c_void_p),
                ("metrics", ctypes.c_void_p), ("overlap_previous", ctypes.c_int32),
                ("reserved", ctypes.c_int32), ("expert_counts", ctypes.c_void_p)]  # fmt: skip


def load(path: str = "") -> ctypes.CDLL:
    """By its path, that of ADAPTIVE_K_LIBRARY, or where the linker finds libadaptive_k.so. Raises OSError."""
    library = ctypes.CDLL(path or os.environ.get(ENVIRONMENT, "") or "libadaptive_k.so")
    library.adaptive_k_status_text.restype = ctypes.c_char_p
    for name in ("router_from_preset", "router_gating", "upload_plans", "route", "route_host"):
        if hasattr(library, f"adaptive_k_{name}"):
            getattr(library, f"adaptive_k_{name}").restype = ctypes.c_int32
    return library


class CRouter:
    """A router of a calibration file, by the C interface. Raises ValueError with the library's words."""

    def __init__(
        self, preset: str, policy: str = "", *, fill: str = "minus_one", library: str = ""
    ) -> None:
        if fill not in FILLS:
            raise ValueError(f"fill: {fill!r}, expected one of {', '.join(FILLS)}")
        self._library = load(library)
        self._router = ctypes.c_void_p()
        self._plans = ctypes.c_void_p()
        found = Preset.load(preset).file  # the package's own files count too; raises PresetError
        given = _Preset(preset=found.encode(), policy=policy.encode(), fill=FILLS[fill])
        self._call("adaptive_k_router_from_preset", given, ctypes.byref(self._router))
        gating = _Gating()
        self._library.adaptive_k_router_gating(self._router, ctypes.byref(gating))
        self.num_experts, self.top_k = gating.num_experts, gating.top_k
        self.selection_bias = bool(gating.selection_bias)

    def _call(self, name: str, params: Any, *rest: Any, before: tuple = ()) -> None:
        function = getattr(self._library, name, None)
        if function is None:
            raise ValueError(f"{name}: not in this library, which was built without the device's part")
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        params.message, params.message_bytes = ctypes.addressof(message), _MESSAGE_BYTES
        status = function(*before, ctypes.byref(params), *rest)
        if status != 0:
            told = message.value or self._library.adaptive_k_status_text(ctypes.c_int32(status))
            raise ValueError(told.decode())

    def upload(self, stream: int) -> None:
        """Copies the policies to the current device, on a stream that is not being captured."""
        upload = _Upload(router=self._router)
        self._call("adaptive_k_upload_plans", upload, ctypes.byref(self._plans), ctypes.c_void_p(stream))

    def route(self, logits: Any, layer: int = 0, routing_bias: Optional[Any] = None) -> tuple[Any, Any]:
        """(ids int32, weights float32) [num_tokens, top_k] of logits [num_tokens, num_experts]; slots past
        a token's k hold the fill and 0. On the logits' device, on torch's current stream."""
        import torch

        tokens = logits.shape[0]
        if logits.dim() != 2 or logits.shape[1] != self.num_experts or str(logits.dtype) not in _FLOATS:
            raise ValueError(
                f"logits: {list(logits.shape)} of {logits.dtype}, expected [num_tokens, {self.num_experts}] "
                "of float32, float16 or bfloat16"
            )
        if self.selection_bias != (routing_bias is not None):
            raise ValueError(
                f"routing_bias: {'missing' if self.selection_bias else 'given'}, expected as the gating has it"
            )
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        if routing_bias is not None:
            routing_bias = routing_bias.to(device=logits.device, dtype=torch.float32).contiguous()
        ids = torch.empty((tokens, self.top_k), dtype=torch.int32, device=logits.device)
        weights = torch.empty((tokens, self.top_k), dtype=torch.float32, device=logits.device)
        params = _Route(
            logits=logits.data_ptr(), num_tokens=tokens, topk_ids=ids.data_ptr(),
            topk_weights=weights.data_ptr(), logits_type=_FLOATS[str(logits.dtype)], layer=layer,
            row_stride=logits.stride(0) if tokens > 1 else 0,
            routing_bias=None if routing_bias is None else routing_bias.data_ptr(),
        )  # fmt: skip
        if logits.device.type == "cpu":
            self._call("adaptive_k_route_host", params, before=(self._router,))
            return ids, weights
        stream = torch.cuda.current_stream(logits.device).cuda_stream
        if not self._plans:
            self.upload(stream)
        params.plans = self._plans
        self._call("adaptive_k_route", params, ctypes.c_void_p(stream), before=(self._router,))
        return ids, weights
