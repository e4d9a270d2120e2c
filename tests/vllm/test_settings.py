"""What the plug-in is told, and what it refuses to be told; without an engine."""
import json
import subprocess
import sys

import pytest

from adaptive_k.vllm import settings
from adaptive_k.vllm.requests import Chooser
from adaptive_k.vllm.settings import Refused


def test_off_unless_asked_for(monkeypatch):
    monkeypatch.delenv(settings.ENVIRONMENT, raising=False)
    for nothing in ({}, None, {"other": 1}, {"adaptive_k": None}):
        assert settings.find(nothing) is None


def test_of_the_config_or_of_the_environment(monkeypatch):
    monkeypatch.setenv(settings.ENVIRONMENT, "top_p:0.85")
    assert settings.find({}).policy == "top_p:0.85"
    assert settings.find({"adaptive_k": {"policy": "full"}}).policy == "full"  # the config goes first
    monkeypatch.setenv(settings.ENVIRONMENT, json.dumps({"preset": "reference-32x8", "shadow": True}))
    found = settings.find({})
    assert (found.preset, found.shadow) == ("reference-32x8", True)
    monkeypatch.setenv(settings.ENVIRONMENT, "{oops")
    with pytest.raises(Refused, match="ADAPTIVE_K_VLLM"):
        settings.find({})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "neither preset nor policy"),
        ({"policy": 3}, "policy: 3, expected a string"),
        ({"polcy": "full"}, "polcy: not known"),
        ({"policy": "full", "shadow": "yes"}, "shadow: 'yes'"),
        ({"policy": "full", "salt": True}, "salt: True, expected an integer"),
        ({"policy": "full", "controller": {}}, "controller.expert_savings: missing"),
        ({"policy": "full", "controller": {"expert_savings": "x"}}, "expected a number"),
        ({"variants": [{"name": "a", "policy": "full"}]}, "two variants or more"),
        ({"variants": [{"name": "a"}, {"name": "b"}]}, r"variants\[0\].policy: missing"),
        ({"variants": [{"name": "a"}, {"name": "a"}], "preset": "x"}, "is taken"),
        ({"variants": [{"name": "off"}, {"name": "b"}], "preset": "x"}, "other than off"),
        ({"variants": [{"name": "a", "weight": 0}, {"name": "b"}], "preset": "x"}, "above 0"),
        ({"variants": [{"name": "a"}, {"name": "b"}], "preset": "x", "policy": "full"}, "beside"),
        ([], "expected an object"),
    ],
)
def test_refusals_name_the_field(given, told):
    with pytest.raises(Refused, match=told):
        settings.read(given)


def test_requests_ask_by_extra_args():
    chooser = Chooser(settings.read({"policy": "fixed:2"}))
    chooser.check(None)
    chooser.check({"adaptive_k": "off", "other": 1})
    chooser.check({"adaptive_k_k_max": 3})
    for wrong, told in (
        ({"adaptive_k": "of"}, "adaptive_k: 'of', expected one of off, on"),
        ({"adaptive_k_k_max": 0}, "k_max: 0"),
        ({"adaptive_k_k_max": True}, "k_max: True"),
        ({"adaptive_k_k_max": "4"}, "k_max: '4'"),
    ):
        with pytest.raises(ValueError, match=told):
            chooser.check(wrong)
    closed = Chooser(settings.read({"policy": "fixed:2", "overrides": False}))
    with pytest.raises(ValueError, match="overrides is false"):
        closed.check({"adaptive_k": "off"})
    shadowed = Chooser(settings.read({"policy": "fixed:2", "shadow": True}))
    with pytest.raises(ValueError, match="shadow mode"):
        shadowed.check({"adaptive_k_k_max": 3})


def test_kv_of_different_routing_gets_different_salts():
    def salt(given, **extra):
        chooser = Chooser(settings.read(given))
        return chooser.salt(chooser.resolve("id", extra))

    two = {"policy": "fixed:2"}
    assert salt(two) and salt(two) == salt(two)
    assert salt(two, adaptive_k="off") == "" == salt({**two, "shadow": True})
    assert len({salt(two), salt({"policy": "fixed:3"}), salt(two, adaptive_k_k_max=1)}) == 3
    assert salt(two, adaptive_k="off", adaptive_k_k_max=1) != ""


def test_a_request_keeps_its_variant():
    given = {"variants": [{"name": "a", "policy": "full", "weight": 3}, {"name": "b", "policy": "fixed:1"}]}
    chooser = Chooser(settings.read(given))
    names = [chooser.resolve(f"request-{i}", None)["adaptive_k"] for i in range(4000)]
    assert names == [chooser.resolve(f"request-{i}", {})["adaptive_k"] for i in range(4000)]
    assert abs(names.count("a") / 4000 - 0.75) < 0.03
    assert chooser.resolve("x", {"adaptive_k": "b"})["adaptive_k"] == "b"


def test_importable_without_an_engine():
    code = (
        "import sys; sys.modules['vllm'] = sys.modules['torch'] = None\n"
        "import adaptive_k.vllm; print(adaptive_k.vllm.Settings(policy='full').policy)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "full"
