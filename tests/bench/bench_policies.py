#!/usr/bin/env python3
"""All policies of expert memory side by side, on a set of prompts.

    scripts/bench_policies [--build build/release] [--prompts F.jsonl]
                           [--history-prompts F.jsonl] [--part PART] ...

First the history prompts teach, then the evaluation prompts run: once with all
experts in memory, recorded, which `portolan replay` plays for every policy,
budget and link; and once more in the engine for each of them, on throttled
links and on the real disk. Results gather in --work, so the parts can run one
by one: prepare, replay, engine, disk, table. The default is all of them; a run
that was cut off goes on where it was with the parts that are left.

Exits with 1, naming the cells, if `adaptive` misses a bar (bars.py) on a
throttled link, by replay or by the engine.
"""

import argparse
import datetime
import itertools
import json
import pathlib
import sys
import time

import bars
import machine
import runs

PROMPTS = runs.SOURCE / "tests" / "data" / "prompts"
PARTS = ("prepare", "replay", "engine", "disk", "table")


def arguments():
    parser = argparse.ArgumentParser(
        prog="bench_policies", description=__doc__.splitlines()[0])
    parser.add_argument("--build", default=runs.SOURCE / "build" / "release")
    parser.add_argument("--model", default=runs.SOURCE / "models" / "tiny-moe")
    parser.add_argument("--work", default=runs.SOURCE / "build" / "policies")
    parser.add_argument("--prompts", "--eval", dest="eval",
                        default=PROMPTS / "eval.jsonl",
                        help="what is measured")
    parser.add_argument("--history-prompts", default=PROMPTS / "history.jsonl",
                        help="what teaches before")
    parser.add_argument("--max-tokens", default="16",
                        help="tokens generated for each prompt")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--policies", default=",".join(runs.POLICIES))
    parser.add_argument("--budgets", default="50%,25%,12.5%")
    parser.add_argument("--engine-budgets", help="those that the engine runs "
                        "(default: all of --budgets)")
    parser.add_argument("--links", default="1GB/s,50us;200MB/s,200us")
    parser.add_argument("--realtime", type=int, default=0, metavar="PRIORITY",
                        help="run the engine at this real-time priority (root)")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--no-bars", action="store_true",
                        help="exit with 0 though a bar is missed")
    return parser.parse_args()


class Bench:
    def __init__(self, a):
        self.a = a
        self.runs = runs.Runs(a.build, a.model, a.work, a.realtime)
        self.work = self.runs.work
        self.policies = a.policies.split(",")
        self.budgets = a.budgets.split(",")
        self.engine_budgets = (a.engine_budgets or a.budgets).split(",")
        self.links = a.links.split(";")
        self.history = self.work / "history"
        self.trace = self.work / "trace"
        self.file = self.work / "results.json"
        self.results = (json.loads(self.file.read_text())
                        if self.file.exists() else {})

    def keep(self, kind, policy, budget, link, figures):
        self.results["|".join((kind, policy, budget, link))] = figures
        self.file.write_text(json.dumps(self.results, indent=1))

    def get(self, kind, policy, budget, link=""):
        return self.results.get("|".join((kind, policy, budget, link)))

    def flags(self):
        ranks = ["--ranks", str(self.a.ranks)] if self.a.ranks > 1 else []
        return ["--max-tokens", self.a.max_tokens, "--batch", self.a.batch,
                *ranks]

    def prepare(self):
        """Teaches the history (maps of tokens and of sequences are learnt by
        different policies) and records the evaluation prompts."""
        self.history.unlink(missing_ok=True)
        for policy in ("fmoe", "adaptive"):
            self.runs.call(
                "generate", "--model", self.a.model, "--prompts",
                self.a.history_prompts, "--format", "jsonl", "--temperature",
                "0", "--ignore-eos", "--max-tokens", self.a.max_tokens,
                "--policy", policy, "--history", self.history)
        figures = self.runs.generate(self.a.eval, *self.flags(), "--trace",
                                     self.trace)
        self.results = {"set": {
            "eval": str(self.a.eval), "tokens": figures["computed_tokens"],
            "steps": figures["steps"], "batch": self.a.batch,
            "ranks": self.a.ranks, "cpu": machine.cpu_name(),
            "date": datetime.date.today().isoformat()}}
        self.file.write_text(json.dumps(self.results, indent=1))

    def replay(self):
        for link in self.links:
            rows = self.runs.replay(
                runs.trace_files(self.trace, self.a.ranks), "--policy",
                ",".join(self.policies + ["oracle"]), "--expert-memory",
                ",".join(self.budgets), "--link", link, "--history",
                self.history, "--ranks", str(self.a.ranks))
            for row in rows:
                row.pop("predictions"), row.pop("per_rank")
                self.keep("replay", row["policy"], row["expert_memory"], link,
                          row)

    def engine(self, kind="engine", links=None):
        for policy, budget, link in itertools.product(
                self.policies, self.engine_budgets, links or self.links):
            if self.get(kind, policy, budget, link):
                continue
            throttle = (["--expert-link", link, "--expert-source", "host"]
                        if link else [])
            start = time.monotonic()
            figures = self.runs.generate(
                self.a.eval, *self.flags(), "--policy", policy,
                "--expert-memory", budget, *throttle, history=self.history)
            figures.pop("predictions"), figures.pop("per_rank")
            self.keep(kind, policy, budget, link, figures)
            print(f"{kind} {policy} {budget} {link}: "
                  f"{1e3 * per_token(figures):.3f} ms/token, "
                  f"{time.monotonic() - start:.1f} s", file=sys.stderr)

    def disk(self):
        self.engine("disk", [""])

    def table(self):
        about = self.results["set"]
        print(f"{about['date']}, {about['cpu']}: {about['tokens']} tokens in "
              f"{about['steps']} steps, batch {about['batch']}, "
              f"{about['ranks']} rank(s).\n")
        for link in self.links:
            print(f"Link {link}: stall in ms a token by replay (by the engine),"
                  " hits, MB read in vain; gap to `oracle` in ms a token.\n")
            self.link_table(link)
        clear = self.bars()
        if any(key.startswith("disk|") for key in self.results):
            print("The real disk, by the engine: stall in ms a token, hits, MB "
                  "read in vain.\n")
            self.disk_table()
        return clear

    def header(self, more):
        cells = [f"{budget} {more}" for budget in self.budgets]
        print("| policy | " + " | ".join(cells) + " |")
        print("|---|" + "---|" * len(cells))

    def link_table(self, link):
        self.header("stall (engine), hits, wasted, gap")
        for policy in self.policies + ["oracle"]:
            print(f"| `{policy}` | " + " | ".join(
                self.link_cell(policy, budget, link)
                for budget in self.budgets) + " |")
        closed = []
        for budget in self.budgets:
            lru, adaptive, oracle = (
                self.stall(policy, budget, link)
                for policy in ("lru", "adaptive", "oracle"))
            share = runs.percent(lru - adaptive, lru - oracle)
            closed.append(f"{share:.0f} %")
        print("| of the gap `lru` - `oracle`, `adaptive` closes | " +
              " | ".join(closed) + " |\n")

    def bars(self):
        """Prints in how many cells `adaptive` clears the bars, names the others
        on stderr; whether all do."""
        clear = True
        for kind in ("replay", "engine"):
            cells = {}
            for budget, link in itertools.product(self.budgets, self.links):
                cells[budget, link] = {
                    policy: row["stall_s"]
                    for policy in self.policies + ["oracle"]
                    if (row := self.get(kind, policy, budget, link))}
            compared, missed = bars.check(cells, self.budgets, self.links)
            for cell, lines in missed.items():
                for line in lines:
                    print(f"missed by the {kind} at {cell}: {line}",
                          file=sys.stderr)
            if compared:
                print(f"By the {kind}, `adaptive` clears all bars in "
                      f"{compared - len(missed)} of {compared} cells.\n")
            clear = clear and not missed
        return clear

    def stall(self, policy, budget, link):
        row = self.get("replay", policy, budget, link)
        return row["stall_per_token_s"] if row else float("nan")

    def link_cell(self, policy, budget, link):
        row = self.get("replay", policy, budget, link)
        if row is None:
            return "-"
        engine = self.get("engine", policy, budget, link)
        real = f" ({1e3 * per_token(engine):.2f})" if engine else ""
        gap = row["stall_per_token_s"] - self.stall("oracle", budget, link)
        return (f"{1e3 * row['stall_per_token_s']:.2f}{real}, "
                f"{100 * row['hit_rate']:.0f} %, "
                f"{row['bytes']['prefetch_wasted'] / 1e6:.0f}, {1e3 * gap:.2f}")

    def disk_table(self):
        self.header("stall, hits, wasted")
        for policy in self.policies:
            cells = []
            for budget in self.budgets:
                row = self.get("disk", policy, budget)
                cells.append("-" if row is None else (
                    f"{1e3 * per_token(row):.2f}, "
                    f"{100 * row['hit_rate']:.0f} %, "
                    f"{row['bytes']['prefetch_wasted'] / 1e6:.0f}"))
            print(f"| `{policy}` | " + " | ".join(cells) + " |")
        print()


def per_token(figures):
    return figures["stall_s"] / figures["computed_tokens"]


def main():
    a = arguments()
    bench = Bench(a)
    clear = True
    for part in PARTS:
        if not a.part or part in a.part:
            clear = getattr(bench, part)() is not False and clear
    sys.exit(not clear and not a.no_bars)


if __name__ == "__main__":
    main()
