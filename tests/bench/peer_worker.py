#!/usr/bin/env python3
"""What the interpreter of a peer's environment does for peer_llama.py: one
task, given as JSON in the first argument; the answer is one line of JSON on
standard output.

  {"task": "about"}
  {"task": "quantize", "from": FILE, "to": FILE, "type": "Q8_0", "threads": N}
  {"task": "run", "gguf": FILE, "threads": N, "prompt": TOKENS, "gen": TOKENS,
   "batch": SEQUENCES, "realtime": PRIORITY}
"""

import ctypes
import glob
import json
import os
import random
import re
import subprocess
import sys
import time

# A program that aborts says why in its last line, not a debugger's.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

try:
    import llama_cpp as package
    from llama_cpp import llama_cpp as peer
except ImportError:  # the environment of ik-llama-cpp-python
    import ik_llama_cpp as package
    from ik_llama_cpp import _ctypes_api as peer

CONTEXT = ctypes.c_void_p
LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p,
                                ctypes.c_void_p)


def call(name, *arguments, types=(), result=None):
    """For functions of the C interface that not every package binds."""
    function = getattr(ctypes.CDLL(peer._lib._name), name)
    function.argtypes, function.restype = types, result
    return function(*arguments)


def forget(context):
    """Empties the cache of keys and values."""
    if hasattr(peer, "llama_memory_clear"):
        peer.llama_memory_clear(peer.llama_get_memory(context), True)
    else:
        peer.llama_kv_cache_clear(context)


def finish(context):
    call("llama_synchronize", context, types=[CONTEXT])


def compiler_of_library():
    """What the library tells of its compiler by the OpenMP that it needs, for
    an environment that peer_llama.py did not build."""
    directory = os.path.join(os.path.dirname(package.__file__), "lib")
    for library in sorted(glob.glob(os.path.join(directory, "libggml*.so"))):
        out = subprocess.run(
            ["readelf", "-d", library],
            capture_output=True, text=True, check=False).stdout
        if "libomp" in out:
            return "some clang (it needs LLVM's OpenMP)"
        if "libgomp" in out:
            return "some gcc (it needs GNU's OpenMP)"
    return "unknown"


def about():
    peer.llama_backend_init()
    return {
        "version": package.__version__,
        "compiler": compiler_of_library(),
        "system": call("llama_print_system_info",
                       result=ctypes.c_char_p).decode().strip(),
    }


def quantize(task):
    params = peer.llama_model_quantize_default_params()
    params.ftype = getattr(peer, "LLAMA_FTYPE_MOSTLY_" + task["type"])
    params.nthread = task["threads"]
    failed = peer.llama_model_quantize(
        task["from"].encode(), task["to"].encode(), ctypes.byref(params))
    if failed:
        raise SystemExit(f"quantising {task['from']} failed: {failed}")
    return {}


def disk_bytes_read():
    """From the disk, by this process: page faults and read-ahead included."""
    try:
        with open("/proc/self/io") as file:
            return int(re.search(r"^read_bytes: (\d+)", file.read(), re.M)[1])
    except (OSError, TypeError):
        return None


def peak_memory():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1]) * 1024


class Runner:
    def __init__(self, task):
        self.prompt, self.gen = task["prompt"], task["gen"]
        self.batch = task["batch"]
        peer.llama_backend_init()
        self.model = peer.llama_model_load_from_file(
            task["gguf"].encode(), peer.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"cannot load {task['gguf']}")
        params = peer.llama_context_default_params()
        params.n_ctx = (self.prompt + self.gen) * self.batch + 32 * self.batch
        params.n_batch = max(512, self.batch)
        params.n_ubatch = 512
        params.n_seq_max = self.batch
        params.n_threads = params.n_threads_batch = task["threads"]
        if hasattr(params, "kv_unified"):
            params.kv_unified = False
        elif self.batch > 1:
            # In the fork's one cache for all, its flash attention stops at
            # blocks of keys that belong to other sequences only.
            params.flash_attn = False
        self.context = peer.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("the peer refuses this context")
        self.vocab = peer.llama_vocab_n_tokens(
            peer.llama_model_get_vocab(self.model))
        self.chance = random.Random(1)
        self.tokens_of_batch = peer.llama_batch_init(params.n_batch, 0, 1)

    def decode(self, rows):
        """rows: (sequence, position, wants logits)."""
        batch = self.tokens_of_batch
        batch.n_tokens = len(rows)
        for i, (sequence, position, logits) in enumerate(rows):
            batch.token[i] = self.tokens[sequence][position]
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
        if peer.llama_decode(self.context, batch) != 0:
            raise SystemExit("the peer failed to decode")

    def draw_tokens(self):
        """Others in each round: in a cache that is too small, those of the last
        round would find just the experts that they left there."""
        self.tokens = [
            [self.chance.randrange(self.vocab)
             for _ in range(self.prompt + self.gen)]
            for _ in range(self.batch)]

    def round(self):
        forget(self.context)
        self.draw_tokens()
        start = time.perf_counter()
        for sequence in range(self.batch):
            for first in range(0, self.prompt, 512):
                end = min(first + 512, self.prompt)
                self.decode([(sequence, p, p + 1 == self.prompt)
                             for p in range(first, end)])
        finish(self.context)
        prefilled, read = time.perf_counter(), disk_bytes_read()
        for step in range(self.gen):
            self.decode([(s, self.prompt + step, True)
                         for s in range(self.batch)])
        finish(self.context)
        end = time.perf_counter()
        tokens = self.batch * self.gen
        result = {
            "prefill": self.batch * self.prompt / (prefilled - start),
            "decode": tokens / (end - prefilled),
        }
        if read is not None:
            result["disk_bytes_per_token"] = (disk_bytes_read() - read) / tokens
        return result


def run(task):
    if task.get("realtime"):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(task["realtime"]))
    runner = Runner(task)
    runner.round()  # warms up, as Portolan's bench does
    return {**runner.round(), "peak_bytes": peak_memory()}


def main():
    task = json.loads(sys.argv[1])
    quiet = LOG_CALLBACK(lambda *_: None)
    call("llama_log_set", quiet, None, types=[LOG_CALLBACK, ctypes.c_void_p])
    answer = {
        "about": lambda _: about(), "quantize": quantize, "run": run,
    }[task["task"]](task)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
