# SPDX-License-Identifier: Apache-2.0
"""LISA: a LLaVA model whose [SEG] tokens prompt SAM's mask decoder.

Paper: arxiv.org/abs/2308.00692, section 3. Composed of transformers' CLIP, LLaMA and SAM; checked
against dvlab-research/LISA (test/test_lisa_parity.py). Nothing in here opens a file, picks a
device or knows a picture's encoding; casts happen only at the seams, where a part may be kept in
another precision than its neighbour.

Letters:
    B pictures, Q conversations, T tokens as written (one place holds the picture),
    P image tokens of a picture, L = T - 1 + P places as the language model sees them,
    D width of the language model, C width of SAM's prompts, S side of SAM's square input [px],
    h x w SAM's grid (S / patch), so that low-res masks are 4h x 4w,
    N [SEG] tokens, H x W the picture's own pixels.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.models.sam.configuration_sam import (
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.sam.modeling_sam import (
    SamMaskDecoder,
    SamPromptEncoder,
    SamVisionEncoder,
)

from lisa_ros.errors import QueryError

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

IMAGE_TOKEN = -200  # holds the picture's place among the token ids; LLaVA's number, never embedded
IGNORED = -100  # a label that is not supervised; torch's own default for cross-entropy


def sam_config(
    *,
    image_size: int,
    width: int,
    depth: int,
    heads: int,
    global_layers: tuple[int, ...],
    prompt_width: int,
    patch_size: int = 16,
    window: int = 14,
    vision_mlp: int | None = None,
    decoder_mlp: int = 2048,
    decoder_depth: int = 2,
    decoder_heads: int = 8,
    iou_width: int = 256,
    multimask_outputs: int = 3,
    mask_channels: int = 16,
    vision_bias: bool = True,
    relative_positions: bool = True,
    absolute_positions: bool = True,
) -> SamConfig:
    """Return a SamConfig whose three parts agree, numerically that of segment-anything.

    Args:
        image_size: S, side of the square input [px]; a multiple of patch_size.
        width: of the vision transformer; `heads` divides it.
        depth: layers of the vision transformer, of which `global_layers` see the whole grid.
        heads: of the vision transformer.
        global_layers: indexes of layers without windows.
        prompt_width: C, width of prompts, grid and mask decoder; divisible by 8.
        patch_size: [px].
        window: side of the attention windows [patches].
        vision_mlp: inner width of the vision transformer's MLPs; 4 * width if None.
        decoder_mlp: inner width of the mask decoder's MLPs.
        decoder_depth: two-way layers of the mask decoder.
        decoder_heads: of the mask decoder; 2 * decoder_heads divides C.
        iou_width: of the head that predicts a mask's IoU.
        multimask_outputs: masks for ambiguous prompts; LISA uses the other one, mask token 0.
        mask_channels: of the (by LISA unused) mask prompts.
        vision_bias: qkv with bias.
        relative_positions: as ViTDet.
        absolute_positions: one learnt vector for each patch.
    """
    return SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=width,
            output_channels=prompt_width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            image_size=image_size,
            patch_size=patch_size,
            window_size=window,
            global_attn_indexes=list(global_layers),
            mlp_dim=vision_mlp or 4 * width,
            num_pos_feats=prompt_width // 2,
            qkv_bias=vision_bias,
            use_rel_pos=relative_positions,
            use_abs_pos=absolute_positions,
            initializer_range=0.02,  # the library's 1e-10 leaves an untrained encoder at zero
        ).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=prompt_width,
            image_size=image_size,
            patch_size=patch_size,
            mask_input_channels=mask_channels,
        ).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=prompt_width,
            mlp_dim=decoder_mlp,
            num_hidden_layers=decoder_depth,
            num_attention_heads=decoder_heads,
            iou_head_hidden_dim=iou_width,
            iou_head_depth=3,  # as every SAM's; names.py knows three layers
            num_multimask_outputs=multimask_outputs,
            layer_norm_eps=1e-5,  # segment-anything's decoder has torch's default, not 1e-6
        ).to_dict(),
    )


@dataclass(frozen=True)
class LisaConfig:
    """Every size of a LISA, and the few facts about its training that running it needs."""

    clip: CLIPVisionConfig
    llama: LlamaConfig
    sam: SamConfig
    seg_token_id: int
    mm_vision_select_layer: int = -2  # which hidden states of CLIP become image tokens
    out_dim: int = 256  # C, what a [SEG] state is projected to
    template: str = 'llava_v1'  # the conversation template it was trained with (prompts.py)
    explain: str = 'Please output segmentation mask and explain why.'  # what asks it for a reason
    confidence_threshold: float = 0.0  # masks below it are none, by its own validation [0..1]
    refine: bool = False  # whether its masks are brought to the picture's edges, see refining.py
    calibration: tuple[float, ...] = ()  # of its scores, see confidence.py; none: uncalibrated
    calibration_curve: tuple[tuple[float, float], ...] = ()  # of its scores, likewise

    @property
    def image_tokens(self) -> int:
        """P: how many places a picture takes in the language model."""
        return (self.clip.image_size // self.clip.patch_size) ** 2

    @property
    def sam_size(self) -> int:
        """S: side of SAM's square input [px]."""
        return self.sam.vision_config.image_size

    def to_dict(self) -> dict:
        """Return plain data for json, `from_dict`'s inverse."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        parts = {name: plain[name].to_dict() for name in ('clip', 'llama', 'sam')}
        return {'model_type': 'lisa_ros', **plain, **parts}

    @classmethod
    def from_dict(cls, plain: dict) -> LisaConfig:
        """Return the config that `to_dict` wrote."""
        plain = {key: value for key, value in plain.items() if key != 'model_type'}
        plain['calibration'] = tuple(plain.get('calibration', ()))  # json has lists alone
        plain['calibration_curve'] = tuple(map(tuple, plain.get('calibration_curve', ())))
        kinds = {'clip': CLIPVisionConfig, 'llama': LlamaConfig, 'sam': SamConfig}
        return cls(**{**plain, **{name: kinds[name](**plain[name]) for name in kinds}})


@dataclass(frozen=True)
class Conversations:
    """Conversations about pictures with their answers known: what training and its tests feed."""

    input_ids: Tensor  # (Q, T) long, right-padded, exactly one IMAGE_TOKEN a row
    labels: Tensor  # (Q, T) long, IGNORED where nothing is to be learnt
    attention_mask: Tensor  # (Q, T) bool, False on padding
    image_index: Tensor  # (Q,) long, the picture that each conversation is about

    def to(self, device: torch.device | str) -> Self:
        """Return the same on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return type(self)(**{name: tensor.to(device) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class LisaBatch(Conversations):
    """The same with their pictures."""

    clip_pixels: Tensor  # (B, 3, hc, wc) float, normalised
    sam_pixels: Tensor  # (B, 3, S, S) float, normalised, zero-padded right and bottom


@dataclass(frozen=True)
class LisaOutput:
    """What LISA makes of a Batch. [SEG] come row by row, each row from left to right."""

    ce_loss: Tensor  # () mean over the supervised tokens
    mask_logits: Tensor  # (N, 4h, 4w) low-res; `postprocess` leads to the picture's pixels
    mask_iou: Tensor  # (N,) SAM's own guess of each mask's IoU
    seg_query: Tensor  # (N,) long, the conversation of each [SEG]
    seg_hidden: Tensor  # (N, D) the states that predicted each [SEG]
    seg_prompts: list[Tensor]  # Q x (n, C), the same after projection, by conversation
    clip_tokens: Tensor  # (B, P, D)
    image_embeddings: Tensor  # (B, C, h, w)
    llm_states: Tensor  # (Q, L, D), after the final norm
    llm_inner: Tensor | None = None  # (Q, L, D), what the layer that was asked for is given

    def predicting_positions(self, places: Tensor) -> Tensor:
        """Return where in `llm_states` the words at some places of `input_ids` are predicted.

        For words behind the picture, whose one token in `input_ids` has become P.
        """
        return places - 1 + self.clip_tokens.shape[1] - 1


class Sam(nn.Module):
    """The three parts of SAM under transformers' names; LISA prompts the decoder itself."""

    def __init__(self, config: SamConfig, attention: str = 'sdpa'):
        super().__init__()
        config = copy.deepcopy(config)
        config.vision_config._attn_implementation = attention
        config.mask_decoder_config._attn_implementation = attention
        self.vision_encoder = SamVisionEncoder(config.vision_config)
        self.prompt_encoder = SamPromptEncoder(_prompt_encoder_config(config))
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        # Random frequencies of the grid's positions: a buffer in segment-anything, drawn with
        # deviation 1; the library makes a parameter of it, scaled by half the encoder's width.
        frequencies = self.prompt_encoder.shared_embedding.positional_embedding
        nn.init.normal_(frequencies)
        frequencies.requires_grad_(False)
        # The neck may be kept in float32 under half-precision layers, as the original does for
        # fp16, where its sums overflow.
        self.vision_encoder.neck.register_forward_pre_hook(
            lambda neck, inputs: (inputs[0].to(neck.conv1.weight.dtype),)
        )

    def grid_positions(self) -> Tensor:
        """Return the positions of the grid's cell centres, (1, C, h, w)."""
        embedding = self.prompt_encoder.shared_embedding
        rows, columns = self.prompt_encoder.image_embedding_size
        like = embedding.positional_embedding
        y = (torch.arange(rows, device=like.device, dtype=torch.float32) + 0.5) / rows
        x = (torch.arange(columns, device=like.device, dtype=torch.float32) + 0.5) / columns
        y, x = torch.meshgrid(y, x, indexing='ij')
        return embedding(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]


def _prompt_encoder_config(config: SamConfig) -> SamConfig:
    """Return the config with what SamPromptEncoder reads derived anew (it may come from json)."""
    part = config.prompt_encoder_config
    part.image_embedding_size = part.image_size // part.patch_size
    return config


class LISA(nn.Module):
    """Picture and words in; words out, and for each [SEG] among them a mask.

    The steps are methods, so that a picture is encoded once and asked often:

        tokens = lisa.encode_clip(clip_pixels)                  # (B, P, D)
        places = lisa.embed(input_ids, tokens[0])               # (L, D) -> lisa.llm
        prompts = lisa.project_seg(states_that_predict_seg)     # (N, C)
        grid = lisa.encode_sam(sam_pixels)                      # (B, C, h, w)
        low_res, iou = lisa.decode_masks(grid[:1], prompts)     # (N, 4h, 4w), (N,)
        logits = lisa.postprocess(low_res, resized, original)   # (N, H, W)

    `forward` runs them all with the answer known (teacher forcing). Gradients flow everywhere;
    the original trains with CLIP and SAM's vision encoder frozen: `requires_grad_(False)`.
    """

    def __init__(self, config: LisaConfig, attention: str = 'sdpa'):
        """Make a LISA of random weights.

        Args:
            config: all sizes.
            attention: of the vision parts, as transformers names it: "sdpa", or "eager", whose
                backward pass is three times as fast on a CPU.
        """
        super().__init__()
        self.config = config
        clip, llama = copy.deepcopy(config.clip), copy.deepcopy(config.llama)
        clip._attn_implementation, llama._attn_implementation = attention, 'sdpa'
        width = llama.hidden_size
        self.clip = CLIPVisionModel(clip)
        self.mm_projector = nn.Linear(clip.hidden_size, width)
        self.llm = LlamaForCausalLM(llama)
        self.text_hidden_fcs = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.out_dim), nn.Dropout(0.0)
        )
        self.sam = Sam(config.sam, attention)

    # ---- the picture, for the language model

    def encode_clip(self, pixel_values: Tensor) -> Tensor:
        """Return the image tokens, (B, P, D), of CLIP pixels (B, 3, hc, wc)."""
        return self.project_clip(self.clip_states(pixel_values))

    def clip_states(self, pixel_values: Tensor) -> Tensor:
        """Return CLIP's states of the patches, (B, P, its width), of CLIP pixels."""
        pixels = pixel_values.to(self.clip.embeddings.patch_embedding.weight.dtype)
        layers = self.clip(pixels, output_hidden_states=True).hidden_states
        return layers[self.config.mm_vision_select_layer][:, 1:]  # without the class token

    def project_clip(self, states: Tensor) -> Tensor:
        """Return the image tokens, (B, P, D), of CLIP's states of the patches."""
        return self.mm_projector(states.to(self.mm_projector.weight.dtype))

    # ---- words and picture in one row

    def embed(self, input_ids: Tensor, image_tokens: Tensor) -> Tensor:
        """Return the language model's input with the picture in its place.

        Args:
            input_ids: (T,) long with exactly one IMAGE_TOKEN.
            image_tokens: (P, D).

        Returns:
            (L, D) with L = T - 1 + P.

        Raises:
            QueryError: there is not exactly one IMAGE_TOKEN.
        """
        place = int(self._image_places(input_ids[None]))
        words = self.llm.get_input_embeddings()
        before, after = words(input_ids[:place]), words(input_ids[place + 1 :])
        return torch.cat([before, image_tokens.to(before.dtype), after])

    def _image_places(self, input_ids: Tensor) -> Tensor:
        """Return where the picture goes in each row of (Q, T), (Q,) long."""
        is_picture = input_ids == IMAGE_TOKEN
        counts = is_picture.sum(1)
        if (counts != 1).any():
            raise QueryError(
                f'the prompt has {int(counts[counts != 1][0])} places for a picture, LISA needs '
                'exactly one: build it with lisa_ros.perception.prompts, and ask about one '
                'picture at a time'
            )
        return is_picture.long().argmax(1)

    # ---- from a [SEG] to its mask

    def project_seg(self, hidden: Tensor) -> Tensor:
        """Return SAM prompts, (N, C), of the states (N, D) that predicted [SEG]."""
        return self.text_hidden_fcs(hidden.to(self.text_hidden_fcs[0].weight.dtype))

    def encode_sam(self, pixels: Tensor) -> Tensor:
        """Return SAM's features, (B, C, h, w), of SAM pixels (B, 3, S, S)."""
        weight = self.sam.vision_encoder.patch_embed.projection.weight
        return self.sam.vision_encoder(pixels.to(weight.dtype)).last_hidden_state

    def decode_masks(self, image_embedding: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Return a mask for each prompt.

        The prompt is the only sparse token of its mask (no label embedding, no padding point);
        the dense prompt says "no mask" all over the grid.

        Args:
            image_embedding: (1, C, h, w), or (N, C, h, w) with a picture for each prompt.
            prompts: (N, C); N may be 0.

        Returns:
            Low-res logits (N, 4h, 4w), and SAM's guess of their IoU with the truth (N,).
        """
        count, (rows, columns) = len(prompts), image_embedding.shape[-2:]
        if count == 0:
            empty = prompts.new_zeros
            return empty((0, 4 * rows, 4 * columns)), empty((0,))
        decoder, prompt_encoder = self.sam.mask_decoder, self.sam.prompt_encoder
        dtype = decoder.iou_token.weight.dtype
        dense = prompt_encoder.no_mask_embed.weight[:, :, None, None]  # (1, C, 1, 1)
        masks, iou = decoder(
            image_embeddings=image_embedding.to(dtype).expand(count, -1, -1, -1),
            image_positional_embeddings=self.sam.grid_positions().to(dtype),
            sparse_prompt_embeddings=prompts.to(dtype)[:, None, None],  # (N, 1, 1, C)
            dense_prompt_embeddings=dense.to(dtype),
            multimask_output=False,  # mask token 0
        )  # (N, 1, 1, 4h, 4w), (N, 1, 1)
        return masks[:, 0, 0], iou[:, 0, 0]

    def postprocess(
        self, low_res: Tensor, resized: tuple[int, int], original: tuple[int, int]
    ) -> Tensor:
        """Return mask logits on the picture's own pixels, (N, H, W) float32.

        Args:
            low_res: (N, 4h, 4w) logits.
            resized: (height, width) of the picture inside SAM's square input [px].
            original: (H, W) of the picture itself [px].
        """
        if len(low_res) == 0:
            return low_res.new_zeros((0, *original), dtype=torch.float32)
        size = self.config.sam_size
        masks = low_res.float()[:, None]
        masks = F.interpolate(masks, (size, size), mode='bilinear', align_corners=False)
        masks = masks[..., : resized[0], : resized[1]]  # the rest is padding
        masks = F.interpolate(masks, original, mode='bilinear', align_corners=False)
        return masks[:, 0]

    # ---- all of it, with the answers known

    def forward(
        self, batch: LisaBatch, packed: bool = False, inner: int | None = None
    ) -> LisaOutput:
        """Run every part on conversations whose answers are known; see Batch and TeacherForced.

        Args:
            batch: the conversations.
            packed: read all conversations about a picture in one row, after the picture, each
                blind to the others: the same numbers, with the picture's places read once.
            inner: a layer of the language model whose input is to be kept, too.

        Raises:
            QueryError: a conversation has not exactly one IMAGE_TOKEN; or, packed, two about one
                picture differ before it.
        """
        seen = self.encode_clip(batch.clip_pixels), self.encode_sam(batch.sam_pixels)
        return self.forward_from_features(batch, *seen, packed, inner)

    def forward_from_features(
        self,
        batch: Conversations,
        clip_tokens: Tensor,
        image_embeddings: Tensor,
        packed: bool = False,
        inner: int | None = None,
    ) -> LisaOutput:
        """Do what `forward` does after the vision parts have seen the pictures.

        Args:
            batch: the conversations.
            clip_tokens: (B, P, D).
            image_embeddings: (B, C, h, w).
            packed: as of `forward`.
            inner: as of `forward`.

        Raises:
            QueryError: as `forward` does.
        """
        images = batch.image_index
        places = self._image_places(batch.input_ids)
        labels = self._widen(batch.labels, places, IGNORED)
        says_seg = self._widen(batch.input_ids == self.config.seg_token_id, places, False)
        real = self._widen(batch.attention_mask, places, True)  # (Q, L), as the others

        read = self._read_packed if packed else self._read_rows
        states, *kept = read(batch, places, real, clip_tokens, inner)  # (Q, L, D) each
        learnt = labels[:, 1:] != IGNORED
        logits = self.llm.lm_head(states[:, :-1][learnt]).float()
        ce_loss = F.cross_entropy(logits, labels[:, 1:][learnt])

        # The state that *predicts* [SEG], one place before it: so the checkpoints were trained.
        predicts_seg = F.pad(says_seg[:, 1:], (0, 1))  # (Q, L)
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
            llm_inner=kept[0] if kept else None,
        )

    def _widen(self, rows: Tensor, places: Tensor, value: float) -> Tensor:
        """Return (Q, L) of (Q, T): P times `value` where the picture's placeholder was."""
        size = self.config.image_tokens
        at = torch.arange(rows.shape[1] - 1 + size, device=rows.device) - places[:, None]
        words = torch.where(at < 0, at, at - size + 1) + places[:, None]
        picture = (at >= 0) & (at < size)
        return rows.gather(1, words.masked_fill(picture, 0)).masked_fill(picture, value)

    def _read_rows(
        self,
        batch: Conversations,
        places: Tensor,
        real: Tensor,
        clip_tokens: Tensor,
        inner: int | None,
    ) -> list[Tensor]:
        """Return `_states`, (Q, L, D), of each conversation in a row of its own."""
        rows = [
            self.embed(ids, clip_tokens[image])
            for ids, image in zip(batch.input_ids, batch.image_index, strict=True)
        ]
        return self._states(inner, inputs_embeds=torch.stack(rows), attention_mask=real)

    def _states(self, inner: int | None, **rows: Tensor) -> list[Tensor]:
        """Return the language model's last states, and what layer `inner` is given, if any."""
        keep = inner is not None
        out = self.llm.model(**rows, use_cache=False, output_hidden_states=keep)
        return [out.last_hidden_state, *([out.hidden_states[inner]] if keep else [])]

    def _read_packed(
        self,
        batch: Conversations,
        places: Tensor,
        real: Tensor,
        clip_tokens: Tensor,
        inner: int | None,
    ) -> list[Tensor]:
        """Return the same states, read from a row for each picture: what is common, then the rest.

        Positions count from the common part for every conversation; a place sees what is common
        and what its own conversation said before. States of padding are those of the row's end.
        """
        count, size = len(clip_tokens), self.config.image_tokens
        ends = real.sum(1).tolist()  # of each conversation, in places
        # Where each place of the (Q, L) rows lies in the packed ones; what each packed one holds.
        sources: list[list[np.ndarray]] = [[] for _ in range(count)]
        positions: list[list[np.ndarray]] = [[] for _ in range(count)]
        owners: list[list[np.ndarray]] = [[] for _ in range(count)]  # 0 common, else query + 1
        lengths, begins = [0] * count, {}
        unpack = np.empty(real.shape, np.int64)
        ids, owns = batch.input_ids.cpu().numpy(), batch.image_index.tolist()
        for query, (image, place) in enumerate(zip(owns, places.tolist(), strict=True)):
            common, words = place + size, count * size + query * ids.shape[1]
            if image not in begins:
                begins[image] = ids[query, :place]
                picture = image * size + np.arange(size)
                sources[image] = [words + np.arange(place), picture]
                positions[image], owners[image] = [np.arange(common)], [np.zeros(common, int)]
                lengths[image] = common
            if not np.array_equal(begins[image], ids[query, :place]):
                raise QueryError(
                    'conversations about one picture can be read packed only if they are the '
                    'same up to the picture: use one template without packing'
                )
            own = np.arange(ends[query] - common)
            sources[image].append(words + place + 1 + own)
            positions[image].append(common + own)
            owners[image].append(np.full_like(own, query + 1))
            unpack[query, :common] = np.arange(common)
            unpack[query, common : ends[query]] = lengths[image] + own
            lengths[image] += len(own)
            unpack[query, ends[query] :] = unpack[query, ends[query] - 1]
        longest, device = max(lengths), clip_tokens.device

        def padded(rows: list[list[np.ndarray]], value: int) -> Tensor:
            told = np.full((count, longest), value)
            for row, parts in zip(told, rows, strict=True):
                whole = np.concatenate(parts) if parts else row[:0]
                row[: len(whole)] = whole
            return torch.from_numpy(told).to(device)

        words = self.llm.get_input_embeddings()(batch.input_ids.clamp(min=0))
        table = torch.cat([clip_tokens.flatten(0, 1).to(words.dtype), words.flatten(0, 1)])
        owner = padded(owners, -1)
        own = owner[:, :, None] == owner[:, None, :]
        sees = (own | (owner == 0)[:, None, :]).tril()  # (B, longest, longest)
        read = self._states(
            inner,
            inputs_embeds=table[padded(sources, 0)],
            attention_mask=sees[:, None],
            position_ids=padded(positions, 0),
        )
        flat = torch.from_numpy(np.array(owns)[:, None] * longest + unpack).to(device)
        return [states.flatten(0, 1)[flat] for states in read]
