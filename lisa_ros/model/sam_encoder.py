# SPDX-License-Identifier: Apache-2.0
"""Run transformers' SAM vision encoder without its tensors of relative positions.

Attention adds q·R_h + q·R_w to the scores of each pair of cells: how far a key is above and beside
the query (segment-anything, from MViTv2, arXiv 2112.01526). transformers makes a tensor of all
pairs: 0.8 GB for each global layer of ViT-B at 1024 px. Here there is no such tensor:

- on a CPU, a block of heads and queries after the other gets a small one, which stays in the
  processor's cache;
- on a GPU, the two terms are further dimensions of queries and keys: a query gets its terms for
  each row and column, a key a one in its own row and column. Then flash attention needs no bias.

Padding of the windows costs nothing but attention: what `qkv` makes of it is its bias.
Features are the same up to rounding (test/test_sam_encoder.py).

Letters: B images, h x w cells of the grid, C channels, G heads of width d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.sam.modeling_sam import (
    SamVisionAttention,
    SamVisionEncoder,
    SamVisionLayer,
)

_BLOCK = 1 << 22  # numbers in the relative positions of a block on a CPU, 16 MB
_MLP_CELLS = 1024  # at a time on a CPU, so that intermediate states stay in its cache


@torch.no_grad()
def encode(encoder: SamVisionEncoder, pixels: Tensor) -> Tensor:
    """Return SAM's image embeddings, (B, C, h, w), of SAM pixels (B, 3, S, S)."""
    states = encoder.patch_embed(pixels)  # (B, h, w, C)
    if encoder.pos_embed is not None:
        states = states + encoder.pos_embed
    states = states.contiguous()  # changed in place from here on
    for layer in encoder.layers:
        attend = _windows if layer.window_size else _whole
        states += layer.attn.proj(attend(layer, states))
        _add_mlp(layer, states)
    return encoder.neck(states)


def _whole(layer: SamVisionLayer, states: Tensor) -> Tensor:
    """Return the output of attention over the whole grid, (B, h, w, C), of states (B, h, w, C)."""
    images, height, width, _ = states.shape
    attention = layer.attn
    qkv = attention.qkv(layer.layer_norm1(states))
    parts = qkv.view(images, height * width, 3, attention.num_attention_heads, -1)
    attended = _attend(attention, parts.permute(2, 0, 3, 1, 4), height, width)
    return attended.transpose(1, 2).reshape(states.shape)


def _windows(layer: SamVisionLayer, states: Tensor) -> Tensor:
    """Return the output of attention inside windows, (B, h, w, C), of states (B, h, w, C).

    One row of windows after the other on a CPU: all of them would need three times the memory.
    """
    size, height = layer.window_size, states.shape[1]
    step = height if states.is_cuda else size
    attended = torch.empty_like(states)
    for row in range(0, height, step):
        part = slice(row, row + step)
        attended[:, part] = _rows_of_windows(layer, states[:, part])
    return attended


def _rows_of_windows(layer: SamVisionLayer, states: Tensor) -> Tensor:
    """Return `_windows` of some rows; the last window may be incomplete."""
    qkv = layer.attn.qkv(layer.layer_norm1(states))
    size, (images, height, width, channels) = layer.window_size, qkv.shape
    rows, columns = -(-height // size), -(-width // size)
    bias = layer.attn.qkv.bias
    if (rows * size, columns * size) != (height, width):
        padded = qkv.new_empty((images, rows * size, columns * size, channels))
        for outside in (padded[:, height:], padded[:, :height, width:]):
            outside[:] = 0 if bias is None else bias
        padded[:, :height, :width] = qkv
        qkv = padded
    heads = layer.attn.num_attention_heads
    windows = qkv.view(images, rows, size, columns, size, 3, heads, -1)
    windows = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(
        3, -1, heads, size * size, channels // 3 // heads
    )
    attended = _attend(layer.attn, windows, size, size)
    attended = attended.view(images, rows, columns, heads, size, size, -1)
    attended = attended.permute(0, 1, 4, 2, 5, 3, 6).reshape(
        images, rows * size, columns * size, -1
    )
    return attended[:, :height, :width]


def _attend(attention: SamVisionAttention, qkv: Tensor, height: int, width: int) -> Tensor:
    """Return the output of attention before `proj`, (B, G, h w, d), of qkv (3, B, G, h w, d)."""
    queries, keys, values = qkv
    if not attention.use_rel_pos:
        return F.scaled_dot_product_attention(queries, keys, values)
    by_row = _relative(attention.rel_pos_h, height)  # (h, h, d): of query and key
    by_column = _relative(attention.rel_pos_w, width)  # (w, w, d)
    attend = _attend_wide if qkv.is_cuda else _attend_in_blocks
    return attend(queries, keys, values, by_row, by_column)


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


def _attend_in_blocks(
    queries: Tensor, keys: Tensor, values: Tensor, by_row: Tensor, by_column: Tensor
) -> Tensor:
    """Return attention, (B, G, h w, d), of some heads and rows of queries after the other."""
    height, width, depth = len(by_row), len(by_column), queries.shape[-1]
    images, heads, cells = queries.shape[:3]
    queries, keys, values = (
        part.reshape(1, images * heads, cells, depth) for part in (queries, keys, values)
    )
    grid = queries[0].view(-1, height, width, depth)  # (B G, h, w, d)
    block_rows = max(1, min(height, _BLOCK // (width * cells)))
    block_heads = max(1, _BLOCK // (block_rows * width * cells))
    attended = torch.empty_like(queries)
    biases = queries.new_empty((min(block_heads, len(grid)), block_rows, width, height, width))
    for head in range(0, len(grid), block_heads):
        own = slice(head, head + block_heads)
        rows = torch.einsum('nyxd,ykd->nyxk', grid[own], by_row)[..., None]  # (.., h, w, h, 1)
        columns = torch.einsum('nyxd,xkd->nyxk', grid[own], by_column)[..., None, :]
        for row in range(0, height, block_rows):
            block = slice(row, row + block_rows)
            own_rows, own_columns = rows[:, block], columns[:, block]
            bias = biases[: len(own_rows), : own_rows.shape[1]]
            torch.add(own_rows, own_columns, out=bias)
            part = slice(row * width, (row + bias.shape[1]) * width)
            attended[:, own, part] = F.scaled_dot_product_attention(
                queries[:, own, part],
                keys[:, own],
                values[:, own],
                attn_mask=bias.reshape(1, len(bias), -1, cells),
            )
    return attended.view(images, heads, cells, depth)


def _add_mlp(layer: SamVisionLayer, states: Tensor) -> None:
    """Add the output of a layer's MLP, with its norm, to states (B, h, w, C)."""
    flat = states.view(-1, states.shape[-1])
    for part in flat.split(len(flat) if states.is_cuda else _MLP_CELLS):
        part.add_(layer.mlp(layer.layer_norm2(part)))
