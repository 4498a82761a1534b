"""The measurements of peer_llama.py, read from their names."""

import dataclasses

# Of the experts and, after a slash, of the other matrices. The peer has one
# type for a whole file.
PEER_TYPE = {"bf16": None, "int8": "Q8_0", "int4": "Q4_0"}
WEIGHTS = ("bf16", "int8", "int4", "int8/int8", "int4/int8", "int4/int4")

ALL = [
    "tg128", "pp512", "b8", "b32", "tg128@1", "pp512@1",
    "tg128:int8", "tg128:int8/int8", "pp512:int8", "b8:int8", "b32:int8",
    "tg128:int4", "tg128:int4/int8", "tg128:int4/int4", "pp512:int4",
    "b8:int4", "b32:int4",
    "s-tg128", "s-tg128@1",
    "limit50", "limit30",
    "limit50:int8", "limit30:int8", "limit50:int8/int8", "limit30:int8/int8",
    "own50:int8", "own30:int8",
]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens to decode: with several sequences, and inside a memory limit."""

    batch: int = 128
    limit: int = 64
    most: int = 0  # of any measurement; 0: no bound


@dataclasses.dataclass(frozen=True)
class Case:
    text: str
    preset: str = "M"
    experts: str = "bf16"  # weights
    dense: str = "bf16"
    threads: int = 1
    prompt: int = 128
    gen: int = 1
    batch: int = 1
    phase: str = "decode"  # what is compared
    limit: int = 0  # percent of the model's bytes in `limit_of`; 0: none
    limit_of: str = "bf16"


def parse(text, threads, lengths=Lengths()):
    """The measurement of a name; SystemExit tells what is wrong with it."""
    name, _, weights = text.partition(":")
    name, _, own_threads = name.partition("@")
    weights = weights or "bf16"
    if weights not in WEIGHTS:
        raise SystemExit(f"{text}: weights are {', '.join(WEIGHTS)}")
    if own_threads and (not own_threads.isdecimal() or int(own_threads) < 1):
        raise SystemExit(f"{text}: @{own_threads} is no number of threads")
    experts, _, dense = weights.partition("/")
    case = Case(
        text, preset="S" if name.startswith("s-") else "M", experts=experts,
        dense=dense or "bf16", threads=int(own_threads or threads),
        **shape(text, name.removeprefix("s-"), experts, lengths))
    if lengths.most and case.phase == "decode":
        case = dataclasses.replace(case, gen=min(case.gen, lengths.most))
    return case


def shape(text, name, experts, lengths):
    kind = name.rstrip("0123456789")
    number = int(name[len(kind):] or 0)
    if number > 0 and kind == "pp":
        return {"prompt": number, "phase": "prefill"}
    if number > 0 and kind == "tg":
        return {"gen": number}
    if number > 0 and kind == "b":
        return {"prompt": 32, "gen": lengths.batch, "batch": number}
    if 0 < number <= 100 and kind == "limit":
        return {"prompt": 1, "gen": lengths.limit, "limit": number}
    if 0 < number <= 100 and kind == "own":
        return {"prompt": 1, "gen": lengths.limit, "limit": number,
                "limit_of": experts}
    raise SystemExit(f"{text}: no such measurement; see --help")
