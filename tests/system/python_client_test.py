"""The Python client against a coordinator that breaks, refuses and lies by
script."""

import pathlib
import sys
import threading
import unittest

BUILD = pathlib.Path(sys.argv.pop(1))
sys.path.insert(0, str(BUILD / "clients" / "python"))

import grpc
from portolan_client import Client, PortolanError, Sampling
from portolan_client.backoff import Backoff

from scripted_coordinator import PIECES, ScriptedCoordinator

TEXT = "".join(PIECES) + "!"
TOKENS = tuple(range(100, 100 + len(PIECES)))


class PythonClientTest(unittest.TestCase):
    def setUp(self):
        self.server = ScriptedCoordinator()
        self.addCleanup(self.server.stop)
        self.client = Client(self.server.address, retry_for=20)
        self.addCleanup(self.client.close)

    def test_generates_the_whole_text(self):
        result = self.client.generate("Hello", max_tokens=12, custom_id="mine")

        self.assertEqual((result.text, result.token_ids), (TEXT, TOKENS))
        self.assertEqual(result.seed, 7)
        self.assertEqual(result.finish.reason, "length")
        self.assertEqual(result.finish.prompt_tokens, 4)

    def test_a_lost_stream_goes_on_with_the_next_token(self):
        self.server.breaks = [3, 0, 5, 4]

        result = self.client.generate("Hello")

        self.assertEqual((result.text, result.token_ids), (TEXT, TOKENS))
        self.assertEqual(self.server.calls, ["Generate"] + ["Watch"] * 4)
        self.assertEqual(len(self.server.requests), 1)

    def test_a_stream_lost_before_its_end_message_is_asked_for_that(self):
        self.server.breaks = [len(PIECES)]

        self.assertEqual(self.client.generate("Hello").text, TEXT)

    def test_a_retried_submission_is_the_same_request(self):
        self.server.refusals = [(grpc.StatusCode.UNAVAILABLE, None),
                                (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.05)]

        first = self.client.submit("Hello", idempotency_key="k")
        second = self.client.submit("Hello", idempotency_key="k")

        self.assertEqual(first.request_id, second.request_id)
        self.assertEqual((first.existed, second.existed), (False, True))
        self.assertEqual(len(self.server.calls), 4)

    def test_watches_from_an_offset(self):
        request_id = self.client.submit("Hello").request_id

        pieces = list(self.client.watch(request_id, 4))

        self.assertEqual([t for p in pieces for t in p.token_ids],
                         list(TOKENS[4:]))
        self.assertEqual("".join(p.text for p in pieces),
                         "".join(PIECES[4:]) + "!")

    def test_a_missing_token_is_an_error(self):
        self.server.skip_a_token = True

        with self.assertRaises(PortolanError) as raised:
            self.client.generate("Hello")
        self.assertEqual(raised.exception.code, grpc.StatusCode.DATA_LOSS)

    def test_a_request_that_fails_raises_after_its_tokens(self):
        self.server.error = (grpc.StatusCode.INTERNAL, "poison")
        pieces = []

        with self.assertRaisesRegex(PortolanError, "INTERNAL: poison"):
            pieces.extend(iter(self.client.stream("Hello")))
            self.fail("the stream ended well")

    def test_errors_that_a_retry_cannot_mend_are_raised_at_once(self):
        for code in (grpc.StatusCode.INVALID_ARGUMENT,
                     grpc.StatusCode.UNAUTHENTICATED,
                     grpc.StatusCode.OUT_OF_RANGE):
            self.server.refusals = [(code, None)]
            with self.assertRaises(PortolanError) as raised:
                self.client.submit("Hello")
            self.assertEqual(raised.exception.code, code)
        self.assertEqual(len(self.server.calls), 3)

    def test_gives_up_when_the_time_for_retries_is_over(self):
        self.server.refusals = [(grpc.StatusCode.RESOURCE_EXHAUSTED, 30)]
        with Client(self.server.address, retry_for=1) as client:
            with self.assertRaises(PortolanError) as raised:
                client.submit("Hello")
        self.assertEqual(raised.exception.retry_after, 30)

    def test_closing_a_stream_cancels_the_call(self):
        self.server.hold.clear()
        stream = self.client.stream("Hello")
        for _ in range(4):
            next(stream)

        stream.close()

        self.assertTrue(self.server.gone.wait(10))

    def test_closing_a_resumed_stream_cancels_the_request(self):
        self.server.hold.clear()
        self.server.breaks = [2]
        stream = self.client.stream("Hello")
        for _ in range(5):
            next(stream)

        stream.close()

        self.assertEqual(self.server.cancelled, ["r0"])

    def test_many_threads_share_a_client(self):
        texts = []

        def work():
            texts.append(self.client.generate("Hello").text)

        threads = [threading.Thread(target=work) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(texts, [TEXT] * 16)

    def test_gets_lists_and_cancels(self):
        ids = [self.client.submit("Hello", custom_id=str(n)).request_id
               for n in range(5)]

        self.assertEqual([info.request_id for info in self.client.list()],
                         ids[::-1])
        self.assertEqual(self.client.get(ids[1]).custom_id, "1")
        self.assertEqual(self.client.get(ids[1]).state, "done")
        self.assertEqual(self.client.cancel(ids[2]).state, "cancelled")
        with self.assertRaises(PortolanError) as raised:
            self.client.get("nobody")
        self.assertEqual(raised.exception.code, grpc.StatusCode.NOT_FOUND)

    def test_health_and_stats(self):
        self.assertEqual(self.client.health(), "SERVING")
        self.server.serving = False
        self.assertEqual(self.client.health(), "NOT_SERVING")
        self.assertEqual(self.client.stats().tokens, 1 << 40)

    def test_the_token_goes_with_every_call(self):
        server = ScriptedCoordinator(token="secret")
        self.addCleanup(server.stop)
        with Client(server.address, token="secret") as client:
            self.assertEqual(client.generate("Hello").text, TEXT)
            client.stats()
        with Client(server.address) as client:
            with self.assertRaises(PortolanError) as raised:
                client.generate("Hello")
        self.assertEqual(raised.exception.code,
                         grpc.StatusCode.UNAUTHENTICATED)

    def test_a_token_never_leaves_this_host_in_the_clear(self):
        for address in ("example.org:50051", "192.0.2.1:50051", "[2001:db8::1]:1"):
            with self.assertRaisesRegex(ValueError, "in the clear"):
                Client(address, token="secret")
            Client(address, token="secret", insecure=True).close()
        for address in ("localhost:1", "127.0.0.1:1", "[::1]:1"):
            Client(address, token="secret").close()

    def test_sampling_reaches_the_service_and_absent_stays_absent(self):
        self.client.submit("Hello", sampling=Sampling(
            temperature=0, stop="end", seed=0, ignore_eos=True))
        self.client.submit([1, 2, 3])

        params = self.server.requests["r0"].params
        self.assertTrue(params.HasField("temperature"))
        self.assertTrue(params.HasField("seed"))
        self.assertEqual(list(params.stop), ["end"])
        self.assertFalse(params.HasField("top_p"))
        self.assertEqual(list(self.server.requests["r1"].tokens.ids), [1, 2, 3])
        with self.assertRaises(TypeError):
            self.client.submit("Hello", sampling=Sampling(), top_k=1)


class BackoffTest(unittest.TestCase):
    def test_doubles_to_the_longest_and_begins_anew_after_success(self):
        backoff = Backoff(first=1, longest=4, give_up_after=1000, seed=1)
        delays = [backoff.next(0, None) for _ in range(4)]
        for delay, whole in zip(delays, (1, 2, 4, 4)):
            self.assertTrue(whole / 2 <= delay <= whole)
        backoff.reset()
        self.assertLessEqual(backoff.next(0, None), 1)

    def test_waits_at_least_as_long_as_asked_or_not_at_all(self):
        backoff = Backoff(first=0.1, give_up_after=10, seed=1)
        self.assertGreaterEqual(backoff.next(0, 3), 3)
        self.assertIsNone(backoff.next(9, 3))


if __name__ == "__main__":
    unittest.main(verbosity=2)
