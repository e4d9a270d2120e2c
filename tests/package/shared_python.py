"""Loads the shared library and routes with it, as a Python program without a binding would."""
import ctypes
import sys


class Gating(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("struct_size", "kind", "num_experts", "top_k")] + [
        ("renormalize", ctypes.c_int32), ("selection_bias", ctypes.c_int32),
        ("routed_scaling_factor", ctypes.c_float), ("n_group", ctypes.c_int32),
        ("topk_group", ctypes.c_int32), ("group_rank", ctypes.c_int32),
        ("jitter_epsilon", ctypes.c_float)]


class Policy(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("rule", ctypes.c_int32), ("signal", ctypes.c_int32),
                ("num_k_values", ctypes.c_int32), ("k_values", ctypes.c_uint8 * 32),
                ("thresholds", ctypes.c_float * 32), ("k_min", ctypes.c_int32), ("k_max", ctypes.c_int32),
                ("mass_exponent_given", ctypes.c_int32), ("mass_exponent", ctypes.c_float),
                ("sensitivity", ctypes.c_float), ("lambda_", ctypes.c_float),
                ("coefficients", ctypes.c_void_p), ("first_expert", ctypes.c_void_p),
                ("next_expert", ctypes.c_void_p)]


class RouterParams(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("message_bytes", ctypes.c_uint32),
                ("message", ctypes.c_char_p), ("gating", ctypes.POINTER(Gating)),
                ("policies", ctypes.POINTER(Policy)), ("num_layers", ctypes.c_int32),
                ("fill", ctypes.c_int32)]


class RouteParams(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("message_bytes", ctypes.c_uint32),
                ("message", ctypes.c_char_p), ("logits", ctypes.c_void_p), ("num_tokens", ctypes.c_int64),
                ("topk_ids", ctypes.c_void_p), ("topk_weights", ctypes.c_void_p),
                ("logits_type", ctypes.c_int32), ("ids_type", ctypes.c_int32),
                ("weights_type", ctypes.c_int32), ("layer", ctypes.c_int32),
                ("row_stride", ctypes.c_int64), ("plans", ctypes.c_void_p),
                ("topk_counts", ctypes.c_void_p), ("signal", ctypes.c_void_p),
                ("chosen_counts", ctypes.c_void_p), ("routing_bias", ctypes.c_void_p),
                ("padding_mask", ctypes.c_void_p), ("k_min", ctypes.c_void_p), ("k_max", ctypes.c_void_p),
                ("replay_ids", ctypes.c_void_p), ("replay_counts", ctypes.c_void_p),
                ("metrics", ctypes.c_void_p), ("overlap_previous", ctypes.c_int32),
                ("reserved", ctypes.c_int32)]


def sized(struct):
    struct.struct_size = ctypes.sizeof(struct)
    return struct


THRESHOLDS, SOFTMAX_ENTROPY = 2, 1
lib = ctypes.CDLL(sys.argv[1])
lib.adaptive_k_router_instruction_set.restype = ctypes.c_char_p
lib.adaptive_k_router_instruction_set.argtypes = [ctypes.c_void_p]
lib.adaptive_k_route_host.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
lib.adaptive_k_router_destroy.argtypes = [ctypes.c_void_p]
lib.adaptive_k_router_destroy.restype = None

gating = sized(Gating(num_experts=8, top_k=2))
policy = sized(Policy(rule=THRESHOLDS, signal=SOFTMAX_ENTROPY, num_k_values=2))
policy.k_values[0], policy.k_values[1], policy.thresholds[0] = 1, 2, 1.0
message = ctypes.create_string_buffer(256)
params = sized(RouterParams(message_bytes=256, message=ctypes.cast(message, ctypes.c_char_p),
                            gating=ctypes.pointer(gating), policies=ctypes.pointer(policy)))
router = ctypes.c_void_p()
if lib.adaptive_k_router_create(ctypes.byref(params), ctypes.byref(router)) != 0:
    sys.exit(message.value.decode())

# Expert t is far ahead for an even token; the others cannot tell.
tokens = 4
logits = (ctypes.c_float * (tokens * 8))(*[9.0 if e == t and t % 2 == 0 else 0.0
                                           for t in range(tokens) for e in range(8)])
ids = (ctypes.c_int32 * (tokens * 2))()
weights = (ctypes.c_float * (tokens * 2))()
counts = (ctypes.c_int32 * tokens)()
call = sized(RouteParams(message_bytes=256, message=ctypes.cast(message, ctypes.c_char_p),
                         logits=ctypes.addressof(logits), num_tokens=tokens,
                         topk_ids=ctypes.addressof(ids), topk_weights=ctypes.addressof(weights),
                         topk_counts=ctypes.addressof(counts)))
if lib.adaptive_k_route_host(router, ctypes.byref(call)) != 0:
    sys.exit(message.value.decode())
by = lib.adaptive_k_router_instruction_set(router).decode()
lib.adaptive_k_router_destroy(router)
assert list(counts) == [1, 2, 1, 2], list(counts)
assert list(ids) == [0, -1, 0, 1, 2, -1, 0, 1], list(ids)
print(f"{sum(counts)} of {2 * tokens} expert calls, by {by}")
