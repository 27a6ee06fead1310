# SPDX-License-Identifier: Apache-2.0
"""The original's words: how it asks for a thing, and how it answers.

Those of training stand in utils/utils.py of dvlab-research/LISA, those of its evaluation in
utils/dataset.py (ValDataset). The model knows these words; figures are told with them.
"""

from __future__ import annotations

from lisa_ros.datasets.annotations import Query

SHORT_QUESTIONS = (
    'Can you segment the {} in this image?',
    'Please segment the {} in this image.',
    'What is {} in this image? Please respond with segmentation mask.',
    'What is {} in this image? Please output segmentation mask.',
)
LONG_QUESTIONS = (
    '{} Please respond with segmentation mask.',
    '{} Please output segmentation mask.',
)
WHY = (
    'Please output segmentation mask and explain why.',
    'Please output segmentation mask and explain the reason.',
    'Please output segmentation mask and give some explanation.',
)
ANSWERS = (
    'It is [SEG].',
    'Sure, [SEG].',
    'Sure, it is [SEG].',
    'Sure, the segmentation result is [SEG].',
    '[SEG].',
)
TEACHER_FORCED_ANSWER = (
    '[SEG].'  # what is put into the model's mouth where only its masks are compared
)


def validation_question(query: Query) -> str:
    """Return the question of LISA's evaluation, with the space that it has after the picture."""
    if query.is_sentence:
        return f' {query.text.strip()} Please output segmentation mask.'
    return f' What is {query.text.strip()} in this image? Please output segmentation mask.'
