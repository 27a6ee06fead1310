# SPDX-License-Identifier: Apache-2.0
"""A tiny language model with random weights that counts its passes."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lisa_ros.model.language_model import LanguageModel

WIDTH, VOCABULARY = 32, 40


class CountingModel(LanguageModel):
    """Counts the passes through the language model."""

    passes = 0

    def read(self, *arguments, **options):
        self.passes += 1
        return super().read(*arguments, **options)


def counting_model(key_value_heads=4):
    """Return the model, the same at each call."""
    torch.manual_seed(3)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        vocab_size=VOCABULARY,
        initializer_range=0.5,
    )
    return CountingModel(LlamaForCausalLM(config).eval())
