# SPDX-License-Identifier: Apache-2.0
"""Run transformers' SAM vision encoder without its tensors of relative positions.

Attention adds q·R_h + q·R_w to the scores of each pair of cells: how far a key is above and beside
the query (segment-anything, from MViTv2, arXiv 2112.01526). transformers makes a tensor of all
pairs: 0.8 GB for each global layer of ViT-B at 1024 px. Here no such tensor exists:

- on a CPU, queries are processed row by row: for a row of the grid, R_h is added to the keys,
  because all its queries have the same distance to a row of keys;
- on a GPU, the two terms are further dimensions of queries and keys: a query gets its terms for
  each row and column, a key a one in its own row and column. Then flash attention needs no bias.

Padding of the windows costs nothing but attention: what `qkv` makes of it is its bias.
Features are the same up to rounding (test/test_sam_encoder.py).

Letters: B images, h x w cells of the grid, C channels, G heads of width d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import (
    SamVisionAttention,
    SamVisionEncoder,
    SamVisionLayer,
)

_MLP_CELLS = 1024  # at a time on a CPU, so that intermediate states stay in its cache


def encode(encoder: SamVisionEncoder, pixels: Tensor) -> Tensor:
    """Return SAM's image embeddings, (B, C, h, w), of SAM pixels (B, 3, S, S)."""
    states = encoder.patch_embed(pixels)
    if encoder.pos_embed is not None:
        states = states + encoder.pos_embed
    for layer in encoder.layers:
        qkv = layer.attn.qkv(layer.layer_norm1(states))
        attended = _windows(layer, qkv) if layer.window_size else _attend(layer.attn, qkv)
        states = states + layer.attn.proj(attended)
        states = states + _mlp(layer, states)
    return encoder.neck(states)


def _windows(layer: SamVisionLayer, qkv: Tensor) -> Tensor:
    """Return the output of attention inside windows, (B, h, w, C), of qkv (B, h, w, 3C)."""
    size, (images, height, width, channels) = layer.window_size, qkv.shape
    rows, columns = -(-height // size), -(-width // size)
    bias = layer.attn.qkv.bias
    if (rows * size, columns * size) != (height, width):
        padded = qkv.new_empty((images, rows * size, columns * size, channels))
        padded[:] = 0 if bias is None else bias
        padded[:, :height, :width] = qkv
        qkv = padded
    windows = qkv.view(images, rows, size, columns, size, channels).transpose(2, 3)
    windows = windows.reshape(-1, size, size, channels)
    attended = _attend(layer.attn, windows)
    attended = attended.view(images, rows, columns, size, size, -1).transpose(2, 3)
    return attended.reshape(images, rows * size, columns * size, -1)[:, :height, :width]


def _attend(attention: SamVisionAttention, qkv: Tensor) -> Tensor:
    """Return the output of attention before `proj`, (B, h, w, C), of qkv (B, h, w, 3C)."""
    images, height, width, _ = qkv.shape
    heads = attention.num_attention_heads
    qkv = qkv.reshape(images, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    queries, keys, values = qkv.unbind(0)  # (B, G, h w, d)
    if not attention.use_rel_pos:
        attended = F.scaled_dot_product_attention(queries, keys, values)
    else:
        by_row = _relative(attention.rel_pos_h, height)  # (h, h, d): of query and key
        by_column = _relative(attention.rel_pos_w, width)  # (w, w, d)
        attend = _attend_wide if qkv.is_cuda else _attend_by_row
        attended = attend(queries, keys, values, by_row, by_column)
    return attended.transpose(1, 2).reshape(images, height, width, -1)


def _relative(table: Tensor, size: int) -> Tensor:
    """Return the vector for each query and key of an axis, (size, size, d)."""
    if len(table) != 2 * size - 1:  # trained on another grid
        table = F.interpolate(table.T[None], size=2 * size - 1, mode='linear')[0].T
    axis = torch.arange(size, device=table.device)
    return table[axis[:, None] - axis + size - 1]


def _attend_wide(
    queries: Tensor, keys: Tensor, values: Tensor, by_row: Tensor, by_column: Tensor
) -> Tensor:
    """Return attention, (B, G, h w, d), with the relative positions as further dimensions."""
    height, width, depth = len(by_row), len(by_column), queries.shape[-1]
    grid = queries.unflatten(2, (height, width))
    rows = torch.einsum('bgyxd,ykd->bgyxk', grid, by_row).flatten(2, 3)
    columns = torch.einsum('bgyxd,xkd->bgyxk', grid, by_column).flatten(2, 3)
    cells = torch.arange(height * width, device=queries.device)
    ones_row = F.one_hot(cells // width, height).to(keys.dtype)
    ones_column = F.one_hot(cells % width, width).to(keys.dtype)
    extra = height + width
    padding = -(depth + extra) % 8  # flash attention wants multiples of 8
    room = (*queries.shape[:3], padding)
    marks = torch.cat([ones_row, ones_column], dim=-1).expand(*keys.shape[:2], -1, -1)
    wide_queries = torch.cat(
        [queries * depth**-0.5, rows, columns, queries.new_zeros(room)], dim=-1
    )
    wide_keys = torch.cat([keys, marks, keys.new_zeros(room)], dim=-1)
    wide_values = F.pad(values, (0, extra + padding))
    attended = F.scaled_dot_product_attention(wide_queries, wide_keys, wide_values, scale=1.0)
    return attended[..., :depth]


def _attend_by_row(
    queries: Tensor, keys: Tensor, values: Tensor, by_row: Tensor, by_column: Tensor
) -> Tensor:
    """Return attention, (B, G, h w, d), one row of queries after the other."""
    height, width, depth = len(by_row), len(by_column), queries.shape[-1]
    images, heads = queries.shape[:2]
    queries = queries.reshape(-1, height, width, depth)  # (B G, h, w, d)
    grid_keys = keys.reshape(-1, height, width, depth) * depth**-0.5
    values = values.reshape(-1, height * width, depth)
    attended = torch.empty_like(queries)
    scores = queries.new_empty((len(queries), width, height, width))
    row_keys = torch.empty_like(grid_keys)
    flat_keys = row_keys.view(len(queries), -1, depth).transpose(1, 2)
    flat_scores = scores.view(len(queries), width, -1)
    for row in range(height):
        own = queries[:, row]  # (B G, w, d)
        torch.add(grid_keys, by_row[row][:, None], out=row_keys)
        beside = torch.einsum('nxd,xkd->nxk', own, by_column)  # (B G, w, w)
        scores.copy_(beside[:, :, None])
        torch.baddbmm(flat_scores, own, flat_keys, out=flat_scores)
        torch.softmax(flat_scores, dim=-1, out=flat_scores)
        torch.bmm(flat_scores, values, out=attended[:, row])
    return attended.view(images, heads, height * width, depth)


def _mlp(layer: SamVisionLayer, states: Tensor) -> Tensor:
    """Return the output of a layer's MLP, with its norm, (B, h, w, C)."""
    mlp: nn.Module = layer.mlp
    if states.is_cuda or states.requires_grad:
        return mlp(layer.layer_norm2(states))
    flat = states.flatten(0, 2)
    parts = [mlp(layer.layer_norm2(part)) for part in flat.split(_MLP_CELLS)]
    return torch.cat(parts).view_as(states)
