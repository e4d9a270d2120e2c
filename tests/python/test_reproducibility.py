"""Python gets the very bits of the C++ library: the input set of tests/reproducibility, routed through
the binding, has the recorded hash over all of its outputs. The inputs are made here a second time, from
the same integers; nothing of the C++ program is used.
"""
import pathlib

import numpy as np
import pytest

import adaptive_k
from adaptive_k import Gating, Metrics, Policy, Router

RECORDED = pathlib.Path(__file__).parents[1] / "reproducibility" / "recorded_hash.txt"
MASK = (1 << 64) - 1
SHAPES = [
    (1, 1), (2, 1), (3, 3), (8, 2), (16, 2), (31, 5), (32, 8), (33, 4), (40, 8), (60, 4), (64, 8),
    (72, 32), (96, 12), (128, 6), (128, 8), (160, 6), (256, 8), (384, 8), (512, 10), (1000, 7),
    (1024, 32),
]  # fmt: skip


class SplitMix:
    def __init__(self, seed: int) -> None:
        self.state = seed

    def take(self, number: int) -> np.ndarray:
        """The next `number` values, uint64."""
        gamma = 0x9E3779B97F4A7C15
        steps = np.arange(1, number + 1, dtype=np.uint64)
        with np.errstate(over="ignore"):
            z = np.uint64(self.state) + steps * np.uint64(gamma)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        self.state = (self.state + number * gamma) & MASK
        return z ^ (z >> np.uint64(31))

    def below(self, bound: int) -> int:
        return int(self.take(1)[0]) % bound


class Fnv:
    def __init__(self) -> None:
        self.state = 0xCBF29CE484222325

    def add(self, values: np.ndarray) -> None:
        """Eight bytes of each value, lowest first."""
        state, prime = self.state, 0x100000001B3
        for byte in np.ascontiguousarray(values.astype("<u8")).tobytes():
            state = ((state ^ byte) * prime) & MASK
        self.state = state


def to_bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))
    return (np.where(nan, bits | 0x00400000, rounded) >> np.uint64(16)).astype(np.uint16)


def to_f16(x: np.ndarray) -> np.ndarray:
    """Every NaN the same, without a sign lost."""
    x = x.astype(np.float32)
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    bits = half.view(np.uint16).copy()
    nan = np.isnan(x)
    bits[nan] = (x.view(np.uint32)[nan] >> 16 & 0x8000 | 0x7E00).astype(np.uint16)
    return bits


def logits_row(random: SplitMix, experts: int, kind_of_float: str) -> np.ndarray:
    """One row as the program makes it; bits of the storage type."""
    kind, peak = random.below(16), random.below(experts)
    draws = random.take(experts * (6 if kind == 3 else 5)).reshape(experts, -1)
    steps = (draws[:, :4] % np.uint64(512)).astype(np.int64).sum(1) - 1022
    noise = (draws[:, 4] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    row = steps.astype(np.float32) / np.float32(128)
    if kind in (1, 2):
        row = row * np.float32(8)
    if kind == 3:
        row = ((draws[:, 5] % np.uint64(3)).astype(np.int64) - 1).astype(np.float32)
    if kind == 4:
        row = row * np.float32(0.03125)
    if kind == 5:
        row[peak] = 100
    if kind == 6:
        row[:] = 0
    one_of_four = noise % 4 == 0
    if kind == 8:
        row[peak] = np.inf
    if kind == 9:
        row[one_of_four] = np.uint32(0x7FC00000).view(np.float32)
    if kind == 10:
        row[one_of_four] = -np.inf
    if kind == 11 and peak % 4 == 0:
        row[:] = -np.inf
    if kind_of_float == "float32":
        return noise if kind == 7 else row.view(np.uint32)
    if kind == 7:
        return (noise & 0xFFFF).astype(np.uint16)
    return to_bf16(row) if kind_of_float == "bfloat16" else to_f16(row)


def gatings(experts: int, top_k: int, random: SplitMix) -> list:
    made = []
    for kind in ("softmax", "sigmoid", "top_k_softmax", "sqrt_softplus", "sparsemixer"):
        for renormalize in (False, True):
            for variant in range(4):
                scale = 1.0 + random.below(64) / 32.0
                try:
                    made.append(
                        Gating(
                            experts, top_k, kind=kind, renormalize=renormalize,
                            selection_bias=variant in (1, 2),
                            n_group=8 if variant >= 2 else 1,
                            topk_group=4 if variant >= 2 else 1,
                            group_rank="maximum" if variant == 3 else "top2_sum",
                            routed_scaling_factor=scale,
                        )
                    )  # fmt: skip
                except ValueError:
                    pass
    return made


def policies(experts: int, top_k: int, tables: list) -> list:
    made = [
        Policy.full(), Policy.fixed((top_k + 1) // 2), Policy.top_p(0.6875, top_k),
        Policy.score_ratio(0.375, top_k),
    ]  # fmt: skip
    if top_k >= 2:
        middle = (top_k + 1) // 2
        for signal in ("softmax_entropy", "normalized_entropy", "topk_entropy"):
            limit = 2.0 if signal == "softmax_entropy" else 0.75
            made.append(Policy.thresholds(signal, [middle, top_k], [limit]))
        made.append(Policy.thresholds("margin", [1, top_k], [0.125]))
        coefficients, first, following = tables
        made.append(
            Policy.min_distortion(
                coefficients, experts, first_expert=first, next_expert=following,
                sensitivity=0.75, price=0.0625,
            )  # fmt: skip
        )
    exponents = (-1.0, 0.5, 0.0, 0.3125, 1.0)
    return [p.adjusted(mass_exponent=exponents[i % 5]) for i, p in enumerate(made)]


TYPES = {
    0: ("float32", "int32", "float32"),
    1: ("float16", "int64", "float16"),
    2: ("bfloat16", "int16", "bfloat16"),
    3: ("float32", "uint16", "bfloat16"),
}


def route_and_hash(hashed: Fnv, random: SplitMix, router: Router, types: tuple, tokens: int) -> None:
    g = router.gating
    logits_type, id_type, weight_type = types
    stride = g.num_experts + random.below(3)
    storage = np.zeros((tokens, stride), np.uint32 if logits_type == "float32" else np.uint16)
    for t in range(tokens):
        storage[t, : g.num_experts] = logits_row(random, g.num_experts, logits_type)
    bias = ((random.take(g.num_experts) % np.uint64(256)).astype(np.int64) - 128) / np.float32(1024)
    padding, k_min = np.zeros(tokens, np.uint8), np.zeros(tokens, np.uint8)
    for t in range(tokens):
        padding[t] = random.below(8) == 0
        k_min[t] = 1 + (random.below(g.top_k) if random.below(4) == 0 else 0)
    extras = {"routing_bias": bias.astype(np.float32)} if g.selection_bias else {}
    if random.below(2) == 0:
        extras["padding_mask"] = padding
    if random.below(2) == 0:
        extras["k_min"] = k_min

    metrics, load = Metrics(), np.zeros(g.num_experts, np.uint64)
    logits = storage if logits_type == "bfloat16" else storage.view(logits_type)
    routed = router.route(
        logits[:, : g.num_experts], metrics=metrics, expert_counts=load, id_dtype=id_type,
        weight_dtype=weight_type, logits_dtype="bfloat16" if logits_type == "bfloat16" else None,
        **extras,
    )  # fmt: skip
    weights = routed.weights.view(np.uint32 if weight_type == "float32" else np.uint16)
    hashed.add(routed.ids.astype(np.int64).view(np.uint64).ravel())
    hashed.add(weights.ravel())
    hashed.add(routed.counts.astype(np.int64).view(np.uint64))
    hashed.add(routed.signal.view(np.uint32))
    extremes = np.array([metrics.signal_lowest, metrics.signal_highest], np.float32)
    counters = [
        metrics.calls, metrics.tokens, metrics.padding_tokens, metrics.expert_calls,
        metrics.full_expert_calls, metrics.nonfinite_rows, metrics.distinct_experts,
        metrics.signal_sum_fixed & MASK, *(int(b) for b in extremes.view(np.uint32)),
        *metrics.k_histogram, *(int(n) for n in load),
    ]  # fmt: skip
    hashed.add(np.array(counters, np.uint64))


@pytest.mark.skipif(not RECORDED.exists(), reason="outside the repository there is no record")
def test_the_recorded_hash():
    random, hashed = SplitMix(20240607), Fnv()
    calls = tokens = 0
    for experts, top_k in SHAPES:
        rows = top_k - 1

        def values(shape, random=random):
            number = int(np.prod(shape))
            drawn = (random.take(number) % np.uint64(2048)).astype(np.int64) - 1024
            return (drawn / 1024.0).astype(np.float32).reshape(shape)

        coefficients = values((rows, 5))
        both = values((rows, experts, 2))  # the program draws the two tables by turns
        tables = [coefficients, both[..., 0].copy(), both[..., 1].copy()]
        for gating in gatings(experts, top_k, random):
            for policy in policies(experts, top_k, tables):
                fill = ("minus_one", "num_experts", "first_expert")[random.below(3)]
                router = Router(gating, policy, fill=fill)
                number = 2 + random.below(4 if experts > 256 else 16)
                route_and_hash(hashed, random, router, TYPES[random.below(4)], number)
                calls += 1
                tokens += number
    found = f"{hashed.state:016x} ({calls} calls, {tokens} tokens)"
    assert found == RECORDED.read_text().strip(), adaptive_k.instructions()
