"""What one job learns reaches the next through their coordinator, and outlives
it."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

import portolan

BUILD = None
PROMPTS = [f"Once upon a time number {i}" for i in range(4)]


class SharedHistoryTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.client = pathlib.Path(BUILD) / "launcher" / "portolan-client"
        self.exchanges = 0
        self.processes = []
        self.addCleanup(self.end_all)

    def end_all(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def start(self, name, *arguments):
        log = open(self.directory / name, "w", encoding="utf-8")
        self.addCleanup(log.close)
        process = subprocess.Popen(
            [portolan.program(BUILD), *map(str, arguments)], stderr=log)
        self.processes.append(process)
        return process

    def coordinator(self):
        state = self.directory / "state"
        endpoint = state / "endpoint.json"
        endpoint.unlink(missing_ok=True)
        process = self.start("coordinator", "coordinator", "--listen",
                             "127.0.0.1:0", "--data-dir", state, "--http",
                             "127.0.0.1:0")
        self.wait_for(endpoint.exists)
        told = json.loads(endpoint.read_text())
        self.metrics_url = f"http://{told['http']}/metrics"
        return process, told["address"]

    def metric(self, pattern):
        """The sum of all series that a pattern names."""
        with urllib.request.urlopen(self.metrics_url) as page:
            text = page.read().decode()
        return sum(map(float, re.findall(rf"(?m)^{pattern} (\S+)$", text)))

    def model(self, address):
        """What the coordinator tells of the model."""
        done = portolan.run([self.client, "stats", "--coordinator", address,
                             "--json"])
        self.assertEqual(done.returncode, 0, done.stderr)
        model, = json.loads(done.stdout)["models"]
        return model

    def kept_maps(self, address):
        model = self.model(address)
        self.assertGreater(model["expert_map_bytes"], 0)
        kept = model["expert_maps"]
        self.assertEqual(
            self.metric(r"portolan_expert_map_store_entries\{.*\}"), kept)
        return kept

    def wait_for(self, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def job(self, name, address):
        """Serves PROMPTS with a job; returns texts and the maps it began with,
        rank by rank."""
        worker = self.start(name, "worker", "--model", portolan.MODEL,
                            "--coordinator", address, "--ranks", 2,
                            "--expert-memory", "25%", "--job", name)
        texts = []
        for prompt in PROMPTS:
            done = portolan.run([self.client, "generate", "--coordinator", address,
                                 "--prompt", prompt, "--max-tokens", 16,
                                 "--ignore-eos",
                                 "--temperature", 0])
            self.assertEqual(done.returncode, 0, done.stderr)
            texts.append(done.stdout)
        # Every step of every layer is an exchange of each rank, and the last
        # figures come when the ranks rest.
        steps = len(PROMPTS) * 16
        self.wait_for(lambda: self.metric(r"portolan_alltoall_seconds_count\{.*\}")
                      >= self.exchanges + 2 * 8 * steps)
        self.exchanges = self.metric(r"portolan_alltoall_seconds_count\{.*\}")
        self.assertGreater(self.metric(
            r"portolan_alltoall_seconds_sum\{.*\}"), 0)
        worker.send_signal(signal.SIGTERM)
        self.assertEqual(worker.wait(60), 0)
        log = (self.directory / name).read_text()
        return texts, [int(n) for n in
                       re.findall(r"begins with (\d+) expert maps", log)]

    def test_a_new_job_begins_with_what_others_learnt(self):
        coordinator, address = self.coordinator()
        texts, known = self.job("first", address)
        self.assertEqual(known, [0, 0])
        kept = self.kept_maps(address)
        self.assertGreaterEqual(kept, len(PROMPTS))
        # Also after a restart of the coordinator.
        coordinator.send_signal(signal.SIGTERM)
        self.assertEqual(coordinator.wait(60), 0)
        _, address = self.coordinator()
        self.exchanges = 0
        self.assertEqual(self.kept_maps(address), kept)

        again, known = self.job("second", address)

        # What the first job learnt was of use to the second one.
        self.assertGreater(self.model(address)["expert_map_hits"], 0)
        self.assertEqual(again, texts)
        # At least a map of each sequence.
        self.assertEqual(len(known), 2)
        for number in known:
            self.assertGreaterEqual(number, len(PROMPTS))


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=2)
