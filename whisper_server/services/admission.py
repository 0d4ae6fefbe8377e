"""Who may come in: the rest is turned away at once, before its upload is read where its headers suffice."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from whisper_server.core.admission import (
    AdmissionCounters,
    AdmissionLimits,
    ClientLimits,
    ComputeMeter,
    Holding,
    Refusal,
    StayMeter,
    audio_before_s,
    retry_after_s,
)
from whisper_server.core.errors import AudioTooLongError, ServerBusyError, ServerDrainingError
from whisper_server.core.scheduling import Caller, Priority

DEFAULT_CLIENT = "default"
"""Stands for every client that has no limits of its own."""

SHORT_FILE_S = 60.0


class Admission:
    """Counts what the requests inside hold, and measures how fast their work gets done. For one event loop.

    Args:
        limits: what all may use together.
        clients: what single clients may use, by name; `DEFAULT_CLIENT` is for those that are not named.
        lanes: how many requests really compute at once.
        short_file_s: recordings up to this length, seconds, go before longer ones.
        estimated_wait_s: another estimate of how long a window of a priority waits; the longer one counts.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        limits: AdmissionLimits,
        *,
        clients: Mapping[str, ClientLimits] = MappingProxyType({}),
        lanes: int = 1,
        short_file_s: float = SHORT_FILE_S,
        estimated_wait_s: Callable[[Priority], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._clients = clients
        self._short_file_s = short_file_s
        self._other_estimate_s = estimated_wait_s
        self._clock = clock
        self._places: list[Place] = []
        self._compute = ComputeMeter(lanes)
        self._stays = StayMeter()
        self._drained_by_s: float | None = None
        self._drains = asyncio.Event()
        self.counters = AdmissionCounters()

    @property
    def inside(self) -> int:
        """Requests running or waiting now."""
        return len(self._places)

    @property
    def buffered_audio_s(self) -> float:
        """Decoded audio of all of them, seconds."""
        return _audio_s(self._places)

    @property
    def backlog_s(self) -> float:
        """Audio that is admitted and not yet transcribed, seconds."""
        return sum(place.holding.remaining_s for place in self._places)

    @property
    def compute_per_audio_s(self) -> float | None:
        """Measured compute seconds per second of audio (RTF); None before anything was measured."""
        return self._compute.rtf

    @property
    def is_draining(self) -> bool:
        """Whether the server stops and takes nobody in."""
        return self._drained_by_s is not None

    def caller(self, client: str) -> Caller:
        """A client with its share and priority.

        Args:
            client: the name of its API key, or its address.
        """
        limits = self._limits_of(client)
        return Caller(client, limits.weight, limits.rank)

    @contextmanager
    def enter(self, caller: Caller | None = None) -> Iterator["Place"]:
        """Be inside while the block runs.

        Raises:
            ServerDrainingError: the server stops.
            ServerBusyError: no room; `retry_after_s` is how long it takes until there is some.
        """
        place = Place(caller or Caller(), self._compute, self._clock, self._check_holding)
        self._check_door(place)
        self.counters.admitted += 1
        self._places.append(place)
        try:
            yield place
        finally:
            self._places.remove(place)
            self._stays.note(self._clock() - place.entered_s)
            place.stop_work()

    def drain(self, grace_s: float) -> None:
        """Take nobody in from now on; in `grace_s` seconds the server is gone."""
        self._drained_by_s = self._clock() + grace_s
        self._drains.set()

    async def wait_until_draining(self) -> None:
        """Wait until the server stops and takes nobody in."""
        await self._drains.wait()

    def check_not_draining(self) -> None:
        """Refuse work that begins after `drain`.

        Raises:
            ServerDrainingError: the server stops.
        """
        if self._drained_by_s is None:
            return
        message = "The server is stopping and takes no more requests. Try again later."
        self.counters.refused[Refusal.DRAINING] += 1
        raise ServerDrainingError(message, retry_after_s=retry_after_s(self._drained_by_s - self._clock()))

    def note(self, audio_s: float, compute_s: float) -> None:
        """Tell of work that was measured elsewhere: so much audio took so much time of one lane."""
        self._compute.note(audio_s, compute_s)

    def wait_s(self, newcomer: Holding) -> float:
        """How long it takes until a newcomer's work begins, by what was measured; 0 before that."""
        others = [place.holding for place in self._places if place.holding is not newcomer]
        own_s = self._compute.wait_s(audio_before_s(others, newcomer))
        other_s = self._other_estimate_s(newcomer.priority) if self._other_estimate_s else 0.0
        return max(own_s, other_s)

    def _limits_of(self, client: str) -> ClientLimits:
        return self._clients.get(client) or self._clients.get(DEFAULT_CLIENT) or ClientLimits()

    def _check_door(self, newcomer: "Place") -> None:
        """Refuse by what is known before anything of a request is read."""
        self.check_not_draining()
        client = newcomer.holding.caller.client
        limits, own = self._limits_of(client), self._places_of(client)
        if limits.max_requests is not None and len(own) >= limits.max_requests:
            raise self._refusal(
                Refusal.CLIENT_REQUESTS,
                f"The client '{client}' has {len(own)} requests inside, the most it may have at once. Wait "
                "for one to end.",
                self._until_one_leaves_s(own),
            )
        if len(self._places) >= self._limits.max_requests:
            raise self._refusal(
                Refusal.REQUESTS,
                f"The server is busy with {len(self._places)} requests. Try again later.",
                self._until_one_leaves_s(self._places),
            )
        # One sample is the least that a recording has.
        self._check_room(newcomer, 0.0)
        self._check_wait(newcomer.holding)

    def _check_holding(self, place: "Place", audio_s: float, work_s: float) -> None:
        """Refuse by what is known once audio is decoded."""
        holding = place.holding
        self._check_length(place, holding.audio_s + audio_s)
        self._check_room(place, audio_s)
        is_short = holding.work_s + work_s <= self._short_file_s
        holding.priority = Priority.SHORT_FILE if is_short else Priority.LONG_FILE
        if work_s:
            self._check_wait(holding)

    def _check_length(self, place: "Place", audio_s: float) -> None:
        """Refuse what will never fit."""
        client = place.holding.caller.client
        own_limit_s = self._limits_of(client).max_buffered_audio_s
        if audio_s > self._limits.max_buffered_audio_s:
            limit_s, whose = self._limits.max_buffered_audio_s, "this server holds"
        elif own_limit_s is not None and audio_s > own_limit_s:
            limit_s, whose = own_limit_s, f"the client '{client}' may have inside"
        else:
            return
        raise AudioTooLongError(
            f"The recording is longer than {limit_s:.10g} seconds, the most {whose} at once. "
            "Send it in parts.",
            code="audio_too_long",
        )

    def _check_room(self, place: "Place", audio_s: float) -> None:
        """Refuse what does not fit now; at the door, where the length is not known, only if it is full."""
        client = place.holding.caller.client
        own, own_limit_s = self._places_of(client), self._limits_of(client).max_buffered_audio_s
        if own_limit_s is not None and _is_full(own, audio_s, own_limit_s):
            raise self._refusal(
                Refusal.CLIENT_BUFFERED_AUDIO,
                f"The client '{client}' has {_audio_s(own):.0f} seconds of audio inside, and may have "
                f"{own_limit_s:.10g} at once. Wait for a request to end.",
                self._until_room_s(own, audio_s, own_limit_s, place),
            )
        limit_s = self._limits.max_buffered_audio_s
        if _is_full(self._places, audio_s, limit_s):
            raise self._refusal(
                Refusal.BUFFERED_AUDIO,
                f"The server holds {self.buffered_audio_s:.0f} seconds of audio and has no room for more. "
                "Try again later.",
                self._until_room_s(self._places, audio_s, limit_s, place),
            )

    def _check_wait(self, newcomer: Holding) -> None:
        wait_s = self.wait_s(newcomer)
        if wait_s > self._limits.max_estimated_wait_s:
            raise self._refusal(
                Refusal.ESTIMATED_WAIT,
                f"The work before this request takes another {wait_s:.0f} seconds. Try again later.",
                wait_s - self._limits.max_estimated_wait_s,
            )

    def _refusal(self, reason: Refusal, message: str, wait_s: float) -> ServerBusyError:
        self.counters.refused[reason] += 1
        return ServerBusyError(message, retry_after_s=retry_after_s(wait_s))

    def _places_of(self, client: str) -> list["Place"]:
        return [place for place in self._places if place.holding.caller.client == client]

    def _until_one_leaves_s(self, places: list["Place"]) -> float:
        """How long it takes until one of these has left."""
        if self._compute.rtf is not None and all(place.holding.remaining_s for place in places):
            times_s = self._finish_times_s()
            return min(times_s[place] for place in places)
        now_s = self._clock()
        return self._stays.until_one_leaves_s([now_s - place.entered_s for place in places])

    def _until_room_s(
        self, places: list["Place"], audio_s: float, limit_s: float, newcomer: "Place"
    ) -> float:
        """How long it takes until enough of these have left for so much audio to fit."""
        holders = [place for place in places if place.holding.audio_s and place is not newcomer]
        if self._compute.rtf is None or not all(place.holding.remaining_s for place in holders):
            return self._until_one_leaves_s(holders or places)
        times_s = self._finish_times_s()
        held_s = _audio_s(places)
        until_s = 0.0
        for place in sorted(holders, key=times_s.__getitem__):
            held_s -= place.holding.audio_s
            until_s = times_s[place]
            if held_s + audio_s <= limit_s:
                break
        return until_s

    def _finish_times_s(self) -> dict["Place", float]:
        remaining_s = [place.holding.remaining_s for place in self._places]
        return dict(zip(self._places, self._compute.finish_times_s(remaining_s), strict=True))


class Place:
    """What one request inside holds, and how far its work has come; `Admission.enter` gives it.

    Args:
        caller: for whom.
        compute: measures the work.
        clock: seconds, monotonic.
        make_room: called with the place, the audio and the work before they are held; raises where they
            cannot be.
    """

    def __init__(
        self,
        caller: Caller,
        compute: ComputeMeter,
        clock: Callable[[], float],
        make_room: Callable[["Place", float, float], None],
    ) -> None:
        self._compute = compute
        self._clock = clock
        self._make_room = make_room
        self._is_at_work = False
        self._noted_share_s = 0.0
        self.entered_s = clock()
        self.holding = Holding(caller, Priority.SHORT_FILE)

    @property
    def is_at_work(self) -> bool:
        """Whether a model is at it."""
        return self._is_at_work

    def hold(self, audio_s: float, work_s: float | None = None) -> None:
        """Hold a decoded recording, beside those that are held already.

        Args:
            audio_s: its length, seconds.
            work_s: how much of it is for a model; None for all of it.

        Raises:
            AudioTooLongError: there will never be room for so much.
            ServerBusyError: there is no room now, or the work before it would take too long.
        """
        work_s = audio_s if work_s is None else work_s
        self._make_room(self, audio_s, work_s)
        self.holding.audio_s += audio_s
        self.holding.work_s += work_s

    def advance(self, done_s: float) -> None:
        """Note how much of the audio is done, seconds; the first time, that a model is at it."""
        now_s = self._clock()
        if not self._is_at_work:
            self._compute.begin(now_s)
            self._is_at_work = True
            self._noted_share_s = self._compute.share_s(now_s)
        elif done_s > self.holding.done_s:
            share_s = self._compute.share_s(now_s)
            self._compute.note(done_s - self.holding.done_s, share_s - self._noted_share_s)
            self._noted_share_s = share_s
        self.holding.done_s = max(self.holding.done_s, done_s)

    def stop_work(self) -> None:
        """Note that no model is at it any more."""
        if self._is_at_work:
            self._compute.end(self._clock())
            self._is_at_work = False


def _audio_s(places: Iterable[Place]) -> float:
    return sum(place.holding.audio_s for place in places)


def _is_full(places: Iterable[Place], audio_s: float, limit_s: float) -> bool:
    held_s = _audio_s(places)
    return held_s + audio_s > limit_s or held_s >= limit_s
