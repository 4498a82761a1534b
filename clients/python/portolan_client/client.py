"""The client itself."""

import ipaddress
import time
import typing
import uuid

import grpc

from . import errors, types
from ._proto import (health_pb2, health_pb2_grpc, inference_pb2 as pb,
                     inference_pb2_grpc)
from .backoff import Backoff

# A restarted coordinator is found within a second; retries are made here, where
# offsets and idempotency keys are known.
_OPTIONS = [("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 5000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", 64 << 20)]

# How much longer than its timeout a request is waited for: the service ends it
# and says how far it came.
_LAST_WORD_S = 2.0

Prompt = typing.Union[str, typing.Sequence[int]]


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Client:
    """Talks to the coordinator at `address` (HOST:PORT).

    Goes on where it was when the coordinator, or the way to it, was lost for
    at most `retry_for` seconds: every token comes once and in order, and a
    retry never makes a second request. Every call raises PortolanError when it
    fails. May be used from several threads.

    `token` is the bearer token; `tls_ca` the service's authority, `tls_cert`
    and `tls_key` the client's own certificate, all as PEM bytes; `tls` alone
    uses the system's authorities. Without TLS a token is sent to this host
    only, unless `insecure` is true.
    """

    def __init__(self, address: str, *, token: typing.Optional[str] = None,
                 tls: bool = False, tls_ca: typing.Optional[bytes] = None,
                 tls_cert: typing.Optional[bytes] = None,
                 tls_key: typing.Optional[bytes] = None,
                 tls_server_name: typing.Optional[str] = None,
                 insecure: bool = False,
                 retry_for: float = 60.0, call_timeout: float = 30.0):
        options = list(_OPTIONS)
        uses_tls = bool(tls or tls_ca or tls_cert)
        if token and not uses_tls and not insecure and not _is_local(address):
            raise ValueError(
                f"the token would travel to {address} in the clear; give tls "
                "or tls_ca (or insecure=True)")
        if tls_server_name:
            options.append(("grpc.ssl_target_name_override", tls_server_name))
        if uses_tls:
            self._channel = grpc.secure_channel(
                address,
                grpc.ssl_channel_credentials(tls_ca, tls_key, tls_cert),
                options)
        else:
            self._channel = grpc.insecure_channel(address, options)
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._metadata = [("authorization", f"Bearer {token}")] if token else []
        self._retry_for = retry_for
        self._call_timeout = call_timeout

    def close(self) -> None:
        """Ends the channel; calls in progress are cancelled."""
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def stream(self, prompt: Prompt, *, model: str = "",
               sampling: typing.Optional[types.Sampling] = None,
               idempotency_key: str = "", custom_id: str = "",
               timeout: typing.Optional[float] = None,
               **params) -> typing.Iterator[types.Piece]:
        """Generates, and yields pieces as they come. Closing the iterator
        cancels the request. `params` are fields of Sampling.

        Raises PortolanError, also after some pieces, if the request ends with
        an error.
        """
        request = _request(prompt, model, sampling, params,
                           idempotency_key or uuid.uuid4().hex, custom_id,
                           timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        known = _Progress()
        watching = False

        def open_stream(left):
            nonlocal watching
            watching = bool(known.request_id)
            if watching:
                return self._open_watch(known.request_id, known.offset, left)
            return self._stub.Generate(request, timeout=left,
                                       metadata=self._metadata)

        try:
            yield from self._pieces(open_stream, known, deadline)
        except GeneratorExit:
            # The first call's end cancels by itself; after that, we do.
            if watching and not known.finished:
                self._forget(known.request_id)
            raise

    def generate(self, prompt: Prompt, **options) -> types.Result:
        """As stream(), and waits for the end."""
        return _result(self.stream(prompt, **options))

    def submit(self, prompt: Prompt, *, model: str = "",
               sampling: typing.Optional[types.Sampling] = None,
               idempotency_key: str = "", custom_id: str = "",
               timeout: typing.Optional[float] = None,
               **params) -> types.Submitted:
        """Hands a request over for good: once this returns, it completes
        whatever dies. `timeout` is the request's own."""
        request = _request(prompt, model, sampling, params,
                           idempotency_key or uuid.uuid4().hex, custom_id,
                           timeout)
        response = self._call(self._stub.Submit, request)
        return types.Submitted(response.request_id, response.existed,
                               response.seed)

    def watch(self, request_id: str, from_offset: int = 0, *,
              timeout: typing.Optional[float] = None
              ) -> typing.Iterator[types.Piece]:
        """Yields a request's pieces from a token on to its end, each once,
        across lost connections. Raises as stream()."""
        deadline = None if timeout is None else time.monotonic() + timeout
        known = _Progress(request_id, from_offset)
        return self._pieces(
            lambda left: self._open_watch(request_id, known.offset, left),
            known, deadline)

    def wait(self, request_id: str, *,
             timeout: typing.Optional[float] = None) -> types.Result:
        """Watches a request from its first token on; returns the whole."""
        return _result(self.watch(request_id, timeout=timeout))

    def get(self, request_id: str, *,
            include_output: bool = True) -> types.RequestInfo:
        return types.info_from_proto(self._call(
            self._stub.Get, pb.GetRequest(request_id=request_id,
                                          include_output=include_output)))

    def list(self, states: typing.Iterable[str] = (), *,
             page_size: int = 100) -> typing.Iterator[types.RequestInfo]:
        """All own requests in these states, newest first."""
        request = pb.ListRequest(
            states=[types.STATES[state] for state in states],
            page_size=page_size)
        while True:
            page = self._call(self._stub.List, request)
            yield from map(types.info_from_proto, page.requests)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def cancel(self, request_id: str) -> types.RequestInfo:
        return types.info_from_proto(self._call(
            self._stub.Cancel, pb.CancelRequest(request_id=request_id)))

    def health(self, service: str = "") -> str:
        """"SERVING", "NOT_SERVING" ..., as grpc.health.v1 says it."""
        response = self._call(self._health.Check,
                              health_pb2.HealthCheckRequest(service=service))
        return health_pb2.HealthCheckResponse.ServingStatus.Name(
            response.status)

    def stats(self) -> pb.Stats:
        """What the coordinator and its ranks do; see proto/inference.proto."""
        return self._call(self._stub.GetStats, pb.GetStatsRequest())

    def _open_watch(self, request_id, offset, left):
        return self._stub.Watch(
            pb.WatchRequest(request_id=request_id, from_offset=offset),
            timeout=left, metadata=self._metadata)

    def _pieces(self, open_stream, known, deadline):
        backoff = Backoff(give_up_after=self._retry_for)
        while True:
            before = (known.request_id, known.offset)
            try:
                yield from self._read(open_stream, known, deadline)
                if known.finished:
                    return
                failure = errors.PortolanError(
                    grpc.StatusCode.UNAVAILABLE,
                    "the stream ended before the request")
            except grpc.RpcError as error:
                failure = errors.from_rpc(error)
            if known.finished:
                return
            if (known.request_id, known.offset) != before:
                backoff.reset()
            self._wait(backoff, failure, deadline)

    def _read(self, open_stream, known, deadline):
        left = None
        if deadline is not None:
            left = max(0.001, deadline - time.monotonic()) + _LAST_WORD_S
        call = open_stream(left)
        try:
            for response in call:
                known.take(response)
                piece = types.piece_from_proto(response)
                yield piece
                if piece.finish and piece.finish.reason == "error":
                    raise errors.from_code(piece.finish.error_code,
                                           piece.finish.error_message)
        finally:
            call.cancel()

    def _call(self, method, request):
        backoff = Backoff(give_up_after=self._retry_for)
        while True:
            try:
                return method(request, timeout=self._call_timeout,
                              metadata=self._metadata)
            except grpc.RpcError as error:
                failure = errors.from_rpc(error)
            self._wait(backoff, failure, None)

    def _wait(self, backoff, failure, deadline):
        """Sleeps before the next try, or raises."""
        if not failure.retryable:
            raise failure
        now = time.monotonic()
        delay = backoff.next(now, failure.retry_after)
        if delay is None or (deadline is not None and now + delay > deadline):
            raise failure
        time.sleep(delay)

    def _forget(self, request_id):
        """Cancels, and does not mind if that fails."""
        try:
            self._stub.Cancel(pb.CancelRequest(request_id=request_id),
                              timeout=_LAST_WORD_S, metadata=self._metadata)
        except grpc.RpcError:
            pass


class _Progress:
    """How far a stream has come; takes each token once and in order."""

    def __init__(self, request_id: str = "", offset: int = 0):
        self.request_id = request_id
        self.offset = offset
        self.finished = False

    def take(self, response: pb.GenerateResponse) -> None:
        if response.token_ids and response.offset != self.offset:
            raise errors.PortolanError(
                grpc.StatusCode.DATA_LOSS,
                f"request {response.request_id}: token {response.offset} came "
                f"in place of {self.offset}")
        self.request_id = response.request_id
        self.offset += len(response.token_ids)
        self.finished = response.HasField("finish")


def _request(prompt, model, sampling, params, key, custom_id, timeout):
    if sampling is not None and params:
        raise TypeError("give either sampling= or single parameters")
    sampling = sampling or types.Sampling(**params)
    request = pb.GenerateRequest(model=model, params=sampling.to_proto(),
                                 idempotency_key=key, custom_id=custom_id)
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.tokens.ids.extend(prompt)
    if timeout is not None:
        request.timeout.FromNanoseconds(int(timeout * 1e9))
    return request


def _result(pieces: typing.Iterator[types.Piece]) -> types.Result:
    tokens: typing.List[int] = []
    text = []
    seed = 0
    piece = None
    for piece in pieces:
        seed = seed or piece.seed
        tokens.extend(piece.token_ids)
        text.append(piece.text)
    assert piece is not None and piece.finish is not None
    return types.Result(piece.request_id, tuple(tokens), "".join(text),
                        seed, piece.finish)
