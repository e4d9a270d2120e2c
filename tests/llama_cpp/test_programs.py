"""llama.cpp's own programs, as built from its sources, with the plug-in loaded by the environment alone."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
import unittest
import urllib.request

import models
from llama import STOCK, environment

TEXT = models.MODELS / "texts" / "technical_test.txt"
REFERENCE = models.MODELS / "reference-32x8"


def run(program: str, *arguments: object, policy: str | None = None, **variables: str) -> subprocess.CompletedProcess:
    done = subprocess.run([STOCK / program, *map(str, arguments)], capture_output=True, text=True, timeout=900,
                          env=environment(policy, **variables))
    if done.returncode != 0:
        raise RuntimeError(f"{program}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done


def free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


def get(url: str, body: dict | None = None) -> str:
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


def expert_calls(metrics: str) -> float:
    return sum(float(value) for value in re.findall(r"^adaptive_k_expert_calls_total\{.*\} (\S+)$", metrics, re.M))


class Programs(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.model = models.gguf_of(REFERENCE)

    def test_perplexity_and_its_divergence(self) -> None:
        base = models.WORK / "full.kld"
        arguments = ("-m", self.model, "-f", TEXT, "-c", 256, "-b", 256, "--chunks", 6, "-t", 1)
        plain = run("llama-perplexity", *arguments, "--kl-divergence-base", base)

        def divergence(policy: str) -> float:
            done = run("llama-perplexity", *arguments, "--kl-divergence-base", base, "--kl-divergence", policy=policy)
            found = re.search(r"Mean\s+KLD:\s+(\S+)", done.stdout + done.stderr)
            self.assertIsNotNone(found, done.stdout[-2000:])
            return float(found[1])

        self.assertIn("Final estimate", plain.stdout + plain.stderr)
        full, adaptive, fixed = divergence("full"), divergence("auto"), divergence("fixed:4")
        self.assertLess(abs(full), 1e-5)  # the file holds 16 bits a probability
        self.assertGreater(adaptive, 1e-3)
        self.assertLess(adaptive, fixed)

    def test_bench(self) -> None:
        arguments = ("-m", self.model, "-p", 64, "-n", 8, "-t", 1, "-r", 1, "-o", "json")
        done = run("llama-bench", *arguments, policy="fixed:4")
        tests = json.loads(done.stdout)
        self.assertEqual([(test["n_prompt"], test["n_gen"]) for test in tests], [(64, 0), (0, 8)])
        self.assertTrue(all(test["avg_ts"] > 0 for test in tests))
        self.assertIn("policy fixed:4", done.stderr)

    def test_log(self) -> None:
        log = models.WORK / "batches.jsonl"
        log.unlink(missing_ok=True)
        run("llama-bench", "-m", self.model, "-p", 32, "-n", 0, "-t", 1, "-r", 1, policy="fixed:2",
            ADAPTIVE_K_LOG=str(log))
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        self.assertGreaterEqual(len(lines), 1)
        self.assertEqual({(line["adaptive_k.avg_k"], line["adaptive_k.model"]) for line in lines},
                         {(2.0, "reference-32x8")})

    @unittest.skipUnless((STOCK / "llama-server").exists(), "llama-server was not built: LLAMA_CPP_ALL=1")
    def test_server_with_two_requests_at_once(self) -> None:
        port, metrics_port = free_port(), free_port()
        log = (models.WORK / "server.log").open("w")
        server = subprocess.Popen([STOCK / "llama-server", "-m", self.model, "--port", str(port), "-c", "512", "-np",
                                   "2", "-t", "1"], stdout=log, stderr=log,
                                  env=environment("calibrated", ADAPTIVE_K="reference-32x8",
                                                  ADAPTIVE_K_METRICS_PORT=str(metrics_port)))
        try:
            for _ in range(240):
                try:
                    get(f"http://127.0.0.1:{port}/health")
                    break
                except OSError:
                    self.assertIsNone(server.poll(), (models.WORK / "server.log").read_text()[-2000:])
                    time.sleep(0.5)
            answers: list[str] = []

            def ask(prompt: str) -> None:
                body = {"prompt": prompt, "n_predict": 48, "temperature": 0, "ignore_eos": True}
                answers.append(json.loads(get(f"http://127.0.0.1:{port}/completion", body))["content"])

            threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in ("It was a truth ", "She had been ")]
            for thread in threads:
                thread.start()
            scraped = get(f"http://127.0.0.1:{metrics_port}/metrics")  # while it runs
            for thread in threads:
                thread.join()
            self.assertIn("adaptive_k_", scraped)
            self.assertEqual(len(answers), 2)
            self.assertTrue(all(len(answer) >= 40 for answer in answers), answers)
            self.assertGreater(expert_calls(get(f"http://127.0.0.1:{metrics_port}/metrics")), 48 * 4)
        finally:
            server.terminate()
            server.wait(timeout=60)
            log.close()


if __name__ == "__main__":
    unittest.main()
