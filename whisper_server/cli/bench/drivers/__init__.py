"""How a load test speaks to each door of a server: `grpc`, `websocket` (/ws/stt) and `realtime`."""
