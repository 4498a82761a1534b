"""Throw-away certificates for the tests, made by openssl."""

import pathlib
import subprocess


def _openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True,
                   capture_output=True)


class Authority:
    """A certificate authority in a directory."""

    def __init__(self, directory, name="test authority"):
        self.directory = pathlib.Path(directory)
        self.key = self.directory / "ca.key"
        self.certificate = self.directory / "ca.pem"
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt",
                 "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
                 f"/CN={name}", "-keyout", self.key, "-out", self.certificate)

    def issue(self, name, expired=False):
        """A certificate for localhost; returns the paths (certificate, key)."""
        key = self.directory / f"{name}.key"
        request = self.directory / f"{name}.csr"
        certificate = self.directory / f"{name}.pem"
        extensions = self.directory / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                 "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out",
                 request)
        # openssl 3.0's x509 has no -not_after; a negative number of days ends
        # the certificate before today.
        _openssl("x509", "-req", "-in", request, "-CA", self.certificate,
                 "-CAkey", self.key, "-CAcreateserial", "-days",
                 "-1" if expired else "2", "-extfile", extensions, "-out",
                 certificate)
        return certificate, key
