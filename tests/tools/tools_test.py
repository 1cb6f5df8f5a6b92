"""tools/check_layers, tools/check_docs and tools/bootstrap on small trees made for the purpose."""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import unittest

TOOLS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools")


class TreeTest(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.root)

    def write(self, path, text, mode="w"):
        path = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, mode) as file:
            file.write(text)

    def run_tool(self, *command, **kwargs):
        result = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)
        return result.returncode, result.stdout + result.stderr


class CheckLayersTest(TreeTest):
    def check(self, path, line):
        self.write(path, f"#pragma once\n{line}\n")
        return self.run_tool(os.path.join(TOOLS, "check_layers"), self.root)

    def test_leftward_includes_pass(self):
        self.write("src/layout/page.h", '#include "src/core/half.h"\n#include "src/recipe/text.h"\n#include <vector>\n')
        self.write("src/backends/cpu/attend.cc", '#include <hwy/highway.h>\n#include "src/ops/attend.h"\n')
        self.write("src/cache/cache.cc", '#include "kvrazor/cache.h"\n#include "src/ops/attend.h"\n')
        self.write("tests/cache/cache_test.cc", '#include "src/cache/cache.h"\n#include "reference/attend.h"\n')
        self.write("apps/main.cc", '#include "kvrazor/recipe.h"\n#include "eval/perplexity.h"\n#include <fmt/format.h>\n')
        status, output = self.run_tool(os.path.join(TOOLS, "check_layers"), self.root)
        self.assertEqual(status, 0, output)
        self.assertIn("12 includes in 5 files, 0 against", output)

    def assert_refused(self, path, line, *words):
        status, output = self.check(path, line)
        self.assertEqual(status, 1, output)
        for word in (f"{path}:2: {line}", *words):
            self.assertIn(word, output)

    def test_rightward_include(self):
        self.assert_refused("src/recipe/text.cc", '#include "src/ops/attend.h"', "src/recipe may include", "not src/ops")

    def test_cache_may_not_know_a_backend(self):
        self.assert_refused("src/cache/cache.cc", '#include "src/backends/cpu/attend.h"', "not src/backends/cpu")

    def test_one_backend_may_not_include_another(self):
        self.assert_refused("src/backends/cuda/attend.cc", '#include "src/backends/cpu/dot.h"', "not src/backends/cpu")

    def test_public_headers_include_no_source(self):
        self.assert_refused("include/kvrazor/cache.h", '#include "src/core/half.h"', "not src/core")

    def test_programs_use_the_public_headers(self):
        self.assert_refused("apps/main.cc", '#include "src/cache/cache.h"', "not src/cache")

    def test_reference_shares_no_arithmetic(self):
        self.assert_refused("reference/attend.cc", '#include "src/codecs/affine/codec.h"', "not src/codecs")

    def test_core_library_needs_highway_alone(self):
        self.assert_refused("src/ops/attend.cc", "#include <fmt/format.h>", "may not depend on it")
        self.assert_refused("src/cache/cache.cc", "#include <hwy/highway.h>", "may not depend on it")
        self.assert_refused("src/backends/cpu/x.cc", "#include <cuda_fp16.h>", "may not depend on it")

    def test_unknown_folder(self):
        self.assert_refused("src/extras/x.h", '#include "src/core/half.h"', "has no layer")

    def test_relative_include(self):
        self.assert_refused("src/core/x.cc", '#include "../recipe/text.h"', "path from the repository's root")

    def test_empty_tree(self):
        status, output = self.run_tool(os.path.join(TOOLS, "check_layers"), self.root)
        self.assertEqual(status, 1)
        self.assertIn("no source files", output)


class CheckDocsTest(TreeTest):
    def check(self, text):
        self.write("README.md", text)
        self.write("docs/flow.md", "# Flow\n\n## Read path\n")
        self.write("tools/bootstrap", "")
        self.write("Makefile", "test: build\nbuild:\n")
        return self.run_tool(os.path.join(TOOLS, "check_docs"), self.root)

    def test_true_claims_pass(self):
        status, output = self.check(
            "# Title\n[flow](docs/flow.md#read-path) [here](#title) [web](https://example.org/x) `docs/flow.md` `src/<name>.cc`\n"
            "```console\n$ tools/bootstrap sources\nsrc/output is not checked\n$ make test\n```\n"
            "```cpp\n// tools/nothing [x](y.md)\n```\n")
        self.assertEqual(status, 0, output)

    def assert_refused(self, text, *words):
        status, output = self.check(text)
        self.assertEqual(status, 1, output)
        for word in words:
            self.assertIn(word, output)

    def test_dead_link(self):
        self.assert_refused("\n[x](docs/gone.md)\n", "README.md:2: link to 'docs/gone.md': no such file")

    def test_dead_anchor(self):
        self.assert_refused("[x](docs/flow.md#write-path)\n", "has no such heading")

    def test_dead_path(self):
        self.assert_refused("see `src/core/gone.h`\n", "`src/core/gone.h`: no such file")

    def test_dead_command(self):
        self.assert_refused("```sh\ntools/gone --now\n```\n", "command 'tools/gone': no such file")

    def test_unknown_make_target(self):
        self.assert_refused("Run `make everything`.\n", "'make everything'")
        self.assert_refused("```console\n$ make tset\n```\n", "'make tset'")


class BootstrapTest(TreeTest):
    """On a copy of the tool, with small archives in build/_deps/downloads instead of a network."""

    def setUp(self):
        super().setUp()
        os.makedirs(os.path.join(self.root, "tools"))
        shutil.copy(os.path.join(TOOLS, "bootstrap"), os.path.join(self.root, "tools"))
        self.write("vendor/llama.cpp/include/llama.h", "// header\n")
        self.write("vendor/llama.cpp/.git", "gitdir: elsewhere\n")
        self.write("vendor/llama.cpp/tools/server/public/index.html", "<!doctype html>\n")
        self.archive = os.path.join(self.root, "build/_deps/downloads/llama_cpp_python-0.0.1.tar.gz")
        os.makedirs(os.path.dirname(self.archive))
        with tarfile.open(self.archive, "w:gz") as tar:
            tar.add(os.path.join(self.root, "vendor"), "llama_cpp_python-0.0.1/vendor")
        with open(self.archive, "rb") as file:
            self.pin(hashlib.sha256(file.read()).hexdigest())

    def pin(self, sha256):
        self.write("tools/sdists.txt", "# comment\n" + "".join(f"{use}  llama-cpp-python==0.0.1 --hash=sha256:{sha256}\n" for use in ("sources", "page")))

    def bootstrap(self, *stages):
        return self.run_tool(os.path.join(self.root, "tools/bootstrap"), *stages)

    def left_over(self):
        return [name for name in os.listdir(os.path.join(self.root, "build/_deps")) if name.startswith(".unpack")]

    def header(self):
        return os.path.join(self.root, "build/_deps/llama.cpp/include/llama.h")

    def test_unpacks_once(self):
        status, output = self.bootstrap("sources")
        self.assertEqual(status, 0, output)
        self.assertTrue(os.path.exists(self.header()))
        self.assertFalse(os.path.exists(os.path.join(self.root, "build/_deps/llama.cpp/.git")))
        os.remove(self.archive)  # in place: the archive is not asked for again
        self.assertEqual(self.bootstrap("sources"), (0, ""))
        self.assertEqual(self.left_over(), [])

    def test_damaged_archive_changes_nothing(self):
        with open(self.archive, "r+b") as file:
            file.truncate(os.path.getsize(self.archive) - 1)
        status, output = self.bootstrap("sources")
        self.assertEqual(status, 1)
        self.assertIn("is damaged, or not the file that is pinned", output)
        self.assertFalse(os.path.exists(os.path.join(self.root, "build/_deps/llama.cpp")))
        self.assertEqual(self.left_over(), [])

    def test_half_unpacked_tree_is_replaced(self):
        self.write("build/_deps/llama.cpp/include/half", "")  # no mark of a finished run
        status, output = self.bootstrap("sources")
        self.assertEqual(status, 0, output)
        self.assertTrue(os.path.exists(self.header()))
        self.assertFalse(os.path.exists(os.path.join(self.root, "build/_deps/llama.cpp/include/half")))

    def test_new_pin_replaces_the_old_tree(self):
        self.bootstrap("sources")
        self.pin("0" * 64)
        status, output = self.bootstrap("sources")
        self.assertEqual(status, 1)
        self.assertIn("0" * 64, output)
        self.assertTrue(os.path.exists(self.header()))  # the old tree stays until the new one is complete

    def test_page(self):
        self.assertEqual(self.bootstrap("page")[0], 0)
        self.assertTrue(os.path.exists(os.path.join(self.root, "build/_deps/server_page/index.html")))
        os.remove(self.archive)
        self.assertEqual(self.bootstrap("page"), (0, ""))

    def test_unknown_stage(self):
        status, output = self.bootstrap("everything")
        self.assertEqual(status, 1)
        self.assertIn("there are packages, sources, model, page and model-qwen", output)


if __name__ == "__main__":
    unittest.main()
