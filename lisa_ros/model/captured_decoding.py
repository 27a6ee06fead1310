# SPDX-License-Identifier: Apache-2.0
"""Decode on a GPU by replaying one captured step, which chooses the next token on the device.

A token of LLaMA takes about a thousand small kernels; starting them one by one takes longer than
their arithmetic. A CUDA graph starts them at once. The same kernels run on the same memory at each
replay, so the keys and values are copied into memory of the graph, and the step gets its token
and position from tensors.

Some steps are started before the host has read the tokens of earlier ones, so that the GPU never
waits for the host. What was computed behind the answer's end is dropped.

Letters: N layers, G heads of keys and values, P positions of a graph, d width of a head, D width
of the model.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lisa_ros.errors import ModelError
from lisa_ros.model.generation import GeneratedToken, checked_probability, most_probable
from lisa_ros.model.key_values import FixedKeyValues, KeyValues
from lisa_ros.model.language_model import LanguageModel

GRAPH_POSITIONS = (512, 1024)  # P of the graphs; attention reads all P
STEPS_AHEAD = 2  # started behind the token that the host waits for; a cancel loses no more
_MAX_DIFFERENCE = 0.05  # of the states of a graph and of the same step without it, relative

log = logging.getLogger(__name__)


class Replay(Protocol):
    """A captured step, such as a torch.cuda.CUDAGraph."""

    def replay(self) -> None:
        """Run the kernels of the step again, on the same memory."""


class Capture(Protocol):
    """How steps are captured."""

    def capture(self, step: Callable[[], None]) -> Replay:
        """Capture a step, which has run before."""


class CudaCapture:
    """Captures steps as CUDA graphs, which share their temporary memory."""

    def __init__(self, device: torch.device):
        """Capture on a GPU; other threads may use it meanwhile."""
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, step: Callable[[], None]) -> Replay:
        """Capture a step."""
        graph = torch.cuda.CUDAGraph()
        options = {'stream': self._stream, 'capture_error_mode': 'thread_local'}
        # the outer stream comes back even if the capture fails
        with (
            torch.cuda.device(self._device),
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, pool=self._pool, **options),
        ):
            step()
        return graph


class CapturedDecoder:
    """Generates the tokens of one answer at a time."""

    @torch.inference_mode()
    def __init__(
        self,
        model: LanguageModel,
        capture: Capture,
        graph_positions: Sequence[int] = GRAPH_POSITIONS,
    ):
        """Capture the steps.

        Args:
            model: stays on its device; its weights stay in their memory.
            capture: how.
            graph_positions: positions of each graph; the longest answer ends at the largest.

        Raises:
            RuntimeError: the step cannot be captured, or a replay computes something else.
        """
        device = model.device
        self._model, self._lock = model, threading.Lock()
        self._memory = model.new_cache(max(graph_positions))
        self._memory.clear()
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._token = torch.zeros(1, dtype=torch.long, device=device)
        self._state = model.embed(self._token).clone()  # (1, D)
        self._choice = torch.zeros((2, 1), dtype=torch.float64, device=device)
        self._places = torch.arange(max(graph_positions), device=device)
        self._graphs = [
            (size, self._captured(capture, size)) for size in sorted(set(graph_positions))
        ]

    @torch.inference_mode()
    def decode(self, token: int, key_values: KeyValues) -> Generator[GeneratedToken]:
        """Yield the tokens that follow; nothing if the memory is full or another thread decodes.

        Args:
            token: the last one of the answer so far, which the model has not read.
            key_values: of all positions before it. When the iterator is closed, they have all but
                the last token that it yielded.

        Raises:
            ModelError: the scores of a token are NaN.
        """
        capacity = self._graphs[-1][0]
        if key_values.length >= capacity or not self._lock.acquire(blocking=False):
            return
        start, count = key_values.length, 0
        pending: deque[_PendingToken] = deque()
        try:
            self._begin(token, key_values)
            while start + count < capacity:
                while len(pending) <= STEPS_AHEAD and start + count + len(pending) < capacity:
                    pending.append(self._step(start + count + len(pending)))
                following = pending.popleft().wait()
                count += 1
                yield following
        except ModelError:
            self._memory.clear()  # attention multiplies what it does not see by 0: NaN stays NaN
            raise
        finally:
            end = start + count
            key_values.extend(self._memory, start, end)
            self._memory.clear(end, end + len(pending))  # nobody checks it for NaN
            self._lock.release()

    def _begin(self, token: int, key_values: KeyValues) -> None:
        """Put an answer into the memory of the graphs."""
        self._memory.load(key_values)
        self._position.fill_(key_values.length)
        self._token.fill_(token)

    def _step(self, position: int) -> _PendingToken:
        """Start the step that reads the token at a position."""
        graph = next(graph for size, graph in self._graphs if size > position)
        graph.replay()
        return _PendingToken(self._choice, self._state)

    def _compute(self, key_values: FixedKeyValues, places: Tensor) -> None:
        """Read a token, choose the next one; all inputs and outputs are tensors that stay."""
        embeddings = self._model.embed(self._token)[None]
        seen = (places <= self._position)[None]
        states = self._model.read(
            embeddings, key_values, positions=self._position[None], mask=seen
        )
        self._state.copy_(states[0])
        self._choice.copy_(most_probable(self._model, states[0]))
        self._token.copy_(self._choice[0].long())
        self._position.add_(1)

    def _captured(self, capture: Capture, size: int) -> Replay:
        """Return a step that sees the first `size` positions, and check it.

        Raises:
            RuntimeError: it cannot be captured, or a replay computes something else.
        """
        key_values = self._memory.fixed(size, self._position)
        places = self._places[:size]  # like all that the graph reads, it stays in its memory

        def step() -> None:
            self._compute(key_values, places)

        _run_aside(step, self._model.device)
        self._restart()
        step()
        expected = self._state.clone()
        self._restart()
        graph = capture.capture(step)
        self._restart()
        graph.replay()
        difference = (self._state - expected).float().norm() / expected.float().norm()
        if not float(difference) <= _MAX_DIFFERENCE or int(self._position) != 1:
            raise RuntimeError(f'a replay of the captured step differs by {float(difference):.2g}')
        return graph

    def _restart(self) -> None:
        self._position.zero_()
        self._token.fill_(1)
        self._state.zero_()


class _PendingToken:
    """A token whose step has started."""

    def __init__(self, choice: Tensor, state: Tensor):
        """Copy what the step has chosen, (2, 1) float64: token and probability; do not wait."""
        self._event = None
        self._state = state[0].clone()
        if choice.device.type == 'cuda':
            self._choice = torch.empty(choice.shape, dtype=choice.dtype, pin_memory=True)
            self._choice.copy_(choice, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(choice.device))
        else:
            self._choice = choice.clone()

    def wait(self) -> GeneratedToken:
        """Return the token when its step has ended."""
        if self._event is not None:
            self._event.synchronize()
        token, probability = self._choice[:, 0].tolist()
        return GeneratedToken(int(token), checked_probability(probability), self._state)


def captured_decoder(model: LanguageModel) -> CapturedDecoder | None:
    """Return a decoder with CUDA graphs; None on other devices, or if they cannot be captured."""
    if model.device.type != 'cuda':
        return None
    try:
        return CapturedDecoder(model, CudaCapture(model.device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        log.warning('no CUDA graphs, so each token takes longer: %s', reason)
        return None


def _run_aside(step: Callable[[], None], device: torch.device) -> None:
    """Run a step some times on a stream of its own, as a capture needs it."""
    if device.type != 'cuda':
        step()
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
