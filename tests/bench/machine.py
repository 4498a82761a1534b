"""Settings of the machine that a bench changes and puts back: a memory limit
(cgroup v1 or v2), read-ahead, the page cache, real-time priority. Most need
root; what is refused is skipped and says why.

Inside unwound_by_signals() they are put back after SIGINT, SIGTERM and SIGHUP
too, and the program that run() waits for is ended."""

import contextlib
import fcntl
import mmap
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import threading
import time

# Tests put a directory of theirs in place of these.
SYS = pathlib.Path("/sys")
PROC = pathlib.Path("/proc")

DISK_BLOCK = 512 << 10
DISK_READERS = 4

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Skipped(Exception):
    """A measurement that this machine or user does not allow."""


@contextlib.contextmanager
def unwound_by_signals():
    """Inside, a signal that would end the process raises SystemExit instead, so
    that every `finally` runs; a second one does not disturb these."""
    def unwind(number, _):
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {each: signal.signal(each, unwind) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def hold_signals():
    """They wait until release_signals(): what has just been made could not be
    undone before there is a `try` around it."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def release_signals(held):
    signal.pthread_sigmask(signal.SIG_SETMASK, held)


def write(path, value):
    try:
        pathlib.Path(path).write_text(str(value))
    except OSError as error:
        raise Skipped(f"{path}: {error.strerror}") from error


@contextlib.contextmanager
def alone_in(directory):
    """Two benches would write the same models, and disturb each other's
    rounds. SystemExit where another one is at work there."""
    lock = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(
                f"{directory}: another bench is at work there; wait for its "
                "end or name another directory") from None
        yield
    finally:
        os.close(lock)


def cpu_name():
    text = (PROC / "cpuinfo").read_text()
    match = re.search(r"model name\s*:\s*(.*)", text)
    return match[1].strip() if match else "unknown CPU"


def block_device(path):
    """Where the file's disk is described: /sys/block/NAME."""
    device = os.stat(path).st_dev
    link = SYS / f"dev/block/{os.major(device)}:{os.minor(device)}"
    if not link.exists():
        raise Skipped(f"{path} is on no block device")
    place = link.resolve()
    return place if (place / "queue").exists() else place.parent


@contextlib.contextmanager
def read_ahead(path, kib):
    """Read-ahead of the file's disk, restored afterwards."""
    setting = block_device(path) / "queue" / "read_ahead_kb"
    try:
        before = setting.read_text().strip()
    except OSError as error:
        raise Skipped(f"{setting}: {error.strerror}") from error
    try:
        write(setting, kib)
        yield
    finally:
        write(setting, before)


def drop_caches():
    os.sync()
    write(PROC / "sys/vm/drop_caches", 3)


class MemoryLimit:
    """A memory cgroup with a limit, page cache included and swap excluded:
    `procs` is the file that takes pids."""

    def __init__(self, limit_bytes):
        self.limit_bytes = limit_bytes
        self.version_1, places = self.find_places()
        self.directory = self.create(places)
        self.procs = self.directory / "cgroup.procs"

    @staticmethod
    def find_places():
        """The version, and directories to make a group in: that of this
        process, so that its own limit holds as well, or one above it, where a
        group with processes may have no children with a limit (version 2)."""
        lines = (PROC / "self/cgroup").read_text().splitlines()
        own = {controller: path for _, controllers, path in
               (line.split(":", 2) for line in lines)
               for controller in controllers.split(",")}
        version_1 = "memory" in own
        root = SYS / "fs/cgroup" / ("memory" if version_1 else "")
        path = own.get("memory" if version_1 else "")
        if path is None:
            raise Skipped("this machine has no memory cgroup")
        place = root / path.strip("/")
        above = [parent for parent in place.parents
                 if parent == root or root in parent.parents]
        return version_1, [place, *above]

    def create(self, places):
        reason = f"{places[0]}: no memory cgroup can be made here"
        for place in places:
            group = place / f"portolan-bench-{os.getpid()}"
            try:
                group.mkdir()
                try:
                    self.set_limits(group)
                except BaseException:
                    group.rmdir()
                    raise
                return group
            except Skipped as error:
                reason = error
            except FileNotFoundError:
                continue
            except OSError as error:
                reason = f"{group}: {error.strerror}"
        raise Skipped(reason)

    def set_limits(self, group):
        if self.version_1:
            write(group / "memory.limit_in_bytes", self.limit_bytes)
            optional = {"memory.memsw.limit_in_bytes": self.limit_bytes,
                        "memory.swappiness": 0}
        else:
            write(group / "memory.max", self.limit_bytes)
            optional = {"memory.swap.max": 0}
        for name, value in optional.items():
            if (group / name).exists():  # not without swap in the kernel
                write(group / name, value)

    def peak(self):
        """Bytes, page cache included; None where the kernel does not tell."""
        name = "memory.max_usage_in_bytes" if self.version_1 else "memory.peak"
        try:
            return int((self.directory / name).read_text())
        except OSError:
            return None

    def remove(self):
        for _ in range(50):  # the kernel needs a moment after the last process
            try:
                self.directory.rmdir()
                return
            except OSError:
                time.sleep(0.1)


@contextlib.contextmanager
def memory_limit(limit_bytes):
    held, group = hold_signals(), None
    try:
        group = MemoryLimit(limit_bytes)
        release_signals(held)
        yield group
    finally:
        release_signals(held)
        if group is not None:
            group.remove()


def disk_rate(file, seconds=2.0):
    """Bytes per second that the file's disk gives to four readers of 512 KiB at
    random places, past the page cache."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        raise Skipped(
            f"{file}: {error.strerror} past the page cache") from error
    blocks = os.fstat(fd).st_size // DISK_BLOCK
    end = time.monotonic() + seconds
    counts = [0] * DISK_READERS

    def read(reader):
        chance = random.Random(reader)
        buffer = mmap.mmap(-1, DISK_BLOCK)
        while time.monotonic() < end:
            os.preadv(fd, [buffer], DISK_BLOCK * chance.randrange(blocks))
            counts[reader] += 1

    readers = [threading.Thread(target=read, args=(i,))
               for i in range(DISK_READERS)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    os.close(fd)
    return sum(counts) * DISK_BLOCK / seconds


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
    fields = (PROC / "stat").read_text().split("\n", 1)[0].split()
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
    """Runs a program, inside a MemoryLimit if one is given; returns its
    standard output. It ends with this call, whatever ends the call."""

    def prepare():
        release_signals(held)
        if cgroup is not None:
            cgroup.procs.write_text(str(os.getpid()))
        if realtime:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(realtime))

    held, process = hold_signals(), None
    try:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, preexec_fn=prepare)
        release_signals(held)
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Skipped(f"no end after {timeout} s") from None
    finally:
        release_signals(held)
        if process is not None and process.returncode is None:
            process.kill()
            process.communicate()
    if process.returncode != 0:
        last = err.strip().splitlines()[-1:] or [f"exit {process.returncode}"]
        raise Skipped(last[0])
    return out
