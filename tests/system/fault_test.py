"""A rank that dies, stops, fails or lies ends the job on every rank with one
named error, within seconds; a short pause raises no alarm."""

import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import portolan

BUILD = None
PROMPTS = portolan.SOURCE / "tests" / "data" / "prompts" / "demo.jsonl"
PHASES = ("step record", "header", "payload", "compute", "combine")


def command(ranks, extra=(), model=None, prompts=PROMPTS):
    """`generate` under portolan-launch."""
    generate = [portolan.program(BUILD), "generate", "--prompts", prompts,
                "--temperature", "0", "--max-tokens", "64", "--ignore-eos",
                "--format", "jsonl", *extra]
    if model != "":  # "": the environment says
        generate += ["--model", model or portolan.MODEL]
    return [str(part) for part in
            (portolan.LAUNCH, "-np", ranks, "--", *generate)]


def job(ranks, fault=None, extra=(), model=None, env=None, rank_1="",
        rank_1_first="", prompts=PROMPTS):
    """Starts a job. `rank_1`: shell assignments of variables that only rank 1
    sees; `rank_1_first`: what its shell does before."""
    parts = command(ranks, extra, model, prompts)
    if rank_1:
        rank_1_first = f"export {rank_1}"
    if rank_1_first:
        at = parts.index("--") + 1
        parts[at:at] = ["sh", "-c", 'if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then '
                        f'{rank_1_first}; fi; exec "$0" "$@"']
    full_env = dict(os.environ)
    full_env.update(env or {})
    if fault:
        full_env["PORTOLAN_FAULT"] = fault
    return subprocess.Popen(parts, env=full_env, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


class Ends:
    """When each process of a list ends."""

    def __init__(self, pids):
        self.poll = select.poll()
        self.fds = {}
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            self.fds[fd] = pid
            self.poll.register(fd, select.POLLIN)

    def wait(self, seconds):
        """Waits for all of them; returns those that still run."""
        deadline = time.monotonic() + seconds
        running = dict(self.fds)
        while running and time.monotonic() < deadline:
            left = max(0, deadline - time.monotonic())
            for fd, _ in self.poll.poll(1000 * left):
                self.poll.unregister(fd)
                running.pop(fd)
        for fd in self.fds:
            os.close(fd)
        return list(running.values())


class FaultTest(unittest.TestCase):
    def check_killed(self, phase, transport):
        process = job(3, f"rank=1,phase={phase},step=6,do=kill",
                      ["--transport", transport])
        output = []
        drain = threading.Thread(
            target=lambda: output.append(process.stdout.read()))
        drain.start()
        lines = []
        ranks = None
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if ranks is None and line.startswith("fault: rank 1: kill"):
                ranks = Ends(descendants(process.pid, "portolan"))
                running = ranks.wait(5)
        process.wait(timeout=60)
        drain.join()
        text = "\n".join(lines)
        self.assertNotEqual(process.returncode, 0, text)
        self.assertIsNotNone(ranks, text)
        self.assertEqual(running, [], text)
        named = [line for line in lines
                 if "error:" in line and re.search(r"rank 1\b", line)]
        self.assertEqual(len(named), 2, text)  # ranks 0 and 2
        for line in named:
            self.assertRegex(line, r"phase `[a-z ]+` of .*step \d+")

    def test_a_killed_rank_is_named_by_all_others(self):
        for transport in ("shm", "mpi"):
            for phase in PHASES:
                with self.subTest(phase=phase, transport=transport):
                    self.check_killed(phase, transport)

    def pause_a_rank(self):
        """Runs a job of which one rank pauses; returns for how long it did."""
        process = job(2, "rank=1,phase=compute,step=5,do=stop")
        deadline = time.monotonic() + 60
        stopped = None
        while stopped is None and time.monotonic() < deadline:
            before = time.monotonic()
            stopped = stopped_descendant(process.pid)
        self.assertIsNotNone(stopped, "no rank stopped itself")
        time.sleep(0.5)
        os.kill(stopped, signal.SIGCONT)
        paused = time.monotonic() - before
        out, errors = process.communicate(timeout=120)
        return paused, process.returncode, out, errors

    def test_a_pause_of_half_a_second_raises_no_alarm(self):
        # On a busy machine a pause may become longer than intended, up to the
        # silence that is death: then it proves nothing.
        for _ in range(10):
            paused, code, out, errors = self.pause_a_rank()
            if paused < 1.5:
                break
        self.assertLess(paused, 1.5, "this machine is too busy to tell")
        self.assertEqual(code, 0, errors)
        self.assertEqual(len(out.splitlines()), 16)

    def test_a_rank_that_loads_for_20_seconds_raises_no_alarm(self):
        # Rank 1 has half of the 27 MiB of experts.
        began = time.monotonic()
        process = job(2, rank_1="PORTOLAN_EXPERT_LINK=650KB/s")
        out, errors = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, errors)
        self.assertEqual(len(out.splitlines()), 16)
        self.assertNotIn("error", errors)
        self.assertGreater(time.monotonic() - began, 20)

    def test_a_rank_that_never_starts_is_waited_for_until_the_deadline(self):
        process = job(2, extra=["--start-timeout", "3"],
                      rank_1_first="exec sleep 300")
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, errors)
        self.assertRegex(errors, r"error: rank 0 on \S+ waits in phase `start` "
                                 r"for other ranks: .*--start-timeout")

    def test_a_rank_that_ends_before_the_others_have_started_is_told(self):
        process = job(2, extra=["--start-timeout", "200"],
                      rank_1_first="sleep 3; exit 5")
        began = time.monotonic()
        _, errors = process.communicate(timeout=150)
        self.assertNotEqual(process.returncode, 0, errors)
        self.assertLess(time.monotonic() - began, 100)

    def test_a_rank_that_starts_20_seconds_late_raises_no_alarm(self):
        process = job(2, rank_1_first="sleep 20")
        out, errors = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, errors)
        self.assertEqual(len(out.splitlines()), 16)
        self.assertNotIn("error", errors)

    def test_a_healthy_step_that_loads_slowly_is_not_taken_for_a_hung_one(self):
        # Rank 1 needs seconds for the few experts of each layer.
        with tempfile.TemporaryDirectory() as directory:
            prompts = pathlib.Path(directory) / "prompts.jsonl"
            prompts.write_text(json.dumps({"id": "p", "max_tokens": 1,
                                           "prompt": "The king had"}))
            process = job(2, extra=["--step-timeout", "0.1", "--expert-memory",
                                    "25%", "--threads", "1"],
                          rank_1="PORTOLAN_EXPERT_LINK=150KB/s",
                          prompts=prompts)
            out, errors = process.communicate(timeout=300)
        self.assertEqual(process.returncode, 0, errors)
        self.assertEqual(len(out.splitlines()), 1)

    def test_a_host_without_shared_memory_is_an_error_on_every_rank(self):
        process = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
             "mount -t tmpfs -o size=64k none /dev/shm && exec \"$0\" \"$@\"",
             *command(2, ["--transport", "shm"])],
            env={**os.environ, "OMPI_MCA_btl": "tcp,self"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        _, errors = process.communicate(timeout=60)
        if "unshare: " in errors or "mount: " in errors:
            self.skipTest(f"no mount namespace here: {errors}")
        self.assertEqual(process.returncode, 1, errors)
        self.assertEqual(len(re.findall(
            r"error: rank 0 on \S+: the 2 ranks of this host cannot share "
            r"\d+ bytes of memory \(No space left on device\).*/dev/shm",
            errors)), 2, errors)

    def test_a_read_error_of_one_rank_ends_all_with_it(self):
        with tempfile.TemporaryDirectory() as directory:
            copy = pathlib.Path(directory) / "model"
            shutil.copytree(portolan.MODEL, copy)
            process = job(2, rank_1=f"PORTOLAN_MODEL={copy}", model="",
                          env={"PORTOLAN_MODEL": str(portolan.MODEL)},
                          extra=["--expert-memory", "10%", "--batch", "1",
                                 "--expert-link", "20MB/s"])
            # In the midst of it: the link lets most of it come later.
            process.stdout.readline()
            os.truncate(copy / "model.safetensors", 1 << 20)
            _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, errors)
        named = [line for line in errors.splitlines() if "error:" in line]
        self.assertEqual(len(named), 2, errors)
        for line in named:
            self.assertRegex(line, r"model\.safetensors.*file ends at byte")
        self.assertEqual(
            len([line for line in named if re.search(r"rank 1 on \S+ failed",
                                                     line)]), 1, errors)

    def test_a_damaged_header_is_named_with_its_place_on_every_rank(self):
        for phase in ("step record", "header", "combine"):
            with self.subTest(phase=phase):
                process = job(2, f"rank=1,phase={phase},step=4,do=corrupt")
                _, errors = process.communicate(timeout=60)
                self.assertNotEqual(process.returncode, 0)
                place = (rf"in phase `{phase}` of " +
                         ("" if phase == "step record" else r"layer 0, ") +
                         "step 4")
                named = [line for line in errors.splitlines()
                         if "error:" in line]
                self.assertEqual(len(named), 2, errors)
                for line in named:
                    self.assertRegex(line, r"rank 1 on \S+ sent a header with "
                                           rf".*seen by rank 0 on \S+ {place}")

    def test_another_start_of_the_job_is_refused_by_name(self):
        process = job(2, rank_1="PORTOLAN_RESTART_COUNT=7")
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, errors)
        self.assertRegex(errors, r"error: .*rank 1 on \S+ has job and restart "
                                 r"(\S+), 7 where .* have \1, 0: restart all")
        self.assertEqual(errors.count("error: "), 1, errors)

    def test_another_numerics_id_is_refused_by_name(self):
        process = job(2, env={"PORTOLAN_ODD_RANK": "1"})
        _, errors = process.communicate(timeout=60)
        self.assertNotEqual(process.returncode, 0)
        self.assertRegex(errors, r"error: .*rank 1")

    def test_an_unreadable_expert_ends_the_job_with_that_error(self):
        with tempfile.TemporaryDirectory() as directory:
            model = pathlib.Path(directory) / "model"
            shutil.copytree(portolan.MODEL, model)
            weights = model / "model.safetensors"
            os.truncate(weights, weights.stat().st_size - 100_000)
            process = job(2, model=model)
            _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, errors)
        self.assertRegex(errors, r"error: .*model\.safetensors")


def stat_of(pid):
    """(name, state, parent) of a process, or None if it has ended."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, rest = stat.split("(", 1)[1].rsplit(")", 1)
    return name, rest.split()[0], int(rest.split()[1])


def descendants(pid, name):
    """The pids of the descendants of that name."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        stat = stat_of(entry.name) if entry.name.isdigit() else None
        if stat is not None and stat[0] == name and is_descendant(
                int(entry.name), pid):
            found.append(int(entry.name))
    return found


def stopped_descendant(pid):
    """The pid of a rank that is stopped (state T), or None."""
    for rank in descendants(pid, "portolan"):
        stat = stat_of(rank)
        if stat is not None and stat[1] == "T":
            return rank
    return None


def is_descendant(pid, ancestor):
    while pid > 1:
        if pid == ancestor:
            return True
        stat = stat_of(pid)
        if stat is None:
            return False
        pid = stat[2]
    return False


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=2)
