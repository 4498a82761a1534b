"""What a coordinator costs: time to first token and between tokens through a
service beside `portolan generate` alone, and requests accepted per second.

    service_bench.py BUILD [--rounds N] [--seconds S]

Prints a table; needs a machine with nothing else to do, or `chrt -r 10` before
it.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

parser = argparse.ArgumentParser()
parser.add_argument("build", type=pathlib.Path)
parser.add_argument("--rounds", type=int, default=20)
parser.add_argument("--seconds", type=float, default=5)
ARGUMENTS = parser.parse_args()
BUILD = ARGUMENTS.build
sys.path[:0] = [str(BUILD / "clients" / "python"),
                str(pathlib.Path(__file__).resolve().parents[1] / "system")]

import portolan
import service

# Leaves the other CPUs to coordinator and client.
THREADS = ("--threads", "1")
PROMPT = {"id": "p", "prompt": "The ship left the harbour in the morning and",
          "max_tokens": 32, "temperature": 0, "ignore_eos": True}


def bench(address, prompts, *flags):
    done = portolan.run([portolan.program(BUILD), "bench", "serve",
                         "--coordinator", address, "--prompts", prompts,
                         "--json", "--ignore-eos", *flags], timeout=300)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def generate_alone(directory):
    """Medians of TTFT and TPOT of one prompt after the other in one process, in
    seconds. Its times count from the start, so a prompt's own begins with the
    last token of the one before; the first one warms up."""
    prompts = directory / "many.jsonl"
    prompts.write_text("".join(
        json.dumps({**PROMPT, "id": str(i)}) + "\n"
        for i in range(ARGUMENTS.rounds + 1)))
    results = portolan.generate(BUILD, prompts,
                                ["--ignore-eos", "--batch", "1", *THREADS])
    further = PROMPT["max_tokens"] - 1
    ends = [one["ttft_s"] + further * one["tpot_s"] for one in results]
    return (statistics.median(one["ttft_s"] - end
                              for one, end in zip(results[1:], ends)),
            statistics.median(one["tpot_s"] for one in results[1:]))


def compare_with_generate(directory, prompts):
    ttft, tpot = generate_alone(directory)
    coordinator = service.Coordinator(BUILD, directory)
    job = service.Job(BUILD, directory, coordinator.address, *THREADS,
                      "--transport", "shm", ranks=1)
    try:
        with service.client(coordinator.address) as client:
            service.wait_for_ranks(client, 1, job)
        bench(coordinator.address, prompts, "--closed", 1, "--requests", 1)
        one = bench(coordinator.address, prompts, "--closed", 1, "--requests",
                    ARGUMENTS.rounds)
    finally:
        job.stop()
        coordinator.stop()
    print(f"{'ms':24} {'TTFT p50':>9} {'TPOT p50':>9}")
    for name, first, other in (
            ("generate alone", ttft, tpot),
            ("service, one client", one["ttft_s"]["p50"], one["tpot_s"]["p50"]),
            ("added", one["ttft_s"]["p50"] - ttft,
             one["tpot_s"]["p50"] - tpot)):
        print(f"{name:24} {first * 1e3:9.2f} {other * 1e3:9.2f}")


def measure_admission(directory, prompts):
    print(f"{'submitted by':>12} {'accepted/s':>11} {'p50 ms':>8} "
          f"{'p99 ms':>8}")
    for clients in (1, 16, 256):
        coordinator = service.Coordinator(
            BUILD, directory / f"c{clients}", "--max-queued", 10_000_000,
            "--max-queued-tokens", 10**12)
        try:
            result = bench(coordinator.address, prompts, "--submit",
                           "--closed", clients, "--duration",
                           ARGUMENTS.seconds)
        finally:
            coordinator.stop()
        print(f"{clients:12} {result['done_per_s']:11.0f} "
              f"{result['end_to_end_s']['p50'] * 1e3:8.2f} "
              f"{result['end_to_end_s']['p99'] * 1e3:8.2f}", flush=True)


def main():
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        prompts = directory / "prompts.jsonl"
        prompts.write_text(json.dumps(PROMPT) + "\n")
        measure_admission(directory, prompts)
        if service.has_worker(BUILD):
            compare_with_generate(directory, prompts)
        else:
            print("no added times: this build has no `portolan worker`")


if __name__ == "__main__":
    main()
