"""Run a coroutine from code that is not async, on one private event-loop thread per process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _LoopThread:
    """A daemon thread that runs one event loop for the life of the process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="ffr-fix", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


_lock = threading.Lock()
_current: _LoopThread | None = None


def _loop_thread() -> _LoopThread:
    global _current
    with _lock:
        # A thread does not survive fork, so a child starts its own.
        if _current is None or _current.pid != os.getpid() or not _current.thread.is_alive():
            _current = _LoopThread()
        return _current


def run_blocking(coro: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
    """Run `coro` on the private event loop and wait for it.

    Always the same loop, so that connections, semaphores and circuit breakers live on between calls.

    Args:
        coro: What to run.
        timeout_s: Wall-clock limit, seconds; None waits as long as the coroutine takes.

    Returns:
        The coroutine's result; its exceptions are raised here.

    Raises:
        TimeoutError: The limit passed; the coroutine is cancelled and not waited for.
        RuntimeError: Called from the private loop itself, where waiting would stop the loop for ever.
    """
    owner = _loop_thread()
    if threading.current_thread() is owner.thread:
        coro.close()
        raise RuntimeError("run_blocking was called from the private event loop; use await")
    future = asyncio.run_coroutine_threadsafe(coro, owner.loop)
    try:
        return future.result(timeout_s)
    except concurrent.futures.TimeoutError:
        if future.done():  # the coroutine itself raised TimeoutError
            raise
        future.cancel()
        raise TimeoutError(f"no answer within {timeout_s} s") from None
    except BaseException:
        future.cancel()
        raise


async def on_private_loop(coro: Coroutine[Any, Any, T]) -> T:
    """Await `coro` on the private event loop, from whichever loop runs here.

    What it opens (connections, semaphores) then outlives the loop of the caller.
    """
    owner = _loop_thread()
    if asyncio.get_running_loop() is owner.loop:
        return await coro
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coro, owner.loop))
