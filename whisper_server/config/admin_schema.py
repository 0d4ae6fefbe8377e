"""The settings of the admin API."""

from typing import Annotated

from pydantic import Field

from whisper_server.config.fields import NoneFromText, Section, Text
from whisper_server.config.leaves import Setting


class AdminSettings(Section):
    """Whether the operator may load and unload models over HTTP, and which."""

    enabled: Annotated[
        bool,
        Field(description="Serve `/admin/*`; it needs `admin.token`."),
        Setting(env=("STT_ADMIN_ENABLED",)),
    ] = False
    token: Annotated[
        Text | None,
        NoneFromText,
        Field(
            repr=False,
            description="What requests to `/admin/*` must bring as `Authorization: Bearer`; no API key opens "
            "them. Never printed.",
        ),
        Setting(env=("STT_ADMIN_TOKEN",), is_secret=True),
    ] = None
    allow_model_path: Annotated[
        bool,
        Field(description="Let `model_path` name a folder or a Hugging Face id to load."),
        Setting(env=("STT_ADMIN_ALLOW_MODEL_PATH",)),
    ] = False
    model_path_allowlist: Annotated[
        tuple[Text, ...],
        Field(
            description="What `model_path` must begin with, in whole components: folders such as `/models/`, "
            "owners such as `openai/`; empty allows any."
        ),
        Setting(env=("STT_ADMIN_MODEL_PATH_ALLOWLIST",)),
    ] = ()
