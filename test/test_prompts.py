# SPDX-License-Identifier: Apache-2.0
"""Prompts and training labels have the original's token ids, for each template."""

import numpy as np
import pytest
from golden import SIZES, arrays, backend, case_array, case_id, cases, texts

from lisa_ros.errors import QueryError, SettingsError
from lisa_ros.model.packing import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from lisa_ros.perception.prompts import TEMPLATES, append_boxes, prompt_ids, training_ids
from lisa_ros.results import Dialogue, Segmentation, Status, Turn, answer_text

ONE_TURN = Dialogue((Turn('Where is the cup?', 'Sure, [SEG] .'),))
TOKENS_TYPED = ('SEG_typed_by_the_user', 'odd_text')
ORDINARY = [(size, case) for size, case in cases(256) if case['kind'] not in TOKENS_TYPED]


@pytest.fixture
def tokenizer():
    return backend(256).tokenizer


@pytest.mark.parity
@pytest.mark.parametrize(('size', 'case'), cases(), ids=case_id)
def test_prompts_have_the_originals_ids(size, case):
    ids = prompt_ids(
        backend(size).tokenizer, case['template'], case['prompt'], typed_specials=True
    )
    assert ids == case_array(size, case, 'input_ids').tolist()


@pytest.mark.parity
@pytest.mark.parametrize(('size', 'case'), ORDINARY, ids=case_id)
def test_ordinary_text_has_the_same_ids_when_typed_tokens_are_text(size, case, tokenizer):
    ids = prompt_ids(tokenizer, case['template'], case['prompt'])
    assert ids == case_array(size, case, 'input_ids').tolist()


def question_and_answer(conversation: str, template: str) -> Turn:
    middle, end = (' ASSISTANT: ', '</s>') if template == 'llava_v1' else (' [/INST] ', ' </s>')
    query, answer = conversation.split('<im_end>\n')[1].split(middle)
    return Turn(query, answer.removesuffix(end))


@pytest.mark.parity
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('index', range(3))
def test_training_batches_are_the_originals(size, index):
    batch = texts(size)['train'][index]
    ids, labels = (
        arrays(size)[f'train_{batch["tag"]}_{name}'].tolist() for name in ('input_ids', 'labels')
    )
    pad = backend(size).tokenizer.pad_token_id
    for row, conversation in enumerate(batch['conversations']):
        turn = question_and_answer(conversation, batch['template'])
        token_ids, token_labels = training_ids(backend(size).tokenizer, batch['template'], [turn])
        padding = len(ids[row]) - len(token_ids)
        assert token_ids + padding * [pad] == ids[row]
        assert token_labels + padding * [IGNORE_INDEX] == labels[row]


@pytest.mark.parametrize('template', TEMPLATES)
def test_only_the_answers_of_a_dialogue_have_labels(template, tokenizer):
    turns = [*ONE_TURN.turns, Turn('And the spoon?', 'It is [SEG].')]
    ids, labels = training_ids(tokenizer, template, turns)
    trained = [label for label in labels if label != IGNORE_INDEX]
    assert all(label in (IGNORE_INDEX, index) for label, index in zip(labels, ids, strict=True))
    answers = 'Sure, [SEG] . </s>It is [SEG] . </s>'
    assert tokenizer.decode(trained).replace('  ', ' ').replace(' </s>', '</s>') == (
        answers.replace(' </s>', '</s>')
    )
    assert training_ids(tokenizer, template, turns, max_length=20) == (ids[:20], labels[:20])


@pytest.mark.parametrize(
    ('template', 'text'),
    [
        ('llava_v1', 'ASSISTANT: Sure, [SEG]  .</s>USER: And the spoon? ASSISTANT:'),
        ('llava_llama_2', '[/INST] Sure, [SEG]  . </s><s>[INST] And the spoon? [/INST]'),
        ('plain', 'ASSISTANT: Sure, [SEG]  .</s>USER: And the spoon? ASSISTANT:'),
    ],
)
def test_earlier_turns_are_written_as_the_original_writes_them(template, text, tokenizer):
    ids = prompt_ids(tokenizer, template, 'And the spoon?', ONE_TURN)
    assert ids.count(IMAGE_TOKEN_INDEX) == 1
    assert tokenizer.decode([index for index in ids if index >= 0]).endswith(text)


TURNS = (
    Turn('Where is the mug?', 'Sure, [SEG].'),
    Turn('And the spoon?', 'It is [SEG].'),
)
# Written out by hand from the original's conversation.py: llava_v1 is "A chat ..." with the
# separators " " and "</s>"; llava_llama_2 wraps each question in [INST] and its first in <<SYS>>.
GOLDEN = {
    'llava_v1': (
        '<s>A chat between a curious human and an artificial intelligence assistant. The '
        "assistant gives helpful, detailed, and polite answers to the human's questions. "
        'USER: <im_start>|<im_end> Where is the mug? ASSISTANT: Sure, [SEG]  .</s>',
        'USER: And the spoon? ASSISTANT: It is [SEG]  .</s>',
        'USER: Why? ASSISTANT:',
    ),
    'llava_llama_2': (
        '<s>[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to '
        'understand the visual content that the user provides, and assist the user with a '
        'variety of tasks using natural language.\n<</SYS>> '
        '<im_start>|<im_end> Where is the mug? [/INST] Sure, [SEG]  . </s>',
        '<s>[INST] And the spoon? [/INST] It is [SEG]  . </s>',
        '<s>[INST] Why? [/INST]',
    ),
}


@pytest.mark.parametrize('template', GOLDEN)
@pytest.mark.parametrize('earlier', [1, 2])
def test_dialogues_of_two_and_three_turns_are_the_originals_word_for_word(
    template, earlier, tokenizer
):
    ids = prompt_ids(tokenizer, template, 'Why?', Dialogue(TURNS[:earlier]))
    image = ids.index(IMAGE_TOKEN_INDEX)
    prompt = f'{tokenizer.decode(ids[:image])}|{tokenizer.decode(ids[image + 1 :])}'
    first, second, last = GOLDEN[template]
    assert prompt == first + (second if earlier == 2 else '') + last
    # each answer ends with </s>, and only llava_llama_2 begins every query with <s>
    assert ids.count(tokenizer.eos_token_id) == earlier
    assert ids.count(tokenizer.bos_token_id) == (1 + earlier if template != 'llava_v1' else 1)
    assert ids.count(tokenizer.seg_token_id) == earlier


def test_the_next_prompt_begins_with_the_training_ids(tokenizer):
    ids, _ = training_ids(tokenizer, 'llava_v1', ONE_TURN.turns)
    assert prompt_ids(tokenizer, 'llava_v1', 'And?', ONE_TURN)[: len(ids)] == ids


@pytest.mark.parametrize('typed', ['[SEG]', '</s>', '<image>', '<im_start>'])
def test_tokens_typed_by_the_user_are_text(typed, tokenizer):
    ids = prompt_ids(tokenizer, 'llava_v1', f'what is {typed} here')
    reference = prompt_ids(tokenizer, 'llava_v1', 'what is x here')
    special = {IMAGE_TOKEN_INDEX, 0, 1, 2, 704, 705, 706}
    assert [i for i in ids if i in special] == [i for i in reference if i in special]
    assert typed in tokenizer.decode([index for index in ids if index >= 0])


def test_an_image_placeholder_typed_as_a_token_is_refused(tokenizer):
    with pytest.raises(QueryError, match='leave <image> out'):
        prompt_ids(tokenizer, 'llava_v1', 'what is <image>', typed_specials=True)


@pytest.mark.parametrize('text', ['', '  \n\t'])
def test_an_empty_query_is_refused(text, tokenizer):
    with pytest.raises(QueryError, match='query is empty'):
        prompt_ids(tokenizer, 'llava_v1', text)


@pytest.mark.parametrize('dialogue', [None, ONE_TURN])
def test_a_query_that_is_too_long_is_refused_with_a_remedy(dialogue, tokenizer):
    with pytest.raises(QueryError, match=r'at most 30 fit.*shorten the query'):
        prompt_ids(tokenizer, 'llava_v1', 'where is it', dialogue, max_length=30)


@pytest.mark.parametrize('template', TEMPLATES)
def test_the_oldest_turns_of_a_long_dialogue_are_left_out_whole(template, tokenizer):
    turns = [Turn(f'Where is number {number}?', f'It is [SEG], {number}.') for number in range(4)]

    def ids_after(count, **limit):
        dialogue = Dialogue(tuple(turns[len(turns) - count :]))
        return prompt_ids(tokenizer, template, 'And now?', dialogue, **limit)

    for count in range(5):
        fitting = ids_after(count)
        assert ids_after(4, max_length=len(fitting)) == fitting
        if count < 4:
            assert ids_after(4, max_length=len(ids_after(count + 1)) - 1) == fitting
    with pytest.raises(QueryError, match='shorten the query'):
        ids_after(4, max_length=len(ids_after(0)) - 1)


def test_an_unknown_template_is_an_error(tokenizer):
    with pytest.raises(SettingsError, match=r"'alpaca'.*llava_v1"):
        prompt_ids(tokenizer, 'alpaca', 'where is it')


@pytest.mark.parametrize(
    ('raw', 'text'),
    [
        ('Sure, [SEG] .', 'Sure.'),
        ('Sure, [SEG] . The mug holds a drink.', 'Sure. The mug holds a drink.'),
        ('Sure, [SEG] , [SEG] and [SEG] .', 'Sure.'),
        ('It is [SEG] . A spoon stirs.', 'It is here. A spoon stirs.'),
        ('They are [SEG] and [SEG] .', 'They are here.'),
        ('[SEG] . The eyes are green.', 'The eyes are green.'),
        ('[SEG] and [SEG] .', 'Here.'),
        (' There is no mug.', 'There is no mug.'),
        ('', ''),
    ],
)
def test_the_answer_text_has_no_seg(raw, text):
    assert answer_text(raw) == text


def test_boxes_are_appended_if_every_seg_has_one():
    mask = np.zeros((2, 100, 200), bool)
    mask[0, 10:50, 20:60] = True
    mask[1, 99, 199] = True
    result = Segmentation(
        'the mugs', '', 'Sure, [SEG] and [SEG] .', mask, mask * 1.0, np.ones(2), Status.FOUND
    )
    dialogue = Dialogue().extended(result)
    assert append_boxes(dialogue).turns[0].answer_raw == (
        'Sure, [SEG] (10, 10, 30, 50) and [SEG] (100, 99, 100, 100) .'
    )
    assert append_boxes(dialogue).shown is dialogue.shown
    left_out = Dialogue((Turn('the mugs', 'Sure, [SEG] and [SEG] .', ((1, 2, 3, 4),)),))
    assert append_boxes(left_out) == left_out
    without_mask = Dialogue((Turn('why?', 'It holds a drink.'),))
    assert append_boxes(without_mask) == without_mask
