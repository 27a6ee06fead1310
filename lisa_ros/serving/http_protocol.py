# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 on one connection: uvicorn's protocol, with limits that uvicorn does not have.

One thread with an asyncio loop.
"""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lisa_ros.serving.limits import ServerLimits
from lisa_ros.serving.problems import PROBLEM_TYPE, Problem, ProblemError

_PROBE_PERIOD = 0.25  # between two interim responses to a client without input [s]
_READ_BYTES = 64 << 10  # of an answer that a client must read in `ServerLimits.send_seconds`


def limited_protocol(limits: ServerLimits) -> type[H11Protocol]:
    """Return the protocol with limits on connections and on slow clients."""
    return type('Protocol', (_LimitedProtocol,), {'limits': limits})


class _LimitedProtocol(H11Protocol):
    """Closes connections that are too many, or too slow where no request times them.

    That is the head of a request, a body that goes on behind its answer, and an answer that
    the client does not read.

    A client may end its input once it has sent its request. That looks as if it had left, and
    is told apart by interim responses, which cannot be sent to one that has.
    """

    limits = ServerLimits()

    _timer: asyncio.TimerHandle | None = None
    _reading_timer: asyncio.TimerHandle | None = None  # until the client has read more
    _probe_timer: asyncio.TimerHandle | None = None  # until the next interim response
    _has_input = True  # the client may send more

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(_overfull(self.limits))
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._has_input and self.cycle.response_complete:
            self.transport.close()
        self._watch()
        self._watch_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading()

    def eof_received(self) -> bool:
        """Return whether the connection stays open: for the answer to a whole request."""
        cycle = self.cycle
        is_answering = cycle is not None and not (cycle.more_body or cycle.response_complete)
        # HTTP/1.0 has no interim responses
        if not is_answering or cycle.scope['http_version'] == '1.0':
            return False
        self._has_input = False
        self._probe()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        for timer in (self._reading_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: the request is answered without the upgrade."""

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, and close."""
        self._refuse(_no_http())

    def _refuse(self, error: ProblemError) -> None:
        body = json.dumps(error.document()).encode()
        headers = [
            (b'content-type', PROBLEM_TYPE.encode()),
            (b'content-length', str(len(body)).encode()),
            (b'connection', b'close'),
        ]
        if error.retry_after is not None:
            headers.append((b'retry-after', f'{error.retry_after:g}'.encode()))
        try:
            for event in (
                h11.Response(status_code=error.problem.status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        except h11.LocalProtocolError:  # an answer has begun
            pass
        self.transport.close()

    def _probe(self) -> None:
        """Send interim responses while an answer is made; a stream of events has its own."""
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if not self.cycle.response_started:
            interim = h11.InformationalResponse(status_code=100, headers=[], reason='Continue')
            self.transport.write(self.conn.send(interim))
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        self._probe_timer = self.loop.call_later(_PROBE_PERIOD, self._probe)

    def _watch_reading(self) -> None:
        """Start the timer in which the client must read a part of what waits for it."""
        if self._reading_timer is not None:
            self._reading_timer.cancel()
            self._reading_timer = None
        if waiting := self.transport.get_write_buffer_size():
            self._reading_timer = self.loop.call_later(
                self.limits.send_seconds, self._abort_if_unread, waiting
            )

    def _abort_if_unread(self, waiting: int) -> None:
        """Drop the connection unless the client has read some of the `waiting` bytes."""
        is_sending = not self.cycle.response_complete and not self.flow.write_paused
        largest = max(0, waiting - _READ_BYTES)
        if is_sending or self.transport.get_write_buffer_size() <= largest:
            self._watch_reading()
        else:
            self.transport.abort()

    def _watch(self) -> None:
        """Start the timer while a head or the rest of a body is incomplete, else stop it."""
        ours, theirs = self.conn.our_state, self.conn.their_state
        has_begun = self.timeout_keep_alive_task is None or bool(self.conn.trailing_data[0])
        is_head = theirs is h11.IDLE and has_begun
        is_rest = theirs is h11.SEND_BODY and ours is h11.DONE
        if not is_head and not is_rest:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.limits.header_seconds, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _no_http() -> ProblemError:
    return ProblemError(
        Problem.MALFORMED,
        'the request is no HTTP/1.1, or its head is too large; see GET /openapi.json',
    )


def _overfull(limits: ServerLimits) -> ProblemError:
    return ProblemError(
        Problem.OVERLOADED,
        f'expected at most {limits.connections} connections: keep one open, or try later',
        5.0,
    )
