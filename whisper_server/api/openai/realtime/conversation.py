"""The items of a session: one for each committed utterance."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from whisper_server.api.openai.fields import shown
from whisper_server.core.errors import InvalidRequestError

MAX_ITEMS = 1000
"""Older items are forgotten; their transcripts have been sent."""


@dataclass(slots=True)
class Item:
    """A turn of the speaker. `transcript` is None until it is known."""

    id: str
    transcript: str | None = None

    def as_wire(self) -> dict[str, Any]:
        """As clients read it."""
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_audio", "transcript": self.transcript}],
        }


class Conversation:
    """The latest `MAX_ITEMS` items, in the order in which they were committed."""

    def __init__(self) -> None:
        self._items: OrderedDict[str, Item] = OrderedDict()

    def add(self, item_id: str) -> tuple[Item, str | None]:
        """A new item, and the id of the one before it."""
        previous = next(reversed(self._items), None)
        item = self._items[item_id] = Item(item_id)
        if len(self._items) > MAX_ITEMS:
            self._items.popitem(last=False)
        return item, previous

    def settle(self, item_id: str, transcript: str) -> None:
        """Note a transcript; nothing happens where the item was deleted."""
        if item_id in self._items:
            self._items[item_id].transcript = transcript

    def retrieve(self, item_id: str) -> Item:
        """The item.

        Raises:
            InvalidRequestError: there is none.
        """
        item = self._items.get(item_id)
        if item is None:
            raise _unknown(item_id, "item_retrieve_invalid_item_id")
        return item

    def delete(self, item_id: str) -> None:
        """Forget the item.

        Raises:
            InvalidRequestError: there is none.
        """
        if self._items.pop(item_id, None) is None:
            raise _unknown(item_id, "item_delete_invalid_item_id")


def _unknown(item_id: str, code: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"There is no item '{shown(item_id)}' in this session.", param="item_id", code=code
    )
