"""Brings models onto the disk: local folders as they are, hub repositories through the hub's cache.

What huggingface_hub 2.4 does by itself and this module builds on: each file is written under a temporary
name and renamed when whole, so no half file is ever taken for a model; whole files are kept when another
one fails; a transfer that breaks is continued where it stopped (a `Range` request, in steps of 10 MB), at
most five times without progress. What it does not do and this module adds: a time limit for its listing
requests, a check of the disk space before the first byte, and errors that say what to do.

All this holds for transfers over plain HTTP. The hub's other way, Xet, tries for minutes when its storage
fails and cannot be stopped meanwhile, so it is used only where `HF_HUB_DISABLE_XET=0` asks for it.
"""

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from whisper_server.core.errors import (
    ModelAccessDeniedError,
    ModelDownloadError,
    ModelLoadError,
    ModelNotFoundError,
    WhisperServerError,
)
from whisper_server.services.model_catalog import ModelReference

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.utils.tqdm import tqdm

_logger = logging.getLogger("whisper_server.models")

_REQUIRED: Final = ("config.json", "model.bin", "tokenizer.json")
_VOCABULARIES: Final = ("vocabulary.json", "vocabulary.txt")  # either one; which one depends on the converter
_WANTED: Final = (*_REQUIRED, *_VOCABULARIES, "preprocessor_config.json")
_REVISION: Final = "main"
_MB: Final = 1_000_000


class ModelStore:
    """The models on this machine's disk, and the way to get more of them.

    Thread-safe; everything blocks. `HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE` and the hub's other
    variables count; all but the token are read once, when huggingface_hub is imported.

    Args:
        cache_dir: where downloads are kept; None for the hub's own place (`HF_HOME`).
        endpoint: the hub's address; None for `HF_ENDPOINT` or the public hub.
    """

    def __init__(self, cache_dir: Path | None = None, *, endpoint: str | None = None) -> None:
        self._cache_dir = cache_dir
        self._endpoint = endpoint
        self._client_lock = threading.Lock()
        self._is_stopped = threading.Event()

    def locate(self, reference: ModelReference) -> Path:
        """The folder of a whole CTranslate2 Whisper model, downloaded first where necessary.

        A model that is in the cache is taken as it is, without asking the hub for a newer one.

        Raises:
            ModelNotFoundError: the hub has no such repository.
            ModelAccessDeniedError: it is private or gated.
            ModelDownloadError: it cannot be fetched now.
            ModelLoadError: the folder or repository is not such a model.
        """
        if reference.path is not None:
            _require_whole(_present(reference.path), reference.requested)
            return reference.path
        if reference.repo_id is None:
            raise ValueError("A model reference has a repository or a path.")
        folder = self._cached_folder(reference.repo_id)
        if folder is None or _missing(_present(folder)):
            folder = self._download(reference.repo_id, reference.requested)
            _require_whole(_present(folder), reference.requested)
        return folder

    def cached(self) -> list[str]:
        """The repository ids whose models are whole in the cache, sorted."""
        return sorted(
            repo_id
            for entry in self._cache_folder().glob("models--*--*")
            if (repo_id := "/".join(entry.name.split("--")[1:])).count("/") == 1
            and (folder := self._cached_folder(repo_id)) is not None
            and not _missing(_present(folder))
        )

    def stop(self) -> None:
        """End the running downloads at their next bytes, and let no other start: the server is going down."""
        self._is_stopped.set()

    def _cache_folder(self) -> Path:
        if self._cache_dir is not None:
            return self._cache_dir
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)

    def _cached_folder(self, repo_id: str) -> Path | None:
        """The folder of the last downloaded version, perhaps with files missing. No network."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = snapshot_download(
                repo_id,
                revision=_REVISION,
                cache_dir=self._cache_dir,
                allow_patterns=list(_WANTED),
                local_files_only=True,
            )
        except LocalEntryNotFoundError:
            return None
        return Path(folder)

    def _download(self, repo_id: str, name: str) -> Path:
        if self._is_stopped.is_set():
            raise _stopped_error(name)
        self._prepare_client()
        # Two boundaries that catch everything and give it a name: huggingface_hub lets the errors of its
        # transports through (httpx in 1.x, httpx2 in 2.x, hf_xet), which share no base class.
        try:
            needed_bytes = self._check_listing(repo_id, name)
        except WhisperServerError:
            raise
        except Exception as error:
            raise _explained(error, name, otherwise=_unreachable_error(name)) from error
        _logger.info("Model %s: downloading %d MB", repo_id, needed_bytes // _MB)
        try:
            return self._fetch(repo_id, DownloadProgress(repo_id, needed_bytes))
        except Exception as error:
            raise _explained(error, name, otherwise=_broken_error(name)) from error

    def _check_listing(self, repo_id: str, name: str) -> int:
        """The bytes still to be fetched; raises if the repository is no such model or the disk too small."""
        from huggingface_hub import HfApi, constants

        listing = HfApi(endpoint=self._endpoint).model_info(
            repo_id, revision=_REVISION, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
        _require_whole({sibling.rfilename for sibling in listing.siblings or ()}, name)
        needed_bytes = self._missing_bytes(repo_id, listing)
        cache_folder = self._cache_folder().absolute()
        disk = next(folder for folder in (cache_folder, *cache_folder.parents) if folder.exists())
        free_bytes = shutil.disk_usage(disk).free
        if free_bytes < needed_bytes:
            _logger.error(
                "Model %s: needs %d MB in the cache, %d MB are free",
                repo_id,
                needed_bytes // _MB,
                free_bytes // _MB,
            )
            raise _disk_full_error(name)
        return needed_bytes

    def _missing_bytes(self, repo_id: str, listing: "ModelInfo") -> int:
        from huggingface_hub import try_to_load_from_cache

        def is_cached(filename: str) -> bool:
            found = try_to_load_from_cache(repo_id, filename, cache_dir=self._cache_dir, revision=listing.sha)
            return isinstance(found, str)

        return sum(
            sibling.size or 0
            for sibling in listing.siblings or ()
            if sibling.rfilename in _WANTED and not is_cached(sibling.rfilename)
        )

    def _fetch(self, repo_id: str, progress: "DownloadProgress") -> Path:
        from huggingface_hub import snapshot_download

        def report(done_bytes: int) -> None:
            if self._is_stopped.is_set():
                raise _DownloadStoppedError
            progress.report(done_bytes)

        folder = snapshot_download(
            repo_id,
            revision=_REVISION,
            cache_dir=self._cache_dir,
            endpoint=self._endpoint,
            allow_patterns=list(_WANTED),
            tqdm_class=_progress_bar_class(report),
        )
        progress.finish()
        return Path(folder)

    def _prepare_client(self) -> None:
        """Have huggingface_hub transfer over plain HTTP and give each request a time limit; once per process.

        Version 2.4 sends its listing requests without a limit: a hub that accepts the connection and says
        nothing would hold a download for ever.
        """
        from huggingface_hub import constants, get_session, set_client_factory

        if "HF_HUB_DISABLE_XET" not in os.environ:
            constants.HF_HUB_DISABLE_XET = True
        with self._client_lock:
            client = get_session()
            hooks = client.event_hooks["request"]
            if _limit_wait in hooks:
                return
            kind = type(client)
            set_client_factory(
                lambda: kind(
                    event_hooks={"request": [*hooks, _limit_wait]}, follow_redirects=True, timeout=None
                )
            )


class DownloadProgress:
    """Writes how far a download is to the log: at each 10 %, and at least every 10 s while bytes arrive.

    Thread-safe.

    Args:
        repo_id: names the download.
        total_bytes: what there is to fetch; 0 where unknown.
        clock: seconds.
    """

    _QUIET_S: Final = 10.0

    def __init__(self, repo_id: str, total_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._repo_id = repo_id
        self._total_bytes = total_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._started_s = self._logged_s = clock()
        self._done_bytes = 0
        self._tenths = 0

    def report(self, done_bytes: int) -> None:
        """Take in that this many bytes have arrived since the start; going back changes nothing."""
        with self._lock:
            self._done_bytes = max(self._done_bytes, done_bytes)
            tenths = min(10, 10 * self._done_bytes // self._total_bytes) if self._total_bytes else 0
            now_s = self._clock()
            if tenths == self._tenths and now_s - self._logged_s < self._QUIET_S:
                return
            self._tenths, self._logged_s = tenths, now_s
            _logger.info(
                "Model %s: %d of %d MB (%d %%), %.1f MB/s",
                self._repo_id,
                self._done_bytes // _MB,
                self._total_bytes // _MB,
                min(100, 100 * self._done_bytes // self._total_bytes) if self._total_bytes else 0,
                self._done_bytes / _MB / max(now_s - self._started_s, 1e-3),
            )

    def finish(self) -> None:
        """Say that everything is here."""
        _logger.info("Model %s: downloaded in %.1f s", self._repo_id, self._clock() - self._started_s)


class _DownloadStoppedError(Exception):
    """`ModelStore.stop` was called."""


def _progress_bar_class(report: Callable[[int], None]) -> "type[tqdm]":
    """A progress bar for `snapshot_download` that draws nothing and reports the bytes.

    The hub keeps several: one counts files, one the bytes from the network, one the bytes on the disk.
    Those that count bytes all report; the largest number is the truth, whichever way the bytes come.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class ReportingBar(tqdm):
        monitor_interval = 0  # else tqdm starts a thread to redraw bars that stand still

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            kwargs["disable"] = True  # draws nothing; then tqdm does not count either
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]  # the hub's has no annotations

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self._counts_bytes:
                report(int(self.n))

    return ReportingBar


def _limit_wait(request: Any) -> None:
    """Event hook of the hub's HTTP client: no phase of a request waits longer than the hub's own time-out."""
    from huggingface_hub import constants

    limits = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        phase: constants.HF_HUB_DOWNLOAD_TIMEOUT if limits.get(phase) is None else limits[phase]
        for phase in ("connect", "read", "write", "pool")
    }


def _present(folder: Path) -> set[str]:
    """The files of a model that are in the folder and not empty."""
    try:
        return {name for name in _WANTED if (folder / name).is_file() and (folder / name).stat().st_size}
    except OSError:
        return set()


def _missing(names: Collection[str]) -> list[str]:
    """What these files lack to be a model."""
    missing = [name for name in _REQUIRED if name not in names]
    if not any(name in names for name in _VOCABULARIES):
        missing.append(" or ".join(_VOCABULARIES))
    return missing


def _require_whole(names: Collection[str], name: str) -> None:
    if missing := _missing(names):
        raise ModelLoadError(
            f"'{name}' is not a whole CTranslate2 Whisper model: {', '.join(missing)} missing.", param="model"
        )


def _explained(error: Exception, name: str, *, otherwise: WhisperServerError) -> WhisperServerError:
    """What an error of huggingface_hub means to whoever asked for the model."""
    _logger.error("Model %s: the download failed: %s: %s", name, type(error).__name__, error)
    if isinstance(error, _DownloadStoppedError):
        return _stopped_error(name)
    if isinstance(error, OSError) and error.errno is not None:
        return _disk_error(error, name)
    for cause in _causes(error):
        if (found := _offline_error(cause, name) or _status_error(cause, name)) is not None:
            return found
    return otherwise


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _offline_error(cause: BaseException, name: str) -> WhisperServerError | None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if not isinstance(cause, OfflineModeIsEnabled):
        return None
    return ModelDownloadError(
        f"The model '{name}' is not on this server, and its downloads are switched off (HF_HUB_OFFLINE).",
        is_retryable=False,
    )


def _status_error(cause: BaseException, name: str) -> WhisperServerError | None:
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(cause, HfHubHTTPError):
        return None
    status = cause.response.status_code
    if status == 404:
        return ModelNotFoundError(f"The model '{name}' does not exist on the hub.", param="model")
    if status in (401, 403):
        return ModelAccessDeniedError(
            f"The hub refuses the model '{name}': it is private, gated or does not exist. "
            "Set HF_TOKEN on the server to a token that may read it.",
            param="model",
        )
    return ModelDownloadError(
        f"The hub answered the request for the model '{name}' with an error ({status}).",
        is_retryable=status >= 500 or status in (408, 429),
    )


def _disk_error(error: OSError, name: str) -> ModelDownloadError:
    """The disk refused: of all the errors on the way, only those of the disk come as plain `OSError`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full_error(name)
    return ModelDownloadError(
        f"The model '{name}' cannot be downloaded: the server cannot write to its model cache.",
        is_retryable=False,
    )


def _disk_full_error(name: str) -> ModelDownloadError:
    return ModelDownloadError(
        f"There is not enough disk space on the server for the model '{name}'.", is_retryable=False
    )


def _unreachable_error(name: str) -> ModelDownloadError:
    return ModelDownloadError(f"The model '{name}' is not on this server, and the hub cannot be reached.")


def _broken_error(name: str) -> ModelDownloadError:
    return ModelDownloadError(f"The download of the model '{name}' broke off. Try again.")


def _stopped_error(name: str) -> ModelDownloadError:
    return ModelDownloadError(f"The download of the model '{name}' ended: the server is shutting down.")
