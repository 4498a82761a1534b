"""The promise of exactness, end to end: the same tokens for any number of
ranks, transport, batch, number of threads and CPU path, greedy and sampled."""

import itertools
import pathlib
import re
import sys
import unittest

import portolan

BUILD = None
PROMPTS = portolan.SOURCE / "tests" / "data" / "prompts" / "demo.jsonl"
GREEDY = ["--temperature", "0"]
SAMPLED = ["--temperature", "0.8", "--seed", "7"]
COMMON = ["--max-tokens", "24", "--ignore-eos"]


def tokens(arguments, **options):
    results = portolan.generate(BUILD, PROMPTS, COMMON + list(arguments),
                                **options)
    return [(result["id"], result["tokens"], result["text"],
             result["finish_reason"]) for result in results]


def cpu_paths():
    text = portolan.run([portolan.program(BUILD), "--version"]).stdout
    return re.search(r"kernels (.*)", text).group(1).split()


class ExactnessTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.reference = {
            mode: tokens(flags) for mode, flags in
            (("greedy", GREEDY), ("sampled", SAMPLED))}

    def check(self, arguments, **options):
        for mode, flags in (("greedy", GREEDY), ("sampled", SAMPLED)):
            with self.subTest(mode=mode, arguments=arguments, **options):
                self.assertEqual(tokens(flags + list(arguments), **options),
                                 self.reference[mode])

    def test_the_reference_says_something(self):
        for results in self.reference.values():
            self.assertEqual(len(results), 16)
            self.assertTrue(all(len(ids) == 24 for _, ids, *_ in results))
        self.assertNotEqual(self.reference["greedy"], self.reference["sampled"])

    def test_ranks_as_threads(self):
        for ranks in range(1, 6):
            self.check(["--ranks", str(ranks)])

    def test_ranks_as_processes(self):
        for ranks in range(1, 6):
            self.check([], mpi_ranks=ranks)

    def test_transports(self):
        for transport, ranks in itertools.product(("mpi", "shm"), (2, 3, 5)):
            self.check(["--transport", transport], mpi_ranks=ranks)

    def test_batches(self):
        for batch, ranks in itertools.product((1, 4, 16), (1, 2)):
            self.check(["--batch", str(batch), "--ranks", str(ranks)])

    def test_threads(self):
        for threads in (1, 2):
            self.check(["--threads", str(threads)])

    def test_prompt_chunks(self):
        for size in (1, 7):
            self.check(["--tokens-per-step", str(size)])

    def test_small_exchange_buffers_travel_in_rounds(self):
        self.check(["--exchange-memory", "64KiB", "--ranks", "2"])

    def test_cpu_paths(self):
        here = cpu_paths()
        for path in ("scalar", "avx2", "avx512", "avx512bf16", "amx"):
            with self.subTest(path=path):
                if path not in here:
                    self.skipTest(f"this CPU has no {path}")
                self.check(["--cpu", path])
                self.check([], env={"PORTOLAN_CPU": path})


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1))
    unittest.main(verbosity=2)
