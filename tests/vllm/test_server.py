"""`vllm serve` with the plug-in: the OpenAI API under load, /metrics, requests that ask for something else."""
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

pytest.importorskip("vllm")

import models  # noqa: E402

NAME = "mixtral-8x2"
LAYERS = 6


class Server:
    """One `vllm serve` as a user starts it, in processes of its own."""

    def __init__(self, folder: pathlib.Path, *arguments: str, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        given = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        self.log = folder / "server.log"
        self._file = self.log.open("w")
        self.process = subprocess.Popen(
            [
                "vllm", "serve", str(models.MODELS / NAME), "--host", "127.0.0.1",
                "--port", str(self.port), "--dtype", "float32", "--enforce-eager",
                "--no-enable-prefix-caching", "--served-model-name", NAME, *arguments,
            ],
            env={**given, **environment}, stdout=self._file, stderr=self._file, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> "Server":
        for _ in range(600):
            if self.process.poll() is not None:
                pytest.fail(f"the server ended:\n{self.log.read_text()[-3000:]}")
            try:
                self.get("/health")
                return self
            except OSError:
                time.sleep(1)
        self.__exit__()
        pytest.fail(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def __exit__(self, *error) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._file.close()

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.read().decode()

    def complete(self, prompt, length: int, **options):
        body = {"model": NAME, "prompt": prompt, "max_tokens": length, "temperature": 0, **options}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["choices"][0]

    def metrics(self) -> dict:
        """{(name, frozenset of labels): value}."""
        found = {}
        for line in self.get("/metrics").splitlines():
            made = re.fullmatch(r"([a-z_:]+)(?:\{(.*)\})? ([-+.0-9e]+|NaN)", line)
            if made:
                labels = frozenset(re.findall(r'(\w+)="([^"]*)"', made[2] or ""))
                found[made[1], labels] = float(made[3])
        return found


def total(metrics: dict, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(v for (n, given), v in metrics.items() if n == name and wanted <= given)


def settled(server: Server) -> dict:
    """Metrics once they no longer change: the worker publishes each second."""
    last = server.metrics()
    for _ in range(30):
        time.sleep(2)
        now = server.metrics()
        if all(now.get(k) == v for k, v in last.items() if k[0].startswith("adaptive_k")):
            return now
        last = now
    return last


PROMPTS = ["The library ", "def main(argv):\n    ", "An index is ", "It was a truth "]


def test_serve(tmp_path):
    with Server(tmp_path) as server:
        stock = [server.complete(p, 24)["text"] for p in PROMPTS]
        assert total(server.metrics(), "adaptive_k_tokens_total") == 0

    folder = tmp_path / "metrics"
    folder.mkdir()
    settings = {"adaptive_k": {"policy": "top_p:0.8"}}
    with Server(
        tmp_path, "--additional-config", json.dumps(settings), PROMETHEUS_MULTIPROC_DIR=str(folder)
    ) as server:
        off = {"vllm_xargs": {"adaptive_k": "off"}}
        assert [server.complete(p, 24, **off)["text"] for p in PROMPTS] == stock

        with pytest.raises(urllib.error.HTTPError) as refused:
            server.complete("The ", 1, vllm_xargs={"adaptive_k_k_max": 0})
        assert refused.value.code == 400
        assert "adaptive_k_k_max: 0, expected an integer of 1 or more" in refused.value.read().decode()

        # The loss through the API is transformers' under the same policy.
        tokens = models.windows(NAME, 4)[:, :240]
        theirs, _ = models.in_transformers(NAME, tokens, "top_p:0.8")
        ours = []
        for row in tokens:
            given = server.complete(row.tolist(), 1, prompt_logprobs=0)["prompt_logprobs"][1:]
            ours.append([p[str(int(t))]["logprob"] for p, t in zip(given, row[1:])])
        assert abs(np.mean(ours) - theirs.mean()) < 1e-4

        before = settled(server)
        load = subprocess.run(
            [
                "vllm", "bench", "serve", "--backend", "openai", "--host", "127.0.0.1",
                "--port", str(server.port), "--endpoint", "/v1/completions",
                "--model", NAME, "--tokenizer", str(models.MODELS / NAME),
                "--dataset-name", "random", "--random-input-len", "48", "--random-output-len", "12",
                "--num-prompts", "200", "--max-concurrency", "16", "--ignore-eos",
                "--save-result", "--result-dir", str(tmp_path), "--result-filename", "load.json",
            ],
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert load.returncode == 0, load.stdout[-2000:] + load.stderr[-2000:]
        result = json.loads((tmp_path / "load.json").read_text())
        assert result["completed"] == 200 and result.get("failed", 0) == 0

        after = settled(server)
        read = total(after, "vllm:prompt_tokens_total") + total(after, "vllm:generation_tokens_total")
        answered = total(after, "vllm:request_success_total")
        for layer in range(LAYERS):
            # Each token once; the last of an answer is never read.
            counted = total(after, "adaptive_k_tokens_total", layer=str(layer))
            assert counted == read - answered, (layer, counted, read, answered)
        own = {"policy": "top_p:0.8", "model": NAME}
        calls = total(after, "adaptive_k_expert_calls_total", **own)
        of_full = total(after, "adaptive_k_full_expert_calls_total", **own)
        assert of_full == 2 * total(after, "adaptive_k_tokens_total", **own)
        assert 0.1 < 1 - calls / of_full < 0.5
        by_k = [total(after, "adaptive_k_k_total", k=str(k), **own) for k in (1, 2)]
        assert by_k[0] + 2 * by_k[1] == calls
        assert total(after, "adaptive_k_latency_seconds_count", **own) > 0
        assert total(after, "adaptive_k_tokens_total") > total(before, "adaptive_k_tokens_total")
        full = {"policy": "full", "model": NAME}
        assert total(after, "adaptive_k_expert_calls_total", **full) == total(
            after, "adaptive_k_full_expert_calls_total", **full
        )
        print(f"\nserved 200 requests in {result['duration']:.1f} s, saved {1 - calls / of_full:.2%}")


def test_a_wrong_preset_ends_the_server_with_one_line(tmp_path):
    made = Server(tmp_path, "--additional-config", '{"adaptive_k": {"preset": "mixtral-8x7b", "policy": "fixed:3"}}')
    try:
        assert made.process.wait(600) != 0
    finally:
        if made.process.poll() is None:
            os.killpg(made.process.pid, signal.SIGKILL)
    log = made.log.read_text()
    assert len(re.findall(r"adaptive_k refuses to start: .*fixed:3", log)) == 1, log[-3000:]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
