# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros segment`: golden answers, any backend, one-line errors with a remedy."""

import json
import re

import golden
import numpy as np
import pytest
import scripted_backend  # noqa: F401  # registers "scripted:"
from PIL import Image

from lisa_ros import cli
from lisa_ros.perception import masks


def arguments(size, case, tmp_path):
    image = tmp_path / 'image.png'
    Image.fromarray(golden.load_image(case['image'])).save(image)
    typed = case['kind'] in ('SEG_typed_by_the_user', 'odd_text')
    return [
        'segment', str(image), case['prompt'],
        '--model', str(golden.DATA / f'ckpt_{size}'),
        '--vision-tower', str(golden.DATA / f'clip_{size}'),
        '--template', case['template'], '--precision', 'fp32', '--device', 'cpu',
        '--max-new-tokens', str(case['max_new_tokens']),
        *(['--typed-specials'] if typed else []),
    ]  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize(
    ('size', 'case'),
    [pair for pair in golden.cases(256) if pair[1]['case'] in (2, 9, 13, 24, 26)],
    ids=golden.case_id,
)
def test_json_holds_the_golden_ids_and_masks(size, case, tmp_path, capsys):
    assert cli.main([*arguments(size, case, tmp_path), '--json']) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer['token_ids'] == golden.generated_ids(size, case)
    assert answer['answer_raw'].count('[SEG]') == answer['token_ids'].count(
        golden.backend(size).tokenizer.seg_token_id
    )
    assert answer['status'] == ('FOUND' if answer['masks'] else 'NOT_FOUND')
    assert len(answer['masks']) == case['n_seg']
    height, width = case['original_size']
    for i, mask_json in enumerate(answer['masks']):
        mask = masks.decode_rle(mask_json['rle'])
        expected = golden.unpack_runs(
            golden.case_array(size, case, f'mask_rle_{i}'), height, width
        )
        assert masks.iou(mask, expected) >= 0.999
        assert mask_json['area'] == mask.sum()
        box = mask_json['box']
        inside = mask[box['y'] : box['y'] + box['height'], box['x'] : box['x'] + box['width']]
        assert inside.sum() == mask_json['area']
        assert 0 <= mask_json['score'] <= 1
    assert {'clip', 'prompt', 'tokens'} <= answer['seconds'].keys()
    assert not (tmp_path / 'lisa-out').exists()


def test_without_json_it_prints_the_answer_and_saves_images(tmp_path, capsys):
    size, case = next(pair for pair in golden.cases(256) if pair[1]['n_seg'] == 2)
    out = tmp_path / 'out'
    out.mkdir()
    for name in ('mask_17.png', 'mask_of_my_table.png', 'mask_.png'):
        (out / name).touch()
    assert cli.main([*arguments(size, case, tmp_path), '--out', str(out)]) == 0
    names = {path.name for path in out.glob('mask_*')}  # the first one was of an earlier answer
    assert names == {'mask_1.png', 'mask_2.png', 'mask_of_my_table.png', 'mask_.png'}
    text = capsys.readouterr().out
    assert re.search(r'mask 2: \w[^,]*, score 0\.\d\d, \d+ pixels', text)
    assert 'FOUND' in text
    mask = np.asarray(Image.open(out / 'mask_1.png'))
    assert mask.shape == tuple(case['original_size'])
    assert set(np.unique(mask)) <= {0, 255}
    assert Image.open(out / 'overlay.png').size[0] >= 600


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({1: 'no_such.png'}, 'cannot be read as a'),
        ({2: '  '}, 'the query is empty'),
        ({4: '/no/such/model'}, '/no/such/model'),
        ({4: 'vlm:x'}, '"scripted:"'),
        ({12: 'cuda:7'}, 'CUDA GPUs here'),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_line(change, message, tmp_path, capsys):
    size, case = golden.cases(256)[0]
    words = arguments(size, case, tmp_path)
    for place, value in change.items():
        words[place] = value
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith('lisa-ros: ')
    assert captured.err.count('\n') == 1
    assert captured.out == ''


# ---- another backend


@pytest.fixture
def scripted(tmp_path):
    """Return a function that runs `lisa-ros segment` with a scripted backend."""
    image = tmp_path / 'image.png'
    Image.fromarray(np.pad(np.full((2, 3, 3), 255, np.uint8), ((1, 2), (2, 1), (0, 0)))).save(
        image
    )
    script = tmp_path / 'script.json'

    def run(replies, query, *more):
        script.write_text(json.dumps(replies))
        return cli.main(['segment', str(image), query, '--model', f'scripted:{script}', *more])

    return run


def test_a_scripted_backend_answers_in_json(scripted, capsys):
    replies = {'the': {'answer': 'There.', 'masks': 'bright all'}}
    assert scripted(replies, 'the mug', '--json') == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer['status'], answer['answer'], answer['token_ids']) == ('FOUND', 'There.', [])
    bright, whole = answer['masks']
    assert bright['box'] == {'x': 2, 'y': 1, 'width': 3, 'height': 2}
    assert (bright['area'], whole['area']) == (6, 30)


def test_a_scripted_backend_answers_with_images(scripted, tmp_path, capsys):
    out = ('--out', str(tmp_path / 'out'))
    assert scripted({'': {'masks': 'bright all'}}, 'the mug', *out) == 0
    assert 'mask 1: mug, score 1.00, 6 pixels in 3 x 2 at (2, 1)' in capsys.readouterr().out
    assert scripted({'': {'answer': 'No mug.'}}, 'the mug', *out) == 0
    assert capsys.readouterr().out.startswith('No mug.\nNOT_FOUND')
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['overlay.png']


def test_a_bug_of_a_backend_keeps_its_traceback(scripted):
    with pytest.raises(RuntimeError, match='out of memory'):
        scripted({'': {'failure': 'out of memory'}}, 'the mug')
