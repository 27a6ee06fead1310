# SPDX-License-Identifier: Apache-2.0
"""ReasonSeg, refCOCO and their kin, or labelled pictures of one's own: asked, and compared.

Two modes, which give figures of different kinds and are always named beside them:

    generate        the model answers, as a user gets it; masks below its threshold are none
    teacher_forced  the answer "[SEG]." is given and its mask is compared, as the paper's code does

Questions are those of LISA's own evaluation (utils/dataset.py) in both, if no other are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from lisa_ros.datasets.annotations import Picture, Query, read_image
from lisa_ros.datasets.json_io import Broken, raise_error
from lisa_ros.datasets.lisa_templates import TEACHER_FORCED_ANSWER, validation_question
from lisa_ros.errors import DataError
from lisa_ros.evaluation.cases import Case, case_of, draw
from lisa_ros.perception.segmenter import Segmenter

MODES = ('generate', 'teacher_forced')

# What the paper tells of its own models (arXiv 2308.00692), gIoU and cIoU in percent: table 1,
# ReasonSeg (test: overall), and table 2, which has cIoU alone. Its code compares teacher forced.
PUBLISHED: dict[str, dict[str, tuple[float | None, float]]] = {
    'ReasonSeg val': {
        'LISA-7B': (44.4, 46.0),
        'LISA-7B (fine-tuned)': (52.9, 54.0),
        'LISA-13B': (48.9, 46.9),
        'LISA-13B (fine-tuned)': (56.2, 62.9),
    },
    'ReasonSeg test': {
        'LISA-7B': (36.8, 34.1),
        'LISA-7B (fine-tuned)': (47.3, 48.4),
        'LISA-13B': (44.8, 45.8),
        'LISA-13B (fine-tuned)': (51.7, 51.1),
    },
    **{
        name: {'LISA-7B': (None, plain), 'LISA-7B (fine-tuned)': (None, tuned)}
        for name, plain, tuned in (
            ('refcoco val', 74.1, 74.9), ('refcoco testA', 76.5, 79.1),
            ('refcoco testB', 71.1, 72.3), ('refcoco+ val', 62.4, 65.1),
            ('refcoco+ testA', 67.4, 70.8), ('refcoco+ testB', 56.5, 58.1),
            ('refcocog val', 66.4, 67.9), ('refcocog test', 68.5, 70.6),
        )
    },
}  # fmt: skip


def published(data: str) -> dict[str, tuple[float | None, float]]:
    """Return published figures for a data set as `datasets.named` names it, if there are any.

    They stand for whole splits, asked as LISA's evaluation asks, first queries alone on ReasonSeg.
    """
    kind, *parts = data.split(':')
    if kind == 'refer' and len(parts) in (1, 2):
        name = f'{Path(parts[0]).name} {parts[1] if len(parts) > 1 else "train"}'
    else:
        name = f'{Path(data).absolute().parent.name} {Path(data).name}'
    return PUBLISHED.get(name, {})


def evaluate_dataset(
    segmenter: Segmenter,
    pictures: Sequence[Picture],
    mode: str = 'generate',
    *,
    question: Callable[[Query], str] = validation_question,
    first_only: bool = False,
    broken: Broken = raise_error,
    out: Path | None = None,
) -> Iterator[Case]:
    """Yield a case for each query of each picture.

    Args:
        segmenter: the model.
        pictures: of a data set (`datasets.named`).
        mode: of MODES.
        question: how a query is put; as LISA's evaluation does, if nothing else is given.
        first_only: ask the first query of each picture alone, as the original does on ReasonSeg.
        broken: what becomes of a picture that cannot be read: it is left out if this returns.
        out: a folder for overlays.

    Raises:
        DataError: a picture or its labels cannot be read.
    """
    for one in tqdm(pictures, desc=mode, unit='picture'):
        yield from _of_picture(segmenter, one, mode, question, first_only, broken, out)


def _of_picture(
    segmenter: Segmenter,
    one: Picture,
    mode: str,
    question: Callable[[Query], str],
    first_only: bool,
    broken: Broken,
    out: Path | None,
) -> list[Case]:
    """Return the cases of a picture, all of them or, if it is broken, none."""
    found = []
    try:
        image = read_image(one.path)
        for place, query in enumerate(one.queries[: 1 if first_only else None]):
            truth, text = query.truth(*image.shape[:2]), question(query)
            result = (
                segmenter.teacher_forced(image, text, TEACHER_FORCED_ANSWER)
                if mode == 'teacher_forced'
                else segmenter.segment(image, text)
            )
            group = one.path.stem
            picture = out and out / f'{group}.{place}.jpg'
            if picture:
                draw(picture, image, result, truth)
            found.append(case_of(group, place, _sort(query), query.text, result, truth, picture))
    except DataError as error:
        broken(error)
        return []
    return found


def _sort(query: Query) -> str:
    """Return the kind of a query: ReasonSeg tells names (short) from sentences (long)."""
    return 'long' if query.is_sentence else 'short'
