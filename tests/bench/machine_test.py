"""What machine.py changes is put back, whatever ends the bench: on directories
that stand for /sys and /proc."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import machine  # noqa: E402


class FakeMachine:
    """The parts of /sys and /proc that machine.py touches, in `root`, and a
    file on the disk that they describe. `version`: of cgroups."""

    def __init__(self, root, version=1):
        self.sys, self.proc = root / "sys", root / "proc"
        self.file = root / "file"
        self.file.write_text("x")
        self.read_ahead = self.sys / "block/vda/queue/read_ahead_kb"
        self.read_ahead.parent.mkdir(parents=True)
        self.read_ahead.write_text("4096\n")
        device = self.file.stat().st_dev
        link = self.sys / f"dev/block/{os.major(device)}:{os.minor(device)}"
        link.parent.mkdir(parents=True)
        link.symlink_to(self.sys / "block/vda")
        controller = "memory" if version == 1 else ""
        self.cgroups = self.sys / "fs/cgroup" / controller / "job"
        self.cgroups.mkdir(parents=True)
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/cgroup").write_text(
            f"2:cpu:/elsewhere\n0:{controller}:/job\n")

    @contextlib.contextmanager
    def in_place(self):
        """The kernel removes the files of a cgroup by itself."""
        with mock.patch.multiple(machine, SYS=self.sys, PROC=self.proc), \
                mock.patch.object(pathlib.Path, "rmdir", shutil.rmtree):
            yield


class MachineTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = pathlib.Path(directory.name)

    def fake(self, version=1):
        fake = FakeMachine(self.root, version)
        place = fake.in_place()
        place.__enter__()
        self.addCleanup(place.__exit__, None, None, None)
        return fake

    def test_read_ahead_holds_inside_the_block_only(self):
        fake = self.fake()
        with machine.read_ahead(fake.file, 128):
            self.assertEqual(fake.read_ahead.read_text(), "128")
        self.assertEqual(fake.read_ahead.read_text(), "4096")

    def test_it_is_put_back_after_an_error_too(self):
        fake = self.fake()
        with self.assertRaises(KeyError):
            with machine.read_ahead(fake.file, 128):
                raise KeyError
        self.assertEqual(fake.read_ahead.read_text(), "4096")

    def test_a_limit_is_a_group_below_the_own_one(self):
        fake = self.fake()
        with machine.memory_limit(1000) as group:
            self.assertEqual(group.directory.parent, fake.cgroups)
            self.assertEqual(
                (group.directory / "memory.limit_in_bytes").read_text(), "1000")
            (group.directory / "memory.max_usage_in_bytes").write_text("900\n")
            self.assertEqual(group.peak(), 900)
        self.assertEqual(list(fake.cgroups.iterdir()), [])

    def test_version_2_excludes_swap(self):
        fake = self.fake(version=2)
        group = fake.cgroups / f"portolan-bench-{os.getpid()}"
        with mock.patch.object(pathlib.Path, "exists", return_value=True):
            with machine.memory_limit(1000):
                self.assertEqual((group / "memory.max").read_text(), "1000")
                self.assertEqual((group / "memory.swap.max").read_text(), "0")
        self.assertFalse(group.exists())

    def test_where_the_own_group_is_out_of_sight_the_next_above_serves(self):
        fake = self.fake()
        fake.cgroups.rmdir()
        with machine.memory_limit(1000) as group:
            self.assertEqual(group.directory.parent, fake.cgroups.parent)

    def test_what_is_refused_says_why_and_leaves_nothing(self):
        fake = self.fake()
        refusal = OSError(13, "Permission denied")
        with mock.patch.object(pathlib.Path, "write_text", side_effect=refusal):
            with self.assertRaisesRegex(
                    machine.Skipped, "limit_in_bytes: Permission denied"):
                with machine.memory_limit(1000):
                    self.fail("there is no limit")
            with self.assertRaisesRegex(
                    machine.Skipped, "read_ahead_kb: Permission denied"):
                with machine.read_ahead(fake.file, 128):
                    self.fail("nothing was set")
            with self.assertRaisesRegex(
                    machine.Skipped, "drop_caches: Permission denied"):
                machine.drop_caches()
        self.assertEqual(list(fake.cgroups.iterdir()), [])

    def test_without_a_memory_controller_there_is_a_reason(self):
        fake = self.fake()
        (fake.proc / "self/cgroup").write_text("1:cpu:/\n")
        with self.assertRaisesRegex(machine.Skipped, "no memory cgroup"):
            machine.MemoryLimit(1000)

    def test_a_program_that_fails_is_skipped_with_its_last_line(self):
        with self.assertRaisesRegex(machine.Skipped, "^no such model$"):
            machine.run(["sh", "-c", "echo busy >&2; echo no such model >&2; "
                         "exit 1"])

    def test_one_that_takes_too_long_is_ended(self):
        with self.assertRaisesRegex(machine.Skipped, "no end after 0.01 s"):
            machine.run(["sleep", "1000"], timeout=0.01)


BENCH = """
import pathlib, shutil, sys
sys.path.insert(0, {here!r})
import machine
machine.SYS, machine.PROC = map(pathlib.Path, ({sys!r}, {proc!r}))
pathlib.Path.rmdir = shutil.rmtree
with machine.unwound_by_signals(), machine.read_ahead({file!r}, 128), \\
        machine.memory_limit(1000) as group:
    machine.run(["sh", "-c", "echo $$ > {fifo}; exec sleep 1000"], cgroup=group)
"""


class SignalTest(unittest.TestCase):
    """A bench that waits for its program inside a limit."""

    def ended_by(self, number):
        with tempfile.TemporaryDirectory() as name:
            root = pathlib.Path(name)
            fake = FakeMachine(root)
            fifo = root / "fifo"
            os.mkfifo(fifo)
            bench = subprocess.Popen([sys.executable, "-c", BENCH.format(
                here=str(HERE), sys=str(fake.sys), proc=str(fake.proc),
                file=str(fake.file), fifo=fifo)])
            program = int(fifo.read_text())
            self.assertEqual(fake.read_ahead.read_text(), "128")
            self.assertNotEqual(list(fake.cgroups.iterdir()), [])

            bench.send_signal(number)

            self.assertEqual(bench.wait(timeout=30), 128 + number)
            self.assertEqual(fake.read_ahead.read_text(), "4096")
            self.assertEqual(list(fake.cgroups.iterdir()), [])
            with self.assertRaises(ProcessLookupError):
                os.kill(program, 0)

    def test_sigterm_puts_settings_back_and_ends_the_program(self):
        self.ended_by(signal.SIGTERM)

    def test_sigint_and_sighup_do_so_too(self):
        self.ended_by(signal.SIGINT)
        self.ended_by(signal.SIGHUP)


class AloneTest(unittest.TestCase):
    def test_a_second_bench_in_the_directory_is_refused_until_the_first_ends(
            self):
        with tempfile.TemporaryDirectory() as name:
            with machine.alone_in(name):
                with self.assertRaisesRegex(SystemExit, f"{name}: another"):
                    with machine.alone_in(name):
                        pass
            with machine.alone_in(name):
                pass


if __name__ == "__main__":
    unittest.main()
