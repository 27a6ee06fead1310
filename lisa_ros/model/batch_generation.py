# SPDX-License-Identifier: Apache-2.0
"""Greedy generation of several answers at once: a GPU reads eight rows for the price of one.

Each row is what `generation.generate` would give alone, up to rounding
(test/test_batch_generation.py). Rows have prompts of different lengths, begin with different known
positions and end at different times. So a column of the cache is not the same position in all
rows: a mask says which columns a row has.

Letters: B rows, n new positions of the longest row, K tokens of the largest tree of drafts, P
columns of the cache, L positions of a prompt, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lisa_ros.errors import ModelError
from lisa_ros.model.drafts import NO_DRAFTS, Drafts, DraftTree
from lisa_ros.model.generation import GeneratedToken, accepted_tokens, check_tokens
from lisa_ros.model.key_values import KeyValues
from lisa_ros.model.language_model import LanguageModel

_USUAL_ANSWER = 64  # [tokens]; the cache of a longer one is copied into twice the memory


@dataclass(frozen=True)
class BatchPrompt:
    """One prompt of a batch."""

    embeddings: Tensor  # (L, D), as `LISA.embed` returns it
    max_new_tokens: int  # of its answer
    known: KeyValues | None = None  # of its first positions, at most L - 1; not changed
    drafts: Drafts = NO_DRAFTS  # replies that the model may give


@dataclass(frozen=True)
class BatchStep:
    """What one pass of the language model adds to an answer."""

    number: int  # of the prompt
    tokens: tuple[GeneratedToken, ...]  # up to </s> and to the limit
    is_last: bool  # the answer has ended: with </s>, at its limit, or with an error
    error: ModelError | None = None  # the scores of a token are NaN; then there are no tokens


@dataclass
class _Row:
    """A prompt whose answer has not ended."""

    number: int  # of the prompt
    prompt: BatchPrompt
    positions: int  # in the cache
    answer: list[int] = field(default_factory=list)
    ready: tuple[GeneratedToken, ...] = ()  # next tokens of the answer

    def step(self, stop_id: int) -> BatchStep:
        """Return the tokens that are ready, and add them to the answer."""
        try:
            check_tokens(self.ready)
        except ModelError as error:
            return BatchStep(self.number, (), is_last=True, error=error)
        left = self.prompt.max_new_tokens - len(self.answer)
        ids = [token.token_id for token in self.ready[:left]]
        is_stopped = stop_id in ids
        ids = ids[: ids.index(stop_id) + 1] if is_stopped else ids
        self.answer += ids
        return BatchStep(self.number, self.ready[: len(ids)], is_stopped or len(ids) == left)


@torch.inference_mode()
def generate_batch(
    model: LanguageModel,
    prompts: Sequence[BatchPrompt],
    *,
    stop_id: int,
    is_done: Callable[[int], bool] = lambda number: False,
) -> Iterator[list[BatchStep]]:
    """Yield what each pass of the language model adds to the answers that have not ended.

    An answer ends with and after `stop_id`, at its limit, when its scores are NaN, or when
    `is_done(number)` is true, which is called after each pass.

    Args:
        model: the language model.
        prompts: at least one.
        stop_id: the id of </s>.
        is_done: whether an answer needs no more tokens.
    """
    rows = [
        _Row(number, prompt, prompt.known.length if prompt.known else 0)
        for number, prompt in enumerate(prompts)
    ]
    cache = _Cache(model, prompts)
    new = [row.prompt.embeddings[row.positions :] for row in rows]
    while True:
        cache.read(rows, new)
        steps = [row.step(stop_id) for row in rows]
        yield steps
        going_on = [
            place
            for place, step in enumerate(steps)
            if not step.is_last and not is_done(step.number)
        ]
        if not going_on:
            return
        if len(going_on) < len(rows):
            rows = [rows[place] for place in going_on]
            cache.keep_rows(going_on)
        last = torch.tensor([row.answer[-1:] for row in rows], device=model.device)
        new = list(model.embed(last))


class _Cache:
    """Keys and values of the rows, and which columns each row has."""

    def __init__(self, model: LanguageModel, prompts: Sequence[BatchPrompt]):
        """Begin with the known positions of the prompts, which are copied."""
        self._model = model
        lengths = [prompt.known.length if prompt.known else 0 for prompt in prompts]
        self._key_values = model.new_cache(_room(prompts, lengths), len(prompts))
        # columns that a row does not have: 0 times NaN would be NaN
        self._key_values.clear(min(lengths), max(lengths))
        for row, prompt in enumerate(prompts):
            if prompt.known is not None:
                self._key_values.write_row(row, prompt.known)
        self._key_values.advance(max(lengths))
        self._has = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (B, P)

    def keep_rows(self, places: Sequence[int]) -> None:
        """Keep some rows only."""
        self._key_values = self._key_values.rows(places)
        self._has = self._has[list(places)]

    def read(self, rows: Sequence[_Row], new: Sequence[Tensor]) -> None:
        """Read new positions of each row, (n of the row, D), and drafts; set `ready` of each."""
        model, device = self._model, self._model.device
        trees = [row.prompt.drafts.tree(row.answer) for row in rows]
        counts = [len(part) for part in new]
        n, drafted = max(counts), max(map(len, trees))
        embeddings = new[0].new_zeros((len(rows), n + drafted, new[0].shape[-1]))
        positions = torch.zeros((len(rows), n + drafted), dtype=torch.long)
        for place, (row, part, tree) in enumerate(zip(rows, new, trees, strict=True)):
            start, end = row.positions, row.positions + len(part)
            embeddings[place, : len(part)] = part
            positions[place, : len(part)] = torch.arange(start, end)
            if len(tree):
                tokens = torch.tensor(tree.tokens, device=device)
                embeddings[place, n : n + len(tree)] = model.embed(tokens)
                positions[place, n : n + len(tree)] = torch.tensor(tree.depths()) + end - 1
            row.positions = end
        mask = _mask(self._has, n, counts, trees).to(device)
        states = model.read(
            embeddings, self._key_values, positions=positions.to(device), mask=mask[:, None]
        )
        self._accept(rows, states, n, counts, trees)

    def _accept(
        self,
        rows: Sequence[_Row],
        states: Tensor,
        n: int,
        counts: Sequence[int],
        trees: Sequence[DraftTree],
    ) -> None:
        """Choose the next tokens of each row; keep the columns of drafts that are among them.

        Args:
            rows: get `ready`.
            states: (B, n + K, D).
            n: new positions of the longest row.
            counts: new positions of each row.
            trees: the drafts of each row.
        """
        parts = [
            torch.cat([states[place, count - 1 : count], states[place, n : n + len(tree)]])
            for place, (count, tree) in enumerate(zip(counts, trees, strict=True))
        ]
        accepted = accepted_tokens(self._model, parts, trees)
        start = self._key_values.length - (states.shape[1] - n)  # first column of the drafts
        kept = max(len(nodes) for _, nodes in accepted)
        index = torch.zeros((len(rows), kept), dtype=torch.long)
        for place, (row, (tokens, nodes)) in enumerate(zip(rows, accepted, strict=True)):
            row.ready = tokens
            row.positions += len(nodes)
            index[place, : len(nodes)] = torch.tensor(nodes, dtype=torch.long)
        self._key_values.keep_each(start, start + index)
        columns = torch.arange(n)
        read = columns < torch.tensor(counts)[:, None]
        lengths = torch.tensor([len(nodes) for _, nodes in accepted])
        self._has = torch.cat([self._has, read, torch.arange(kept) < lengths[:, None]], dim=1)


def _room(prompts: Sequence[BatchPrompt], known: Sequence[int]) -> int:
    """Return how many columns prompts and usual answers need; `known`: positions of each."""
    new = max(len(prompt.embeddings) - own for prompt, own in zip(prompts, known, strict=True))
    answer = min(_USUAL_ANSWER, max(prompt.max_new_tokens for prompt in prompts))
    return max(known) + new + answer + max(prompt.drafts.max_tokens for prompt in prompts)


def _mask(has: Tensor, n: int, counts: Sequence[int], trees: Sequence[DraftTree]) -> Tensor:
    """Return which columns each new position sees, (B, n + K, P + n + K) bool.

    Args:
        has: (B, P), which columns of the cache a row has.
        n: new positions of the longest row.
        counts: new positions of each row.
        trees: the drafts of each row.
    """
    rows, columns = has.shape
    new = n + max(map(len, trees))
    mask = torch.zeros((rows, new, columns + new), dtype=torch.bool)
    mask[:, :, :columns] = has[:, None]
    own = mask[:, :, columns:]
    own |= torch.eye(new, dtype=torch.bool)  # padding sees itself: nothing at all gives NaN
    for place, (count, tree) in enumerate(zip(counts, trees, strict=True)):
        own[place, :count, :count] = torch.ones((count, count), dtype=torch.bool).tril()
        own[place, n : n + len(tree), :count] = True
        own[place, n : n + len(tree), n : n + len(tree)] = tree.mask()
    return mask
