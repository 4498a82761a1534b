"""Errors of calls, and what they say about trying again."""

import typing

import grpc

from ._proto import rpc_status_pb2

_DETAILS = "grpc-status-details-bin"
_RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class PortolanError(Exception):
    """A call failed, or a request ended with an error.

    `code` is a grpc.StatusCode, `message` says what was wrong, and
    `retry_after` is the number of seconds that the service asks to wait, or
    None.
    """

    def __init__(self, code: grpc.StatusCode, message: str,
                 retry_after: typing.Optional[float] = None):
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.retry_after = retry_after

    @property
    def retryable(self) -> bool:
        return self.code in _RETRYABLE


def from_rpc(error: grpc.RpcError) -> PortolanError:
    return PortolanError(error.code(), error.details() or "",
                         _retry_after(error))


def from_code(code: int, message: str) -> PortolanError:
    """From a google.rpc.Code, as it stands in a finished request."""
    for status in grpc.StatusCode:
        if status.value[0] == code:
            return PortolanError(status, message)
    return PortolanError(grpc.StatusCode.UNKNOWN, message)


def _retry_after(error) -> typing.Optional[float]:
    for key, value in error.trailing_metadata() or ():
        if key != _DETAILS:
            continue
        status = rpc_status_pb2.Status()
        try:
            status.ParseFromString(value)
        except Exception:  # protobuf's own type differs between versions
            return None
        for detail in status.details:
            info = rpc_status_pb2.RetryInfo()
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
                return info.retry_delay.ToTimedelta().total_seconds()
    return None
