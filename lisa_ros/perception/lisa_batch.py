# SPDX-License-Identifier: Apache-2.0
"""The answers of several prompts of a LISA, generated together.

Each pass of the language model adds tokens to all answers that have not ended; the masks of all
[SEG] among them are decoded at once. A row ends alone: complete, cancelled, too late, or with NaN.

Threads: that of the backend. Another thread may set a row's `cancel` meanwhile.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lisa_ros.errors import ModelError
from lisa_ros.model.batch_generation import BatchPrompt, BatchStep, generate_batch
from lisa_ros.model.language_model import LanguageModel
from lisa_ros.perception.image_encoder import StageTimer
from lisa_ros.perception.mask_decoder import MaskDecoder, MaskRequest, ScoredMask
from lisa_ros.perception.reply import Reply
from lisa_ros.perception.stopping import StopCondition
from lisa_ros.results import Event


@dataclass(frozen=True)
class BatchRow:
    """One answer of a batch."""

    prompt: BatchPrompt
    reply: Reply  # gets tokens and masks; its timer the row's share of the stages
    stop: StopCondition


@dataclass(frozen=True)
class RowEnd:
    """The answer of a row has ended."""

    error: ModelError | None = None  # the model computed NaN


def answer_rows(
    language_model: LanguageModel,
    mask_decoder: MaskDecoder,
    rows: Sequence[BatchRow],
    stop_id: int,
) -> Iterator[tuple[int, Event | RowEnd]]:
    """Yield the tokens and masks of each row, each with the row's number, and its end.

    Args:
        language_model: generates the tokens.
        mask_decoder: makes the masks.
        rows: at least one.
        stop_id: the id of </s>.
    """
    ended: set[int] = set()
    passes = generate_batch(
        language_model,
        [row.prompt for row in rows],
        stop_id=stop_id,
        is_done=lambda number: number in ended,
    )
    while True:
        timer = StageTimer(language_model.device)
        with timer.stage('tokens'):
            steps = next(passes, None)
        if steps is None:
            return
        for step in steps:
            share = timer.seconds['tokens'] / len(steps)
            rows[step.number].reply.timer.add({'tokens': share})
        masks = _decoded(mask_decoder, rows, steps)
        for step, row_masks in zip(steps, masks, strict=True):
            for event in _events(rows[step.number], step, row_masks):
                if isinstance(event, RowEnd):
                    ended.add(step.number)
                yield step.number, event


def _decoded(
    mask_decoder: MaskDecoder, rows: Sequence[BatchRow], steps: Sequence[BatchStep]
) -> list[Iterator[ScoredMask | ModelError]]:
    """Return the masks of each row's new [SEG]; those of all rows are decoded at once."""
    requests = [_mask_requests(rows[step.number], step) for step in steps]
    together = [request for row_requests in requests for request in row_requests]
    masks = iter(mask_decoder.decode_batch(together))
    # lists: a row that ends early must not leave its masks to the next one
    return [iter(list(itertools.islice(masks, len(row)))) for row in requests]


def _mask_requests(row: BatchRow, step: BatchStep) -> list[MaskRequest]:
    return [] if row.stop.is_set() else row.reply.mask_requests(step.tokens)


def _events(
    row: BatchRow, step: BatchStep, masks: Iterator[ScoredMask | ModelError]
) -> Iterator[Event | RowEnd]:
    """Yield the events of one pass for a row."""
    is_last = step.is_last
    try:
        if step.error is not None:
            raise step.error
        for token in step.tokens:
            if row.stop.is_set():
                is_last = True
                break
            yield from row.reply.push_decoded(token, masks)
            if row.reply.answer.repeated_count:
                is_last = True
                break
    except ModelError as error:
        yield RowEnd(error)
        return
    if is_last:
        yield RowEnd()
