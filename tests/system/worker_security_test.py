"""Ranks at a coordinator that asks for TLS, certificates and tokens: let in with
the right ones, and refused without by an error that names the flag.

    worker_security_test.py BUILD
"""

import pathlib
import sys
import tempfile
import unittest

BUILD = pathlib.Path(sys.argv.pop(1))
sys.path.insert(0, str(BUILD / "clients" / "python"))

import certificates
import portolan
import service

CLIENT_TOKEN = "c" * 24
WORKER_TOKEN = "w" * 24


class WorkerSecurityTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.authority = certificates.Authority(self.directory)
        other = self.directory / "other"
        other.mkdir()
        self.other = certificates.Authority(other, "another authority")
        self.certificate, self.key = self.authority.issue("server")

    def file(self, name, text):
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def token_file(self):
        return self.file("tokens", f"alice client {CLIENT_TOKEN}\n"
                                   f"ranks worker {WORKER_TOKEN}\n")

    def start(self, *options):
        coordinator = service.Coordinator(
            BUILD, self.directory, "--tls-cert", self.certificate, "--tls-key",
            self.key, *options)
        self.addCleanup(coordinator.stop)
        return coordinator

    def client(self, address, **options):
        """With a certificate of its own, which counts where there are no
        tokens."""
        certificate, key = self.authority.issue("client")
        return service.client(
            address, tls_ca=self.authority.certificate.read_bytes(),
            tls_cert=certificate.read_bytes(), tls_key=key.read_bytes(),
            **options)

    def assert_serves(self, coordinator, *flags, token=None):
        job = service.Job(BUILD, self.directory, coordinator.address, *flags,
                          "--expert-memory", "50%", "--policy", "fmoe")
        self.addCleanup(job.stop)
        with self.client(coordinator.address, token=token) as client:
            service.wait_for_ranks(client, 2, job)
            result = client.generate("Once upon a time", max_tokens=8,
                                     temperature=0, ignore_eos=True)
            self.assertEqual(len(result.token_ids), 8)
            # History goes the same way.
            service.wait_until(lambda: client.stats().models[0].expert_maps > 0,
                               what="the expert maps of the request")
        job.stop()

    def assert_refused(self, coordinator, *flags, names):
        """The job ends by itself, with an error that says what to do."""
        done = portolan.run(
            [portolan.program(BUILD), "worker", "--model", portolan.MODEL,
             "--coordinator", coordinator.address, "--ranks", 2, *flags],
            timeout=60)
        self.assertEqual(done.returncode, 1, done.stderr)
        errors = [line for line in done.stderr.splitlines()
                  if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, done.stderr)
        for name in names:
            self.assertIn(name, errors[0])
        self.assertNotIn(WORKER_TOKEN, done.stderr)
        self.assertNotIn(CLIENT_TOKEN, done.stderr)

    def test_a_token_lets_ranks_in(self):
        coordinator = self.start("--token-file", self.token_file())
        ca = ("--tls-ca", self.authority.certificate)
        for content in (WORKER_TOKEN + "\n", self.token_file().read_text()):
            self.assert_serves(coordinator, *ca, "--token-file",
                               self.file("rank-token", content),
                               token=CLIENT_TOKEN)

    def test_without_the_right_token_ranks_are_refused(self):
        coordinator = self.start("--token-file", self.token_file())
        ca = ("--tls-ca", self.authority.certificate)
        self.assert_refused(coordinator, *ca, names=["--token-file"])
        self.assert_refused(coordinator, *ca, "--token-file",
                            self.file("wrong", "x" * 24),
                            names=["--token-file", "not known"])
        self.assert_refused(coordinator, *ca, "--token-file",
                            self.file("client", CLIENT_TOKEN),
                            names=["--token-file", "role worker"])

    def test_a_certificate_lets_ranks_in(self):
        coordinator = self.start("--tls-client-ca", self.authority.certificate)
        certificate, key = self.authority.issue("worker")
        self.assert_serves(
            coordinator, "--tls-ca", self.authority.certificate, "--tls-cert",
            certificate, "--tls-key", key)

    def test_without_a_good_certificate_ranks_are_refused(self):
        coordinator = self.start("--tls-client-ca", self.authority.certificate)
        ca = ("--tls-ca", self.authority.certificate)
        self.assert_refused(coordinator, *ca,
                            names=["--tls-client-ca", "--tls-cert"])
        for certificate, key in (self.other.issue("foreign"),
                                 self.authority.issue("late", expired=True)):
            self.assert_refused(coordinator, *ca, "--tls-cert", certificate,
                                "--tls-key", key, names=["--tls-cert"])

    def test_a_coordinator_that_is_another_is_not_trusted(self):
        coordinator = self.start("--token-file", self.token_file())
        token = ("--token-file", self.file("rank-token", WORKER_TOKEN))
        self.assert_refused(coordinator, *token, "--tls-ca",
                            self.other.certificate, names=["--tls-ca"])
        self.assert_refused(coordinator, *token, "--tls", names=["--tls-ca"])
        self.assert_refused(
            coordinator, *token, "--tls-ca", self.authority.certificate,
            "--tls-name", "elsewhere.example", names=["--tls-name"])

    def test_the_ranks_of_serve_trust_its_own_files(self):
        for rules in (("--token-file", self.token_file()),
                      ("--tls-client-ca", self.authority.certificate)):
            directory = self.directory / rules[0].strip("-")
            directory.mkdir()
            job = service.Service(
                BUILD, directory, "--tls-cert", self.certificate, "--tls-key",
                self.key, *rules)
            self.addCleanup(job.stop)
            with self.client(job.address, token=CLIENT_TOKEN) as client:
                service.wait_for_ranks(client, 2, job)
                result = client.generate("Once upon a time", max_tokens=4,
                                         ignore_eos=True)
                self.assertEqual(len(result.token_ids), 4)
            job.stop()

    def test_sides_that_disagree_on_tls_say_so(self):
        plain = service.Coordinator(BUILD, self.directory / "plain")
        self.addCleanup(plain.stop)
        self.assert_refused(plain, "--tls-ca", self.authority.certificate,
                            names=["--tls"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
