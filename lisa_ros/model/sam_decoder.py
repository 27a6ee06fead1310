# SPDX-License-Identifier: Apache-2.0
"""Run transformers' SAM mask decoder without keys, values and queries of all cells.

A prompt has few tokens (SAM's IoU token and mask tokens, and [SEG]), an image 4096 cells. To
project every cell for each attention is most of the decoder's arithmetic. As attention is linear
in them, the projections move to the tokens:

    q · (W_k x)  =  (q W_k) · x            sum_x p(x) W_v x  =  W_v sum_x p(x) x

Then a cell costs the product with a vector for each token and head. A bias of the keys adds the
same to all scores of a query, so that softmax drops it. Upscaling is a product of matrices, too,
since the kernels of its transposed convolutions do not overlap.
Masks are the same up to rounding (test/test_sam_decoder.py).

Letters: N prompts, B images (1 or N), P = h w cells, C channels, T tokens, G heads of width d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.sam.modeling_sam import (
    SamAttention,
    SamMaskDecoder,
    SamTwoWayAttentionBlock,
)

_CELLS = 512  # upscaled at a time: the intermediate states stay in the processor's cache


def decode(
    decoder: SamMaskDecoder,
    image_embedding: Tensor,
    dense_prompt: Tensor,
    positions: Tensor,
    prompts: Tensor,
    points: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the first mask of each prompt.

    Args:
        decoder: the layers.
        image_embedding: (B, C, h, w).
        dense_prompt: that of every cell, (1, C).
        positions: encoding of the grid's cells, (1, C, h, w).
        prompts: (N, C), one sparse token each.
        points: (N, K, C), further sparse tokens, before it; None: none.

    Returns:
        Low-resolution logits (N, 4h, 4w), and the prediction of their IoU (N,).
    """
    count, (height, width) = len(prompts), image_embedding.shape[-2:]
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    sparse = prompts[:, None] if points is None else torch.cat([points, prompts[:, None]], dim=1)
    tokens = torch.cat([output_tokens.expand(count, -1, -1), sparse], dim=1)  # (N, T, C)
    cells = image_embedding.flatten(2).transpose(1, 2)
    image = cells.clone(memory_format=torch.contiguous_format).add_(dense_prompt)  # (B, P, C)
    places = positions.flatten(2).transpose(1, 2)  # (1, P, C)
    states, transformer = tokens, decoder.transformer
    for layer in transformer.layers:
        states, image = _layer(layer, states, image, tokens, places)
    read = _read_image(
        transformer.final_attn_token_to_image, states + tokens, image + places, image
    )
    states = transformer.layer_norm_final_attn(states + read)
    weights = decoder.output_hypernetworks_mlps[0](states[:, 1])  # (N, C / 8)
    masks = _upscale(decoder, image.expand(count, -1, -1), weights, height, width)
    return masks, decoder.iou_prediction_head(states[:, 0])[:, 0]


def _layer(
    layer: SamTwoWayAttentionBlock, states: Tensor, image: Tensor, tokens: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the states of the tokens, (N, T, C), and of the image, (N, P, C), after a layer."""
    if layer.skip_first_layer_pe:
        states = _attend_tokens(layer.self_attn, states, states)
    else:
        states = states + _attend_tokens(layer.self_attn, states + tokens, states)
    states = layer.layer_norm1(states)
    placed = image + places
    read = _read_image(layer.cross_attn_token_to_image, states + tokens, placed, image)
    states = layer.layer_norm2(states + read)
    states = layer.layer_norm3(states + layer.mlp(states))
    image = _write_image(layer.cross_attn_image_to_token, image, placed, states + tokens, states)
    return states, layer.layer_norm4(image)


def _attend_tokens(attention: SamAttention, queries: Tensor, values: Tensor) -> Tensor:
    """Return attention of the tokens to each other, (N, T, C)."""
    attended, _ = attention(query=queries[:, None], key=queries[:, None], value=values[:, None])
    return attended[:, 0]


def _read_image(attention: SamAttention, queries: Tensor, placed: Tensor, image: Tensor) -> Tensor:
    """Return attention of tokens (N, T, C) to the image (B, P, C), (N, T, C)."""
    heads = attention.num_attention_heads
    folded_queries = attention.q_proj(queries).unflatten(-1, (heads, -1))  # (N, T, G, d)
    keys = attention.k_proj.weight.unflatten(0, (heads, -1))  # (G, d, C)
    folded_queries = (
        torch.einsum('ntgd,gdc->ngtc', folded_queries, keys).flatten(1, 2) * attention.scaling
    )
    shares = (folded_queries @ placed.transpose(1, 2)).softmax(-1)  # (N, G T, P)
    pooled = (shares @ image).unflatten(1, (heads, -1))  # (N, G, T, C)
    values = attention.v_proj.weight.unflatten(0, (heads, -1))
    read = torch.einsum('ngtc,gdc->ntgd', pooled, values).flatten(2) + attention.v_proj.bias
    return attention.out_proj(read)


def _write_image(
    attention: SamAttention, image: Tensor, placed: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Return the image (B, P, C) plus its attention to tokens (N, T, C), (N, P, C)."""
    heads, tokens = attention.num_attention_heads, keys.shape[1]
    folded_keys = (
        attention.k_proj(keys).unflatten(-1, (heads, -1)) * attention.scaling
    )  # (N, T, G, d)
    queries = attention.q_proj.weight.unflatten(0, (heads, -1))  # (G, d, C)
    bias = torch.einsum(
        'ntgd,gd->ngt', folded_keys, attention.q_proj.bias.unflatten(0, (heads, -1))
    )
    folded_keys = torch.einsum('ntgd,gdc->ngtc', folded_keys, queries).flatten(1, 2)  # (N, G T, C)
    scores = placed @ folded_keys.transpose(1, 2) + bias.flatten(1)[:, None]  # (N, P, G T)
    shares = scores.unflatten(-1, (heads, tokens)).softmax(-1).flatten(2)
    token_values = attention.v_proj(values).unflatten(-1, (heads, -1))
    out = attention.out_proj.weight.unflatten(1, (heads, -1))  # (C, G, d)
    token_values = torch.einsum('ntgd,cgd->ngtc', token_values, out).flatten(1, 2)  # (N, G T, C)
    token_values = (
        token_values + attention.out_proj.bias / heads
    )  # the shares of each head sum to 1
    return torch.baddbmm(image.expand(len(token_values), -1, -1), shares, token_values)


def _upscale(
    decoder: SamMaskDecoder, image: Tensor, weights: Tensor, height: int, width: int
) -> Tensor:
    """Return mask logits, (N, 4h, 4w), of image states (N, P, C) and weights (N, C / 8)."""
    first, second, norm = decoder.upscale_conv1, decoder.upscale_conv2, decoder.upscale_layer_norm
    kernel1, kernel2 = (
        conv.weight.permute(0, 2, 3, 1).flatten(1).contiguous() for conv in (first, second)
    )  # (C, 2 2 C / 4), (C / 4, 2 2 C / 8)
    bias1, bias2 = (conv.bias.repeat(4) for conv in (first, second))
    masks = image.new_empty((*image.shape[:2], 4, 4))
    for mask, cells, weight in zip(masks, image, weights, strict=True):
        for start in range(0, len(cells), _CELLS):
            part = slice(start, start + _CELLS)
            finer = torch.addmm(bias1, cells[part], kernel1).view(-1, first.out_channels)
            normal = F.layer_norm(finer, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            finest = torch.addmm(bias2, decoder.activation(normal), kernel2)
            finest = decoder.activation(finest).view(-1, second.out_channels)
            pixels = (finest @ weight).view(-1, 2, 2, 2, 2)  # rows, columns, rows, columns
            mask[part] = pixels.transpose(2, 3).flatten(3).flatten(1, 2)
    masks = masks.view(-1, height, width, 4, 4).transpose(2, 3)
    return masks.reshape(-1, 4 * height, 4 * width)
