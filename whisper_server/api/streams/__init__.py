"""Live streams over a WebSocket with messages of its own, and over one HTTP request."""
