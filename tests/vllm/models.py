"""The reference models, their held-out texts, and their loss in transformers and in vLLM."""
from __future__ import annotations

import functools
import gc
import json
import pathlib
from typing import Any, Optional

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "bench/models"
WINDOW = 256
# Longer than the models' 256 positions by the token that vLLM wants room for and no model reads.
_LENGTH = 264


def available() -> list[str]:
    """Models with weights; a folder without is one whose training has not ended."""
    return sorted(f.parent.name for f in MODELS.glob("*/model.safetensors"))


def moe_layers(name: str) -> int:
    given = config(name)
    return int(given["num_hidden_layers"]) - int(given.get("first_k_dense_replace") or 0)


@functools.lru_cache(maxsize=None)
def config(name: str) -> dict:
    return json.loads((MODELS / name / "config.json").read_text())


def top_k(name: str) -> int:
    return int(config(name)["num_experts_per_tok"])


@functools.lru_cache(maxsize=None)
def windows(name: str, count: int) -> np.ndarray:
    """[count, 256] int32 of held-out text, by the model's own tokenizer; bytes where it has none."""
    folder = MODELS / name
    if (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        text = (MODELS / "texts/technical_test.txt").read_text()
        tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    else:
        tokens = list((folder / "heldout_test.txt").read_bytes())
    assert len(tokens) >= count * WINDOW
    return np.array(tokens[: count * WINDOW], np.int32).reshape(count, WINDOW)


def in_transformers(name: str, tokens: np.ndarray, spec: str, preset: str = "") -> tuple[np.ndarray, Any]:
    """Log-likelihoods [count, 255] of the next tokens, and the Metrics, under a policy."""
    import torch
    from transformers import AutoModelForCausalLM

    from adaptive_k import AdaptiveKRouter

    model = AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()
    made = AdaptiveKRouter.from_pretrained(preset, spec) if preset else AdaptiveKRouter(policy=spec)
    made.patch(model)
    made.reset_stats()
    found = []
    with torch.inference_mode():
        for part in np.array_split(tokens, max(1, len(tokens) // 16)):
            ids = torch.from_numpy(part.astype(np.int64))
            logits = model(ids, use_cache=False).logits[:, :-1].float()
            found.append(logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].numpy())
    return np.concatenate(found), made.metrics


class Engine:
    """vLLM's own LLM on one model, closed at the end of a with block."""

    def __init__(self, name: str, settings: Optional[dict] = None, **options: Any) -> None:
        from vllm import LLM

        given: dict[str, Any] = dict(
            model=str(MODELS / name), skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
            max_model_len=_LENGTH, max_num_seqs=8, enable_prefix_caching=False,
            distributed_executor_backend="uni",
        )  # fmt: skip
        given.update(options)
        if settings is not None:
            given["additional_config"] = {"adaptive_k": settings}
        self.llm = LLM(**given)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        cleanup_dist_env_and_memory()

    def likelihoods(self, tokens: np.ndarray, extra_args: Any = None) -> np.ndarray:
        """[count, length - 1] of the next tokens, by prompt_logprobs. `extra_args`: of all, or of each."""
        from vllm import SamplingParams

        each = extra_args if isinstance(extra_args, list) else [extra_args] * len(tokens)
        params = [
            SamplingParams(
                max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False, extra_args=args
            )
            for args in each
        ]
        prompts = [{"prompt_token_ids": row.tolist()} for row in tokens]
        made = self.llm.generate(prompts, params, use_tqdm=False)
        return np.array(
            [
                [p[int(t)].logprob for p, t in zip(out.prompt_logprobs[1:], row[1:])]
                for out, row in zip(made, tokens)
            ]
        )

    def generate(self, tokens: np.ndarray, length: int, extra_args: Any = None) -> list[list[int]]:
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=length, temperature=0, detokenize=False, ignore_eos=True, extra_args=extra_args
        )
        prompts = [{"prompt_token_ids": row.tolist()} for row in tokens]
        return [list(o.outputs[0].token_ids) for o in self.llm.generate(prompts, params, use_tqdm=False)]

    def workers(self) -> list[dict]:
        return self.llm.collective_rpc("adaptive_k_metrics")

    def counted(self) -> dict:
        """Counters of the only policy that counted anything, over all layers."""
        (found,) = [c for c in self.workers()[0]["policies"].values() if c["calls"]]
        return found

    def reset(self) -> None:
        self.llm.collective_rpc("adaptive_k_reset")
