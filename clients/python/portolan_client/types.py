"""What goes in and what comes out."""

import dataclasses
import typing

from ._proto import inference_pb2 as pb

_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length",
            pb.FINISH_REASON_CANCELLED: "cancelled",
            pb.FINISH_REASON_ERROR: "error"}
STATES = {"queued": pb.REQUEST_STATE_QUEUED,
          "running": pb.REQUEST_STATE_RUNNING,
          "done": pb.REQUEST_STATE_DONE, "failed": pb.REQUEST_STATE_FAILED,
          "cancelled": pb.REQUEST_STATE_CANCELLED}
_STATE_NAMES = {value: name for name, value in STATES.items()}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; None takes the service's value. Ranges are those
    of SamplingParams in proto/inference.proto."""

    max_tokens: typing.Optional[int] = None
    temperature: typing.Optional[float] = None
    top_p: typing.Optional[float] = None
    top_k: typing.Optional[int] = None
    min_p: typing.Optional[float] = None
    seed: typing.Optional[int] = None
    stop: typing.Sequence[str] = ()
    stop_token_ids: typing.Sequence[int] = ()
    ignore_eos: typing.Optional[bool] = None
    logprobs: typing.Optional[int] = None
    repetition_penalty: typing.Optional[float] = None
    presence_penalty: typing.Optional[float] = None
    frequency_penalty: typing.Optional[float] = None

    def to_proto(self) -> pb.SamplingParams:
        given = {field.name: getattr(self, field.name)
                 for field in dataclasses.fields(self)}
        if isinstance(given["stop"], str):
            given["stop"] = [given["stop"]]
        return pb.SamplingParams(
            **{name: value for name, value in given.items()
               if value is not None})


@dataclasses.dataclass(frozen=True)
class Finish:
    """How a request ended. `reason`: stop, length, cancelled or error; times
    in seconds, by the service's clock."""

    reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int
    ttft_s: float
    tpot_s: float
    error_code: int = 0
    error_message: str = ""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some tokens of a stream: those from `offset` on, and their text. The
    last one has `finish`."""

    request_id: str
    offset: int
    token_ids: typing.Tuple[int, ...]
    text: str
    attempt: int
    seed: int = 0  # in the first one only
    logprobs: typing.Tuple[typing.Any, ...] = ()
    finish: typing.Optional[Finish] = None


@dataclasses.dataclass(frozen=True)
class Result:
    """A request that has ended."""

    request_id: str
    token_ids: typing.Tuple[int, ...]
    text: str
    seed: int
    finish: Finish


@dataclasses.dataclass(frozen=True)
class Submitted:
    """`existed`: the idempotency key named a request accepted earlier."""

    request_id: str
    existed: bool
    seed: int


@dataclasses.dataclass(frozen=True)
class RequestInfo:
    """`state`: queued, running, done, failed or cancelled; `created` and
    `ended` in seconds since 1970."""

    request_id: str
    custom_id: str
    model: str
    state: str
    created: float
    ended: typing.Optional[float]
    attempt: int
    num_tokens: int
    seed: int
    queue_position: int
    token_ids: typing.Tuple[int, ...]
    text: str
    finish: typing.Optional[Finish]


def finish_from_proto(finish: pb.Finish) -> Finish:
    usage = finish.usage
    return Finish(_REASONS.get(finish.reason, "unknown"), usage.prompt_tokens,
                  usage.completion_tokens, usage.cached_prompt_tokens,
                  finish.ttft_s, finish.tpot_s, finish.error.code,
                  finish.error.message)


def piece_from_proto(response: pb.GenerateResponse) -> Piece:
    """The text that was held back to the end counts as text of the piece."""
    ends = response.HasField("finish")
    tail = response.finish.text_tail if ends else ""
    return Piece(response.request_id, response.offset,
                 tuple(response.token_ids), response.text + tail,
                 response.attempt, response.seed, tuple(response.logprobs),
                 finish_from_proto(response.finish) if ends else None)


def info_from_proto(info: pb.RequestInfo) -> RequestInfo:
    ended = info.ended.ToNanoseconds() / 1e9 if info.HasField("ended") else None
    finish = finish_from_proto(info.finish) if info.HasField("finish") else None
    return RequestInfo(info.request_id, info.custom_id, info.model,
                       _STATE_NAMES.get(info.state, "unknown"),
                       info.created.ToNanoseconds() / 1e9, ended, info.attempt,
                       info.num_tokens, info.seed, info.queue_position,
                       tuple(info.token_ids), info.text, finish)
