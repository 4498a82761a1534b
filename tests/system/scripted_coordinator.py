"""A coordinator that does what a test tells it to: a real gRPC server over
loopback whose streams break, refuse and repeat by script. For the tests of the
clients; import after the Python client is on sys.path."""

import concurrent.futures
import threading

import grpc
from portolan_client._proto import (health_pb2, health_pb2_grpc,
                                    inference_pb2 as pb, inference_pb2_grpc,
                                    rpc_status_pb2)

PIECES = ["Once", " upon", " a", " time", ",", " é", "", " there", " was",
          " a", " port", "."]


def retry_details(seconds):
    """Trailing metadata with google.rpc.RetryInfo."""
    info = rpc_status_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(int(seconds * 1000))
    status = rpc_status_pb2.Status(
        code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
    status.details.add().Pack(info)
    return (("grpc-status-details-bin", status.SerializeToString()),)


class ScriptedCoordinator(inference_pb2_grpc.InferenceServicer,
                          health_pb2_grpc.HealthServicer):
    """Every request gets the tokens 100, 101, ... with the texts PIECES.

    `breaks`: a list of numbers; each stream takes the next one and is lost
    after so many tokens. `refusals`: a list of (code, seconds or None) that
    the next calls get instead of an answer. `hold`: streams wait before their
    end until it is set.
    """

    def __init__(self, credentials=None, token=None):
        self.breaks = []
        self.refusals = []
        self.refusal_text = "by script"
        self.skip_a_token = False
        self.error = None  # (code, message) that ends requests made under it
        self.errors = {}  # id -> the error that it ends with for ever
        self.token = token
        self.requests = {}  # id -> GenerateRequest
        self.keys = {}
        self.cancelled = []
        self.gone = threading.Event()  # a stream's client went
        self.hold = threading.Event()
        self.hold.set()
        self.calls = []
        self.serving = True
        self._lock = threading.Lock()
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(64))
        inference_pb2_grpc.add_InferenceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self, self._server)
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("localhost:0", credentials)
        self.address = f"localhost:{self.port}"
        self._server.start()

    def stop(self):
        self.hold.set()
        self._server.stop(None).wait()

    def _enter(self, name, context):
        with self._lock:
            self.calls.append(name)
            refusal = self.refusals.pop(0) if self.refusals else None
        if self.token is not None:
            sent = dict(context.invocation_metadata()).get("authorization")
            if sent != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no valid token")
        if refusal is not None:  # None: answer this one
            code, seconds = refusal
            if seconds is not None:
                context.set_trailing_metadata(retry_details(seconds))
            context.abort(code, self.refusal_text)

    def _accept(self, request, context):
        with self._lock:
            known = self.keys.get(request.idempotency_key)
            if known is not None:
                if self.requests[known] != request:
                    context.abort(grpc.StatusCode.ALREADY_EXISTS,
                                  "idempotency_key names another request")
                return known, True
            request_id = f"r{len(self.requests)}"
            self.requests[request_id] = request
            self.errors[request_id] = self.error
            if request.idempotency_key:
                self.keys[request.idempotency_key] = request_id
            return request_id, False

    def _stream(self, request_id, first, context):
        request = self.requests[request_id]
        with self._lock:
            limit = self.breaks.pop(0) if self.breaks else None
        context.add_callback(self.gone.set)
        if first == 0:
            yield pb.GenerateResponse(request_id=request_id, seed=7,
                                      custom_id=request.custom_id)
        count = min(len(PIECES), request.params.max_tokens or len(PIECES))
        for sent, index in enumerate(range(first, count)):
            if sent == limit:
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost by script")
            offset = index + 1 if self.skip_a_token and index == 3 else index
            yield pb.GenerateResponse(request_id=request_id, offset=offset,
                                      token_ids=[100 + index],
                                      text=PIECES[index], attempt=1)
        self.hold.wait()
        if limit == count - first:
            context.abort(grpc.StatusCode.UNAVAILABLE, "lost by script")
        end = pb.GenerateResponse(request_id=request_id, offset=count)
        end.finish.usage.prompt_tokens = 4
        end.finish.usage.completion_tokens = count
        end.finish.ttft_s, end.finish.tpot_s = 0.25, 0.125
        end.finish.reason = pb.FINISH_REASON_LENGTH
        end.finish.text_tail = "!"
        if self.errors[request_id] is not None:
            code, message = self.errors[request_id]
            end.finish.reason = pb.FINISH_REASON_ERROR
            end.finish.error.code = code.value[0]
            end.finish.error.message = message
            yield end
            context.abort(code, message)
        yield end

    def Generate(self, request, context):
        self._enter("Generate", context)
        request_id, _ = self._accept(request, context)
        yield from self._stream(request_id, 0, context)

    def Submit(self, request, context):
        self._enter("Submit", context)
        request_id, existed = self._accept(request, context)
        return pb.SubmitResponse(request_id=request_id, existed=existed, seed=7)

    def Watch(self, request, context):
        self._enter("Watch", context)
        if request.request_id not in self.requests:
            context.abort(grpc.StatusCode.NOT_FOUND,
                          f"no request {request.request_id}")
        yield from self._stream(request.request_id, request.from_offset,
                                context)

    def _info(self, request_id):
        info = pb.RequestInfo(request_id=request_id, model="scripted",
                              state=pb.REQUEST_STATE_DONE, attempt=1,
                              num_tokens=len(PIECES), seed=7,
                              token_ids=range(100, 100 + len(PIECES)),
                              text="".join(PIECES))
        info.custom_id = self.requests[request_id].custom_id
        info.created.FromSeconds(1_700_000_000)
        if request_id in self.cancelled:
            info.state = pb.REQUEST_STATE_CANCELLED
        return info

    def Get(self, request, context):
        self._enter("Get", context)
        if request.request_id not in self.requests:
            context.abort(grpc.StatusCode.NOT_FOUND,
                          f"no request {request.request_id}")
        return self._info(request.request_id)

    def List(self, request, context):
        self._enter("List", context)
        ids = sorted(self.requests, reverse=True)
        first = int(request.page_token or 0)
        page = ids[first:first + min(2, request.page_size)]
        more = first + len(page) < len(ids)
        return pb.ListResponse(requests=map(self._info, page),
                               next_page_token=str(first + len(page))
                               if more else "")

    def Cancel(self, request, context):
        self._enter("Cancel", context)
        self.cancelled.append(request.request_id)
        return self._info(request.request_id)

    def GetStats(self, request, context):
        self._enter("GetStats", context)
        return pb.Stats(done=3, tokens=1 << 40, version="scripted",
                        ranks=[pb.RankStats(
                            job="j", rank=1, host="h", expert_hits=60,
                            expert_late=5, expert_misses=4, expert_stall_s=0.5,
                            expert_memory_bytes=3 << 20)])

    def Check(self, request, context):
        self._enter("Check", context)
        if request.service:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        status = health_pb2.HealthCheckResponse
        return status(status=status.SERVING if self.serving
                      else status.NOT_SERVING)
