# SPDX-License-Identifier: Apache-2.0
"""LISA's question templates, from utils/utils.py of dvlab-research/LISA.

The validation question is that of its ValDataset (utils/dataset.py). The released models were
trained with these words, and published results use them.
"""

from __future__ import annotations

from lisa_ros.datasets.annotations import AnnotatedQuery

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
EXPLANATORY_QUESTIONS = (
    'Please output segmentation mask and explain why.',
    'Please output segmentation mask and explain the reason.',
    'Please output segmentation mask and give some explanation.',
)
TEACHER_FORCED_ANSWER = '[SEG].'  # given to the model where only masks are compared


def validation_question(query: AnnotatedQuery) -> str:
    """Return the question of LISA's validation, with its leading space."""
    if query.is_sentence:
        return f' {query.text.strip()} Please output segmentation mask.'
    return f' What is {query.text.strip()} in this image? Please output segmentation mask.'
