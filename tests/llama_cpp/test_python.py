"""llama-cpp-python, its own Python code on the libraries built here, with the plug-in loaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
import unittest

import models
from llama import PLUGIN, STOCK, environment

PACKAGE = models.TREE.parent.parent
PROMPT = "It was a truth "

BEGIN = f"""
import ctypes, sys
sys.path.insert(0, {str(PACKAGE)!r})
ggml = ctypes.CDLL({str(STOCK / "libggml.so")!r})
ggml.ggml_backend_load_all_from_path({str(STOCK)!r}.encode())  # and GGML_BACKEND_PATH's
import llama_cpp
def model():
    return llama_cpp.Llama(sys.argv[1], n_ctx=128, n_threads=1, verbose=False)
def text(llama):
    return llama({PROMPT!r}, max_tokens=24, temperature=0)["choices"][0]["text"]
"""


def python(program: str, policy: str | None) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-c", BEGIN + program, models.gguf_of(models.MODELS / "reference-32x8")],
                          capture_output=True, text=True, timeout=600,
                          env=environment(policy, LLAMA_CPP_LIB_PATH=str(STOCK)))
    if done.returncode != 0:
        raise RuntimeError(f"{done.returncode}\n{done.stdout}{done.stderr}")
    return done


class Python(unittest.TestCase):
    def test_texts(self) -> None:
        stock, full, one = (python("print(text(model()))", policy) for policy in (None, "full", "fixed:1"))
        self.assertEqual(full.stdout, stock.stdout)
        self.assertNotEqual(one.stdout, stock.stdout)
        self.assertIn("policy fixed:1", one.stderr)

    def test_a_context_freed_while_another_runs(self) -> None:
        alone = python("print(text(model()))", "top_p:0.8").stdout
        both = python("""
first, second = model(), model()
print(text(first), end="")
first.close()
print()
print(text(second))
second.close()
print(text(model()))
""", "top_p:0.8").stdout
        self.assertEqual(both, alone * 3)

    def test_two_copies_of_ggml_are_told_of(self) -> None:
        other = models.WORK / "copy" / "libggml.so"
        other.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy((STOCK / "libggml.so").resolve(), other)
        program = f"""
import os
os.environ["ADAPTIVE_K"] = "full"
copy = ctypes.CDLL({str(other)!r})
copy.ggml_backend_load.restype = ctypes.c_void_p
print(copy.ggml_backend_load({str(PLUGIN)!r}.encode()))
"""
        done = python(program, None)
        self.assertIn("None", done.stdout)
        self.assertIn("not loaded: two copies of ggml", done.stderr)

    def test_loaded_before_the_cpu(self) -> None:
        """In whatever order a program loads backends: here it has none but the plug-in, and says so itself."""
        done = subprocess.run([sys.executable, "-c", f"""
import ctypes
ggml = ctypes.CDLL({str(STOCK / "libggml.so")!r})
ggml.ggml_backend_load.restype = ctypes.c_void_p
assert ggml.ggml_backend_load({str(PLUGIN)!r}.encode())
ggml.ggml_backend_dev_by_name.restype = ctypes.c_void_p
device = ggml.ggml_backend_dev_by_name(b"adaptive-k")
base = ctypes.CDLL({str(STOCK / "libggml-base.so")!r})
base.ggml_backend_dev_init.restype = ctypes.c_void_p
base.ggml_backend_dev_init.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
assert base.ggml_backend_dev_init(device, None) is None
"""], capture_output=True, text=True, timeout=300, env=environment(None, ADAPTIVE_K="full"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("no CPU backend in this process", done.stderr)


if __name__ == "__main__":
    unittest.main()
