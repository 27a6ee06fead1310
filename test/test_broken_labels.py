# SPDX-License-Identifier: Apache-2.0
"""A label without a usable mask is named before anything is loaded; it never means "not there"."""

import base64
import contextlib
import io
import json
import re
import zipfile

import numpy as np
import pytest
import scripted_backend  # noqa: F401  # registers "scripted:"
from golden import DATA
from PIL import Image
from pycocotools import mask as coco_mask

from lisa_ros import cli
from lisa_ros.datasets import registry
from lisa_ros.datasets.annotations import unique_names
from lisa_ros.datasets.checking import read_checked
from lisa_ros.datasets.coco import read_coco
from lisa_ros.datasets.coco_masks import CocoRegion
from lisa_ros.datasets.llava import read_llava
from lisa_ros.datasets.reasonseg import read_folder
from lisa_ros.datasets.refer import read_refer
from lisa_ros.errors import DataError
from lisa_ros.evaluation import tabletop
from lisa_ros.evaluation.report_files import read_report
from lisa_ros.training.finetune.samplers import make_sampler

H, W = 30, 40
BOX = [5, 5, 25, 5, 25, 20, 5, 20]
NAN = float('nan')


def mask_of_box():
    mask = np.zeros((H, W), np.uint8)
    mask[5:20, 5:25] = 1
    return mask


def runs(mask):
    """Return the run lengths of a mask, column by column, the first of zeros."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, len(flat)]).tolist()
    return counts if flat[0] == 0 else [0, *counts]


def compressed(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {'size': [H, W], 'counts': rle['counts'].decode()}


def write_image(path, size=(W, H)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (200, 120, 40)).save(path)
    return path


def write_coco(folder, annotations, images=None, name='instances.json'):
    """Write a COCO file about images/0.png, ...; return the data set's name."""
    images = images or [{'id': 0, 'file_name': '0.png', 'height': H, 'width': W}]
    (folder / 'images').mkdir(exist_ok=True)
    for image in images:
        if not image['file_name'].startswith(('/', '..')):
            write_image(folder / 'images' / image['file_name'])
    content = {
        'images': images,
        'categories': [{'id': 1, 'name': 'cup'}, {'id': 2, 'name': 'pen'}],
        'annotations': [
            {'id': 100 + i, 'image_id': 0, 'category_id': 1, 'iscrowd': 0, **annotation}
            for i, annotation in enumerate(annotations)
        ],
    }
    (folder / name).write_text(json.dumps(content))
    return f'coco:{folder / name}:{folder / "images"}'


# ---- COCO

UNUSABLE = {
    'empty list': ({'segmentation': []}, r'segmentation is \[\]: a box alone'),
    'null': ({'segmentation': None}, 'segmentation is null: a box alone'),
    'missing': ({'bbox': [5, 5, 20, 15]}, 'a box alone is no mask'),
    'empty polygon': ({'segmentation': [[]]}, 'fewer than 3'),
    'empty text': ({'segmentation': ''}, 'a box alone'),
    'a number': ({'segmentation': 7}, 'is 7'),
    'empty object': ({'segmentation': {}}, 'without size and counts'),
    'NaN': ({'segmentation': [[NAN] * 8]}, 'no(t a)? finite number'),
    'one NaN': ({'segmentation': [[*BOX[:-1], NAN]]}, 'not a finite number'),
    'infinite': ({'segmentation': [[*BOX[:-1], float('inf')]]}, 'not a finite number'),
    'outside': ({'segmentation': [[v + 500 for v in BOX]]}, 'outside of the image'),
    'left of it': ({'segmentation': [[v - 500 for v in BOX]]}, 'outside of the image'),
    'far outside': ({'segmentation': [[*BOX[:-2], 1e12, 5]]}, 'far outside'),
    'fractions': ({'segmentation': [[v / W for v in BOX]]}, 'fractions of the image'),
    'fractions over 1': (
        {'segmentation': [[0.2, 0.2, 1.0001, 0.2, 1.02, 0.9]]}, '0.2 to 1.02, as fractions'
    ),
    'fractions below 0': ({'segmentation': [[-0.01, 0.2, 1, 0.2, 1, 0.9]]}, 'as fractions'),
    'two points': ({'segmentation': [[5, 5, 25, 20]]}, 'has 2 points'),
    'two points first': ({'segmentation': [[5, 5, 6, 5], BOX]}, 'has 2 points'),
    'two points last': ({'segmentation': [BOX, [5, 5, 6, 5]]}, 'has 2 points'),
    'two points, closed': ({'segmentation': [[5, 5, 25, 20, 5, 5]]}, 'fewer than 3'),
    'one point': ({'segmentation': [[5, 5]]}, 'has 1 points'),
    'x without y': ({'segmentation': [[*BOX, 5]]}, 'x without y'),
    'flat': ({'segmentation': BOX}, r'write \[\[x, y'),
    'pairs': ({'segmentation': [[[5, 5], [25, 5], [25, 20]]]}, 'has pairs'),
    'words': ({'segmentation': [['a'] * 8]}, 'not numbers'),
    'drawn twice': ({'segmentation': [[*BOX, *BOX]]}, 'no pixel in the image'),
    'a hair': ({'segmentation': [[5, 5, 25, 5.01, 25, 5.02]]}, 'no pixel in the image'),
    'RLE of zeros': ({'segmentation': {'size': [H, W], 'counts': [H * W]}}, 'no pixel'),
    'RLE swapped': ({'segmentation': {'size': [W, H], 'counts': [H * W]}}, r'\[height, width\]'),
    'RLE too short': ({'segmentation': {'size': [H, W], 'counts': [9, 9]}}, '18 pixels'),
    'RLE too long': ({'segmentation': {'size': [H, W], 'counts': [0, 10**12]}}, 'pixels, the'),
    'RLE negative': ({'segmentation': {'size': [H, W], 'counts': [-5, H * W + 5]}}, 'RLE has'),
    'RLE of words': ({'segmentation': {'size': [H, W], 'counts': ['a']}}, 'counts of its RLE'),
    'RLE cut': ({'segmentation': {'size': [H, W], 'counts': 'X'}}, 'RLE'),
    'RLE of garbage': ({'segmentation': {'size': [H, W], 'counts': '\x7f\x01é'}}, 'not a compr'),
    'RLE huge': ({'segmentation': {'size': [H, W], 'counts': 'ooooooooooooo0'}}, 'too large'),
    'RLE without size': ({'segmentation': {'counts': [H * W]}}, 'without size'),
    'crowd without mask': ({'segmentation': [], 'iscrowd': 1}, 'a box alone'),
    'crowd of wrong size': (
        {'segmentation': {'size': [9, 9], 'counts': [81]}, 'iscrowd': 1},
        r'\[height, width\]',
    ),
}  # fmt: skip


@pytest.mark.parametrize('kind', UNUSABLE)
def test_an_annotation_without_a_usable_mask_is_named(kind, tmp_path):
    annotation, reason = UNUSABLE[kind]
    data = write_coco(tmp_path, [{'segmentation': [BOX], 'category_id': 2}, annotation])
    with pytest.raises(DataError, match=rf'annotation 101: not a region of 40 x 30 .*{reason}'):
        registry.read_dataset(data)
    errors = []
    (image,) = registry.read_dataset(data, errors.append)
    assert [query.text for query in image.queries] == ['pen']  # the cup is left out, not absent
    assert len(errors) == 1
    assert '\n' not in str(errors[0])
    # the same where the file does not give the size, and the image is asked
    images = [{'id': 0, 'file_name': '0.png'}]
    data = write_coco(tmp_path, [{'segmentation': [BOX], 'category_id': 2}, annotation], images)
    errors = []
    (image,) = read_checked(data, errors.append)
    assert [query.text for query in image.queries] == ['pen']
    assert 'annotation 101' in str(errors[0])


@pytest.mark.parametrize('segmentation', [
    [BOX],
    [[str(v) for v in BOX]],
    [[5, 5, 15, 5, 15, 20, 5, 20], [15, 5, 25, 5, 25, 20, 15, 20]],
    {'size': [H, W], 'counts': runs(mask_of_box())},
    {'size': [float(H), float(W)], 'counts': runs(mask_of_box())},
    compressed(mask_of_box()),
])  # fmt: skip
@pytest.mark.parametrize('crowd', [0, 1])
def test_a_usable_mask_is_read(segmentation, crowd, tmp_path):
    data = write_coco(tmp_path, [{'segmentation': segmentation, 'iscrowd': crowd}])
    (image,) = read_checked(data, pytest.fail)
    np.testing.assert_array_equal(image.queries[0].ground_truth(H, W), mask_of_box())


@pytest.mark.parametrize(
    'polygon', [[0, 0, 2, 0, 2, 2, 0, 2], [0, 0, 0.9, 0, 0.9, 5, 0, 5], [38, 28, 40, 28, 40, 30]]
)
def test_a_small_region_in_a_corner_is_read(polygon, tmp_path):
    data = write_coco(tmp_path, [{'segmentation': [polygon]}])
    (image,) = read_checked(data, pytest.fail)
    assert image.queries[0].ground_truth(H, W).any()


def test_compressed_run_lengths_are_decoded_as_pycocotools_does():
    rng = np.random.default_rng(0)
    for density in (0.001, 0.1, 0.5, 0.999):
        mask = (rng.random((H, W)) < density).astype(np.uint8)
        mask[3, 4] = 1
        region = CocoRegion(compressed(mask), 'here')
        region.check(H, W)
        canvas = np.zeros((H, W), np.uint8)
        region.paint(canvas, 1)
        np.testing.assert_array_equal(canvas, mask)


def test_a_polygon_that_reaches_out_of_the_image_is_used(tmp_path):
    data = write_coco(tmp_path, [{'segmentation': [[-30, -30, 20, -30, 20, 20, -30, 20]]}])
    (image,) = read_checked(data, pytest.fail)
    assert image.queries[0].ground_truth(H, W)[:19, :19].all()


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        ([{'id': 0, 'file_name': '0.png', 'height': 2 * H, 'width': 2 * W}], 'made for 80 x 60'),
        ([{'id': 0, 'file_name': '0.png', 'height': 'x', 'width': W}], 'height and width'),
        ([{'id': 0, 'file_name': '0.png', 'height': NAN, 'width': W}], 'height and width'),
        ([{'id': 0, 'file_name': '0.png', 'height': 10**16, 'width': W}], 'at most 50,000,000'),
        ([{'id': 0, 'file_name': '0.png', 'height': 8000, 'width': 8000}], 'at most 50,000,000'),
        ([{'id': 0, 'file_name': '0.png', 'height': 1, 'width': 40_000}], 'at most 32,767'),
        ([{'id': 0, 'file_name': '/etc/passwd'}], 'leads out of the image folder'),
        ([{'id': 0, 'file_name': '../../secret.png'}], 'leads out of the image folder'),
        ([{'id': 0, 'file_name': '..'}], 'leads out of the image folder'),
    ],
)
def test_an_image_that_does_not_fit_is_named(images, message, tmp_path):
    data, errors = write_coco(tmp_path, [{'segmentation': [BOX]}], images), []
    with contextlib.suppress(DataError):  # nothing is left
        assert read_checked(data, errors.append) == []
    assert message in str(errors[0])


def test_a_path_inside_the_image_folder_is_used_however_it_is_written(tmp_path):
    write_image(tmp_path / 'images' / 'a' / 'b.png')
    for name in (
        'a/b.png',
        str(tmp_path / 'images/a/b.png'),
        'a\\b.png',
        'a/../a/b.png',
        './a/b.png',
    ):
        images = [{'id': 0, 'file_name': name, 'height': H, 'width': W}]
        file = tmp_path / 'x.json'
        write_coco(tmp_path, [{'segmentation': [BOX]}], images, 'x.json')
        (image,) = read_coco(file, tmp_path / 'images')
        assert image.path.is_file(), name
    (tmp_path / 'link').symlink_to(tmp_path / 'images')  # as data sets on another disk
    (image,) = read_coco(tmp_path / 'x.json', tmp_path / 'link')
    assert image.path.is_file()


def test_ids_that_occur_twice_are_named_and_no_annotation_is_lost(tmp_path):
    data = write_coco(tmp_path, [{'segmentation': [BOX]}])
    file = tmp_path / 'instances.json'
    content = json.loads(file.read_text())
    twice = {**content, 'annotations': content['annotations'] * 2}
    twice['annotations'][1] = {**twice['annotations'][1], 'category_id': 2}
    file.write_text(json.dumps(twice))
    (image,) = registry.read_dataset(data)
    assert [query.text for query in image.queries] == ['cup', 'pen']
    file.write_text(json.dumps({**content, 'images': content['images'] * 2}))
    with pytest.raises(DataError, match='1 image ids occur twice, for example image 0'):
        registry.read_dataset(data)
    categories = [{'id': 1, 'name': 'cup'}, {'id': 1, 'name': 'pen'}]
    file.write_text(json.dumps({**content, 'categories': categories}))
    with pytest.raises(DataError, match="category 1 is both 'cup' and 'pen'"):
        registry.read_dataset(data)


# ---- before anything is loaded, in evaluation and in training


@pytest.fixture
def coco_with_two_points(tmp_path):
    """Twelve images, the ninth with a polygon of two points."""
    images = [{'id': i, 'file_name': f'{i}.png', 'height': H, 'width': W} for i in range(12)]
    annotations = [
        {'image_id': i, 'segmentation': ([[5, 5, 6, 5]] if i == 8 else []) + [BOX]}
        for i in range(12)
    ]
    return write_coco(tmp_path, annotations, images)


def scripted(tmp_path):
    (tmp_path / 'script.json').write_text('{"": {"masks": "all"}}')
    return f'scripted:{tmp_path / "script.json"}'


def test_evaluation_refuses_bad_annotations_or_leaves_them_out(
    coco_with_two_points, tmp_path, capsys
):
    out = tmp_path / 'out'
    command = ['evaluate', 'images', coco_with_two_points, '--out', str(out), '--model']
    assert cli.main([*command, 'no/such-model']) == 1
    error = capsys.readouterr().err
    assert 'annotation 108' in error  # before the model is missed
    assert '--skip-broken' in error
    assert not out.exists()
    assert cli.main([*command, scripted(tmp_path), '--skip-broken']) == 0
    report = read_report(out)
    assert len(report['cases']) == 11
    assert 'annotation 108' in report['broken'][0]
    assert report['figures']['all']['count'] == 11


@pytest.mark.parametrize(
    ('broken', 'expected'),
    [
        ({'id': None}, {0: ['pen'], 1: ['cup']}),
        ({'id': None, 'category_id': 1.0}, {0: ['pen'], 1: ['cup']}),
        ({'category_id': None}, {1: ['cup']}),
        ({'category_id': 'cup'}, {1: ['cup']}),
        ({'category_id': 9}, {0: ['cup', 'pen'], 1: ['cup']}),  # of no category of the file
        ({'image_id': None}, {0: ['cup', 'pen'], 1: ['cup']}),  # of no image of the file
    ],
)
def test_a_query_without_one_of_its_annotations_is_left_out(broken, expected, tmp_path):
    images = [{'id': i, 'file_name': f'{i}.png', 'height': H, 'width': W} for i in range(2)]
    annotations = [
        {'segmentation': [BOX]},
        {'segmentation': [[30, 20, 35, 20, 35, 25, 30, 25]], **broken},
        {'segmentation': [BOX], 'category_id': 2},
        {'segmentation': [BOX], 'image_id': 1},
    ]
    write_coco(tmp_path, annotations, images)
    file = tmp_path / 'instances.json'
    content = json.loads(file.read_text())
    content['annotations'] = [
        {key: value for key, value in entry.items() if value is not None}
        for entry in content['annotations']
    ]
    file.write_text(json.dumps(content))
    errors = []
    read = read_coco(file, tmp_path / 'images', on_error=errors.append)
    queries = {int(image.name): [query.text for query in image.queries] for image in read}
    assert len(errors) == 1
    assert queries == expected


@pytest.fixture
def long_query(tmp_path):
    """Two images in ReasonSeg's format, one with a text that no prompt has room for."""
    target = shape('polygon', [[5, 5], [25, 5], [25, 20]], 'target')
    for name, text in (('a', 'the cup ' * 400), ('b', 'the cup')):
        write_image(tmp_path / 'texts' / f'{name}.png')
        labels = {'text': [text], 'is_sentence': True, 'shapes': [target]}
        (tmp_path / 'texts' / f'{name}.json').write_text(json.dumps(labels))
    return str(tmp_path / 'texts')


def test_fine_tuning_refuses_bad_items_or_leaves_them_out(
    coco_with_two_points, long_query, tmp_path, capsys
):
    run = tmp_path / 'run'
    command = [
        'finetune', '--model', str(DATA / 'ckpt_256'), '--template', 'llava_v1',
        '--vision-tower', str(DATA / 'clip_256'), '--out', str(run), '--device', 'cpu',
        '--steps', '1', '--accumulate', '1', '--data',
    ]  # fmt: skip
    for data, problem in (
        (coco_with_two_points, 'annotation 108'),
        (long_query, 'a.png: its query of 3199 characters is too long'),
    ):
        assert cli.main([*command, data]) == 1
        error = capsys.readouterr().err
        assert problem in error
        assert '--skip-broken' in error
        assert error.count('\n') == 1
        assert not run.exists()
    assert cli.main([*command, coco_with_two_points, long_query, '--skip-broken']) == 0
    skipped = (run / 'skipped.txt').read_text()
    assert 'annotation 108' in skipped
    assert 'a.png: its query' in skipped
    assert (run / 'model' / 'model.safetensors').is_file()
    assert 'items were left out' in capsys.readouterr().err


@pytest.fixture
def dialogues(tmp_path):
    """A function that writes dialogues of one turn each, all about one image."""

    def write_dialogues(*questions):
        write_image(tmp_path / 'a.png')
        content = [
            {
                'image': 'a.png',
                'conversations': [
                    {'from': 'human', 'value': f'<image>\n{question}'},
                    {'from': 'gpt', 'value': 'Shoes.'},
                ],
            }
            for question in questions
        ]
        (tmp_path / 'llava.json').write_text(json.dumps(content))
        return f'llava:{tmp_path}/llava.json:{tmp_path}'

    return write_dialogues


def test_a_dialogue_whose_first_question_has_no_room_is_named_before_a_training(
    dialogues, tmp_path, capsys
):
    """Its loss was NaN, which no --learning-rate cures."""
    run = tmp_path / 'run'
    command = [
        'finetune', '--model', str(DATA / 'ckpt_256'), '--template', 'llava_v1',
        '--vision-tower', str(DATA / 'clip_256'), '--out', str(run), '--device', 'cpu',
        '--steps', '1', '--accumulate', '1', '--data',
    ]  # fmt: skip
    long, short, foreign = 'Reference OCR token: SALE ' * 400, 'What is on sale?', 'Was gibt’s? ⛵'
    assert cli.main([*command, dialogues(long, short, foreign)]) == 1
    error = capsys.readouterr().err
    assert 'a.png: the first question of its dialogue, of 10399 characters, is too long' in error
    assert error.count('too long') == 1
    assert not run.exists()
    assert cli.main([*command, dialogues(short, long), '--skip-broken']) == 0
    assert 'a.png: the first question' in (run / 'skipped.txt').read_text()


def test_an_image_that_vanishes_during_a_training_is_skipped_by_name(tmp_path, capsys):
    images = [{'id': i, 'file_name': f'{i}.png'} for i in range(3)]
    annotations = [{'image_id': i, 'segmentation': [BOX]} for i in range(3)]
    data = write_coco(tmp_path, annotations, images)
    usable = read_checked(data, pytest.fail)
    (tmp_path / 'images' / '1.png').write_bytes(b'broken')
    errors = []
    sampler = make_sampler(usable, on_error=errors.append)
    names = {sampler.draw(np.random.default_rng(seed)).name for seed in range(20)}
    assert {name.rpartition('/')[2] for name in names} == {'0.png', '2.png'}
    assert all('1.png' in str(error) for error in errors)
    with pytest.raises(DataError, match=r'1\.png'):
        for seed in range(20):
            make_sampler(usable).draw(np.random.default_rng(seed))


# ---- labelme and ReasonSeg


def png(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, 'PNG')
    return base64.b64encode(buffer.getvalue()).decode()


def write_labels(folder, *shapes, **extra):
    write_image(folder / 'a.png')
    (folder / 'a.json').write_text(json.dumps({'shapes': shapes, **extra}))
    return folder


def shape(shape_type, points, label='mug', **extra):
    return {'label': label, 'shape_type': shape_type, 'points': points, **extra}


TILTED = [[10, 2], [30, 12], [26, 20], [6, 10]]


@pytest.mark.parametrize('shape_type', ['oriented_rectangle', 'rotation', 'polygon', 'rectangle'])
def test_an_oriented_rectangle_covers_its_four_corners(shape_type, tmp_path):
    (image,) = read_folder(write_labels(tmp_path, shape(shape_type, TILTED)))
    mask = image.queries[0].ground_truth(H, W)
    y, x = np.mgrid[:H, :W]
    distances = []  # of each pixel inwards from each side [px]
    for (x0, y0), (x1, y1) in zip(TILTED, np.roll(TILTED, -1, axis=0), strict=True):
        cross = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
        distances.append(cross / np.hypot(x1 - x0, y1 - y0))
    inside = np.min(distances, axis=0)
    assert mask[inside >= 0].all()
    assert not mask[inside < -1].any()


SHAPES = {
    'line': (shape('line', [[1, 2], [3, 4]]), 'a line with 2 points has no area'),
    'linestrip': (shape('linestrip', [[1, 2], [3, 4], [9, 4]]), 'a linestrip with 3 points'),
    'point': (shape('point', [[1, 2]]), 'a point with 1 points'),
    'points': (shape('points', [[1, 2], [3, 4]]), 'a points with 2 points'),
    'unknown': (shape('spline', TILTED), 'a spline with 4 points'),
    'tilted, 3 points': (shape('oriented_rectangle', TILTED[:3]), 'with 3 points has no area'),
    'two points': (shape('polygon', [[1, 2], [9, 9]]), 'fewer than 3 different points'),
    'the same point': (shape('polygon', [[1, 2]] * 5), 'fewer than 3 different points'),
    'flat rectangle': (shape('rectangle', [[1, 2], [1, 9]]), 'fewer than 3 different points'),
    'circle of 0': (shape('circle', [[5, 5], [5, 5]]), 'fewer than 3 different points'),
    'no points': (shape('polygon', []), r'points \[\]'),
    'three numbers': (shape('polygon', [[1, 2, 3], [4, 5, 6]]), 'points'),
    'NaN': (shape('polygon', [[1, 2], [NAN, 3], [9, 9]]), 'points'),
    'null': (shape('polygon', None), 'cannot be read'),
    'fractions': (shape('polygon', [[0.1, 0.1], [0.5, 0.1], [0.5, 0.6]]), 'fractions'),
    'fractions over 1': (shape('polygon', [[0.1, 0.1], [1.01, 0.1], [0.5, 0.6]]), 'fractions'),
    'outside': (shape('polygon', [[500, 5], [510, 5], [510, 20]]), 'lies outside of the image'),
    'huge': (shape('polygon', [[5, 5], [1e300, 5], [9, 20]]), 'far outside'),
    'around the corner': (shape('polygon', [[-30, 15], [15, -30], [-30, -30]]), 'no pixel'),
    'empty mask': (shape('mask', [[5, 5], [8, 8]], mask=png(np.zeros((4, 4)))), 'no pixel'),
    'mask outside': (shape('mask', [[99, 5], [102, 8]], mask=png(np.ones((4, 4)))), 'outside'),
    'mask left': (shape('mask', [[-9, -9], [-6, -6]], mask=png(np.ones((4, 4)))), 'outside'),
    'no mask': (shape('mask', [[5, 5], [8, 8]]), 'cannot be read'),
}  # fmt: skip


@pytest.mark.parametrize('kind', SHAPES)
def test_a_shape_without_an_area_in_the_image_is_named(kind, tmp_path):
    broken, reason = SHAPES[kind]
    folder = write_labels(tmp_path, shape('polygon', TILTED, 'pan'), broken)
    with pytest.raises(DataError, match=rf"a\.json: shape 1, 'mug',?.*{reason}") as caught:
        read_folder(folder)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        ({'shapes': [shape('polygon', TILTED, 'flag')], 'text': ['it']}, 'only "flag" shapes'),
        ({'shapes': [shape('polygon', TILTED, 'ignore')], 'text': ['it']}, 'only ignored shapes'),
        (
            {
                'shapes': [shape('rectangle', [[5, 5], [15, 15]], 'target'),
                           *(shape('rectangle', [[x, y], [x + 5, y + 5]], 'ignore')
                             for x in (5, 10) for y in (5, 10))],
                'text': ['it'],
            },
            "ignored regions cover all of 'it'",
        ),
        ({'shapes': [shape('polygon', [[5, 5], [9, 9]], 'target')], 'text': ['it']}, 'fewer than'),
        ({'shapes': [], 'text': ['it'], 'is_sentence': 'false'}, 'expected true or false'),
    ],
)  # fmt: skip
def test_a_text_means_absent_only_with_an_empty_list_of_shapes(labels, message, tmp_path):
    folder = write_labels(tmp_path, text=['it'])
    (image,) = read_folder(folder)
    assert not image.queries[0].ground_truth(H, W).any()
    (tmp_path / 'a.json').write_text(json.dumps(labels))
    with pytest.raises(DataError, match=message):
        read_folder(folder)


def test_a_mask_file_without_pixels_does_not_mean_absent(tmp_path):
    write_image(tmp_path / 'a.png')
    (tmp_path / 'a').mkdir()
    Image.new('L', (W, H)).save(tmp_path / 'a' / 'red mug.png')
    with pytest.raises(DataError, match=r'red mug\.png: has no pixel, .*"shapes": \[\]'):
        read_folder(tmp_path)


# ---- refer, llava, test sets


@pytest.mark.parametrize(
    ('ann_id', 'message'),
    [
        ([], r'annotation ids \[\]; expected ids, or -1 alone'),
        ([-1, 100], 'or -1 alone'),
        ([[100]], 'expected ids'),
        (101, 'annotation 101: not a region'),
        (102, 'which instances.json does not contain'),  # of another image
    ],
)
def test_a_reference_without_a_mask_is_no_absent_object(ann_id, message, tmp_path):
    root = tmp_path / 'refer_seg' / 'grefcoco'
    root.mkdir(parents=True)
    images = [{'id': i, 'file_name': f'{i}.png', 'height': H, 'width': W} for i in (0, 1)]
    annotations = [
        {'segmentation': [BOX]}, {'segmentation': []}, {'segmentation': [BOX], 'image_id': 1},
    ]  # fmt: skip
    write_coco(root, annotations, images)
    pictures = tmp_path / 'refer_seg/images/mscoco/images/train2014'
    pictures.mkdir(parents=True)
    good = {'image_id': 0, 'ann_id': [100], 'split': 'val', 'sentences': [{'sent': 'a cup'}]}
    absent = {**good, 'ann_id': [-1], 'sentences': [{'sent': 'a cat'}]}
    (root / 'grefs(unc).json').write_text(json.dumps([good, absent]))
    (image,) = read_refer(root, 'val')
    assert [bool(query.regions) for query in image.queries] == [True, False]
    (root / 'grefs(unc).json').write_text(json.dumps([good, {**good, 'ann_id': ann_id}]))
    with pytest.raises(DataError, match=message):
        read_refer(root, 'val')
    errors = []
    (image,) = read_refer(root, 'val', on_error=errors.append)
    assert (len(image.queries), len(errors)) == (1, 1)


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        ({'image': '../../etc/passwd.png'}, 'leads out of the image folder'),
        ({'image': '/etc/passwd'}, 'leads out of the image folder'),
        ({'image': 3}, 'has image 3; expected str'),
        ({'conversations': [{'from': 'human', 'value': '<image>'},
                            {'from': 'gpt', 'value': 'x'}]}, 'entry 1 has an empty message'),
    ],
)  # fmt: skip
def test_a_dialogue_that_cannot_be_used_is_left_out(entry, message, tmp_path):
    write_image(tmp_path / '7.jpg')
    lines = [{'from': 'human', 'value': '<image> What?'}, {'from': 'gpt', 'value': 'A cup.'}]
    good = {'image': '7.jpg', 'conversations': lines}
    (tmp_path / 'llava.json').write_text(json.dumps([good, {**good, **entry}]))
    with pytest.raises(DataError, match=message):
        read_llava(tmp_path / 'llava.json', tmp_path)
    errors = []
    assert len(read_llava(tmp_path / 'llava.json', tmp_path, on_error=errors.append)) == 1
    assert len(errors) == 1


def write_test_set(folder, queries, name='a.png', ids=None):
    write_image(folder / 'a.png')
    ids = mask_of_box() * 5 if ids is None else ids
    Image.fromarray(ids.astype(np.uint8)).save(folder / 'ids.png')
    entry = {'image': name, 'ids': 'ids.png', 'queries': queries}
    (folder / 'queries.json').write_text(json.dumps([entry]))
    return folder


def query(**changes):
    return {'category': 'explicit', 'text': 'the mug', 'targets': [5], **changes}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'targets': [6]}, r'ids\.png: has none of the targets \[6\]'),
        ({'targets': '5'}, r'queries\.json: \[0\]\.queries\[1\]\.targets is .5.; expected a list'),
        ({'text': None}, r'\[0\]\.queries\[1\]\.text is None; expected a text'),
    ],
)
def test_a_test_set_with_a_wrong_target_is_refused(changes, message, tmp_path, capsys):
    folder = write_test_set(tmp_path, [query(), query(**changes)])
    command = ['evaluate', 'scenes', '--test-set', str(folder), '--model', 'no/such-model']
    assert cli.main(command) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_test_set_is_evaluated_without_its_broken_queries(tmp_path, capsys):
    queries = [query(), query(targets=[6]), query(targets=[])]
    folder, out = write_test_set(tmp_path / 'set', queries), tmp_path / 'out'
    command = ['evaluate', 'scenes', '--test-set', str(folder), '--model', scripted(tmp_path)]
    assert cli.main([*command, '--out', str(out), '--skip-broken']) == 0
    report = read_report(out)
    assert [case['present'] for case in report['cases']] == [True, False]
    assert 'none of the targets [6]' in report['broken'][0]
    for name in ('../a.png', '/etc/passwd'):
        write_test_set(tmp_path / 'set', [query()], name)
        with pytest.raises(DataError, match='leads out of the image folder'):
            tabletop.read_test_set(folder)
    write_test_set(tmp_path / 'set', [query()], ids=np.ones((9, 9)))
    assert cli.main(command) == 1
    assert 'has 9 x 9 pixels, its image 40 x 30' in capsys.readouterr().err


def test_a_damaged_archive_of_a_test_set_is_an_error(tmp_path):
    (tmp_path / 'a.zip').write_bytes(b'PK\x03\x04 nothing')
    with pytest.raises(DataError, match=r'a\.zip: expected a test set'):
        tabletop.read_test_set(tmp_path / 'a.zip')
    with zipfile.ZipFile(tmp_path / 'b.zip', 'w') as archive:
        archive.writestr('queries.json', b'\xff\xfe')
    with pytest.raises(DataError, match=r'queries\.json: is not UTF-8'):
        tabletop.read_test_set(tmp_path / 'b.zip')


# ---- two images of one name


def test_images_of_one_name_in_two_folders_are_two_cases(tmp_path, capsys):
    images = [
        {'id': i, 'file_name': name, 'height': H, 'width': W}
        for i, name in enumerate(('a/1.png', 'b/1.png', 'b/2.png'))
    ]
    annotations = [{'image_id': i, 'segmentation': [BOX]} for i in range(3)]
    data, model = write_coco(tmp_path, annotations, images), scripted(tmp_path)
    for name, limit in (('first', '3'), ('second', '2')):  # the names do not depend on the limit
        command = ['evaluate', 'images', data, '--out', str(tmp_path / name), '--model', model]
        assert cli.main([*command, '--limit', limit]) == 0
    report = read_report(tmp_path / 'first')
    assert [case['name'] for case in report['cases']] == ['a/1.0', 'b/1.0', '2.0']
    overlays = {case['image'] for case in report['cases']}
    assert len(overlays) == 3
    assert all((tmp_path / 'first' / overlay).is_file() for overlay in overlays)
    assert (tmp_path / 'first' / 'report.html').read_text().count('<figure') == 3
    compare = ['evaluate', 'compare', str(tmp_path / 'first'), str(tmp_path / 'second')]
    assert cli.main([*compare, '--out', str(tmp_path / 'both')]) == 0
    both = json.loads((tmp_path / 'both' / 'compare.json').read_text())
    assert both['differences'][0]['figures']['all']['count'] == 2


def test_every_image_of_a_data_set_has_a_name_of_its_own(tmp_path):
    paths = ['1.png', '1.jpg', 'a/1.png', 'a/2.png', 'b/1.png', '3.png', '3.png', '1.png.png']
    names = unique_names([tmp_path / path for path in paths], tmp_path)
    assert len(set(names)) == len(paths)
    assert names[3] == '2'  # a unique stem is the name, as in earlier reports
    assert names[2] == 'a/1'
    assert names[5:7] == ['3.png', '3.png#2']


def test_scenes_of_one_name_are_two_cases(tmp_path):
    folder = write_test_set(tmp_path / 'set', [query()])
    (entry,) = json.loads((folder / 'queries.json').read_text())
    write_image(folder / 'other' / 'a.png')
    entries = [entry, {**entry, 'image': 'other/a.png'}]
    (folder / 'queries.json').write_text(json.dumps(entries))
    command = ['evaluate', 'scenes', '--test-set', str(folder), '--model', scripted(tmp_path)]
    assert cli.main([*command, '--out', str(tmp_path / 'out')]) == 0
    names = [case['name'] for case in read_report(tmp_path / 'out')['cases']]
    assert names == ['a.0', 'other/a.0']
