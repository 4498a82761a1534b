#!/usr/bin/env python3
"""Decodes with a model that is larger than the memory it gets: runs
`portolan bench model` in a memory cgroup (version 1 or 2; needs root) whose
limit holds for the whole process, page cache included, with as many expert
slots as `portolan plan` finds room for.

    tests/bench/memory_limit.py --model DIR [--limits 1.03GB,1.72GB] ...

A model of the size of the published comparison (3.2 GB of experts):
    tests/bench/synthetic_model.py DIR --layers 16 --hidden 1024 --heads 16 \\
        --kv-heads 4 --experts 64 --top-k 8 --width 512 --vocab 32000

Prints for each limit, without and with an expert pack: decode tokens/s (median
and range over rounds), bytes read per token and per second, and, measured just
before, what the disk gives to four readers of 512 KiB at random places.

Exits with 1 if a median is below its bar: so many times what llama.cpp decodes
with the same model under the same limit, reading it by mmap (--peer).
"""

import argparse
import json
import mmap
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import threading
import time

import runs

UNITS = {"GB": 10**9, "MB": 10**6, "GiB": 1 << 30, "MiB": 1 << 20, "": 1}
BLOCK = 512 << 10


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", default=runs.SOURCE / "build" / "release")
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--limits", default="1.03GB,1.72GB")
    parser.add_argument("--policies", default="adaptive")
    parser.add_argument("--pack-dir", type=pathlib.Path,
                        help="where the pack is, or is to be written")
    parser.add_argument("--sources", default="checkpoint,pack")
    parser.add_argument("--gen", default="48")
    parser.add_argument("--rounds", default="3")
    parser.add_argument("--peer", default="1.03GB:3.08:1.5,1.72GB:6.08:1.3",
                        metavar="LIMIT:RATE:TIMES,...",
                        help="tokens/s of the peer under a limit and how many "
                        "times that is asked for (default: %(default)s)")
    a = parser.parse_args()
    try:
        a.bars = bars(a.peer)
    except ValueError:
        parser.error(f"--peer {a.peer}: write LIMIT:RATE:TIMES,...")
    return a


def bars(text):
    """Tokens/s of the peer and times by limit in bytes."""
    found = {}
    for part in filter(None, text.split(",")):
        limit, rate, times = part.split(":")
        found[to_bytes(limit)] = float(rate), float(times)
    return found


def to_bytes(text):
    match = re.fullmatch(r"([\d.]+)([A-Za-z]*)", text)
    if match is None or match[2] not in UNITS:
        raise ValueError(text)
    return int(float(match[1]) * UNITS[match[2]])


class Cgroup:
    """A child of this process's memory cgroup with a limit of its own."""

    def __init__(self, limit):
        lines = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
        groups = {parts[1]: parts[2] for parts in
                  (line.split(":", 2) for line in lines)}
        self.version1 = "memory" in groups
        root = "/sys/fs/cgroup/memory" if self.version1 else "/sys/fs/cgroup"
        parent = pathlib.Path(root + groups["memory" if self.version1 else ""])
        self.directory = parent / f"portolan-bench-{os.getpid()}"
        self.directory.mkdir()
        if self.version1:
            self.write("memory.limit_in_bytes", limit)
        else:
            self.write("memory.max", limit)
            self.write("memory.swap.max", 0)

    def write(self, name, value):
        (self.directory / name).write_text(str(value))

    def enter(self):
        self.write("cgroup.procs", os.getpid())

    def peak(self):
        name = ("memory.max_usage_in_bytes" if self.version1 else "memory.peak")
        return int((self.directory / name).read_text())

    def remove(self):
        self.directory.rmdir()


def forget_pages(model):
    """Asks the kernel to drop the model from the page cache."""
    for file in model.glob("*.safetensors"):
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def disk_rate(model, seconds=2.0):
    """Bytes per second past the page cache, for four readers."""
    file = max(model.glob("*.safetensors"), key=lambda f: f.stat().st_size)
    blocks = file.stat().st_size // BLOCK - 1
    end = time.monotonic() + seconds
    counts = [0] * 4

    def read(reader):
        source = random.Random(reader)
        buffer = mmap.mmap(-1, BLOCK)
        fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
        while time.monotonic() < end:
            os.preadv(fd, [buffer], BLOCK * source.randrange(blocks))
            counts[reader] += 1
        os.close(fd)

    readers = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return sum(counts) * BLOCK / seconds


def flags(a, limit):
    return ["--model", a.model, "--batch", "1", "--tokens-per-step", "16",
            "--kv-memory", "16MiB", "--memory-available", limit]


def measure(a, bench, limit, policy, pack):
    common = flags(a, to_bytes(limit))
    plan = json.loads(subprocess.run(
        [str(part) for part in (bench.program, "plan", "--json",
                                "--ranks-per-host", "1", *common)],
        capture_output=True, text=True).stdout)
    forget_pages(a.model)
    group = Cgroup(to_bytes(limit))
    try:
        done = subprocess.run(
            [str(part) for part in (
                bench.program, "bench", "model", *common, "--policy", policy,
                *pack, "--expert-memory", plan["largest_expert_memory"],
                "--prompt-tokens", "1", "--gen", a.gen, "--rounds", a.rounds,
                "--json")],
            capture_output=True, text=True, preexec_fn=group.enter)
        peak = group.peak()
    finally:
        group.remove()
    if done.returncode != 0:
        sys.exit(f"exit {done.returncode} under {limit}: {done.stderr}")
    return json.loads(done.stdout), plan, peak


def report(limit, bar, policy, figures, plan, peak, disk):
    """Prints a line; whether the bar is passed, or there is none."""
    rate = figures["decode_tokens_per_s"]
    per_token = figures["disk_bytes_per_token"]
    slots = plan["largest_expert_memory"] // plan["per_rank"][0]["slot_bytes"]
    print(f"{limit:>8} {policy:9} {figures['expert_source']:36} "
          f"{slots:4} of {plan['per_rank'][0]['experts']} slots  "
          f"{rate['median']:6.2f} [{rate['min']:.2f}-{rate['max']:.2f}] tok/s  "
          f"{per_token / 1e6:6.1f} MB/token  "
          f"{per_token * rate['median'] / 1e9:5.2f} GB/s read, disk "
          f"{disk / 1e9:.2f} GB/s  peak {peak / 1e9:.3f} GB", end="")
    if bar is None:
        print(flush=True)
        return True
    peer, times = bar
    reached = rate["median"] / peer
    print(f"  {reached:.1f} times the peer's {peer:g}, asked {times:g}"
          f"{'' if reached >= times else ': MISSED'}", flush=True)
    return reached >= times


def main():
    a = arguments()
    passed = True
    with tempfile.TemporaryDirectory() as empty:
        bench = runs.Runs(a.build, a.model, empty)
        pack_dir = a.pack_dir or a.model
        for source in a.sources.split(","):
            if source == "pack" and not list(pack_dir.glob("*.portolan-pack")):
                bench.call("pack", "--model", a.model, "--pack-dir", pack_dir)
            for limit in a.limits.split(","):
                for policy in a.policies.split(","):
                    disk = disk_rate(a.model)
                    passed &= report(
                        limit, a.bars.get(to_bytes(limit)), policy, *measure(
                            a, bench, limit, policy,
                            ["--pack-dir", pack_dir] if source == "pack" else
                            []), disk)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
