"""What memory_limit.py refuses before it measures."""

import contextlib
import io
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import memory_limit  # noqa: E402


class ArgumentsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.model = pathlib.Path(folder.name)

    def refusal(self, *words):
        error = io.StringIO()
        with self.assertRaises(SystemExit) as raised, \
                contextlib.redirect_stderr(error):
            memory_limit.arguments(["--model", str(self.model), *words])
        self.assertEqual(raised.exception.code, 2)
        return error.getvalue()

    def test_a_directory_without_a_model_is_refused(self):
        self.assertIn("no *.safetensors", self.refusal())

    def test_what_is_wrong_with_an_argument_is_said(self):
        (self.model / "model.safetensors").touch()
        for words, reason in ((["--limits", "1GB,lots"], "--limits 1GB,lots:"),
                              (["--limits", "1.2.3GB"], "--limits 1.2.3GB:"),
                              (["--sources", "net"], "--sources net:"),
                              (["--peer", "1GB:3"], "--peer 1GB:3:")):
            self.assertIn(reason, self.refusal(*words))
        a = memory_limit.arguments(["--model", str(self.model), "--limits",
                                    "1.5GiB", "--peer", "1GB:3:1.5"])
        self.assertEqual(a.bars, {10**9: (3, 1.5)})


if __name__ == "__main__":
    unittest.main()
