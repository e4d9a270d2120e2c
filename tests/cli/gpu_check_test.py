"""bench/gpu_check as a user runs it, over programs that stand in for a GPU's: what it writes, and what it
refuses with which words and status.

gpu_check_test.py SCRIPT
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

SCRIPT = sys.argv[1]
SHAPES = ((8, 2), (60, 4), (64, 8), (128, 8), (256, 8), (384, 8))
TOKENS = (1, 8, 64, 512, 4096, 16384)

# gpu_time and kernel_cost write rows for what they are asked; ctest prints what ctest prints.
GPU_TIME = """#!{python}
import json, sys
a = sys.argv[1:]
tokens = [int(t) for t in a[a.index("--tokens") + 1:] if t.isdigit()] if "--tokens" in a else []
if "--repeats" in a and a.index("--repeats") > a.index("--tokens"):
    tokens = [int(t) for t in a[a.index("--tokens") + 1:a.index("--repeats")]]
rows = [dict(device="Stand-in 9000", compute_capability={sm}, multiprocessors=66, clock_mhz=1500,
             num_experts=e, top_k=k, num_tokens=t, dtype=d, route_us={route}, route_permute_us=9.0,
             copy_us=2.0, row_sort_us=30.0, empty_us=1.5)
        for e, k in {shapes} for d in ("bf16", "f32") for t in tokens]
open(a[a.index("--json") + 1], "w").write({text})
"""
KERNEL_COST = """#!{python}
import json, sys
a = sys.argv[1:]
def after(option):
    rest = a[a.index(option) + 1:]
    ends = [i for i, word in enumerate(rest) if word.startswith("--")]
    return rest[:ends[0]] if ends else rest
assert after("--multiprocessors") == ["66"] and after("--clock-ghz") == ["1.500"], a
assert after("--model") == ["{model}"], a
rows = [dict(num_experts=int(s.split("/")[0]), top_k=int(s.split("/")[1]), num_tokens=int(t), dtype=d,
             modelled=dict(lower_us=2.0, upper_us=4.0))
        for s in after("--shape") for d in after("--dtype") for t in after("--tokens")]
open(a[a.index("--json") + 1], "w").write(json.dumps(rows))
"""
PASSED = "100% tests passed, 0 tests failed out of 19"
FAILED = """50% tests passed, 1 tests failed out of 2

The following tests FAILED:
  7 - softmax_topk_bf16.gpu (Failed)
"""


class Machine:
    """A build folder, and a ctest in front of the real one."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.report = self.folder / "report.json"
        self.write("build/bin/gpu_time", self.gpu_time())
        self.write("build/bin/kernel_cost", KERNEL_COST.format(python=sys.executable, model=90))
        self.ctest(PASSED)

    def gpu_time(self, route="4.5", sm=90, text="json.dumps(rows)"):
        return GPU_TIME.format(python=sys.executable, shapes=SHAPES, route=route, sm=sm, text=text)

    def write(self, name, text):
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)

    def ctest(self, prints, status=0):
        self.write("path/ctest", f"#!/bin/sh\ncat << 'END'\n{prints}\nEND\nexit {status}\n")

    def run(self, *arguments):
        environment = {**os.environ, "PATH": f"{self.folder / 'path'}:{os.environ['PATH']}"}
        return subprocess.run(
            [sys.executable, SCRIPT, "--build", str(self.folder / "build"), "-o", str(self.report), *arguments],
            capture_output=True, text=True, env=environment)

    def passes(self, *arguments):
        result = self.run(*arguments)
        assert result.returncode == 0, result.stderr
        return json.loads(self.report.read_text()), result.stdout

    def refuses(self, status, words, *arguments):
        result = self.run(*arguments)
        assert result.returncode == status, (result.returncode, result.stderr)
        assert words in result.stderr, result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr


def writes_a_report(m):
    report, printed = m.passes()
    assert report["format"] == "adaptive_k.gpu_check" and report["schema_version"] == 1
    assert report["device"] == {"name": "Stand-in 9000", "compute_capability": 90, "multiprocessors": 66,
                                "clock_mhz": 1500}
    assert report["tests"]["run"] == 19 and report["tests"]["failed"] == 0
    wanted = {(e, k, t, d) for e, k in SHAPES for t in TOKENS for d in ("bf16", "f32")}
    assert {(r["num_experts"], r["top_k"], r["num_tokens"], r["dtype"]) for r in report["rows"]} == wanted
    for row in report["rows"]:
        assert row["kernel_us"] == 3.0 and row["error"] == 0.0  # 4.5 less 1.5: between 2 and 4
        assert row["modelled"] == {"lower_us": 2.0, "upper_us": 4.0}
    assert report["rows_within_model"] == report["rows_modelled"] == 72
    assert "Stand-in 9000" in printed and "19 of 19 passed" in printed and "72 of 72 rows" in printed


def says_how_far_the_model_is_off(m):
    for route, error in (("2.5", -0.5), ("9.5", 1.0)):  # own times of 1 and 8, bounds of 2 and 4
        m.write("build/bin/gpu_time", m.gpu_time(route))
        report, printed = m.passes()
        assert {row["error"] for row in report["rows"]} == {error}
        assert report["rows_within_model"] == 0 and "0 of 72 rows" in printed


def models_what_it_can(m):
    m.write("build/bin/gpu_time", m.gpu_time(sm=80))
    m.write("build/bin/kernel_cost", KERNEL_COST.format(python=sys.executable, model=80))
    assert m.passes()[0]["rows_modelled"] == 72
    m.write("build/bin/gpu_time", m.gpu_time(sm=120))
    report, printed = m.passes()
    assert report["rows_modelled"] == 0 and report["rows_within_model"] is None
    assert all(row["modelled"] is None and row["error"] is None for row in report["rows"])
    assert "nothing, for this architecture" in printed


def fails_with_its_tests(m):
    m.ctest(FAILED, 8)
    m.refuses(1, "softmax_topk_bf16.gpu")
    report = json.loads(m.report.read_text())  # it is written all the same
    assert report["tests"]["names_of_failed"] == ["softmax_topk_bf16.gpu"] and len(report["rows"]) == 72
    assert report["tests"]["output"]
    assert m.passes("--skip-tests")[0]["tests"] is None
    m.ctest("No tests were found!!!")
    m.refuses(2, "ADAPTIVE_K_TEST_GPU")


def says_that_there_is_no_gpu(m):
    m.write("build/bin/gpu_time", "#!/bin/sh\necho 'gpu_time: no GPU to measure on (no device)' >&2\nexit 3\n")
    m.refuses(3, "no GPU to check on")
    assert not m.report.exists()


def refuses_what_is_amiss(m):
    m.write("build/bin/gpu_time", "#!/bin/sh\necho 'gpu_time: out of memory' >&2\nexit 2\n")
    m.refuses(1, "out of memory")
    m.write("build/bin/gpu_time", m.gpu_time(text="'no JSON'"))
    m.refuses(1, "no JSON came of it")
    m.write("build/bin/gpu_time", m.gpu_time(text="'[]'"))
    m.refuses(1, "no rows")
    m.write("build/bin/gpu_time", m.gpu_time(text="json.dumps(rows).replace('empty_us', 'other')"))
    m.refuses(1, "a row without empty_us")
    m.write("build/bin/gpu_time", m.gpu_time(route="float('nan')"))
    m.refuses(1, "a time that is none")
    m.write("build/bin/gpu_time", "#!/bin/sh\nsleep 30\n")
    m.refuses(1, "when the time was up", "--limit", "1")
    (m.folder / "build/bin/gpu_time").unlink()
    m.refuses(2, "not built")
    m.write("build/bin/gpu_time", m.gpu_time())
    m.refuses(2, "cannot be written", "-o", str(m.folder / "nowhere" / "report.json"))
    for mistake in (["--repeats", "0"], ["--limit", "soon"], ["--shape", "8/2"]):
        result = m.run(*mistake)
        assert result.returncode == 2 and mistake[0] in result.stderr, result.stderr
    assert not m.report.exists()


for test in (writes_a_report, says_how_far_the_model_is_off, models_what_it_can, fails_with_its_tests,
             says_that_there_is_no_gpu, refuses_what_is_amiss):
    with tempfile.TemporaryDirectory() as folder:
        test(Machine(folder))
    print(f"{test.__name__}: passed")
