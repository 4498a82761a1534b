"""Kills ranks, whole jobs and the coordinator at random moments while clients
generate, submit and watch: nothing is lost, repeated, reordered or changed.

    chaos_test.py BUILD [--kills N] [--seed S]
"""

import argparse
import os
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time
import unittest

parser = argparse.ArgumentParser()
parser.add_argument("build", type=pathlib.Path)
parser.add_argument("--kills", type=int, default=5)
parser.add_argument("--seed", type=int, default=1)
ARGUMENTS, REST = parser.parse_known_args()
sys.path.insert(0, str(ARGUMENTS.build / "clients" / "python"))

from portolan_client import PortolanError

import portolan
import scripted_rank
import service

PROMPTS = portolan.SOURCE / "tests" / "data" / "prompts" / "serve.jsonl"
CLIENTS = 6
RANKS = 2


def long_prompts():
    """Requests that are long enough to be met by a kill."""
    prompts = service.read_prompts(PROMPTS)[:16]
    return [{**prompt, "max_tokens": 60 + 10 * (index % 5)}
            for index, prompt in enumerate(prompts)]


def formula_prompts():
    """The same for ranks of a formula, which knows no sampling."""
    return [{"id": prompt["id"], "prompt": prompt["prompt"], "seed":
             prompt["seed"], "max_tokens": prompt["max_tokens"]}
            for prompt in long_prompts()]


def outcome_of(result):
    """What no kill may change."""
    return result.token_ids, result.text, result.finish.reason


class Chaos:
    """Kills, and sees to it that what was killed comes back: the job by its
    supervisor, the coordinator by this. Everything random comes from `seed`."""

    def __init__(self, coordinator, job, seed):
        self.coordinator = coordinator
        self.job = job
        self.kills = []
        self._random = random.Random(seed)

    def run(self, number):
        while len(self.kills) < number:
            time.sleep(self._random.uniform(0.1, 2.0))
            self._kill(self._random.choice(["rank", "job", "coordinator"]))
            if isinstance(self.job, service.ScriptedJob):
                time.sleep(self._random.uniform(0, 0.5))
                self.job.start_missing()
            if self._random.random() < 0.7:
                self._wait_for_progress()

    def _kill(self, what):
        if what == "coordinator":
            self.coordinator.kill()
            time.sleep(self._random.uniform(0, 1))
            self.coordinator = self.coordinator.again()
        else:
            ranks = self.job.ranks()
            if not ranks:
                return  # they are starting: try something else
            chosen = ranks if what == "job" else [self._random.choice(ranks)]
            for pid in chosen:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    return
        self.kills.append(what)
        print(f"kill {len(self.kills)}: {what}", flush=True)

    def _wait_for_progress(self):
        """Until some tokens more have come from the ranks."""
        with service.client(self.coordinator.address) as client:
            service.wait_for_ranks(client, 1, self.job)
            before = client.stats().tokens
            service.wait_until(
                lambda: client.stats().tokens > before + 3 or
                not client.stats().queued + client.stats().running,
                service.START_S, "progress")


class Crowd:
    """Clients that work until they are told to stop; each answer is compared
    with what an undisturbed run gives."""

    def __init__(self, address, expected, prompts):
        self._address = address
        self._expected = expected
        self._prompts = prompts
        self._next = 0
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self.faults = []
        self.answers = 0
        self._threads = [threading.Thread(target=self._work)
                         for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def join(self):
        self.stopping.set()
        for thread in self._threads:
            thread.join()

    def _work(self):
        with service.client(self._address) as client:
            while not self.stopping.is_set():
                with self._lock:
                    number = self._next
                    self._next += 1
                prompt = self._prompts[number % len(self._prompts)]
                way = (self._generate, self._submit,
                       self._watch_in_parts)[number % 3]
                try:
                    for answer in way(client, prompt):
                        self._check(prompt, answer)
                except (PortolanError, AssertionError) as error:
                    self.faults.append((prompt["id"], way.__name__, error))

    def _check(self, prompt, answer):
        with self._lock:
            self.answers += 1
        expected = self._expected[prompt["id"]]
        if answer != expected:
            self.faults.append((prompt["id"], answer, expected))

    def _generate(self, client, prompt):
        result = client.generate(prompt["prompt"],
                                 **service.sampling_of(prompt))
        yield outcome_of(result)

    def _submit(self, client, prompt):
        """Two watchers, who see the same."""
        request_id = client.submit(prompt["prompt"],
                                   **service.sampling_of(prompt)).request_id
        second = []
        watcher = threading.Thread(
            target=lambda: second.append(client.wait(request_id)))
        watcher.start()
        first = client.wait(request_id)
        watcher.join()
        for result in (first, *second):
            yield outcome_of(result)
        assert second, "the second watcher failed"

    def _watch_in_parts(self, client, prompt):
        """Goes away every few tokens and comes back for the next ones."""
        request_id = client.submit(prompt["prompt"],
                                   **service.sampling_of(prompt)).request_id
        tokens, text, finish = [], "", None
        while finish is None:
            part = client.watch(request_id, len(tokens))
            for count, piece in enumerate(part):
                tokens.extend(piece.token_ids)
                text += piece.text
                finish = piece.finish
                if count >= 7:
                    break
            part.close()
        yield tuple(tokens), text, finish.reason


class ChaosTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.coordinator = service.Coordinator(
            ARGUMENTS.build, self.directory, "--max-attempts", 1000)
        self.addCleanup(lambda: self.coordinator.stop())

    def check(self, job, prompts, expected):
        self.addCleanup(job.stop)
        with service.client(self.coordinator.address) as client:
            service.wait_for_ranks(client, RANKS, job)
        chaos = Chaos(self.coordinator, job, ARGUMENTS.seed)
        crowd = Crowd(self.coordinator.address, expected, prompts)
        try:
            chaos.run(ARGUMENTS.kills)
        finally:
            self.coordinator = chaos.coordinator
            crowd.join()

        print(f"{len(chaos.kills)} kills, {crowd.answers} answers", flush=True)
        self.assertEqual(crowd.faults, [])
        self.assertGreaterEqual(crowd.answers, CLIENTS)
        with service.client(self.coordinator.address) as client:
            self.assertEqual(list(client.list(["failed", "cancelled"])), [])
            service.wait_until(
                lambda: not list(client.list(["queued", "running"])))

    def test_nothing_is_lost_repeated_or_changed_by_a_coordinator(self):
        prompts = formula_prompts()
        expected = {prompt["id"]: (*scripted_rank.expected(
            prompt["prompt"], prompt["seed"], prompt["max_tokens"]), "length")
            for prompt in prompts}
        self.check(service.ScriptedJob(ARGUMENTS.build, self.directory,
                                       self.coordinator.address, ranks=RANKS),
                   prompts, expected)

    def test_nothing_is_lost_repeated_or_changed_by_a_whole_service(self):
        if not service.has_worker(ARGUMENTS.build):
            self.skipTest("this build has no `portolan worker`")
        prompts = long_prompts()
        expected = service.references(ARGUMENTS.build, prompts, self.directory)
        self.check(service.Job(ARGUMENTS.build, self.directory,
                               self.coordinator.address, "--batch", 4,
                               ranks=RANKS, restarts=100_000),
                   prompts, expected)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *REST], verbosity=2)
