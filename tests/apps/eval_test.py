"""kvrazor eval as people use it: reports, what is refused and with which exit status, and going on after an interruption.

usage: eval_test.py KVRAZOR MODEL.gguf [unittest arguments]
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM, MODEL = "", ""
SKIPPED = 77  # ctest's SKIP_RETURN_CODE
TEXT = " ".join(f"Sentence {i} says that {i} plus {i + 1} is {2 * i + 1}." for i in range(60))


def run(*arguments, timeout=200, stdin=""):
    env = dict(os.environ, OMP_WAIT_POLICY="passive")
    return subprocess.run([PROGRAM, "eval", *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=timeout, env=env)


class EvalTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvrazor-eval-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.text = self.folder / "text.txt"
        self.text.write_text(TEXT)
        self.out = self.folder / "out"

    def fails(self, status, *arguments, says=(), **options):
        result = run(*arguments, **options)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        for part in (says,) if isinstance(says, str) else says:
            self.assertIn(part, result.stderr)
        return result

    def succeeds(self, *arguments, **options):
        result = run(*arguments, **options)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result


class HelpTest(EvalTest):
    def test_every_evaluation_explains_itself(self):
        for name in "ppl", "kld", "needle", "passkey", "ruler", "longbench", "ocrbench", "mmau-pro", "analyze":
            with self.subTest(name):
                text = self.succeeds(name, "--help").stdout
                self.assertIn("EXAMPLES", text)
                self.assertIn("kvrazor eval " + name, text)

    def test_wrong_usage(self):
        self.fails(2, says="--help")
        self.fails(2, "kld", "-f", self.text, says="--model")
        self.fails(2, "longbench", says="--score")
        self.fails(2, "kld", "-m", MODEL, "-f", self.text, "--fail-if", "nonsense>1", says="kld_p99")
        self.fails(2, "kld", "-m", MODEL, "-f", self.text, "--window", 9000, says="8192")
        self.fails(2, "needle", "-m", MODEL, "--depths", 120, says="120")
        self.fails(2, "ruler", "-m", MODEL, "--tasks", "nonsense", says="nonsense")
        self.fails(2, "kld", "-m", MODEL, "-f", self.text, "--reference", "razor-2", says="kvrazor:f16")
        self.fails(2, "kld", "-m", MODEL, "-f", self.text, "--reference", "kvrazor:f16", "--shadow", says="Leave --reference out")
        self.fails(1, "kld", "-m", MODEL, "-f", self.text, "--caches", "nonsense", says="nonsense")
        self.fails(1, "kld", "-m", self.folder / "none.gguf", "-f", self.text, says="none.gguf")
        self.fails(1, "kld", "-m", MODEL, "-f", self.text, "--window", 8000, says="Give a longer text")


class AccuracyTest(EvalTest):
    ARGUMENTS = ("--window", 400, "--windows", 1, "--step", 16, "-q")

    def test_divergence_limits_and_going_on(self):
        arguments = ("kld", "-m", MODEL, "-f", self.text, *self.ARGUMENTS, "--out", self.out)
        report = json.loads(self.succeeds(*arguments, "--caches", "razor-2", "--require", "--json").stdout)
        f16, razor = report["results"]
        self.assertEqual([f16["recipe"], f16["mode"], f16["kld_max"], f16["same_top1"]], ["f16", "llama.cpp", 0, 1])
        self.assertEqual([razor["recipe"], razor["mode"], razor["positions"]], ["razor-2", "packed", 13])
        self.assertGreater(razor["kld_mean"], 0)
        self.assertLess(razor["kld_mean"], 1)
        self.assertLessEqual(razor["kld_mean"], razor["kld_max"])
        self.assertLess(razor["page_bits_per_value"], 2.5)
        self.assertIn("<svg", (self.out / "index.html").read_text())
        self.assertEqual(json.loads((self.out / "kld.json").read_text())["results"], report["results"])

        # Another cache joins; what was measured stays, although a torn line is left behind.
        journal = self.out / "windows.jsonl"
        before = journal.read_text()
        journal.write_text(before + '{"window":0,"cache":"osc')
        more = json.loads(self.succeeds(*arguments, "--caches", "razor-2,kvrazor:f16", "--json").stdout)
        self.assertEqual(more["results"][:2], report["results"])
        self.assertEqual(more["results"][2]["recipe"], "kvrazor:f16")
        self.assertTrue(journal.read_text().startswith(before))
        self.assertLess(more["results"][2]["kld_mean"], 0.02)  # the same values, added up in another order

        # Everything is there: limits are checked without measuring again.
        self.fails(3, *arguments, "--caches", "razor-2", "--fail-if", "kld_p999>0", says="razor-2: kld_p999 is")
        self.fails(3, *arguments, "--caches", "razor-2", "--fail-if", "kld_max>0", says="razor-2: kld_max is")
        self.fails(3, *arguments, "--caches", "razor-2", "--fail-if", "kld>0", says="razor-2: kld is")
        self.succeeds(*arguments, "--caches", "razor-2", "--fail-if", "kld>5", "--fail-if", "same_top1<0.01")
        self.fails(1, "kld", "-m", MODEL, "-f", self.text, "--window", 300, "--out", self.out, says=("another run", "window"))

    def test_the_reference_can_be_this_projects_own_16_bits(self):
        arguments = ("kld", "-m", MODEL, "-f", self.text, *self.ARGUMENTS, "--reference", "kvrazor:f16", "--out", self.out)
        report = json.loads(self.succeeds(*arguments, "--caches", "f16,kvrazor:f16", "--json").stdout)
        own, stock = report["results"]
        self.assertEqual([report["reference"], own["recipe"], own["mode"], own["kld_max"]], ["kvrazor:f16", "kvrazor:f16", "packed", 0])
        self.assertEqual([stock["recipe"], stock["mode"]], ["f16", "llama.cpp"])
        self.assertTrue(0 < stock["kld_mean"] < 0.02)  # the same values, added up in another order
        self.assertIn("kvrazor's own 16-bit cache", (self.out / "index.html").read_text())
        # Figures against one reference don't join those against the other.
        self.fails(1, "kld", "-m", MODEL, "-f", self.text, *self.ARGUMENTS, "--out", self.out, says="another run")

    def test_an_interruption_keeps_what_is_done(self):
        self.text.write_text(TEXT * 20)
        command = [PROGRAM, "eval", "ppl", "-m", MODEL, "-f", self.text, "--window", "128", "--step", "32", "--caches", "razor-2", "--out", self.out]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=dict(os.environ, OMP_WAIT_POLICY="passive"))
        journal = self.out / "windows.jsonl"
        deadline = time.time() + 120
        while not (journal.exists() and journal.read_text().count("\n") >= 2):
            self.assertIsNone(process.poll(), "ended too early")
            self.assertLess(time.time(), deadline)
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, errors)
        whole = journal.read_text()[: journal.read_text().rfind("\n") + 1]
        windows = whole.count("\n")
        self.assertGreaterEqual(windows, 2)
        # With as many windows as there are the run is finished at once.
        report = json.loads(self.succeeds(*map(str, command[2:]), "--windows", windows, "--json").stdout)
        self.assertEqual(report["results"][0]["windows"], windows)
        self.assertEqual(journal.read_text(), whole)


class AnalyzeTest(EvalTest):
    def test_norms_and_errors(self):
        report = json.loads(self.succeeds("analyze", "-m", MODEL, "-f", self.text, "-c", 100, "--out", self.out, "--json", "-q").stdout)
        self.assertEqual(len(report["layers"]), 30)
        for layer in report["layers"]:
            self.assertEqual([layer["num_kv_heads"], layer["head_dim"], len(layer["keys"]["norms"])], [3, 64, 100])
            self.assertGreaterEqual(layer["keys"]["all_heads"]["median_over_min"], 1)
            self.assertTrue(0 < layer["key_error"]["rotated_scaled"] < 1)
        # This model's first token has a small key in most layers: taking the norms out pays.
        self.assertLess(sum(l["key_error"]["scaled"] for l in report["layers"]), sum(l["key_error"]["plain"] for l in report["layers"]))
        page = (self.out / "index.html").read_text()
        self.assertIn("<svg", page)
        plots = sorted(path.name for path in self.out.glob("*.png"))
        self.assertEqual(page.count("data:image/png;base64,"), len(plots))
        for layer in 0, 29:
            for plot in "norms", "keys", "keys_rotated_scaled", "values":
                self.assertIn(f"layer_{layer}_{plot}.png", plots)
        for path in self.out.glob("*.png"):
            self.assertTrue(path.read_bytes().startswith(b"\x89PNG\r\n"), path)
        self.fails(2, "analyze", "-m", MODEL, "-f", self.text, "--layers", 30, "--out", self.out, says="0 to 29")
        self.fails(2, "analyze", "-m", MODEL, "-f", self.text, "--head", 3, "--out", self.out, says="0 to 2")
        self.fails(2, "analyze", "-m", MODEL, "-f", self.text, "--head", 1, says="--out")
        self.fails(2, "analyze", "-m", MODEL, "-f", self.text, "-c", 100000, says="only")


class AnswersTest(EvalTest):
    def test_ruler_and_needle(self):
        arguments = ("ruler", "-m", MODEL, "--tasks", "niah_single,vt", "--lengths", 300, "--caches", "razor-2", "--out", self.out, "-q")
        report = json.loads(self.succeeds(*arguments, "--json").stdout)
        tasks = {t["task"]: t for t in report["results"][0]["tasks"]}
        self.assertEqual(tasks["niah_single"]["lines"], 1)
        line = json.loads((self.out / "razor-2" / "niah_single.jsonl").read_text())
        self.assertEqual(tasks["niah_single"]["score"], 100.0 if line["answers"][0] in line["pred"] else 0.0)
        self.assertEqual(set(line) >= {"pred", "answers", "all_classes", "length"}, True)
        again = json.loads(self.succeeds(*arguments, "--json").stdout)  # nothing is left to ask
        self.assertEqual(again["results"][0]["tasks"], report["results"][0]["tasks"])
        needle = json.loads(self.succeeds("needle", "-m", MODEL, "--lengths", 200, "--depths", "0,100", "--caches", "f16", "--json", "-q").stdout)
        self.assertEqual([c["depth"] for c in needle["results"][0]["tasks"][0]["cells"]], [0, 1])

    def test_longbench_asks_and_scores(self):
        data = self.folder / "data"
        data.mkdir()
        lines = [
            {"input": "What is the answer?", "context": TEXT[:400], "answers": ["one"], "length": 4000, "all_classes": None},
            {"input": "And now?", "context": TEXT, "answers": ["two"], "length": 9000, "all_classes": None},
        ]
        (data / "qasper_e.jsonl").write_text("".join(json.dumps(l) + "\n" for l in lines))
        (data / "trec.jsonl").write_text(json.dumps({"prompt": "Question: Who?\nType: Person\nQuestion: When?\nType:", "answers": ["Date"]}) + "\n")
        config = self.folder / "config"
        config.mkdir()
        (config / "dataset2prompt.json").write_text(json.dumps({"qasper": "Read: {context}\nQuestion: {input}", "trec": "{context}{input}"}))
        (config / "dataset2maxlen.json").write_text(json.dumps({"qasper": 3, "trec": 3}))
        arguments = ("longbench", "-m", MODEL, "--data", data, "--datasets", "qasper_e,trec", "--caches", "razor-2", "-c", 256, "-q")
        self.fails(1, *arguments, says=("qasper_e.jsonl", "line 1", "--config"))
        result = json.loads(self.succeeds(*arguments, "--config", config, "--out", self.out, "--json").stdout)["results"][0]
        qasper, trec = result["tasks"]
        self.assertEqual([qasper["lines"], trec["lines"]], [2, 1])
        self.assertIsNone(qasper["buckets"]["0-4k"])
        self.assertIsNotNone(qasper["buckets"]["8k+"])
        written = [json.loads(l) for l in (self.out / "razor-2" / "qasper_e.jsonl").read_text().splitlines()]
        self.assertLessEqual(max(l["prompt_tokens"] for l in written), 253)  # cut in the middle
        scored = self.succeeds("longbench", "--score", self.out / "razor-2" / "qasper_e.jsonl", "--json").stdout.splitlines()
        self.assertAlmostEqual(sum(json.loads(l)["score"] for l in scored) * 50, qasper["score"], places=2)
        self.fails(1, *arguments, "--config", config, "--datasets", "lcc", says="lcc.jsonl")
        self.fails(1, *arguments, "--config", self.folder, says="dataset2prompt.json")


class ScoreTest(EvalTest):
    def test_lines_get_scores(self):
        line = {"task": "hotpotqa", "prediction": "Jean", "answers": ["Jean Paul Getty"], "other": 1}
        out = self.succeeds("longbench", "--score", "-", "--json", stdin=json.dumps(line) + "\n").stdout
        self.assertEqual(json.loads(out), dict(line, score=0.5))
        self.assertIn("50.00", self.succeeds("longbench", "--score", "-", stdin=json.dumps(line)).stdout)

    def test_bad_input(self):
        score = ("longbench", "--score")
        self.fails(1, *score, self.folder / "none", says="none")
        self.fails(1, *score, "-", stdin="", says="empty")
        self.fails(1, *score, "-", stdin="{}\nx\n", says="line 2")
        self.fails(1, *score, "-", stdin='{"task":"nonsense","prediction":"","answers":[]}', says="qasper")
        self.fails(1, *score, "-", stdin='{"task":"qasper","answers":[]}', says="prediction")
        self.fails(1, *score, "-", stdin='{"task":"qasper","prediction":"x","answers":"x"}', says="answers")
        self.fails(1, *score, "-", stdin='{"task":"trec","prediction":"x","answers":["x"]}', says="all_classes")

    def test_ocrbench_and_mmau_pro(self):
        questions = [
            {"dataset_name": "svt", "type": "Regular Text Recognition", "answers": "shop", "predict": "It says SHOP"},
            {"dataset_name": "docVQA", "type": "Doc-oriented VQA", "answers": ["a", "b"], "predict": "c"},
            {"dataset_name": "docVQA", "type": "Doc-oriented VQA", "answers": ["a"]},
        ]
        report = json.loads(self.succeeds("ocrbench", "--score", "-", "--json", stdin=json.dumps(questions)).stdout)
        self.assertEqual([report["right"], report["questions"], len(report["groups"])], [1, 3, 2])
        self.fails(1, "ocrbench", "--score", "-", stdin="{}", says="list")
        self.fails(1, "ocrbench", "--score", "-", stdin='[{"type":"x"}]', says="'x'")
        audio = [
            {"category": "sound", "answer": "a dog", "choices": ["a dog", "a cat"], "model_output": "A dog."},
            {"category": "music", "answer": "jazz", "choices": ["jazz", "rock"], "model_output": "rock"},
            {"category": "open", "answer": "long", "choices": [], "model_output": "x"},
        ]
        report = json.loads(self.succeeds("mmau-pro", "--score", "-", "--json", stdin=json.dumps(audio)).stdout)
        self.assertEqual([report["right"], report["questions"], report["not_scored"]], [1, 2, 1])
        self.fails(1, "mmau-pro", "--score", "-", stdin='[{"category":"x","choices":["a"],"answer":"a"}]', says="model_output")


if __name__ == "__main__":
    PROGRAM, MODEL = sys.argv[1:3]
    if not os.path.exists(MODEL):
        print(f"skipped: the model '{MODEL}' is not there; tools/bootstrap fetches it")
        sys.exit(SKIPPED)
    unittest.main(argv=[sys.argv[0]] + sys.argv[3:])
