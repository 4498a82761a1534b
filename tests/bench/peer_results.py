"""What peer_llama.py has measured: a file of JSON lines, and its tables."""

import json
import statistics
import sys

OURS = "Portolan"
TITLES = ["ratio", "other load", "peak memory"]
DISK_TITLES = ["disk in decode", "disk before"]


class Results:
    """Lines of JSON: what ran on which machine, then one line a round. Opening
    a file that is there goes on with it."""

    def __init__(self, path):
        self.path = path
        self.lines = []
        if path.exists():
            self.lines = [json.loads(line)
                          for line in path.read_text().splitlines()]

    def add(self, entry):
        self.lines.append(entry)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if "case" in entry:
            value = entry.get("skipped") or f"{entry[entry['phase']]:.2f} tok/s"
            print(f"{entry['case']:16} {entry['program']:12} {value}",
                  file=sys.stderr, flush=True)

    def rounds(self, case, kib):
        """That are complete: Portolan has its line."""
        return len(self.of(case, OURS, kib))

    def of(self, case, program, kib):
        return [line for line in self.lines
                if line.get("case") == case and line["program"] == program
                and line["read_ahead"] == kib]

    def values(self, case, program, kib, key):
        return [line[key] for line in self.of(case, program, kib)
                if line.get(key) is not None]


class Tables:
    """One of the measurements in memory and one of those under a limit, each
    with the programs that took part."""

    def __init__(self, results):
        self.results = results

    def text(self):
        measured = [line for line in self.results.lines if "case" in line]
        parts = [[line for line in measured if line["read_ahead"] is None],
                 [line for line in measured if line["read_ahead"] is not None]]
        tables = [Table(self.results, part) for part in parts if part]
        return "\n".join([*self.head(),
                          "\n\n".join(table.text() for table in tables)])

    def head(self):
        """Each command with what ran, said once where it is the same."""
        told = None
        for line in self.results.lines:
            if "command" not in line:
                continue
            yield f"    {line['command']}"
            if line["about"] != told:
                told = line["about"]
                yield from ["", *(f"- {fact}" for fact in told), ""]
        yield ""


class Table:
    def __init__(self, results, measured):
        self.results = results
        self.limited = measured[0]["read_ahead"] is not None
        self.peers = list(dict.fromkeys(
            line["program"] for line in measured if line["program"] != OURS))
        self.programs = [*self.peers, OURS]
        self.cases = list(dict.fromkeys(
            (line["case"], line["read_ahead"], line["phase"])
            for line in measured))

    def text(self):
        titles = ["tokens/s", *self.programs, *TITLES,
                  *(DISK_TITLES if self.limited else [])]
        return "\n".join([table_row(titles), "|" + "---|" * len(titles),
                          *self.rows()])

    def rows(self):
        for case, kib, phase in self.cases:
            if "tg128" in case:
                yield self.row(case.replace("tg", "pp"), case, kib, "prefill")
            name = case if kib is None else f"{case}, read-ahead {kib} KiB"
            yield self.row(name, case, kib, phase)

    def row(self, name, case, kib, phase):
        def each(describe, programs=self.programs):
            return " / ".join(describe(case, program, kib)
                              for program in programs)

        def ratio(case, program, kib):
            ours, theirs = (self.results.values(case, who, kib, phase)
                            for who in (OURS, program))
            if not ours or not theirs:
                return "-"
            return f"{statistics.median(ours) / statistics.median(theirs):.2f}"

        cells = [self.speed(case, program, kib, phase)
                 for program in self.programs]
        disk = ([each(self.disk), each(self.disk_before)] if self.limited
                else [])
        return table_row([name, *cells, each(ratio, self.peers),
                          each(self.load) + " %", each(self.peak) + " MB",
                          *disk])

    def speed(self, case, program, kib, phase):
        values = self.results.values(case, program, kib, phase)
        if not values:
            reasons = self.results.values(case, program, kib, "skipped")
            return f"- ({reasons[-1] if reasons else 'not run'})"
        digits = 2 if statistics.median(values) < 10 else 1
        return (f"{statistics.median(values):.{digits}f} "
                f"[{min(values):.{digits}f}-{max(values):.{digits}f}]")

    def load(self, *where):
        values = self.results.values(*where, "other_load")
        return f"{100 * statistics.median(values):.0f}" if values else "-"

    def peak(self, *where):
        values = self.results.values(*where, "peak_bytes")
        return f"{max(values) / 1e6:.0f}" if values else "-"

    def disk(self, *where):
        rounds = [line for line in self.results.of(*where)
                  if line.get("disk_bytes_per_token") is not None]
        if not rounds:
            return "-"
        per_token = statistics.median(
            line["disk_bytes_per_token"] for line in rounds)
        rates = ", ".join(
            f"{line['disk_bytes_per_token'] * line['decode'] / 1e9:.2f}"
            for line in rounds)
        return f"{per_token / 1e6:.1f} MB/token; {rates} GB/s"

    def disk_before(self, *where):
        rates = self.results.values(*where, "disk_rate")
        if not rates:
            return "-"
        return ", ".join(f"{rate / 1e9:.2f}" for rate in rates) + " GB/s"


def table_row(cells):
    return "| " + " | ".join(cells) + " |"
