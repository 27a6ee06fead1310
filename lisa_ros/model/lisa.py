# SPDX-License-Identifier: Apache-2.0
"""LISA: a LLaVA model whose [SEG] tokens prompt SAM's mask decoder.

Paper: arxiv.org/abs/2308.00692, section 3. Composed of transformers' CLIP, LLaMA and SAM, and
checked against dvlab-research/LISA (test/test_lisa_parity.py). This module opens no file, picks
no device and decodes no image. It casts a tensor only if two successive parts may be stored in
different precisions.

Letters:
    B images, Q conversations, T token ids of a conversation (one is the image placeholder),
    P image tokens of an image, L = T - 1 + P positions of the language model's input,
    D width of the language model, C width of SAM's prompts, S side of SAM's square input [px],
    h x w SAM's grid (S / patch size); its low-resolution masks are 4h x 4w,
    N [SEG] tokens, H x W the image's own pixels.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaForCausalLM
from transformers.models.sam.configuration_sam import SamConfig
from transformers.models.sam.modeling_sam import (
    SamMaskDecoder,
    SamPromptEncoder,
    SamVisionEncoder,
)

from lisa_ros.model import packing, sam_decoder, sam_encoder
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.packing import IGNORE_INDEX

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on


@dataclass(frozen=True)
class Conversations:
    """Token ids of conversations about images, with known answers: the input of training."""

    input_ids: Tensor  # (Q, T) long, right-padded, exactly one IMAGE_TOKEN_INDEX in each row
    labels: Tensor  # (Q, T) long, IGNORE_INDEX for tokens without loss
    attention_mask: Tensor  # (Q, T) bool, False on padding
    image_index: Tensor  # (Q,) long, the image of each conversation

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return type(self)(**{name: tensor.to(device) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class LisaBatch(Conversations):
    """Conversations with the pixels of their images."""

    clip_pixels: Tensor  # (B, 3, hc, wc) float, normalized
    sam_pixels: Tensor  # (B, 3, S, S) float, normalized, zero-padded right and bottom


@dataclass(frozen=True)
class LisaOutput:
    """Output of `LISA.forward`. [SEG] tokens are sorted by conversation, then by position."""

    ce_loss: Tensor  # () mean over the supervised tokens
    mask_logits: Tensor  # (N, 4h, 4w) low resolution; `postprocess` resizes to the image
    mask_iou: Tensor  # (N,) SAM's prediction of each mask's IoU
    seg_query: Tensor  # (N,) long, the conversation of each [SEG]
    seg_hidden: Tensor  # (N, D) the states that predicted each [SEG]
    seg_prompts: list[Tensor]  # Q x (n, C), the projected states of each conversation
    clip_tokens: Tensor  # (B, P, D)
    image_embeddings: Tensor  # (B, C, h, w)
    llm_states: Tensor  # (Q, L, D), after the final norm
    llm_layer_input: Tensor | None = None  # (Q, L, D), input of the requested layer

    def predicting_positions(self, positions: Tensor) -> Tensor:
        """Return the positions in `llm_states` that predict the tokens at `positions`.

        Args:
            positions: long, in `input_ids`, after the image placeholder (which became P tokens).
        """
        return positions - 1 + self.clip_tokens.shape[1] - 1


class Sam(nn.Module):
    """The three parts of SAM under transformers' names. LISA makes the decoder's prompts."""

    def __init__(self, config: SamConfig, attention: str = 'sdpa'):
        super().__init__()
        config = copy.deepcopy(config)
        config.vision_config._attn_implementation = attention
        config.mask_decoder_config._attn_implementation = attention
        self.vision_encoder = SamVisionEncoder(config.vision_config)
        self.prompt_encoder = SamPromptEncoder(_complete_prompt_encoder_config(config))
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        # Random frequencies of the position encoding. In segment-anything they are a buffer with
        # standard deviation 1; transformers makes a parameter, scaled by half the width.
        frequencies = self.prompt_encoder.shared_embedding.positional_embedding
        nn.init.normal_(frequencies)
        frequencies.requires_grad_(False)
        # The neck may be stored in float32 under half-precision layers, as in the original for
        # fp16, where its sums overflow.
        self.vision_encoder.neck.register_forward_pre_hook(
            lambda neck, inputs: (inputs[0].to(neck.conv1.weight.dtype),)
        )

    def grid_positions(self) -> Tensor:
        """Return the position encoding of the grid's cell centres, (1, C, h, w)."""
        embedding = self.prompt_encoder.shared_embedding
        rows, columns = self.prompt_encoder.image_embedding_size
        device = embedding.positional_embedding.device
        y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) / rows
        x = (torch.arange(columns, device=device, dtype=torch.float32) + 0.5) / columns
        y, x = torch.meshgrid(y, x, indexing='ij')
        return embedding(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]


def _complete_prompt_encoder_config(config: SamConfig) -> SamConfig:
    """Return the config with the derived size that SamPromptEncoder reads; JSON may lack it."""
    part = config.prompt_encoder_config
    part.image_embedding_size = part.image_size // part.patch_size
    return config


def _is_inference_on_cpu(weight: Tensor) -> bool:
    """Return whether to save arithmetic; a GPU is faster with fewer, larger kernels."""
    is_plain = weight.device.type == 'cpu' and weight.dtype is torch.float32
    return is_plain and not (torch.is_grad_enabled() or torch.is_autocast_enabled('cpu'))


def clip_patch_states(clip: nn.Module, pixel_values: Tensor, layer: int) -> Tensor:
    """Return a layer's states of the patches, (B, P, CLIP's width), of pixels (B, 3, hc, wc)."""
    pixels = pixel_values.to(clip.embeddings.patch_embedding.weight.dtype)
    layers = clip(pixels, output_hidden_states=True).hidden_states
    return layers[layer][:, 1:]  # without the class token


def _projector(clip_width: int, width: int, config: LisaConfig) -> nn.Module:
    """Return LLaVA's projector: a linear layer, or several with a GELU between two."""
    layers: list[nn.Module] = [nn.Linear(clip_width, width)]
    if config.mm_projector_type == 'linear':
        return layers[0]
    for _ in range(1, config.projector_layers):
        layers += [nn.GELU(), nn.Linear(width, width)]
    return nn.Sequential(*layers)


class LISA(nn.Module):
    """Answers queries about an image in text, with a mask for each [SEG] in the answer.

    The steps are methods, so that an image is encoded once for several queries:

        tokens = lisa.encode_clip(clip_pixels)                  # (B, P, D)
        embeddings = lisa.embed(input_ids, tokens[0])           # (L, D) -> lisa.llm
        prompts = lisa.project_seg(states_that_predict_seg)     # (N, C)
        grid = lisa.encode_sam(sam_pixels)                      # (B, C, h, w)
        low_res, iou = lisa.decode_masks(grid[:1], prompts)     # (N, 4h, 4w), (N,)
        logits = lisa.postprocess(low_res, resized, original)   # (N, H, W)

    `forward` runs all steps with known answers (teacher forcing). Gradients flow everywhere. The
    original trains with CLIP and SAM's vision encoder frozen: `requires_grad_(False)`.
    """

    def __init__(self, config: LisaConfig, attention: str = 'sdpa'):
        """Make a LISA with random weights.

        Args:
            config: all sizes.
            attention: attention implementation of CLIP and SAM in transformers' terms: "sdpa", or
                "eager", whose backward pass is three times as fast on a CPU.
        """
        super().__init__()
        self.config = config
        clip, llama = copy.deepcopy(config.clip), copy.deepcopy(config.llama)
        clip._attn_implementation, llama._attn_implementation = attention, 'sdpa'
        width = llama.hidden_size
        self.clip = CLIPVisionModel(clip)
        self.mm_projector = _projector(clip.hidden_size, width, config)
        self.llm = LlamaForCausalLM(llama)
        self.text_hidden_fcs = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.out_dim), nn.Dropout(0.0)
        )
        self.sam = Sam(config.sam, attention)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.mm_projector.parameters()).device

    # ---- the image for the language model

    def encode_clip(self, pixel_values: Tensor) -> Tensor:
        """Return the image tokens, (B, P, D), of CLIP pixels (B, 3, hc, wc)."""
        return self.project_clip(self.clip_states(pixel_values))

    def clip_states(self, pixel_values: Tensor) -> Tensor:
        """Return CLIP's hidden states of the patches, (B, P, CLIP's width), of CLIP pixels."""
        return clip_patch_states(self.clip, pixel_values, self.config.mm_vision_select_layer)

    def project_clip(self, states: Tensor) -> Tensor:
        """Return the image tokens, (B, P, D), of CLIP's hidden states of the patches."""
        return self.mm_projector(states.to(next(self.mm_projector.parameters()).dtype))

    # ---- input of the language model

    def embed(self, input_ids: Tensor, image_tokens: Tensor) -> Tensor:
        """Return the language model's input, with image tokens instead of the placeholder.

        Args:
            input_ids: (T,) long with exactly one IMAGE_TOKEN_INDEX.
            image_tokens: (P, D).

        Returns:
            (L, D) with L = T - 1 + P.

        Raises:
            QueryError: there is not exactly one IMAGE_TOKEN_INDEX.
        """
        position = int(packing.image_positions(input_ids[None]))
        embedding = self.llm.get_input_embeddings()
        head, tail = embedding(input_ids[:position]), embedding(input_ids[position + 1 :])
        return torch.cat([head, image_tokens.to(head.dtype), tail])

    # ---- from a [SEG] to its mask

    def project_seg(self, hidden: Tensor) -> Tensor:
        """Return SAM prompts, (N, C), of the states (N, D) that predicted [SEG]."""
        return self.text_hidden_fcs(hidden.to(self.text_hidden_fcs[0].weight.dtype))

    def encode_sam(self, pixels: Tensor) -> Tensor:
        """Return SAM's image embeddings, (B, C, h, w), of SAM pixels (B, 3, S, S)."""
        weight = self.sam.vision_encoder.patch_embed.projection.weight
        encoder, pixels = self.sam.vision_encoder, pixels.to(weight.dtype)
        if torch.is_grad_enabled() and weight.requires_grad:  # training
            return encoder(pixels).last_hidden_state
        return sam_encoder.encode(encoder, pixels)

    def embed_points(self, places: Tensor, labels: Tensor) -> Tensor:
        """Return the tokens of points, (N, M + 1, C): SAM adds one that is no point.

        Args:
            places: (N, M, 2) float, x and y in SAM's square input [px].
            labels: (N, M), 1 inside of the object, 0 outside, -1 neither.
        """
        encoder = self.sam.prompt_encoder
        return encoder._embed_points(places[:, None], labels[:, None], pad=True)[:, 0]

    def decode_masks(
        self, image_embedding: Tensor, prompts: Tensor, points: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return a mask for each prompt.

        Without points, the prompt is the only sparse token of its mask (no label embedding, no
        padding point). The dense prompt is the "no mask" embedding in every cell.

        Args:
            image_embedding: (1, C, h, w), or (N, C, h, w) with an image for each prompt.
            prompts: (N, C); N may be 0.
            points: (N, K, C) further sparse tokens of each mask, see `embed_points`; None: none.

        Returns:
            Low-resolution logits (N, 4h, 4w), and SAM's prediction of their IoU (N,).
        """
        count, (rows, columns) = len(prompts), image_embedding.shape[-2:]
        if count == 0:
            empty = prompts.new_zeros
            return empty((0, 4 * rows, 4 * columns)), empty((0,))
        decoder, prompt_encoder = self.sam.mask_decoder, self.sam.prompt_encoder
        dtype = decoder.iou_token.weight.dtype
        prompts, points = prompts.to(dtype), None if points is None else points.to(dtype)
        dense = prompt_encoder.no_mask_embed.weight.to(dtype)  # (1, C)
        positions = self.sam.grid_positions().to(dtype)
        if _is_inference_on_cpu(decoder.iou_token.weight):
            embedding = image_embedding.to(dtype)
            return sam_decoder.decode(decoder, embedding, dense, positions, prompts, points)
        sparse = prompts[:, None]  # (N, 1, C)
        if points is not None:
            sparse = torch.cat([points, sparse], dim=1)
        masks, iou = decoder(
            image_embeddings=image_embedding.to(dtype).expand(count, -1, -1, -1),
            image_positional_embeddings=positions,
            sparse_prompt_embeddings=sparse[:, None],  # (N, 1, K + 1, C)
            dense_prompt_embeddings=dense[:, :, None, None],
            multimask_output=False,  # mask token 0
        )  # (N, 1, 1, 4h, 4w), (N, 1, 1)
        return masks[:, 0, 0], iou[:, 0, 0]

    def postprocess(
        self, low_res: Tensor, resized: tuple[int, int], original: tuple[int, int]
    ) -> Tensor:
        """Return mask logits on the image's own pixels, (N, H, W) float32.

        Args:
            low_res: (N, 4h, 4w) logits.
            resized: (height, width) of the image inside SAM's square input [px].
            original: (H, W) of the image itself [px].
        """
        if len(low_res) == 0:
            return low_res.new_zeros((0, *original), dtype=torch.float32)
        size = self.config.sam_size
        masks = low_res.float()[:, None]
        masks = F.interpolate(masks, (size, size), mode='bilinear', align_corners=False)
        masks = masks[..., : resized[0], : resized[1]]  # the rest is padding
        masks = F.interpolate(masks, original, mode='bilinear', align_corners=False)
        return masks[:, 0]

    # ---- all steps, with known answers

    def forward(
        self, batch: LisaBatch, packed: bool = False, input_of_layer: int | None = None
    ) -> LisaOutput:
        """Run all parts on conversations with known answers.

        Args:
            batch: the conversations and their images.
            packed: process all conversations about an image in one row; a mask hides them from
                each other. The outputs are the same; the image tokens are processed only once.
            input_of_layer: also return the input of this layer of the language model.

        Raises:
            QueryError: a conversation has not exactly one IMAGE_TOKEN_INDEX; or two conversations
                about one image differ before it, with `packed`.
        """
        clip_tokens = self.encode_clip(batch.clip_pixels)
        image_embeddings = self.encode_sam(batch.sam_pixels)
        return self.forward_from_features(
            batch, clip_tokens, image_embeddings, packed, input_of_layer
        )

    def forward_from_features(
        self,
        batch: Conversations,
        clip_tokens: Tensor,
        image_embeddings: Tensor,
        packed: bool = False,
        input_of_layer: int | None = None,
    ) -> LisaOutput:
        """Run `forward` on the outputs of the vision encoders.

        Args:
            batch: the conversations.
            clip_tokens: (B, P, D).
            image_embeddings: (B, C, h, w).
            packed: as in `forward`.
            input_of_layer: as in `forward`.

        Raises:
            QueryError: as in `forward`.
        """
        images, size = batch.image_index, self.config.image_tokens
        positions = packing.image_positions(batch.input_ids)
        labels = packing.expand_placeholder(batch.labels, positions, size, IGNORE_INDEX)
        is_seg = batch.input_ids == self.config.seg_token_id
        is_seg = packing.expand_placeholder(is_seg, positions, size, False)  # (Q, L)
        mask = packing.expand_placeholder(batch.attention_mask, positions, size, True)  # (Q, L)

        if packed:
            states, layer_input = self._read_packed(
                batch, positions, mask, clip_tokens, input_of_layer
            )
        else:
            states, layer_input = self._read_rows(batch, mask, clip_tokens, input_of_layer)
        supervised = labels[:, 1:] != IGNORE_INDEX
        logits = self.llm.lm_head(states[:, :-1][supervised]).float()
        ce_loss = F.cross_entropy(logits, labels[:, 1:][supervised])

        # The state that *predicts* [SEG], one position before it, as the checkpoints were trained.
        predicts_seg = F.pad(is_seg[:, 1:], (0, 1))  # (Q, L)
        seg_hidden = states[predicts_seg]  # (N, D)
        seg_query = predicts_seg.nonzero()[:, 0]  # (N,)
        prompts = self.project_seg(seg_hidden)  # (N, C)
        mask_logits, mask_iou = self.decode_masks(image_embeddings[images[seg_query]], prompts)
        return LisaOutput(
            ce_loss=ce_loss,
            mask_logits=mask_logits,
            mask_iou=mask_iou,
            seg_query=seg_query,
            seg_hidden=seg_hidden,
            seg_prompts=list(prompts.split(predicts_seg.sum(dim=1).tolist())),
            clip_tokens=clip_tokens,
            image_embeddings=image_embeddings,
            llm_states=states,
            llm_layer_input=layer_input,
        )

    def _read_rows(
        self,
        batch: Conversations,
        mask: Tensor,
        clip_tokens: Tensor,
        input_of_layer: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return `_llm_states`, (Q, L, D), with one row for each conversation."""
        rows = [
            self.embed(ids, clip_tokens[image])
            for ids, image in zip(batch.input_ids, batch.image_index, strict=True)
        ]
        return self._llm_states(
            input_of_layer, inputs_embeds=torch.stack(rows), attention_mask=mask
        )

    def _read_packed(
        self,
        batch: Conversations,
        positions: Tensor,
        mask: Tensor,
        clip_tokens: Tensor,
        input_of_layer: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the same states, (Q, L, D), computed from one packed row for each image."""
        rows = packing.pack(
            batch.input_ids,
            batch.image_index,
            positions,
            mask.sum(1),
            len(clip_tokens),
            self.config.image_tokens,
        )
        text = self.llm.get_input_embeddings()(batch.input_ids.clamp(min=0))
        table = torch.cat([clip_tokens.flatten(0, 1).to(text.dtype), text.flatten(0, 1)])
        states, layer_input = self._llm_states(
            input_of_layer,
            inputs_embeds=table[rows.sources],
            attention_mask=rows.attention_mask[:, None],
            position_ids=rows.position_ids,
        )
        if layer_input is not None:
            layer_input = layer_input.flatten(0, 1)[rows.columns]
        return states.flatten(0, 1)[rows.columns], layer_input

    def _llm_states(
        self, input_of_layer: int | None, **rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the language model's last states, and the input of a layer if requested."""
        with_layers = input_of_layer is not None
        out = self.llm.model(**rows, use_cache=False, output_hidden_states=with_layers)
        return out.last_hidden_state, out.hidden_states[input_of_layer] if with_layers else None
