"""Where a driver of trials leaves what is to be trained, and its workers what they have to report.

A Ray actor between the two, which imports nothing else, so that its process starts at once.
"""

import asyncio
from typing import Any

NUMBER = "number"
"""Of a message: which piece of work it is about, counted from 1."""

ENDED = "ended"
"""Of a message: whether that work is done."""


class Desk:
    """Holds one piece of work at a time, and messages in the order in which they came."""

    def __init__(self) -> None:
        self._works: list[Any] = []
        self._is_on = False
        self._changed = asyncio.Condition()
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def leave(self, work: Any) -> int:
        """Leave work to be taken; its number. What was told before is about other work, and is forgotten."""
        async with self._changed:
            self._works.append(work)
            self._is_on = True
            self._messages = asyncio.Queue()
            self._changed.notify_all()
        return len(self._works)

    async def call_off(self) -> None:
        """The work that was left last is not wanted any more."""
        self._is_on = False

    async def take(self, done: int) -> int:
        """The number of the work that is to be done, once there is one above what was done last.

        Workers that take the place of others have done nothing, and so are given their work.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_on and len(self._works) > done)
        return len(self._works)

    async def work(self, number: int) -> Any:
        """What was left as this number, be it called off meanwhile or not."""
        return self._works[number - 1]

    async def is_on(self, number: int) -> bool:
        """Whether this work is still wanted."""
        return self._is_on and number == len(self._works)

    async def put(self, message: dict[str, Any]) -> None:
        """Tell the driver; the end of a piece of work first takes it from the desk."""
        if message.get(ENDED) and message[NUMBER] == len(self._works):
            self._is_on = False
        await self._messages.put(message)

    async def get(self) -> dict[str, Any]:
        """The next message, once there is one."""
        return await self._messages.get()
