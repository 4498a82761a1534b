"""How a job ends: SIGTERM drains, the end of the grace gives requests back for
a restart, a second SIGTERM ends at once, a lost rank is an error all the same;
and a job that loses its coordinator goes on.

    drain_test.py BUILD
"""

import json
import os
import pathlib
import signal
import socket
import sys
import tempfile
import time
import unittest

BUILD = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(BUILD / "clients" / "python"))

import service

SHORT = {"max_tokens": 60, "temperature": 0.9, "seed": 4, "ignore_eos": True}
# A job that waits for experts at every step: LONG then outlasts what a test does
# to the job, on any machine.
SLOW = ("--expert-memory", "25%", "--expert-link", "100MB/s,2ms")
LONG = {"max_tokens": 450, "temperature": 0.9, "seed": 1, "ignore_eos": True}
PROMPT = "The sea was calm and"


def reference(directory, params):
    prompt = {"id": "0", "prompt": PROMPT, **params}
    return service.references(BUILD, [prompt], directory)["0"]


def outcome(result):
    return (tuple(result.token_ids), result.text, result.finish.reason)


def free_port():
    """One that a service can have again when it starts anew."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class DrainTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.directory = self.folder.name

    def serve(self, *options):
        job = service.Service(BUILD, self.directory, "--batch", 4, *options)
        self.addCleanup(job.stop)
        client = service.client(job.address)
        self.addCleanup(client.close)
        service.wait_for_ranks(client, 2, job)
        return job, client

    def submit(self, client, params):
        """Submits a request and waits until it runs."""
        request = client.submit(PROMPT, **params).request_id
        service.wait_until(lambda: client.get(request).num_tokens > 2)
        return request

    def result_after_a_restart(self, request):
        _, client = self.serve()
        return outcome(client.wait(request))

    def test_sigterm_lets_running_requests_end(self):
        job, client = self.serve()
        request = self.submit(client, SHORT)

        job.signal(signal.SIGTERM)

        self.assertEqual(job.wait(), 0, job.output())
        _, client = self.serve()
        self.assertEqual(client.get(request).state, "done")
        self.assertEqual(outcome(client.wait(request)),
                         reference(self.directory, SHORT))

    def test_a_drained_job_leaves_its_profile(self):
        profile = pathlib.Path(self.directory) / "profile"
        job, client = self.serve("--profile", profile)
        client.generate(PROMPT, **SHORT)

        job.signal(signal.SIGTERM)

        self.assertEqual(job.wait(), 0, job.output())
        for rank in range(2):
            trace = json.loads(pathlib.Path(f"{profile}.{rank}").read_text())
            names = [event["name"] for event in trace["traceEvents"]]
            self.assertGreaterEqual(names.count("step"), SHORT["max_tokens"])
            self.assertIn("sampling", names)

    def test_requests_go_on_after_a_restart_when_the_grace_is_over(self):
        job, client = self.serve(*SLOW, "--grace", "0.1s")
        request = self.submit(client, LONG)

        job.signal(signal.SIGTERM)

        self.assertEqual(job.wait(), 75, job.output())
        self.assertEqual(self.result_after_a_restart(request),
                         reference(self.directory, LONG))

    def test_a_second_sigterm_ends_at_once(self):
        job, client = self.serve(*SLOW, "--grace", "1h")
        request = self.submit(client, LONG)

        job.signal(signal.SIGTERM)
        service.wait_until(lambda: client.stats().draining)
        time.sleep(1.5)  # signals that come together are one
        job.signal(signal.SIGTERM)

        self.assertNotIn(job.wait(), (0, 75), job.output())
        self.assertEqual(self.result_after_a_restart(request),
                         reference(self.directory, LONG))

    def test_a_lost_rank_is_an_error_during_a_drain_too(self):
        job, client = self.serve(*SLOW, "--grace", "1h")
        request = self.submit(client, LONG)
        ranks = job.ranks()

        job.signal(signal.SIGTERM)
        service.wait_until(lambda: client.stats().draining)
        os.kill(ranks[1], signal.SIGKILL)

        self.assertNotIn(job.wait(), (0, 75), job.output())
        self.assertIn("error:", job.output())
        self.assertEqual(self.result_after_a_restart(request),
                         reference(self.directory, LONG))

    def test_a_killed_rank_s_request_goes_on_with_the_same_text(self):
        job = service.Service(BUILD, self.directory, "--batch", 4, *SLOW,
                              restarts=3, port=free_port())
        self.addCleanup(job.stop)
        client = service.client(job.address)
        self.addCleanup(client.close)
        service.wait_for_ranks(client, 2, job)
        request = self.submit(client, LONG)

        os.kill(job.ranks()[1], signal.SIGKILL)

        service.wait_until(lambda: "restart 1 of 3" in job.output(), 60)
        self.assertEqual(outcome(client.wait(request)),
                         reference(self.directory, LONG))


class WorkerTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.directory = self.folder.name
        self.coordinator = service.Coordinator(BUILD, self.directory)
        self.addCleanup(lambda: self.coordinator.stop())
        self.job = service.Job(BUILD, self.directory, self.coordinator.address,
                               "--batch", 4, *SLOW)
        self.addCleanup(self.job.stop)
        self.client = service.client(self.coordinator.address)
        self.addCleanup(self.client.close)
        service.wait_for_ranks(self.client, 2, self.job)

    def test_a_job_goes_on_while_its_coordinator_is_away(self):
        request = self.client.submit(PROMPT, **LONG).request_id
        service.wait_until(lambda: self.client.get(request).num_tokens > 2)

        self.coordinator.kill()
        service.wait_until(lambda: "no coordinator" in self.job.output())
        self.coordinator = self.coordinator.again()

        self.assertEqual(outcome(self.client.wait(request)),
                         reference(self.directory, LONG))
        self.assertTrue(self.job.running())
        self.assertEqual(self.client.get(request).attempt, 1)

    def test_sigterm_to_one_rank_drains_the_whole_job(self):
        request = self.client.submit(PROMPT, **SHORT).request_id
        service.wait_until(lambda: self.client.get(request).num_tokens > 2)

        os.kill(self.job.ranks()[1], signal.SIGTERM)

        self.assertEqual(self.job.wait(), 0, self.job.output())
        self.assertEqual(outcome(self.client.wait(request)),
                         reference(self.directory, SHORT))

    def test_a_job_without_a_coordinator_ends_by_sigterm(self):
        self.coordinator.kill()
        service.wait_until(lambda: "no coordinator" in self.job.output())

        self.job.signal(signal.SIGTERM)

        self.assertEqual(self.job.wait(), 0, self.job.output())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
