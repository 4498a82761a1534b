"""`portolan serve` as two MPI ranks: what clients get is what `portolan
generate` makes of the same prompt and seed, and a client that goes costs
nothing any more.

    serve_test.py BUILD [--long] [--prompts FILE.jsonl]
"""

import argparse
import concurrent.futures
import pathlib
import sys
import tempfile
import time
import unittest

parser = argparse.ArgumentParser()
parser.add_argument("build", type=pathlib.Path)
parser.add_argument("--long", action="store_true")
parser.add_argument("--prompts", type=pathlib.Path)
ARGUMENTS, REST = parser.parse_known_args()
BUILD = ARGUMENTS.build
sys.path.insert(0, str(BUILD / "clients" / "python"))

import grpc
from portolan_client import PortolanError

import portolan
import service

PROMPTS = portolan.SOURCE / "tests" / "data" / "prompts" / "serve.jsonl"
CLIENTS = 64
EACH = 10 if ARGUMENTS.long else 2
IDLE_S = 30 if ARGUMENTS.long else 5
LONG_REQUEST = {"max_tokens": 450, "temperature": 0.9, "seed": 1,
                "ignore_eos": True}


def mixed_prompts():
    """Prompts with lengths and sampling of their own; the file's, if it says
    them, else by turns."""
    variants = service.read_prompts(PROMPTS)
    if ARGUMENTS.prompts is None:
        return variants
    prompts = service.read_prompts(ARGUMENTS.prompts)
    return [{"id": prompt["id"], "prompt": prompt["prompt"],
             **service.sampling_of(variants[index % len(variants)])}
            for index, prompt in enumerate(prompts)]


class ServeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not service.has_worker(BUILD):
            raise unittest.SkipTest("this build has no `portolan serve`")
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        cls.service = service.Service(BUILD, cls.directory.name, "--batch", 8)
        cls.addClassCleanup(cls.service.stop)
        cls.client = service.client(cls.service.address)
        cls.addClassCleanup(cls.client.close)
        service.wait_for_ranks(cls.client, 2, cls.service)

    def running(self):
        return self.client.stats().running

    def test_many_clients_get_the_texts_of_generate(self):
        prompts = mixed_prompts()
        expected = service.references(BUILD, prompts, self.directory.name)

        def one_client(number):
            own = []
            with service.client(self.service.address) as client:
                for turn in range(EACH):
                    prompt = prompts[(number * EACH + turn) % len(prompts)]
                    result = client.generate(prompt["prompt"],
                                             **service.sampling_of(prompt))
                    own.append((prompt["id"], result))
            return own

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            answers = [answer for own in pool.map(one_client, range(CLIENTS))
                       for answer in own]

        self.assertEqual(len(answers), CLIENTS * EACH)
        for prompt_id, result in answers:
            self.assertEqual(
                (result.token_ids, result.text, result.finish.reason),
                expected[prompt_id], prompt_id)
            self.assertEqual(result.finish.completion_tokens,
                             len(result.token_ids))
        self.assertEqual(self.running(), 0)

    def test_a_retried_submission_is_the_same_job(self):
        first = self.client.submit("Hello", idempotency_key="once",
                                   max_tokens=4)
        second = self.client.submit("Hello", idempotency_key="once",
                                    max_tokens=4)
        self.assertEqual(second.request_id, first.request_id)
        self.assertEqual((first.existed, second.existed), (False, True))
        self.assertEqual(self.client.wait(first.request_id).token_ids,
                         self.client.wait(second.request_id).token_ids)
        with self.assertRaises(PortolanError) as raised:
            self.client.submit("Another", idempotency_key="once", max_tokens=4)
        self.assertEqual(raised.exception.code, grpc.StatusCode.ALREADY_EXISTS)

    def test_watchers_from_any_token_see_the_same(self):
        request_id = self.client.submit("The sea was calm and", max_tokens=40,
                                        temperature=0.9, seed=3,
                                        ignore_eos=True).request_id
        whole = self.client.wait(request_id)
        self.assertEqual(len(whole.token_ids), 40)
        for offset in (0, 1, 17, 39, 40):
            pieces = list(self.client.watch(request_id, offset))
            tokens = [token for piece in pieces for token in piece.token_ids]
            self.assertEqual(tuple(tokens), whole.token_ids[offset:])
            self.assertTrue(whole.text.endswith(
                "".join(piece.text for piece in pieces)))

    def test_bad_requests_name_their_field(self):
        for params, field in (({"temperature": -1}, "temperature"),
                              ({"top_p": 0}, "top_p"),
                              ({"max_tokens": 100_000}, "max_tokens"),
                              ({"stop": ["x"] * 17}, "stop")):
            with self.assertRaises(PortolanError) as raised:
                self.client.generate("Hello", **params)
            self.assertIn(field, raised.exception.message)
            self.assertIn(raised.exception.code,
                          (grpc.StatusCode.INVALID_ARGUMENT,
                           grpc.StatusCode.OUT_OF_RANGE))

    def test_an_idle_service_uses_almost_no_processor(self):
        self.client.generate("Hello", max_tokens=4)
        service.wait_until(lambda: self.running() == 0)
        ranks = self.service.ranks()
        self.assertEqual(len(ranks), 2)
        check_idle(self, ranks)


class SlotTest(unittest.TestCase):
    """What ends before its time makes room at once. The job is slow, so that
    the request would last much longer than the test waits."""

    @classmethod
    def setUpClass(cls):
        if not service.has_worker(BUILD):
            raise unittest.SkipTest("this build has no `portolan serve`")
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        cls.service = service.Service(BUILD, cls.directory.name, "--batch", 4,
                                      "--expert-memory", "25%",
                                      "--expert-link", "100MB/s,2ms")
        cls.addClassCleanup(cls.service.stop)
        cls.client = service.client(cls.service.address)
        cls.addClassCleanup(cls.client.close)
        service.wait_for_ranks(cls.client, 2, cls.service)

    def assert_slot_comes_free(self):
        """Within some steps; the bound is for a loaded machine."""
        service.wait_until(lambda: self.client.stats().running == 0, 5,
                           "a free slot")

    def ended(self, request_id):
        """The request once its end is on disk, which comes a little after the
        free slot: until then it is told as running."""
        service.wait_until(
            lambda: self.client.get(request_id).state != "running", 5,
            "the end of the request")
        return self.client.get(request_id)

    def test_a_client_that_goes_frees_its_slot(self):
        stream = self.client.stream("The sea was calm and", **LONG_REQUEST)
        request_id = ""
        received = 0
        for piece in stream:
            request_id = piece.request_id
            received += len(piece.token_ids)
            if received >= 5:
                break
        stream.close()

        self.assert_slot_comes_free()
        info = self.ended(request_id)
        self.assertEqual(info.state, "cancelled")
        # One step makes one token; some are under way.
        self.assertLess(info.num_tokens, received + 40)

    def test_cancel_frees_the_slot(self):
        request_id = self.client.submit("The sea was calm and",
                                        **LONG_REQUEST).request_id
        service.wait_until(lambda: self.client.get(request_id).num_tokens > 2)

        self.client.cancel(request_id)

        self.assert_slot_comes_free()
        result = self.ended(request_id)
        self.assertEqual((result.state, result.finish.reason),
                         ("cancelled", "cancelled"))
        self.assertLess(result.num_tokens, 300)

    def test_a_short_deadline_ends_a_long_request(self):
        with self.assertRaises(PortolanError) as raised:
            self.client.generate("The sea was calm and", timeout=2,
                                 **LONG_REQUEST)
        self.assertEqual(raised.exception.code,
                         grpc.StatusCode.DEADLINE_EXCEEDED)
        self.assert_slot_comes_free()
        info = self.ended(next(iter(self.client.list())).request_id)
        self.assertEqual(
            (info.state, info.finish.reason, info.finish.error_code),
            ("failed", "error",
             grpc.StatusCode.DEADLINE_EXCEEDED.value[0]))
        self.assertLess(info.num_tokens, 300)


def check_idle(test, pids):
    """Processes without work leave the processor to others."""
    before = [service.cpu_seconds(pid) for pid in pids]
    time.sleep(IDLE_S)
    for pid, used in zip(pids, before):
        share = (service.cpu_seconds(pid) - used) / IDLE_S
        print(f"idle {service.command_of(pid)}: {share:.2%} of a core",
              flush=True)
        test.assertLess(share, 0.02)


class StandAloneTest(unittest.TestCase):
    def test_an_idle_coordinator_and_its_workers_use_almost_no_processor(self):
        if not service.has_worker(BUILD):
            raise unittest.SkipTest("this build has no `portolan worker`")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        coordinator = service.Coordinator(BUILD, directory.name)
        self.addCleanup(coordinator.stop)
        job = service.Job(BUILD, directory.name, coordinator.address)
        self.addCleanup(job.stop)
        with service.client(coordinator.address) as client:
            service.wait_for_ranks(client, 2, job)
            client.generate("Hello", max_tokens=4)
            service.wait_until(lambda: client.stats().running == 0)
        ranks = job.ranks()
        self.assertEqual(len(ranks), 2)
        check_idle(self, [coordinator.pid, *ranks])


class ServeOverMpiTest(unittest.TestCase):
    """Ranks sleep and wake each other by other means there."""

    def test_ranks_wake_for_a_request_and_are_idle_between(self):
        if not service.has_worker(BUILD):
            raise unittest.SkipTest("this build has no `portolan serve`")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        served = service.Service(BUILD, directory.name, "--transport", "mpi")
        self.addCleanup(served.stop)
        client = service.client(served.address)
        self.addCleanup(client.close)
        for _ in range(2):
            result = client.generate("Hello", max_tokens=4, ignore_eos=True,
                                     timeout=60)
            self.assertEqual(len(result.token_ids), 4)
            check_idle(self, served.ranks())


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *REST], verbosity=2)
