"""What the plug-in publishes has the names, texts, buckets and values of the library's own recorder."""
import re

import numpy as np
import pytest

client = pytest.importorskip("prometheus_client")
pytest.importorskip("torch")
observability = pytest.importorskip("adaptive_k.observability")

from adaptive_k import Gating, Metrics, Policy, Router  # noqa: E402
from adaptive_k.vllm import metrics as published  # noqa: E402
from adaptive_k.vllm.routing import Arm  # noqa: E402


def samples(text: str) -> dict:
    found = {}
    for line in text.splitlines():
        made = re.fullmatch(r"(adaptive_k\w+)\{(.*)\} (\S+)", line)
        if made and "_created" not in made[1]:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', made[2]))
            if "le" in labels:
                labels["le"] = str(float(labels["le"]))
            found[made[1], frozenset(labels.items())] = float(made[3])
    return found


def heads(text: str) -> dict:
    return dict(re.findall(r"# HELP (adaptive_k\w+) (.*)", text))


def test_as_the_librarys_recorder():
    gating = Gating(32, 8)
    router = Router(gating, Policy.top_p(0.8, 8))
    arm = Arm("on", "top_p:0.8", router.policy, False, router)
    recorder = observability.Recorder()
    publisher = published.Publisher("a model", [arm], 2, None)
    for step in range(5):
        for layer in range(2):
            counted = Metrics()
            logits = np.random.default_rng(step).normal(0, 2, (17, 32)).astype(np.float32)
            router.route(logits, metrics=counted, shadow=step == 4)
            recorder.record("a model", layer, arm.label, counted, 3e-5 * (step + 1))
            publisher.add(layer, arm, counted, [3e-5 * (step + 1)])
        if step % 2:
            publisher.publish()
    publisher.publish()
    ours, theirs = client.generate_latest().decode(), recorder.render()
    own, known = samples(ours), samples(theirs)
    assert len(own) >= 70
    for key, value in own.items():
        assert known[key] == pytest.approx(value, rel=1e-6), key
    # What it leaves out is what no engine's step has: padding, entropies, bad numbers, refused labels.
    missing = {name for name, labels in known if (name, labels) not in own}
    assert all(re.search("padding|entropy|invalid|dropped|refused|_k_total", name) for name in missing), missing
    for name, text in heads(ours).items():
        if name.endswith("_created") or name.startswith("adaptive_k_controller"):
            continue  # of the Python client; of what the recorder does not know
        assert heads(theirs)[name] == text
