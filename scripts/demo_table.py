"""Prints what scripts/demo measured: one line per number of ranks."""

import json
import pathlib
import statistics
import sys


def main():
    work = pathlib.Path(sys.argv[1])
    reference = None
    print(f"{'ranks':>5} {'prompts':>8} {'tokens/s':>9} {'ttft ms':>8} "
          f"{'tokens equal':>13}")
    for ranks in (1, 2, 3):
        lines = (work / f"out-{ranks}.jsonl").read_text().splitlines()
        results = [json.loads(line) for line in lines]
        stats = json.loads((work / f"stats-{ranks}.json").read_text())
        tokens = [result["tokens"] for result in results]
        reference = reference or tokens
        ttft = statistics.median(result["ttft_s"] for result in results)
        print(f"{ranks:>5} {len(results):>8} "
              f"{stats['tokens'] / stats['seconds']:>9.1f} {1e3 * ttft:>8.1f} "
              f"{'yes' if tokens == reference else 'NO':>13}")
        if tokens != reference:
            sys.exit("error: the ranks disagree")


if __name__ == "__main__":
    main()
