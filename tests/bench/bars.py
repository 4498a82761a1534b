"""The bars that `adaptive` must clear, as arithmetic on measured stalls.

On every throttled link and at every budget it stalls least of all real
policies, ties within 2 %, and never more than `lru` by over 2 %. On the first
link, at a quarter of the experts, it closes at least half of the gap between
`lru` and `oracle`.
"""

TIE = 1.02
GAP_BUDGET = "25%"
GAP_SHARE = 0.5


def missed_in_cell(stalls):
    """What `adaptive` misses in a cell, given the stall of each policy there;
    `oracle` is none of the real ones. None if there is nothing to compare."""
    real = {policy: stall for policy, stall in stalls.items()
            if policy != "oracle"}
    own = real.pop("adaptive", None)
    if own is None or not real:
        return None
    missed = []
    best = min(real, key=real.get)
    if own > TIE * real[best]:
        missed.append(f"`{best}` stalls less: {more(own, real[best])}")
    if "lru" in real and best != "lru" and own > TIE * real["lru"]:
        missed.append(f"above `lru`: {more(own, real['lru'])}")
    return missed


def gap_closed(stalls):
    """Share of the gap between `lru` and `oracle` that `adaptive` closes; None
    if one of them is not there. No gap counts as closed unless it stalls
    more."""
    if not {"lru", "adaptive", "oracle"} <= stalls.keys():
        return None
    gap = stalls["lru"] - stalls["oracle"]
    if gap <= 0:
        return 1.0 if stalls["adaptive"] <= TIE * stalls["lru"] else 0.0
    return (stalls["lru"] - stalls["adaptive"]) / gap


def more(own, other):
    if other <= 0:
        return f"{own:.6g} s against none"
    return f"{100 * (own / other - 1):+.1f} %"


def check(cells, budgets, links):
    """cells: {(budget, link): {policy: stall}} of one way to measure. Returns
    the number of cells that were compared and, by the name of each cell that
    misses a bar, what it misses."""
    compared, cells_missed = 0, {}
    for link in links:
        for budget in budgets:
            stalls = cells.get((budget, link), {})
            missed = missed_in_cell(stalls)
            if missed is None:
                continue
            compared += 1
            share = gap_closed(stalls)
            if (budget == GAP_BUDGET and link == links[0] and
                    share is not None and share < GAP_SHARE):
                missed.append(f"closes {100 * share:.1f} % of the gap `lru` - "
                              f"`oracle`, not {100 * GAP_SHARE:.0f} %")
            if missed:
                cells_missed[f"{budget}, {link}"] = missed
    return compared, cells_missed
