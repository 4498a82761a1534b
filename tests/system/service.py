"""Starts coordinators, jobs and whole services for the system tests, each in a
directory and with processes of its own."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import grpc
from portolan_client import Client, PortolanError

import portolan

START_S = 120  # a loaded machine may take its time


class Program:
    """A process in a session of its own, whose output goes to a file."""

    def __init__(self, command, log, env=None):
        self.command = [str(part) for part in command]
        self.log = pathlib.Path(log)
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                self.command, stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, **(env or {})})

    @property
    def pid(self):
        return self.process.pid

    def output(self):
        return self.log.read_text(errors="replace")

    def running(self):
        return self.process.poll() is None

    def signal(self, number):
        if self.running():
            self.process.send_signal(number)

    def wait(self, timeout=START_S):
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command[:3]} does not end:\n"
                                 f"{self.output()[-4000:]}") from None

    def stop(self):
        """SIGTERM, and SIGKILL to what is left of its descendants."""
        family = descendants(self.pid)
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            pass
        for pid in [*family, self.pid] if self.running() else family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(15)


class Coordinator(Program):
    """`portolan coordinator` on a port that stays the same when it starts
    again."""

    def __init__(self, build, directory, *options, port=0, env=None):
        self.build = build
        self.directory = pathlib.Path(directory)
        self.options = options
        self.data = self.directory / "coordinator"
        self.directory.mkdir(exist_ok=True)
        (self.data / "endpoint.json").unlink(missing_ok=True)
        super().__init__(
            [portolan.program(build), "coordinator", "--listen",
             f"localhost:{port}", "--data-dir", self.data, *options],
            self.directory / "coordinator.log", env)
        self.address = wait_for_endpoint(self.data, self)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.wait()

    def again(self):
        """A new process with the old port and data."""
        return Coordinator(self.build, self.directory, *self.options,
                           port=self.address.rsplit(":", 1)[1])


class Job(Program):
    """`portolan worker` as MPI ranks under a supervisor that starts them again
    when they fail."""

    def __init__(self, build, directory, address, *options, ranks=2,
                 restarts=0, env=None):
        super().__init__(
            [portolan.LAUNCH, "-np", ranks, "--restart", restarts, "--",
             portolan.program(build), "worker", "--model", portolan.MODEL,
             "--coordinator", address, *options],
            pathlib.Path(directory) / "job.log", env)

    def ranks(self):
        """Pids of the ranks that live at present."""
        return [pid for pid in descendants(self.pid)
                if name_of(pid) == "portolan"]


class Service(Job):
    """`portolan serve` as MPI ranks: a job with its own coordinator."""

    def __init__(self, build, directory, *options, ranks=2, restarts=0,
                 port=0, model=portolan.MODEL, env=None):
        self.data = pathlib.Path(directory) / "serve"
        (self.data / "endpoint.json").unlink(missing_ok=True)
        Program.__init__(
            self,
            [portolan.LAUNCH, "-np", ranks, "--restart", restarts, "--",
             portolan.program(build), "serve", "--model", model, "--listen",
             f"localhost:{port}", "--data-dir", self.data, *options],
            pathlib.Path(directory) / "serve.log", env)
        self.address = wait_for_endpoint(self.data, self)


class ScriptedJob:
    """Ranks of a formula, one process each; what a test kills starts again."""

    def __init__(self, build, directory, address, *options, ranks=2):
        self._directory = pathlib.Path(directory)
        self._commands = [
            [sys.executable, pathlib.Path(__file__).with_name(
                "scripted_rank.py"), pathlib.Path(build) / "clients" / "python",
             address, "--job", "scripted", "--rank", rank, "--world-size",
             ranks, *options] for rank in range(ranks)]
        self._programs = [None] * ranks
        self.start_missing()

    def start_missing(self):
        for rank, program in enumerate(self._programs):
            if program is None or not program.running():
                self._programs[rank] = Program(
                    self._commands[rank], self._directory / f"rank{rank}.log")

    def ranks(self):
        return [program.pid for program in self._programs if program.running()]

    def output(self):
        return "".join(program.output() for program in self._programs)

    def stop(self):
        for program in self._programs:
            program.signal(signal.SIGKILL)
            program.wait()


def has_worker(build):
    """Whether this build can run ranks that attach to a coordinator."""
    commands = portolan.run([portolan.program(build), "--help"]).stdout
    return re.search(r"(?m)^ +worker ", commands) is not None


def wait_for_endpoint(data, program):
    """The address that a coordinator has written into its directory."""
    path = pathlib.Path(data) / "endpoint.json"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and program.running():
        try:
            address = json.loads(path.read_text())["address"]
            if not address.endswith(":0"):
                return address
        except (OSError, ValueError, KeyError):
            pass
        time.sleep(0.02)
    raise AssertionError(f"{program.command[:3]} did not start:\n"
                         f"{program.output()[-4000:]}")


def wait_for_ranks(client, number, program, timeout=START_S):
    """Until so many ranks are attached and take requests."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            ready = [rank for rank in client.stats().ranks
                     if not rank.draining and rank.silent_s < 5]
            if len(ready) >= number:
                return
        except PortolanError as error:
            if error.code != grpc.StatusCode.UNAVAILABLE:
                raise
        time.sleep(0.05)
    raise AssertionError(f"not {number} ranks:\n{program.output()[-4000:]}")


def wait_until(condition, timeout=30, what="the condition"):
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true in {timeout} s")
        time.sleep(0.01)


def descendants(pid):
    """Pids of all living descendants."""
    children = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, [])]
        found.extend(new)
    return found


def name_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def command_of(pid):
    """Which of portolan's commands a process runs."""
    words = pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return words[1] if len(words) > 1 else name_of(pid)


def cpu_seconds(pid):
    """User and system time that a process has used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(
        ")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid):
    text = pathlib.Path(f"/proc/{pid}/statm").read_text().split()
    return int(text[1]) * os.sysconf("SC_PAGE_SIZE")


def client(address, **options):
    return Client(address, **{"retry_for": 300, **options})


def read_prompts(path):
    return [json.loads(line) for line in
            pathlib.Path(path).read_text().splitlines() if line.strip()]


SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed",
            "stop")


def sampling_of(prompt):
    """The fields of a line of prompts that are parameters of a request."""
    return {name: prompt[name] for name in SAMPLING if name in prompt}


def references(build, prompts, directory):
    """What `portolan generate` makes of prompts: {id: (tokens, text,
    finish reason)}."""
    path = pathlib.Path(directory) / "reference.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    results = portolan.generate(build, path, [], timeout=600)
    return {result["id"]: (tuple(result["tokens"]), result["text"],
                           result["finish_reason"]) for result in results}
