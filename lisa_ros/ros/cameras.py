# SPDX-License-Identifier: Apache-2.0
"""All cameras of the node, and the choice of those that a command or a goal addresses.

Threads: as camera_pipeline.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from lisa_ros.error_text import shortened
from lisa_ros.errors import SettingsError
from lisa_ros.ros.camera_pipeline import CameraPipeline
from lisa_ros.ros.context import NodeContext
from lisa_ros.ros.inputs import TopicWatch
from lisa_ros.session.command_parser import parse_command, select_cameras
from lisa_ros.session.scheduler import RequestScheduler


class Cameras:
    """The cameras by name; a single camera may have an empty name."""

    def __init__(self, context: NodeContext):
        """Make the cameras that the settings name."""
        self._context = context
        names = context.settings.value.cameras or ('',)
        self._cameras = {name: CameraPipeline(context, name) for name in names}

    def __iter__(self) -> Iterator[CameraPipeline]:
        """Iterate over the cameras in the order of the settings."""
        return iter(self._cameras.values())

    @property
    def schedulers(self) -> list[RequestScheduler]:
        """The schedulers of all cameras; none while the node is inactive."""
        return [camera.scheduler for camera in self if camera.scheduler]

    @property
    def inputs(self) -> list[TopicWatch]:
        """The input topics of all cameras."""
        return [watch for camera in self for watch in camera.inputs]

    def named(self, name: str) -> CameraPipeline:
        """Return the camera that a goal names.

        Raises:
            SettingsError: there is no such camera, or there are several and none is named.
        """
        only = self._context.settings.value.camera
        if tuple(self._cameras) == ('',):
            if name and only and name != only:
                raise SettingsError(f'no camera {shortened(name)!r}: this node has {only!r}')
            return self._cameras['']
        if name not in self._cameras and (name or len(self._cameras) > 1):
            names = ', '.join(map(repr, self._cameras))
            raise SettingsError(
                f'no camera {shortened(name)!r}: this node has {names}'
                if name
                else f'several cameras, {names}: the goal has to name one'
            )
        return self._cameras[name or next(iter(self._cameras))]

    def handle_command(self, text: str) -> None:
        """Give a command to the cameras that it addresses; returns at once."""
        names, command = tuple(self._cameras), text
        if len(names) > 1:
            names, command = select_cameras(text, names)
            if not names:
                known = ', '.join(self._cameras)
                self._context.log.error(f'{shortened(text)!r}: no such camera; there are {known}')
        parsed = parse_command(command)
        addressed = [self._cameras[name] for name in names]
        if addressed and addressed[0].asks_memory(parsed):
            addressed = addressed[:1]  # the cameras share one memory: it answers once
        for camera in addressed:
            camera.handle_command(parsed)

    def stop(self) -> list[str]:
        """Stop all cameras, as the command "stop" does; return what was stopped."""
        return [
            f'{camera.name}: {stopped}' if camera.name else stopped
            for camera in self
            for stopped in camera.stop()
        ]

    def close(self, timeout: float) -> bool:
        """Cancel all requests; False if the model or a tracker is still busy after `timeout`.

        Args:
            timeout: how long to wait for all of them together [s].
        """
        deadline = time.monotonic() + timeout
        for scheduler in self.schedulers:
            # Close all before waiting: no camera may start a request while another is awaited.
            scheduler.close(0)
        return all(camera.close(max(0.0, deadline - time.monotonic())) for camera in self)
