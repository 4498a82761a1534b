"""Settings of the machine that a bench changes and puts back: a memory limit
(cgroup v1 or v2), read-ahead, the page cache, real-time priority. Most need
root; what is refused is skipped and says why."""

import contextlib
import os
import pathlib
import re
import resource
import signal
import subprocess
import time


class Skipped(Exception):
    """A measurement that this machine or user does not allow."""


def write(path, value):
    try:
        pathlib.Path(path).write_text(str(value))
    except OSError as error:
        raise Skipped(f"{path}: {error.strerror}") from error


def cpu_name():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    match = re.search(r"model name\s*:\s*(.*)", text)
    return match[1].strip() if match else "unknown CPU"


def block_device(path):
    """Where the file's disk is described: /sys/block/NAME."""
    device = os.stat(path).st_dev
    link = pathlib.Path(
        f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not link.exists():
        raise Skipped(f"{path} is on no block device")
    place = link.resolve()
    return place if (place / "queue").exists() else place.parent


@contextlib.contextmanager
def read_ahead(path, kib):
    """Read-ahead of the file's disk, restored afterwards."""
    setting = block_device(path) / "queue" / "read_ahead_kb"
    before = setting.read_text().strip()
    write(setting, kib)
    try:
        yield
    finally:
        write(setting, before)


def drop_caches():
    os.sync()
    write("/proc/sys/vm/drop_caches", 3)


@contextlib.contextmanager
def memory_limit(limit_bytes):
    """A cgroup of this name and limit; yields the file that takes pids."""
    name = f"portolan-bench-{os.getpid()}"
    root = pathlib.Path("/sys/fs/cgroup")
    version_1 = (root / "memory" / "memory.limit_in_bytes").exists()
    group = (root / "memory" if version_1 else root) / name
    try:
        group.mkdir()
    except OSError as error:
        raise Skipped(f"{group}: {error.strerror}") from error
    try:
        file = "memory.limit_in_bytes" if version_1 else "memory.max"
        write(group / file, limit_bytes)
        yield group / "cgroup.procs"
    finally:
        for _ in range(50):  # the kernel needs a moment after the last process
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def realtime_allowed(priority):
    """None, or why real-time priority is refused."""
    pid = os.fork()
    if pid == 0:
        try:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if code == 0 else os.strerror(code)


def busy_seconds():
    """CPU time that the whole machine has spent so far, stolen time included;
    and what of it the finished children of this process took."""
    fields = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
    ticks = user + nice + system + irq + softirq + steal
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (ticks / os.sysconf("SC_CLK_TCK"), own.ru_utime + own.ru_stime)


class OtherLoad:
    """`share`: of the machine's CPUs that others used inside the block."""

    share = 0.0

    def __enter__(self):
        self.start = time.perf_counter(), busy_seconds()
        return self

    def __exit__(self, *_):
        start, (busy, own) = self.start
        now_busy, now_own = busy_seconds()
        available = (time.perf_counter() - start) * os.cpu_count()
        others = now_busy - busy - (now_own - own)
        self.share = max(others / available, 0.0)


def run(command, cgroup=None, realtime=0, timeout=None):
    """Runs a program; returns its standard output."""

    def prepare():
        if cgroup is not None:
            with open(cgroup, "w") as file:
                file.write(str(os.getpid()))
        if realtime:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(realtime))

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=prepare)
    out, err = "", ""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        raise Skipped(f"no end after {timeout} s") from None
    if process.returncode != 0:
        last = err.strip().splitlines()[-1:] or [f"exit {process.returncode}"]
        raise Skipped(last[0])
    return out
