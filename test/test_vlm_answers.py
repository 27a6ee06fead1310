# SPDX-License-Identifier: Apache-2.0
"""A table of answers of vision-language models: what each means, whole and token by token."""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisa_ros.vlm.answer_parsing import AnswerError, AnswerParser
from lisa_ros.vlm.profiles import PROFILES

RESIZED, ORIGINAL = (840, 840), (1680, 420)  # width and height [px]: x counts twice, y half
BOX, POINT = '"bbox_2d": [100, 200, 300, 400]', '"point_2d": [150, 250]'
ONE = f'{{{BOX}, {POINT}}}'
TWO = f'{ONE}, {{"bbox_2d": [0, 0, 840, 840], "point_2d": [420, 420]}}'
FIRST = ((200, 100, 600, 200), ((300, 125),))
SECOND = ((0, 0, 1680, 420), ((840, 210),))
THIRD = ((168, 84, 504, 168), ())  # BOX in thousandths


def tags(json, thinking='It is red.'):
    return f'<think> {thinking} </think><answer>{json}</answer>'


def fenced(json):
    return f'```json\n{json}\n```'


# profile, answer, and its objects (box, points), or part of the error
ANSWERS = [
    # ---- right
    ('vision_reasoner', tags(f'[{ONE}]'), [FIRST]),
    ('vision_reasoner', tags(f'[{TWO}]'), [FIRST, SECOND]),
    ('vision_reasoner', tags(f'\n [\n{ONE}\n]\n '), [FIRST]),
    ('vision_reasoner', tags(f'[{ONE}]', ''), [FIRST]),
    ('vision_reasoner', f'<answer>[{ONE}]</answer>', [FIRST]),
    ('vision_reasoner', f'No tag for this. <answer>[{ONE}]</answer>', [FIRST]),
    ('vision_reasoner', tags(f'[{ONE}]') + '\n', [FIRST]),
    ('vision_reasoner', tags(f'[{ONE}]') + ' I hope that helps.', [FIRST]),
    ('vision_reasoner', tags(f'[{ONE}]', 'A list: [1, 2], {3}.'), [FIRST]),
    ('vision_reasoner', tags('[{"bbox_2d":[100,200,300,400],"point_2d":[150,250]}]'), [FIRST]),
    ('vision_reasoner', tags(f'[{{{POINT}, {BOX}}}]'), [FIRST]),
    ('vision_reasoner', tags(f'[{{{BOX}, {POINT}, "label": "a }} {{ [mug]"}}]'), [FIRST]),
    ('vision_reasoner', tags(f'[{{{BOX}, {POINT}, "more": {{"a": [1]}}}}]'), [FIRST]),
    ('vision_reasoner', tags(f'[{{{BOX}}}]'), [(FIRST[0], ())]),
    ('vision_reasoner', tags(f'[{{{POINT}}}]'), [(None, FIRST[1])]),
    ('vision_reasoner', tags(f'[{ONE}, {{{BOX}}}]'), [FIRST, (FIRST[0], ())]),
    (
        'vision_reasoner',
        tags('[{"bbox_2d": [105, 210.0, 3.15e2, 400.0]}]'),
        [((210, 105, 630, 200), ())],
    ),
    ('vision_reasoner', tags(ONE), [FIRST]),
    ('visurf', tags(f'[{ONE}]'), [FIRST]),
    ('dr_seg', tags(f'[{ONE}]', '<look> the table </look> so'), [FIRST]),
    (
        'seg_zero',
        tags('{"bbox": [100, 200, 300, 400], "points_1": [150, 250], "points_2": [420, 420]}'),
        [(FIRST[0], (*FIRST[1], *SECOND[1]))],
    ),
    ('qwen2_5_vl', fenced(f'[\n\t{{{BOX}, "label": "mug"}}\n]'), [(FIRST[0], ())]),
    ('qwen2_5_vl', f'[{{{BOX}}}]', [(FIRST[0], ())]),
    ('qwen2_5_vl', f'Here they are:\n{fenced(f"[{TWO}]")}', [FIRST, SECOND]),
    ('qwen2_5_vl', fenced(f'{{{BOX}, "label": "mug"}}'), [(FIRST[0], ())]),
    ('qwen2_5_vl', fenced(f'[{{{BOX}}}]') + '\nThat is the mug.', [(FIRST[0], ())]),
    ('qwen3_vl', '[{"bbox_2d": [250, 500, 1000, 750]}]', [((420, 210, 1680, 315), ())]),
    ('qwen3_vl', '[{"point_2d": [500, 500], "label": "mug"}]', [(None, ((840, 210),))]),
    # ---- behind thoughts
    ('qwen3_vl', '<think>Is it [1, 2]? {No}.</think>\n' + fenced(f'[{{{BOX}}}]'), [THIRD]),
    ('qwen3_vl', f'<think>[] or [{{{BOX}}}]?</think>[]', []),
    ('qwen3_vl', f'<think>\n<think>Hm.</think></think>[{{{BOX}}}]', [THIRD]),
    ('qwen3_vl', f'I look and look.\n</think>\n\n[{{{BOX}}}]', [THIRD]),
    ('qwen3_vl', f'[{{{BOX}, "label": "<think> or </think>"}}]', [THIRD]),
    ('qwen3_vl', f'<think></think>[{{{BOX}}}] So I <think>', [THIRD]),
    ('vision_reasoner', f'<think> <answer>[]</answer>? No. {tags(f"[{ONE}]")}', [FIRST]),
    # ---- nothing there
    ('visurf', tags('[]'), []),
    ('visurf', tags(' [ \n ] '), []),
    ('visurf', '<answer>[]</answer>', []),
    ('vision_reasoner', tags('[]'), []),
    ('qwen2_5_vl', fenced('[]'), []),
    ('qwen3_vl', '[]', []),
    # ---- corrected: what is meant is certain
    ('vision_reasoner', tags('[{"bbox_2d": [300, 400, 100, 200]}]'), [(FIRST[0], ())]),
    ('vision_reasoner', tags('[{"bbox_2d": [300, 200, 100, 400]}]'), [(FIRST[0], ())]),
    ('vision_reasoner', tags('[{"bbox_2d": [-9, -1, 842, 880]}]'), [(SECOND[0], ())]),
    ('vision_reasoner', tags('[{"point_2d": [841, 0]}]'), [(None, ((1680, 0),))]),
    # ---- broken
    ('vision_reasoner', '', 'no <answer> tag'),
    ('vision_reasoner', 'There is no mug.', 'no <answer> tag'),
    ('vision_reasoner', f'[{ONE}]', 'no <answer> tag'),
    ('vision_reasoner', '<think> I look and look', 'no <answer> tag'),
    ('vision_reasoner', tags(''), "begins with '<'"),
    ('vision_reasoner', tags('none'), "begins with 'n'"),
    ('vision_reasoner', tags('There is no mug.'), "begins with 'T'"),
    ('vision_reasoner', tags(fenced(f'[{ONE}]')), "begins with '`'"),
    ('vision_reasoner', tags(f'[{TWO}]')[:-9], 'not </answer>'),
    ('vision_reasoner', tags(f'[{TWO}]')[:-10], 'breaks off'),
    ('vision_reasoner', tags(f'[{TWO}]')[:-20], 'breaks off'),
    ('vision_reasoner', '<answer>', 'breaks off'),
    ('vision_reasoner', '<answer>[', 'breaks off'),
    ('vision_reasoner', f'<answer>[{ONE}', 'breaks off'),
    ('vision_reasoner', f'<answer>[{ONE},', 'breaks off'),
    ('vision_reasoner', tags(f'[{ONE},]'), "has ']'; expected {"),
    ('vision_reasoner', tags(f'[{ONE} {ONE}]'), "has '{'; expected , or ]"),
    ('vision_reasoner', tags(f'[{ONE} // the mug\n]'), "has '/'"),
    ('vision_reasoner', tags(f'[{{{BOX} /* mug */}}]'), 'malformed'),
    ('vision_reasoner', tags(f'[{{{BOX} // mug\n}}]'), 'malformed'),
    ('vision_reasoner', tags("[{'bbox_2d': [1, 2, 3, 4]}]"), 'malformed'),
    ('vision_reasoner', tags('[{"bbox_2d": [1, 2, 3, 4}]'), 'malformed'),
    ('vision_reasoner', tags('[[100, 200, 300, 400]]'), "has '\\['; expected {"),
    ('vision_reasoner', tags('[100, 200, 300, 400]'), "has '1'"),
    ('vision_reasoner', tags('[null]'), "has 'n'"),
    ('vision_reasoner', tags(f'[{ONE}]') + tags(f'[{ONE}]'), 'two answers'),
    ('vision_reasoner', '<answer>a<answer>[]</answer>', "begins with 'a'"),
    ('vision_reasoner', tags('[{}]'), 'neither bbox_2d nor point_2d'),
    ('vision_reasoner', tags('[{"label": "mug"}]'), 'neither bbox_2d nor point_2d'),
    ('vision_reasoner', tags('[{"bbox_2d": [1, 2, 3]}]'), 'expected 4 numbers'),
    ('vision_reasoner', tags('[{"bbox_2d": [1, 2, 3, 4, 5]}]'), 'expected 4 numbers'),
    ('vision_reasoner', tags('[{"bbox_2d": "1 2 3 4"}]'), 'expected 4 numbers'),
    ('vision_reasoner', tags('[{"bbox_2d": ["1", "2", "3", "4"]}]'), 'expected 4 numbers'),
    ('vision_reasoner', tags('[{"bbox_2d": [1, 2, 3, true]}]'), 'expected 4 numbers'),
    ('vision_reasoner', tags('[{"bbox_2d": [1, 2, 3, 1e999]}]'), 'expected 4 numbers'),
    ('vision_reasoner', tags('[{"bbox_2d": [1, 2, 3, NaN]}]'), 'NaN is not a number'),
    ('vision_reasoner', tags('[{"bbox_2d": null}]'), 'neither|expected 4 numbers'),
    ('vision_reasoner', tags(f'[{{{BOX}, "point_2d": [1]}}]'), 'expected 2 numbers'),
    ('vision_reasoner', tags(f'[{{{BOX}, {BOX}}}]'), "'bbox_2d' occurs twice"),
    ('vision_reasoner', tags('[{"bbox_2d": [100, 200, 100, 400]}]'), 'is empty'),
    ('vision_reasoner', tags('[{"bbox_2d": [900, 900, 1000, 1000]}]'), 'expected 0 to 840'),
    ('vision_reasoner', tags('[{"bbox_2d": [0, 0, 1000, 1000]}]'), r'\(template\) may fit'),
    ('vision_reasoner', tags('[{"bbox_2d": [-100, 0, 10, 10]}]'), 'expected 0 to 840'),
    ('vision_reasoner', tags(f'[{{{BOX}, "point_2d": [150, 2500]}}]'), 'expected 0 to 840'),
    ('vision_reasoner', tags('[' + '[' * 5000), "has '\\['"),
    ('vision_reasoner', tags('[{"a": ' + '[' * 100000 + ']' * 100000 + '}]'), 'is no JSON'),
    ('qwen2_5_vl', 'There is no mug in the image.', 'no JSON list'),
    ('qwen2_5_vl', '```json\n```', 'no JSON list'),
    ('qwen2_5_vl', fenced(f'[{{{BOX}}}]') * 2, 'two answers'),
    ('qwen2_5_vl', fenced(f'[{{{BOX}}}]')[:-6], 'breaks off'),
    ('qwen2_5_vl', f'{{{BOX}}}, {{{BOX}}}', 'two answers'),
    ('qwen3_vl', '[{"bbox_2d": [0, 0, 1280, 720]}]', 'expected 0 to 1000'),
    ('qwen3_vl', f'<think>Maybe [{{{BOX}}}]? No, that', 'do not end: raise max_new_tokens, let'),
    ('qwen3_vl', '<think>If there is none I answer [].', 'no JSON list behind its thoughts'),
    ('qwen3_vl', f'<think>a</think><think>[{{{BOX}}}]', 'no JSON list behind its thoughts'),
    ('qwen3_vl', '<think>It is not there.</think>', 'has no JSON list$'),
    ('qwen3_vl', f'Maybe [{{{BOX}}}]?</think>[]', 'list is in the thoughts .*an Instruct model'),
    ('qwen3_vl', 'Else [].</think>[]', 'list is in the thoughts'),
    ('vision_reasoner', '<think> <answer>[]', 'thoughts, which do not end: raise max_new_tokens$'),
]


def parse(profile, *pieces):
    """Return the parser at the end of an answer, and what each piece completed."""
    parser = AnswerParser(PROFILES[profile], RESIZED, ORIGINAL)
    completed = [parser.push(piece) for piece in pieces]
    parser.finish()
    return parser, completed


def rounded(found):
    """Return box and points in hundredths of a pixel: 840 thousandths make no exact numbers."""
    box = found.box and tuple(round(number, 2) for number in found.box)
    return box, tuple((round(x, 2), round(y, 2)) for x, y in found.points)


def test_the_table_is_large():
    assert len(ANSWERS) >= 60
    assert len({(profile, answer) for profile, answer, _ in ANSWERS}) == len(ANSWERS)


@pytest.mark.parametrize('streamed', [False, True], ids=['whole', 'streamed'])
@pytest.mark.parametrize(('profile', 'answer', 'expected'), ANSWERS)
def test_an_answer_means_what_the_table_says(profile, answer, expected, streamed):
    step = max(3, len(answer) // 100) if streamed else len(answer) + 1
    pieces = [answer[i : i + step] for i in range(0, len(answer), step)]
    if isinstance(expected, str):
        with pytest.raises(AnswerError, match=expected):
            parse(profile, *pieces)
        return
    parser, completed = parse(profile, *pieces)
    assert [rounded(found) for found in parser.objects] == expected
    assert list(chain.from_iterable(completed)) == parser.objects


def test_an_object_is_ready_with_its_last_character():
    answer = tags(f'[{TWO}]')
    _, completed = parse('vision_reasoner', *answer)
    ends = [i for i, found in enumerate(completed) if found]
    assert [answer[: i + 1].count('}') for i in ends] == [1, 2]
    assert all(answer[i] == '}' for i in ends)


@pytest.mark.parametrize(
    ('profile', 'answer', 'explanation'),
    [
        ('vision_reasoner', tags('[]', 'The mug\n is  red.'), 'The mug is red.'),
        ('vision_reasoner', '<answer>[]</answer>', ''),
        ('vision_reasoner', 'Just words. <answer>[]</answer>', 'Just words.'),
        ('dr_seg', tags('[]', 'I see <look> a mug </look> here.'), 'I see a mug here.'),
        ('qwen2_5_vl', fenced('[]'), ''),
        ('qwen2_5_vl', f'Here you are: {fenced("[]")}', 'Here you are:'),
        ('qwen3_vl', '<think>It is red.</think>\nHere: []', 'Here:'),
        ('qwen3_vl', 'It is red.</think>[]', ''),
    ],
)
def test_the_text_before_the_list_is_the_explanation(profile, answer, explanation):
    assert parse(profile, answer)[0].explanation == explanation


def test_a_forgotten_end_of_the_thoughts_is_the_end_of_the_answer():
    parser = AnswerParser(PROFILES['vision_reasoner'], RESIZED, ORIGINAL)
    assert parser.push(f'<think> It is red. <answer>[{ONE}]</answer>') == []  # a draft, perhaps
    assert [rounded(found) for found in parser.push('', is_end=True)] == [FIRST]
    parser.finish()
    parser = AnswerParser(PROFILES['qwen3_vl'], RESIZED, ORIGINAL)
    assert parser.push(f'<think>Its box is [{ONE}]', is_end=True) == []
    with pytest.raises(AnswerError, match='no JSON list behind its thoughts'):
        parser.finish()


def test_an_answer_that_ends_in_its_thoughts_explains_nothing():
    parser = AnswerParser(PROFILES['qwen3_vl'], RESIZED, ORIGINAL)
    parser.push('<think>I look')
    assert parser.explanation == ''


def test_labels_are_kept():
    answer = f'[{{{BOX}, "label": "red mug"}}, {{{BOX}, "label": 3}}, {{{BOX}}}]'
    parser, _ = parse('qwen2_5_vl', answer)
    assert [found.label for found in parser.objects] == ['red mug', '', '']


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(ANSWERS[:40]),
    st.integers(0, 200),
    st.integers(0, 20),
    st.text('[]{}:,"\'/\\<>019-.eEanswrNaN \n', max_size=20),
)
def test_any_text_is_read_or_refused_however_it_arrives(row, at, deleted, inserted):
    profile, answer, _ = row
    text = answer[:at] + inserted + answer[at + deleted :]
    whole, streamed = outcome(profile, [text]), outcome(profile, text)
    assert whole == streamed
    for box, points in whole if isinstance(whole, list) else ():
        numbers = [*(box or ()), *(n for point in points for n in point)]
        assert all(0 <= number <= max(ORIGINAL) for number in numbers)


def outcome(profile, pieces):
    """Return the objects of an answer, or its error."""
    try:
        return [rounded(found) for found in parse(profile, *pieces)[0].objects]
    except AnswerError as error:
        return str(error)


@pytest.mark.parametrize(
    ('value', 'label'),
    [
        ('"mug"', 'mug'),
        (r'" red\n mug\u0000 "', 'red mug'),
        (r'"mug \ud83d"', 'mug'),  # half a character cannot be published
        ('"红色的杯子"', '红色的杯子'),
        ('3', ''),
        ('null', ''),
        ('["mug"]', ''),
        (f'"{"mug " * 999}"', ('mug ' * 999)[:197] + '...'),
    ],
)
def test_a_label_is_one_line_of_limited_length(value, label):
    parser = AnswerParser(PROFILES['qwen2_5_vl'], RESIZED, ORIGINAL)
    (located,) = parser.push(f'[{{{BOX}, "label": {value}}}]')
    parser.finish()
    assert located.label == label
