"""The settings of the server: one frozen tree, and how it is loaded.

`Settings()` holds the defaults. `load_settings` merges files, the environment and the command line over them
and says where each value came from. There is no settings object at module level: whoever needs settings is
given them.
"""

from whisper_server.config.admin_schema import AdminSettings
from whisper_server.config.leaves import Leaf, Setting, Shape, leaves_of
from whisper_server.config.live_schema import StreamingSettings, VadSettings
from whisper_server.config.loading import LoadedSettings, load_settings
from whisper_server.config.profiles import DecodeProfile
from whisper_server.config.schema import (
    LimitSettings,
    LoggingSettings,
    ModelSettings,
    SecuritySettings,
    ServerSettings,
    Settings,
    TranscriptionSettings,
    section_summary,
)
from whisper_server.config.storage_schema import StorageSettings
from whisper_server.config.values import effective_values, toml_key, toml_value

__all__ = [
    "AdminSettings",
    "DecodeProfile",
    "Leaf",
    "LimitSettings",
    "LoadedSettings",
    "LoggingSettings",
    "ModelSettings",
    "SecuritySettings",
    "ServerSettings",
    "Setting",
    "Settings",
    "Shape",
    "StorageSettings",
    "StreamingSettings",
    "TranscriptionSettings",
    "VadSettings",
    "effective_values",
    "leaves_of",
    "load_settings",
    "section_summary",
    "toml_key",
    "toml_value",
]
