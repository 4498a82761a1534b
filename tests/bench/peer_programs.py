"""The programs that peer_llama.py compares, and their models. Each program has
prepare(case), which writes what a case needs and may take long, and run(case,
cgroup), which measures one round and writes nothing. Both raise machine.Skipped
with the reason where a case is not possible."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import machine
import peer_cases
import runs

HERE = pathlib.Path(__file__).resolve().parent

# What the package is called that carries the peer and its bindings.
PACKAGES = {"llama.cpp": "llama-cpp-python",
            "ik_llama.cpp": "ik-llama-cpp-python"}
CLANGS = ("clang", "clang-19", "clang-17", "clang-16", "clang-14")
# llama.cpp built by gcc 12 dies of a compiler fault in its AMX path, which the
# fork does not have; clang 14 refuses the fork's source.
GCC_TOO = ("ik-llama-cpp-python",)
CMAKE_ARGS = " ".join(f"-D{setting}" for setting in (
    "GGML_NATIVE=ON", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_TOOLS=OFF", "LLAVA_BUILD=OFF", "LLAMA_CURL=OFF"))


def note(text):
    print(text, file=sys.stderr, flush=True)


def find_compilers(package):
    """Those that may build a package, best first: (C, C++)."""
    pairs = [(name, name.replace("clang", "clang++")) for name in CLANGS]
    found = [pair for pair in pairs if all(map(shutil.which, pair))][:1]
    if package in GCC_TOO and shutil.which("gcc") and shutil.which("g++"):
        found.append(("gcc", "g++"))
    if not found:
        raise machine.Skipped("it needs clang: apt-get install clang")
    return found


def create_environment(directory, package):
    """The interpreter of a venv with the package; what is there is kept. A
    build that failed is remembered in PACKAGE.failed."""
    python = directory / "bin" / "python"
    module = package.replace("-", "_")
    if list(directory.glob(f"lib/python*/site-packages/{module}-*.dist-info")):
        return python
    failed = directory / f"{package}.failed"
    if failed.exists():
        raise machine.Skipped(f"{failed.read_text()} (remembered in {failed})")
    compilers = find_compilers(package)
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    reasons = []
    for compiler in compilers:
        reason = build(python, package, compiler)
        if reason is None:
            version = machine.run([compiler[0], "--version"]).splitlines()[0]
            (directory / f"{package}.compiler").write_text(version)
            return python
        reasons.append(f"{compiler[0]}: {reason}")
    failed.write_text("; ".join(reasons))
    raise machine.Skipped(failed.read_text())


def build(python, package, compiler):
    """Installs the package from its source; None, or why that failed."""
    note(f"building {package} with {compiler[0]}; this takes long")
    built = subprocess.run(
        [python, "-m", "pip", "install", "--no-binary", package, package],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "CC": compiler[0], "CXX": compiler[1],
             "CMAKE_ARGS": CMAKE_ARGS})
    return reason_of_failure(built.stdout) if built.returncode else None


def reason_of_failure(log):
    """The first line of a build's output that a compiler calls an error, else
    the first that anything does, else the last; without the directory."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [re.sub(r"^/\S*/", "", line) for line in lines
              if re.search(r":\d+: (fatal )?error:", line)]
    errors += [line for line in lines if "error:" in line.lower()]
    return (errors or lines[-1:] or ["pip failed and said nothing"])[0]


class Models:
    """Model M or S for both programs, and its quantised forms."""

    def __init__(self, directory, python):
        self.directory, self.python = directory, python

    def hf(self, preset):
        return self.directory / f"model-{preset}"

    def gguf(self, preset, weights="bf16"):
        kind = peer_cases.PEER_TYPE[weights]
        kinds = f".{kind}" if kind else ""
        return self.directory / f"model-{preset}{kinds}.gguf"

    def limit_bytes(self, case):
        """That a case leaves to a program, once the model is written."""
        file = self.gguf(case.preset, case.limit_of)
        if not file.exists():
            raise machine.Skipped(f"no {file.name}")
        return file.stat().st_size * case.limit // 100

    def write(self, preset):
        # The configuration is the first file that is written, this the last.
        done = self.directory / f"model-{preset}.done"
        if done.exists():
            return
        note(f"writing model {preset}")
        machine.run([self.python, HERE / "make_model.py", "--preset", preset,
                     "--hf", self.hf(preset), "--gguf", self.gguf(preset)])
        done.touch()


class Peer:
    def __init__(self, name, directory, models=None, realtime=0, timeout=None):
        self.name, self.models = name, models
        self.realtime, self.timeout = realtime, timeout
        package = PACKAGES[name]
        self.python = create_environment(directory, package)
        self.about = {"package": package, **self.ask({"task": "about"})}
        compiler = directory / f"{package}.compiler"
        if compiler.exists():
            self.about["compiler"] = compiler.read_text().strip()

    def ask(self, task, **how):
        out = machine.run([self.python, HERE / "peer_worker.py",
                           json.dumps(task)], **how)
        return json.loads(out.strip().splitlines()[-1])

    def quantize(self, preset, weights):
        path = self.models.gguf(preset, weights)
        if path.exists():
            return
        note(f"quantising {path.name}")
        part = path.with_suffix(".part")
        self.ask({"task": "quantize", "from": str(self.models.gguf(preset)),
                  "to": str(part), "type": peer_cases.PEER_TYPE[weights],
                  "threads": os.cpu_count()})
        part.rename(path)

    def prepare(self, case):
        self.models.write(case.preset)
        self.quantize(case.preset, case.experts)

    def run(self, case, cgroup=None):
        return self.ask(
            {"task": "run", "threads": case.threads, "prompt": case.prompt,
             "gguf": str(self.models.gguf(case.preset, case.experts)),
             "gen": case.gen, "batch": case.batch, "realtime": self.realtime},
            cgroup=cgroup, timeout=self.timeout)


class SecondPeer(Peer):
    """Reads what the first one quantised: both know these types."""

    def prepare(self, case):
        path = self.models.gguf(case.preset, case.experts)
        if not path.exists():
            raise machine.Skipped(f"no {path.name}")


class Portolan:
    name = "Portolan"

    def __init__(self, program, flags, models=None, realtime=0, timeout=None):
        if not program.exists():
            raise SystemExit(f"{program} is not there: build it, or --portolan")
        self.program, self.flags, self.models = program, flags, models
        self.realtime, self.timeout = realtime, timeout
        self.version = machine.run([program, "--version"]).strip()
        self.commands = {}  # by case

    def model_flags(self, case):
        return ["--model", self.models.hf(case.preset), "--threads",
                case.threads, "--weights", case.experts, "--dense-weights",
                case.dense, *self.flags]

    def prepare(self, case):
        """Quantised experts come from a pack beside the model."""
        self.models.write(case.preset)
        directory = self.models.hf(case.preset)
        pack = directory / f"experts-{case.experts}.portolan-pack"
        if case.experts != "bf16" and not pack.exists():
            note(f"packing {directory.name} as {case.experts}")
            machine.run([self.program, "pack", "--model", directory,
                         "--quantize", case.experts])
        self.commands[case] = self.command(case)

    def command(self, case):
        flags = self.model_flags(case)
        if case.limit:
            limit_bytes = self.models.limit_bytes(case)
            flags += runs.limit_flags(limit_bytes)
            plan = runs.plan(self.program, flags)
            flags += ["--expert-memory", plan["largest_expert_memory"]]
        else:
            flags += ["--batch", case.batch]
        return [self.program, "bench", "model", *flags, "--prompt-tokens",
                case.prompt, "--gen", case.gen, "--rounds", 1, "--json"]

    def run(self, case, cgroup=None):
        report = json.loads(machine.run(
            self.commands[case], cgroup=cgroup, realtime=self.realtime,
            timeout=self.timeout))
        return {
            "prefill": report["prefill_tokens_per_s"]["median"],
            "decode": report["decode_tokens_per_s"]["median"],
            "disk_bytes_per_token": report["disk_bytes_per_token"],
            "peak_bytes": report["peak_memory_bytes"],
        }
