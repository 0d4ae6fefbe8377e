"""What the decorators of the routes about requests and the scheduler are told; see `operations`."""

from whisper_server.api.documentation.bodies import Error
from whisper_server.api.documentation.operations import LIST_MODELS, Operation

LIST_REQUESTS: Operation = {
    **LIST_MODELS,
    "operation_id": "listRequests",
    "tags": ["requests"],
}

SCHEDULER_STATE: Operation = {**LIST_MODELS, "operation_id": "schedulerState", "tags": ["operations"]}

CANCEL_REQUEST: Operation = {
    "operation_id": "cancelRequest",
    "tags": ["requests"],
    "responses": LIST_MODELS["responses"]
    | {
        404: {
            "model": Error,
            "description": "No request of one's own that waits or runs has this id.",
            "headers": LIST_MODELS["responses"][200]["headers"],
        }
    },
}
