# SPDX-License-Identifier: Apache-2.0
"""Read tokens and weights again while the server answers. One asyncio loop.

Tokens are read at once, also while an update of the weights goes on. Whatever an update raises is
logged, and ends no later one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path
from typing import Protocol

from lisa_ros.errors import LisaError
from lisa_ros.serving.http_app import HttpState
from lisa_ros.serving.model_location import locate
from lisa_ros.serving.model_server import ReplicaPlan
from lisa_ros.serving.wire_format import Served

_log = logging.getLogger(__name__)
_NO_VERSION = (
    ', as far as is known: the model is no local folder; start the server again to load newer '
    'ones, and to read a changed --lock or key file'
)


class Replicas(Protocol):
    """The replicas of a model, which can be replaced."""

    @property
    def served(self) -> Served | None:
        """The model that they answer with; None: an update has left none that answer."""

    def update(self, replica: ReplicaPlan) -> None:
        """Replace them by those of another plan; blocks.

        Raises:
            SettingsError: the model cannot be loaded.
        """


class Updates:
    """Reads tokens and weights again."""

    def __init__(
        self,
        replicas: Replicas,
        state: HttpState,
        replica: ReplicaPlan,
        token_file: Path | None,
        deploying: asyncio.Lock,
    ):
        """Make an object that changes nothing until it is told to.

        Args:
            replicas: get new weights.
            state: gets new tokens.
            replica: the plan at the start; its model and its options stay.
            token_file: None: there are no tokens.
            deploying: held while replicas are replaced.
        """
        self._replicas, self._state, self._replica = replicas, state, replica
        self._token_file, self._deploying = token_file, deploying

    async def follow(self, reload: asyncio.Event) -> None:
        """Read tokens and weights whenever `reload` is set, until the call is cancelled."""
        weights_due = asyncio.Event()
        updating = asyncio.create_task(self._update_weights_on(weights_due))
        try:
            while True:
                await reload.wait()
                reload.clear()
                self._read_tokens()
                weights_due.set()
        finally:
            updating.cancel()

    def _read_tokens(self) -> None:
        try:
            if self._token_file and self._state.tokens:
                self._state.tokens = self._state.tokens.reloaded(self._token_file)
        except Exception:  # noqa: BLE001  # a bug: the next signal is followed all the same
            _log.exception('the tokens stay as they were')

    async def _update_weights_on(self, due: asyncio.Event) -> None:
        while True:
            await due.wait()
            due.clear()
            try:
                await self._update_weights()
            except LisaError as error:
                _log.error('%s: %s', self._result(), error)
            except Exception:  # noqa: BLE001  # a bug: the next signal is followed all the same
                _log.exception('%s: the update has met a bug', self._result())

    async def _update_weights(self) -> None:
        location = await asyncio.to_thread(locate, self._replica.model)
        served, current = location.served, self._replicas.served
        if current is not None and _is_same(served, current):
            _log.info('the weights have not changed%s', '' if served.version else _NO_VERSION)
            return
        _log.info('updating the weights to %s', served.version[:12] or served.model)
        plan = dataclasses.replace(self._replica, served=served, folder=location.folder)
        async with self._deploying:
            await asyncio.to_thread(self._replicas.update, plan)
        _log.info('all replicas have the weights %s', served.version[:12] or served.model)

    def _result(self) -> str:
        """Say what an update that failed has left."""
        if self._replicas.served is not None:
            return 'nothing was updated'
        return 'the update failed, and no replica answers; correct the model and update again'


def _is_same(served: Served, current: Served) -> bool:
    """Return whether two models have the same weights; without a version, the same name."""
    if served.version or current.version:
        return served.version == current.version
    return served.model == current.model
