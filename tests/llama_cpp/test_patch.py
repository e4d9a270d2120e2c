"""The edits for static builds: made where a tree looks as expected, undone, and refused elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import unittest
from pathlib import Path

import models

TREE = models.TREE
FILES = ("ggml/src/ggml-backend-reg.cpp", "ggml/src/CMakeLists.txt")


def patch(tree: Path, *options: str) -> subprocess.CompletedProcess:
    script = models.ROOT / "examples" / "llama_cpp" / "patch.cmake"
    return subprocess.run(["cmake", f"-DLLAMA_CPP_DIR={tree}", *options, "-P", script], capture_output=True, text=True)


class Patch(unittest.TestCase):
    def setUp(self) -> None:
        self.tree = models.WORK / "patched"
        for file in FILES:
            (self.tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TREE / file, self.tree / file)

    def texts(self, tree: Path) -> list[str]:
        return [(tree / file).read_text() for file in FILES]

    def test_there_and_back(self) -> None:
        self.assertEqual(patch(self.tree).returncode, 0)
        registry, build = self.texts(self.tree)
        self.assertEqual(registry.count("ggml_backend_adaptive_k_reg"), 2)
        self.assertEqual(build.count("static.cmake"), 1)
        twice = patch(self.tree)
        self.assertNotEqual(twice.returncode, 0)
        self.assertIn("is edited already", twice.stderr)
        self.assertEqual(patch(self.tree, "-DREVERSE=ON").returncode, 0)
        self.assertEqual(self.texts(self.tree), self.texts(TREE))

    def test_other_trees(self) -> None:
        for file, old, new in ((FILES[0], "namespace fs = std::filesystem;", "namespace filesystem = std::filesystem;"),
                               (FILES[1], "target_link_libraries(ggml PUBLIC ggml-base)\n",
                                "target_link_libraries(ggml PUBLIC ggml-base)\n" * 2)):
            self.setUp()
            (self.tree / file).write_text((self.tree / file).read_text().replace(old, new))
            before = self.texts(self.tree)
            refused = patch(self.tree)
            self.assertNotEqual(refused.returncode, 0)
            self.assertIn("expected once", " ".join(refused.stderr.split()))
            self.assertEqual(self.texts(self.tree), before)
        nothing = patch(models.WORK / "no-such-tree")
        self.assertIn("expected a source tree", " ".join(nothing.stderr.split()))


if __name__ == "__main__":
    unittest.main()
