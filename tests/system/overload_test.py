"""Three times as many requests as a service can serve: its memory stays as it
is, what it cannot take it refuses, what it takes starts soon, and a second
later everything is as before.

    overload_test.py BUILD [--long]
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time
import unittest

parser = argparse.ArgumentParser()
parser.add_argument("build", type=pathlib.Path)
parser.add_argument("--long", action="store_true")
ARGUMENTS, REST = parser.parse_known_args()
BUILD = ARGUMENTS.build
sys.path.insert(0, str(BUILD / "clients" / "python"))

import portolan
import service

PROMPTS = portolan.SOURCE / "tests" / "data" / "prompts" / "serve.jsonl"
LOAD_S = 60 if ARGUMENTS.long else 8
MEASURE_S = 20 if ARGUMENTS.long else 5
MAX_QUEUE_WAIT_S = 0.5
BATCH = 4
# The bound holds as it is. Only in the short run, which shares its machine with
# other tests, a process may have to wait for a processor.
SLACK_S = 0 if ARGUMENTS.long else 1.0
GROWTH_BYTES = 32 << 20


class MemoryWatch:
    """Samples the resident memory of processes, ten times a second."""

    def __init__(self, pids):
        self.samples = []
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(0.1):
            self.samples.append(sum(map(service.resident_bytes, self._pids)))

    def end(self):
        self._stop.set()
        self._thread.join()
        return self.samples


class OverloadTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.coordinator = service.Coordinator(
            BUILD, self.directory, "--max-queue-wait", f"{MAX_QUEUE_WAIT_S}s")
        self.addCleanup(self.coordinator.stop)

    def attach(self, job):
        self.addCleanup(job.stop)
        with service.client(self.coordinator.address) as client:
            service.wait_for_ranks(client, 2, job)

    def bench(self, *flags):
        """Runs `portolan bench serve`; returns its summary and records."""
        records = self.directory / "records.jsonl"
        done = portolan.run(
            [portolan.program(BUILD), "bench", "serve", "--coordinator",
             self.coordinator.address, "--prompts", PROMPTS, "--json", "--records",
             records, *flags], timeout=LOAD_S + 200)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout), [
            json.loads(line) for line in records.read_text().splitlines()]

    def longest_start(self):
        """From acceptance to first token, as the coordinator logged it; what a
        client saw beyond that is the way there and back."""
        lines = [json.loads(line) for line in
                 self.coordinator.output().splitlines()
                 if line.startswith("{")]
        return max(line["ttft_s"] for line in lines
                   if line["event"] == "request")

    def test_an_overloaded_coordinator_stays_itself(self):
        """The ranks keep time by the clock: a loaded machine changes little."""
        self.attach(service.ScriptedJob(BUILD, self.directory,
                                        self.coordinator.address,
                                        "--sequences", BATCH))
        self.check(by_the_clock=True)

    def test_an_overloaded_service_stays_itself(self):
        if not service.has_worker(BUILD):
            self.skipTest("this build has no `portolan worker`")
        self.attach(service.Job(BUILD, self.directory,
                                self.coordinator.address, "--batch", BATCH))
        self.check(by_the_clock=ARGUMENTS.long)

    def check(self, by_the_clock):
        """Times count only where nothing else takes the processors."""
        alone, _ = self.bench("--closed", 1, "--duration", MEASURE_S)
        capacity, _ = self.bench("--closed", 2 * BATCH, "--duration",
                                 MEASURE_S)
        memory = MemoryWatch([self.coordinator.pid])
        loaded, records = self.bench("--rate", 3 * capacity["done_per_s"],
                                     "--duration", LOAD_S, "--seed", 1)
        ended = time.monotonic()
        samples = memory.end()
        time.sleep(max(0, ended + 1 - time.monotonic()))
        after, _ = self.bench("--closed", 1, "--requests", 8)

        bound = 2 * alone["ttft_s"]["p50"] + MAX_QUEUE_WAIT_S
        done = [record for record in records if record["code"] == "OK"]
        # From the sending: that the sender had to wait for a processor is no
        # fault of the service.
        ttft = [record["ttft_s"] - (record["sent_s"] - record["arrival_s"])
                for record in done if record["tokens"] > 0]
        print(f"unloaded TTFT p50 {alone['ttft_s']['p50']:.3f} s; capacity "
              f"{capacity['done_per_s']:.1f} requests/s, "
              f"{capacity['tokens_per_s']:.0f} tokens/s; loaded: offered "
              f"{loaded['offered_per_s']:.1f}/s, done "
              f"{loaded['done_per_s']:.1f}/s, {loaded['tokens_per_s']:.0f} "
              f"tokens/s, errors {loaded['errors']}, TTFT p50 "
              f"{statistics.median(ttft):.3f} p99 {loaded['ttft_s']['p99']:.3f} "
              f"max {max(ttft):.3f} s (strict bound {bound:.3f}, beyond it "
              f"{sum(t > bound for t in ttft)} of {len(ttft)}; by the "
              f"coordinator {self.longest_start():.3f}); sent late by at "
              f"most {loaded['sent_late_s']['max']:.3f} s; after: TTFT p50 "
              f"{after['ttft_s']['p50']:.3f} s; processors wanted "
              f"{os.getloadavg()[0]:.1f}; memory "
              f"{samples[0] >> 20} .. {max(samples) >> 20} MiB", flush=True)
        self.assertEqual(set(loaded["errors"]), {"RESOURCE_EXHAUSTED"})
        if by_the_clock:
            self.assertLess(max(ttft), bound + SLACK_S)
            self.assertGreater(loaded["tokens_per_s"],
                               0.5 * capacity["tokens_per_s"])
            self.assertLess(after["ttft_s"]["p50"],
                            2 * alone["ttft_s"]["p50"] + SLACK_S)
        half = len(samples) // 2
        self.assertLess(max(samples[half:]) - max(samples[:half]),
                        GROWTH_BYTES)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *REST], verbosity=2)
