#!/usr/bin/env python3
"""How well `portolan replay` foretells the engine: runs prompts on a throttled
link while recording them, replays each recording under the same policy, budget
and link, and compares stall and counts.

    tests/bench/engine_vs_replay.py [--policies lru,gate-2,adaptive] ...

Exits with 1 if a stall differs by more than --within percent.
"""

import argparse
import itertools
import sys

import machine
import runs

PROMPTS = runs.SOURCE / "tests" / "data" / "prompts"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", default=runs.SOURCE / "build" / "release")
    parser.add_argument("--model", default=runs.SOURCE / "models" / "tiny-moe")
    parser.add_argument("--work", default=runs.SOURCE / "build" / "replayed")
    parser.add_argument("--prompts", default=PROMPTS / "eval.jsonl")
    parser.add_argument("--max-tokens", default="16")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--policies", default="lru,gate-2,adaptive")
    parser.add_argument("--budgets", default="25%")
    parser.add_argument("--links", default="1GB/s,50us;200MB/s,200us")
    parser.add_argument("--source", default="host", help="files or host: a "
                        "link faster than the disk needs host")
    parser.add_argument("--realtime", type=int, default=0, metavar="PRIORITY",
                        help="run the engine at this real-time priority (root)")
    parser.add_argument("--within", type=float, default=15, help="percent")
    return parser.parse_args()


def compare(a, bench, policy, budget, link):
    """One line of the table; the difference in percent."""
    trace = bench.work / "trace"
    common = ["--policy", policy, "--expert-memory", budget]
    ranks = ["--ranks", str(a.ranks)] if a.ranks > 1 else []
    with machine.OtherLoad() as other:
        engine = bench.generate(
            a.prompts, *common, *ranks, "--expert-link", link,
            "--expert-source", a.source, "--batch", a.batch, "--max-tokens",
            a.max_tokens, "--trace", trace)
    replay = bench.replay(runs.trace_files(trace, a.ranks), *common, "--link",
                          link, "--ranks", str(a.ranks))[0]
    off = 100 * (replay["stall_s"] / engine["stall_s"] - 1)
    counts = "  ".join(f"{kind} {engine[kind]}/{replay[kind]}"
                       for kind in ("hits", "late", "misses"))
    print(f"{policy:10} {budget:>6} {link:14} engine {engine['stall_s']:7.3f} s"
          f"  replay {replay['stall_s']:7.3f} s  {off:+6.1f} %   {counts}"
          f"  other load {100 * other.share:.0f} %",
          flush=True)
    return abs(off)


def main():
    a = arguments()
    bench = runs.Runs(a.build, a.model, a.work, a.realtime)
    worst = max(compare(a, bench, *case) for case in itertools.product(
        a.policies.split(","), a.budgets.split(","), a.links.split(";")))
    print(f"worst {worst:.1f} %, allowed {a.within:g} %")
    sys.exit(worst > a.within)


if __name__ == "__main__":
    main()
