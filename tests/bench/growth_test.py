"""What growth.py refuses, and what it keeps where a measurement fails; with a
model and a program that are not there."""

import contextlib
import dataclasses
import io
import json
import pathlib
import sys
import tempfile
import types
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))


@dataclasses.dataclass
class Shape:
    layers: int = 0
    hidden: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    experts: int = 0
    top_k: int = 0
    intermediate: int = 0
    vocab: int = 0


# The true one needs numpy.
sys.modules["make_model"] = types.SimpleNamespace(
    Shape=Shape, dataclasses=dataclasses, write_model=mock.Mock())

import growth  # noqa: E402
import machine  # noqa: E402


def report(speed):
    rates = {"median": speed, "min": speed, "max": speed}
    return json.dumps({"cpu": "some", "kernels": "avx2", "threads": 2,
                       "prefill_tokens_per_s": rates,
                       "decode_tokens_per_s": rates})


class GrowthTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def test_wrong_arguments_are_told_before_anything_is_measured(self):
        for words, reason in ((["--axes", "batch,walk"], "--axes walk: there"),
                              (["--points", "3"], "single axis"),
                              (["--axes", "batch", "--points", "3,x"],
                               "--points 3,x: write numbers"),
                              (["--axes", "batch", "--points", "0"],
                               "--points 0: write numbers"),
                              (["--rounds", "0"], "above 0"),
                              (["--threads", "-1"], "above 0"),
                              (["--print"], "--print shows --results"),
                              (["--plot", self.folder / "no" / "p.svg"],
                               "no such directory")):
            error = io.StringIO()
            with self.assertRaises(SystemExit) as raised, \
                    contextlib.redirect_stderr(error):
                growth.arguments([str(word) for word in words])
            self.assertEqual(raised.exception.code, 2, words)
            self.assertIn(reason, error.getvalue())
        args = growth.arguments(["--axes", "batch", "--points", "2,4"])
        self.assertEqual((args.axes, args.points), (["batch"], [2, 4]))

    def test_what_was_measured_before_a_failure_is_shown_and_kept(self):
        results, plot = self.folder / "r.jsonl", self.folder / "p.svg"
        runs = mock.Mock(side_effect=[report(10), report(20),
                                      machine.Skipped("it died")])
        words = ["growth.py", "--axes", "batch", "--results", str(results),
                 "--plot", str(plot)]
        text = io.StringIO()
        with mock.patch.object(sys, "argv", words), \
                mock.patch.object(machine, "run", runs), \
                contextlib.redirect_stdout(text):
            code = growth.main()

        self.assertEqual(code, "growth.py: it died")
        self.assertIn("1: 10 [10-10]  2: 20 [20-20]", text.getvalue())
        self.assertEqual(len(results.read_text().splitlines()), 2)
        self.assertIn("polyline", plot.read_text())

    def test_a_model_that_was_not_finished_is_written_again(self):
        write = growth.make_model.write_model
        write.side_effect = lambda shape, hf: (
            hf.mkdir(exist_ok=True), (hf / "config.json").touch(),
            self.fail_once())
        self.failures = [OSError("disk full")]
        with self.assertRaises(OSError):
            growth.model_of(self.folder, 64)
        growth.model_of(self.folder, 64)
        self.assertEqual(write.call_count, 2)
        growth.model_of(self.folder, 64)
        self.assertEqual(write.call_count, 2)

    def fail_once(self):
        if self.failures:
            raise self.failures.pop()


if __name__ == "__main__":
    unittest.main()
