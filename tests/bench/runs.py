"""Runs `portolan` for the bench scripts and reads what it says."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[2]
POLICIES = ["all-layer", "lru", "lfu", "gate-1", "eam", "gate-2", "pin", "fmoe",
            "adaptive"]


class Runs:
    """One build, one model, one directory for what is written. `realtime`: a
    priority (root) that generation runs at, 0 for none: where others use the
    CPUs too, each wake-up of a thread may take longer than a read."""

    def __init__(self, build, model, work, realtime=0):
        self.realtime = realtime
        self.program = pathlib.Path(build) / "launcher" / "portolan"
        self.model = pathlib.Path(model)
        self.work = pathlib.Path(work)
        self.work.mkdir(parents=True, exist_ok=True)

    def call(self, command, *arguments):
        """Runs a subcommand; returns its stdout, or ends with its error."""
        line = [str(part) for part in (self.program, command, *arguments)]

        def prepare():
            if self.realtime and command == "generate":
                os.sched_setscheduler(0, os.SCHED_RR,
                                      os.sched_param(self.realtime))

        done = subprocess.run(line, capture_output=True, text=True,
                              preexec_fn=prepare)
        if done.returncode != 0:
            sys.exit(f"{' '.join(line)}\n{done.stderr}")
        return done.stdout

    def generate(self, prompts, *arguments, history=None):
        """Greedy generation; returns the figures of --stats. The history is
        read but not changed."""
        stats = self.work / "stats.json"
        flags = ["--model", self.model, "--prompts", prompts, "--format",
                 "jsonl", "--temperature", "0", "--ignore-eos", "--stats", stats]
        if history is not None:
            copy = self.work / "history.copy"
            shutil.copy(history, copy)
            flags += ["--history", copy]
        self.call("generate", *flags, *arguments)
        figures = json.loads(stats.read_text())
        # The last token of a sequence is sampled, never computed.
        prompts_run = sum(1 for line in open(prompts) if line.strip())
        figures["computed_tokens"] = (figures["prompt_tokens"] +
                                      figures["tokens"] - prompts_run)
        return figures

    def replay(self, traces, *arguments):
        """The rows of `portolan replay --json`."""
        return json.loads(self.call("replay", "--json", "--trace", *traces,
                                    *arguments))


def limit_flags(limit_bytes):
    """For `plan` and `bench model` of one sequence in so much memory: what does
    not need to be large leaves room for experts."""
    return ["--batch", "1", "--tokens-per-step", "16", "--kv-memory", "16MiB",
            "--memory-available", limit_bytes]


def plan(program, flags):
    """What `portolan plan` says of one rank; `largest_expert_memory` is there
    whether or not all experts fit, which is what its exit code tells."""
    line = [str(part) for part in (program, "plan", "--json",
                                   "--ranks-per-host", "1", *flags)]
    done = subprocess.run(line, capture_output=True, text=True)
    if not done.stdout:
        sys.exit(f"{' '.join(line)}\n{done.stderr}")
    return json.loads(done.stdout)


def trace_files(trace, ranks):
    """What --trace FILE writes for so many ranks."""
    return [trace] if ranks == 1 else [f"{trace}.{i}" for i in range(ranks)]


def percent(part, whole):
    return 100 * part / whole if whole else 0.0
