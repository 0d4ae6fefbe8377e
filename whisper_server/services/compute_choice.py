"""From the settings and the machine to where a model computes."""

from whisper_server.config import ModelSettings
from whisper_server.core.hardware import Decision, HardwareFacts, HardwareRequest, choose_compute


def decide(model: ModelSettings, facts: HardwareFacts) -> Decision:
    """What to compute with.

    Raises:
        ConfigurationError: what is set cannot work on this machine.
    """
    request = HardwareRequest(
        engine=model.engine,
        device=model.device,
        device_index=model.device_index,
        compute_type=model.compute_type,
        cpu_threads=model.cpu_threads,
        workers=model.workers,
    )
    return choose_compute(facts, request)
