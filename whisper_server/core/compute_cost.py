"""What a second of audio costs an engine, as measured."""

_MEMORY = 0.9
"""Weight of the past, with every call."""


class ComputeCost:
    """How long an engine is busy for a second of audio: a mean that forgets.

    Moments are seconds on one monotonic clock.
    """

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._audio_s = 0.0
        self._since_s: float | None = None

    @property
    def per_audio_s(self) -> float | None:
        """Seconds for a second of audio; None before anything was measured."""
        return self._busy_s / self._audio_s if self._audio_s else None

    def start(self, now_s: float) -> None:
        """A call begins."""
        self._since_s = now_s if self._since_s is None else self._since_s

    def stop(self, now_s: float, audio_s: float, *, is_idle: bool) -> None:
        """A call with so much audio is over, and whether none is left."""
        since_s = now_s if self._since_s is None else self._since_s
        self._busy_s = _MEMORY * self._busy_s + now_s - since_s
        self._audio_s = _MEMORY * self._audio_s + audio_s
        self._since_s = None if is_idle else now_s
