"""Any engine in a process of its own: what crashes there does not end the server, and its memory returns.

engine.py       the engine the server sees; keeps one process alive
process.py      the server's end of one process
child.py        what that process runs
messages.py     what the two say to each other
audio_slots.py  the memory they share
heap.py         what that process does with memory that is free
"""

from whisper_server.engines.isolation.engine import IsolatedEngine, isolated

__all__ = ["IsolatedEngine", "isolated"]
