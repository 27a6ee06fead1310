# SPDX-License-Identifier: Apache-2.0
"""Greedy generation of LISA's answer, token by token, with the hidden state of each token.

The image is encoded once and keys and values are cached, where the original computes the whole
sequence again for each token. Drafts of what follows are read with the prompt and with each token.
Ids and states are the same (test/test_generation.py).

Letters: L positions of the prompt, image tokens included; D width of the language model; K tokens
of the drafts.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lisa_ros.errors import NON_FINITE_CAUSE, ModelError
from lisa_ros.model.drafts import NO_DRAFTS, ROOT, Drafts, DraftTree
from lisa_ros.model.key_values import KeyValues
from lisa_ros.model.language_model import LanguageModel


@dataclass(frozen=True)
class GeneratedToken:
    """One token of the answer."""

    token_id: int
    probability: float  # of this token, given all tokens before it
    state: Tensor  # (D,) the state that predicted it; the mask of a [SEG] is made from it


class Decoder(Protocol):
    """Another way to generate tokens, without drafts (`captured_decoding.CapturedDecoder`)."""

    def decode(self, token: int, key_values: KeyValues) -> Generator[GeneratedToken]:
        """Yield tokens that follow `token`, as many as it can; extend the cache."""


@dataclass(frozen=True)
class Prefill:
    """A prompt that the language model has read. Use it for one answer: the cache grows."""

    states: Tensor  # (n, D) of the last n positions; state i predicts position i + 1
    length: int  # L
    key_values: KeyValues  # of the prompt and of the drafts that the model agrees with
    # the first tokens of the answer: those of the drafts, and the one that follows them
    tokens: tuple[GeneratedToken, ...]
    drafts: Drafts  # of the answer

    def state(self, position: int) -> Tensor:
        """Return the state, (D,), of one of the last n positions of the prompt."""
        return self.states[position - (self.length - len(self.states))]


@torch.inference_mode()
def prefill(
    model: LanguageModel,
    embeddings: Tensor,
    key_values: KeyValues | None = None,
    drafts: Drafts = NO_DRAFTS,
    max_new_tokens: int = 0,
    first_state: int = 0,
) -> Prefill:
    """Read a prompt and drafts of its answer.

    Args:
        model: the language model.
        embeddings: (L, D) of the whole prompt, as `LISA.embed` returns it.
        key_values: of the first positions of the prompt, at most L - 1; it is extended. None: the
            whole prompt is read.
        drafts: replies that the model may give.
        max_new_tokens: room for the answer.
        first_state: the first position whose state is needed, at most L - 1.

    Raises:
        ModelError: the scores of a token are NaN.
    """
    length, tree = len(embeddings), drafts.tree()
    if key_values is None:
        key_values = model.new_cache(length + max(len(tree), max_new_tokens))
    new = embeddings[key_values.length :]
    states, tokens = _read(model, new, key_values, tree, min(len(new), length - first_state))
    return Prefill(states, length, key_values, tokens, drafts)


def _read(
    model: LanguageModel, embeddings: Tensor, key_values: KeyValues, tree: DraftTree, last: int
) -> tuple[Tensor, tuple[GeneratedToken, ...]]:
    """Read the next positions and drafts of what follows; keep the drafts that are right.

    Args:
        model: the language model.
        embeddings: (n, D) of the positions.
        key_values: of all positions before them; extended.
        tree: the drafts.
        last: how many of the last positions' states are needed, at least 1.

    Returns:
        The states of the last positions, (last, D), and the next tokens: one, and those of the
        drafts.
    """
    drafted, start = len(tree), key_values.length
    end = start + len(embeddings)
    if not drafted:
        states = model.read(embeddings[None], key_values, last=last)[0]
        return states, check_tokens(accepted_tokens(model, [states[-1:]], [tree])[0][0])
    device = embeddings.device
    tokens = torch.tensor(tree.tokens, device=device)
    embeddings = torch.cat([embeddings, model.embed(tokens).to(embeddings.dtype)])
    behind = torch.tensor([end - 1 + depth for depth in tree.depths()], device=device)
    positions = torch.cat([torch.arange(start, end, device=device), behind])
    before = torch.ones((drafted, end), dtype=torch.bool)
    mask = torch.cat([before, tree.mask()], dim=1).to(device)
    states = model.read(
        embeddings[None], key_values, positions=positions[None], mask=mask, last=last + drafted
    )[0]
    ((accepted, nodes),) = accepted_tokens(model, [states[-drafted - 1 :]], [tree])
    key_values.keep(end, [end + node for node in nodes])
    return states[:-drafted], check_tokens(accepted)


def accepted_tokens(
    model: LanguageModel, states: Sequence[Tensor], trees: Sequence[DraftTree]
) -> list[tuple[tuple[GeneratedToken, ...], list[int]]]:
    """Return the next tokens of answers, and which tokens of the drafts are among them.

    Args:
        model: the language model.
        states: of each answer (1 + K, D), of the position before its drafts and of the drafts.
        trees: the drafts of each answer, K tokens.

    Returns:
        For each answer: its tokens, see `check_tokens`, and the drafts that are right.
    """
    # one transfer for both
    tokens, probabilities = most_probable(model, torch.cat(list(states))).tolist()
    chosen = zip(map(int, tokens), probabilities, strict=True)
    results = []
    for own_states, tree in zip(states, trees, strict=True):
        own = list(itertools.islice(chosen, len(own_states)))
        accepted, nodes, node = [], [], ROOT
        while node is not None:
            token, probability = own[node + 1]
            accepted.append(GeneratedToken(token, probability, own_states[node + 1]))
            node = tree.child(node, token)
            if node is not None:
                nodes.append(node)
        results.append((tuple(accepted), nodes))
    return results


def most_probable(model: LanguageModel, states: Tensor) -> Tensor:
    """Return the most probable token after each state, (n, D), and its probability.

    Returns:
        (2, n) float64, which holds a token id exactly; on the device.
    """
    scores = model.scores(states)
    best, tokens = scores.max(-1)
    probabilities = (best - scores.logsumexp(-1)).exp()
    return torch.stack([tokens.double(), probabilities.double()])


def check_tokens(tokens: tuple[GeneratedToken, ...]) -> tuple[GeneratedToken, ...]:
    """Return the next tokens of an answer.

    Raises:
        ModelError: the scores of one of them are NaN.
    """
    for token in tokens:
        checked_probability(token.probability)
    return tokens


def checked_probability(probability: float) -> float:
    """Return a probability.

    Raises:
        ModelError: it is NaN: one NaN or infinite score makes all of them NaN.
    """
    if not math.isfinite(probability):
        raise ModelError(
            f'the model computed NaN in the scores of the next token: {NON_FINITE_CAUSE}'
        )
    return probability


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt: Prefill,
    *,
    stop_id: int,
    max_new_tokens: int,
    is_cancelled: Callable[[], bool] = lambda: False,
    decoder: Decoder | None = None,
) -> Iterator[GeneratedToken]:
    """Yield the answer's tokens up to and with `stop_id`, or until the limit or a cancel.

    Args:
        model: that read the prompt.
        prompt: a new Prefill; this call changes its cache.
        stop_id: the id of </s>.
        max_new_tokens: length limit of the answer.
        is_cancelled: called before each token; True ends the answer.
        decoder: generates what no draft begins with.

    Raises:
        ModelError: the scores of a token are NaN.
    """
    with contextlib.closing(_tokens(model, prompt, decoder)) as tokens:
        for _ in range(max_new_tokens):
            if is_cancelled():
                return
            token = next(tokens)
            yield token
            if token.token_id == stop_id:
                return


def _tokens(
    model: LanguageModel, prompt: Prefill, decoder: Decoder | None
) -> Generator[GeneratedToken]:
    """Yield tokens without an end; the cache has all of them but the last one."""
    answer: list[int] = []
    tokens: Sequence[GeneratedToken] = prompt.tokens
    while True:
        for token in tokens:
            answer.append(token.token_id)
            yield token
        tree = prompt.drafts.tree(answer)
        if decoder is not None and not tree:  # nor will there be one later
            with contextlib.closing(decoder.decode(answer[-1], prompt.key_values)) as decoded:
                for token in decoded:
                    answer.append(token.token_id)
                    yield token
            decoder = None  # its memory is full
        newest = model.embed(torch.tensor(answer[-1:], device=model.device))
        tokens = _read(model, newest, prompt.key_values, tree, last=1)[1]
