"""portolan-launch passes the exit code of the ranks on, restarts as it is told,
and hands a wish to end on to the ranks."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

import portolan

# Ends with the exit codes in $CODES, one for each start, and notes each start.
SCRIPTED = """
echo "start $PORTOLAN_RESTART_COUNT" >> "$NOTES"
set -- $CODES
shift "$PORTOLAN_RESTART_COUNT"
exit "$1"
"""

# Ends with 0 as soon as it is told to; notes its pid and mpirun's.
DRAINS = """
trap 'exit 0' TERM
echo "$$ $PPID" > "$NOTES.new" && mv "$NOTES.new" "$NOTES"
while :; do sleep 0.05; done
"""

# Stands in for grep: the rank has ended, and mpirun with it, before the
# launcher's trap goes on.
SLOW_GREP = """#!/bin/bash
if [ -e "$NOTES" ]; then
  read -r rank mpirun < "$NOTES"
  rm "$NOTES"
  kill -TERM "$rank"
  while read -r _ _ state _ 2>/dev/null < "/proc/$mpirun/stat" &&
    [ "$state" != Z ]; do :; done
fi
exec /usr/bin/grep "$@"
"""


class LaunchTest(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.notes = pathlib.Path(self.directory.name) / "notes"

    def start(self, script, options=(), **env):
        command = [portolan.LAUNCH, *options, "--", "sh", "-c", script]
        return subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, "NOTES": str(self.notes), **env},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def codes(self, codes, *options):
        """Exit code of the launcher, and how often the program started."""
        process = self.start(SCRIPTED, ("--grace", 0, *options), CODES=codes)
        _, self.errors = process.communicate(timeout=240)
        starts = self.notes.read_text().splitlines()
        self.assertEqual(starts, [f"start {i}" for i in range(len(starts))])
        self.notes.unlink()
        return process.returncode, len(starts)

    def test_a_failure_is_restarted_until_it_ends_well(self):
        self.assertEqual(self.codes("3 1 0", "--restart", 5), (0, 3))
        self.assertIn("exit code 3, restart 1 of 5", self.errors)

    def test_restarts_end_after_the_number_given_with_the_last_code(self):
        self.assertEqual(self.codes("3 4 5 0", "--restart", 2), (5, 3))

    def test_without_restart_the_first_code_is_passed_on(self):
        self.assertEqual(self.codes("7 0"), (7, 1))

    def test_wrong_usage_is_not_restarted(self):
        self.assertEqual(self.codes("2 0", "--restart", 3), (2, 1))

    def test_a_program_that_is_not_there_is_one_line_and_exit_code_2(self):
        for program in ("/nonexistent", "no-such-program", "/tmp"):
            done = portolan.run([portolan.LAUNCH, "-np", "2", "--", program])
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertEqual(
                done.stderr, f"error: cannot run {program}: no such program, "
                "or it is not executable\n")

    def test_restart_on_requeue_restarts_after_75_only(self):
        requeue = ("--restart", 3, "--restart-on", "requeue")
        self.assertEqual(self.codes("75 0", *requeue), (0, 2))
        self.assertEqual(self.codes("75 1 0", *requeue), (1, 2))

    def wait_for_notes(self, process):
        while not self.notes.exists():
            self.assertIsNone(process.poll())

    def test_ranks_that_drain_after_a_signal_end_the_job_with_0(self):
        process = self.start(DRAINS, ("--restart", 3))
        self.wait_for_notes(process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=240)
        self.assertEqual(process.returncode, 0, errors)

    def test_the_code_counts_of_a_job_that_ends_while_the_signal_is_handled(
            self):
        grep = pathlib.Path(self.directory.name) / "grep"
        grep.write_text(SLOW_GREP)
        grep.chmod(0o755)
        process = self.start(DRAINS,
                             PATH=f"{grep.parent}:{os.environ['PATH']}")
        self.wait_for_notes(process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=240)
        self.assertFalse(self.notes.exists(), "nothing was put to the test")
        self.assertEqual(process.returncode, 0, errors)


if __name__ == "__main__":
    sys.argv.pop(1)  # the build
    unittest.main(verbosity=2)
