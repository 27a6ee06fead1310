# SPDX-License-Identifier: Apache-2.0
"""Recognize which model of the LISA family a released checkpoint is, by its weights and tokenizer.

LISA, LISA++, SESAME, LISAt and READ have one layout. `architectures` in config.json does not tell
them apart: upstream edits it by hand, and its loaders do not read it. What differs between them is
the prompt that they were trained with, which no file states.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lisa_ros.model.json_file import JsonFields
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Family:
    """How a model of the family is asked, and its names in config.json."""

    architecture: str  # the class of the upstream code
    template: str  # conversation template of its demo, see perception/prompts.py
    image_marks: bool | None  # <im_start> and <im_end> around the image; None: see config.json
    explain: str = LisaConfig.explain  # see LisaConfig
    answer_styles: Mapping[str, str] = field(  # see LisaConfig
        default_factory=lambda: {'semantic': 'Please output segmentation mask.'}
    )

    def uses_image_marks(self, fields: JsonFields, tokenizer: Tokenizer) -> bool:
        """Return whether prompts have <im_start> and <im_end>, by config.json and tokenizer."""
        if self.image_marks is not None:
            return self.image_marks
        return fields.flag('mm_use_im_start_end', bool(tokenizer.image_marks))


LISA = Family('LISAForCausalLM', 'llava_v1', image_marks=True)
LISA_V0 = replace(LISA, template='vicuna_v1')  # chat.py of dvlab-research/LISA @0e26916
# A new LISA from LLaVA-1.5, whose tokenizer would make <unk> of the first word after <im_end>.
LISA_OF_LLAVA_15 = replace(LISA, image_marks=False)
# LISA++, whose code is a branch of LISA's and has its class. It has no marks, whatever its
# config.json and tokenizer say. The requests are those of its utils/utils.py.
LISA_PLUS = Family(
    'LISAForCausalLM',
    'llava_v1',
    image_marks=False,
    explain='Provide a textual answer and generate a semantic segmentation mask. Focus on '
    'categorizing the entire class without separating individual instances.',
    answer_styles={
        'semantic': 'Generate a mask for semantic segmentation. Focus on identifying the category '
        'as a whole; do not distinguish between individual instances within the same category.',
        'instances': 'Generate instance segmentation masks. Each countable object within the same '
        'category should have a separate mask. Ignore uncountable categories for individual '
        'masking.',
        'text': 'Respond to the question using text only. Do not generate any segmentation masks.',
    },
)
SESAME = Family('SESAMEForCausalLM', 'vicuna_v1', image_marks=None)  # LISAt continues it
READ = Family('READForCausalLM', 'vicuna_v1', image_marks=None)
# as "READForCausalLM" and "rui-qian/READ-LLaVA-v1.5-13B-for-ReasonSeg-testset"
_READ_NAME = re.compile(r'(?<![A-Za-z])READ(?![a-z])')


def recognize(
    fields: JsonFields, projector_type: str, tokenizer: Tokenizer, name: str = ''
) -> Family:
    """Return the family of a released checkpoint.

    A projector of several layers and a tokenizer that is not `legacy` come from LLaVA-1.5. SESAME
    and READ set `legacy` again, LISA++ does not. READ has the weights of a SESAME: names tell.

    Args:
        fields: of its config.json.
        projector_type: see `LisaConfig.mm_projector_type`.
        tokenizer: of the checkpoint.
        name: by which the user loads it.
    """
    base = fields.text('_name_or_path', '')
    if projector_type == 'linear':
        is_llama_2 = 'llama-2' in base.lower().replace('_', '-')
        return replace(LISA, template='llava_llama_2') if is_llama_2 else LISA
    if not tokenizer.legacy:
        return LISA_PLUS
    architectures = fields.values.get('architectures')
    names = [*(architectures if isinstance(architectures, list) else ()), base, name]
    return READ if any(_READ_NAME.search(str(known)) for known in names) else SESAME


def family_of(config: LisaConfig, tokenizer: Tokenizer) -> Family:
    """Return what `recognize` says of a model of ours, once it is in the released layout."""
    if config.mm_projector_type == 'linear':
        return LISA
    if not tokenizer.legacy:
        return LISA_PLUS
    return SESAME if config.point_rule is None else READ
