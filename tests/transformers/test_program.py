"""The console script on models of transformers: the program's own commands, table and JSON."""
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("adaptive_k._program")

import tiny_models  # noqa: E402

import adaptive_k  # noqa: E402
from adaptive_k import AdaptiveKRouter, Calibrator, cli  # noqa: E402

MODELS = pathlib.Path(__file__).parents[2] / "bench" / "models"
REFERENCE = MODELS / "reference-32x8"


def run(*arguments, cwd=None, status=0):
    """In a process of its own, as a user's."""
    done = subprocess.run(
        [sys.executable, "-m", "adaptive_k.cli", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, timeout=900,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder of a tiny model of bytes, and a text."""
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen"
    model = tiny_models.make("Qwen3Moe", vocab_size=256)
    model.save_pretrained(folder)
    text = folder.parent / "text.txt"
    text.write_bytes(np.random.default_rng(0).integers(97, 123, 32 * 200, dtype=np.uint8).tobytes())
    return folder, text


def test_benchmark_of_the_reference_model_is_the_c_engines(tmp_path):
    report = tmp_path / "report.json"
    run(
        "benchmark", "--model", REFERENCE, "--dtype", "float32", "--policy", "calibrated",
        "--windows", 64, "--json", report, cwd=tmp_path,
    )  # fmt: skip
    read = json.loads(report.read_text())
    # What the C++ program with its own engine prints for the same command.
    assert read["baseline"]["mean_nll"] == pytest.approx(1.2264801, abs=1e-4)
    assert read["policy"]["mean_nll"] == pytest.approx(1.2317609, abs=1e-4)
    assert read["policy"]["mean_kl"] == pytest.approx(0.0053428, abs=1e-4)
    assert read["policy"]["expert_savings"] == pytest.approx(0.471994, abs=1e-3)
    assert read["beats_fixed_k"]["verdict"]


def expected(model):
    file = MODELS / model / "expected_loss.json"
    return json.loads(file.read_text()) if file.exists() else {}


@pytest.mark.parametrize("model", ["mixtral-8x2", "olmoe-64x8", "qwen-60x4", "sigmoid-128x6"])
def test_a_whole_text_has_the_loss_that_every_engine_is_held_to(model, tmp_path):
    """Full K on all windows of a held-out text, tokenised here: the loss recorded with the model, which
    the C++ engine's test compares with, too."""
    texts = expected(model).get("texts")
    if not texts:
        pytest.skip(f"{model} is not trained yet")
    report = tmp_path / "report.json"
    run(
        "benchmark", "--model", MODELS / model, "--dtype", "float32", "--policy", "fixed:1",
        "--dataset", MODELS / "texts" / "technical_test.txt",
        "--context", expected(model)["window"], "--json", report, cwd=tmp_path,
    )  # fmt: skip
    read, text = json.loads(report.read_text()), texts["technical_test"]
    assert read["dataset"]["predictions"] == text["predictions"]
    assert read["baseline"]["mean_nll"] == pytest.approx(text["nats_per_token"], abs=1e-4)
    assert read["policy"]["mean_k"] == 1


def test_the_table_and_an_html_report(tiny, tmp_path):
    folder, text = tiny
    page = tmp_path / "report.html"
    done = run(
        "benchmark", "--model", folder, "--dataset", text, "--policy", "top_p:0.7", "--context", 32,
        "--windows", 8, "--html", page,
    )  # fmt: skip
    for word in ("full K", "policy", "fixed K", "mean KL", "perplexity"):
        assert word in done.stdout
    assert "4 a token" in done.stderr and "under full K" in done.stderr
    written = page.read_text()
    assert "<script" not in written and "http" not in written.replace("http://www.w3", "")
    assert written.count("<svg") == 2 and "control: fixed K at equal mean K" in written


def test_a_preset_made_here_is_used_here_and_by_from_pretrained(tiny, tmp_path):
    folder, text = tiny
    out = tmp_path / "tiny-qwen.json"
    run(
        "calibrate", "--model", folder, "--dataset", text, "--context", 32, "--tokens", 2048,
        "--target-savings", 0.4, "--test-windows", 16, "-o", out, cwd=tmp_path,
    )  # fmt: skip
    preset = adaptive_k.Preset.load(str(out))
    assert preset.gating.num_experts == 8 and preset.num_moe_layers == 2
    router = AdaptiveKRouter.from_pretrained(str(out))
    model = tiny_models.make("Qwen3Moe", vocab_size=256)
    router.patch(model)
    ids = torch.from_numpy(np.frombuffer(text.read_bytes(), np.uint8).astype(np.int64))[3200:4224]
    with torch.no_grad():
        model(ids.view(32, 32))
    assert router.stats["average_savings"] == pytest.approx(0.4, abs=0.06)


def test_record_then_trace_needs_no_model(tiny, tmp_path):
    folder, text = tiny
    trace = tmp_path / "trace.safetensors"
    run(
        "record", "--model", folder, "--dataset", text, "--context", 32, "--windows", 4, "-o", trace
    )
    done = run("benchmark", "--trace", trace, "--policy", "top_p:0.7")
    assert "mean K" in done.stdout


def test_generate(tiny):
    folder, _ = tiny
    done = run("generate", "--model", folder, "--prompt", "abc", "--policy", "fixed:1", "--max-new-tokens", 4)
    assert done.stdout.startswith("abc") and "saved 75.0% of the expert calls" in done.stderr


@pytest.mark.parametrize(
    ("asked", "takes_stem", "named"),
    [
        ("a=b.txt", False, ("a=", "b.txt")),
        ("x/b.txt", False, ("", "x/b.txt")),
        ("x/b.txt", True, ("b=", "x/b.txt")),
        ("./a=b.txt", False, ("", "./a=b.txt")),
        ("a=", True, ("a=", "")),
    ],
)
def test_texts_are_named_by_the_programs_rule(asked, takes_stem, named):
    assert cli._named(asked, takes_stem) == named


def test_presets_and_help():
    assert "mixtral-8x7b" in run("presets").stdout
    told = run("benchmark", "--help").stdout
    assert "--policy" in told and "a hub id" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmark"], "--model: missing"),
        (["benchmark", "--model", "no/such-model"], "--model: no/such-model: "),
        (["benchmark", "--model", "reference-32x8"], "is a preset without a hub id"),
        (["combine", "--model", "x"], "combine runs in the C++ engine alone"),
        (["matrix", "--model", "x"], "matrix runs in the C++ engine alone"),
        (["calibrate", "--model", "x", "--html", "a.html"], "--html: only benchmark and frontier"),
        (["nothing"], "nothing"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(arguments, message):
    done = run(*arguments, status=2)
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_model_without_experts_is_refused(tmp_path):
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    done = run("benchmark", "--model", tmp_path / "llama", status=2)
    assert "no MoE layer was found" in done.stderr


def test_custom_calibration():
    """The published README's example, as it stands."""
    your_model = tiny_models.make("Mixtral")
    calibration_data = torch.randint(3, 96, (40, 64), generator=torch.Generator().manual_seed(0))

    from adaptive_k import Calibrator

    calibrator = Calibrator(
        target_savings=0.40,      # 40% target savings
        quality_threshold=0.99    # Max 1% quality loss
    )  # fmt: skip
    calibrator.context = 64

    result = calibrator.calibrate(
        model=your_model,
        dataset=calibration_data
    )  # fmt: skip

    lines = [
        f"Optimal thresholds: {result.optimal_thresholds}",
        f"Expected savings: {result.expected_savings:.1%}",
    ]
    assert "[" in lines[0] and result.samples_analyzed > 0
    kept = result.quality_retention
    assert kept >= 0.98 and 0 < result.expected_savings < 0.45
    router = result.router()
    router.patch(your_model)
    with torch.no_grad():
        your_model(calibration_data[20:])
    assert router.stats["average_savings"] == pytest.approx(result.expected_savings, abs=0.05)


def test_calibrator_refuses():
    with pytest.raises(ValueError, match="target_savings: 1.5, expected above 0 and below 1"):
        Calibrator(target_savings=1.5)
    model = tiny_models.make("Phimoe")
    with pytest.raises(ValueError, match="expected at most 0.5: one expert of 2"):
        Calibrator(target_savings=0.6).calibrate(model, torch.zeros(10))
    with pytest.raises(ValueError, match="windows"):
        Calibrator(target_savings=0.4, context=64).calibrate(model, torch.zeros(200))
