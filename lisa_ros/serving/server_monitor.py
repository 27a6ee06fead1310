# SPDX-License-Identifier: Apache-2.0
"""Whether a server of models can be reached, and what it serves.

Requests report what they see; while there are none, the monitor asks `GET /v1/models` now and
then, so that diagnostics show a server that is gone, and one that is back, without a command. It
also asks when an answer names another model than the known one: the weights were replaced. That is
at once, and then not more often than without requests: two servers behind one address may differ.

Threads: a thread of its own asks. Every method may be called from any thread.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import LisaError, ModelError, SettingsError, UnreachableError
from lisa_ros.perception.backend import Capabilities, ScoreKind
from lisa_ros.perception.health import HealthState, ModelFailure, ModelHealth
from lisa_ros.serving.http_client import HttpClient
from lisa_ros.serving.problems import Problem, ProblemError
from lisa_ros.serving.wire_format import Served

MODELS_PATH = '/v1/models'
_FIRST_TIMEOUT = 5.0  # how long the first contact may take [s]
_LONGEST_PAUSE = 15.0  # that a server whose rate is used up may ask for [s]


class MonitorLog(Protocol):
    """Receives lines about the server, as the loggers of `logging` and rclpy do."""

    def info(self, message: str) -> object:
        """Log that the server answers again."""

    def error(self, message: str) -> object:
        """Log why the server cannot be reached."""


@dataclass(frozen=True)
class MonitorPeriods:
    """How often the server is asked while no request asks it [s]."""

    reachable: float = 5.0
    unreachable: float = 1.0
    timeout: float = 3.0  # of one answer


# of a server that was not reached yet
_UNKNOWN = Capabilities(explains=True, dialogue=True, yes_no=True)


@dataclass(frozen=True)
class ServedModel:
    """What a server says of its model."""

    name: str = ''
    precision: str = ''  # empty: unknown
    version: str = ''  # digest of the weights; empty: unknown
    capabilities: Capabilities = _UNKNOWN
    input_side: int | None = None  # longest side of what the model sees [px]; None: any


def read_models(document: Any) -> ServedModel:
    """Return the model of the JSON of `GET /v1/models`: the first one.

    Raises:
        UnreachableError: the server is still loading its model.
        ModelError: it is no such JSON.
    """
    try:
        if document['models'] == []:
            raise UnreachableError('the server has not loaded its model yet')
        model = document['models'][0]
        names = {item.name for item in dataclasses.fields(Capabilities)}
        capabilities = {k: v for k, v in model['capabilities'].items() if k in names}
        scores = ScoreKind[capabilities.pop('scores').upper()]
        side = model.get('input_side')
        if not all(isinstance(value, bool) for value in capabilities.values()) or side is True:
            raise TypeError('a capability is not true or false, or input_side is')
        return ServedModel(
            name=str(model['name']),
            precision=str(model.get('precision') or ''),
            version=str(model.get('version') or ''),
            capabilities=Capabilities(scores=scores, **capabilities),
            input_side=None if side is None else max(1, int(side)),
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(
            f'{MODELS_PATH} returned {short_repr(document)} ({one_line(error)}); expected the '
            'models of `lisa-ros serve`: correct the address'
        ) from None


class ServerMonitor:
    """Watches one server; see the module's docstring for threads."""

    def __init__(
        self,
        client: HttpClient,
        log: MonitorLog | None = None,
        periods: MonitorPeriods | None = None,
    ):
        """Make a monitor; `start` makes the first contact.

        Args:
            client: of the server.
            log: receives a line when the server is gone, and when it is back.
            periods: how often it is asked; None: the defaults.
        """
        self._client, self._periods = client, periods or MonitorPeriods()
        self._log = log or logging.getLogger(__name__)
        self._changed = threading.Condition()  # guards everything below
        self._model = ServedModel()
        self._state, self._since, self._cause = HealthState.OK, time.monotonic(), ''
        self._failure: ModelFailure | None = None
        self._returns = 0
        self._last_contact = self._asked_at = 0.0  # [s, monotonic]
        self._is_outdated = True  # the server must be asked for its model
        self._refreshed_at = -math.inf  # last asked for that reason alone [s, monotonic]
        self._paused_until = 0.0  # the rate is used up [s, monotonic]
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name='lisa-server', daemon=True)

    def start(self) -> None:
        """Ask the server what it serves; one that cannot be reached is asked again later.

        Raises:
            SettingsError: it is no such server, or refuses the token.
        """
        try:
            self._ask(_FIRST_TIMEOUT)
        except UnreachableError as error:
            self.note_unreachable(str(error))
        except LisaError as error:
            raise SettingsError(str(error)) from error
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def model(self) -> ServedModel:
        """What the server serves, as far as it is known."""
        with self._changed:
            return self._model

    @property
    def health(self) -> ModelHealth:
        """OK or UNREACHABLE; `reloads` counts how often the server came back."""
        with self._changed:
            return ModelHealth(self._state, self._since, self._cause, self._returns, self._failure)

    def note_answer(self, served: Served | None = None) -> None:
        """Take note that the server has answered a request.

        Args:
            served: the model that answered; None: it is not known.
        """
        with self._changed:
            self._last_contact = time.monotonic()
            known = Served(self._model.name, self._model.version)
            if served is not None and served != known and not self._is_outdated:
                self._is_outdated = True
                self._changed.notify_all()  # ask at once
            if self._state is HealthState.OK:
                return
            seconds = self._last_contact - self._since
            self._failure = ModelFailure(self._cause, self._last_contact)
            self._state, self._since, self._cause = HealthState.OK, self._last_contact, ''
            self._returns += 1
        self._log.info(f'{self._client.name} answers again, after {seconds:.1f} s')

    def note_unreachable(self, cause: str) -> None:
        """Take note that the server could not be reached; the first call is logged."""
        with self._changed:
            is_first = self._state is HealthState.OK and not self._is_closed
            if is_first:
                self._state, self._since = HealthState.UNREACHABLE, time.monotonic()
                self._changed.notify_all()  # ask more often
            self._cause = cause
        if is_first:
            self._log.error(f'{cause}; it is asked every {self._periods.unreachable:g} s')

    # ---- the thread

    def _run(self) -> None:
        while self._wait_until_due():
            try:
                self._ask(self._periods.timeout)
            except LisaError as error:  # noqa: PERF203
                self.note_unreachable(str(error))

    def _wait_until_due(self) -> bool:
        """Wait until the server is to be asked; False when the monitor closes."""
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                seconds = self._due_at() - now
                if seconds <= 0:
                    if self._state is HealthState.OK and self._is_outdated:
                        self._refreshed_at = now
                    return True
                self._changed.wait(seconds)
        return False

    def _due_at(self) -> float:
        """Return when the server is to be asked [s, monotonic], lock held."""
        if self._state is not HealthState.OK:
            return self._asked_at + self._periods.unreachable
        last = self._refreshed_at if self._is_outdated else max(self._asked_at, self._last_contact)
        return max(last + self._periods.reachable, self._paused_until)

    def _ask(self, timeout: float) -> None:
        try:
            document = self._client.get_json(MODELS_PATH, timeout)
            model = read_models(document)
        except ProblemError as error:
            if error.problem is not Problem.RATE_LIMITED:
                raise
            # earlier versions of the server count this path, too
            pause = min(error.retry_after or 0.0, _LONGEST_PAUSE)
            with self._changed:
                self._paused_until = time.monotonic() + max(pause, self._periods.reachable)
            self.note_answer()
        else:
            with self._changed:
                self._model, self._is_outdated = model, False
            self.note_answer()
        finally:
            with self._changed:
                self._asked_at = time.monotonic()
