# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros segment` gives the original's golden answers; errors are one line with the cure."""

import json

import golden
import numpy as np
import pytest
from PIL import Image

from lisa_ros import cli
from lisa_ros.perception import masks


def arguments(size, case, tmp_path):
    picture = tmp_path / 'picture.png'
    Image.fromarray(golden.picture(case['image'])).save(picture)
    typed = case['kind'] in ('SEG_typed_by_the_user', 'odd_text')
    return [
        'segment', str(picture), case['prompt'],
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
    told = json.loads(capsys.readouterr().out)
    assert told['token_ids'] == golden.new_ids(size, case)
    assert told['answer_raw'].count('[SEG]') == told['token_ids'].count(
        golden.segmenter(size).tokenizer.seg_token_id
    )
    assert told['status'] == ('FOUND' if told['masks'] else 'NOT_FOUND')
    assert len(told['masks']) == case['n_seg']
    height, width = case['original_size']
    for i, found in enumerate(told['masks']):
        mask = masks.decode_rle(found['rle'])
        truth = golden.unpack_runs(golden.of_case(size, case, f'mask_rle_{i}'), height, width)
        assert masks.iou(mask, truth) >= 0.999
        assert found['area'] == mask.sum()
        box = found['box']
        inside = mask[box['y'] : box['y'] + box['height'], box['x'] : box['x'] + box['width']]
        assert inside.sum() == found['area']
        assert 0 <= found['score'] <= 1
    assert {'clip', 'prompt', 'tokens'} <= told['seconds'].keys()
    assert not (tmp_path / 'lisa-out').exists()


def test_without_json_it_prints_the_answer_and_saves_pictures(tmp_path, capsys):
    size, case = next(pair for pair in golden.cases(256) if pair[1]['n_seg'] == 2)
    out = tmp_path / 'out'
    assert cli.main([*arguments(size, case, tmp_path), '--out', str(out)]) == 0
    words = capsys.readouterr().out
    assert 'mask 2: score' in words
    assert 'FOUND' in words
    mask = np.asarray(Image.open(out / 'mask_1.png'))
    assert mask.shape == tuple(case['original_size'])
    assert set(np.unique(mask)) <= {0, 255}
    assert Image.open(out / 'overlay.png').size[0] >= 600


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({1: 'no_such.png'}, 'cannot be read as a picture'),
        ({2: '  '}, 'the command is empty'),
        ({4: '/no/such/model'}, '/no/such/model'),
        ({12: 'cuda:7'}, 'CUDA GPUs here'),
    ],
)
def test_what_the_user_can_mend_is_one_line(change, says, tmp_path, capsys):
    size, case = golden.cases(256)[0]
    given = arguments(size, case, tmp_path)
    for place, value in change.items():
        given[place] = value
    assert cli.main(given) == 1
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.startswith('lisa-ros: ')
    assert captured.err.count('\n') == 1
    assert captured.out == ''
