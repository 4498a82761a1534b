"""`portolan plan`: what a job takes in memory, without reading a weight; the
job that then starts keeps to it."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import portolan

BUILD = None
SYNTHETIC = portolan.SOURCE / "tests" / "bench" / "synthetic_model.py"
PROMPTS = portolan.SOURCE / "tests" / "data" / "prompts" / "demo.jsonl"


def plan(*arguments, model=portolan.MODEL):
    return portolan.run([portolan.program(BUILD), "plan", "--model", model,
                         *arguments])


def plan_json(*arguments, **options):
    done = plan("--json", *arguments, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class PlanTest(unittest.TestCase):
    def test_a_model_larger_than_any_memory_is_planned_from_its_headers(self):
        with tempfile.TemporaryDirectory() as directory:
            subprocess.run([SYNTHETIC, directory, "--sparse", "--layers", "32",
                            "--experts", "64", "--hidden", "4096", "--width",
                            "8192", "--top-k", "8"], check=True)
            size = (pathlib.Path(directory) / "model.safetensors").stat()
            self.assertGreater(size.st_size, 400 * 10**9)
            planned = plan_json("--ranks", "64", "--expert-memory", "10%",
                                "--ranks-per-host", "1", model=directory)
            refused = plan("--ranks", "2", model=directory)
        self.assertEqual(planned["weight_bytes_read"], 0)
        self.assertEqual(len(planned["per_rank"]), 64)
        for rank in planned["per_rank"]:
            self.assertEqual(rank["experts"], 32)
            self.assertEqual(rank["slots"], 3)
            self.assertEqual(rank["slot_bytes"], 3 * 2 * 4096 * 8192)
            self.assertEqual(rank["kv_bytes_per_token"],
                             2 * 2 * 2 * (4096 // 4) * 32)
            parts = ("expert_bytes", "staging_bytes", "host_tier_bytes",
                     "dense_bytes", "kv_bytes", "exchange_bytes", "work_bytes",
                     "rope_bytes", "history_bytes", "foresight_bytes",
                     "mailbox_bytes", "program_bytes")
            self.assertEqual(rank["bytes"], sum(rank[part] for part in parts))
        self.assertEqual(refused.returncode, 1)
        self.assertRegex(refused.stderr, r"error: all experts do not fit: .*"
                                         r"write --expert-memory \d+ \(")

    def test_ranks_that_do_not_divide_the_experts_get_their_own_shares(self):
        planned = plan_json("--ranks", "3", "--expert-memory", "25%")
        self.assertEqual([rank["experts"] for rank in planned["per_rank"]],
                         [88, 88, 80])
        self.assertEqual([rank["slots"] for rank in planned["per_rank"]],
                         [22, 22, 20])

    def test_a_budget_below_the_minimum_exits_1_naming_it(self):
        refused = plan("--ranks", "1", "--expert-memory", "100KB")
        self.assertEqual(refused.returncode, 1)
        slot = plan_json("--expert-memory", "25%")["per_rank"][0]["slot_bytes"]
        self.assertRegex(refused.stderr,
                         rf"error: --expert-memory 100KB .*write {2 * slot} ")
        self.assertEqual(refused.stdout, "")

    def test_what_it_calls_the_largest_budget_starts_and_more_does_not(self):
        memory = ["--memory-available", "110MB", "--batch", "1"]
        refused = plan(*memory)
        self.assertEqual(refused.returncode, 1)
        self.assertRegex(refused.stdout, r"they do not fit")
        planned = json.loads(plan("--json", *memory).stdout)
        largest = planned["largest_expert_memory"]
        self.assertGreater(largest, 0)
        for budget, fits in ((largest, True), (largest + (2 << 20), False)):
            planned = json.loads(plan("--json", *memory, "--expert-memory",
                                      budget).stdout)
            self.assertEqual(planned["fits"], fits)
        started = portolan.run(
            [portolan.program(BUILD), "generate", "--model", portolan.MODEL,
             "--prompt", "Once", "--max-tokens", "2", *memory])
        self.assertEqual(started.returncode, 1)
        self.assertIn(f"write --expert-memory {largest} ", started.stderr)
        self.assertEqual(started.stdout, "")

    def test_a_stated_budget_that_does_not_fit_is_said_and_runs(self):
        memory = ["--memory-available", "10KiB", "--expert-memory", "25%"]
        planned = plan(*memory)
        self.assertEqual(planned.returncode, 1)
        self.assertRegex(planned.stderr, r"error: .*wanted, 10.0 KiB are avail")
        started = portolan.run(
            [portolan.program(BUILD), "generate", "--model", portolan.MODEL,
             "--prompt", "Once", "--max-tokens", "2", *memory])
        self.assertEqual(started.returncode, 0, started.stderr)
        self.assertRegex(started.stderr,
                         r"notice: .*--expert-memory 25% is taken at its word")

    def test_a_history_that_cannot_be_is_refused_before_the_wait(self):
        for history, why in (("/dev/zero", "it is no regular file"),
                             (PROMPTS, "not a history")):
            refused = plan("--expert-memory", "25%", "--history", history)
            self.assertEqual(refused.returncode, 1)
            self.assertRegex(refused.stderr, rf"error: .*{history}: {why}")

    def test_a_refusal_of_all_ranks_of_mpirun_is_told_once(self):
        done = portolan.run(
            [portolan.LAUNCH, "-np", "2", "--", portolan.program(BUILD),
             "generate", "--model", portolan.MODEL, "--prompt", "Once",
             "--memory-available", "150MB"])
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"error: .*2 rank\(s\) want")
        self.assertEqual(done.stderr.count("error: "), 1, done.stderr)

    def peak(self, *arguments):
        """Most resident bytes of a run in which a step is full."""
        process = subprocess.Popen(
            [str(part) for part in (
                portolan.program(BUILD), "generate", "--model", portolan.MODEL,
                "--prompts", PROMPTS, "--temperature", "0", "--ignore-eos",
                "--max-tokens", "2", "--tokens-per-step", "64", *arguments)],
            stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(process.returncode, 0)
        return usage.ru_maxrss * 1024

    def test_what_a_run_takes_is_what_was_planned(self):
        for policy, format in (("lru", "exact"), ("adaptive", "compact"),
                               ("fmoe", "exact"), ("fmoe", "compact")):
            flags = ["--policy", policy, "--history-format", format,
                     "--expert-memory", "25%"]
            bytes_planned, peaks = [], []
            for capacity in ("1000", "60000"):
                run = [*flags, "--history-capacity", capacity]
                rank = plan_json(*run, "--tokens-per-step",
                                 "64")["per_rank"][0]
                bytes_planned.append(rank["bytes"])
                peaks.append(self.peak(*run))
            with self.subTest(policy=policy, format=format,
                              planned=bytes_planned, peaks=peaks):
                for planned, peak in zip(bytes_planned, peaks):
                    self.assertLessEqual(peak, planned)
                planned = bytes_planned[1] - bytes_planned[0]
                self.assertGreater(planned, 100 << 20)
                # A step of these prompts is full or nearly so.
                self.assertGreater(peaks[1] - peaks[0], 0.9 * planned)

    def test_quantised_weights_take_smaller_slots_and_want_their_pack(self):
        with tempfile.TemporaryDirectory() as directory:
            flags = ["--pack-dir", directory, "--weights", "int8"]
            refused = plan(*flags)
            packed = portolan.run(
                [portolan.program(BUILD), "pack", "--model", portolan.MODEL,
                 "--pack-dir", directory, "--quantize", "int8"])
            self.assertEqual(packed.returncode, 0, packed.stderr)
            quantised = plan_json(*flags)["per_rank"][0]
        bf16 = plan_json()["per_rank"][0]
        self.assertEqual(refused.returncode, 1)
        self.assertRegex(refused.stderr, r"error: .*holds no pack")
        self.assertLess(quantised["slot_bytes"], 0.6 * bf16["slot_bytes"])
        self.assertEqual(quantised["staging_bytes"], 0)
        self.assertGreater(bf16["staging_bytes"], 0)

    def test_ranks_that_serve_share_their_history(self):
        alone = plan_json("--ranks", "2")["per_rank"][1]
        serving = plan_json("--ranks", "2", "--service")["per_rank"][1]
        self.assertEqual(alone["mailbox_bytes"], 0)
        self.assertGreater(serving["mailbox_bytes"], 80 << 20)

    def test_a_trace_foretells_the_stall(self):
        with tempfile.TemporaryDirectory() as directory:
            trace = pathlib.Path(directory) / "trace"
            portolan.generate(BUILD, PROMPTS, ["--max-tokens", "8", "--trace",
                                               trace])
            without_link = plan("--trace", trace)
            link = ["--trace", trace, "--expert-link", "1GB/s,50us",
                    "--policy", "lru"]
            stalls = [plan_json("--expert-memory", budget, *link)["replay"]
                      for budget in ("100%", "25%", "12.5%")]
            replayed = portolan.run(
                [portolan.program(BUILD), "replay", "--json", "--trace", trace,
                 "--link", "1GB/s,50us", "--policy", "lru", "--expert-memory",
                 "25%", "--ranks", "2"])
            planned = plan_json("--expert-memory", "25%", "--ranks", "2",
                                *link)["replay"]
        self.assertEqual(without_link.returncode, 1)
        self.assertRegex(without_link.stderr, r"error: .*--expert-link")
        # One name, one figure, here and there.
        for name in ("stall_per_token_s", "lost_per_token_s"):
            self.assertEqual(json.loads(replayed.stdout)[0][name],
                             planned[name])
        self.assertLess(planned["lost_per_token_s"],
                        planned["stall_per_token_s"])
        times = [stall["stall_per_token_s"] for stall in stalls]
        self.assertEqual(sorted(times), times)
        self.assertGreater(times[2], 0)
        self.assertEqual(stalls[0]["policy"], "lru")

    def test_a_trace_recorded_with_a_link_needs_no_other(self):
        with tempfile.TemporaryDirectory() as directory:
            trace = pathlib.Path(directory) / "trace"
            portolan.generate(
                BUILD, PROMPTS, ["--max-tokens", "2", "--trace", trace,
                                 "--expert-memory", "25%", "--expert-link",
                                 "1GB/s,50us"])
            own, given = (
                plan_json("--trace", trace, "--expert-memory", "25%",
                          *link)["replay"]
                for link in ([], ["--expert-link", "1GB/s,50us"]))
        self.assertEqual(own["stall_per_token_s"], given["stall_per_token_s"])

    def test_a_trace_of_another_model_is_refused_by_name(self):
        with tempfile.TemporaryDirectory() as directory:
            directory = pathlib.Path(directory)
            other = directory / "model"
            subprocess.run([SYNTHETIC, other, "--layers", "2", "--experts", "8",
                            "--hidden", "64", "--width", "64"], check=True)
            for name, model in (("own", portolan.MODEL), ("other", other)):
                done = portolan.run(
                    [portolan.program(BUILD), "generate", "--model", model,
                     "--prompts", PROMPTS, "--max-tokens", "2", "--trace",
                     directory / name])
                self.assertEqual(done.returncode, 0, done.stderr)
            link = ["--policy", "lru", "--expert-memory", "25%"]
            planned = plan("--trace", directory / "other", "--expert-link",
                           "1GB/s,50us", *link)
            learnt = portolan.run(
                [portolan.program(BUILD), "replay", "--trace",
                 directory / "own", "--learn", directory / "other", "--link",
                 "1GB/s,50us", *link])
        for done, flag in ((planned, "--trace"), (learnt, "--learn")):
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr,
                             rf"error: {flag} .*/other was recorded of another "
                             r"model \(.*\): layers 2, wanted is 8; record one")
            self.assertEqual(done.stdout, "")


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=2)
