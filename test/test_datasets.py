# SPDX-License-Identifier: Apache-2.0
"""Published data sets are read in their own layouts; what is broken in them is named."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from lisa_ros import cli
from lisa_ros.datasets import registry
from lisa_ros.datasets.coco import Instance, read_coco
from lisa_ros.datasets.label_maps import read_ade20k, read_cocostuff, read_mapillary
from lisa_ros.datasets.llava import read_llava
from lisa_ros.datasets.refer import read_refer
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.results import Turn
from lisa_ros.training.finetune.samplers import make_sampler

H, W = 30, 40


def picture(path):
    """A picture on disk, folders and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (W, H), (200, 120, 40)).save(path)


def rectangle(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def filled(x, y, width, height):
    mask = np.zeros((H, W), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def instances(*regions, **changed):
    """COCO's JSON of one picture, 7.jpg, with a region for each (category, segmentation)."""
    return {
        'images': [{'id': 7, 'file_name': '7.jpg', 'height': H, 'width': W}],
        'categories': [{'id': 1, 'name': 'cup'}, {'id': 2, 'name': 'mouse_(animal):left_ear'}],
        'annotations': [
            {'id': 100 + i, 'image_id': 7, 'category_id': category, 'segmentation': region}
            for i, (category, region) in enumerate(regions)
        ],
        **changed,
    }


def write(path, plain):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain))
    return path


# ---- COCO


def test_all_instances_of_a_category_answer_its_name(tmp_path):
    runs = {'size': [H, W], 'counts': [20 * H, 2 * H, (W - 22) * H]}  # columns 20 and 21
    plain = instances(
        (1, [rectangle(2, 3, 5, 4)]),
        (1, runs),
        (2, [rectangle(9, 9, 3, 3), rectangle(30, 9, 3, 3)]),
    )
    (one,) = read_coco(write(tmp_path / 'instances.json', plain), tmp_path)
    cup, ear = one.queries
    assert (cup.text, ear.text, cup.is_sentence) == ('cup', 'mouse left ear', False)
    np.testing.assert_array_equal(cup.truth(H, W), filled(2, 3, 5, 4) | filled(20, 0, 2, H))
    np.testing.assert_array_equal(ear.truth(H, W), filled(9, 9, 3, 3) | filled(30, 9, 3, 3))


def test_compressed_runs_are_read_as_pycocotools_writes_them():
    from pycocotools import mask as coco

    wanted = filled(4, 5, 6, 7)
    runs = coco.encode(np.asfortranarray(wanted))
    for given in (runs, {**runs, 'counts': runs['counts'].decode()}, [runs]):
        onto = np.zeros((H, W), np.uint8)
        Instance(given, 'here').paint(onto, 1)
        np.testing.assert_array_equal(onto, wanted)


@pytest.mark.parametrize(
    'region',
    [[[1, 2]], {'size': [5, 5], 'counts': [25]}, 'none', [['a', 'b', 'c', 'd', 'e', 'f']]],
)
def test_a_region_that_is_none_is_named(region):
    with pytest.raises(DataError, match='annotation 3: no region for 40 x 30'):
        Instance(region, 'annotation 3').paint(np.zeros((H, W), np.uint8), 1)


@pytest.mark.parametrize(
    ('plain', 'says'),
    [
        ([], 'has not a list "images"'),
        (instances(images=[{'id': 7}]), 'picture 7 has no file_name'),
        (instances(images=[{'id': [7]}]), r'entry 0 of a list "images" has id \[7\], which it'),
        (instances(categories=[{'id': 1, 'name': None}]), 'has name None, which it cannot be'),
        (instances((1, []), images=[]), 'annotation 100 is about picture 7, which is not among'),
        (instances((5, [])), 'annotation 100 has category 5, not named'),
        (instances(), 'no annotations'),
    ],
)
def test_what_is_wrong_with_a_file_of_instances_is_said(plain, says, tmp_path):
    with pytest.raises(DataError, match=says):
        read_coco(write(tmp_path / 'instances.json', plain), tmp_path)


def test_a_region_is_for_a_picture_of_its_size(tmp_path):
    plain = instances((1, [rectangle(2, 3, 5, 4)]))
    plain['images'][0].update(width=80, height=60)
    (one,) = read_coco(write(tmp_path / 'instances.json', plain), tmp_path)
    with pytest.raises(DataError, match='is for 80 x 60 pixels, its picture has 40 x 30'):
        one.queries[0].truth(H, W)


def test_lvis_tells_where_a_picture_lies_by_its_address(tmp_path):
    plain = instances((1, [rectangle(2, 3, 5, 4)]))
    del plain['images'][0]['file_name']
    plain['images'][0]['coco_url'] = 'http://images.cocodataset.org/train2017/000000000007.jpg'
    (one,) = read_coco(write(tmp_path / 'lvis.json', plain), tmp_path)
    assert one.path == tmp_path / 'train2017' / '000000000007.jpg'


# ---- refCOCO and its kin

REFS = [
    {
        'ref_id': 1, 'ann_id': 100, 'image_id': 7, 'category_id': 1, 'split': 'val',
        'sentences': [{'sent': 'the left cup '}, {'sent': 'cup by the wall'}],
    },
    {
        'ref_id': 2, 'ann_id': 101, 'image_id': 7, 'category_id': 1, 'split': 'testA',
        'sentences': [{'sent': 'right cup'}],
    },
]  # fmt: skip
TWO_CUPS = instances((1, [rectangle(2, 3, 5, 4)]), (1, [rectangle(20, 3, 5, 4)]))


def refer(folder, refs=REFS, name='refcoco', file='refs(unc).p'):
    """A data set as its authors publish it, written by Python 2 as theirs was."""
    root = folder / 'refer_seg' / name
    write(root / 'instances.json', TWO_CUPS)
    if file.endswith('.p'):
        (root / file).write_bytes(pickle.dumps(refs, protocol=2))
    else:
        write(root / file, refs)
    picture(folder / 'refer_seg/images/mscoco/images/train2014/7.jpg')
    return root


def test_each_sentence_of_a_split_is_a_query(tmp_path):
    root = refer(tmp_path)
    (one,) = read_refer(root, 'val')
    assert [query.text for query in one.queries] == ['the left cup', 'cup by the wall']
    assert one.path.is_file()
    for query in one.queries:
        np.testing.assert_array_equal(query.truth(H, W), filled(2, 3, 5, 4))
    (other,) = read_refer(root, 'testA')
    np.testing.assert_array_equal(other.queries[0].truth(H, W), filled(20, 3, 5, 4))
    with pytest.raises(DataError, match="no split 'train'; it has testA, val"):
        read_refer(root)


def test_a_sentence_may_mean_several_or_none(tmp_path):
    refs = [{**REFS[0], 'ann_id': [100, 101]}, {**REFS[1], 'ann_id': [-1], 'split': 'val'}]
    root = refer(tmp_path, refs, 'grefcoco', 'grefs(unc).json')
    (one,) = read_refer(root, 'val')
    both = filled(2, 3, 5, 4) | filled(20, 3, 5, 4)
    np.testing.assert_array_equal(one.queries[0].truth(H, W), both)
    assert not one.queries[2].truth(H, W).any()


class Bomb:
    def __reduce__(self):
        return print, ('boom',)


def test_a_pickle_that_would_run_something_is_refused(tmp_path, capsys):
    root = refer(tmp_path, [Bomb()])
    with pytest.raises(DataError, match=r'refs\(unc\)\.p: no refs .* wants .*print'):
        read_refer(root, 'val')
    assert 'boom' not in capsys.readouterr().out


def test_files_that_do_not_belong_together_are_named(tmp_path):
    root = refer(tmp_path, [{**REFS[0], 'ann_id': 5}])
    with pytest.raises(DataError, match=r'annotations \[5\] that instances.json does not have'):
        read_refer(root, 'val')
    silent = refer(tmp_path / 'b', [{**REFS[0], 'sentences': [{'sent': ' '}]}])
    with pytest.raises(DataError, match="nothing is said in the split 'val'"):
        read_refer(silent, 'val')
    (root / 'refs(unc).p').unlink()
    with pytest.raises(DataError, match=r'no file of refs split by unc; expected refs\(unc\)\.p'):
        read_refer(root, 'val')


# ---- label maps


def mapped(path, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(numbers)).save(path)


def test_classes_that_a_map_shows_are_asked_for(tmp_path):
    numbers = filled(2, 3, 5, 4) + 2 * filled(20, 3, 5, 4)
    mapped(tmp_path / 'ade/annotations/training/a.png', numbers)
    picture(tmp_path / 'ade/images/training/a.jpg')
    lines = ['Idx\tRatio\tTrain\tVal\tName', '1\t0.1\t1\t1\twall', '2\t0.1\t1\t1\tcup, mug', '']
    (tmp_path / 'ade/objectInfo150.txt').write_text('\n'.join(lines))
    (one,) = read_ade20k(tmp_path / 'ade')
    assert [query.text for query in one.queries] == ['wall', 'cup']
    np.testing.assert_array_equal(one.queries[1].truth(H, W), filled(20, 3, 5, 4))

    mapped(tmp_path / 'stuff/a.png', numbers)
    names = tmp_path / 'labels.txt'
    names.write_text('0: unlabeled\n1: person\n2: wall-brick\n3: rug\n')
    (one,) = read_cocostuff(tmp_path / 'stuff', tmp_path / 'ade/images/training', names)
    assert [query.text for query in one.queries] == ['person', 'rug']

    picture(tmp_path / 'vistas/training/images/a.jpg')
    mapped(tmp_path / 'vistas/training/v2.0/labels/a.png', numbers)
    said = [{'readable': 'Bird'}, {'readable': 'Ground Animal'}]
    write(tmp_path / 'vistas/config_v2.0.json', {'labels': said})
    (one,) = read_mapillary(tmp_path / 'vistas')
    assert [query.text for query in one.queries] == ['bird', 'ground animal']


def test_the_original_numbers_the_classes_of_cocostuff_the_same(tmp_path):
    """init_cocostuff: `for line in f.readlines()[1:]: classes.append(line.split(": ")[-1])`."""
    lines = ['0: unlabeled', '1: person', '2: bicycle', '93: banner', '94: blanket']
    (tmp_path / 'labels.txt').write_text('\n'.join(lines) + '\n')
    classes = [line.strip().split(': ')[-1] for line in lines[1:]]
    mapped(tmp_path / 'maps/a.png', np.full((H, W), 3))
    picture(tmp_path / 'a.jpg')
    (one,) = read_cocostuff(tmp_path / 'maps', tmp_path, tmp_path / 'labels.txt')
    assert [query.text for query in one.queries] == [classes[3]] == ['blanket']


def test_a_map_without_its_picture_and_a_broken_one_are_named(tmp_path):
    (tmp_path / 'labels.txt').write_text('0: unlabeled\n1: person\n')
    mapped(tmp_path / 'maps/a.png', np.zeros((H, W)))
    given = tmp_path / 'maps', tmp_path, tmp_path / 'labels.txt'
    with pytest.raises(DataError, match=r'its picture .*a\.jpg is not there'):
        read_cocostuff(*given)
    picture(tmp_path / 'a.jpg')
    (tmp_path / 'maps/a.png').write_bytes(b'no map')
    (one,) = read_cocostuff(*given)
    with pytest.raises(DataError, match=r'a\.png: no map that can be read'):
        one.queries  # noqa: B018


def test_a_map_of_colours_or_of_another_size_is_named(tmp_path):
    (tmp_path / 'labels.txt').write_text('0: unlabeled\n1: person\n')
    for name, numbers in (('a', np.zeros((H, W, 3))), ('b', np.zeros((9, 9)))):
        mapped(tmp_path / f'maps/{name}.png', numbers)
        picture(tmp_path / f'{name}.jpg')
    colours, small = read_cocostuff(tmp_path / 'maps', tmp_path, tmp_path / 'labels.txt')
    with pytest.raises(DataError, match='has 3 channels; expected one of class numbers'):
        colours.queries  # noqa: B018
    with pytest.raises(DataError, match='a map of 9 x 9 pixels for a picture of 40 x 30'):
        small.queries[0].truth(H, W)


def test_maps_that_name_nothing_are_passed_over(tmp_path):
    (tmp_path / 'labels.txt').write_text('0: unlabeled\n1: person\n')
    for name, value in (('a', 255), ('b', 0)):
        mapped(tmp_path / f'maps/{name}.png', np.full((H, W), value))
        picture(tmp_path / f'{name}.jpg')
    maps = read_cocostuff(tmp_path / 'maps', tmp_path, tmp_path / 'labels.txt')
    for seed in range(8):
        sample = make_sampler(maps).draw(np.random.default_rng(seed))
        assert sample.name.endswith('b.jpg')
        assert sample.truth.all()
    with pytest.raises(DataError, match='nothing in them is labelled'):
        make_sampler(maps[:1]).draw(np.random.default_rng(0))


# ---- talks


def talk(*speakers, image='7.jpg'):
    lines = [{'from': who, 'value': f'<image>\nline {i}'} for i, who in enumerate(speakers)]
    return {'id': '7', 'image': image, 'conversations': lines}


def test_talks_are_dialogues_without_masks(tmp_path):
    picture(tmp_path / '7.jpg')
    said = [talk('human', 'gpt', 'human', 'gpt'), talk('gpt', 'human', 'gpt')]
    talks = read_llava(write(tmp_path / 'talks.json', said), tmp_path)
    assert talks[0].turns == (Turn('line 0', 'line 1'), Turn('line 2', 'line 3'))
    assert talks[1].turns == (Turn('line 1', 'line 2'),)
    sample = make_sampler(talks[:1]).draw(np.random.default_rng(0))
    assert sample.truth.shape == (0, H, W)
    assert sample.dialogues == (talks[0].turns,)


@pytest.mark.parametrize(
    'speakers', [(), ('human',), ('human', 'human'), ('human', 'gpt', 'human')]
)
def test_a_talk_in_which_one_speaks_alone_is_named(speakers, tmp_path):
    file = write(tmp_path / 'talks.json', [talk('human', 'gpt'), talk(*speakers)])
    with pytest.raises(DataError, match=r'in entry 1 speak .*; expected human and gpt in turns'):
        read_llava(file, tmp_path)


# ---- by one text


def test_a_data_set_is_named_by_kind_and_parts(tmp_path):
    root = refer(tmp_path)
    assert len(registry.read(f'refer:{root}:val')[0].queries) == 2
    assert registry.usage('refer') == 'refer:ROOT[:SPLIT[:BY]]'
    assert registry.usage('llava') == 'llava:FILE:PICTURES'
    with pytest.raises(SettingsError, match=r'expected refer:ROOT\[:SPLIT\[:BY\]\]'):
        registry.read(f'refer:{root}:val:unc:more')
    with pytest.raises(SettingsError, match="missing a required argument: 'pictures'"):
        registry.read('coco:instances.json')
    with pytest.raises(DataError, match='nowhere: there is no such folder'):
        registry.read('nowhere')


def test_a_lisa_learns_from_several_sets_at_their_rates(tmp_path, capsys):
    """As LISA mixes them: semantic, referring, question-answer, reasoning."""
    root = refer(tmp_path)
    reasoning = tmp_path / 'reasoning'
    picture(reasoning / 'a.png')
    shape = {'label': 'target', 'points': [[2, 3], [9, 3], [9, 9]]}
    write(reasoning / 'a.json', {'text': ['What is hot?'], 'shapes': [shape]})
    pictures = tmp_path / 'refer_seg/images/mscoco/images/train2014'
    talks = write(tmp_path / 'talks.json', [talk('human', 'gpt')])
    data = [
        f'coco:{root / "instances.json"}:{pictures}', f'refer:{root}:val',
        f'llava:{talks}:{pictures}', str(reasoning),
    ]  # fmt: skip
    given = [
        'finetune',
        '--model',
        'lisa-tabletop',
        '--data',
        *data,
        '--rates',
        '9',
        '3',
        '3',
        '1',
    ]
    given += ['--out', str(tmp_path / 'run'), '--steps', '2', '--accumulate', '4']
    assert cli.main([*given, '--device', 'cpu', '--val', data[1]]) == 0
    assert (tmp_path / 'run' / 'model' / 'model.safetensors').is_file()
    assert 'val_giou' in (tmp_path / 'run' / 'curves.csv').read_text()
    capsys.readouterr()
    assert cli.main([*given, '--val', data[2]]) == 1
    assert 'talks have no masks to validate on' in capsys.readouterr().err
