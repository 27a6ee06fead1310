# SPDX-License-Identifier: Apache-2.0
"""What differs between the families of vision-language models that point at objects, as data.

The prompts are parts of the models: they were trained with these sentences, which the originals
glue together without spaces. A query is inserted for `{query}`. Sources: JIA-Lab-research's
VisionReasoner (VisionReasoner, ViSurf, Qwen2.5-VL), Seg-Zero, eVI-group-SCU's Dr-Seg, and the
grounding examples of QwenLM's Qwen3-VL. Imports no torch: the node's settings name the profiles.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from lisa_ros.errors import CheckpointError, SettingsError
from lisa_ros.results import Turn

_THINKS = re.compile('(?<!no)(?<!non)thinking')  # in a name, see `is_thinking_model`


class Coordinates(enum.Enum):
    """What the numbers in an answer count."""

    PIXELS = enum.auto()  # of the image that the model gets, after it was resized
    THOUSANDTHS = enum.auto()  # of the image's width and height


@dataclass(frozen=True)
class ResizeRule:
    """To which size an image is resized for the model."""

    square: int | None = None  # first to this width and height, bilinear [px]; None: not
    # then to multiples of the model's cells with about the same ratio of sides, bicubic, and at
    # least and at most this many pixels
    min_pixels: int = 56 * 56
    max_pixels: int = 1280 * 28 * 28  # of 1280 image tokens


@dataclass(frozen=True)
class Profile:
    """How to ask a model for objects, and how to read its answer."""

    model_type: str  # in config.json
    prompt: str  # with {query}
    system: str = ''  # the system message; '': none
    resize: ResizeRule = ResizeRule()
    lower_case: bool = False  # of the query
    stripped: str = ''  # characters that are removed at both ends of the query
    coordinates: Coordinates = Coordinates.PIXELS
    tags: bool = False  # the answer is in <answer> tags, behind a reason; else it is bare JSON
    dialogue: bool = False  # trained with several questions about an image
    denies: bool = False  # trained to answer with an empty list if the object is absent
    stop: str = ''  # the answer ends with this text; '': with the token that ends a turn
    max_new_tokens: int = 1024
    names: tuple[str, ...] = ()  # in names of models, in lower case without - _ . and spaces
    cell: int = 28  # the side of an image token in released models [px]
    lossless: bool = False  # send images to a server as PNG, not as JPEG

    @property
    def explains(self) -> bool:
        """Whether each answer has a reason."""
        return self.tags

    def request(self, query: str) -> str:
        """Return the text for a query, as the user typed it."""
        query = query.lower() if self.lower_case else query
        return self.prompt.replace('{query}', query.strip().strip(self.stripped))

    def exchanges(self, turns: Sequence[Turn]) -> list[tuple[str, str]]:
        """Return the earlier requests and answers that a prompt has, oldest first.

        None for a model that was trained with one question. Yes/no questions are left out: they
        were not asked with this prompt, and a prompt whose answers are no lists invites another.
        The thoughts before an answer are left out, too, as chat templates do.
        """
        asked = [turn for turn in turns if not turn.yes_no] if self.dialogue else []
        return [(self.request(turn.query), without_thoughts(turn.answer_raw)) for turn in asked]


_QWEN = 'You are a helpful assistant.'  # Qwen2.5-VL's chat template adds it
_SEG_ZERO_SIZE = ResizeRule(square=840)
_COMPARE = 'Compare the difference between object(s) and find the most closely matched object(s).'
_THINK = (
    'Output the thinking process in <think> </think> and final answer in <answer> </answer> tags.'
)
_EXAMPLE = (
    '[{"bbox_2d": [10,100,200,210], "point_2d": [30,110]}, '
    '{"bbox_2d": [225,296,706,786], "point_2d": [302,410]}]'
)
_VISION_REASONER = (
    f'Please find "{{query}}" with bboxs and points.{_COMPARE}{_THINK}'
    'Output the bbox(es) and point(s) inside the interested object(s) in JSON format.'
    f'i.e., <think> thinking process here </think><answer>{_EXAMPLE}</answer>'
)

PROFILES = {
    'vision_reasoner': Profile(
        'qwen2_5_vl',
        _VISION_REASONER,
        system=_QWEN,
        resize=_SEG_ZERO_SIZE,
        lower_case=True,
        stripped='."?!',
        tags=True,
        stop='</answer>',
        max_new_tokens=2048,
        names=('visionreasoner',),
    ),
    'visurf': Profile(
        'qwen2_5_vl',
        _VISION_REASONER.replace(',', ', ').replace(',  ', ', '),  # spaces after all commas
        system=_QWEN,
        resize=_SEG_ZERO_SIZE,
        lower_case=True,
        stripped='"!',
        tags=True,
        denies=True,
        stop='</answer>',
        max_new_tokens=2048,
        names=('visurf',),
    ),
    'dr_seg': Profile(
        'qwen2_5_vl',
        f'Please find "{{query}}" with bboxs and points.{_COMPARE}'
        'Output the thinking process inside <think>...</think>.Inside this reasoning, you must '
        'include one or more <look>...</look> blocks, enclosing the parts of the reasoning where '
        'you pay special attention to certain visual information. Then, output the final answer '
        'inside <answer>...</answer>. Output the bbox(es) and point(s) inside the interested '
        'object(s) in JSON format. i.e., <think> [your reasoning text] <look> [your visual focus] '
        f'</look> [more reasoning text] </think><answer>{_EXAMPLE}</answer>',
        system=_QWEN,
        resize=_SEG_ZERO_SIZE,
        lower_case=True,
        stripped='."?!',
        tags=True,
        stop='</answer>',
        max_new_tokens=3000,
        names=('drseg',),
    ),
    'seg_zero': Profile(  # one object, as one JSON object with two points
        'qwen2_5_vl',
        "Please find '{query}' with bbox and points."
        f'Compare the difference between objects and find the most closely matched one.{_THINK}'
        'Output the one bbox and points of two largest inscribed circles inside the interested '
        'object in JSON format.i.e., <think> thinking process here </think>'
        "<answer>{'bbox': [10,100,200,210], 'points_1': [30,110], 'points_2': [35,180]}</answer>",
        system=_QWEN,
        resize=_SEG_ZERO_SIZE,
        lower_case=True,
        stripped='.',
        tags=True,
        stop='</answer>',
        names=('segzero',),
    ),
    'qwen2_5_vl': Profile(
        'qwen2_5_vl',
        'Locate "{query}", report the bboxes coordinates in JSON format.',
        system=_QWEN,
        stripped='"',
        dialogue=True,
        denies=True,
    ),
    'qwen3_vl': Profile(
        'qwen3_vl',
        'Locate "{query}", report the bboxes coordinates in JSON format.',
        resize=ResizeRule(min_pixels=64 * 32 * 32, max_pixels=1280 * 32 * 32),
        stripped='"',
        coordinates=Coordinates.THOUSANDTHS,
        dialogue=True,
        denies=True,
        cell=32,
    ),
}


def choose_profile(model: str, model_type: object, name: str | None = None) -> Profile:
    """Return the profile of a model whose config.json is known.

    Args:
        model: its folder or hub id; the last part may tell the family.
        model_type: in its config.json.
        name: the user's choice in PROFILES, or None.

    Raises:
        SettingsError: there is no such profile.
        CheckpointError: the model is of no type that a profile is for, or of another one.
    """
    by_type = (p for p in PROFILES.values() if p.model_type == model_type and not p.names)
    profile = _chosen(model, name) or next(by_type, None)
    if profile is None or profile.model_type != model_type:
        model_types = sorted({profile.model_type for profile in PROFILES.values()})
        expected = profile.model_type if profile else ' or '.join(model_types)
        raise CheckpointError(
            f'{model}: config.json names the model type {model_type!r}; expected {expected}'
        )
    return profile


def choose_served_profile(model: str, name: str | None = None) -> Profile:
    """Return the profile of a model of which only the name is known.

    Args:
        model: as a server calls it.
        name: the user's choice in PROFILES, or None.

    Raises:
        SettingsError: there is no such profile, or the model's name tells no family.
    """
    letters = _letters(model)
    by_type = (p for p in PROFILES.values() if _letters(p.model_type) in letters and not p.names)
    profile = _chosen(model, name) or next(by_type, None)
    if profile is None:
        raise SettingsError(
            f'model {model!r} runs at vlm_url, and its name tells no family: choose one with '
            f'template: {", ".join(PROFILES)}'
        )
    return profile


def is_thinking_model(model: str) -> bool:
    """Return whether a model's name says that it thinks before each answer, as "...-Thinking"."""
    return _THINKS.search(_letters(model)) is not None


def without_thoughts(answer: str) -> str:
    """Return the text behind the last </think>, up to a <think> that is open; all without them."""
    _, tag, text = answer.rpartition('</think>')
    return (text.lstrip() if tag else text).partition('<think>')[0]


def _chosen(model: str, name: str | None) -> Profile | None:
    """Return the profile that the user has chosen, or that a model's name tells.

    Raises:
        SettingsError: there is no such profile.
    """
    if name is not None and name not in PROFILES:
        raise SettingsError(
            f'template {name!r}: a vision-language model has one of {", ".join(PROFILES)}'
        )
    letters = _letters(model)
    by_name = (p for p in PROFILES.values() if any(part in letters for part in p.names))
    return PROFILES[name] if name else next(by_name, None)


def _letters(model: str) -> str:
    """Return the last part of a name in lower case, without signs and spaces."""
    return ''.join(filter(str.isalnum, PurePath(model).name.lower()))
