"""`/v1/realtime`: OpenAI's realtime transcription, a WebSocket that only translates."""
