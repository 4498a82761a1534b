"""The arithmetic of the bars of `scripts/bench_policies`, and that a table that
misses one exits with 1 naming the cell."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import bars  # noqa: E402

LINKS = ["1GB/s,50us", "200MB/s,200us"]
BUDGETS = ["50%", "25%"]
GOOD = {"lru": 2.0, "fmoe": 1.5, "adaptive": 1.2, "oracle": 1.0}


def all_cells(**changes):
    cells = {(budget, link): dict(GOOD) for budget in BUDGETS for link in LINKS}
    cells[("25%", LINKS[0])].update(changes)
    return cells


class BarsTest(unittest.TestCase):
    def missed(self, **changes):
        compared, cells = bars.check(all_cells(**changes), BUDGETS, LINKS)
        self.assertEqual(compared, 4)
        return [f"{cell}: {line}" for cell, lines in cells.items()
                for line in lines]

    def test_the_least_stall_clears_all(self):
        self.assertEqual(self.missed(), [])

    def test_a_tie_within_two_percent_counts_as_least(self):
        self.assertEqual(self.missed(fmoe=1.2 / 1.0199), [])
        line, = self.missed(fmoe=1.2 / 1.021)
        self.assertEqual(line, "25%, 1GB/s,50us: `fmoe` stalls less: +2.1 %")

    def test_more_than_lru_is_named_once_where_lru_is_best(self):
        lines = self.missed(adaptive=2.05, fmoe=2.2, oracle=0.1)
        self.assertEqual(lines[0], "25%, 1GB/s,50us: `lru` stalls less: +2.5 %")
        self.assertEqual(len(lines), 2)  # and the gap
        lines = self.missed(adaptive=2.05, oracle=0.1)
        self.assertIn("25%, 1GB/s,50us: above `lru`: +2.5 %", lines)

    def test_the_oracle_is_no_real_policy(self):
        self.assertEqual(self.missed(oracle=0.5), [])

    def test_half_of_the_gap_is_asked_for_at_a_quarter_on_the_first_link(self):
        self.assertEqual(self.missed(adaptive=1.5), [])  # exactly half
        line, = self.missed(adaptive=1.52)  # still a tie with fmoe
        self.assertEqual(line, "25%, 1GB/s,50us: closes 48.0 % of the gap "
                               "`lru` - `oracle`, not 50 %")
        cells = all_cells()
        for cell in (("50%", LINKS[0]), ("25%", LINKS[1])):
            cells[cell]["adaptive"] = 1.52
        self.assertEqual(bars.check(cells, BUDGETS, LINKS), (4, {}))

    def test_without_a_gap_nothing_is_left_to_close(self):
        self.assertEqual(self.missed(lru=1.0, fmoe=1.0, adaptive=1.0), [])
        self.assertEqual(bars.gap_closed({"lru": 0, "adaptive": 0,
                                          "oracle": 0}), 1.0)
        self.assertEqual(bars.gap_closed({"lru": 0, "adaptive": 1,
                                          "oracle": 0}), 0.0)
        self.assertIsNone(bars.gap_closed({"lru": 1, "adaptive": 1}))

    def test_cells_without_anything_to_compare_are_not_counted(self):
        cells = {("50%", LINKS[0]): {"adaptive": 1.0, "oracle": 0.5},
                 ("25%", LINKS[0]): {"lru": 1.0, "fmoe": 0.9}}
        self.assertEqual(bars.check(cells, BUDGETS, LINKS), (0, {}))

    def test_no_stall_at_all_elsewhere_is_no_division(self):
        self.assertEqual(bars.missed_in_cell({"adaptive": 0.5, "lru": 0}),
                         ["`lru` stalls less: 0.5 s against none"])


class TableTest(unittest.TestCase):
    """The script, on results that were measured some other day."""

    def table(self, stalls, *arguments):
        results = {"set": {"eval": "x", "tokens": 100, "steps": 100,
                           "batch": "1", "ranks": 1, "cpu": "a CPU",
                           "date": "2026-01-01"}}
        for policy, stall in stalls.items():
            row = {"stall_s": stall, "stall_per_token_s": stall / 100,
                   "hit_rate": 0.5, "bytes": {"prefetch_wasted": 0},
                   "computed_tokens": 100}
            results[f"replay|{policy}|25%|{LINKS[0]}"] = row
            if policy != "oracle":
                results[f"engine|{policy}|25%|{LINKS[0]}"] = dict(
                    row, stall_s=stall * 1.1)
        with tempfile.TemporaryDirectory() as work:
            (pathlib.Path(work) / "results.json").write_text(
                json.dumps(results))
            return subprocess.run(
                [sys.executable, HERE / "bench_policies.py", "--work", work,
                 "--part", "table", "--policies", "lru,fmoe,adaptive",
                 "--budgets", "25%", "--links", LINKS[0], *arguments],
                capture_output=True, text=True)

    def test_a_table_that_clears_the_bars_exits_0_and_says_so(self):
        done = self.table(GOOD)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("By the replay, `adaptive` clears all bars in 1 of 1 "
                      "cells.", done.stdout)
        self.assertIn("By the engine, `adaptive` clears all bars in 1 of 1 "
                      "cells.", done.stdout)

    def test_one_that_misses_exits_1_naming_the_cells(self):
        stalls = dict(GOOD, fmoe=1.0)
        done = self.table(stalls)
        self.assertEqual(done.returncode, 1)
        for kind in ("replay", "engine"):
            self.assertIn(f"missed by the {kind} at 25%, 1GB/s,50us: `fmoe` "
                          "stalls less: +20.0 %", done.stderr)
        self.assertIn("in 0 of 1 cells", done.stdout)
        only_told = self.table(stalls, "--no-bars")
        self.assertEqual(only_told.returncode, 0, only_told.stderr)
        self.assertIn("missed by the replay", only_told.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
