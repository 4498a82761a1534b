"""What growth.py calls a cliff."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import cliffs  # noqa: E402


class CliffsTest(unittest.TestCase):
    def find(self, axis, phase, *points, cpus=2):
        return cliffs.find(axis, phase, points, 1.5, cpus)

    def test_a_batch_never_decodes_more_slowly(self):
        self.assertEqual(self.find("batch", "decode", (1, 100), (2, 180)), [])
        self.assertEqual(
            self.find("batch", "decode", (1, 100), (2, 60)),
            ["batch 1 -> 2: decode 100 -> 60 tokens/s"])
        self.assertTrue(self.find("batch", "decode", (1, 100), (2, 301)))

    def test_a_longer_context_may_cost_its_length(self):
        self.assertEqual(
            self.find("context", "decode", (128, 100), (256, 50)), [])
        self.assertTrue(self.find("context", "decode", (128, 100), (256, 30)))
        self.assertTrue(self.find("context", "prefill", (128, 100), (256, 160)))

    def test_ranks_may_slow_each_other_only_beyond_the_cpus(self):
        fall = ((1, 100), (2, 60), (4, 28))
        self.assertEqual(
            self.find("ranks", "decode", *fall),
            ["ranks 1 -> 2: decode 100 -> 60 tokens/s"])

    def test_each_step_is_judged_by_its_own_neighbour(self):
        self.assertEqual(
            len(self.find("experts", "decode", (32, 100), (64, 30), (128, 25),
                          (256, 80))), 2)


if __name__ == "__main__":
    unittest.main()
