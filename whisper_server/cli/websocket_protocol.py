"""uvicorn's WebSocket connection, without a pause for every message and with quiet refusals."""

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_MOST_UNREAD = 1
"""Messages that may wait for the app while the connection is read on."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection. Reading pauses when a second message waits for the app, and goes on when none does.

    uvicorn pauses with each message and resumes when the app has taken it: two system calls more for each, at
    20 to 50 messages a second of every live stream, of which hardly one has to wait.
    """

    async def send(self, message: Any) -> None:
        """Send what the app says."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            # A refusal answers the handshake. uvicorn would log each as a fault of the app.
            self.handshake_complete = True

    def send_receive_event_to_app(self) -> None:
        """Queue a message for the app."""
        # As if it were paused: uvicorn then does not pause, and resumes, in vain, once all is taken.
        self.read_paused = True
        super().send_receive_event_to_app()
        if self.queue.qsize() > _MOST_UNREAD:
            self.transport.pause_reading()
