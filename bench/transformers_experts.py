#!/usr/bin/env python3
"""Experts of an OLMoE-shaped layer in transformers: the package's implementation beside the stock ones.

    build/engines/transformers/bin/python bench/transformers_experts.py   # after tests/run --engines transformers

One thread, bf16, the least CPU time of several runs, in ms. "half" drops half of the expert calls, unevenly
over the tokens; "stock at K/2" is what a model with half the top-k costs in the fastest stock backend: the
ideal, since with many tokens nearly every expert is read whatever is dropped. Weights are no model's.
"""
import argparse
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "build" / "ci" / "python"))

import torch
from transformers import OlmoeConfig
from transformers.integrations.moe import batched_mm_experts_forward, grouped_mm_experts_forward
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

from adaptive_k.integrations.experts import run_experts

HIDDEN, WIDTH, EXPERTS, TOP_K = 2048, 1024, 64, 8


def layer():
    config = OlmoeConfig(
        hidden_size=HIDDEN, intermediate_size=WIDTH, num_experts=EXPERTS, num_experts_per_tok=TOP_K
    )
    config._experts_implementation = "eager"
    experts = OlmoeExperts(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in experts.parameters():
            values = torch.arange(parameter.numel(), dtype=torch.float32) % 97 - 48
            parameter.copy_(values.mul_(4e-4).view(parameter.shape))
    return experts


def measure(experts, tokens, runs):
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, HIDDEN, generator=generator).bfloat16()
    weights, ids = torch.randn(tokens, EXPERTS, generator=generator).softmax(-1).topk(TOP_K)
    weights = weights.bfloat16()
    k = torch.tensor([TOP_K // 2 if tokens == 1 else (3 * t) % 7 + 1 for t in range(tokens)])
    kept = torch.arange(TOP_K) < k[:, None]
    few, few_weights = ids[:, : TOP_K // 2].contiguous(), weights[:, : TOP_K // 2].contiguous()
    calls = {
        "eager": lambda: OlmoeExperts.forward(experts, x, ids, weights),
        "grouped_mm": lambda: grouped_mm_experts_forward(experts, x, ids, weights),
        "ours": lambda: run_experts(experts, x, ids, weights),
        "ours, half": lambda: run_experts(experts, x, ids.masked_fill(~kept, EXPERTS), weights),
        "grouped_mm at K/2": lambda: grouped_mm_experts_forward(experts, x, few, few_weights),
    }
    if tokens == 1:
        calls["batched_mm"] = lambda: batched_mm_experts_forward(experts, x, ids, weights)
    best = dict.fromkeys(calls, float("inf"))
    with torch.no_grad():
        for _ in range(runs):
            for name, call in calls.items():
                start = time.process_time()
                call()
                best[name] = min(best[name], 1e3 * (time.process_time() - start))
    stock = min(best[name] for name in ("eager", "grouped_mm", "batched_mm") if name in best)
    gained, ideal = stock / best["ours, half"], stock / best["grouped_mm at K/2"]
    told = ", ".join(f"{name} {value:.2f}" for name, value in best.items())
    print(
        f"T = {tokens}, {kept.float().mean():.0%} of the calls kept: {told}; full K {best['ours'] / stock:.2f} "
        f"of stock, speed-up {gained:.2f} of an ideal {ideal:.2f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 128])
    parser.add_argument("--runs", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    experts = layer()
    for tokens in options.tokens:
        measure(experts, tokens, options.runs)


if __name__ == "__main__":
    main()
