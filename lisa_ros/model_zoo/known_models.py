# SPDX-License-Identifier: Apache-2.0
"""The table of known checkpoints: the source of `lisa-ros models`, the README and docs/models.md.

Nothing here is guessed: None and an empty text mean unknown. A licence is the one that the authors
name; the language model below has its own. Published figures are those of their sources, most of
which give the answer "[SEG]." (teacher forced) or let the model write it (generated): figures of
the two methods cannot be compared. None of them was measured with this package.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from lisa_ros.evaluation.benchmarks import PUBLISHED
from lisa_ros.evaluation.cases import Mode
from lisa_ros.model import family
from lisa_ros.model_zoo.architectures import Architecture
from lisa_ros.resources import DEFAULT_MODEL
from lisa_ros.vlm.profiles import PROFILES

VLM_SAM = 'vlm+sam:'  # scheme of the vision-language models
OWN_TEMPLATE = 'its own'  # the one in the checkpoint's config.json


class Split(enum.Enum):
    """The part of ReasonSeg that was measured."""

    VAL = 'val'  # 200 images; several checkpoints were trained on them
    TEST = 'test'  # 779 images


@dataclass(frozen=True)
class PublishedFigure:
    """What others have measured on ReasonSeg [percent]."""

    split: Split
    giou: float
    ciou: float | None  # None: not published
    method: Mode  # GENERATE or TEACHER_FORCED
    source: str
    remark: str = ''


@dataclass(frozen=True)
class Abilities:
    """What a checkpoint was trained to do; None: unknown."""

    explains: bool | None  # gives the reason
    denies: bool | None  # says that an object is absent
    instances: bool | None  # makes a mask of each object
    dialogue: bool | None  # understands earlier turns


@dataclass(frozen=True)
class KnownModel:
    """A checkpoint, or several that differ in their training alone."""

    name: str  # as the parameter `model` takes it
    family: str
    architecture: Architecture
    template: str
    abilities: Abilities
    variants: tuple[str, ...] = ()  # hub ids of the same kind
    licence: str = ''  # '': unknown
    remark: str = ''
    figures: tuple[PublishedFigure, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All checkpoints."""
        return (self.name, *self.variants)


# ---- LISA and its relatives

_LISA_PAPER = 'arXiv 2308.00692, table 1'
_READ = 'README of rui-qian/READ'
_FORCED, _GENERATED = Mode.TEACHER_FORCED, Mode.GENERATE


def _lisa_paper(model: str) -> tuple[PublishedFigure, ...]:
    """Return the test figures of LISA's paper; its released checkpoints have seen val, too."""
    giou, ciou = PUBLISHED['ReasonSeg test'][model]
    remark = "of the paper's model; the checkpoint was trained on val, too"
    return (PublishedFigure(Split.TEST, giou, ciou, _FORCED, _LISA_PAPER, remark),)


_PLAIN = Abilities(explains=False, denies=None, instances=False, dialogue=True)
_EXPLANATORY = Abilities(explains=True, denies=None, instances=False, dialogue=True)
_SESAME = Abilities(explains=None, denies=True, instances=False, dialogue=None)
_READ_ONLY = Abilities(explains=None, denies=None, instances=False, dialogue=None)


def _read_checkpoint(
    variant: str,
    figure: tuple[Split, float, float] | None = None,
    architecture: Architecture = Architecture.LLAVA15_7B_336,
    abilities: Abilities = _READ_ONLY,
    remark: str = '',
) -> KnownModel:
    """Return a checkpoint of READ; the figure has its split, gIoU and cIoU."""
    return KnownModel(
        f'rui-qian/READ-LLaVA-v1.5-{variant}',
        'READ',
        architecture,
        family.READ.template,
        abilities,
        licence='MIT',
        remark=f'prompts SAM with points, too{remark}',
        figures=() if figure is None else (PublishedFigure(*figure, _FORCED, _READ),),
    )


_LISA_FAMILY = (
    KnownModel(
        DEFAULT_MODEL,
        'LISA',
        Architecture.TABLETOP,
        OWN_TEMPLATE,
        Abilities(explains=True, denies=True, instances=True, dialogue=True),
        licence='Apache-2.0',
        remark='part of this package; 36 kinds of objects on rendered tables, nothing else',
    ),
    KnownModel(
        'xinlai/LISA-7B-v1',
        'LISA',
        Architecture.LISA_7B,
        family.LISA.template,
        _PLAIN,
        figures=_lisa_paper('LISA-7B (fine-tuned)'),
    ),
    KnownModel(
        'xinlai/LISA-7B-v1-explanatory',
        'LISA',
        Architecture.LISA_7B,
        family.LISA.template,
        _EXPLANATORY,
    ),
    KnownModel(
        'xinlai/LISA-13B-llama2-v1', 'LISA', Architecture.LISA_13B, 'llava_llama_2', _PLAIN
    ),
    KnownModel(
        'xinlai/LISA-13B-llama2-v1-explanatory',
        'LISA',
        Architecture.LISA_13B,
        'llava_llama_2',
        _EXPLANATORY,
    ),
    KnownModel(
        'xinlai/LISA-7B-v0',
        'LISA v0',
        Architecture.LISA_7B,
        family.LISA_V0.template,
        _PLAIN,
        remark='SAM in a file of its own',
    ),
    KnownModel(
        'xinlai/LISA-13B-llama2-v0',
        'LISA v0',
        Architecture.LISA_13B,
        family.LISA_V0.template,
        _PLAIN,
        remark='SAM in a file of its own',
    ),
    KnownModel(
        'xinlai/LISA-13B-llama2-v0-explanatory',
        'LISA v0',
        Architecture.LISA_13B,
        family.LISA_V0.template,
        _EXPLANATORY,
        remark='SAM in a file of its own',
    ),
    KnownModel(
        'Senqiao/LISA_Plus_7b',
        'LISA++',
        Architecture.LLAVA15_7B_224,
        family.LISA_PLUS.template,
        Abilities(explains=True, denies=None, instances=True, dialogue=True),
        remark='a mask of each object, in one pass',
        figures=(
            PublishedFigure(
                Split.VAL,
                63.2,
                69.8,
                _FORCED,
                'port of LISA++ to transformers 5.3',
                'of others, not of its authors',
            ),
        ),
    ),
    KnownModel(
        'tsunghanwu/SESAME',
        'SESAME',
        Architecture.LLAVA15_7B_224,
        family.SESAME.template,
        _SESAME,
        licence='MIT',
        remark='says in words that a thing is absent',
    ),
    KnownModel(
        'tsunghanwu/SESAME_minus',
        'SESAME',
        Architecture.LLAVA15_7B_224,
        family.SESAME.template,
        Abilities(explains=False, denies=False, instances=False, dialogue=None),
        licence='MIT',
        remark='trained with RefCOCO, RefCOCO+ and RefCOCOg alone',
    ),
    KnownModel(
        'jquenum/LISAt-7b',
        'SESAME',
        Architecture.LLAVA15_7B_224,
        family.SESAME.template,
        Abilities(explains=None, denies=None, instances=False, dialogue=None),
        remark='satellite images; CLIP is RemoteCLIP',
    ),
    _read_checkpoint('7B-for-ReasonSeg-testset', (Split.TEST, 58.51, 58.60)),
    _read_checkpoint('7B-for-ReasonSeg-valset', (Split.VAL, 59.8, 67.6)),
    _read_checkpoint('7B-for-ReasonSeg-valset-ft', (Split.VAL, 62.33, 70.68)),
    _read_checkpoint(
        '7B-for-fprefcoco', abilities=_SESAME, remark='; trained with absent objects'
    ),
    _read_checkpoint(
        '13B-for-ReasonSeg-testset', (Split.TEST, 62.2, 62.8), Architecture.LLAVA15_13B_336
    ),
)

# ---- vision-language models that point, with SAM 2.1 Hiera-L


def _vlm(
    hub_id: str,
    profile: str,
    architecture: Architecture,
    figures: tuple[PublishedFigure, ...] = (),
    variants: tuple[str, ...] = (),
    licence: str = '',
    remark: str = '',
) -> KnownModel:
    """Return a vision-language model, whose profile tells its abilities."""
    abilities = Abilities(
        explains=PROFILES[profile].explains,
        denies=PROFILES[profile].denies,
        instances=profile != 'seg_zero',  # one object
        dialogue=PROFILES[profile].dialogue,
    )
    return KnownModel(
        VLM_SAM + hub_id,
        'vlm+sam',
        architecture,
        profile,
        abilities,
        tuple(VLM_SAM + name for name in variants),
        licence,
        remark,
        figures,
    )


_VISION_LANGUAGE = (
    _vlm(
        'Ricky06662/VisionReasoner-7B',
        'vision_reasoner',
        Architecture.QWEN25_VL_7B,
        (
            PublishedFigure(Split.TEST, 63.6, None, _GENERATED, 'arXiv 2505.12081'),
            PublishedFigure(Split.VAL, 66.3, None, _GENERATED, 'arXiv 2505.12081'),
        ),
        licence='Apache-2.0',
        remark='points at what fits best if nothing does: use verify',
    ),
    _vlm(
        'Ricky06662/Seg-Zero-7B',
        'seg_zero',
        Architecture.QWEN25_VL_7B,
        (
            PublishedFigure(Split.TEST, 57.5, 52.0, _GENERATED, 'arXiv 2503.06520'),
            PublishedFigure(Split.VAL, 62.6, 62.0, _GENERATED, 'arXiv 2503.06520'),
        ),
        remark='one object; points at what fits best if nothing does: use verify',
    ),
    _vlm(
        'Ricky06662/Visurf-7B-Best-on-gRefCOCO',
        'visurf',
        Architecture.QWEN25_VL_7B,
        variants=('Ricky06662/Visurf-7B-NoThink-Best-on-gRefCOCO',),
        remark='trained with absent objects',
    ),
    _vlm(
        'hao05/Dr_Seg',
        'dr_seg',
        Architecture.QWEN25_VL_7B,
        licence='Apache-2.0',
        remark='points at what fits best if nothing does: use verify',
    ),
    _vlm('Qwen/Qwen2.5-VL-3B-Instruct', 'qwen2_5_vl', Architecture.QWEN25_VL_3B),
    _vlm(
        'Qwen/Qwen2.5-VL-7B-Instruct',
        'qwen2_5_vl',
        Architecture.QWEN25_VL_7B,
        (
            PublishedFigure(
                Split.TEST,
                52.1,
                None,
                _GENERATED,
                'quoted by others',
                'with SAM 2, without training; its prompt may differ from ours',
            ),
        ),
        licence='Apache-2.0',
    ),
    _vlm(
        'Qwen/Qwen3-VL-4B-Instruct',
        'qwen3_vl',
        Architecture.QWEN3_VL_4B,
        licence='Apache-2.0',
    ),
    _vlm('Qwen/Qwen3-VL-8B-Instruct', 'qwen3_vl', Architecture.QWEN3_VL_8B),
)

KNOWN_MODELS: tuple[KnownModel, ...] = (*_LISA_FAMILY, *_VISION_LANGUAGE)
