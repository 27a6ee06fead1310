# SPDX-License-Identifier: Apache-2.0
"""Attention supervision: to predict a position, a size or a name, attend to that object.

Before the tokens that `attention_targets` finds, two heads of one layer of the language model are
trained to attend to given image tokens. Nothing else tells a model that starts from random
weights where to look: its masks depend on what [SEG] says the object looks like, and a number that
is trained by its own loss alone is read from all patches at once.

The loss `name_tokens` is the cross-entropy of the tokens of those names, and of those between the
names of a list. In the loss of whole answers they are two tokens among thirty.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lisa_ros.model.lisa import LISA, Conversations, LisaOutput
from lisa_ros.model.packing import IMAGE_TOKEN_INDEX
from lisa_ros.training.tabletop.batches import AttentionTargets

SUPERVISED_HEADS = 2  # the first ones of the layer


def supervised_layer(lisa: LISA) -> int:
    """Return the index of the supervised layer: the last but one.

    One layer is left to turn what the heads read into the token.
    """
    return max(0, len(lisa.llm.model.layers) - 2)


def attention_losses(
    lisa: LISA, output: LisaOutput, inputs: Conversations, targets: AttentionTargets
) -> dict[str, Tensor]:
    """Return the losses `attention` and `name_tokens`; 0 without a target.

    `attention` is the Kullback-Leibler divergence of the heads' attention from the targets.

    Args:
        lisa: the model.
        output: of the model for `inputs`, with the input of `supervised_layer`.
        inputs: the conversations.
        targets: tokens of them.
    """
    zero = output.llm_states.sum() * 0
    attention_loss, name_loss = zero, zero
    if len(targets.query_index):
        is_image = inputs.input_ids == IMAGE_TOKEN_INDEX
        image_start = is_image.long().argmax(1)[targets.query_index]
        attention = supervised_attention(lisa, output, targets, image_start)
        expected = targets.attention
        divergence = torch.xlogy(expected, expected) - expected * (attention + 1e-6).log()
        attention_loss = divergence.sum(1).mean()
    if targets.is_name.any():
        rows = targets.query_index[targets.is_name]
        columns = targets.token_index[targets.is_name]
        states = output.llm_states[rows, output.predicting_positions(columns)]
        logits = lisa.llm.lm_head(states).float()
        name_loss = F.cross_entropy(logits, inputs.labels[rows, columns])
    return {'attention': attention_loss, 'name_tokens': name_loss}


def supervised_attention(
    lisa: LISA, output: LisaOutput, targets: AttentionTargets, image_start: Tensor
) -> Tensor:
    """Return the attention of the supervised heads while they predict the target tokens.

    Args:
        lisa: the model.
        output: of the model, with the input of `supervised_layer`.
        targets: n tokens.
        image_start: (n,) long, where the image tokens begin in the row of each.

    Returns:
        (n, P), the mean of the heads' attention to each image token. A row sums to less than one:
        the rest is attention to text tokens.
    """
    scaling = lisa.llm.model.layers[supervised_layer(lisa)].self_attn.scaling
    queries, keys = _queries_and_keys(lisa, output.llm_layer_input)
    predicting = output.predicting_positions(targets.token_index)
    scores = torch.einsum(
        'nhd,nhld->nhl',
        queries[targets.query_index, :, predicting],
        keys[targets.query_index],
    )
    columns = torch.arange(keys.shape[2], device=image_start.device)
    is_later = columns > predicting[:, None]
    scores = (scores * scaling).masked_fill(is_later[:, None], float('-inf'))
    attention = scores.softmax(-1).mean(1)  # (n, L)
    image_tokens = torch.arange(output.clip_tokens.shape[1], device=image_start.device)
    image_columns = image_start[:, None] + image_tokens
    return attention.gather(1, image_columns)


def _queries_and_keys(lisa: LISA, layer_input: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and keys of the supervised heads, each (Q, heads, L, head size) float."""
    layer = lisa.llm.model.layers[supervised_layer(lisa)]
    states = layer.input_layernorm(layer_input)
    positions = torch.arange(states.shape[1])[None].to(states.device)
    rotation = lisa.llm.model.rotary_emb(states, positions)
    size = layer.self_attn.head_dim
    queries, keys = (
        (states @ projection.weight[: SUPERVISED_HEADS * size].T)
        .unflatten(-1, (SUPERVISED_HEADS, size))
        .transpose(1, 2)
        .float()
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    return apply_rotary_pos_emb(queries, keys, *rotation)
