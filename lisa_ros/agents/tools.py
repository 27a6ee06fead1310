# SPDX-License-Identifier: Apache-2.0
"""The tools of the MCP server; their docstrings and fields are what a language model reads.

Threads: that of the event loop.
"""

from __future__ import annotations

import inspect
import io
from typing import Annotated

import anyio
import anyio.to_thread
import numpy as np
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from PIL import Image as PillowImage
from pydantic import Field

from lisa_ros.agents import goal_wait
from lisa_ros.agents.node_access import Goal, NodeAccess, NodeAnswer, OverlayWatch, Progress
from lisa_ros.agents.tool_results import (
    AskResult,
    CamerasResult,
    RecallResult,
    SegmentResult,
    WhereIsResult,
    ask_result,
    cameras_result,
    recall_result,
    segment_result,
    where_is_result,
)
from lisa_ros.error_text import one_line, shortened
from lisa_ros.errors import LisaError
from lisa_ros.results import Status

_OVERLAY_TIMEOUT = 3.0  # longest wait for the publisher of an overlay, and for an overlay [s]
_OVERLAY_SIDE = 1024  # longer side of an overlay that is sent [px]
_RECALL_TIMEOUT = 10.0  # longest wait for the memory [s]
_STATE_PERIOD = 0.1  # at which a state is looked for [s]
_PROGRESS_TEXT = 200  # characters of an answer in a progress notification

Query = Annotated[str, Field(min_length=1, max_length=1000)]
CameraName = Annotated[str, Field(max_length=100, description='empty if there is only one')]
DialogueId = Annotated[
    str,
    Field(
        max_length=100,
        description='queries with the same id form a dialogue ("and the other one?"); empty: none',
    ),
]
Timeout = Annotated[float, Field(ge=1, le=600, description='seconds to wait for the answer')]


class LisaTools:
    """The tools for one node."""

    def __init__(self, node: NodeAccess):
        self._node = node

    def add_to(self, server: MCPServer) -> None:
        """Register all tools."""
        # Answers go to the node's topics, too, and a robot may act on them.
        asks = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
        reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
        for tool in (self.segment, self.where_is, self.ask):
            server.add_tool(tool, description=inspect.getdoc(tool), annotations=asks)
        for tool in (self.recall, self.cameras):
            server.add_tool(tool, description=inspect.getdoc(tool), annotations=reads)

    async def segment(
        self,
        ctx: Context,
        command: Annotated[Query, Field(description='such as "something to drink from"')],
        camera: CameraName = '',
        dialogue: DialogueId = '',
        overlay: Annotated[
            bool, Field(description='also return the image with the masks drawn on it')
        ] = False,
        timeout: Timeout = 60,
    ) -> Annotated[CallToolResult, SegmentResult]:
        """Find the objects that a command means in what the robot's camera sees now.

        Returns boxes, centres and areas in pixels, and positions in metres if there is depth.
        """
        await goal_wait.find(self._node, timeout)
        async with goal_wait.deadline(timeout):
            watch = None
            if overlay:
                watch = await anyio.to_thread.run_sync(
                    self._node.watch_overlay, camera, _OVERLAY_TIMEOUT, abandon_on_cancel=True
                )
            answer = await self._answer(ctx, Goal(command, camera, dialogue))
        image = None if watch is None else await self._overlay(watch, answer)
        is_missing = overlay and image is None
        result = segment_result(answer, 'the overlay did not arrive' if is_missing else '')
        content = [TextContent(type='text', text=result.model_dump_json())]
        if image is not None:
            content.append(image.to_image_content())
        return CallToolResult(
            content=content, structured_content=result.model_dump(mode='json', by_alias=True)
        )

    async def where_is(
        self,
        ctx: Context,
        query: Annotated[Query, Field(description='such as "the red mug"')],
        camera: CameraName = '',
        dialogue: DialogueId = '',
        timeout: Timeout = 60,
    ) -> WhereIsResult:
        """Say where an object is now, in 3D: centroid, box, frame and time.

        Needs a depth camera. For objects that are out of view use recall.
        """
        await goal_wait.find(self._node, timeout)
        async with goal_wait.deadline(timeout):
            answer = await self._answer(ctx, Goal(query, camera, dialogue))
        result = where_is_result(answer)
        if answer.status is Status.FOUND and not result.objects:
            reason = one_line(answer.place_reason) or 'no depth image or camera_info has arrived'
            raise ToolError(
                f'NO_PLACE: {len(answer.objects)} object(s) found in the image, but no position '
                f'is known: {reason}'
            )
        return result

    async def ask(
        self,
        ctx: Context,
        question: Annotated[Query, Field(description='such as "what is on the table?"')],
        camera: CameraName = '',
        dialogue: DialogueId = '',
        yes_no: Annotated[
            bool,
            Field(description='the question has the answer yes or no; return its probability'),
        ] = False,
        timeout: Timeout = 60,
    ) -> AskResult:
        """Ask a question about what the robot's camera sees now; the answer is in words."""
        await goal_wait.find(self._node, timeout)
        async with goal_wait.deadline(timeout):
            answer = await self._answer(ctx, Goal(question, camera, dialogue, yes_no))
        return ask_result(answer)

    async def recall(
        self,
        query: Annotated[
            str,
            Field(
                max_length=1000,
                description='a name or a question, such as "where did you last see the mug?"; '
                'empty: all objects',
            ),
        ] = '',
    ) -> RecallResult:
        """Say where objects were last seen, also those that are out of view; looks at nothing."""
        await goal_wait.find(self._node)
        try:
            memory = await anyio.to_thread.run_sync(
                self._node.recall, query, _RECALL_TIMEOUT, abandon_on_cancel=True
            )
        except LisaError as error:
            raise ToolError(f'FAILED: {error}') from error
        if not memory.frame:
            raise ToolError(f'NO_MEMORY: {one_line(memory.answer)}')
        return recall_result(memory)

    async def cameras(self) -> CamerasResult:
        """List the cameras, and say what the node does now and which model it has."""
        await goal_wait.find(self._node)
        async with goal_wait.deadline(goal_wait.FIND_TIMEOUT):
            while (state := self._node.state()) is None:
                await anyio.sleep(_STATE_PERIOD)
        return cameras_result(state)

    async def _answer(self, ctx: Context, goal: Goal) -> NodeAnswer:
        async def report(progress: Progress) -> None:
            text = shortened(one_line(progress.text), _PROGRESS_TEXT)
            message = f'{progress.stage}: {text}' if text else progress.stage
            await ctx.report_progress(progress.updates, message=message)

        return await goal_wait.await_answer(self._node, goal, report)

    async def _overlay(self, watch: OverlayWatch, answer: NodeAnswer) -> Image | None:
        pixels = await anyio.to_thread.run_sync(
            self._node.overlay, watch, answer.stamp, _OVERLAY_TIMEOUT, abandon_on_cancel=True
        )
        return None if pixels is None else _as_jpeg(pixels)


def _as_jpeg(pixels: np.ndarray) -> Image:
    """Return an image, (H, W, 3) uint8 RGB, as a JPEG of at most `_OVERLAY_SIDE` pixels."""
    image = PillowImage.fromarray(pixels)
    image.thumbnail((_OVERLAY_SIDE, _OVERLAY_SIDE))
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=85)
    return Image(data=file.getvalue(), format='jpeg')
