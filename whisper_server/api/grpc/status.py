"""A fault as the status of a gRPC call: code, message, and google.rpc's details."""

from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from whisper_server.api.error_table import ERR_CODES, err_code
from whisper_server.core.errors import InvalidRequestError, ServerBusyError, WhisperServerError

DOMAIN = "whisper-server"
"""Of the codes, in google.rpc.ErrorInfo."""

_DETAILS_KEY = "grpc-status-details-bin"
_FIELDS = {"file": "audio"}
"""Fields that have another name over HTTP."""

_UNKNOWN = "ERR3002"
_UNKNOWN_OF = {"CreateSession": "ERR3001"}


@dataclass(frozen=True, slots=True)
class CallStatus:
    """How a call ends.

    Attributes:
        code: of gRPC.
        message: with the ERR code before it.
        metadata: the details, for the trailing metadata.
    """

    code: grpc.StatusCode
    message: str
    metadata: tuple[tuple[str, bytes], ...]


def code_of(error: WhisperServerError, method: str) -> str:
    """The ERR code of a fault in a method."""
    code = err_code(error)
    return _UNKNOWN_OF.get(method, code) if code == _UNKNOWN else code


def status_of(error: WhisperServerError, method: str) -> CallStatus:
    """The status of a call of a method that ends with a fault."""
    code = code_of(error, method)
    status = grpc.StatusCode[ERR_CODES[code].status]
    message = f"{code}: {error.message}"
    details: list[Message] = [ErrorInfo(reason=code, domain=DOMAIN)]
    if isinstance(error, ServerBusyError):
        seconds, rest_s = divmod(error.retry_after_s, 1)
        details.append(RetryInfo(retry_delay=Duration(seconds=int(seconds), nanos=int(rest_s * 1e9))))
    if isinstance(error, InvalidRequestError) and error.param:
        field = _FIELDS.get(error.param, error.param)
        wrong = BadRequest.FieldViolation(field=field, description=error.message)
        details.append(BadRequest(field_violations=[wrong]))
    number: int = status.value[0]
    rich = Status(code=number, message=message, details=[_packed(detail) for detail in details])
    return CallStatus(status, message, ((_DETAILS_KEY, rich.SerializeToString()),))


def _packed(detail: Message) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed
