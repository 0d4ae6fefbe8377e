"""Load on the server, beside the same load on faster-whisper in this process and on other servers."""
