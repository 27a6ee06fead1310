# SPDX-License-Identifier: Apache-2.0
"""LISA writes its answer, one token at a time, and hands out the state behind each.

The picture is encoded once and keys and values are kept, where the original runs everything anew
for every token; ids and states come out the same (test/test_decoding.py). Greedy: the most
probable token is taken.

Letters: L places of the prompt, picture included; D width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from lisa_ros.model.lisa import LISA


@dataclass(frozen=True)
class Prefill:
    """A prompt that the language model has read."""

    states: Tensor  # (L, D) after the final norm; the one at place i predicts place i + 1
    cache: DynamicCache  # keys and values; writing an answer extends it, so use it once


@dataclass(frozen=True)
class GeneratedToken:
    """One token of the answer."""

    token_id: int
    probability: float  # of this token, given all before it
    state: Tensor  # (D,) the state that predicted it; a [SEG]'s mask is made of it


@torch.inference_mode()
def prefill(model: LISA, places: Tensor) -> Prefill:
    """Run the language model over a prompt, (L, D), as `LISA.embed` makes it."""
    cache = DynamicCache(config=model.llm.config)
    states = model.llm.model(
        inputs_embeds=places[None], past_key_values=cache, use_cache=True
    ).last_hidden_state[0]
    return Prefill(states, cache)


@torch.inference_mode()
def generate(
    model: LISA,
    prompt: Prefill,
    *,
    stop_id: int,
    max_new_tokens: int,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[GeneratedToken]:
    """Yield the answer's tokens; the last is `stop_id` unless the limit or a cancel came first.

    Args:
        model: in eval mode.
        prompt: just read; it is used up.
        stop_id: the id of </s>.
        max_new_tokens: longest answer.
        cancelled: asked before every token.
    """
    state = prompt.states[-1]
    for _ in range(max_new_tokens):
        if cancelled():
            return
        scores = model.llm.lm_head(state).float()
        token = int(scores.argmax())
        yield GeneratedToken(token, float(scores.softmax(-1)[token]), state)
        if token == stop_id:
            return
        place = model.llm.get_input_embeddings()(torch.tensor([[token]], device=state.device))
        state = model.llm.model(
            inputs_embeds=place, past_key_values=prompt.cache, use_cache=True
        ).last_hidden_state[0, -1]
