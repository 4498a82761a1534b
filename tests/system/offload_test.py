"""Experts beyond memory, end to end: the same tokens, memory within the
budget, no further message, and named errors when files fail under way."""

import itertools
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import portolan

BUILD = None
PROMPTS = portolan.SOURCE / "tests" / "data" / "prompts" / "demo.jsonl"
SYNTHETIC = portolan.SOURCE / "tests" / "bench" / "synthetic_model.py"
FLAGS = ["--temperature", "0", "--max-tokens", "8", "--ignore-eos"]


def run_for_peak(command):
    """Runs a command to its end; returns exit code and peak resident bytes."""
    process = subprocess.Popen([str(part) for part in command],
                               stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * 1024


class ExactnessTest(unittest.TestCase):
    def test_processes_give_the_tokens_of_the_resident_run(self):
        def tokens(arguments, **options):
            return [result["tokens"] for result in portolan.generate(
                BUILD, PROMPTS, FLAGS + arguments, **options)]
        reference = tokens([])
        for ranks, policy, memory in itertools.product(
                (1, 2, 3), ("lru", "gate-2", "fmoe", "adaptive"),
                ("25%", "216KiB")):
            with self.subTest(ranks=ranks, policy=policy, memory=memory):
                self.assertEqual(
                    tokens(["--policy", policy, "--expert-memory", memory],
                           mpi_ranks=ranks), reference)


class JobTest(unittest.TestCase):
    def stats(self, flags, mpi_ranks=None):
        with tempfile.TemporaryDirectory() as directory:
            file = pathlib.Path(directory) / "stats.json"
            portolan.generate(BUILD, PROMPTS, [*FLAGS, *flags, "--stats", file],
                              mpi_ranks=mpi_ranks)
            return json.loads(file.read_text())

    def test_a_budget_may_hold_all_experts_of_one_rank_only(self):
        # Of 256 experts the third of three ranks owns 80, the others 88.
        for mpi_ranks, flags in ((None, ["--ranks", "3"]), (3, [])):
            with self.subTest(mpi_ranks=mpi_ranks):
                stats = self.stats([*flags, "--expert-memory", "9072KiB"],
                                   mpi_ranks)
                self.assertGreater(stats["misses"], 0)

    def test_an_exchange_in_rounds_counts_an_expert_once_a_layer(self):
        flags = ["--ranks", "2", "--batch", "16", "--policy", "lru",
                 "--expert-memory", "25%"]
        counts = []
        for memory in ("256MiB", "64KiB"):
            stats = self.stats([*flags, "--exchange-memory", memory])
            counts.append(stats["hits"] + stats["late"] + stats["misses"])
        self.assertEqual(*counts)
        self.assertGreater(counts[0], 500)


class BudgetTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        cls.model = pathlib.Path(cls.directory.name) / "model"
        subprocess.run([SYNTHETIC, cls.model, "--layers", "4", "--experts",
                        "32", "--hidden", "512", "--width", "512"], check=True)

    def peak(self, memory, policy):
        stats = pathlib.Path(self.directory.name) / "stats.json"
        code, peak = run_for_peak(
            [portolan.program(BUILD), "generate", "--model", self.model,
             "--prompts", PROMPTS, *FLAGS, "--expert-memory", memory,
             "--policy", policy, "--stats", stats])
        self.assertEqual(code, 0)
        return peak, json.loads(stats.read_text())

    def plan(self, memory, policy):
        planned = portolan.run(
            [portolan.program(BUILD), "plan", "--model", self.model,
             "--expert-memory", memory, "--policy", policy, "--json"])
        self.assertEqual(planned.returncode, 0, planned.stderr)
        return json.loads(planned.stdout)["per_rank"][0]

    def test_resident_memory_follows_the_budget(self):
        for policy in ("lru", "adaptive"):
            full, full_stats = self.peak("100%", policy)
            small, small_stats = self.peak("12.5%", policy)
            with self.subTest(policy=policy, full=full, small=small):
                saved = (full_stats["expert_memory_bytes"] -
                         small_stats["expert_memory_bytes"])
                self.assertGreater(saved, 150 << 20)
                # Staging and what predictors keep is what the small one may
                # have more; 4 MiB are the noise of an allocator.
                more = (small_stats["staging_bytes"] -
                        full_stats["staging_bytes"] +
                        self.plan("12.5%", policy)["foresight_bytes"])
                self.assertGreater(full - small, saved - more - (4 << 20))
                self.assertLessEqual(small_stats["expert_memory_peak_bytes"],
                                     small_stats["expert_memory_bytes"])

    def test_the_sum_of_the_plan_is_not_exceeded(self):
        for memory in ("100%", "12.5%"):
            peak, _ = self.peak(memory, "adaptive")
            with self.subTest(memory=memory, peak=peak):
                self.assertLessEqual(
                    peak, self.plan(memory, "adaptive")["bytes"])


class HintsTest(unittest.TestCase):
    def test_predictions_travel_without_a_message_of_their_own(self):
        stats = {}
        with tempfile.TemporaryDirectory() as directory:
            file = pathlib.Path(directory) / "stats.json"
            for policy in ("lru", "gate-1", "adaptive"):
                portolan.generate(BUILD, PROMPTS, FLAGS + [
                    "--policy", policy, "--expert-memory", "25%", "--ranks",
                    "3", "--stats", file])
                stats[policy] = json.loads(file.read_text())
        for policy in ("gate-1", "adaptive"):
            self.assertEqual(stats[policy]["messages_sent"],
                             stats["lru"]["messages_sent"])
            self.assertGreater(stats[policy]["bytes_sent"],
                               stats["lru"]["bytes_sent"])


class ReplayTest(unittest.TestCase):
    """The simulator foretells what the engine does, count by count."""

    def compare(self, policy):
        flags = ["--policy", policy, "--expert-memory", "25%"]
        link = "200MB/s,200us"
        with tempfile.TemporaryDirectory() as directory:
            trace = pathlib.Path(directory) / "trace"
            stats = pathlib.Path(directory) / "stats.json"
            portolan.generate(BUILD, PROMPTS, FLAGS + flags + [
                "--batch", "1", "--expert-link", link, "--trace", trace,
                "--stats", stats])
            replayed = portolan.run([portolan.program(BUILD), "replay",
                                     "--json", "--trace", trace, "--link", link,
                                     *flags])
            self.assertEqual(replayed.returncode, 0, replayed.stderr)
            return json.loads(stats.read_text()), json.loads(replayed.stdout)[0]

    def test_demand_alone_is_foretold_exactly(self):
        engine, replay = self.compare("lru")
        for kind in ("hits", "late", "misses"):
            self.assertEqual(engine[kind], replay[kind])
        self.assertEqual(engine["bytes"], replay["bytes"])
        self.assertGreater(engine["misses"], 1000)

    def test_prefetches_are_foretold_but_for_what_depends_on_microseconds(self):
        kinds = ("hits", "late", "misses")
        for policy in ("gate-2", "adaptive"):
            # Whoever takes the CPU from the engine gives its reads more time:
            # one run of three must have been left alone.
            for attempt in range(3):
                engine, replay = self.compare(policy)
                needed = sum(engine[kind] for kind in kinds)
                self.assertEqual(needed, sum(replay[kind] for kind in kinds))
                off = max(abs(engine[kind] - replay[kind]) for kind in kinds)
                if off < 0.1 * needed:
                    break
            with self.subTest(policy=policy, engine=engine, replay=replay):
                self.assertLess(off, 0.1 * needed)


class FaultTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.model = self.directory / "model"
        shutil.copytree(portolan.MODEL, self.model)

    def break_under_way(self, breaking, *arguments):
        """Breaks a file once the first text has come; returns stdout and the
        errors. The slow link keeps the run going for long."""
        process = subprocess.Popen(
            [str(part) for part in (
                portolan.program(BUILD), "generate", "--model", self.model,
                "--prompt", "The king had three daughters", "--temperature",
                "0", "--max-tokens", "400", "--ignore-eos", "--expert-memory",
                "5%", "--expert-link", "20MB/s,1ms", *arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first = process.stdout.read(4)
        breaking()
        rest, errors = process.communicate(timeout=120)
        return process.returncode, first + rest, errors

    def whole_text(self):
        return portolan.run(
            [portolan.program(BUILD), "generate", "--model", portolan.MODEL,
             "--prompt", "The king had three daughters", "--temperature", "0",
             "--max-tokens", "400", "--ignore-eos"]).stdout

    def check_named(self, result, pattern):
        code, text, errors = result
        self.assertEqual(code, 1, errors)
        self.assertRegex(errors, pattern)
        # Fewer tokens than asked for, but none that is wrong.
        self.assertTrue(self.whole_text().startswith(text.rstrip("\n")))

    def test_a_checkpoint_truncated_under_way_is_a_named_error(self):
        weights = self.model / "model.safetensors"
        result = self.break_under_way(lambda: os.truncate(weights, 2_000_000))
        self.check_named(result, r"error: .*reading expert L\d+/E\d+ from "
                                 r".*model\.safetensors.*truncated")

    def test_a_pack_damaged_under_way_is_a_named_error(self):
        portolan.run([portolan.program(BUILD), "pack", "--model", self.model])
        pack = self.model / "experts.portolan-pack"

        def damage():
            with open(pack, "r+b") as file:
                for offset in range(16384, pack.stat().st_size, 40_000):
                    file.seek(offset)
                    file.write(b"damage")
        self.check_named(self.break_under_way(damage),
                         r"error: .*experts\.portolan-pack is damaged: the "
                         r"record of expert L\d+/E\d+")

    def test_a_trace_that_fills_its_disk_ends_and_the_run_goes_on(self):
        trace = self.directory / "trace"
        reference = portolan.generate(BUILD, PROMPTS, FLAGS)

        def limit():  # writes beyond 64 KiB fail, as on a full disk
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        done = subprocess.run(
            [str(part) for part in (
                portolan.program(BUILD), "generate", "--model", portolan.MODEL,
                "--prompts", PROMPTS, "--format", "jsonl", *FLAGS, "--trace",
                trace)], capture_output=True, text=True, preexec_fn=limit)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"notice: the trace ends here: .*trace")
        self.assertEqual(
            [json.loads(line)["tokens"] for line in done.stdout.splitlines()],
            [result["tokens"] for result in reference])
        # What was written is a trace, down to the last whole block.
        replayed = portolan.run(
            [portolan.program(BUILD), "replay", "--trace", trace, "--policy",
             "lru", "--link", "1GB/s,50us"])
        self.assertEqual(replayed.returncode, 0, replayed.stderr)
        self.assertNotIn("note:", replayed.stderr)

    def test_every_rank_says_that_its_trace_ends(self):
        trace = self.directory / "trace"

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        done = subprocess.run(
            [str(part) for part in (
                portolan.program(BUILD), "generate", "--model", portolan.MODEL,
                "--prompts", PROMPTS, *FLAGS, "--trace", trace, "--ranks",
                "2")], capture_output=True, text=True, preexec_fn=limit)
        self.assertEqual(done.returncode, 0, done.stderr)
        for rank in (0, 1):
            self.assertRegex(done.stderr,
                             rf"notice: rank {rank} on \S+: the trace ends "
                             rf"here: .*trace\.{rank} after")

    def test_a_trace_that_cannot_begin_is_refused_by_name(self):
        done = portolan.run(
            [portolan.program(BUILD), "generate", "--model", portolan.MODEL,
             "--prompt", "Once", "--trace", self.directory / "no" / "trace"])
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"error: .*no/trace")

    def test_a_damaged_history_is_refused_by_name(self):
        history = self.directory / "history"
        portolan.generate(BUILD, PROMPTS, FLAGS + ["--history", history])
        data = bytearray(history.read_bytes())
        data[len(data) // 2] ^= 1
        history.write_bytes(data)
        done = portolan.run(
            [portolan.program(BUILD), "generate", "--model", portolan.MODEL,
             "--prompt", "Once", "--history", history])
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"error: .*history.*damaged")


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=2)
