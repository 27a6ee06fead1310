# SPDX-License-Identifier: Apache-2.0
"""The table of known checkpoints as JSON, as text and as cells of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from lisa_ros.evaluation.cases import Mode
from lisa_ros.model.limits import GB
from lisa_ros.model_zoo.architectures import Architecture, size_of
from lisa_ros.model_zoo.known_models import (
    OWN_TEMPLATE,
    Abilities,
    KnownModel,
    PublishedFigure,
    Split,
)

PRECISIONS = ('bf16', 'int8', 'nf4')  # that tables show; fp16 takes as much as bf16
UNKNOWN = 'unknown'
_METHODS = {Mode.GENERATE: 'generated', Mode.TEACHER_FORCED: 'teacher forced'}
_TRUTHS = {True: 'yes', False: 'no', None: UNKNOWN}


def fits(model: KnownModel, memory: float, precision: str) -> bool:
    """Return whether the weights of a model fit into a memory [bytes]."""
    return size_of(model.architecture).memory[precision] <= memory


def as_json(model: KnownModel) -> dict:
    """Return a model as JSON holds it; null: unknown."""
    size = size_of(model.architecture)
    return {
        'name': model.name,
        'variants': list(model.variants),
        'family': model.family,
        'template': model.template,
        'licence': model.licence or None,
        'parameters': size.parameters,
        'weight_bytes': dict(size.memory),
        'abilities': asdict(model.abilities),
        'reasonseg': [
            {
                'split': figure.split.value,
                'giou': figure.giou,
                'ciou': figure.ciou,
                'method': figure.method.value,
                'source': figure.source,
                'remark': figure.remark,
            }
            for figure in model.figures
        ],
        'remark': model.remark,
    }


def parameters(model: KnownModel) -> str:
    """Return the number of weights: "7.7 B", "12 M"."""
    count = size_of(model.architecture).parameters
    return f'{count / 1e9:.1f} B' if count >= 1e9 else f'{count / 1e6:.0f} M'


def memory(model: KnownModel, precision: str) -> str:
    """Return the memory of the weights: "15.5 GB", "24 MB"."""
    size = size_of(model.architecture).memory[precision]
    return f'{size / GB:.1f} GB' if size >= GB else f'{size / 1e6:.0f} MB'


def abilities(known: Abilities) -> dict[str, str]:
    """Return yes, no or unknown for each ability."""
    return {name: _TRUTHS[value] for name, value in asdict(known).items()}


def figure_on_test(model: KnownModel) -> str:
    """Return gIoU and cIoU on the test split, and the method; "unknown" if nobody says."""
    figure = next((f for f in model.figures if f.split is Split.TEST), None)
    return UNKNOWN if figure is None else f'{scores(figure)} {_METHODS[figure.method]}'


def scores(figure: PublishedFigure) -> str:
    """Return "gIoU / cIoU" [percent]."""
    return f'{figure.giou:.1f} / {"-" if figure.ciou is None else format(figure.ciou, ".1f")}'


# ---- for the documentation

MEMORY_HEAD = ('checkpoint', 'weights', *(f'`{name}`' for name in PRECISIONS), 'template')
ABILITY_HEAD = ('checkpoint', 'licence', 'explains', 'denies', 'instances', 'dialogue', 'notes')
FIGURE_HEAD = ('checkpoint', 'split', 'gIoU', 'cIoU', 'answers', 'source')


def memory_rows(models: Sequence[KnownModel]) -> list[tuple[str, ...]]:
    """Return a row for each kind of model: size, memory by precision, template."""
    kinds: dict[tuple[Architecture, str], list[KnownModel]] = {}
    for model in models:
        kinds.setdefault((model.architecture, model.template), []).append(model)
    return [
        (
            _code([name for model in alike for name in model.names]),
            parameters(alike[0]),
            *(memory(alike[0], precision) for precision in PRECISIONS),
            f'`{template}`' if template != OWN_TEMPLATE else template,
        )
        for (_, template), alike in kinds.items()
    ]


def ability_rows(models: Sequence[KnownModel]) -> list[tuple[str, ...]]:
    """Return a row for each model: licence and abilities."""
    return [
        (
            _code(model.names),
            model.licence or UNKNOWN,
            *abilities(model.abilities).values(),
            model.remark,
        )
        for model in models
    ]


def figure_rows(models: Sequence[KnownModel]) -> list[tuple[str, ...]]:
    """Return a row for each published figure."""
    return [
        (
            f'`{model.name}`',
            figure.split.value,
            f'{figure.giou:.1f}',
            UNKNOWN if figure.ciou is None else f'{figure.ciou:.1f}',
            _METHODS[figure.method],
            f'{figure.source}; {figure.remark}' if figure.remark else figure.source,
        )
        for model in models
        for figure in model.figures
    ]


def _code(names: Sequence[str]) -> str:
    return ', '.join(f'`{name}`' for name in names)
