"""A stream's hold on its model, which outlives an engine that is given up."""

import asyncio
import logging
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Protocol, Self

from whisper_server.core.engine import Engine
from whisper_server.services.model_catalog import ModelReference

logger = logging.getLogger(__name__)


class Models(Protocol):
    """What streams need of the model manager."""

    def acquire(self, reference: ModelReference) -> AbstractAsyncContextManager[Engine]:
        """The model's engine, loaded first where necessary; see `ModelManager`."""


class EngineLease:
    """Holds a model from entering to leaving. For one event loop; any number of tasks may call `renew`.

    Args:
        models: has the engine.
        reference: which model.

    Raises:
        WhisperServerError: on entering and in `renew`, as `ModelManager.acquire`.
    """

    def __init__(self, models: Models, reference: ModelReference) -> None:
        self._models = models
        self._reference = reference
        self._held = AsyncExitStack()
        self._engine: Engine | None = None
        self._renewing = asyncio.Lock()

    @property
    def engine(self) -> Engine:
        """The engine at present."""
        assert self._engine is not None
        return self._engine

    async def renew(self, lost: Engine) -> None:
        """Exchange an engine that was given up for the one that its model is loaded into anew.

        Args:
            lost: what was given up; where another task has exchanged it already, nothing is to be done.
        """
        async with self._renewing:
            if self._engine is not lost:
                return
            logger.warning("Model %s: a stream takes it anew after a call has hung", self._reference.id)
            new = AsyncExitStack()
            self._engine = await new.enter_async_context(self._models.acquire(self._reference))
            old, self._held = self._held, new
            await old.aclose()

    async def __aenter__(self) -> Self:
        self._engine = await self._held.enter_async_context(self._models.acquire(self._reference))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.aclose()
