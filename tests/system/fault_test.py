"""A rank that dies, stops, fails or lies ends the job on every rank with one
named error, within seconds; a short pause raises no alarm."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import portolan

BUILD = None
PROMPTS = portolan.SOURCE / "tests" / "data" / "prompts" / "demo.jsonl"
PHASES = ("step record", "header", "payload", "compute", "combine")


def job(ranks, fault=None, extra=(), model=None, env=None):
    command = [portolan.LAUNCH, "-np", str(ranks), "--",
               portolan.program(BUILD), "generate", "--model",
               model or portolan.MODEL, "--prompts", PROMPTS, "--temperature",
               "0", "--max-tokens", "64", "--ignore-eos", "--format", "jsonl",
               *extra]
    full_env = dict(os.environ)
    full_env.update(env or {})
    if fault:
        full_env["PORTOLAN_FAULT"] = fault
    return subprocess.Popen([str(part) for part in command], env=full_env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)


class FaultTest(unittest.TestCase):
    def check_killed(self, phase, transport):
        process = job(3, f"rank=1,phase={phase},step=6,do=kill",
                      ["--transport", transport])
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
        took = time.monotonic() - began
        self.assertNotEqual(process.returncode, 0, errors)
        named = [line for line in errors.splitlines()
                 if "error:" in line and re.search(r"rank 1\b", line)]
        self.assertGreaterEqual(len(named), 2, errors)
        for line in named:
            self.assertRegex(line, r"step \d+")
        # The whole run, start-up included, beside the promised 5 s.
        self.assertLess(took, 12, errors)

    def test_a_killed_rank_is_named_by_all_others(self):
        for transport in ("shm", "mpi"):
            for phase in PHASES:
                with self.subTest(phase=phase, transport=transport):
                    self.check_killed(phase, transport)

    def test_a_pause_of_half_a_second_raises_no_alarm(self):
        process = job(2, "rank=1,phase=compute,step=5,do=stop")
        deadline = time.monotonic() + 60
        stopped = None
        while stopped is None and time.monotonic() < deadline:
            stopped = stopped_descendant(process.pid)
        self.assertIsNotNone(stopped, "no rank stopped itself")
        time.sleep(0.5)
        os.kill(stopped, signal.SIGCONT)
        out, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, errors)
        self.assertEqual(len(out.splitlines()), 16)

    def test_a_damaged_header_is_an_error_that_names_the_sender(self):
        process = job(2, "rank=1,phase=header,step=4,do=corrupt")
        _, errors = process.communicate(timeout=60)
        self.assertNotEqual(process.returncode, 0)
        self.assertRegex(errors, r"error: .*rank 1")

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


def stopped_descendant(pid):
    """The pid of a descendant that is stopped (state T), or None."""
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue
        state = stat.rsplit(")", 1)[1].split()[0]
        if state == "T" and is_descendant(int(entry.name), pid):
            return int(entry.name)
    return None


def is_descendant(pid, ancestor):
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        pid = int(stat.rsplit(")", 1)[1].split()[1])
    return False


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=2)
