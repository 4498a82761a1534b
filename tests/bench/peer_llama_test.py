"""How peer_llama.py reads its measurements, keeps and shows its results, and
in which order it does things; with programs that are not there."""

import contextlib
import io
import pathlib
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import machine  # noqa: E402
import peer_cases  # noqa: E402
import peer_llama  # noqa: E402
import peer_programs  # noqa: E402
import peer_results  # noqa: E402


class CasesTest(unittest.TestCase):
    def test_a_name_says_model_lengths_threads_and_weights(self):
        case = peer_cases.parse("s-tg64@1:int4/int8", threads=2)
        self.assertEqual(
            (case.preset, case.prompt, case.gen, case.batch, case.threads,
             case.experts, case.dense, case.phase),
            ("S", 128, 64, 1, 1, "int4", "int8", "decode"))
        case = peer_cases.parse("pp512", threads=2)
        self.assertEqual((case.preset, case.prompt, case.phase, case.threads),
                         ("M", 512, "prefill", 2))
        self.assertEqual((case.experts, case.dense), ("bf16", "bf16"))

    def test_batches_and_limits_take_their_lengths_from_flags(self):
        lengths = peer_cases.Lengths(batch=128, limit=48)
        case = peer_cases.parse("b32:int8", 2, lengths)
        self.assertEqual((case.batch, case.prompt, case.gen), (32, 32, 128))
        case = peer_cases.parse("limit30", 2, lengths)
        self.assertEqual((case.limit, case.prompt, case.gen), (30, 1, 48))

    def test_a_limit_is_of_the_model_in_bf16_or_in_its_own_weights(self):
        models = peer_programs.Models(pathlib.Path("m"), "python3")
        sizes = {"m/model-M.gguf": 4000, "m/model-M.Q8_0.gguf": 2000}
        with mock.patch.object(pathlib.Path, "exists", return_value=True), \
                mock.patch.object(
                    pathlib.Path, "stat", autospec=True,
                    side_effect=lambda path, **_: types.SimpleNamespace(
                        st_size=sizes[str(path)])):
            of = [models.limit_bytes(peer_cases.parse(text, 2))
                  for text in ("limit50:int8", "own50:int8", "own50")]
        self.assertEqual(of, [2000, 1000, 2000])

    def test_a_bound_holds_for_what_is_decoded(self):
        lengths = peer_cases.Lengths(most=8)
        self.assertEqual(peer_cases.parse("tg128", 2, lengths).gen, 8)
        self.assertEqual(peer_cases.parse("pp512", 2, lengths).prompt, 512)

    def test_all_that_runs_by_default_can_be_read(self):
        cases = [peer_cases.parse(text, 2) for text in peer_cases.ALL]
        limits = {(case.limit, case.experts) for case in cases if case.limit}
        self.assertLessEqual({(50, "bf16"), (30, "bf16"), (50, "int8"),
                              (30, "int8")}, limits)

    def test_what_is_wrong_with_a_name_is_said(self):
        for text, reason in (("tg", "no such measurement"),
                             ("walk12", "no such measurement"),
                             ("limit101", "no such measurement"),
                             ("b0", "no such measurement"),
                             ("tg128@x", "no number of threads"),
                             ("tg128:int3", "weights are bf16, int8"),
                             ("tg128:int8/int4", "weights are bf16, int8")):
            with self.assertRaisesRegex(SystemExit, f"{text}: .*{reason}"):
                peer_cases.parse(text, 2)


def line(case, program, decode, **more):
    return {"case": case, "program": program, "phase": "decode",
            "read_ahead": None, "prefill": 10 * decode, "decode": decode,
            "other_load": 0.25, "peak_bytes": 5e6, **more}


class ResultsTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = pathlib.Path(directory.name) / "results.jsonl"

    def results(self, *lines):
        results = peer_results.Results(self.path)
        with contextlib.redirect_stderr(io.StringIO()):
            for each in lines:
                results.add(each)
        return results

    def table(self, *lines):
        return peer_results.Tables(self.results(*lines)).text()

    def test_a_file_that_is_there_is_gone_on_with(self):
        self.results(line("b8", "llama.cpp", 20), line("b8", "Portolan", 30))
        again = self.results(line("b8", "llama.cpp", 22))
        self.assertEqual(again.values("b8", "llama.cpp", None, "decode"),
                         [20, 22])
        self.assertEqual(again.rounds("b8", None), 1)
        self.assertEqual(len(self.path.read_text().splitlines()), 3)

    def test_a_row_has_medians_spread_and_their_ratio(self):
        table = self.table(
            *(line("b8", "llama.cpp", value) for value in (20, 10, 12)),
            *(line("b8", "Portolan", value) for value in (24, 30, 31)))
        self.assertIn("| b8 | 12.0 [10.0-20.0] | 30.0 [24.0-31.0] | 2.50 "
                      "| 25 / 25 % | 5 / 5 MB |\n", table + "\n")

    def test_every_peer_has_a_column_and_a_ratio(self):
        table = self.table(
            line("b8", "llama.cpp", 10), line("b8", "ik_llama.cpp", 20),
            line("b8", "Portolan", 30))
        self.assertIn("| tokens/s | llama.cpp | ik_llama.cpp | Portolan |",
                      table)
        self.assertIn("| 3.00 / 1.50 |", table)

    def test_a_decode_of_128_tokens_tells_its_prefill_too(self):
        table = self.table(line("s-tg128", "llama.cpp", 10),
                           line("s-tg128", "Portolan", 30))
        self.assertIn("| s-pp128 | 100.0 ", table)
        self.assertIn("| s-tg128 | 10.0 ", table)

    def test_a_limit_tells_read_ahead_bytes_and_the_disk(self):
        where = {"read_ahead": 128, "disk_rate": 2e9}
        table = self.table(
            line("limit50", "llama.cpp", 5, disk_bytes_per_token=2e8, **where),
            line("limit50", "Portolan", 20, disk_bytes_per_token=1e8, **where))
        self.assertIn("| limit50, read-ahead 128 KiB | 5.00 ", table)
        self.assertIn("200.0 MB/token; 1.00 GB/s / 100.0 MB/token; 2.00 GB/s "
                      "| 2.00 GB/s / 2.00 GB/s |", table)

    def test_memory_and_limits_have_tables_of_their_own(self):
        table = self.table(
            *(line("b8", program, 10)
              for program in ("llama.cpp", "ik_llama.cpp", "Portolan")),
            *(line("limit50", program, 5, read_ahead=128)
              for program in ("llama.cpp", "Portolan")))
        self.assertIn("| tokens/s | llama.cpp | ik_llama.cpp | Portolan | ratio "
                      "| other load | peak memory |\n", table)
        self.assertIn("| tokens/s | llama.cpp | Portolan | ratio | other load "
                      "| peak memory | disk in decode | disk before |\n", table)

    def test_what_was_refused_says_why(self):
        refused = {"case": "limit50", "phase": "decode", "read_ahead": 128,
                   "skipped": "/sys/x: Permission denied"}
        table = self.table(*(dict(refused, program=program)
                             for program in ("llama.cpp", "Portolan")))
        self.assertEqual(table.count("- (/sys/x: Permission denied)"), 2)

    def test_the_head_is_each_command_and_what_it_ran(self):
        about = {"about": ["a day, a CPU", "ik_llama.cpp: skipped: no clang"]}
        table = self.table({"command": "peer_llama.py --what b8", **about},
                           {"command": "peer_llama.py --what b32", **about},
                           line("b8", "Portolan", 30))
        self.assertTrue(table.startswith("    peer_llama.py --what b8\n"))
        self.assertIn("    peer_llama.py --what b32\n", table)
        self.assertEqual(table.count("- ik_llama.cpp: skipped: no clang"), 1)


class ArgumentsTest(unittest.TestCase):
    def test_what_measures_nothing_is_refused_before_anything_is_built(self):
        for words, reason in (
                (["--rounds", "0"], "--rounds 0: one"),
                (["--threads", "0"], "--threads 0: one"),
                (["--read-ahead"], "--read-ahead: write"),
                (["--results", "/nowhere/x"], "--results /nowhere/x: there is"),
                (["--print"], "--print needs --results"),
                (["--print", "--results", "/nothing"], "--print needs")):
            done = subprocess.run(
                [sys.executable, str(HERE / "peer_llama.py"), *words],
                capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout), (2, ""), words)
            self.assertIn(reason, done.stderr)


class FakeProgram:
    def __init__(self, name, events):
        self.name, self.events = name, events

    def prepare(self, case):
        self.events.append(f"prepare {self.name}")

    def run(self, case, cgroup=None):
        self.events.append(f"run {self.name}")
        return {"prefill": 1, "decode": 2, "peak_bytes": 3}


class OrderTest(unittest.TestCase):
    """What happens to the machine, and when."""

    def setUp(self):
        self.events = []
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.results = peer_results.Results(
            pathlib.Path(directory.name) / "results.jsonl")
        self.models = types.SimpleNamespace(
            gguf=lambda preset: "model.gguf", limit_bytes=lambda case: 1000)
        self.args = types.SimpleNamespace(rounds=2, read_ahead=[128])
        for name, fake in (("read_ahead", self.read_ahead),
                           ("memory_limit", self.memory_limit),
                           ("drop_caches", self.drop_caches),
                           ("disk_rate", self.disk_rate)):
            patch = mock.patch.object(machine, name, fake)
            patch.start()
            self.addCleanup(patch.stop)

    @contextlib.contextmanager
    def read_ahead(self, file, kib):
        self.events.append(f"read-ahead {kib}")
        yield
        self.events.append("read-ahead back")

    @contextlib.contextmanager
    def memory_limit(self, limit_bytes):
        self.events.append(f"limit {limit_bytes}")
        yield types.SimpleNamespace(peak=lambda: 999)
        self.events.append("no limit")

    def drop_caches(self):
        self.events.append("drop caches")

    def disk_rate(self, file):
        self.events.append("disk rate")
        return 1e9

    def measure(self, text, *programs):
        case = peer_cases.parse(text, 2)
        with contextlib.redirect_stderr(io.StringIO()):
            refused = peer_llama.prepare([case], programs)
            peer_llama.measure(case, programs, self.models, self.args,
                               self.results, refused)

    def test_all_is_prepared_before_the_first_round_and_rounds_take_turns(self):
        self.measure("b8", FakeProgram("A", self.events),
                     FakeProgram("Portolan", self.events))
        self.assertEqual(self.events, [
            "prepare A", "prepare Portolan", "run A", "run Portolan",
            "run Portolan", "run A"])

    def test_a_limited_round_begins_cold_and_puts_everything_back(self):
        self.args.rounds = 1
        self.measure("limit50", FakeProgram("Portolan", self.events))
        self.assertEqual(self.events, [
            "prepare Portolan", "read-ahead 128", "disk rate", "drop caches",
            "limit 1000", "run Portolan", "no limit", "read-ahead back"])
        entry = self.results.lines[-1]
        self.assertEqual((entry["peak_bytes"], entry["disk_rate"]), (999, 1e9))

    def test_what_cannot_be_prepared_is_not_run_and_says_why(self):
        program = FakeProgram("Portolan", self.events)
        program.prepare = mock.Mock(side_effect=machine.Skipped("no pack"))
        self.measure("limit50", program)
        self.assertEqual(self.events, [])
        self.assertEqual([entry["skipped"] for entry in self.results.lines],
                         ["no pack"] * 2)

    def test_a_refused_setting_skips_the_round_with_the_reason(self):
        self.args.rounds = 1
        refusal = mock.Mock(side_effect=machine.Skipped("read-only"))
        with mock.patch.object(machine, "drop_caches", refusal):
            self.measure("limit50", FakeProgram("Portolan", self.events))
        self.assertEqual(self.results.lines[-1]["skipped"], "read-only")
        self.assertNotIn("run Portolan", self.events)


# Says what `plan` finds room for in what it is told to be available.
PROGRAM = """#!/bin/sh
case "$1" in
  --version) echo portolan 1.2.3 ;;
  plan) while [ "$1" != --memory-available ]; do shift; done
        echo "{\\"largest_expert_memory\\": $(($2 - 300))}"; exit 1 ;;
esac
"""


class ProgramsTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = pathlib.Path(directory.name)

    def test_under_a_limit_the_plan_says_what_experts_get(self):
        program = self.root / "portolan"
        program.write_text(PROGRAM)
        program.chmod(0o755)
        models = peer_programs.Models(self.root, "python3")
        models.gguf("M").write_bytes(bytes(4000))
        portolan = peer_programs.Portolan(program, ["--policy", "lru"], models)

        command = portolan.command(peer_cases.parse("limit50:int8/int8", 2))

        words = " ".join(map(str, command))
        self.assertIn("--memory-available 2000 --expert-memory 1700", words)
        self.assertIn("--weights int8 --dense-weights int8 --policy lru", words)

    def test_a_build_that_failed_is_told_and_not_tried_again(self):
        package = peer_programs.PACKAGES["ik_llama.cpp"]
        (self.root / f"{package}.failed").write_text("a.cpp:1: error: no AVX9")
        with self.assertRaisesRegex(machine.Skipped, "error: no AVX9"):
            peer_programs.create_environment(self.root, package)

    def test_the_second_peer_is_tried_with_gcc_where_clang_refuses_it(self):
        package = peer_programs.PACKAGES["ik_llama.cpp"]
        build = mock.Mock(side_effect=["no 'Q4Bits'", None])
        with mock.patch.object(peer_programs, "build", build), \
                mock.patch.object(peer_programs.shutil, "which",
                                  lambda name: name), \
                mock.patch.object(peer_programs.subprocess, "run"), \
                mock.patch.object(machine, "run", lambda words: words[0]):
            peer_programs.create_environment(self.root, package)
        self.assertEqual([call.args[2][0] for call in build.call_args_list],
                         ["clang", "gcc"])
        self.assertEqual((self.root / f"{package}.compiler").read_text(), "gcc")
        self.assertFalse((self.root / f"{package}.failed").exists())

    def test_only_clang_builds_the_first_peer_and_failures_are_kept(self):
        package = peer_programs.PACKAGES["llama.cpp"]
        build = mock.Mock(return_value="bad")
        with mock.patch.object(peer_programs, "build", build), \
                mock.patch.object(peer_programs.shutil, "which",
                                  lambda name: name), \
                mock.patch.object(peer_programs.subprocess, "run"):
            with self.assertRaisesRegex(machine.Skipped, "^clang: bad$"):
                peer_programs.create_environment(self.root, package)
        self.assertEqual((self.root / f"{package}.failed").read_text(),
                         "clang: bad")

    def test_the_reason_of_a_failure_is_its_first_error(self):
        log = "error: pip\n /tmp/x/b.cpp:7:5: error: no 'Q4Bits'\nc\n"
        self.assertEqual(peer_programs.reason_of_failure(log),
                         "b.cpp:7:5: error: no 'Q4Bits'")
        self.assertEqual(peer_programs.reason_of_failure("a\nERROR: x\nc\n"),
                         "ERROR: x")
        self.assertEqual(peer_programs.reason_of_failure("a\nlast\n\n"), "last")

    def test_a_peer_that_cannot_be_built_is_left_out_with_the_reason(self):
        args = types.SimpleNamespace(venv=self.root / "venv", ik=True)
        missing = mock.Mock(side_effect=machine.Skipped("it needs clang"))
        with mock.patch.object(peer_programs, "Peer"), \
                mock.patch.object(peer_programs, "SecondPeer", missing):
            peers, reasons = peer_llama.make_peers(args, {})
        self.assertEqual(len(peers), 1)
        self.assertEqual(reasons, ["ik_llama.cpp: skipped: it needs clang"])
        self.assertEqual(missing.call_args.args[1], self.root / "venv-ik")

    def test_a_model_that_was_cut_short_is_written_again(self):
        models = peer_programs.Models(self.root, sys.executable)
        models.hf("S").mkdir()
        (models.hf("S") / "config.json").write_text("{}")
        writes = mock.Mock()
        with mock.patch.object(machine, "run", writes), \
                contextlib.redirect_stderr(io.StringIO()):
            models.write("S")
            models.write("S")
        self.assertEqual(writes.call_count, 1)


if __name__ == "__main__":
    unittest.main()
