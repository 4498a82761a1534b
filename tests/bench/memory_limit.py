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
import os
import pathlib
import re
import sys
import tempfile

import machine
import runs

UNITS = {"GB": 10**9, "MB": 10**6, "GiB": 1 << 30, "MiB": 1 << 20, "": 1}


def arguments(words=None):
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
    a = parser.parse_args(words)
    if not list(a.model.glob("*.safetensors")):
        parser.error(f"--model {a.model}: there are no *.safetensors")
    try:
        for limit in a.limits.split(","):
            to_bytes(limit)
    except ValueError:
        parser.error(f"--limits {a.limits}: write sizes such as 1.03GB, with "
                     "commas between")
    for source in a.sources.split(","):
        if source not in ("checkpoint", "pack"):
            parser.error(f"--sources {source}: there are checkpoint and pack")
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


def has_pack(directory):
    """Of the model as it is: quantised ones lie beside it."""
    return any("int8" not in file.name and "int4" not in file.name
               for file in directory.glob("*.portolan-pack"))


def forget_pages(model):
    """Asks the kernel to drop the model from the page cache."""
    for file in model.glob("*.safetensors"):
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def measure(a, bench, limit, policy, pack):
    common = ["--model", a.model, "--policy", policy, *pack,
              *runs.limit_flags(to_bytes(limit))]
    plan = runs.plan(bench.program, common)
    forget_pages(a.model)
    with machine.memory_limit(to_bytes(limit)) as group:
        out = machine.run(
            [bench.program, "bench", "model", *common,
             "--expert-memory", plan["largest_expert_memory"],
             "--prompt-tokens", "1", "--gen", a.gen, "--rounds", a.rounds,
             "--json"], cgroup=group)
        return json.loads(out), plan, group.peak()


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
          f"{disk / 1e9:.2f} GB/s  peak {(peak or 0) / 1e9:.3f} GB", end="")
    if bar is None:
        print(flush=True)
        return True
    peer, times = bar
    reached = rate["median"] / peer
    print(f"  {reached:.1f} times the peer's {peer:g}, asked {times:g}"
          f"{'' if reached >= times else ': MISSED'}", flush=True)
    return reached >= times


def largest_file(model):
    return max(model.glob("*.safetensors"), key=lambda f: f.stat().st_size)


def main():
    a = arguments()
    with machine.unwound_by_signals():
        try:
            sys.exit(not measure_all(a))
        except machine.Skipped as reason:
            sys.exit(f"memory_limit.py: {reason}")


def measure_all(a):
    """Whether all bars are passed."""
    passed = True
    with tempfile.TemporaryDirectory() as empty:
        bench = runs.Runs(a.build, a.model, empty)
        pack_dir = a.pack_dir or a.model
        for source in a.sources.split(","):
            if source == "pack" and not has_pack(pack_dir):
                bench.call("pack", "--model", a.model, "--pack-dir", pack_dir)
            for limit in a.limits.split(","):
                for policy in a.policies.split(","):
                    disk = machine.disk_rate(largest_file(a.model))
                    passed &= report(
                        limit, a.bars.get(to_bytes(limit)), policy, *measure(
                            a, bench, limit, policy,
                            ["--pack-dir", pack_dir] if source == "pack" else
                            []), disk)
    return passed


if __name__ == "__main__":
    main()
