"""The kvrazor program as people use it: every subcommand, what it refuses and with which exit status, and what it leaves behind.

usage: command_line_test.py KVRAZOR MODEL.gguf [unittest arguments]
"""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

PROGRAM, MODEL = "", ""
SKIPPED = 77  # ctest's SKIP_RETURN_CODE
TEXT = " ".join(f"Sentence {i} says that {i} plus {i + 1} is {2 * i + 1}." for i in range(120))


def run(*arguments, timeout=120, stdin="", env=None, **options):
    full_env = dict(os.environ, OMP_WAIT_POLICY="passive", **(env or {}))
    return subprocess.run([PROGRAM, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=timeout, env=full_env, **options)


class CommandLineTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvrazor-cli-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.text = self.folder / "text.txt"
        self.text.write_text(TEXT)

    def fails(self, status, *arguments, says=(), **options):
        result = run(*arguments, **options)
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertRegex(result.stderr, r"(?m)^kvrazor: ")
        for part in (says,) if isinstance(says, str) else says:
            self.assertIn(part, result.stderr)
        return result

    def succeeds(self, *arguments, **options):
        result = run(*arguments, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result


class HelpTest(CommandLineTest):
    def test_every_command_explains_itself(self):
        self.assertIn("EXAMPLES", self.succeeds("--help").stdout)
        for command in "run", "serve", "compare", "bench", "plan", "methods", "explain", "tune", "calibrate":
            with self.subTest(command):
                text = self.succeeds(command, "--help").stdout
                self.assertIn("EXAMPLES", text)
                self.assertIn("kvrazor " + command, text)

    def test_version(self):
        self.assertRegex(self.succeeds("--version").stdout, r"^kvrazor \d+\.\d+\.\d+ \(")

    def test_wrong_usage(self):
        self.fails(2, says="--help")
        self.fails(2, "nonsense", says="--help")
        self.fails(2, "compare", says="--model")
        self.fails(2, "compare", "--nonsense", says="kvrazor compare --help")
        self.fails(2, "plan", MODEL, "--memory", "much", says="24G")
        self.fails(2, "run", "-m", MODEL, "-p", "x", "-n", "0")
        self.fails(2, "run", "-m", MODEL, "--json", says="-p or -f")
        self.fails(2, "serve", says="-m")
        self.fails(2, "serve", "-m", MODEL, "--recipe", says="--recipe needs a value")


class MethodsTest(CommandLineTest):
    def test_json_and_text_name_the_same(self):
        names = [m["name"] for m in json.loads(self.succeeds("methods", "--json").stdout)]
        self.assertIn("razor-2", names)
        self.assertIn("oscar", names)
        text = self.succeeds("methods").stdout
        for name in names:
            self.assertIn(name, text)


class PlanTest(CommandLineTest):
    def plan(self, *arguments):
        return json.loads(self.succeeds("plan", MODEL, "--json", *arguments).stdout)

    def test_smaller_caches_fit_more(self):
        plan = self.plan("--memory", "300M")
        by_name = {c["recipe"]: c for c in plan["caches"]}
        self.assertEqual(plan["layers"], 30)
        self.assertEqual(plan["trained_context"], 8192)
        self.assertGreater(plan["weight_bytes"], 90 << 20)
        users = [by_name[n]["most_users"] for n in ("f16", "q8_0", "q4_0", "razor-2")]
        self.assertEqual(users, sorted(users))
        self.assertLess(users[0], users[-1])
        self.assertEqual(by_name["f16"]["kv_bytes_per_user"], 30 * 2 * 192 * 2 * 8192)
        self.assertIn("razor-2", self.succeeds("plan", MODEL, "--memory", "300M").stdout)

    def test_users_and_context(self):
        few = self.plan("--memory", "300M", "--users", "8")["caches"]
        one = self.plan("--memory", "300M")["caches"]
        for a, b in zip(few, one):
            self.assertLess(a["longest_context"], b["longest_context"])
        short = self.plan("--memory", "300M", "--context", "1024")["caches"]
        for a, b in zip(short, one):
            self.assertGreater(a["most_users"], b["most_users"])

    def test_what_does_not_fit(self):
        result = run("plan", MODEL, "--memory", "50M")
        self.assertEqual(result.returncode, 3)
        self.assertIn("no cache fits", result.stderr)
        self.assertIn("none", result.stdout)
        self.fails(2, "plan", MODEL, "--memory", "1G", "--context", "100000", says=("8192", "100000"))
        self.fails(2, "plan", MODEL, "--memory", "1G", "--users", "0")
        self.fails(1, "plan", MODEL, "--memory", "1G", "--caches", "nonsense", says="nonsense")


class DamagedModelTest(CommandLineTest):
    """plan reads the header only; run and compare refuse the same files before llama.cpp sees them."""

    def setUp(self):
        super().setUp()
        self.model = self.folder / "model.gguf"
        with open(MODEL, "rb") as file:
            self.head = file.read(4 << 20)

    def assert_clear(self, result, what):
        self.assertIn(result.returncode, (0, 1, 2, 3), f"{what}: status {result.returncode}, {result.stderr}")
        if result.returncode != 0:
            self.assertTrue(result.stderr.startswith("kvrazor: "), f"{what}: {result.stderr}")

    def test_truncated_at_many_places(self):
        lengths = [0, 1, 3, 4, 7, 8, 15, 16, 23, 24, 25, 100, 1000] + [random.Random(1).randrange(len(self.head)) for _ in range(40)] + [len(self.head)]
        for length in lengths:
            self.model.write_bytes(self.head[:length])
            self.fails(1, "plan", self.model, "--memory", "1G", says=str(self.model))

    def test_flipped_bytes(self):
        # A copy with the whole length, or the truncation would hide everything else; sparse, so it costs nothing.
        size = os.path.getsize(MODEL)
        generator = random.Random(2026)
        header_bytes = 2 << 20
        for round in range(80):
            damaged = bytearray(self.head)
            for _ in range(generator.randint(1, 4)):
                near = generator.random() < 0.6
                damaged[generator.randrange(1500 if near else header_bytes)] = generator.randrange(256)
            with open(self.model, "wb") as file:
                file.write(damaged)
                file.truncate(size)
            self.assert_clear(run("plan", self.model, "--memory", "1G", timeout=20), f"round {round}")

    def test_other_commands_refuse_them_too(self):
        self.model.write_bytes(self.head)
        self.fails(1, "run", "-m", self.model, "-p", "x", says="truncated")
        self.fails(1, "compare", "-m", self.model, "-f", self.text, says="truncated")
        self.fails(1, "bench", "-m", self.model, says="truncated")
        self.fails(1, "explain", self.model, says="truncated")
        self.fails(1, "serve", "-m", self.model, says="truncated")

    def test_missing_and_foreign_files(self):
        for command in ("plan", "--memory", "1G", "-m"), ("run", "-p", "x", "-m"), ("explain", "-m"), ("serve", "-m"), ("bench", "-m"):
            self.fails(1, *command, self.folder / "absent.gguf", says="absent.gguf")
            self.fails(1, *command, self.text, says="GGUF")
            self.fails(1, *command, self.folder, says="regular file")


class RunTest(CommandLineTest):
    def test_answers_and_reports(self):
        arguments = ("run", "-m", MODEL, "-p", "Name a colour.", "-n", "8", "-c", "512", "--temp", "0", "-t", "1")
        plain = self.succeeds(*arguments)
        self.assertTrue(plain.stdout.strip())
        self.assertIn("KV cache 'razor-2'", plain.stderr)
        report = json.loads(self.succeeds(*arguments, "--json").stdout)
        self.assertEqual(report["text"].strip(), plain.stdout.strip())
        self.assertEqual(report["recipe"], "razor-2")
        self.assertEqual(report["f16_layers"], 0)
        self.assertGreater(report["kv_bytes"], 0)
        self.assertLessEqual(report["written_tokens"], 8)

    def test_short_context_equals_16_bits(self):
        # Fewer tokens than the window: nothing is quantized yet, so the greedy text is llama.cpp's own.
        arguments = ("run", "-m", MODEL, "-p", "Count from one to ten.", "-n", "24", "-c", "512", "--temp", "0", "-q", "-t", "1")
        self.assertEqual(self.succeeds(*arguments, "--recipe", "razor-2").stdout, self.succeeds(*arguments, "--recipe", "f16").stdout)

    def test_same_seed_same_text(self):
        arguments = ("run", "-m", MODEL, "-p", "Tell a story.", "-n", "12", "-c", "512", "--seed", "7", "-q", "-t", "1")
        self.assertEqual(self.succeeds(*arguments).stdout, self.succeeds(*arguments).stdout)

    def test_conversation_on_stdin(self):
        result = self.succeeds("run", "-m", MODEL, "-n", "6", "-c", "512", "--temp", "0", "-t", "1", stdin="My name is Ada.\n\nWhat is my name?\n")
        self.assertEqual(len(result.stdout.strip().split("\n")) >= 2, True, result.stdout)

    def test_requirements(self):
        self.fails(3, "run", "-m", MODEL, "-p", "x", "--recipe", "f16", "--require", says="--require")

    def test_prompt_longer_than_the_context(self):
        result = self.fails(1, "run", "-m", MODEL, "-f", self.text, "-c", "256", says=("256", "-c"))
        self.assertRegex(result.stderr, r"the prompt has \d{4} tokens, but the context holds 256")

    def test_unknown_recipe_says_what_is_possible(self):
        self.fails(1, "run", "-m", MODEL, "-p", "x", "--recipe", "nonsense", says=("nonsense", "razor-2"))
        self.fails(1, "run", "-m", MODEL, "-p", "x", "--recipe", str(self.folder / "absent.json"), says="absent.json")

    def test_stops_when_nobody_reads(self):
        with open("/dev/full", "w") as full:
            process = subprocess.run([PROGRAM, "run", "-m", MODEL, "-p", "Hello", "-n", "4", "-c", "512", "-q"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
        self.assertEqual(process.returncode, 1, process.stderr)


class ExplainTest(CommandLineTest):
    def test_every_layer_and_side(self):
        layers = json.loads(self.succeeds("explain", MODEL, "--json").stdout)
        self.assertEqual(len(layers), 60)
        self.assertEqual({l["side"] for l in layers}, {"k", "v"})
        self.assertIn("0-29", self.succeeds("explain", MODEL).stdout)

    def test_llamas_own_cache(self):
        self.assertEqual(json.loads(self.succeeds("explain", MODEL, "--recipe", "q8_0", "--json").stdout), [])


class BenchTest(CommandLineTest):
    def test_ratios(self):
        recipe = "razor-2:sinks=8,residual=256"  # its comma does not end the name
        arguments = ("bench", "-m", MODEL, "--caches", f"f16,{recipe}", "--depths", "64,160", "-n", "2", "-r", "1", "-t", "1")
        report = json.loads(self.succeeds(*arguments, "--json").stdout)
        self.assertEqual([(r["recipe"], r["depth"]) for r in report["results"]], [("f16", 64), (recipe, 64), ("f16", 160), (recipe, 160)])
        self.assertEqual([(m["recipe"], m["context"]) for m in report["memory"]], [("f16", 162), (recipe, 162)])
        self.assertEqual(report["memory"][0]["kv_vs_f16"], 1)
        self.assertGreater(report["memory"][1]["kv_bytes"], 0)
        for r in report["results"]:
            self.assertGreater(r["decode_tps"], 0)
            self.assertGreater(r["prefill_tps"], 0)
            if r["recipe"] == "f16":
                self.assertEqual(r["decode_vs_f16"], 1)

    def test_depths_that_do_not_fit(self):
        self.fails(2, "bench", "-m", MODEL, "--depths", "64,65", "-n", "4", says="further apart")


class CompareTest(CommandLineTest):
    FIELDS = ("recipe context bits_per_value kv_bytes peak_rss_bytes prefill_tps decode_tps ppl kld_mean kld_median kld_p99 kld_p999 kld_max kld_max_position same_top1 answer "
              "machine commit command").split()

    def arguments(self, *more):
        return ("compare", "-m", MODEL, "-f", self.text, "-c", "512", "--positions", "24", "--answer-tokens", "4", "-t", "1", *more)

    def test_end_to_end(self):
        out = self.folder / "deep" / "out"
        result = self.succeeds(*self.arguments("--caches", "q8_0,kivi,oscar,razor-2", "--out", out), timeout=400)
        records = json.loads((out / "compare.json").read_text())
        self.assertEqual([r["recipe"] for r in records], ["f16", "q8_0", "kivi", "oscar", "razor-2"])
        self.assertEqual(sorted(p.name for p in out.iterdir()), ["compare.json", "index.html"])
        for r in records:
            for field in self.FIELDS:
                self.assertIn(field, r)
            self.assertEqual(r["context"], 512)
            self.assertEqual(r["positions"], 24)
            self.assertTrue(1 < r["ppl"] < 1000, r)
            self.assertIn(r["recipe"], result.stdout)
        f16, q8_0 = records[:2]
        self.assertEqual((f16["kld_mean"], f16["same_top1"], f16["bits_per_value"]), (0, 1, 16))
        self.assertEqual(f16["kv_bytes"], 30 * 2 * 192 * 2 * 512)
        self.assertEqual(q8_0["bits_per_value"], 8.5)
        for r in records[1:]:
            self.assertTrue(0 < r["kld_mean"] < 5, r)
        page = (out / "index.html").read_text()
        self.assertIn("razor-2", page)
        self.assertNotIn("http://", page)

    def test_json_on_stdout_and_no_files(self):
        before = set(self.folder.iterdir())
        result = self.succeeds(*self.arguments("--caches", "f16", "--json", "-q"), env={"TMPDIR": str(self.folder)})
        self.assertEqual(json.loads(result.stdout)[0]["recipe"], "f16")
        self.assertEqual(result.stderr, "")
        self.assertEqual(set(self.folder.iterdir()), before)

    def test_refuses_before_working(self):
        self.fails(1, *self.arguments("--caches", "f16,nonsense"), says=("nonsense", "razor-2"))
        self.fails(1, *self.arguments("--caches", "f16,q8_0,q8_0"), says="twice")
        self.fails(1, *self.arguments("--out", "/proc/kvrazor"), says="--out")
        self.fails(1, "compare", "-m", MODEL, "-f", self.folder / "absent.txt", says="absent.txt")
        self.fails(2, "compare", "-m", MODEL, "-f", self.text, "-c", "8000", says=("8000", "has only"))
        self.fails(2, "compare", "-m", MODEL, "-f", self.text, "-c", "20", says="64")
        short = self.folder / "short.txt"
        short.write_text("Too short.")
        self.fails(2, "compare", "-m", MODEL, "-f", short, says="at least")
        self.fails(2, *self.arguments("--question", "why " * 600), says="question")

    def test_interruption_leaves_nothing(self):
        out = self.folder / "out"
        out.mkdir()
        (out / "compare.json").write_text("old")
        command = [PROGRAM, *map(str, self.arguments("--caches", "f16,q8_0", "--out", out))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stderr.readline()  # the first stage has begun
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, errors)
        self.assertEqual([p.name for p in out.iterdir()], ["compare.json"])
        self.assertEqual((out / "compare.json").read_text(), "old")


class ServeTest(CommandLineTest):
    def test_answers_with_the_packed_cache(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        log = open(self.folder / "log", "w+")
        command = [PROGRAM, "serve", "-m", MODEL, "--recipe", "oscar", "--host", "127.0.0.1", "--port", str(port), "-c", "512", "-np", "1", "-t", "1",
                   "--slot-save-path", str(self.folder)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ, OMP_WAIT_POLICY="passive"))
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.time() + 60
            while True:
                try:
                    urllib.request.urlopen(url + "/health", timeout=5)
                    break
                except OSError:
                    self.assertIsNone(process.poll(), pathlib.Path(log.name).read_text())
                    self.assertLess(time.time(), deadline)
                    time.sleep(0.2)
            body = json.dumps({"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 6}).encode()
            request = urllib.request.Request(url + "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = json.load(urllib.request.urlopen(request, timeout=60))
            self.assertTrue(answer["choices"][0]["message"]["content"])
            self.assertIn(b"<!doctype html>", urllib.request.urlopen(url + "/", timeout=60).read().lower())  # the web page

            def slot(action, name):  # the status and the answer
                body = json.dumps({"filename": name}).encode()
                request = urllib.request.Request(f"{url}/slots/0?action={action}", body, {"Content-Type": "application/json"})
                try:
                    with urllib.request.urlopen(request, timeout=60) as reply:
                        return reply.status, json.load(reply)
                except urllib.error.HTTPError as error:
                    return error.code, json.load(error)

            status, saved = slot("save", "slot.bin")
            self.assertEqual(status, 200)
            status, restored = slot("restore", "slot.bin")
            self.assertEqual((status, restored["n_restored"]), (200, saved["n_saved"]))
            whole = (self.folder / "slot.bin").read_bytes()
            for name, content in ("short", whole[:-1000]), ("half", whole[:len(whole) // 2]), ("header", whole[:10]), ("other", b"x" * 5000):
                (self.folder / name).write_bytes(content)
                status, error = slot("restore", name)
                self.assertEqual((name, status), (name, 400))
                self.assertIn("Unable to restore slot", error["error"]["message"])
            self.assertEqual(slot("restore", "slot.bin")[0], 200)  # and the server goes on
            process.send_signal(signal.SIGINT)
            self.assertEqual(process.wait(30), 0)
            self.assertIn("KV cache 'oscar'", pathlib.Path(log.name).read_text())
        finally:
            process.kill()
            process.wait()
            log.close()

    def test_unknown_recipe(self):
        self.fails(1, "serve", "-m", MODEL, "--recipe", "nonsense", says="razor-2")


if __name__ == "__main__":
    PROGRAM, MODEL = sys.argv[1:3]
    if not os.path.exists(MODEL):
        print(f"skipped: the model '{MODEL}' is not there; tools/bootstrap fetches it")
        sys.exit(SKIPPED)
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
