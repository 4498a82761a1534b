"""Where speed falls or rises more than what is varied explains. Arithmetic
only: growth.py measures."""


def explained(axis, phase, a, b, cpus):
    """By how much speed may fall and rise (least and most of after / before)
    when the axis goes from a to b."""
    ratio = b / a
    if axis == "context":  # every token attends to all before it
        return 1 / ratio, 1
    if axis == "experts":  # more of them are read for the same tokens
        return 1 / ratio, 1
    if axis == "batch":  # weights are read once for all; prompts are alone
        return 1, ratio if phase == "decode" else 1
    if axis == "ranks":  # beyond the CPUs they share them, and wait in turns
        return (1 / ratio if b > cpus else 1), ratio
    raise ValueError(axis)


def find(axis, phase, points, factor, cpus):
    """Neighbours of points [(point, speed)] whose speed falls or rises by more
    than `factor` times what the axis explains."""
    cliffs = []
    for (a, before), (b, after) in zip(points, points[1:]):
        least, most = explained(axis, phase, a, b, cpus)
        if not least / factor < after / before < most * factor:
            cliffs.append(f"{axis} {a} -> {b}: {phase} {before:.0f} -> "
                          f"{after:.0f} tokens/s")
    return cliffs
