"""`portolan replay` and what `portolan plan` does with traces: the files they
take, what they print, and what they draw."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

import portolan

BUILD = None
PROMPTS = portolan.SOURCE / "tests" / "data" / "prompts"
SYNTHETIC = portolan.SOURCE / "tests" / "bench" / "synthetic_model.py"
FLAGS = ["--temperature", "0", "--max-tokens", "8", "--ignore-eos"]
LINK = ["--link", "1GB/s,50us"]
SVG = "{http://www.w3.org/2000/svg}"


def portolan_run(command, *arguments):
    return portolan.run([portolan.program(BUILD), command, *arguments])


class ReplayTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.directory = pathlib.Path(directory.name)
        cls.trace = cls.record("one", "demo.jsonl")
        cls.pair = [cls.directory / "pair.0", cls.directory / "pair.1"]
        cls.record("pair", "demo.jsonl", "--ranks", "2")
        # Prompts of the same kind, of which those of the traces are no part.
        cls.lesson = cls.record("lesson", "eval.jsonl")

    @classmethod
    def record(cls, name, prompts, *arguments):
        path = cls.directory / name
        portolan.generate(BUILD, PROMPTS / prompts,
                          FLAGS + ["--trace", path, *arguments])
        return path

    def rows(self, *arguments):
        done = portolan_run("replay", "--json", *LINK, *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def refused(self, command, *arguments):
        done = portolan_run(command, *arguments)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertEqual(done.stdout, "")
        return done.stderr

    def test_all_is_judged_before_the_first_replay(self):
        for flags, named in ((["--policy", "lru,zz"], "--policy zz"),
                             (["--expert-memory", "50%,zz"], '"zz"'),
                             (["--ranks", "0"], "--ranks 0"),
                             (["--ranks", "1025"], "--ranks 1025"),
                             (["--policy", "fmoe", "--distance", "-1"],
                              "--distance -1"),
                             (["--policy", "fmoe", "--distance", "2147483647"],
                              "--distance 2147483647")):
            error = self.refused("replay", "--trace", self.trace, *LINK, *flags)
            self.assertRegex(error, f"error: .*{named}")
            self.assertNotIn("replayed", error)

    def test_a_trace_that_is_named_twice_is_told(self):
        again = f"{os.path.dirname(self.trace)}/./{os.path.basename(self.trace)}"
        for traces, told in (([self.trace], 0), ([self.trace] * 2, 1),
                             ([self.trace, again], 1)):
            done = portolan_run("replay", "--trace", *traces, *LINK,
                                "--policy", "lru")
            self.assertEqual(done.stderr.count("named twice"), told,
                             done.stderr)

    def test_ranks_beyond_the_experts_have_nothing_to_do(self):
        rows = {ranks: self.rows("--trace", self.trace, "--ranks", ranks,
                                 "--policy", "lru,adaptive,oracle",
                                 "--expert-memory", "50%")
                for ranks in ("32", "40")}
        for few, many in zip(rows["32"], rows["40"]):
            self.assertEqual(few["budget"], many["budget"])
            self.assertEqual(len(many["per_rank"]), 40)
            if few["policy"] != "adaptive":  # whose ranks learn for themselves
                self.assertEqual(few["bytes"], many["bytes"], few["policy"])

    def plan(self, *arguments):
        return portolan_run("plan", "--json", "--model", portolan.MODEL,
                            "--expert-memory", "25%", "--expert-link",
                            "1GB/s,50us", *arguments)

    def test_the_counts_of_every_policy_and_budget_add_up(self):
        rows = self.rows("--trace", self.trace, "--expert-memory",
                         "50%,25%,12.5%")
        self.assertEqual(len(rows), 3 * 10)
        needs = {sum(row[kind] for kind in ("hits", "late", "misses"))
                 for row in rows}
        self.assertEqual(len(needs), 1)  # the gates', whatever the policy
        slot = 3 * 2 * 192 * 96
        for row in rows:
            with self.subTest(policy=row["policy"],
                              memory=row["expert_memory"]):
                ranks = row["per_rank"]
                self.assertEqual(len(ranks), 1)
                self.assertEqual(ranks[0]["hits"], row["hits"])
                self.assertAlmostEqual(row["hit_rate"],
                                       row["hits"] / max(needs))
                self.assertAlmostEqual(
                    row["time_s"], row["compute_s"] + row["stall_s"], places=5)
                self.assertAlmostEqual(row["stall_per_token_s"] * row["tokens"],
                                       row["stall_s"])
                for sort in row["bytes"].values():
                    self.assertEqual(sort % slot, 0)
                # Each miss is a load; one that was late was under way.
                self.assertGreaterEqual(row["bytes"]["demand"],
                                        slot * row["misses"])
                oracle = next(other for other in rows
                              if other["policy"] == "oracle" and
                              other["budget"] == row["budget"])
                self.assertAlmostEqual(row["gap_s"],
                                       row["stall_s"] - oracle["stall_s"])

    def test_a_plot_has_a_curve_of_each_policy_in_each_chart(self):
        plot = self.directory / "plot.svg"
        policies = ["lru", "fmoe", "adaptive", "oracle"]
        rows = self.rows("--trace", self.trace, "--plot", plot, "--policy",
                         ",".join(policies), "--expert-memory", "50%,25%,10%")
        svg = xml.etree.ElementTree.parse(plot).getroot()
        self.assertEqual(svg.tag, f"{SVG}svg")
        texts = [text.text for text in svg.iter(f"{SVG}text")]
        for policy in policies:
            self.assertEqual(texts.count(policy), 1)
        self.assertIn("Link 1GB/s,50us, 1 rank(s)", texts)
        curves = list(svg.iter(f"{SVG}path"))
        self.assertEqual(len(curves), 2 * len(policies))
        self.assertEqual(len({curve.get("stroke") for curve in curves}),
                         len(policies))
        self.assertEqual(len(list(svg.iter(f"{SVG}circle"))),
                         2 * len(policies) * 3)
        # From left to right memory grows, so the stall falls: y rises.
        for curve, policy in zip(curves[::2], policies):
            points = [tuple(map(float, point.split())) for point in
                      re.findall(r"[\d.]+ [\d.]+", curve.get("d"))]
            self.assertEqual(len(points), 3)
            self.assertEqual(points, sorted(points))
            stalls = [row["stall_s"] for row in sorted(
                (row for row in rows if row["policy"] == policy),
                key=lambda row: row["budget"])]
            self.assertEqual(
                sorted(range(3), key=lambda i: (stalls[i], -i)),
                sorted(range(3), key=lambda i: (-points[i][1], -i)))

    def test_a_plot_that_cannot_be_written_is_named(self):
        path = self.directory / "no" / "plot.svg"
        error = self.refused("replay", "--trace", self.trace, *LINK, "--policy",
                             "lru", "--plot", path)
        self.assertIn(f"--plot: cannot write {path}", error)
        self.assertNotIn("replayed", error)

    def test_why_takes_the_gap_apart(self):
        done = portolan_run("replay", "--trace", self.trace, *LINK, "--policy",
                            "lru", "--expert-memory", "50%,25%", "--why")
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = self.rows("--trace", self.trace, "--policy",
                         "lru,adaptive,oracle,adaptive+prediction,"
                         "adaptive+eviction,adaptive+admission",
                         "--expert-memory", "50%,25%")
        lines = done.stdout.splitlines()
        head = next(i for i, line in enumerate(lines)
                    if "stall s lost to" in line)
        self.assertEqual(len(lines) - head, 3)
        for line, memory in zip(lines[head + 1:], ("50%", "25%")):
            stall = {row["policy"]: row["stall_s"] for row in rows
                     if row["expert_memory"] == memory}
            found = [float(number) for number in re.findall(
                r"-?\d+\.\d+", line.strip().removeprefix(memory))]
            gap = stall["lru"] - stall["oracle"]
            own = stall["adaptive"]
            wanted = [stall["lru"], own, stall["oracle"],
                      100 * (stall["lru"] - own) / gap,
                      own - stall["adaptive+prediction"],
                      own - stall["adaptive+eviction"],
                      own - stall["adaptive+admission"], stall["oracle"]]
            self.assertEqual(len(found), len(wanted), line)
            for value, right in zip(found, wanted):
                self.assertAlmostEqual(value, right, delta=0.051 if right > 10
                                       else 0.00051)

    def test_learning_first_lets_predictors_find_more(self):
        run = ["--trace", self.trace, "--policy", "fmoe,adaptive,lru"]

        def recall(rows):  # of fmoe's trajectory maps
            return rows[0]["predictions"][1]["recall"]
        nothing = self.rows(*run)
        others = self.rows(*run, "--learn", self.lesson)
        few = self.rows(*run, "--learn", self.lesson, "--history-capacity", "2")
        same = self.rows(*run, "--learn", self.trace)
        self.assertGreater(recall(others), recall(nothing) + 0.03)
        self.assertLess(recall(few), recall(others) - 0.1)
        self.assertGreater(recall(same), 0.98)
        for i in range(2):
            # By how much depends on the times of the recording.
            self.assertGreater(same[i]["hit_rate"], nothing[i]["hit_rate"])
        for rows in (others, few, same):
            self.assertEqual(rows[2]["hits"], nothing[2]["hits"])
        # Runs are learnt one after the other.
        both = self.rows(*run, "--learn", self.lesson, self.trace)
        self.assertGreater(recall(both), recall(others))

    def test_the_distance_is_where_fmoe_foretells(self):
        for distance in (1, 2, 4):
            row = self.rows("--trace", self.trace, "--policy", "fmoe",
                            "--distance", distance)[0]
            self.assertEqual({(p["source"], p["distance"])
                              for p in row["predictions"]},
                             {("semantic map", distance),
                              ("trajectory map", distance)})
            for p in row["predictions"]:
                self.assertGreater(p["needed"], 0)
        # Layers whose maps are searched semantically, of eight.
        near, far = (self.rows("--trace", self.trace, "--policy", "fmoe",
                               "--distance", d)[0]["predictions"]
                     for d in (1, 4))
        self.assertLess(near[0]["needed"], near[1]["needed"])
        self.assertAlmostEqual(far[0]["needed"] / far[1]["needed"], 1,
                               delta=0.5)

    def test_map_replacement_is_one_of_two(self):
        done = portolan_run("replay", "--trace", self.trace, *LINK,
                            "--map-replacement", "oldest")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--map-replacement", done.stderr)
        both = [self.rows("--trace", self.trace, "--policy", "fmoe", "--learn",
                          self.lesson, "--history-capacity", "20",
                          "--map-replacement", kind)[0]["bytes"]
                for kind in ("similarity", "usefulness")]
        self.assertNotEqual(*both)

    def test_ranks_share_the_experts_and_the_needs(self):
        rows = self.rows("--trace", self.trace, "--policy", "lru,adaptive",
                         "--ranks", "3")
        for row in rows:
            self.assertEqual(row["ranks"], 3)
            self.assertEqual(len(row["per_rank"]), 3)
            for kind in ("hits", "late", "misses"):
                self.assertEqual(sum(rank[kind] for rank in row["per_rank"]),
                                 row[kind])

    def test_the_files_of_ranks_and_of_runs_become_one_trace(self):
        def needs(*traces):
            row = self.rows("--trace", *traces, "--policy", "lru")[0]
            return (row["tokens"],
                    sum(row[kind] for kind in ("hits", "late", "misses")))
        one = needs(self.trace)
        pair = needs(*self.pair)
        self.assertEqual(pair[0], one[0])
        self.assertLess(pair[1], one[1])  # more tokens in a step
        self.assertEqual(needs(*reversed(self.pair)), pair)
        lesson = needs(self.lesson)
        self.assertEqual(needs(self.trace, self.lesson),
                         (one[0] + lesson[0], one[1] + lesson[1]))
        self.assertEqual(needs(*self.pair, *self.pair),
                         (2 * pair[0], 2 * pair[1]))

    def test_plan_takes_the_same_files(self):
        def planned(*traces):
            done = self.plan("--trace", *traces)
            self.assertEqual(done.returncode, 0, done.stderr)
            return json.loads(done.stdout)["replay"]
        for traces in ([self.trace], self.pair, [self.trace, self.lesson]):
            replayed = self.rows("--trace", *traces, "--policy", "adaptive")[0]
            plan = planned(*traces)
            for kind in ("tokens", "hits", "late", "misses", "bytes"):
                self.assertEqual(plan[kind], replayed[kind])

    def test_plan_begins_with_a_history_if_one_is_given(self):
        history = self.directory / "history"
        portolan.generate(BUILD, PROMPTS / "demo.jsonl", FLAGS + [
            "--history", history, "--policy", "fmoe"])
        run = ["--trace", self.trace, "--policy", "fmoe"]
        with_it = self.plan(*run, "--history", history)
        self.assertEqual(with_it.returncode, 0, with_it.stderr)
        without = json.loads(self.plan(*run).stdout)["replay"]
        self.assertGreater(json.loads(with_it.stdout)["replay"]["hit_rate"],
                           without["hit_rate"])

    def test_files_that_do_not_belong_together_are_refused_by_name(self):
        other = self.directory / "other"
        model = self.directory / "model"
        if not model.exists():
            subprocess.run([SYNTHETIC, model, "--layers", "4", "--experts",
                            "32", "--hidden", "64", "--width", "64"],
                           check=True)
            prompts = self.directory / "ids.jsonl"
            prompts.write_text('{"prompt_tokens": [1, 2, 3]}\n')
            done = portolan_run("generate", "--model", model, "--prompts",
                                prompts, *FLAGS, "--trace", other)
            self.assertEqual(done.returncode, 0, done.stderr)
        replay = ["replay", *LINK, "--policy", "lru"]
        plan = ["plan", "--model", portolan.MODEL, "--expert-link",
                "1GB/s,50us"]
        for command in (replay, plan):
            for traces, says in (
                    ([self.trace, other], "one and .*other are of different "
                                          "models"),
                    ([self.trace, *self.pair], "unlike numbers of ranks"),
                    ([self.pair[1]], r"pair\.1 is of a run of 2 ranks.*name "
                                     r"all of them"),
                    ([self.pair[0], self.pair[0]], "both of rank 0"),
                    ([self.directory / "none"], "none")):
                error = self.refused(*command, "--trace", *traces)
                self.assertRegex(error, says)
        self.assertRegex(self.refused(*plan, "--trace", other),
                         r"--trace .*other was recorded of another model")
        self.assertRegex(self.refused(*replay, "--trace", self.trace, "--learn",
                                      other),
                         r"--learn .*other was recorded of another model")


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=2)
