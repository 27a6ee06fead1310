# SPDX-License-Identifier: Apache-2.0
"""Published data sets are read in their own layouts; broken files are named."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lisa_ros import cli
from lisa_ros.datasets import registry
from lisa_ros.datasets.coco import CocoRegion, read_coco
from lisa_ros.datasets.label_maps import read_ade20k, read_cocostuff, read_mapillary
from lisa_ros.datasets.llava import read_llava
from lisa_ros.datasets.refer import read_refer
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.results import Turn
from lisa_ros.training.finetune.samplers import make_sampler

H, W = 30, 40


def write_image(path):
    """Write an image and the folders of its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (W, H), (200, 120, 40)).save(path)


def rectangle(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def box_mask(x, y, width, height):
    mask = np.zeros((H, W), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def instances(*regions, **changes):
    """Return COCO's JSON of one image, 7.jpg, with a region for each (category, segmentation)."""
    return {
        'images': [{'id': 7, 'file_name': '7.jpg', 'height': H, 'width': W}],
        'categories': [{'id': 1, 'name': 'cup'}, {'id': 2, 'name': 'mouse_(animal):left_ear'}],
        'annotations': [
            {'id': 100 + i, 'image_id': 7, 'category_id': category, 'segmentation': region}
            for i, (category, region) in enumerate(regions)
        ],
        **changes,
    }


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


# ---- COCO


def test_all_instances_of_a_category_are_one_mask(tmp_path):
    rle = {'size': [H, W], 'counts': [20 * H, 2 * H, (W - 22) * H]}  # columns 20 and 21
    content = instances(
        (1, [rectangle(2, 3, 5, 4)]),
        (1, rle),
        (2, [rectangle(9, 9, 3, 3), rectangle(30, 9, 3, 3)]),
    )
    (image,) = read_coco(write_json(tmp_path / 'instances.json', content), tmp_path)
    cup, ear = image.queries
    assert (cup.text, ear.text, cup.is_sentence) == ('cup', 'mouse left ear', False)
    np.testing.assert_array_equal(
        cup.ground_truth(H, W), box_mask(2, 3, 5, 4) | box_mask(20, 0, 2, H)
    )
    np.testing.assert_array_equal(
        ear.ground_truth(H, W), box_mask(9, 9, 3, 3) | box_mask(30, 9, 3, 3)
    )


def test_compressed_rle_is_read_as_pycocotools_writes_it():
    from pycocotools import mask as coco

    expected = box_mask(4, 5, 6, 7)
    rle = coco.encode(np.asfortranarray(expected))
    for segmentation in (rle, {**rle, 'counts': rle['counts'].decode()}, [rle]):
        canvas = np.zeros((H, W), np.uint8)
        CocoRegion(segmentation, 'here').paint(canvas, 1)
        np.testing.assert_array_equal(canvas, expected)


@pytest.mark.parametrize(
    'region',
    [[[1, 2]], {'size': [5, 5], 'counts': [25]}, 'none', [['a', 'b', 'c', 'd', 'e', 'f']]],
)
def test_an_invalid_region_is_an_error(region):
    with pytest.raises(DataError, match='annotation 3: not a region of 40 x 30'):
        CocoRegion(region, 'annotation 3').paint(np.zeros((H, W), np.uint8), 1)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([], 'does not have a list "images"'),
        (instances(images=[{'id': 7}]), 'image 7 has no file_name'),
        (
            instances(images=[{'id': [7]}]),
            r'entry 0 of a list "images" has id \[7\]; expected int',
        ),
        (instances(categories=[{'id': 1, 'name': None}]), 'has name None; expected str'),
        (
            instances((1, []), images=[]),
            'annotation 100 is about image 7, which "images" does not',
        ),
        (instances((5, [])), 'annotation 100 has category 5, which'),
        (instances(), 'no annotations'),
    ],
)
def test_a_broken_instances_file_is_an_error(content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_coco(write_json(tmp_path / 'instances.json', content), tmp_path)


def test_a_region_for_an_image_of_another_size_is_an_error(tmp_path):
    content = instances((1, [rectangle(2, 3, 5, 4)]))
    content['images'][0].update(width=80, height=60)
    (image,) = read_coco(write_json(tmp_path / 'instances.json', content), tmp_path)
    with pytest.raises(DataError, match='made for 80 x 60 pixels, the image has 40 x 30'):
        image.queries[0].ground_truth(H, W)


def test_lvis_names_an_image_by_its_url(tmp_path):
    content = instances((1, [rectangle(2, 3, 5, 4)]))
    del content['images'][0]['file_name']
    content['images'][0]['coco_url'] = 'http://images.cocodataset.org/train2017/000000000007.jpg'
    (image,) = read_coco(write_json(tmp_path / 'lvis.json', content), tmp_path)
    assert image.path == tmp_path / 'train2017' / '000000000007.jpg'


# ---- refCOCO and similar data sets

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


def write_refer(folder, refs=REFS, name='refcoco', file='refs(unc).p'):
    """Write a data set as its authors publish it, with a pickle of Python 2."""
    root = folder / 'refer_seg' / name
    write_json(root / 'instances.json', TWO_CUPS)
    if file.endswith('.p'):
        (root / file).write_bytes(pickle.dumps(refs, protocol=2))
    else:
        write_json(root / file, refs)
    write_image(folder / 'refer_seg/images/mscoco/images/train2014/7.jpg')
    return root


def test_each_sentence_of_a_split_is_a_query(tmp_path):
    root = write_refer(tmp_path)
    (image,) = read_refer(root, 'val')
    assert [query.text for query in image.queries] == ['the left cup', 'cup by the wall']
    assert image.path.is_file()
    for query in image.queries:
        np.testing.assert_array_equal(query.ground_truth(H, W), box_mask(2, 3, 5, 4))
    (test_image,) = read_refer(root, 'testA')
    np.testing.assert_array_equal(test_image.queries[0].ground_truth(H, W), box_mask(20, 3, 5, 4))
    with pytest.raises(DataError, match="no split 'train'; it has testA, val"):
        read_refer(root)


def test_a_sentence_can_refer_to_several_objects_or_none(tmp_path):
    refs = [{**REFS[0], 'ann_id': [100, 101]}, {**REFS[1], 'ann_id': [-1], 'split': 'val'}]
    root = write_refer(tmp_path, refs, 'grefcoco', 'grefs(unc).json')
    (image,) = read_refer(root, 'val')
    both = box_mask(2, 3, 5, 4) | box_mask(20, 3, 5, 4)
    np.testing.assert_array_equal(image.queries[0].ground_truth(H, W), both)
    assert not image.queries[2].ground_truth(H, W).any()


def test_a_pickle_of_python_2_with_letters_that_are_not_ascii_is_read(tmp_path):
    root = write_refer(tmp_path)
    text = pickle.dumps(REFS, protocol=0)
    assert b'Vcup by the wall\n' in text
    written = text.replace(b'Vcup by the wall\n', b"S'caf\xe9 cup'\n")  # as Python 2 writes str
    (root / 'refs(unc).p').write_bytes(written)
    (image,) = read_refer(root, 'val')
    assert image.queries[1].text == 'caf\xe9 cup'


class Bomb:
    def __reduce__(self):
        return print, ('boom',)


@pytest.mark.parametrize(
    ('claim', 'reason'),
    [
        (b'r' + (2**29).to_bytes(4, 'little'), 'it claims 536870912 values in 9 bytes'),  # a memo
        (b'0I1\np536870912\n', 'it claims 536870912 values'),
        (b'\x96' + (2**40).to_bytes(8, 'little'), 'expected 1099511627776 bytes'),  # bytearray
        (b'\x8b' + (2**30).to_bytes(4, 'little'), 'not enough data'),  # an integer
    ],
)
def test_a_pickle_that_claims_more_than_its_bytes_takes_no_memory(claim, reason, tmp_path):
    root = write_refer(tmp_path)
    (root / 'refs(unc).p').write_bytes(b'\x80\x05]' + claim + b'.')
    Path('/proc/self/clear_refs').write_text('5')  # resets VmHWM
    before = memory('VmRSS')
    with pytest.raises(DataError, match=reason):
        read_refer(root)
    assert memory('VmHWM') - before < 10**8


def memory(field):
    """Return VmHWM (highest) or VmRSS (present) of this process [bytes]."""
    status = Path('/proc/self/status').read_text()
    return int(re.search(rf'{field}:\s+(\d+)', status)[1]) * 1024


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    root = write_refer(tmp_path, [Bomb()])
    with pytest.raises(
        DataError, match=r'refs\(unc\)\.p: cannot be read as refs .*contains .*print'
    ):
        read_refer(root, 'val')
    assert 'boom' not in capsys.readouterr().out


def test_files_of_different_releases_are_an_error(tmp_path):
    root = write_refer(tmp_path, [{**REFS[0], 'ann_id': 5}])
    with pytest.raises(
        DataError, match=r'annotations \[5\], which instances.json does not contain'
    ):
        read_refer(root, 'val')
    silent = write_refer(tmp_path / 'b', [{**REFS[0], 'sentences': [{'sent': ' '}]}])
    with pytest.raises(DataError, match="the split 'val' has no sentences"):
        read_refer(silent, 'val')
    (root / 'refs(unc).p').unlink()
    with pytest.raises(
        DataError, match=r'no references with the splits of unc; expected refs\(unc\)\.p'
    ):
        read_refer(root, 'val')


# ---- label maps


def write_label_map(path, class_ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(class_ids)).save(path)


def test_each_class_in_a_label_map_is_a_query(tmp_path):
    class_ids = box_mask(2, 3, 5, 4) + 2 * box_mask(20, 3, 5, 4)
    write_label_map(tmp_path / 'ade/annotations/training/a.png', class_ids)
    write_image(tmp_path / 'ade/images/training/a.jpg')
    lines = ['Idx\tRatio\tTrain\tVal\tName', '1\t0.1\t1\t1\twall', '2\t0.1\t1\t1\tcup, mug', '']
    (tmp_path / 'ade/objectInfo150.txt').write_text('\n'.join(lines))
    (image,) = read_ade20k(tmp_path / 'ade')
    assert [query.text for query in image.queries] == ['wall', 'cup']
    np.testing.assert_array_equal(image.queries[1].ground_truth(H, W), box_mask(20, 3, 5, 4))

    write_label_map(tmp_path / 'stuff/a.png', class_ids)
    names = tmp_path / 'labels.txt'
    names.write_text('0: unlabeled\n1: person\n2: wall-brick\n3: rug\n')
    (image,) = read_cocostuff(tmp_path / 'stuff', tmp_path / 'ade/images/training', names)
    assert [query.text for query in image.queries] == ['person', 'rug']

    write_image(tmp_path / 'vistas/training/images/a.jpg')
    write_label_map(tmp_path / 'vistas/training/v2.0/labels/a.png', class_ids)
    labels = [{'readable': 'Bird'}, {'readable': 'Ground Animal'}]
    write_json(tmp_path / 'vistas/config_v2.0.json', {'labels': labels})
    (image,) = read_mapillary(tmp_path / 'vistas')
    assert [query.text for query in image.queries] == ['bird', 'ground animal']


def test_the_class_ids_of_cocostuff_are_the_originals(tmp_path):
    """init_cocostuff: `for line in f.readlines()[1:]: classes.append(line.split(": ")[-1])`."""
    lines = ['0: unlabeled', '1: person', '2: bicycle', '93: banner', '94: blanket']
    (tmp_path / 'labels.txt').write_text('\n'.join(lines) + '\n')
    classes = [line.strip().split(': ')[-1] for line in lines[1:]]
    write_label_map(tmp_path / 'maps/a.png', np.full((H, W), 3))
    write_image(tmp_path / 'a.jpg')
    (image,) = read_cocostuff(tmp_path / 'maps', tmp_path, tmp_path / 'labels.txt')
    assert [query.text for query in image.queries] == [classes[3]] == ['blanket']


def test_a_label_map_without_its_image_and_a_broken_one_are_errors(tmp_path):
    (tmp_path / 'labels.txt').write_text('0: unlabeled\n1: person\n')
    write_label_map(tmp_path / 'maps/a.png', np.zeros((H, W)))
    paths = tmp_path / 'maps', tmp_path, tmp_path / 'labels.txt'
    with pytest.raises(DataError, match=r'its image .*a\.jpg is missing'):
        read_cocostuff(*paths)
    write_image(tmp_path / 'a.jpg')
    (tmp_path / 'maps/a.png').write_bytes(b'not a label map')
    (image,) = read_cocostuff(*paths)
    with pytest.raises(DataError, match=r'a\.png cannot be read as a'):
        image.queries  # noqa: B018


def test_a_label_map_of_colours_or_of_another_size_is_an_error(tmp_path):
    (tmp_path / 'labels.txt').write_text('0: unlabeled\n1: person\n')
    for name, class_ids in (('a', np.zeros((H, W, 3))), ('b', np.zeros((9, 9)))):
        write_label_map(tmp_path / f'maps/{name}.png', class_ids)
        write_image(tmp_path / f'{name}.jpg')
    colours, small = read_cocostuff(tmp_path / 'maps', tmp_path, tmp_path / 'labels.txt')
    with pytest.raises(DataError, match='has 3 channels; expected one of class ids'):
        colours.queries  # noqa: B018
    with pytest.raises(DataError, match='has 9 x 9 pixels, its image 40 x 30'):
        small.queries[0].ground_truth(H, W)


def test_label_maps_without_named_classes_are_skipped(tmp_path):
    (tmp_path / 'labels.txt').write_text('0: unlabeled\n1: person\n')
    for name, value in (('a', 255), ('b', 0)):
        write_label_map(tmp_path / f'maps/{name}.png', np.full((H, W), value))
        write_image(tmp_path / f'{name}.jpg')
    maps = read_cocostuff(tmp_path / 'maps', tmp_path, tmp_path / 'labels.txt')
    for seed in range(8):
        sample = make_sampler(maps).draw(np.random.default_rng(seed))
        assert sample.name.endswith('b.jpg')
        assert sample.ground_truth.all()
    with pytest.raises(DataError, match='have no annotations'):
        make_sampler(maps[:1]).draw(np.random.default_rng(0))


# ---- text dialogues


def dialogue(*speakers, image='7.jpg'):
    lines = [
        {'from': speaker, 'value': f'<image>\nline {i}'} for i, speaker in enumerate(speakers)
    ]
    return {'id': '7', 'image': image, 'conversations': lines}


def test_text_dialogues_are_sampled_without_masks(tmp_path):
    write_image(tmp_path / '7.jpg')
    entries = [dialogue('human', 'gpt', 'human', 'gpt'), dialogue('gpt', 'human', 'gpt')]
    dialogues = read_llava(write_json(tmp_path / 'llava.json', entries), tmp_path)
    assert dialogues[0].turns == (Turn('line 0', 'line 1'), Turn('line 2', 'line 3'))
    assert dialogues[1].turns == (Turn('line 1', 'line 2'),)
    sample = make_sampler(dialogues[:1]).draw(np.random.default_rng(0))
    assert sample.ground_truth.shape == (0, H, W)
    assert sample.dialogues == (dialogues[0].turns,)


@pytest.mark.parametrize(
    'speakers', [(), ('human',), ('human', 'human'), ('human', 'gpt', 'human')]
)
def test_a_dialogue_without_alternating_speakers_is_an_error(speakers, tmp_path):
    file = write_json(tmp_path / 'llava.json', [dialogue('human', 'gpt'), dialogue(*speakers)])
    with pytest.raises(
        DataError, match=r'entry 1 has the speakers .*; expected human and gpt in turns'
    ):
        read_llava(file, tmp_path)


# ---- data sets by text


def test_a_data_set_is_named_by_kind_and_arguments(tmp_path):
    root = write_refer(tmp_path)
    assert len(registry.read_dataset(f'refer:{root}:val')[0].queries) == 2
    assert registry.usage('refer') == 'refer:ROOT[:SPLIT[:SPLIT_AUTHOR]]'
    assert registry.usage('llava') == 'llava:FILE:IMAGE_FOLDER'
    with pytest.raises(SettingsError, match=r'expected refer:ROOT\[:SPLIT\[:SPLIT_AUTHOR\]\]'):
        registry.read_dataset(f'refer:{root}:val:unc:more')
    with pytest.raises(SettingsError, match="missing a required argument: 'image_folder'"):
        registry.read_dataset('coco:instances.json')
    with pytest.raises(DataError, match='nowhere: no such folder'):
        registry.read_dataset('nowhere')


def test_several_data_sets_are_mixed_at_their_rates(tmp_path, capsys):
    """The mix of LISA: semantic, referring, question-answer, reasoning."""
    root = write_refer(tmp_path)
    reasoning = tmp_path / 'reasoning'
    write_image(reasoning / 'a.png')
    shape = {'label': 'target', 'points': [[2, 3], [9, 3], [9, 9]]}
    write_json(reasoning / 'a.json', {'text': ['What is hot?'], 'shapes': [shape]})
    images = tmp_path / 'refer_seg/images/mscoco/images/train2014'
    dialogues = write_json(tmp_path / 'llava.json', [dialogue('human', 'gpt')])
    data = [
        f'coco:{root / "instances.json"}:{images}', f'refer:{root}:val',
        f'llava:{dialogues}:{images}', str(reasoning),
    ]  # fmt: skip
    command = ['finetune', '--model', 'lisa-tabletop', '--data', *data]
    command += ['--rates', '9', '3', '3', '1', '--steps', '2', '--accumulate', '4']
    command += ['--out', str(tmp_path / 'run')]
    assert cli.main([*command, '--device', 'cpu', '--val', data[1]]) == 0
    assert (tmp_path / 'run' / 'model' / 'model.safetensors').is_file()
    assert 'val_giou' in (tmp_path / 'run' / 'curves.csv').read_text()
    capsys.readouterr()
    assert cli.main([*command, '--val', data[2]]) == 1
    assert 'text dialogues have no masks to validate on' in capsys.readouterr().err
