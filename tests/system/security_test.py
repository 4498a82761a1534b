"""Who may use a coordinator, and that nonsense on its port hurts nobody.

    security_test.py BUILD
"""

import collections
import json
import os
import pathlib
import random
import socket
import sys
import tempfile
import time
import unittest

BUILD = pathlib.Path(sys.argv.pop(1))
sys.path.insert(0, str(BUILD / "clients" / "python"))

import grpc
from portolan_client import Client, PortolanError

import certificates
import portolan
import service

HALF_OPEN = 200


def refused(client, call=lambda client: client.stats()):
    """The code of the error that a call gives."""
    try:
        call(client)
    except PortolanError as error:
        return error.code
    raise AssertionError("the call was not refused")


class SecurityTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)

    def start(self, *options):
        coordinator = service.Coordinator(BUILD, self.directory, *options)
        self.addCleanup(coordinator.stop)
        return coordinator

    def told(self, coordinator, event="refused"):
        """How often each cause was told of."""
        lines = [json.loads(line) for line in coordinator.output().splitlines()
                 if line.startswith("{")]
        return collections.Counter(
            line["cause"] if event == "refused" else line["code"]
            for line in lines if line["event"] == event)

    def assertTold(self, coordinator, **counts):
        counts = {cause.replace("_", " "): n for cause, n in counts.items()}
        service.wait_until(lambda: self.told(coordinator) == counts, 20,
                           f"the lines {counts}")

    def connect(self, coordinator, **options):
        client = Client(coordinator.address, **{"retry_for": 0, **options})
        self.addCleanup(client.close)
        return client

    def tokens(self):
        path = self.directory / "tokens"
        path.write_text("alice client aaaaaaaaaaaaaaaaaaaaaaaa\n"
                        "bob client bbbbbbbbbbbbbbbbbbbbbbbb\n")
        path.chmod(0o600)
        return path


class TokenTest(SecurityTest):
    def test_no_token_and_a_wrong_token_are_refused(self):
        coordinator = self.start("--token-file", self.tokens())
        for token in (None, "a", "a" * 23, "a" * 25, "c" * 24, "alice"):
            client = self.connect(coordinator, token=token)
            for call in (lambda c: c.stats(), lambda c: c.get("r1-0"),
                         lambda c: c.submit("Hello"), lambda c: list(c.list()),
                         lambda c: c.generate("Hello"),
                         lambda c: list(c.watch("r1-0"))):
                self.assertEqual(refused(client, call),
                                 grpc.StatusCode.UNAUTHENTICATED)
        self.connect(coordinator, token="a" * 24).stats()
        # Two causes: nothing was shown, and what was shown is wrong.
        service.wait_until(
            lambda: self.told(coordinator, "denied") == {"UNAUTHENTICATED": 2},
            20, "one line for each cause")

    def test_a_client_sees_its_own_requests_only(self):
        coordinator = self.start("--token-file", self.tokens())
        alice = self.connect(coordinator, token="a" * 24)
        bob = self.connect(coordinator, token="b" * 24)
        request_id = alice.submit("Hello", idempotency_key="k").request_id

        self.assertEqual([info.request_id for info in alice.list()],
                         [request_id])
        self.assertEqual(list(bob.list()), [])
        for call in (lambda c: c.get(request_id),
                     lambda c: c.cancel(request_id),
                     lambda c: list(c.watch(request_id))):
            self.assertEqual(refused(bob, call), grpc.StatusCode.NOT_FOUND)
        self.assertNotEqual(bob.submit("Hello", idempotency_key="k").request_id,
                            request_id)
        self.assertEqual(alice.cancel(request_id).state, "cancelled")


class TlsTest(SecurityTest):
    def setUp(self):
        super().setUp()
        self.authority = certificates.Authority(self.directory)
        self.certificate, self.key = self.authority.issue("server")

    def tls(self):
        return ("--tls-cert", self.certificate, "--tls-key", self.key)

    def test_a_client_without_tls_gets_nothing(self):
        coordinator = self.start(*self.tls(), "--token-file", self.tokens())
        self.assertEqual(refused(self.connect(coordinator, token="a" * 24)),
                         grpc.StatusCode.UNAVAILABLE)
        self.connect(coordinator, token="a" * 24,
                     tls_ca=self.authority.certificate.read_bytes()).stats()
        self.assertTold(coordinator, nonsense=1)

    def test_an_expired_certificate_of_the_server_is_refused(self):
        self.certificate, self.key = self.authority.issue("old", expired=True)
        coordinator = self.start(*self.tls(), "--token-file", self.tokens())
        self.assertEqual(
            refused(self.connect(
                coordinator, token="a" * 24,
                tls_ca=self.authority.certificate.read_bytes())),
            grpc.StatusCode.UNAVAILABLE)

    def test_an_expired_or_foreign_certificate_of_a_client_is_refused(self):
        coordinator = self.start(*self.tls(), "--tls-client-ca",
                                 self.authority.certificate)
        other = self.directory / "other"
        other.mkdir()
        for certificate, key, welcome in (
                (*self.authority.issue("worker"), True),
                (*self.authority.issue("late", expired=True), False),
                (*certificates.Authority(other).issue("worker"), False)):
            client = self.connect(
                coordinator, tls_ca=self.authority.certificate.read_bytes(),
                tls_cert=certificate.read_bytes(), tls_key=key.read_bytes())
            if welcome:
                client.stats()
            else:
                self.assertIn(refused(client),
                              (grpc.StatusCode.UNAVAILABLE,
                               grpc.StatusCode.UNAUTHENTICATED))
        self.assertTold(coordinator, certificate=1)


class ListenTest(SecurityTest):
    def test_nobody_listens_to_the_world_by_accident(self):
        done = portolan.run([portolan.program(BUILD), "coordinator",
                             "--listen", "0.0.0.0:0", "--data-dir",
                             self.directory / "c"])
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, "error: .*--insecure")


class NonsenseTest(SecurityTest):
    def address(self, coordinator):
        host, port = coordinator.address.rsplit(":", 1)
        return host, int(port)

    def open_files(self, coordinator):
        return len(os.listdir(f"/proc/{coordinator.pid}/fd"))

    def memory(self, coordinator):
        """Resident bytes."""
        pages = pathlib.Path(f"/proc/{coordinator.pid}/statm").read_text()
        return int(pages.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def assertNoLeak(self, coordinator, act, mib=4):
        """Neither files nor memory stay behind; the first time warms up."""
        act()
        files = self.open_files(coordinator)
        memory = self.memory(coordinator)
        act()
        service.wait_until(
            lambda: self.open_files(coordinator) <= files + 5, 60,
            "the end of the connections")
        self.assertLess(self.memory(coordinator) - memory, mib << 20)
        self.assertTrue(coordinator.running())

    def test_a_message_that_is_too_long_is_refused(self):
        coordinator = self.start("--max-message-bytes", 100_000)
        client = self.connect(coordinator)

        def send_long_ones():
            for length in (100_001, 1_000_000):
                for call in (lambda c: c.submit("x" * length),
                             lambda c: c.generate("x" * length),
                             lambda c: c.get("x" * length)):
                    self.assertEqual(refused(client, call),
                                     grpc.StatusCode.RESOURCE_EXHAUSTED)

        self.assertNoLeak(coordinator, send_long_ones)
        client.submit("x" * 1000)
        self.assertTold(coordinator, oversized_message=1)

    def test_garbage_bytes_hurt_nobody(self):
        coordinator = self.start()
        client = self.connect(coordinator)
        client.stats()
        rng = random.Random(1)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

        def send_garbage():
            for turn in range(100):
                with socket.create_connection(
                        self.address(coordinator)) as sock:
                    start = (b"", preface, b"GET / HTTP/1.1\r\n\r\n")[turn % 3]
                    try:
                        sock.sendall(
                            start + rng.randbytes(rng.randrange(4096)))
                    except OSError:
                        pass  # it hung up: just what it should do

        self.assertNoLeak(coordinator, send_garbage)
        client.stats()
        self.assertTold(coordinator, nonsense=1)

    def test_half_open_connections_go_away_by_themselves(self):
        coordinator = self.start()
        client = self.connect(coordinator)
        client.stats()
        files = self.open_files(coordinator)

        def leave_half_open():
            sockets = [socket.create_connection(self.address(coordinator))
                       for _ in range(HALF_OPEN)]
            try:
                began = time.monotonic()
                for _ in range(20):
                    client.submit("Hello", max_tokens=1)
                self.assertLess(time.monotonic() - began, 10)
                service.wait_until(
                    lambda: self.open_files(coordinator) <= files + 5, 60,
                    "the end of the half-open connections")
            finally:
                for sock in sockets:
                    sock.close()

        self.assertNoLeak(coordinator, leave_half_open)
        client.stats()
        self.assertTold(coordinator, silent_connection=1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
