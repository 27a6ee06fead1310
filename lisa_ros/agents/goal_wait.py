# SPDX-License-Identifier: Apache-2.0
"""Send a goal to a node and await its answer: progress, deadline, cancel, and errors of the tools.

An error of a tool begins with a word that a program can tell apart, such as TIMED_OUT. What a
model says is never an error, and a technical failure is never "not found".

Threads: that of the event loop. The node's thread only wakes it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import anyio.to_thread
from mcp.server.mcpserver.exceptions import ToolError

from lisa_ros.agents.node_access import Goal, NodeAccess, NodeAnswer, PendingAnswer, Progress
from lisa_ros.error_text import one_line
from lisa_ros.errors import LisaError, QueryError
from lisa_ros.results import ANSWERED

FIND_TIMEOUT = 10.0  # longest wait for the node to appear [s]
_PRESENCE_PERIOD = 1.0  # at which a wait looks whether the goal is lost [s]

Report = Callable[[Progress], Awaitable[None]]


@contextlib.asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """End what runs inside after a time.

    Raises:
        ToolError: DEADLINE.
    """
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise ToolError(
            f'DEADLINE: no answer within {seconds:g} s, the request was cancelled: try again, or '
            'with a longer timeout'
        )


async def find(node: NodeAccess, timeout: float = FIND_TIMEOUT) -> None:
    """Wait for the node, up to `timeout` [s] and up to `FIND_TIMEOUT`.

    Raises:
        ToolError: NODE_NOT_FOUND.
    """
    try:
        limit = min(timeout, FIND_TIMEOUT)
        await anyio.to_thread.run_sync(node.find, limit, abandon_on_cancel=True)
    except LisaError as error:
        raise ToolError(f'NODE_NOT_FOUND: {error}') from error


async def await_answer(node: NodeAccess, goal: Goal, report: Report) -> NodeAnswer:
    """Send a goal and return its answer, FOUND or NOT_FOUND; a cancel of the caller cancels it.

    Args:
        node: that was found.
        goal: what to ask.
        report: called with each progress.

    Raises:
        ToolError: INACTIVE, REJECTED, NODE_LOST, or the status of an answer that is none.
    """
    changed, loop = asyncio.Event(), asyncio.get_running_loop()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(changed.set)

    try:
        pending = node.send(goal, wake)
    except LisaError as error:
        raise ToolError(f'REJECTED: {error}') from error
    try:
        await _end(node, pending, changed, report)
    except BaseException:
        pending.cancel()
        raise
    return _checked(node, pending)


async def _end(
    node: NodeAccess, pending: PendingAnswer, changed: asyncio.Event, report: Report
) -> None:
    """Wait for the end of a goal; report its progress."""
    reported = Progress()
    while not pending.future.done():
        changed.clear()
        progress = pending.progress
        if progress != reported:
            await report(progress)
            reported = progress
        if pending.future.done():
            return
        with anyio.move_on_after(_PRESENCE_PERIOD) as scope:
            await changed.wait()
        if scope.cancelled_caught and pending.is_lost():
            raise ToolError(
                f'NODE_LOST: {node.name} has left the ROS graph while it answered: start it again'
            )


def _checked(node: NodeAccess, pending: PendingAnswer) -> NodeAnswer:
    """Return an answer of a model; raise a ToolError for each other end of a goal."""
    try:
        answer = pending.future.result()
    except QueryError as error:
        state = node.state()
        if state is not None and state.lifecycle != 'active':
            raise ToolError(
                f'INACTIVE: {node.name} is {state.lifecycle} and takes no queries: activate it '
                f'(ros2 lifecycle set {node.name} activate)'
            ) from error
        raise ToolError(f'REJECTED: {error}') from error
    except LisaError as error:
        raise ToolError(f'FAILED: {error}') from error
    if answer.status not in ANSWERED:
        raise ToolError(f'{answer.status.name}: {one_line(answer.reason) or "no reason given"}')
    return answer
