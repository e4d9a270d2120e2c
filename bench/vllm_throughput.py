#!/usr/bin/env python3
"""CPU time of vLLM on a random model of OLMoE's shape, half the expert calls dropped, beside the ideal.

    tests/vllm/run -k nothing   # installs the engine
    PYTHONPATH=build/ci/python build/engines/vllm/bin/python bench/vllm_throughput.py [--layers 2]

Five engines in one run: vLLM as it is; with the plug-in at full K; at half of K for each token; at about half on average,
which differs from token to token; and vLLM as it is on the same model with half of K, the ideal. One thread; milliseconds of the process' CPU time a token, the least of the
runs, which a busy machine disturbs less than wall time. Weights are random, so that losses say nothing.
"""
from __future__ import annotations

import argparse
import gc
import json
import os
import pathlib
import tempfile
import time
from typing import Any, Optional

os.environ.update(
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1",
)  # fmt: skip
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def shape(layers: int) -> dict:
    """config.json of OLMoE-1B-7B, with fewer layers and a small vocabulary, so that experts are what is timed."""
    return {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "hidden_size": 2048,
        "intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False,
        "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": layers,
        "vocab_size": 2048, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip


def timed(llm: Any, prompts: list, length: int, runs: int) -> float:
    """Least CPU seconds of `runs`."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=length, temperature=0, detokenize=False, ignore_eos=True)
    best = float("inf")
    for _ in range(runs):
        start = time.process_time()
        llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        best = min(best, time.process_time() - start)
    return best


def measure(folder: pathlib.Path, settings: Optional[dict], overrides: dict, runs: int) -> dict[str, float]:
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    given: dict[str, Any] = {} if settings is None else {"additional_config": {"adaptive_k": settings}}
    llm = LLM(
        model=str(folder), skip_tokenizer_init=True, load_format="dummy", dtype="bfloat16", seed=1,
        enforce_eager=True, max_model_len=1024, max_num_seqs=8, enable_prefix_caching=False,
        distributed_executor_backend="uni", hf_overrides=overrides, **given,
    )  # fmt: skip
    prompts = [[(7 * i + 13 * j) % 2048 for i in range(512)] for j in range(8)]
    timed(llm, [prompts[0][:8]], 4, 1)  # what is compiled at first use
    found = {"prefill, 512 tokens": 1e3 * timed(llm, prompts[:1], 1, runs) / 512}
    for batch in (1, 8):
        short = [p[:8] for p in prompts[:batch]]
        one, many = timed(llm, short, 1, runs), timed(llm, short, 33, runs)
        found[f"decode, {batch} at once"] = 1e3 * (many - one) / (32 * batch)
    if settings is not None:
        counted = llm.collective_rpc("adaptive_k_metrics")[0]["policies"]
        (of_policy,) = [c for c in counted.values() if c["calls"]]
        found["mean K"] = of_policy["mean_k"]
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        (folder / "config.json").write_text(json.dumps(shape(args.layers)))
        engines = {
            "vLLM": (None, {}),
            "plug-in, full K": ({"policy": "full"}, {}),
            "plug-in, K = 4 of 8": ({"policy": "fixed:4"}, {}),
            "plug-in, K by token": ({"policy": "top_p:0.55"}, {}),
            "vLLM with top-4, the ideal": (None, {"num_experts_per_tok": 4}),
        }
        found = {name: measure(folder, *given, args.runs) for name, given in engines.items()}
    phases = list(found["vLLM"])
    print(f"CPU ms a token, OLMoE's shape, {args.layers} layers, bfloat16, one thread, least of {args.runs}\n")
    print("| | " + " | ".join(phases) + " |\n|---|" + "---|" * len(phases))
    for name, row in found.items():
        told = f"{name}, mean {row['mean K']:.2f}" if "by token" in name else name
        print(f"| {told} | " + " | ".join(f"{row[p]:.2f}" for p in phases) + " |")
    stock, ours, ideal = (found[n] for n in ("vLLM", "plug-in, K = 4 of 8", "vLLM with top-4, the ideal"))
    # Where the ideal saves next to nothing, what is timed is the engine around the experts.
    share = [
        f"{(stock[p] - ours[p]) / (stock[p] - ideal[p]):.0%}" if ideal[p] < 0.9 * stock[p] else "none to be had"
        for p in phases
    ]
    print("| of the ideal's saving | " + " | ".join(share) + " |")


if __name__ == "__main__":
    main()
