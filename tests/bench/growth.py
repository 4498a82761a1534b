#!/usr/bin/env python3
"""How Portolan's speed grows and shrinks: tokens/s against the length of the
context, the batch, the number of experts and the number of ranks.

  tests/bench/growth.py --plot growth.svg            # all four, some minutes
  tests/bench/growth.py --axes batch,ranks --results growth.jsonl
  tests/bench/growth.py --print --results growth.jsonl --plot growth.svg

The model has 4 layers, hidden size 512 and top-4 of 64 experts (32 to 256 on
the axis of experts), random weights (make_model.py, which needs numpy). Each
point is `portolan bench model`, which warms up and then measures: the median of
--rounds rounds. A step between two points that falls or rises by more than
--cliff times what the axis explains is listed as a cliff.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
from math import log

import cliffs
import machine
import make_model

SOURCE = pathlib.Path(__file__).resolve().parents[2]
SHAPE = make_model.Shape(
    layers=4, hidden=512, heads=8, kv_heads=2, head_dim=64, experts=64,
    top_k=4, intermediate=256, vocab=8192)

# By axis: the points, and what a point means for the bench.
AXES = {
    "context": [128, 256, 512, 1024, 2048, 4096, 8192],
    "batch": [1, 2, 4, 8, 16, 32, 64],
    "experts": [32, 64, 128, 256],
    "ranks": [1, 2, 3, 4],
}
LABELS = {
    "context": "tokens of context", "batch": "sequences decoded together",
    "experts": "experts of a layer (top-4)", "ranks": "ranks, one thread each",
}


def bench_arguments(axis, point, threads):
    """Flags of the point; a short prompt where the prompt is not the matter."""
    flags = {"--prompt-tokens": 64, "--gen": 32, "--batch": 1,
             "--threads": threads}
    if axis == "context":
        flags.update({"--prompt-tokens": point, "--gen": 16})
    elif axis == "batch":
        flags["--batch"] = point
    elif axis == "experts":
        flags["--batch"] = 8
    elif axis == "ranks":
        flags.update({"--ranks": point, "--threads": 1, "--batch": 4})
    return [str(word) for pair in flags.items() for word in pair]


def model_of(directory, experts):
    path = directory / f"growth-{experts}"
    # The configuration is the first file that is written, this the last.
    done = directory / f"growth-{experts}.done"
    if not done.exists():
        shape = make_model.dataclasses.replace(SHAPE, experts=experts)
        make_model.write_model(shape, hf=path)
        done.touch()
    return path


def measure(args, axis, point):
    model = model_of(args.models, point if axis == "experts" else SHAPE.experts)
    command = [args.portolan, "bench", "model", "--json", "--model", model,
               "--rounds", args.rounds,
               *bench_arguments(axis, point, args.threads)]
    report = json.loads(machine.run(command, realtime=args.realtime))
    return {
        "axis": axis, "point": point, "cpu": report["cpu"],
        "kernels": report["kernels"], "threads": report["threads"],
        "cpus": len(os.sched_getaffinity(0)),
        **{phase: report[f"{phase}_tokens_per_s"]
           for phase in ("prefill", "decode")}}


def points_of(lines, axis, phase):
    """The newest value of every point: (point, median, least, most)."""
    newest = {line["point"]: line[phase] for line in lines
              if line.get("axis") == axis}
    return [(point, value["median"], value["min"], value["max"])
            for point, value in sorted(newest.items())]


def find_cliffs(lines, factor):
    cpus = {line["axis"]: line.get("cpus", os.cpu_count()) for line in lines}
    found = []
    for axis in AXES:
        for phase in ("prefill", "decode"):
            points = [(point, median)
                      for point, median, *_ in points_of(lines, axis, phase)]
            found += cliffs.find(axis, phase, points, factor, cpus.get(axis))
    return found


def print_table(lines):
    for axis in AXES:
        for phase in ("prefill", "decode"):
            points = points_of(lines, axis, phase)
            if not points:
                continue
            cells = [f"{point}: {value:.0f} [{least:.0f}-{most:.0f}]"
                     for point, value, least, most in points]
            print(f"{axis:8} {phase:8} {'  '.join(cells)}")


class Plot:
    """Four panels of lines, both scales logarithmic."""

    WIDTH, HEIGHT, MARGIN = 420, 300, 55
    COLOURS = {"prefill": "#b5651d", "decode": "#1f5fa8"}

    def __init__(self):
        self.parts = []

    def panel(self, column, row, axis, series):
        values = [v for points in series.values() for _, v, *_ in points]
        at = [p for points in series.values() for p, *_ in points]
        low, high = min(values) / 1.3, max(values) * 1.3
        left = column * self.WIDTH + self.MARGIN
        top = row * self.HEIGHT + 30
        wide, tall = self.WIDTH - self.MARGIN - 15, self.HEIGHT - 85

        def place(x, y):
            span = log(max(at) / min(at)) or 1
            return (left + wide * log(x / min(at)) / span,
                    top + tall * (1 - log(y / low) / log(high / low)))

        self.parts.append(
            f'<rect x="{left}" y="{top}" width="{wide}" height="{tall}" '
            'fill="none" stroke="#999"/>')
        self.text(left + wide / 2, top + tall + 38, LABELS[axis], "middle")
        for point in sorted(set(at)):
            x, _ = place(point, low)
            self.text(x, top + tall + 16, point, "middle")
        self.text(left - 6, top + tall, f"{low:.0f}", "end")
        self.text(left - 6, top + 10, f"{high:.0f}", "end")
        for number, (phase, points) in enumerate(series.items()):
            colour = self.COLOURS[phase]
            line = " ".join("{:.1f},{:.1f}".format(*place(p, v))
                            for p, v, *_ in points)
            self.parts.append(f'<polyline points="{line}" fill="none" '
                              f'stroke="{colour}" stroke-width="2"/>')
            for point, value, least, most in points:
                x, y = place(point, value)
                y1, y2 = place(point, least)[1], place(point, most)[1]
                self.parts.append(
                    f'<path d="M{x:.1f} {y1:.1f}V{y2:.1f}" '
                    f'stroke="{colour}"/><circle cx="{x:.1f}" cy="{y:.1f}" '
                    f'r="3" fill="{colour}"/>')
            self.text(left + 8, top + 16 + 15 * number, f"{phase} tokens/s",
                      "start", colour)

    def text(self, x, y, words, anchor, colour="#333"):
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
            f'fill="{colour}">{words}</text>')

    def write(self, path, title):
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" '
                f'width="{2 * self.WIDTH}" height="{2 * self.HEIGHT + 10}" '
                'font-family="sans-serif" font-size="12">'
                '<rect width="100%" height="100%" fill="white"/>'
                f'<text x="10" y="18">{title}</text>')
        path.write_text(head + "\n".join(self.parts) + "</svg>\n")


def write_plot(lines, path):
    plot = Plot()
    for number, axis in enumerate(AXES):
        series = {phase: points_of(lines, axis, phase)
                  for phase in ("prefill", "decode")}
        if series["decode"]:
            plot.panel(number % 2, number // 2, axis, series)
    first = lines[0]
    plot.write(path, f"Portolan, {first['cpu']}, {first['kernels']} kernels, "
                     f"{first['threads']} threads unless said otherwise")


def positive(text):
    number = int(text)
    if number < 1:
        raise ValueError
    return number


positive.__name__ = "whole number above 0"  # in messages of argparse


def arguments(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default=",".join(AXES))
    parser.add_argument("--points", help="only these, of a single axis")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE.svg")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--cliff", type=float, default=1.5)
    parser.add_argument("--realtime", type=int, default=0, metavar="PRIORITY",
                        help="run at this real-time priority (root)")
    parser.add_argument("--models", type=pathlib.Path,
                        help="keep the models here (default: thrown away)")
    parser.add_argument("--results", type=pathlib.Path,
                        help="file of results, appended to")
    parser.add_argument("--print", action="store_true",
                        help="measure nothing, show --results")
    parser.add_argument("--portolan", type=pathlib.Path,
                        default=SOURCE / "build/release/launcher/portolan")
    args = parser.parse_args(words)
    args.axes = args.axes.split(",")
    for axis in args.axes:
        if axis not in AXES:
            parser.error(f"--axes {axis}: there are {', '.join(AXES)}")
    if args.points:
        if len(args.axes) != 1:
            parser.error("--points are of a single axis: say --axes too")
        try:
            args.points = [positive(point) for point in args.points.split(",")]
        except ValueError:
            parser.error(f"--points {args.points}: write numbers, with commas "
                         "between")
    if args.print and (args.results is None or not args.results.exists()):
        parser.error("--print shows --results, which must be there")
    for flag, file in (("--plot", args.plot), ("--results", args.results)):
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"{flag} {file}: there is no such directory")
    return args


def measure_all(args, lines):
    """Appends what it measures to `lines` and to --results at once."""
    with tempfile.TemporaryDirectory() as scratch:
        args.models = args.models or pathlib.Path(scratch)
        for axis in args.axes:
            for point in args.points or AXES[axis]:
                lines.append(measure(args, axis, point))
                if args.results is not None:
                    with args.results.open("a") as file:
                        file.write(json.dumps(lines[-1]) + "\n")


def main():
    args = arguments()
    lines = []
    if args.results is not None and args.results.exists():
        lines = [json.loads(line) for line in args.results.open()]
    stopped = None
    if not args.print:
        try:
            measure_all(args, lines)
        except (machine.Skipped, OSError) as reason:
            stopped = f"growth.py: {reason}"
    print_table(lines)
    for cliff in find_cliffs(lines, args.cliff):
        print("cliff:", cliff)
    if args.plot is not None and lines:
        write_plot(lines, args.plot)
    return stopped or 0


if __name__ == "__main__":
    sys.exit(main())
