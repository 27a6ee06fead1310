# SPDX-License-Identifier: Apache-2.0
"""Prompts of vision-language models equal the originals'; names of models choose profiles."""

import subprocess
import sys

import pytest

from lisa_ros.errors import CheckpointError, SettingsError
from lisa_ros.vlm.profiles import PROFILES, choose_profile

# As the originals build them: VisionReasoner c013132 (vision_reasoner_model.py, visurf_model.py,
# qwen_vl.py), Dr-Seg 07f6a40 (evaluation_drseg.py), Seg-Zero (inference_scripts/infer.py).
DETECTION_TEMPLATE = (
    'Please find "{Question}" with bboxs and points.'
    'Compare the difference between object(s) and find the most closely matched object(s).'
    'Output the thinking process in <think> </think> and final answer in <answer> </answer> tags.'
    'Output the bbox(es) and point(s) inside the interested object(s) in JSON format.'
    'i.e., <think> thinking process here </think>'
    '<answer>{Answer}</answer>'
)
DR_SEG_TEMPLATE = (
    'Please find "{Question}" with bboxs and points.'
    'Compare the difference between object(s) and find the most closely matched object(s).'
    'Output the thinking process inside <think>...</think>.'
    'Inside this reasoning, you must include one or more <look>...</look> blocks, enclosing the '
    'parts of the reasoning where you pay special attention to certain visual information.'
    ' Then, output the final answer inside <answer>...</answer>.'
    ' Output the bbox(es) and point(s) inside the interested object(s) in JSON format.'
    ' i.e., <think> [your reasoning text] <look> [your visual focus] </look> '
    '[more reasoning text] </think>'
    '<answer>{Answer}</answer>'
)
SEG_ZERO_TEMPLATE = (
    "Please find '{Question}' with bbox and points."
    'Compare the difference between objects and find the most closely matched one.'
    'Output the thinking process in <think> </think> and final answer in <answer> </answer> tags.'
    'Output the one bbox and points of two largest inscribed circles inside the interested object '
    'in JSON format.'
    'i.e., <think> thinking process here </think>'
    '<answer>{Answer}</answer>'
)
ANSWER = '[{"bbox_2d": [10,100,200,210], "point_2d": [30,110]}, {"bbox_2d": [225,296,706,786], "point_2d": [302,410]}]'  # noqa: E501
SPACED_ANSWER = '[{"bbox_2d": [10, 100, 200, 210], "point_2d": [30, 110]}, {"bbox_2d": [225, 296, 706, 786], "point_2d": [302, 410]}]'  # noqa: E501
ORIGINALS = {
    'vision_reasoner': lambda text: DETECTION_TEMPLATE.format(
        Question=text.lower().strip('."?!'), Answer=ANSWER
    ),
    'visurf': lambda text: DETECTION_TEMPLATE.format(
        Question=text.lower().strip('"!'), Answer=SPACED_ANSWER
    ),
    'dr_seg': lambda text: DR_SEG_TEMPLATE.format(
        Question=text.lower().strip('."?!'), Answer=ANSWER
    ),
    'seg_zero': lambda text: SEG_ZERO_TEMPLATE.format(
        Question=text.lower().strip('.'),
        Answer="{'bbox': [10,100,200,210], 'points_1': [30,110], 'points_2': [35,180]}",
    ),
    'qwen2_5_vl': lambda text: (f'Locate "{text}", report the bboxes coordinates in JSON format.'),
}
ORIGINALS['qwen3_vl'] = ORIGINALS['qwen2_5_vl']


@pytest.mark.parametrize('name', PROFILES)
@pytest.mark.parametrize(
    'query', ['the red mug', 'What can I drink, and {Answer} or {query}?', 'THE MUG!', 'Wo? Da.']
)
def test_prompts_are_those_of_the_originals(name, query):
    assert PROFILES[name].request(query) == ORIGINALS[name](query)


def test_spaces_round_a_query_are_left_out():
    assert PROFILES['vision_reasoner'].request(' The mug. ') == ORIGINALS['vision_reasoner'](
        'the mug'
    )


@pytest.mark.parametrize(
    ('model', 'name'),
    [
        ('Ricky06662/VisionReasoner-7B', 'vision_reasoner'),
        ('Ricky06662/Visurf-7B-NoThink-Best-on-gRefCOCO', 'visurf'),
        ('hao05/Dr_Seg', 'dr_seg'),
        ('Ricky06662/Seg-Zero-7B', 'seg_zero'),
        ('/models/Seg-Zero/Qwen2.5-VL-7B-Instruct', 'qwen2_5_vl'),
        ('Qwen/Qwen2.5-VL-3B-Instruct', 'qwen2_5_vl'),
        ('Qwen/Qwen3-VL-4B-Instruct', 'qwen3_vl'),
    ],
)
def test_the_name_of_a_model_chooses_its_profile(model, name):
    assert choose_profile(model, PROFILES[name].model_type) is PROFILES[name]


def test_the_user_may_choose_a_profile():
    profile = choose_profile('/models/mine', 'qwen2_5_vl', 'visurf')
    assert profile is PROFILES['visurf']
    with pytest.raises(SettingsError, match=r"'llava_v1': .* one of vision_reasoner, visurf"):
        choose_profile('/models/mine', 'qwen2_5_vl', 'llava_v1')


@pytest.mark.parametrize(
    ('model', 'model_type', 'expected'),
    [
        ('a/LLaVA', 'llava', 'expected qwen2_5_vl or qwen3_vl'),
        ('a/VisionReasoner-Qwen3', 'qwen3_vl', 'expected qwen2_5_vl'),
        ('a/b', None, 'expected qwen2_5_vl or qwen3_vl'),
    ],
)
def test_a_model_of_another_type_is_refused(model, model_type, expected):
    with pytest.raises(CheckpointError, match=expected):
        choose_profile(model, model_type)


def test_profiles_and_parsing_import_no_torch():
    code = """
import sys
import lisa_ros.vlm.profiles, lisa_ros.vlm.answer_parsing
assert not {'torch', 'transformers'} & set(sys.modules)
"""
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
