# SPDX-License-Identifier: Apache-2.0
"""Position codes in CLIP's patch states: cosine waves over the image, added in closed form.

A small CLIP that was trained on images encodes the position of a patch only to about two patches:
enough to recognize objects, too little for "left of". The codes are a few cosine waves over the
image, along directions in which the states hardly vary otherwise. The position embedding adds
them, and the layers are changed to ignore these directions, so that the codes reach the last layer
unchanged.

Letters: B images, P patches, K codes, W width of CLIP's states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES = 4  # waves along each side of the image: cos(k pi x), k = 1 ... FREQUENCIES
AMPLITUDE = 2.2  # of the codes in CLIP's states; other signals there have a deviation of 0.5


def position_codes(patches: int) -> Tensor:
    """Return the codes of each patch of a square grid, (P, 2 * FREQUENCIES), mean square one."""
    side = int(patches**0.5)
    centres = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing='ij')
    angles = torch.pi * torch.arange(1, FREQUENCIES + 1)
    waves = [(axis.flatten()[:, None] * angles).cos() for axis in (x, y)]
    return 2**0.5 * torch.cat(waves, dim=1)


@torch.no_grad()
def inject_position_codes(clip: nn.Module, pixels: Tensor, codes: Tensor) -> Tensor:
    """Make a CLIP carry codes from its position embedding to its last states, in closed form.

    Args:
        clip: a CLIPVisionModel; changes its position embedding and the layers behind its norms.
        pixels: (B, 3, h, w), images to measure its states on.
        codes: (P, K), K codes of each patch.

    Returns:
        (K, W), orthonormal directions of its states that carry the codes.
    """
    hidden_states, norm_inputs = _measure_states(clip, pixels)
    directions = _low_variance_directions(hidden_states, clip.pre_layrnorm.weight, codes.shape[1])
    # the first norm divides each patch by its deviation
    deviation = norm_inputs[clip.pre_layrnorm][:, 1:].std(-1, unbiased=False).mean(0)  # (P,)
    added = AMPLITUDE * codes * deviation[:, None]
    embedding = clip.embeddings.position_embedding.weight
    embedding[1:] += added @ (directions / clip.pre_layrnorm.weight)
    for block in clip.encoder.layers:
        attention = block.self_attn
        for norm, linears in (
            (block.layer_norm1, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.layer_norm2, (block.mlp.fc1,)),
        ):
            states = norm_inputs[norm][:, 1:]
            mean = directions @ F.layer_norm(states, states.shape[-1:]).mean((0, 1))
            for linear in linears:
                _remove_response(linear, norm, directions, mean)
    return directions


def _measure_states(
    clip: nn.Module, pixels: Tensor
) -> tuple[Sequence[Tensor], dict[nn.Module, Tensor]]:
    """Return the hidden states of all layers, and the input of each layer norm."""
    norm_inputs: dict[nn.Module, Tensor] = {}

    def record(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        norm_inputs[norm] = inputs[0]

    norms = [clip.pre_layrnorm]
    for block in clip.encoder.layers:
        norms += [block.layer_norm1, block.layer_norm2]
    hooks = [norm.register_forward_hook(record) for norm in norms]
    hidden_states = clip(pixels, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    return hidden_states, norm_inputs


def _low_variance_directions(hidden_states: Sequence[Tensor], gain: Tensor, count: int) -> Tensor:
    """Return orthonormal directions, (count, W), in which the states of no layer vary much.

    Args:
        hidden_states: of all layers, each (B, 1 + P, W).
        gain: (W,), of the first norm.
        count: how many.
    """
    width = len(gain)
    covariance = torch.zeros(width, width, dtype=torch.double)
    for states in (*hidden_states, hidden_states[-1]):  # the codes are read in the last: twice
        layer_covariance = states[:, 1:].flatten(0, 1).double().T.cov()
        covariance += layer_covariance / layer_covariance.trace()
    # not along the mean, which norms remove, nor where the gain of the first norm is near zero
    covariance += 1e3
    covariance += torch.diag(1e-6 / (gain.double().abs() + 0.05) ** 2)
    return torch.linalg.eigh(covariance)[1][:, :count].T.float()


def _remove_response(
    linear: nn.Linear, norm: nn.LayerNorm, directions: Tensor, mean: Tensor
) -> None:
    """Make a linear layer behind a norm ignore directions (K, W); use their mean (K,) instead."""
    response = (linear.weight * norm.weight) @ directions.T  # (outputs, K)
    linear.bias += response @ (mean + directions @ (norm.bias / norm.weight))
    linear.weight -= response @ (directions / norm.weight)
