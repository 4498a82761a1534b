#!/usr/bin/env python3
"""Portolan beside llama.cpp on the same model, machine and moment.

  tests/bench/peer_llama.py                        # everything, about an hour
  tests/bench/peer_llama.py --venv DIR --models DIR --what tg128,pp512
  tests/bench/peer_llama.py --print --results FILE # the tables once more

What it does:
 1. Peer: installs llama-cpp-python, which carries llama.cpp and builds it, with
    clang into a throw-away environment (--venv: a lasting one). llama.cpp
    built by gcc 12 dies of a compiler fault in its AMX path. --ik adds
    ik-llama-cpp-python, a fork that is fast for mixture-of-experts models.
 2. Models: make_model.py writes M (1.7 G parameters) and S (16.6 M) for both
    programs with equal weights (--models keeps them); Q8_0 and Q4_0 come from
    the peer's own quantiser.
 3. Rounds: peer and Portolan run in turns, with the same priority and number of
    threads; each measures after a round that warms it up. Medians, least and
    most of the rounds, and ratios of the medians. "other load" is the share of
    the CPUs that other processes used meanwhile: a peer whose threads spin at
    barriers suffers more from it than one whose threads do not.
 4. Limited memory (--what limit30,limit50; root): both decode inside a memory
    cgroup of 30 or 50 % of the model's bytes, page cache included, with cold
    caches, at two read-ahead settings of the disk. Settings are put back; what
    is refused is skipped, with the reason.

A measurement is NAME[@THREADS][:WEIGHTS], where NAME is
  tg128               prefill of one prompt of 128 tokens (a row pp128), then
                      decode of one sequence
  pp512               prefill of one prompt
  b8, b32             decode of 8 or 32 sequences (--batch-gen tokens each)
  s-tg128, s-pp512    the same with model S
  limit30, limit50    see above
and WEIGHTS is bf16 (default), int8 (beside Q8_0) or int4 (beside Q4_0).
Results are appended to --results, so that rounds can be run in pieces.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

import machine

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parent.parent

ALL = [
    "tg128", "pp512", "b8", "b32", "tg128@1", "pp512@1",
    "tg128:int8", "b8:int8", "b32:int8", "pp512:int8",
    "tg128:int4", "b8:int4", "b32:int4", "pp512:int4",
    "s-tg128", "s-tg128@1", "limit50", "limit30",
]
PEER_TYPE = {"bf16": None, "int8": "Q8_0", "int4": "Q4_0"}
# Of the peer's package: what it is called and how it is imported.
PEERS = {"llama.cpp": "llama-cpp-python", "ik_llama.cpp": "ik-llama-cpp-python"}


class Case:
    """One measurement, read from its name."""

    def __init__(self, text, args):
        self.text = text
        name, _, self.weights = text.partition(":")
        name, _, threads = name.partition("@")
        self.weights = self.weights or "bf16"
        self.threads = int(threads or args.threads)
        self.preset = "S" if name.startswith("s-") else "M"
        name = name.removeprefix("s-")
        self.limit = 0
        self.batch, self.phase = 1, "decode"
        if name.startswith("pp"):
            self.prompt, self.gen, self.phase = int(name[2:]), 1, "prefill"
        elif name.startswith("tg"):
            self.prompt, self.gen = 128, int(name[2:])
        elif name.startswith("b"):
            self.prompt, self.gen, self.batch = 32, args.batch_gen, int(name[1:])
        elif name.startswith("limit"):
            self.prompt, self.gen = 1, args.limit_gen
            self.limit = int(name[5:])
        else:
            raise SystemExit(f"{text}: no such measurement; see --help")
        if self.weights not in PEER_TYPE:
            raise SystemExit(f"{text}: weights are bf16, int8 or int4")
        if args.tokens and self.phase == "decode":
            self.gen = min(self.gen, args.tokens)


def create_environment(directory, package):
    """A venv with the package built by clang; kept if it is there."""
    python = directory / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    module = package.replace("-", "_")
    if list(directory.glob(f"lib/python*/site-packages/{module}-*.dist-info")):
        return python
    compiler = find_compiler()
    cxx = compiler.replace("clang", "clang++")
    environment = {
        **os.environ, "CC": compiler, "CXX": cxx,
        "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF "
                      "-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF "
                      "-DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF",
    }
    print(f"building {package} with {compiler}; this takes long",
          file=sys.stderr)
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-binary", package,
         package], check=True, env=environment)
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True)
    (directory / f"{package}.compiler").write_text(
        version.stdout.splitlines()[0])
    return python


def find_compiler():
    for name in ("clang", "clang-19", "clang-17", "clang-16", "clang-14"):
        if shutil.which(name) and shutil.which(name.replace("clang", "clang++")):
            return name
    raise SystemExit("the peer needs clang: apt-get install clang")


class Peer:
    def __init__(self, name, directory):
        self.name = name
        package = PEERS[name]
        self.python = create_environment(directory, package)
        self.about = self.ask({"task": "about"})
        note = directory / f"{package}.compiler"
        if note.exists():
            self.about["compiler"] = note.read_text()

    def ask(self, task, **how):
        command = [self.python, HERE / "peer_worker.py", json.dumps(task)]
        out = machine.run([str(word) for word in command], **how)
        return json.loads(out.strip().splitlines()[-1])

    def run(self, case, models, args, cgroup=None):
        gguf = models.gguf(case.preset, case.weights, self)
        return self.ask(
            {"task": "run", "gguf": str(gguf), "threads": case.threads,
             "prompt": case.prompt, "gen": case.gen, "batch": case.batch,
             "realtime": args.realtime},
            cgroup=cgroup, timeout=args.timeout)


class Models:
    def __init__(self, directory, python):
        self.directory, self.python = directory, python

    def directory_of(self, preset):
        path = self.directory / f"model-{preset}"
        if not (path / "config.json").exists():
            print(f"writing model {preset}", file=sys.stderr)
            subprocess.run(
                [self.python, HERE / "make_model.py", "--preset", preset,
                 "--hf", path, "--gguf", self.directory / f"model-{preset}.gguf"],
                check=True, stdout=subprocess.DEVNULL)
        return path

    def gguf(self, preset, weights, peer):
        self.directory_of(preset)
        plain = self.directory / f"model-{preset}.gguf"
        kind = PEER_TYPE[weights]
        if kind is None:
            return plain
        path = self.directory / f"model-{preset}.{kind}.gguf"
        if not path.exists():
            peer.ask({"task": "quantize", "from": str(plain), "to": str(path),
                      "type": kind, "threads": os.cpu_count()})
        return path


class Portolan:
    name = "Portolan"

    def __init__(self, program, extra):
        self.program, self.extra = program, extra
        self.version = machine.run([str(program), "--version"]).strip()
        self.help = machine.run([str(program), "bench", "model", "--help"])

    def expert_memory(self, case, models, limit):
        """What is left of the limit for experts when the dense weights and
        working memory have theirs."""
        config = json.loads(
            (models.directory_of(case.preset) / "config.json").read_text())
        sizes = [config[key] for key in (
            "num_hidden_layers", "num_experts", "hidden_size",
            "moe_intermediate_size")]
        layers, experts, hidden, width = sizes
        expert_bytes = layers * experts * 3 * hidden * width * 2
        dense = model_bytes(models, case) - expert_bytes
        return max(limit - dense - (128 << 20), 0)

    def pack(self, directory, weights):
        """Quantised experts come from a pack beside the model."""
        if not (directory / f"experts-{weights}.portolan-pack").exists():
            print(f"packing {directory.name} as {weights}", file=sys.stderr)
            machine.run([str(self.program), "pack", "--model", str(directory),
                         "--quantize", weights])

    def run(self, case, models, args, cgroup=None, limit=0):
        command = [
            self.program, "bench", "model",
            "--model", models.directory_of(case.preset),
            "--threads", case.threads, "--prompt-tokens", case.prompt,
            "--gen", case.gen, "--batch", case.batch, "--rounds", 1, "--json",
            *self.extra]
        if case.weights != "bf16":
            if "--weights" not in self.help:
                raise machine.Skipped("this build knows no --weights")
            self.pack(models.directory_of(case.preset), case.weights)
            command += ["--weights", case.weights]
        if limit:
            command += ["--expert-memory",
                        self.expert_memory(case, models, limit)]
        out = machine.run([str(word) for word in command], cgroup=cgroup,
                          realtime=args.realtime, timeout=args.timeout)
        report = json.loads(out)
        return {
            "prefill": report["prefill_tokens_per_s"]["median"],
            "decode": report["decode_tokens_per_s"]["median"],
            "decode_seconds": case.batch * case.gen /
                              report["decode_tokens_per_s"]["median"],
            "disk_bytes_per_token": report.get("disk_bytes_per_token"),
            "peak_bytes": report.get("peak_memory_bytes"),
        }


def model_bytes(models, case):
    return (models.directory / f"model-{case.preset}.gguf").stat().st_size


def run_limited(case, program, models, args, kib):
    """One round inside the memory limit, with cold caches."""
    limit = model_bytes(models, case) * case.limit // 100
    path = models.directory_of(case.preset)
    with contextlib.ExitStack() as stack:
        stack.enter_context(machine.read_ahead(path, kib))
        group = stack.enter_context(machine.memory_limit(limit))
        machine.drop_caches()
        extra = {"limit": limit} if isinstance(program, Portolan) else {}
        return program.run(case, models, args, cgroup=group, **extra)


def measure(case, programs, models, args, results):
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
                    with machine.OtherLoad() as others:
                        if kib is None:
                            figures = program.run(case, models, args)
                        else:
                            figures = run_limited(
                                case, program, models, args, kib)
                    entry.update(figures, other_load=others.share)
                except machine.Skipped as reason:
                    entry["skipped"] = str(reason)
                results.add(entry)


class Results:
    """Lines of JSON: one of the machine and programs, then one a round."""

    def __init__(self, path):
        self.path = path
        self.lines = []
        if path.exists():
            self.lines = [json.loads(line) for line in path.open()]

    def add(self, entry):
        self.lines.append(entry)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if "case" in entry:
            value = entry.get("skipped") or f"{entry[entry['phase']]:.2f} tok/s"
            print(f"{entry['case']:12} {entry['program']:12} {value}",
                  file=sys.stderr)

    def rounds(self, case, kib):
        return sum(line.get("case") == case and line["read_ahead"] == kib and
                   line["program"] == "Portolan" for line in self.lines)

    def values(self, case, program, kib, key):
        return [
            line[key] for line in self.lines
            if line.get("case") == case and line.get("program") == program
            and line.get("read_ahead") == kib and line.get(key) is not None]

    def skipped(self, case, program, kib):
        reasons = [
            line["skipped"] for line in self.lines
            if line.get("case") == case and line.get("program") == program
            and line.get("read_ahead") == kib and "skipped" in line]
        return reasons[-1] if reasons else "not run"

    def cell(self, case, program, kib, phase):
        values = self.values(case, program, kib, phase)
        if not values:
            return f"- ({self.skipped(case, program, kib)})", None
        median = statistics.median(values)
        digits = 2 if median < 10 else 1
        text = (f"{median:.{digits}f} [{min(values):.{digits}f}-"
                f"{max(values):.{digits}f}]")
        return text, median

    def disk_cell(self, case, program, kib):
        rounds = [
            line for line in self.lines
            if line.get("case") == case and line.get("program") == program
            and line.get("read_ahead") == kib
            and line.get("disk_bytes_per_token") is not None]
        if not rounds:
            return "-"
        per_token = statistics.median(
            line["disk_bytes_per_token"] for line in rounds)
        rates = [line["disk_bytes_per_token"] * line["decode"] / 1e9
                 for line in rounds]
        shown = ", ".join(f"{rate:.2f}" for rate in rates)
        return f"{per_token / 1e6:.0f} MB/token; {shown} GB/s"

    def print_tables(self):
        for line in self.lines:
            if "about" in line:
                print("\n".join(line["about"]), end="\n\n")
        cases = list(dict.fromkeys(
            (line["case"], line["read_ahead"], line["phase"])
            for line in self.lines if "case" in line))
        peers = [name for name in PEERS if any(
            line.get("program") == name for line in self.lines)]
        titles = ["tokens/s", *peers, "Portolan", "ratio", "other load",
                  "peak memory", "disk in decode"]
        print("| " + " | ".join(titles) + " |")
        print("|" + "---|" * len(titles))
        for case, kib, phase in cases:
            if "tg128" in case:
                self.print_row(case.replace("tg", "pp"), case, kib, "prefill",
                               peers)
            name = case if kib is None else f"{case}, read-ahead {kib} KiB"
            self.print_row(name, case, kib, phase, peers)

    def print_row(self, name, case, kib, phase, peers):
        ours_text, ours = self.cell(case, "Portolan", kib, phase)
        cells, ratios, memory, disk = [name], [], [], []
        for program in peers:
            text, median = self.cell(case, program, kib, phase)
            cells.append(text)
            ratios.append(f"{ours / median:.2f}" if ours and median else "-")
        for program in [*peers, "Portolan"]:
            peak = self.values(case, program, kib, "peak_bytes")
            memory.append(f"{max(peak) / 1e6:.0f}" if peak else "-")
            if kib is not None:
                disk.append(self.disk_cell(case, program, kib))
        loads = [self.values(case, program, kib, "other_load")
                 for program in [*peers, "Portolan"]]
        load = " / ".join(
            f"{100 * statistics.median(values):.0f}" if values else "-"
            for values in loads)
        cells += [ours_text, " / ".join(ratios), load + " %",
                  " / ".join(memory) + " MB", " / ".join(disk)]
        print("| " + " | ".join(cells) + " |")


def describe(portolan, peers, args):
    about = [
        f"{datetime.date.today()}, {machine.cpu_name()}, "
        f"{os.cpu_count()} CPUs, median [least-most] of the rounds",
        *(f"{peer.name} in {PEERS[peer.name]} {peer.about['version']}, "
          f"compiler {peer.about['compiler']}: {peer.about['system']}"
          for peer in peers),
        *portolan.version.splitlines(),
    ]
    if args.realtime:
        about.append(f"real-time priority {args.realtime}")
    return about


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default=",".join(ALL),
                        help="measurements, with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=0,
                        help="decode no more than so many tokens")
    parser.add_argument("--batch-gen", type=int, default=32)
    parser.add_argument("--limit-gen", type=int, default=32)
    parser.add_argument("--read-ahead", type=int, nargs="*", default=[128, 8192],
                        metavar="KIB", help="of the disk, for limit30/limit50")
    parser.add_argument("--venv", type=pathlib.Path,
                        help="environment of the peer, made if it is not there")
    parser.add_argument("--ik", action="store_true",
                        help="add ik-llama-cpp-python")
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
    return parser.parse_args()


def main():
    args = parse_arguments()
    with contextlib.ExitStack() as stack:
        if args.venv is None or args.models is None or args.results is None:
            scratch = pathlib.Path(
                stack.enter_context(tempfile.TemporaryDirectory()))
            args.venv = args.venv or scratch / "venv"
            args.models = args.models or scratch
            args.results = args.results or scratch / "results.jsonl"
        results = Results(args.results)
        if not args.print:
            run_all(args, results)
        results.print_tables()
    return 0


def run_all(args, results):
    cases = [Case(text, args) for text in args.what.split(",")]
    if args.realtime:
        refused = machine.realtime_allowed(args.realtime)
        if refused:
            print(f"no real-time priority: {refused}", file=sys.stderr)
            args.realtime = 0
    args.models.mkdir(parents=True, exist_ok=True)
    peers = [Peer("llama.cpp", args.venv)]
    if args.ik:
        peers.append(
            Peer("ik_llama.cpp", args.venv.with_name(args.venv.name + "-ik")))
    models = Models(args.models, peers[0].python)
    portolan = Portolan(args.portolan, args.portolan_flags.split())
    if not any("about" in line for line in results.lines):
        results.add({"about": describe(portolan, peers, args)})
    for case in cases:
        measure(case, [*peers, portolan], models, args, results)


if __name__ == "__main__":
    sys.exit(main())
