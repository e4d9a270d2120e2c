"""One thread, one process where a test does not ask for more, nothing looked up in a hub."""
import os

os.environ.update(
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_CPU_KVCACHE_SPACE="1", VLLM_ALLOW_LONG_MAX_MODEL_LEN="1", VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1", TRANSFORMERS_VERBOSITY="error",
)  # fmt: skip
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.pop("ADAPTIVE_K_VLLM", None)
