# SPDX-License-Identifier: Apache-2.0
"""LisaConfig: all sizes of a LISA model, and its form in config.json."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig
from transformers.models.sam.configuration_sam import (
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from lisa_ros.error_text import error_summary, short_repr
from lisa_ros.errors import CheckpointError
from lisa_ros.model.json_file import JsonFields
from lisa_ros.model.point_prompts import PointRule


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
    """Return a SamConfig with consistent parts and segment-anything's numerics.

    Args:
        image_size: S, side of the square input [px]; a multiple of patch_size.
        width: hidden size of the vision transformer; a multiple of `heads`.
        depth: number of layers of the vision transformer.
        heads: attention heads of the vision transformer.
        global_layers: indexes of the vision layers that attend to the whole grid.
        prompt_width: C, width of prompts, image grid and mask decoder; divisible by 8.
        patch_size: side of a patch [px].
        window: side of the attention windows of the other vision layers [patches].
        vision_mlp: hidden size of the vision transformer's MLPs; None: 4 * width.
        decoder_mlp: hidden size of the mask decoder's MLPs.
        decoder_depth: two-way layers of the mask decoder.
        decoder_heads: attention heads of the mask decoder; 2 * decoder_heads divides C.
        iou_width: hidden size of the head that predicts a mask's IoU.
        multimask_outputs: number of masks for ambiguous prompts. LISA uses mask token 0 instead.
        mask_channels: channels of the mask prompts, which LISA does not use.
        vision_bias: add a bias to the query, key and value projections.
        relative_positions: add relative position embeddings, as ViTDet does.
        absolute_positions: add one learned vector for each patch.
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
            iou_head_depth=3,  # as in every SAM; key_mapping.py expects three layers
            num_multimask_outputs=multimask_outputs,
            layer_norm_eps=1e-5,  # segment-anything's decoder has PyTorch's default, not 1e-6
        ).to_dict(),
    )


@dataclass(frozen=True)
class LisaConfig:
    """All sizes of a LISA model, and what running it needs to know of its training.

    The field names are the keys of config.json in our own layout.
    """

    clip: CLIPVisionConfig
    llama: LlamaConfig
    sam: SamConfig
    seg_token_id: int
    mm_vision_select_layer: int = -2  # the CLIP layer whose hidden states become image tokens
    mm_projector_type: str = 'linear'  # or mlp2x_gelu: two linear layers with a GELU between them
    out_dim: int = 256  # C, width of a projected [SEG] state
    image_marks: bool = True  # <im_start> and <im_end> around the image, if the tokenizer has them
    point_rule: PointRule | None = None  # how READ prompts SAM; None: with [SEG] alone
    template: str = 'llava_v1'  # conversation template of its training, see perception/prompts.py
    explain: str = 'Please output segmentation mask and explain why.'  # asks for an explanation
    # by style ("semantic", "instances", "text"): what was appended to queries in training
    answer_styles: Mapping[str, str] = field(default_factory=dict)
    reason_question: str = ''  # asks for the reason in a further turn, if the answer has none
    confidence_threshold: float = 0.0  # drop masks that score lower, chosen on validation [0..1]
    refine: bool = False  # refine mask boundaries, see perception/mask_refinement.py
    calibration: tuple[float, ...] = ()  # see perception/mask_scores.py; empty: not calibrated
    calibration_curve: tuple[tuple[float, float], ...] = ()  # see perception/mask_scores.py

    @property
    def image_tokens(self) -> int:
        """P: the number of image tokens in the language model's input."""
        return (self.clip.image_size // self.clip.patch_size) ** 2

    @property
    def projector_layers(self) -> int:
        """The number of linear layers between CLIP and the language model.

        Raises:
            CheckpointError: `mm_projector_type` is unknown.
        """
        if self.mm_projector_type == 'linear':
            return 1
        match = re.fullmatch(r'mlp([1-9]\d{0,3})x_gelu', self.mm_projector_type)
        if not match:
            raise CheckpointError(
                f'mm_projector_type is {short_repr(self.mm_projector_type)}; expected "linear", '
                '"mlp2x_gelu" or another number of layers'
            )
        return int(match[1])

    @property
    def sam_size(self) -> int:
        """S: side of SAM's square input [px]."""
        return self.sam.vision_config.image_size

    def to_dict(self) -> dict:
        """Return the content of config.json; `from_fields` reads it."""
        config_dict = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.point_rule is not None:
            config_dict['point_rule'] = dataclasses.asdict(self.point_rule)
        parts = {name: config_dict[name].to_dict() for name in ('clip', 'llama', 'sam')}
        return {'model_type': 'lisa_ros', **config_dict, **parts}

    @classmethod
    def from_fields(cls, fields: JsonFields) -> LisaConfig:
        """Return the config that `to_dict` wrote.

        Raises:
            CheckpointError: a key is unknown or missing, or a value has another type.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(fields.values.keys() - known - {'model_type'})
        if unknown:
            raise CheckpointError(
                f'{fields.path}: not a config of lisa_ros: the key {short_repr(unknown[0])} is '
                'unknown; it may be of another version'
            )
        return cls(
            clip=_part(CLIPVisionConfig, fields, 'clip'),
            llama=_part(LlamaConfig, fields, 'llama'),
            sam=_part(SamConfig, fields, 'sam', _SAM_PARTS),
            seg_token_id=fields.integer('seg_token_id', minimum=0),
            mm_vision_select_layer=fields.integer('mm_vision_select_layer', -2),
            mm_projector_type=fields.text('mm_projector_type', 'linear'),
            out_dim=fields.integer('out_dim', 256, minimum=1),
            image_marks=fields.flag('image_marks', True),
            point_rule=read_point_rule(fields),
            template=fields.text('template', 'llava_v1'),
            explain=fields.text('explain', cls.explain),
            answer_styles=read_answer_styles(fields),
            reason_question=fields.text('reason_question', cls.reason_question),
            confidence_threshold=fields.number('confidence_threshold', 0.0, 0, 1),
            refine=fields.flag('refine', False),
            calibration=_calibration(fields),
            calibration_curve=_calibration_curve(fields),
        )


_SAM_PARTS = {
    'vision_config': SamVisionConfig,
    'prompt_encoder_config': SamPromptEncoderConfig,
    'mask_decoder_config': SamMaskDecoderConfig,
}
_CALIBRATION_WEIGHTS = 4  # see perception/mask_scores.py


def _part(
    config_class: type[PreTrainedConfig],
    fields: JsonFields,
    key: str,
    parts: Mapping[str, type[PreTrainedConfig]] | None = None,
) -> PreTrainedConfig:
    """Return one of the parts of a LISA; see `known_values`."""
    part = fields.object(key)
    values = known_values(config_class, part)
    for name, part_class in (parts or {}).items():
        values[name] = known_values(part_class, part.object(name))
    return make_config(config_class, values, part)


def known_values(config_class: type[PreTrainedConfig], fields: JsonFields) -> dict:
    """Return the values that a config class declares itself, without those of its base.

    The base class takes any key: "num_labels": 10^9 makes it build a dict of 10^9 names, and
    others choose code to run.
    """
    check_sizes(fields)
    own = {field.name for field in dataclasses.fields(config_class)}
    base = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {key: value for key, value in fields.values.items() if key in own - base}


def check_sizes(fields: JsonFields) -> None:
    """Check the sizes that the libraries divide by, in a part of a config.

    Raises:
        CheckpointError: one of them is not an integer of 1 or more.
    """
    for key in ('image_size', 'patch_size', 'num_attention_heads'):
        if key in fields.values:
            fields.integer(key, minimum=1)


def make_config(
    config_class: type[PreTrainedConfig], values: dict, fields: JsonFields
) -> PreTrainedConfig:
    """Return a config of transformers, which checks the types of its values.

    Raises:
        CheckpointError: it refuses them; `fields` names the file.
    """
    try:
        return config_class(**values)
    except Exception as error:  # the library raises many types for values that it refuses
        raise CheckpointError(
            f'{fields.path}: not a config of {config_class.__name__} ({error_summary(error)}); it '
            'may be of another version'
        ) from error


def read_point_rule(fields: JsonFields) -> PointRule | None:
    """Return `point_rule` of a config.json; None if it has none."""
    if 'point_rule' not in fields:
        return None
    rule, default = fields.object('point_rule'), PointRule()
    return PointRule(
        count=rule.integer('count', default.count, 1, 10_000),
        inside=rule.number('inside', default.inside, 0, 1),
        outside=rule.number('outside', default.outside, 0, 1),
        down_sample=rule.integer('down_sample', default.down_sample, 1, 1000),
    )


def read_answer_styles(fields: JsonFields) -> dict[str, str]:
    """Return `answer_styles` of a config.json; empty if it has none."""
    styles = fields.object('answer_styles', {})
    return {style: styles.text(style) for style in styles.values}


def _calibration(fields: JsonFields) -> tuple[float, ...]:
    weights = fields.numbers('calibration', [])
    if weights and len(weights) != _CALIBRATION_WEIGHTS:
        raise fields.error('calibration', f'{_CALIBRATION_WEIGHTS} numbers, or none')
    return weights


def _calibration_curve(fields: JsonFields) -> tuple[tuple[float, float], ...]:
    """Return knots (probability, score), both 0..1, in rising order of the probability."""
    knots = fields.values.get('calibration_curve') or []
    try:
        curve = tuple((x, y) for x, y in knots)
        is_valid = all(0 <= value <= 1 for knot in curve for value in knot)
        is_valid = is_valid and all(a[0] <= b[0] for a, b in pairwise(curve))
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise fields.error('calibration_curve', 'pairs of numbers of 0 to 1, in rising order')
    return curve
