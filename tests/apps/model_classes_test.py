"""Every kind of model through the kvrazor program: it works, or says what stays in 16 bits, and --require makes that an error.

usage: model_classes_test.py KVRAZOR FOLDER_WITH_TINY_MODELS [unittest arguments]
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import unittest

PROGRAM, FOLDER = "", ""

# name: (layers packed, part of the reason why the others are not)
GENERATES = {
    "llama": (2, None),
    "gqa16": (2, None),
    "keys64_values128": (2, None),
    "alibi": (2, None),
    "long_window_softcap": (2, None),
    "attention_sinks": (2, None),
    "hybrid": (1, None),
    "recurrent": (0, None),
    "embedding": (2, None),
    "head80": (0, "head_dim=80"),
    "head96": (0, "head_dim=96"),
    "latent_attention": (0, "MLA"),
}


def run(*arguments, env=None, timeout=60, **options):
    full_env = dict(os.environ, OMP_WAIT_POLICY="passive", **(env or {}))
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, env=full_env, stdin=subprocess.DEVNULL, errors="replace", **options)


def read_lines(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def model(name):
    return os.path.join(FOLDER, name + ".gguf")


class ModelClassesTest(unittest.TestCase):
    def run_model(self, name, *more, **options):
        return run("run", "-m", model(name), "--raw", "-p", "ab " * 150, "-n", "2", "-c", "1024", "-t", "1", "--temp", "0", *more, **options)

    def test_run_reports_what_is_packed(self):
        for name, (packed, reason) in GENERATES.items():
            with self.subTest(name):
                result = self.run_model(name, "--json")
                self.assertEqual(result.returncode, 0, result.stderr)
                report = json.loads(result.stdout)
                self.assertEqual(report["f16_layers"], 2 if reason else 0)

    def test_require(self):
        for name, (packed, reason) in GENERATES.items():
            for how in ({"more": ["--require"]}, {"env": {"KVRAZOR_REQUIRE": "1"}}):
                with self.subTest(name, **how):
                    result = self.run_model(name, *how.get("more", []), env=how.get("env"))
                    self.assertEqual(result.returncode, 3 if reason else 0, result.stderr)
                    if reason:
                        self.assertIn("--require", result.stderr)
                        self.assertIn(reason, result.stderr)
        self.assertEqual(self.run_model("head80", env={"KVRAZOR_REQUIRE": "0"}).returncode, 0)

    def test_explain_says_why(self):
        for name, (packed, reason) in GENERATES.items():
            with self.subTest(name):
                layers = json.loads(run("explain", model(name), "--json").stdout)
                reasons = [layer["reason"] for layer in layers]
                if reason:
                    self.assertTrue(any(reason in r for r in reasons), reasons)
                else:
                    self.assertEqual(len(layers), 2 * packed)
                    self.assertEqual(set(reasons) - {""}, set())
                self.assertEqual(run("explain", model(name), "--require").returncode, 3 if reason else 0)

    def test_require_in_the_other_commands(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
            text.write("A line of text. " * 80)
            text.flush()
            compare = ("compare", "-f", text.name, "-c", "600", "--positions", "8", "--answer-tokens", "1", "-t", "1", "--caches", "f16,razor-2", "--require", "-m")
            self.assertEqual(run(*compare, model("llama")).returncode, 0)
            for command in compare, ("bench", "--caches", "f16,razor-2", "--depths", "600", "-n", "1", "-r", "1", "-t", "1", "--require", "-m"), ("serve", "--require", "--port", "0", "-c", "1024", "-m"):
                with self.subTest(command[0]):
                    result = run(*command, model("head80"))
                    self.assertEqual(result.returncode, 3, result.stderr[-2000:])
                    self.assertIn("head_dim=80", result.stderr)

    def test_divergence_with_the_newest_page_sealed(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
            text.write("A line of text. " * 200)
            text.flush()
            kld = ("eval", "kld", "-f", text.name, "--windows", "1", "--step", "8", "-t", "1", "-q", "--json", "--caches", "kvrazor:f16,razor-2", "--window")
            as_used, sealed = (json.loads(run(*kld, "512", *more, "-m", model("llama")).stdout) for more in ((), ("--seal-newest",)))
            self.assertEqual([as_used["newest_page"], sealed["newest_page"]], ["16 bits", "sealed"])
            # What stays in 16 bits is computed twice and comes out the same; from quantized pages more is read.
            self.assertEqual(as_used["results"][1], sealed["results"][1])
            first = [r["results"][2]["kld_mean"] for r in (as_used, sealed)]
            self.assertNotEqual(*first)
            self.assertEqual(as_used["results"][2]["page_bits_per_value"], sealed["results"][2]["page_bits_per_value"])
            result = run(*kld, "600", "--seal-newest", "-m", model("llama"))
            self.assertEqual(result.returncode, 2)
            self.assertIn("multiple of 128", result.stderr)
            result = run(*kld, "512", "--seal-newest", "-m", model("recurrent"))
            self.assertEqual(result.returncode, 1)
            self.assertIn("cannot take tokens back", result.stderr)

    def test_tune(self):
        with tempfile.TemporaryDirectory() as folder:
            text = os.path.join(folder, "text.txt")
            words = [random.Random(i).choice(("ab", "cd", "a line", "of text", "12", "and so on")) for i in range(1500)]
            with open(text, "w") as file:
                file.write(" ".join(words))
            out = os.path.join(folder, "out")
            tune = ("tune", "--window", "512", "--windows", "2", "--step", "8", "--groups", "2", "-t", "1", "--out", out, "-q")
            recipe = os.path.join(folder, "recipe.json")
            result = run(*tune, model("llama"), text, "--bits", "2.6", "-o", recipe, "--json")
            self.assertEqual(result.returncode, 0, result.stderr)
            report = json.loads(result.stdout)
            self.assertLessEqual(report["bits"], 2.6)
            self.assertEqual(len(report["groups"]), 2)
            for side in "keys", "values":
                self.assertAlmostEqual(sum(g[side]["share"] for g in report["groups"]), 1)
            self.assertIn(report["gain"]["verdict"], ("gained", "unclear", "nothing"))
            # What was confirmed was not chosen by, and the bits are those that the cache itself reports.
            lines = read_lines(os.path.join(out, "windows.jsonl"))
            self.assertEqual({l["window"] for l in lines if l["cache"] == report["tuned"]} - {0}, {1})
            for r in report["confirmed"]["results"][1:]:
                self.assertAlmostEqual(r["bits"], r["page_bits_per_value"], places=4)
            explained = run("explain", model("llama"), "--recipe", recipe, "--json", "--require")
            self.assertEqual(explained.returncode, 0, explained.stderr)
            layers = json.loads(explained.stdout)
            self.assertAlmostEqual(sum(l["bits_per_value"] for l in layers) / len(layers), next(r["bits"] for r in report["confirmed"]["results"][1:] if r["recipe"] == report["recipe"]), places=3)
            # Another budget measures only what is new; the same one nothing.
            other = run(*tune, model("llama"), text, "--bits", "3")
            self.assertEqual(other.returncode, 0, other.stderr)
            self.assertIn("recipe-3.json", other.stdout)
            more = read_lines(os.path.join(out, "windows.jsonl"))
            self.assertEqual(more[: len(lines)], lines)
            self.assertEqual({l["window"] for l in more[len(lines) :]} - {1}, set())
            again = run(*tune, model("llama"), text, "--bits", "2.6", "-o", recipe, "--json")
            self.assertEqual(json.loads(again.stdout)["confirmed"], report["confirmed"])
            for arguments, status, says in (
                (("--bits", "2"), 2, "too few"),
                (("--bits", "5"), 2, "more than"),
                (("--bits", "2.6", "-o", "recipe.txt"), 2, ".json"),
            ):
                result = run(*tune, *arguments, model("llama"), text)
                self.assertEqual(result.returncode, status, result.stderr)
                self.assertIn(says, result.stderr)
            for name, says in ("gqa16", "another run"), ("head80", "no layer of this model can be packed"):
                result = run(*tune, model(name), text, "--bits", "2.6")
                self.assertEqual(result.returncode, 1)
                self.assertIn(says, result.stderr)
    def test_shadow_mode_measures_what_is_not_packed(self):
        with tempfile.TemporaryDirectory() as folder:
            text, calibration = os.path.join(folder, "text.txt"), os.path.join(folder, "calibration.json")
            with open(text, "w") as file:
                file.write("A line of text. " * 80)

            def kld(name, *more):
                return run("eval", "kld", "-m", model(name), "-f", text, "--window", "512", "--windows", "1", "--first", "400", "--step", "20", "-t", "1", "-q", *more)

            for name in "llama", "head80":
                with self.subTest(name):
                    out = os.path.join(folder, name)
                    result = kld(name, "--shadow", "--caches", "kivi,bf16", "--json", "--out", out)
                    self.assertEqual(result.returncode, 0, result.stderr)
                    modes = {r["recipe"]: r["mode"] for r in json.loads(result.stdout)["results"]}
                    self.assertEqual(modes, {"f16": "llama.cpp", "kivi": "shadow", "bf16": "llama.cpp"})
                    with open(os.path.join(out, "index.html")) as file:
                        self.assertIn("<td>shadow</td>", file.read())
                    # A run of the other mode does not go on in the same folder.
                    self.assertNotEqual(kld(name, "--caches", "kivi", "--out", out).returncode, 0)
            table = kld("llama", "--shadow", "--caches", "razor-2")
            self.assertRegex(table.stdout, r"(?m)^razor-2 +shadow ")
            for name, reason in (("latent_attention", "MLA"), ("recurrent", "no keys and values"), ("encoder_decoder", "encoder")):
                with self.subTest(name):
                    result = kld(name, "--shadow", "--caches", "razor-2")
                    self.assertEqual(result.returncode, 1, result.stderr)
                    self.assertIn(reason, result.stderr)
            self.assertEqual(kld("llama", "--shadow", "--require", "--caches", "razor-2").returncode, 2)
            self.assertEqual(kld("llama", "--calibration", text, "--caches", "razor-2").returncode, 2)

            # RotateKV: listed, never packed, calibrated for one model.
            methods = {m["name"]: m["shadow_mode_only"] for m in json.loads(run("methods", "--json").stdout)}
            self.assertEqual([name for name, only in methods.items() if only], ["rotatekv"])
            self.assertIn("shadow mode only", run("methods").stdout)
            for command in ("run", "-m", model("llama"), "-p", "x", "-n", "1", "--recipe", "rotatekv"), ("eval", "kld", "-m", model("llama"), "-f", text, "--caches", "rotatekv"):
                result = run(*command)
                self.assertEqual(result.returncode, 1, result.stderr)
                self.assertIn("kvrazor eval kld --shadow", result.stderr)
            result = kld("llama", "--shadow", "--caches", "rotatekv")
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertIn("kvrazor calibrate", result.stderr)
            self.assertEqual(run("calibrate", model("llama"), text, "-o", os.path.join(folder, "none", "file.json")).returncode, 2)
            result = run("calibrate", model("llama"), text, "-o", calibration, "--window", "256", "--windows", "2", "-t", "1", "-q")
            self.assertEqual(result.returncode, 0, result.stderr)
            result = kld("llama", "--shadow", "--calibration", calibration, "--caches", "rotatekv", "--json")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual([r["mode"] for r in json.loads(result.stdout)["results"]], ["llama.cpp", "shadow"])
            result = kld("gqa16", "--shadow", "--calibration", calibration, "--caches", "rotatekv")
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertIn("another model", result.stderr)

    def test_models_that_write_nothing(self):
        for name in "encoder", "encoder_decoder":
            with self.subTest(name):
                result = self.run_model(name)
                self.assertEqual(result.returncode, 1, result.stderr)
                self.assertRegex(result.stderr, r"(?m)^kvrazor: ")


class DamagedModelTest(unittest.TestCase):
    """Any byte of a whole small model changed: every command ends with a status of its own, never by a signal."""

    def test_changed_bytes(self):
        generator = random.Random(20261123)
        commands = (
            ("run", "--raw", "-p", "x", "-n", "1", "-c", "64", "-t", "1", "-m"),
            ("plan", "--memory", "1G", "-m"),
            ("explain", "-m"),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.gguf")
            for name in "llama", "long_window_softcap", "hybrid":
                with open(model(name), "rb") as file:
                    whole = file.read()
                header = whole.index(b"blk.1.ffn_down") + 64  # the values and nearly all tensors' descriptions
                for round in range(12):
                    damaged = bytearray(whole)
                    for _ in range(generator.randint(1, 3)):
                        place = generator.random()
                        # The model's own settings are at the start and in front of the tensors; between them is the vocabulary.
                        at = generator.randrange(600) if place < 0.5 else generator.randrange(header - 3000, header) if place < 0.9 else generator.randrange(len(whole))
                        damaged[at] = generator.randrange(256)
                    if generator.random() < 0.2:
                        damaged = damaged[: generator.randrange(len(damaged))]
                    with open(path, "wb") as file:
                        file.write(damaged)
                    command = commands[round % len(commands)]
                    with self.subTest(name, round=round, command=command[0]):
                        result = run(*command, path)
                        self.assertIn(result.returncode, (0, 1, 2, 3), result.stderr[-1000:])
                        if result.returncode:
                            self.assertRegex(result.stderr, r"(?m)^kvrazor: ")


class FullDiskTest(unittest.TestCase):
    def test_reports_appear_whole_or_not_at_all(self):
        def small_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        with tempfile.TemporaryDirectory() as folder:
            text, out = os.path.join(folder, "text.txt"), os.path.join(folder, "out")
            with open(text, "w") as file:
                file.write("A line of text. " * 80)
            os.mkdir(out)
            for name in "compare.json", "index.html":
                with open(os.path.join(out, name), "w") as file:
                    file.write("old")
            arguments = ("compare", "-m", model("llama"), "-f", text, "-c", "600", "--positions", "8", "--answer-tokens", "1", "-t", "1", "--caches", "f16,razor-2", "--out", out)
            result = run(*arguments, preexec_fn=small_files)
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertRegex(result.stderr, r"(?m)^kvrazor: .*(File too large|cannot write)")
            self.assertEqual(sorted(os.listdir(out)), ["compare.json", "index.html"])
            for name in os.listdir(out):
                with open(os.path.join(out, name)) as file:
                    self.assertEqual(file.read(), "old")
            self.assertEqual(run(*arguments).returncode, 0)
            with open(os.path.join(out, "compare.json")) as file:
                self.assertEqual(len(json.load(file)), 2)

    def test_standard_output(self):
        for command in ("plan", model("llama"), "--memory", "1G", "--json"), ("explain", model("llama"), "--json"), ("methods", "--json"), ("methods",):
            with self.subTest(command), open("/dev/full", "w") as full:
                result = subprocess.run([PROGRAM, *command], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
                self.assertEqual(result.returncode, 1, result.stderr)
                self.assertIn("standard output", result.stderr)


if __name__ == "__main__":
    PROGRAM, FOLDER = sys.argv[1:3]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
