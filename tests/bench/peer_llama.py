#!/usr/bin/env python3
"""Portolan beside llama.cpp on the same model, machine and moment.

  tests/bench/peer_llama.py                        # everything, hours
  tests/bench/peer_llama.py --venv DIR --models DIR --what tg128,pp512
  tests/bench/peer_llama.py --print --results FILE # the tables once more

What it does:
 1. Peers: installs llama-cpp-python, which carries llama.cpp and builds it,
    with clang into a throw-away environment (--venv: a lasting one). llama.cpp
    built by gcc 12 dies of a compiler fault in its AMX path. The second peer,
    ik-llama-cpp-python, a fork that is fast for mixture-of-experts models, gets
    an environment of its own (DIR-ik) unless --no-ik, built by gcc where clang
    refuses it; one that cannot be built is left out, with the reason at the
    head of the tables.
 2. Models: make_model.py writes M (1.7 G parameters) and S (16.6 M) for both
    programs with equal weights (--models keeps them); Q8_0 and Q4_0 come from
    the peer's own quantiser, int8 and int4 from `portolan pack`. All of that is
    done before the first round.
 3. Rounds: peers and Portolan run in turns, with the same priority and number
    of threads; each measures after a round that warms it up. Medians, least and
    most of the rounds, and ratios of the medians. "other load" is the share of
    the CPUs that other processes used meanwhile: a peer whose threads spin at
    barriers suffers more from it than one whose threads do not.
 4. Limited memory (--what limit30,limit50; root): all decode inside a memory
    cgroup of 30 or 50 % of the bf16 model's bytes, page cache included and swap
    excluded, with cold caches, at two read-ahead settings of the disk. The
    tokens of the measured round are not those of the warm-up. Portolan gets the
    expert memory that `portolan plan` finds room for. "disk in decode" is what
    a program read per token and per second of each round, "disk before" what
    the disk gave to four readers just before. Settings are put back, after
    signals too; what is refused is skipped, with the reason.

A measurement is NAME[@THREADS][:WEIGHTS], where NAME is
  tg128               prefill of one prompt of 128 tokens (a row pp128), then
                      decode of one sequence
  pp512               prefill of one prompt
  b8, b32             decode of 8 or 32 sequences (--batch-gen tokens each)
  s-tg128, s-pp512    the same with model S
  limit30, limit50    see above
  own30, own50        likewise, but of the bytes that the peer's model has in
                      these WEIGHTS: limit50 all but holds an int8 model
and WEIGHTS is bf16 (default), int8 (beside Q8_0) or int4 (beside Q4_0): of the
experts. int8/int8, int4/int8 and int4/int4 quantise Portolan's other matrices
too, as the peer's types do.
Results are appended to --results, so that rounds can be run in pieces.
"""

import argparse
import contextlib
import datetime
import os
import pathlib
import shlex
import sys
import tempfile

import machine
import peer_cases
import peer_programs
import peer_results

SOURCE = pathlib.Path(__file__).resolve().parents[2]


def prepare(cases, programs):
    """Writes what the cases need; the reasons of those that are not possible,
    by case and program."""
    refused = {}
    for case in cases:
        for program in programs:
            try:
                program.prepare(case)
            except machine.Skipped as reason:
                refused[case.text, program.name] = str(reason)
    return refused


def limited_round(case, program, models, kib):
    """One round inside the memory limit, with cold caches."""
    file = models.gguf(case.preset)
    with contextlib.ExitStack() as stack:
        stack.enter_context(machine.read_ahead(file, kib))
        disk_rate = machine.disk_rate(file)
        machine.drop_caches()
        group = stack.enter_context(
            machine.memory_limit(models.limit_bytes(case)))
        figures = program.run(case, cgroup=group)
        peak = group.peak() or figures["peak_bytes"]
    return {**figures, "peak_bytes": peak, "disk_rate": disk_rate}


def round_of(case, program, models, kib):
    with machine.OtherLoad() as others:
        if kib is None:
            figures = program.run(case)
        else:
            figures = limited_round(case, program, models, kib)
    return {**figures, "other_load": others.share}


def measure(case, programs, models, args, results, refused):
    settings = args.read_ahead if case.limit else [None]
    for kib in settings:
        begun = results.rounds(case.text, kib)
        for number in range(begun, begun + args.rounds):
            # In turns, and not always the same one first.
            order = programs if number % 2 == 0 else programs[::-1]
            for program in order:
                entry = {"case": case.text, "program": program.name,
                         "phase": case.phase, "read_ahead": kib}
                try:
                    if (case.text, program.name) in refused:
                        raise machine.Skipped(refused[case.text, program.name])
                    entry.update(round_of(case, program, models, kib))
                except machine.Skipped as reason:
                    entry["skipped"] = str(reason)
                results.add(entry)


def make_peers(args, how):
    """The peers that can be had, and why others cannot. Without the first there
    are no models, so that its reason ends the program."""
    try:
        peers = [peer_programs.Peer("llama.cpp", args.venv, **how)]
    except machine.Skipped as reason:
        raise SystemExit(f"llama.cpp: {reason}") from None
    missing = []
    if args.ik:
        directory = args.venv.with_name(args.venv.name + "-ik")
        try:
            peers.append(
                peer_programs.SecondPeer("ik_llama.cpp", directory, **how))
        except machine.Skipped as reason:
            missing.append(f"ik_llama.cpp: skipped: {reason}")
    return peers, missing


def describe(portolan, peers, missing, args):
    about = [
        f"{datetime.date.today()}, {machine.cpu_name()}, "
        f"{os.cpu_count()} CPUs, median [least-most] of the rounds",
        *(f"{peer.name} in {peer.about['package']} {peer.about['version']}, "
          f"compiler {peer.about['compiler']}: {peer.about['system']}"
          for peer in peers),
        *missing,
        *portolan.version.splitlines(),
    ]
    if args.realtime:
        about.append(f"real-time priority {args.realtime}")
    return about


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default=",".join(peer_cases.ALL),
                        help="measurements, with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=0,
                        help="decode no more than so many tokens")
    parser.add_argument("--batch-gen", type=int,
                        default=peer_cases.Lengths.batch,
                        help="tokens of each sequence of b8, b32")
    parser.add_argument("--limit-gen", type=int,
                        default=peer_cases.Lengths.limit,
                        help="tokens of limit30, limit50")
    parser.add_argument("--read-ahead", type=int, nargs="*",
                        default=[128, 8192], metavar="KIB",
                        help="of the disk, for limit30/limit50")
    parser.add_argument("--venv", type=pathlib.Path,
                        help="environment of the peer, made if it is not there")
    parser.add_argument("--no-ik", dest="ik", action="store_false",
                        help="without ik-llama-cpp-python")
    parser.add_argument("--models", type=pathlib.Path,
                        help="directory of the models (default: thrown away)")
    parser.add_argument("--portolan", type=pathlib.Path,
                        default=SOURCE / "build/release/launcher/portolan")
    parser.add_argument("--portolan-flags", default="", metavar="FLAGS",
                        help="more flags for it, such as \"--cpu avx2\"")
    parser.add_argument("--results", type=pathlib.Path,
                        help="file of results, appended to")
    parser.add_argument("--print", action="store_true",
                        help="only print the tables of --results")
    parser.add_argument("--realtime", type=int, default=0, metavar="PRIORITY",
                        help="run both at this real-time priority (root)")
    parser.add_argument("--timeout", type=float, default=900,
                        help="seconds for one run")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: one at least")
    if args.threads < 1:
        parser.error(f"--threads {args.threads}: one at least")
    if not args.read_ahead:
        parser.error("--read-ahead: write one or more settings in KiB")
    if args.results and not args.results.absolute().parent.is_dir():
        parser.error(f"--results {args.results}: there is no such directory")
    if args.print and not (args.results and args.results.exists()):
        parser.error("--print needs --results with a file that is there")
    return args


def main():
    args = parse_arguments()
    with contextlib.ExitStack() as stack:
        stack.enter_context(machine.unwound_by_signals())
        if args.venv is None or args.models is None or args.results is None:
            scratch = pathlib.Path(
                stack.enter_context(tempfile.TemporaryDirectory()))
            args.venv = args.venv or scratch / "venv"
            args.models = args.models or scratch
            args.results = args.results or scratch / "results.jsonl"
        results = peer_results.Results(args.results)
        if not args.print:
            args.models.mkdir(parents=True, exist_ok=True)
            stack.enter_context(machine.alone_in(args.models))
            run_all(args, results)
        print(peer_results.Tables(results).text())
    return 0


def run_all(args, results):
    lengths = peer_cases.Lengths(args.batch_gen, args.limit_gen, args.tokens)
    cases = [peer_cases.parse(text, args.threads, lengths)
             for text in args.what.split(",")]
    missing = []
    if args.realtime:
        reason = machine.realtime_allowed(args.realtime)
        if reason:
            missing.append(f"no real-time priority: skipped: {reason}")
            args.realtime = 0
    models = peer_programs.Models(args.models, args.venv / "bin" / "python")
    how = {"models": models, "realtime": args.realtime, "timeout": args.timeout}
    portolan = peer_programs.Portolan(
        args.portolan, shlex.split(args.portolan_flags), **how)
    peers, no_peers = make_peers(args, how)
    results.add({"command": shlex.join(sys.argv), "about": describe(
        portolan, peers, missing + no_peers, args)})
    programs = [*peers, portolan]
    refused = prepare(cases, programs)
    for case in cases:
        measure(case, programs, models, args, results, refused)


if __name__ == "__main__":
    sys.exit(main())
