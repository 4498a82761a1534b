#!/usr/bin/env python3
"""What a job gains from the history of others: the stall for expert loads in
its first requests.

    shared_history.py BUILD [--policies A,B] [--requests N] [--json]

Three jobs serve the same requests, one at a time, for each policy:
  cold      of a coordinator without history
  attached  new, but of a coordinator at which another job has served the
            teaching prompts and ended
  warm      has itself served the teaching prompts just before
`lru` foretells nothing and learns nothing: its rows show what a warm cache
alone is worth.
"""

import argparse
import json
import pathlib
import re
import statistics
import sys
import tempfile
import time
import urllib.request

SOURCE = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = SOURCE / "tests" / "data" / "prompts"

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("build", type=pathlib.Path)
parser.add_argument("--policies", default="adaptive,fmoe,eam,lru")
parser.add_argument("--teach", type=pathlib.Path,
                    default=PROMPTS / "history.jsonl")
parser.add_argument("--eval", type=pathlib.Path, nargs="+",
                    default=[PROMPTS / "eval.jsonl", PROMPTS / "serve.jsonl"])
parser.add_argument("--requests", type=int, default=50,
                    help="how many of the evaluation prompts")
parser.add_argument("--max-tokens", type=int, default=16)
parser.add_argument("--expert-memory", default="25%")
parser.add_argument("--expert-link", default="1GB/s,50us")
parser.add_argument("--rounds", type=int, default=1)
parser.add_argument("--json", action="store_true")
ARGUMENTS = parser.parse_args()
BUILD = ARGUMENTS.build
sys.path[:0] = [str(BUILD / "clients" / "python"),
                str(SOURCE / "tests" / "system")]

import service

KINDS = ("cold", "attached", "warm")
STALL = "portolan_expert_load_stall_seconds_total"
LOADS = "portolan_expert_cache_requests_total"
TOLD_S = 1.5  # a rank at rest has told its last figures by then


class Deployment:
    """A coordinator with, at any time, one job."""

    def __init__(self, directory, policy):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir()
        self.policy = policy
        self.coordinator = service.Coordinator(
            BUILD, self.directory, "--http", "127.0.0.1:0", "--log-file",
            self.directory / "events.log")
        endpoint = json.loads(
            (self.coordinator.data / "endpoint.json").read_text())
        self.metrics_url = f"http://{endpoint['http']}/metrics"
        self.client = service.client(self.coordinator.address)
        self.job = None

    def start_job(self):
        if self.job is not None:
            self.job.stop()
        self.job = service.Job(
            BUILD, self.directory, self.coordinator.address, "--policy",
            self.policy, "--expert-memory", ARGUMENTS.expert_memory,
            "--expert-link", ARGUMENTS.expert_link, "--expert-source", "host",
            ranks=1)
        service.wait_for_ranks(self.client, 1, self.job)

    def serve(self, prompts):
        """One request after the other; returns how each ended."""
        return [self.client.generate(
            prompt["prompt"], max_tokens=ARGUMENTS.max_tokens, temperature=0,
            ignore_eos=True).finish for prompt in prompts]

    def figures(self):
        """Stall in seconds and experts needed and found, so far."""
        with urllib.request.urlopen(self.metrics_url) as page:
            text = page.read().decode()

        def sum_of(series):
            return sum(map(float, re.findall(
                rf"(?m)^{series} (\S+)$", text)))

        return {"stall_s": sum_of(STALL),
                "needed": sum_of(LOADS + r"\{[^}]*\}"),
                "found": sum_of(LOADS + r'\{[^}]*result="hit"[^}]*\}')}

    def settled_figures(self):
        before, since = self.figures(), time.monotonic()
        while time.monotonic() < since + TOLD_S:
            time.sleep(0.1)
            now = self.figures()
            if now != before:
                before, since = now, time.monotonic()
        return before

    def measure(self, prompts):
        before = self.settled_figures()
        ends = self.serve(prompts)
        after = self.settled_figures()
        spent = {name: after[name] - before[name] for name in after}
        # The last token of a request is sampled, never computed.
        tokens = sum(end.prompt_tokens - end.cached_prompt_tokens +
                     end.completion_tokens - 1 for end in ends)
        return {"tokens": tokens, "stall_s": spent["stall_s"],
                "stall_ms_per_token": 1e3 * spent["stall_s"] / tokens,
                "hit_share": spent["found"] / max(1, spent["needed"]),
                "ttft_ms": 1e3 * statistics.median(e.ttft_s for e in ends),
                "tpot_ms": 1e3 * statistics.median(e.tpot_s for e in ends)}

    def stop(self):
        if self.job is not None:
            self.job.stop()
        self.client.close()
        self.coordinator.stop()


def measure(directory, policy, kind, teach, prompts):
    deployment = Deployment(directory, policy)
    try:
        deployment.start_job()
        if kind != "cold":
            deployment.serve(teach)
        if kind == "attached":
            deployment.start_job()
        return deployment.measure(prompts)
    finally:
        deployment.stop()


def main():
    teach = service.read_prompts(ARGUMENTS.teach)
    prompts = [prompt for path in ARGUMENTS.eval
               for prompt in service.read_prompts(path)][:ARGUMENTS.requests]
    rows = []
    if not ARGUMENTS.json:
        print(f"first {len(prompts)} requests, experts {ARGUMENTS.expert_memory}"
              f", link {ARGUMENTS.expert_link}; taught by {len(teach)} "
              f"requests\n{'policy':10} {'job':9} {'stall ms/token':>14} "
              f"{'of cold':>8} {'found':>7} {'TTFT ms':>8} {'TPOT ms':>8}")
    for policy in ARGUMENTS.policies.split(","):
        cold = None
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as name:
                rounds = [measure(pathlib.Path(name) / str(i), policy, kind,
                                  teach, prompts)
                          for i in range(ARGUMENTS.rounds)]
            row = {"policy": policy, "job": kind, "rounds": rounds, **{
                figure: statistics.median(one[figure] for one in rounds)
                for figure in rounds[0]}}
            rows.append(row)
            cold = cold or row["stall_ms_per_token"]
            if not ARGUMENTS.json:
                print(f"{policy:10} {kind:9} {row['stall_ms_per_token']:14.3f} "
                      f"{row['stall_ms_per_token'] / cold:8.1%} "
                      f"{row['hit_share']:7.1%} {row['ttft_ms']:8.2f} "
                      f"{row['tpot_ms']:8.2f}", flush=True)
    if ARGUMENTS.json:
        print(json.dumps({"requests": len(prompts), "taught": len(teach),
                          "expert_memory": ARGUMENTS.expert_memory,
                          "expert_link": ARGUMENTS.expert_link,
                          "rows": rows}))


if __name__ == "__main__":
    main()
