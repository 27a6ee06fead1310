# SPDX-License-Identifier: Apache-2.0
"""Greedy generation of LISA's answer, token by token, with the hidden state of each token.

The image is encoded once and keys and values are cached, where the original computes the whole
sequence again for each token. Ids and states are the same (test/test_generation.py).

Letters: L positions of the prompt, image tokens included; D width of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from lisa_ros.errors import NON_FINITE_CAUSE, ModelError
from lisa_ros.model.lisa import LISA


@dataclass(frozen=True)
class Prefill:
    """A prompt that the language model has read. Use it for one answer: the cache grows."""

    states: Tensor  # (L, D) after the final norm; the state at position i predicts position i + 1
    cache: DynamicCache  # keys and values


@dataclass(frozen=True)
class GeneratedToken:
    """One token of the answer."""

    token_id: int
    probability: float  # of this token, given all tokens before it
    state: Tensor  # (D,) the state that predicted it; the mask of a [SEG] is made from it


@torch.inference_mode()
def prefill(model: LISA, embeddings: Tensor) -> Prefill:
    """Run the language model on a prompt, (L, D), that `LISA.embed` returned."""
    cache = DynamicCache(config=model.llm.config)
    states = model.llm.model(
        inputs_embeds=embeddings[None], past_key_values=cache, use_cache=True
    ).last_hidden_state[0]
    return Prefill(states, cache)


@torch.inference_mode()
def generate(
    model: LISA,
    prompt: Prefill,
    *,
    stop_id: int,
    max_new_tokens: int,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[GeneratedToken]:
    """Yield the answer's tokens up to and with `stop_id`, or until the limit or a cancel.

    Args:
        model: in eval mode.
        prompt: a new Prefill; this call changes its cache.
        stop_id: the id of </s>.
        max_new_tokens: length limit of the answer.
        is_cancelled: called before each token; True ends the answer.

    Raises:
        ModelError: the scores of a token are NaN.
    """
    state = prompt.states[-1]
    for _ in range(max_new_tokens):
        if is_cancelled():
            return
        scores = model.llm.lm_head(state).float()
        token = int(scores.argmax())
        probability = float(scores.softmax(-1)[token])
        if not math.isfinite(probability):  # one NaN or infinite score makes all of them NaN
            raise ModelError(
                f'the model computed NaN in the scores of the next token: {NON_FINITE_CAUSE}'
            )
        yield GeneratedToken(token, probability, state)
        if token == stop_id:
            return
        embedding = model.llm.get_input_embeddings()(torch.tensor([[token]], device=state.device))
        state = model.llm.model(
            inputs_embeds=embedding, past_key_values=prompt.cache, use_cache=True
        ).last_hidden_state[0, -1]
