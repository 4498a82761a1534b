"""Client of a Portolan service.

    from portolan_client import Client

    with Client("localhost:50051") as client:
        for piece in client.stream("Once upon a time", max_tokens=64):
            print(piece.text, end="", flush=True)
"""

from .client import Client
from .errors import PortolanError
from .types import (Finish, Piece, RequestInfo, Result, Sampling, Submitted)

__all__ = ["Client", "Finish", "Piece", "PortolanError", "RequestInfo",
           "Result", "Sampling", "Submitted"]
