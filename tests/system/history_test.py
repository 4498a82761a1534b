"""The expert-map history of a run: its formats and capacity, and what happens
where a file and a run differ in them."""

import json
import pathlib
import re
import sys
import tempfile
import unittest

import portolan

BUILD = None
PROMPTS = portolan.SOURCE / "tests" / "data" / "prompts" / "demo.jsonl"
FLAGS = ["--temperature", "0", "--max-tokens", "8", "--ignore-eos", "--policy",
         "fmoe", "--expert-memory", "25%"]
COMPACT = ["--history-format", "compact"]


def portolan_run(command, *arguments):
    return portolan.run([portolan.program(BUILD), command, *arguments])


def plan(*arguments):
    done = portolan_run("plan", "--json", "--model", portolan.MODEL, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class HistoryTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def teach(self, name, *arguments):
        """Runs prompts with a history file; returns the file."""
        history = self.directory / name
        portolan.generate(BUILD, PROMPTS,
                          FLAGS + ["--history", history, *arguments])
        return history

    def replay(self, history, *arguments):
        trace = self.directory / "trace"
        if not trace.exists():
            portolan.generate(BUILD, PROMPTS, FLAGS + ["--trace", trace])
        return portolan_run("replay", "--json", "--trace", trace, "--policy",
                            "fmoe", "--link", "1GB/s,50us", "--history",
                            history, *arguments)

    def test_a_compact_history_takes_fewer_bytes_and_serves_the_next_run(self):
        exact = self.teach("exact")
        compact = self.teach("compact", *COMPACT)
        first = compact.stat().st_size
        self.assertLess(first, 0.8 * exact.stat().st_size)
        self.teach("compact", *COMPACT)
        self.assertGreater(compact.stat().st_size, first)
        without = self.replay(self.directory / "none.needed", *COMPACT)
        self.assertEqual(without.returncode, 1)  # a file that is not there
        hits = {}
        for name, file in (("exact", exact), ("compact", compact)):
            flags = COMPACT if name == "compact" else []
            done = self.replay(file, *flags)
            self.assertEqual(done.returncode, 0, done.stderr)
            hits[name] = json.loads(done.stdout)[0]["hit_rate"]
        self.assertAlmostEqual(hits["exact"], hits["compact"], delta=0.05)

    def test_an_exact_file_becomes_compact_and_not_the_other_way(self):
        history = self.teach("history")
        self.teach("twice")
        exact = self.teach("twice").stat().st_size
        self.teach("history", *COMPACT)
        self.assertLess(history.stat().st_size, 0.8 * exact)
        before = history.read_bytes()
        for done in (
                portolan_run("generate", "--model", portolan.MODEL, "--prompt",
                             "Once", "--history", history),
                self.replay(history)):
            self.assertEqual(done.returncode, 1)
            self.assertRegex(
                done.stderr, rf"error: .*{re.escape(str(history))}.*compact.*"
                             r"add --history-format compact, or name another "
                             r"file")
            self.assertEqual(done.stdout, "")
        self.assertEqual(history.read_bytes(), before)

    def test_capacity_bounds_what_is_kept(self):
        few = self.teach("few", "--history-capacity", "3")
        many = self.teach("many")
        maps = 8 * 32 * 4 + 192 * 4  # of a token, at least
        self.assertGreater(many.stat().st_size - few.stat().st_size, 50 * maps)
        # A full file serves a smaller store and a larger one.
        self.teach("few", "--history-capacity", "30")
        self.teach("many", "--history-capacity", "2")
        self.assertLess(many.stat().st_size, few.stat().st_size)

    def test_every_rank_may_keep_compact_maps(self):
        alone = portolan.generate(BUILD, PROMPTS, FLAGS)
        together = portolan.generate(
            BUILD, PROMPTS, FLAGS + [*COMPACT, "--history-capacity", "50",
                                     "--history", self.directory / "history",
                                     "--ranks", "2"])
        self.assertEqual([result["tokens"] for result in alone],
                         [result["tokens"] for result in together])

    def test_plan_says_what_either_format_takes(self):
        exact = plan("--history-capacity", "5000")
        compact = plan("--history-capacity", "5000", *COMPACT)
        both = exact["history"]
        self.assertEqual(both["capacity"], 5000)
        self.assertLess(both["compact_bytes"], 0.8 * both["exact_bytes"])
        for planned, name in ((exact, "exact"), (compact, "compact")):
            self.assertEqual(planned["history"]["format"], name)
            self.assertEqual(planned["per_rank"][0]["history_bytes"],
                             both[f"{name}_bytes"])
        text = portolan_run("plan", "--model", portolan.MODEL, *COMPACT).stdout
        self.assertRegex(text, r"history: .* 1000 maps .* compact \(exact would "
                               r"take ")

    def test_wrong_values_are_refused_by_name(self):
        for flag, value, says in (
                ("--history-format", "zip", "exact and compact"),
                ("--history-capacity", "0", "range"),
                ("--history-capacity", "-5", "range"),
                ("--history-capacity", "many", "")):
            for command in (["generate", "--model", portolan.MODEL, "--prompt",
                             "Once"],
                            ["plan", "--model", portolan.MODEL],
                            ["replay", "--trace", "x", "--link", "1GB/s,0us"]):
                done = portolan_run(*command, flag, value)
                self.assertEqual(done.returncode, 2, (command, flag, value))
                self.assertRegex(done.stderr, rf"{flag}.*{says}")


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=2)
