"""Quantised experts from the command line: packing reports the errors, the
tokens are the same on every path, number of ranks and budget, perplexity stays
near that of bf16, and nothing is used that was not asked for."""

import json
import pathlib
import re
import shutil
import sys
import tempfile
import unittest

import portolan

BUILD = None
DATA = portolan.SOURCE / "tests" / "data"
FLAGS = ["--prompts", DATA / "prompts" / "demo.jsonl", "--format", "jsonl",
         "--temperature", "0", "--max-tokens", "12", "--ignore-eos"]
# The largest errors and losses that are still sound.
FORMATS = {"int8": {"rms": 0.01, "nats": 0.01, "bytes": 0.55},
           "int4": {"rms": 0.1, "nats": 0.2, "bytes": 0.3}}


def run(*arguments):
    return portolan.run([portolan.program(BUILD), *arguments])


class QuantiseTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.model = pathlib.Path(cls.directory.name) / "model"
        shutil.copytree(portolan.MODEL, cls.model)
        cls.reference = cls.tokens("bf16")
        cls.reports = {}
        for name in FORMATS:
            done = run("pack", "--model", cls.model, "--quantize", name,
                       "--json")
            assert done.returncode == 0, done.stderr
            cls.reports[name] = json.loads(done.stdout)

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    @classmethod
    def tokens(cls, weights, *arguments):
        done = run("generate", "--model", cls.model, "--weights", weights,
                   *FLAGS, *arguments)
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["tokens"] for line in done.stdout.splitlines()]

    def test_packing_reports_every_tensor(self):
        for name, limits in FORMATS.items():
            report = self.reports[name]
            self.assertEqual(report["format"], name)
            self.assertEqual(len(report["tensors"]), 8 * 32 * 3)
            self.assertLess(report["rms_relative_error"], limits["rms"])
            for tensor in report["tensors"]:
                self.assertGreater(tensor["rms_relative_error"], 0)
                self.assertLess(tensor["max_relative_error"], 0.2)
            table = run("pack", "--model", self.model, "--quantize", name)
            self.assertEqual(table.returncode, 0, table.stderr)
            self.assertRegex(table.stdout, r"\n +7 down +0\.\d+ +0\.\d+")
            verified = run("pack", "--model", self.model, "--quantize", name,
                           "--verify")
            self.assertIn("256 experts, all sound", verified.stdout)

    def test_tokens_do_not_depend_on_path_ranks_batch_or_budget(self):
        version = run("--version").stdout
        paths = re.search(r"kernels (.*)", version).group(1).split()
        for name in FORMATS:
            reference = self.tokens(name, "--cpu", "scalar")
            for arguments in ([["--cpu", path] for path in paths] +
                              [["--ranks", "3"], ["--batch", "1"],
                               ["--ranks", "2", "--expert-memory", "25%"]]):
                self.assertEqual(self.tokens(name, *arguments), reference,
                                 (name, arguments))

    def test_dense_matrices_are_quantised_as_they_are_loaded(self):
        text = DATA / "perplexity" / "held_out.txt"
        dense = ["--dense-weights", "int8"]
        reference = self.tokens("int4", *dense, "--cpu", "scalar")
        self.assertEqual(self.tokens("int4", *dense, "--ranks", "2"), reference)
        reports = []
        for flags in [[], dense]:
            done = run("bench", "perplexity", "--model", self.model, "--text",
                       text, "--json", *flags)
            self.assertEqual(done.returncode, 0, done.stderr)
            reports.append(json.loads(done.stdout))
        self.assertEqual([r["dense_weights"] for r in reports],
                         ["bf16", "int8"])
        before, after = (r["nats_per_token"] for r in reports)
        self.assertNotEqual(before, after)
        self.assertLess(abs(before - after), FORMATS["int8"]["nats"])

    def test_nothing_is_quantised_that_was_not_asked_for(self):
        self.assertEqual(self.tokens("bf16"), self.reference)

    def test_slots_shrink(self):
        stats = pathlib.Path(self.directory.name) / "stats.json"
        sizes = {}
        for name in ["bf16", *FORMATS]:
            self.tokens(name, "--stats", stats)
            sizes[name] = json.loads(stats.read_text())["expert_memory_bytes"]
        for name, limits in FORMATS.items():
            self.assertLess(sizes[name] / sizes["bf16"], limits["bytes"])

    def test_perplexity_stays_near_that_of_bf16(self):
        text = DATA / "perplexity" / "held_out.txt"
        losses = {}
        for name in ["bf16", *FORMATS]:
            done = run("bench", "perplexity", "--model", self.model, "--text",
                       text, "--weights", name, "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            losses[name] = json.loads(done.stdout)["nats_per_token"]
        self.assertLess(losses["bf16"], 4)  # chance: ln 4096 = 8.3
        for name, limits in FORMATS.items():
            self.assertLess(abs(losses[name] - losses["bf16"]), limits["nats"])
        ranks = run("bench", "perplexity", "--model", self.model, "--text",
                    text, "--weights", "int8", "--ranks", "2", "--json")
        self.assertEqual(json.loads(ranks.stdout)["nats_per_token"],
                         losses["int8"])

    def test_without_the_pack_the_remedy_is_named(self):
        done = run("generate", "--model", portolan.MODEL, "--prompt", "a",
                   "--weights", "int4")
        self.assertEqual(done.returncode, 1)
        self.assertIn("portolan pack --quantize int4", done.stderr)
        self.assertEqual(done.stdout, "")


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main()
