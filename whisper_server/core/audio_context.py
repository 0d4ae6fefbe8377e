"""How much audio the encoder looks at, in mel frames.

The encoder's cost grows faster than its input: on two cores 5 s take an eighth of what 30 s take. A Whisper
is trained on 30 s, though, and loses words where the input ends right behind the speech.
"""

from whisper_server.core.mel import ENCODER_FRAMES
from whisper_server.core.types import FRAME_SAMPLES, FRAMES_PER_SECOND, AudioContext, Window

MARGIN_S = 2.0
"""Silence that a short context keeps behind the audio, seconds; rounding up adds more."""

CONTEXT_FRAMES = (500, 800, 1200, 1600, 2000, 2500, ENCODER_FRAMES)
"""The lengths that are used: few, because only windows of one length share a batch.

CTranslate2 takes an encoding of as many steps as the mel has bins for a mel, and encodes it again. A step is
two frames, so 160 (80 bins) and 256 (128 bins) must never be among these.
"""


def encoder_frames(window: Window) -> int:
    """Mel frames of the encoder's input for a window: all 30 s, or with AUTO its audio and a margin."""
    if window.audio_context is AudioContext.FULL:
        return ENCODER_FRAMES
    needed = len(window.audio) / FRAME_SAMPLES + MARGIN_S * FRAMES_PER_SECOND
    return next((frames for frames in CONTEXT_FRAMES if frames >= needed), ENCODER_FRAMES)
