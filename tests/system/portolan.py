"""Runs Portolan's programs for the system tests."""

import json
import os
import pathlib
import subprocess

SOURCE = pathlib.Path(__file__).resolve().parents[2]
MODEL = SOURCE / "models" / "tiny-moe"
LAUNCH = SOURCE / "launcher" / "portolan-launch"


def program(build):
    return pathlib.Path(build) / "launcher" / "portolan"


def run(command, env=None, timeout=120):
    """Runs a command to its end; returns the CompletedProcess, text captured."""
    full_env = dict(os.environ)
    full_env.update(env or {})
    return subprocess.run([str(part) for part in command], env=full_env,
                          timeout=timeout, capture_output=True, text=True,
                          errors="replace")


def generate(build, prompts, arguments, mpi_ranks=None, env=None, timeout=120):
    """Runs `portolan generate --format jsonl`; returns the list of results."""
    command = [program(build), "generate", "--model", MODEL, "--prompts",
               prompts, "--format", "jsonl", *arguments]
    if mpi_ranks is not None:
        command = [LAUNCH, "-np", mpi_ranks, "--", *command]
    done = run(command, env, timeout)
    if done.returncode != 0:
        raise AssertionError(f"{command}: exit {done.returncode}\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]
