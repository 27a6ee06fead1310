# SPDX-License-Identifier: Apache-2.0
"""Run transformers' LLaMA on a part of its input, with `KeyValues` instead of its own cache.

The layers are called one by one, with fewer kernels around them than `LlamaModel.forward`: for a
small model on a CPU, and for each token on a GPU, those take longer than the arithmetic. States
are the same up to rounding (test/test_language_model.py).

Letters: B rows, n new positions of each, D width of the model, P positions so far, n included, V
tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm

from lisa_ros.model.key_values import FixedKeyValues, KeyValues


class LanguageModel:
    """A LLaMA in eval mode; it keeps no state between calls. Any thread."""

    def __init__(self, llm: LlamaForCausalLM):
        """Wrap a model that stays on its device."""
        self._llm = llm

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self._llm.model.norm.weight.device

    def new_cache(self, capacity: int, rows: int = 1) -> KeyValues:
        """Return an empty cache for `rows` prompts of up to `capacity` positions."""
        config, like = self._llm.config, self._llm.model.norm.weight
        width = self._llm.model.layers[0].self_attn.head_dim
        shape = (config.num_hidden_layers, 2, rows, config.num_key_value_heads, capacity, width)
        return KeyValues(torch.empty(shape, dtype=like.dtype, device=like.device))

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings of token ids, (..., D)."""
        return self._llm.get_input_embeddings()(token_ids)

    def scores(self, states: Tensor) -> Tensor:
        """Return the score of each token to come next, (..., V) float32, of states (..., D)."""
        return self._llm.lm_head(states).float()

    def read(
        self,
        embeddings: Tensor,
        key_values: KeyValues | FixedKeyValues,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Return the states of new positions, (B, n, D) after the final norm; extend the cache.

        Of positions whose states nobody needs, the last layer computes keys and values only.

        Args:
            embeddings: (B, n, D) of the new positions.
            key_values: of the positions before them; gets theirs. FixedKeyValues needs positions,
                and a mask of all new ones.
            positions: (B, n) or (1, n) long, for the rotary embedding; None: one after the other.
            mask: (m, P) or (B, 1, m, P) bool, which positions the last m of the new ones see; all
                others see those before them and themselves. None: m is 0.
            last: return the states of that many of the last positions only, at least m; None: of
                all n.
        """
        model, start, count = self._llm.model, key_values.length, embeddings.shape[1]
        if positions is None:
            positions = torch.arange(start, start + count, device=embeddings.device)[None]
        rotary = model.rotary_emb(embeddings, position_ids=positions)
        cosines, sines = (part[:, None] for part in rotary)  # (B, 1, n, d): for all heads
        masks, kept = _masks(start, count, mask, embeddings.device), count
        states = embeddings
        for index, layer in enumerate(model.layers):
            if last is not None and last < count and index == len(model.layers) - 1:
                kept = last
                masks = _masks(start + count - kept, kept, mask, embeddings.device)
            normed = _norm(layer.input_layernorm, states)
            attended = _attend(
                layer.self_attn, normed, key_values, (cosines, sines), masks, index, kept
            )
            states = states[:, count - kept :] + attended
            states = states + layer.mlp(_norm(layer.post_attention_layernorm, states))
        key_values.advance(count)
        return _norm(model.norm, states)


def _masks(
    start: int, count: int, mask: Tensor | None, device: torch.device
) -> list[tuple[slice, Tensor | None]]:
    """Return parts of the new positions, each with the positions that it sees, (..., n, P) bool.

    None: a position sees those before it and itself. Attention computes that fastest, for a single
    position or for the first ones of all.
    """
    if count == 0:
        return []
    plain = count - (0 if mask is None else mask.shape[-2])
    if mask is None and (start == 0 or count == 1):
        return [(slice(0, count), None)]
    if plain == 0:
        return [(slice(0, count), mask)]
    if start == 0:
        return [(slice(0, plain), None), (slice(plain, count), mask)]
    ones = torch.ones((plain, start + count), dtype=torch.bool, device=device)
    causal = ones.tril(start)
    if mask is not None:
        causal = torch.cat([causal.expand(*mask.shape[:-2], -1, -1), mask], dim=-2)
    return [(slice(0, count), causal)]


def _attend(
    attention: LlamaAttention,
    states: Tensor,
    key_values: KeyValues | FixedKeyValues,
    rotary: tuple[Tensor, Tensor],
    masks: Sequence[tuple[slice, Tensor | None]],
    layer: int,
    kept: int,
) -> Tensor:
    """Return the output of a layer's attention for the last `kept` positions, (B, kept, D)."""
    rows, count, _ = states.shape
    heads = (rows, count, -1, attention.head_dim)
    keys = _rotate(attention.k_proj(states).view(heads).transpose(1, 2), *rotary)
    values = attention.v_proj(states).view(heads).transpose(1, 2)
    keys, values = key_values.write(layer, keys, values)
    if kept == 0:
        return states[:, :0]
    asking = attention.q_proj(states[:, count - kept :]).view(rows, kept, -1, attention.head_dim)
    rotary = [part[:, :, count - kept :] for part in rotary]
    queries = _rotate(asking.transpose(1, 2), *rotary)
    start = keys.shape[2] - kept
    parts = [
        F.scaled_dot_product_attention(
            queries[:, :, part],
            keys[:, :, : start + part.stop],
            values[:, :, : start + part.stop],
            attn_mask=mask,
            is_causal=mask is None and part.stop > 1,
            scale=attention.scaling,
            enable_gqa=attention.num_key_value_groups > 1,
        )
        for part, mask in masks
    ]
    attended = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return attention.o_proj(attended.transpose(1, 2).reshape(rows, kept, -1))


def _rotate(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Return states (B, heads, n, d) turned by their positions, as LLaMA does."""
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return states * cosines + turned * sines


def _norm(norm: LlamaRMSNorm, states: Tensor) -> Tensor:
    """Return normalized states; one kernel on a GPU."""
    return F.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)
