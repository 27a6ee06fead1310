# SPDX-License-Identifier: Apache-2.0
"""How probable it is that an answer begins with given words, without generating it.

Letters: L positions of the prompt; n tokens of a phrase. Any thread, one at a time for a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lisa_ros.model.generation import Prefill, checked_probability
from lisa_ros.model.language_model import LanguageModel


@torch.inference_mode()
def phrase_probabilities(
    model: LanguageModel, prompt: Prefill, phrases: Sequence[Sequence[int]]
) -> list[float]:
    """Return the probability of each phrase as the beginning of the answer, 0..1.

    A phrase of one token costs nothing beyond the prompt; a longer one is read once.

    Args:
        model: that read the prompt.
        prompt: without drafts; its cache is the same afterwards.
        phrases: token ids, at least one each; no phrase may be the beginning of another one.

    Raises:
        ModelError: the scores of a token are NaN.
    """
    first = model.scores(prompt.state(prompt.length - 1)).log_softmax(-1)
    probabilities = []
    for phrase in phrases:
        log_probability = first[phrase[0]]
        if len(phrase) > 1:
            log_probability = log_probability + _rest(model, prompt, phrase)
        probabilities.append(checked_probability(float(log_probability.exp())))
    return probabilities


def _rest(model: LanguageModel, prompt: Prefill, phrase: Sequence[int]) -> torch.Tensor:
    """Return the log probability of a phrase after its first token."""
    tokens = torch.tensor(phrase, device=model.device)
    states = model.read(model.embed(tokens[None, :-1]), prompt.key_values)[0]
    prompt.key_values.keep(prompt.length, [])
    scores = model.scores(states).log_softmax(-1)  # (n - 1, V)
    return scores.gather(1, tokens[1:, None]).sum()
