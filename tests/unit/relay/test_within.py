"""relay.asgi.within() does what asyncio.timeout() does, whatever the awaited does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from relay.asgi import within

SOON = 0.05
Doing = Callable[[list[str]], Awaitable[str]]


async def at_once(_: list[str]) -> str:
    return "done"


async def fails_at_once(_: list[str]) -> str:
    raise ValueError("at once")


async def after_a_turn(said: list[str]) -> str:
    await asyncio.sleep(0)
    said.append("one turn")
    await asyncio.sleep(0)
    return "done"


async def of_a_future(said: list[str]) -> str:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, "given")
    said.append(await future)
    return "done"


async def goes_on_after_a_failure(said: list[str]) -> str:
    loop = asyncio.get_running_loop()
    for number in range(3):
        future: asyncio.Future[None] = loop.create_future()
        loop.call_soon(future.set_exception, ValueError(str(number)))
        try:
            await future
        except ValueError as error:
            said.append(str(error))
    return "done"


async def fails_later(said: list[str]) -> str:
    await asyncio.sleep(0)
    raise ValueError("later")


async def waits_for_ever(said: list[str]) -> str:
    try:
        await asyncio.sleep(60)
    finally:
        said.append("cleaned up")
    return "never"


async def waits_for_ever_after_a_turn(said: list[str]) -> str:
    await asyncio.sleep(0)
    return await waits_for_ever(said)


async def takes_no_notice(said: list[str]) -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        said.append("was to stop")
    return "done nevertheless"


async def asks_for_its_task(said: list[str]) -> str:
    tasks = {asyncio.current_task()}
    await asyncio.sleep(0)
    said.append(str(len(tasks | {asyncio.current_task()})))
    return "done"


async def has_a_shorter_time_of_its_own(said: list[str]) -> str:
    try:
        async with asyncio.timeout(SOON / 5):
            await asyncio.sleep(60)
    except TimeoutError:
        said.append("its own")
    return "done"


async def _timeout(seconds: float, doing: Awaitable[str]) -> str:
    async with asyncio.timeout(seconds):
        return await doing


def outcome(
    way: Callable[[float, Awaitable[str]], Awaitable[str]], doing: Doing, seconds: float, cancelled: bool
) -> tuple[Any, list[str]]:
    """How it ended, and what it said; ``cancelled``: by somebody else, meanwhile."""
    said: list[str] = []

    async def run() -> Any:
        task = asyncio.current_task()
        assert task is not None
        if cancelled:
            asyncio.get_running_loop().call_soon(task.cancel)
        try:
            ended: Any = await way(seconds, doing(said))
        except (Exception, asyncio.CancelledError) as error:
            ended = (type(error), str(error))
        return ended, task.cancelling()

    return asyncio.run(run()), said


@pytest.mark.parametrize("cancelled", [False, True], ids=["left alone", "cancelled"])
@pytest.mark.parametrize(
    "doing",
    [
        at_once,
        fails_at_once,
        after_a_turn,
        of_a_future,
        goes_on_after_a_failure,
        fails_later,
        waits_for_ever,
        waits_for_ever_after_a_turn,
        takes_no_notice,
        asks_for_its_task,
        has_a_shorter_time_of_its_own,
    ],
)
def test_it_ends_as_with_asyncios_timeout(doing: Doing, cancelled: bool) -> None:
    assert outcome(within, doing, SOON, cancelled) == outcome(_timeout, doing, SOON, cancelled)


def test_what_takes_too_long_is_stopped() -> None:
    (ended, cancelling), said = outcome(within, waits_for_ever, SOON, cancelled=False)
    assert (ended[0], cancelling, said) == (TimeoutError, 0, ["cleaned up"])


def test_what_need_not_wait_takes_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(asyncio, "timeout")
    assert outcome(within, at_once, SOON, cancelled=False) == (("done", 0), [])
