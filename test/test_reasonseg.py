# SPDX-License-Identifier: Apache-2.0
"""Annotated folders are read as the original reads ReasonSeg; bags become such folders."""

import base64
import io
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from lisa_ros import cli
from lisa_ros.datasets import bag_frames
from lisa_ros.datasets.reasonseg import read_folder
from lisa_ros.errors import DataError, SettingsError
from lisa_ros.perception.masks import IGNORED_PIXEL
from lisa_ros.perception.prompts import ANSWER_TEMPLATES
from lisa_ros.training.finetune.mixture import Mixture
from lisa_ros.training.finetune.samplers import AnnotatedImageSampler, validation_sample

BAG = Path(cli.__file__).parent / 'samples' / 'tabletop' / 'bag'
COLOUR = '/camera/color/image_raw'
SIZE = (40, 60)  # height, width


def square(label, x, y, side, **extra):
    points = [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]
    return {'label': label, 'points': points, **extra}


def write(folder, name='one', shapes=(), suffix='.png', **extra):
    """Write an image with an annotation file, as labelme does."""
    folder.mkdir(exist_ok=True)
    Image.new('RGB', SIZE[::-1], (90, 120, 200)).save(folder / f'{name}{suffix}')
    labels = {
        'version': '5.5.0',
        'flags': {},
        'shapes': [{'shape_type': 'polygon', **shape} for shape in shapes],
        'imagePath': f'{name}{suffix}',
        **extra,
    }
    (folder / f'{name}.json').write_text(json.dumps(labels))
    return folder


def original_mask(shapes, height, width):
    """utils/data_processing.py of dvlab-research/LISA, in short."""
    painted = []
    for shape in shapes:
        if shape['label'].lower() == 'flag':
            continue
        corners = np.array([shape['points']], np.int32)
        canvas = np.zeros((height, width), np.uint8)
        cv2.polylines(canvas, corners, True, 1, 1)
        cv2.fillPoly(canvas, corners, 1)
        painted.append((canvas.sum(), shape, corners))
    mask = np.zeros((height, width), np.uint8)
    for index in np.argsort([area for area, _, _ in painted])[::-1]:
        _, shape, corners = painted[index]
        value = 255 if 'ignore' in shape['label'].lower() else 1
        cv2.polylines(mask, corners, True, value, 1)
        cv2.fillPoly(mask, corners, value)
    return mask


# ---- annotations


def test_shapes_are_painted_as_the_original_paints_them(tmp_path):
    rng = np.random.default_rng(0)
    labels = ['target', 'ignore', 'flag', 'target', 'Ignored', 'target', 'flag']
    shapes = [
        {'label': label, 'points': (rng.random((rng.integers(3, 9), 2)) * SIZE[::-1]).tolist()}
        for label in labels
    ]
    (image,) = read_folder(write(tmp_path / 'a', shapes=shapes, text=['it'], is_sentence=False))
    ground_truth = image.queries[0].ground_truth(*SIZE)
    assert set(np.unique(ground_truth)) == {0, 1, IGNORED_PIXEL}
    np.testing.assert_array_equal(ground_truth, original_mask(shapes, *SIZE))


def test_a_small_shape_cuts_a_hole_in_any_order(tmp_path):
    shapes = [square('ignore', 12, 12, 5), square('target', 5, 5, 25), square('target', 13, 13, 2)]
    (image,) = read_folder(write(tmp_path / 'a', shapes=shapes, text=['it']))
    ground_truth = image.queries[0].ground_truth(*SIZE)
    points = [(6, 6), (12, 12), (14, 14), (35, 50)]
    assert [ground_truth[point] for point in points] == [1, IGNORED_PIXEL, 1, 0]


def test_all_texts_of_a_file_have_the_same_target(tmp_path):
    folder = write(
        tmp_path / 'a',
        shapes=[square('target', 5, 5, 9)],
        text=['What holds the drink?', 'the cup'],
        is_sentence=True,
    )
    (image,) = read_folder(folder)
    assert [query.is_sentence for query in image.queries] == [True, True]
    sample = validation_sample(image)
    assert [turns[0].query for turns in sample.dialogues] == [
        ' What holds the drink? Please output segmentation mask.',
        ' the cup Please output segmentation mask.',
    ]
    assert sample.ground_truth.shape == (2, *SIZE)
    assert (sample.ground_truth[0] == sample.ground_truth[1]).all()


def test_without_text_each_label_is_the_name_of_an_object(tmp_path):
    shapes = [
        square('red mug', 2, 2, 6),
        square('spoon', 20, 2, 6),
        square('red mug', 2, 20, 6),
        square('ignore', 40, 20, 6),
        square('flag', 40, 2, 6),
    ]
    (image,) = read_folder(write(tmp_path / 'a', shapes=shapes))
    assert [(q.text, q.is_sentence) for q in image.queries] == [
        ('red mug', False),
        ('spoon', False),
    ]
    mugs, spoon = (query.ground_truth(*SIZE) for query in image.queries)
    assert (mugs[4, 4], mugs[22, 4], mugs[4, 22], mugs[22, 42], mugs[4, 42]) == (1, 1, 0, 255, 0)
    assert (spoon[4, 4], spoon[4, 22], spoon[22, 42]) == (0, 1, 255)


def test_rectangles_circles_and_masks_of_labelme_are_read(tmp_path):
    png = io.BytesIO()
    Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(png, 'PNG')
    mask = base64.b64encode(png.getvalue()).decode()
    shapes = [
        {'label': 'box', 'shape_type': 'rectangle', 'points': [[3, 4], [9, 8]]},
        {'label': 'ball', 'shape_type': 'circle', 'points': [[30, 20], [36, 20]]},
        {'label': 'bit', 'shape_type': 'mask', 'points': [[50, 30], [53, 33]], 'mask': mask},
    ]
    (image,) = read_folder(write(tmp_path / 'a', shapes=shapes))
    box, ball, bit = (query.ground_truth(*SIZE) for query in image.queries)
    assert box.sum() == 7 * 5
    assert ball.sum() == pytest.approx(np.pi * 36, rel=0.15)
    assert ball[20, 30] == ball[15, 30] == 1
    np.testing.assert_array_equal(bit[30:34, 50:54], np.eye(4))


def test_a_folder_of_masks_is_read(tmp_path):
    Image.new('RGB', SIZE[::-1]).save(tmp_path / 'kitchen.jpg')
    (tmp_path / 'kitchen').mkdir()
    mask = np.zeros(SIZE, np.uint8)
    mask[3:9, 5:20] = 255
    Image.fromarray(mask).save(tmp_path / 'kitchen' / 'red mug.png')
    (image,) = read_folder(tmp_path)
    assert image.queries[0].text == 'red mug'
    np.testing.assert_array_equal(image.queries[0].ground_truth(*SIZE), mask > 0)


def test_annotations_for_another_size_are_an_error(tmp_path):
    shapes = [square('cup', 2, 5, 6)]
    folder = write(tmp_path / 'a', shapes=shapes, imageWidth=SIZE[1], imageHeight=SIZE[0])
    assert len(read_folder(folder)) == 1
    write(folder, shapes=shapes, imageWidth=2 * SIZE[1], imageHeight=2 * SIZE[0])
    with pytest.raises(DataError, match=rf'one\.json.*for an image of {SIZE[1]} x {SIZE[0]}'):
        read_folder(folder)
    (folder / 'one.json').unlink()
    (folder / 'one').mkdir()
    Image.new('L', (8, 8), 255).save(folder / 'one' / 'cup.png')
    with pytest.raises(DataError, match=r'cup\.png: annotations of 8 x 8'):
        read_folder(folder)


def test_a_photograph_is_turned_upright_by_its_exif_orientation(tmp_path):
    folder = write(tmp_path / 'a', shapes=[square('cup', 2, 50, 6)], suffix='.jpg')
    photograph = Image.new('RGB', SIZE[::-1])
    exif = photograph.getexif()
    exif[0x112] = 6  # rotated by 90 degrees
    photograph.save(folder / 'one.jpg', exif=exif)
    sample = validation_sample(read_folder(folder)[0])
    assert sample.image.shape[:2] == SIZE[::-1] == sample.ground_truth.shape[1:]


@pytest.mark.parametrize('encoding', ['cp1252', 'gbk', 'utf-16'])
def test_text_that_is_not_utf_8_is_refused_and_not_guessed(encoding, tmp_path):
    folder = write(tmp_path / 'a')
    target = json.dumps([square('target', 1, 1, 5)])
    label = 'the café' if encoding == 'cp1252' else '红色的杯子'
    text = f'{{"text": ["{label}"], "is_sentence": false, "shapes": {target}}}'
    (folder / 'one.json').write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r'one\.json: is not UTF-8 .*; save it as UTF-8, .*iconv'):
        read_folder(folder)
    (folder / 'one.json').write_bytes(text.encode('utf-8-sig'))  # Windows adds a mark
    assert read_folder(folder)[0].queries[0].text == label


# ---- questions and answers


def test_explanations_are_sampled_in_three_forms(tmp_path):
    folder = write(tmp_path / 'train', shapes=[square('target', 5, 5, 9)], text=['Why so?'])
    (tmp_path / 'explanatory').mkdir()
    entry = {'image': 'one.png', 'query': 'Why so?', 'outputs': 'Because it is warm.'}
    (tmp_path / 'explanatory' / 'train.json').write_text(json.dumps([entry]))
    source, forms = AnnotatedImageSampler(read_folder(folder), words_only=0.3), set()
    for seed in range(40):
        sample = source.draw(np.random.default_rng(seed))
        ((turn,),) = sample.dialogues
        assert turn.query.startswith('Why so?')
        assert len(sample.ground_truth) == turn.answer_raw.count('[SEG]')
        explained = 'Because it is warm.' in turn.answer_raw
        assert ('expla' in turn.query) == (explained and len(sample.ground_truth) == 1)
        forms.add((explained, len(sample.ground_truth)))
    assert forms == {(False, 1), (True, 1), (True, 0)}


def explained(source, seeds=40):
    """Return the explanations of each query in some samples."""
    found = {}
    for seed in range(seeds):
        sample = source.draw(np.random.default_rng(seed))
        turns = [turn for (turn,) in sample.dialogues]
        assert len(sample.ground_truth) == sum(t.answer_raw.count('[SEG]') for t in turns)
        for turn in turns:
            reason = re.sub(r'^.*\[SEG\] ?\.', '', turn.answer_raw).strip()
            if reason:
                found.setdefault(turn.query.split(' Please')[0], set()).add(reason)
    return found


def write_explanations(folder, *entries):
    keys = ('image', 'query', 'outputs')
    entries = [
        {key: value for key, value in zip(keys, e, strict=True) if value is not None}
        for e in entries
    ]
    (folder / 'explanations.json').write_text(json.dumps(entries))


def test_each_object_is_explained_by_the_entry_of_its_name(tmp_path):
    """The last entry of an image was trained for all objects in it."""
    folder = write(tmp_path / 'a', shapes=[square('red mug', 2, 2, 9), square('Knife', 20, 2, 9)])
    (folder / 'one').mkdir()
    mask = np.zeros(SIZE, np.uint8)
    mask[30:35, 30:35] = 255
    Image.fromarray(mask).save(folder / 'one' / 'lid.png')
    cup, cut, lid = 'It holds coffee.', 'It can cut bread.', 'It keeps it warm.'
    write_explanations(
        folder, ('one.png', 'Red  mug', cup), ('one.png', 'knife', cut), ('one.png', 'lid', lid)
    )
    source = AnnotatedImageSampler(read_folder(folder), words_only=0.3)
    assert explained(source) == {'red mug': {cup}, 'Knife': {cut}, 'lid': {lid}}
    write_explanations(folder, ('one.png', 'knife', cut))
    source = AnnotatedImageSampler(read_folder(folder), words_only=0.3)
    assert explained(source) == {'Knife': {cut}}


def test_an_explanation_of_a_text_is_that_of_all_texts(tmp_path):
    folder = write(tmp_path / 'a', shapes=[square('target', 2, 2, 9)], text=['the cup', 'it'])
    write_explanations(
        folder, ('one.png', 'the cup', 'Overwritten.'), ('one.png', 'What is warm?', 'It is hot.')
    )
    (image,) = read_folder(folder)
    assert [query.explanation for query in image.queries] == ['It is hot.', 'It is hot.']


def test_an_explanation_beside_texts_and_masks_belongs_to_the_one_it_names(tmp_path):
    folder = write(tmp_path / 'a', shapes=[square('target', 2, 2, 9)], text=['What is hot?'])
    (folder / 'one').mkdir()
    mask = np.zeros(SIZE, np.uint8)
    mask[30:35, 30:35] = 255
    Image.fromarray(mask).save(folder / 'one' / 'Schl\u00fcssel.png')
    own = ('one.png', 'What is hot?', 'Steam rises.'), ('one.png', 'Schlu\u0308ssel', 'It opens.')
    write_explanations(folder, *own)
    (image,) = read_folder(folder)
    assert [query.explanation for query in image.queries] == ['Steam rises.', 'It opens.']
    write_explanations(folder, *own, ('one.png', 'Schlussel', 'It opens.'), ('gone.png', 'x', 'y'))
    errors = []
    read_folder(folder, errors.append)
    assert len(errors) == 2
    (image,) = read_folder(folder, explained=False)  # an evaluation needs none
    assert [query.explanation for query in image.queries] == ['', '']


def test_an_explanation_without_a_query_is_that_of_the_only_object(tmp_path):
    folder = write(tmp_path / 'a', shapes=[square('mug', 2, 2, 9)])
    write_explanations(folder, ('one.png', None, 'It is hot.'))
    (image,) = read_folder(folder)
    assert image.queries[0].explanation == 'It is hot.'
    write(folder, shapes=[square('mug', 2, 2, 9), square('lid', 20, 2, 9)])
    with pytest.raises(
        DataError, match=r"entry 0, about one\.png, has no query; expected one of 'mug'"
    ):
        read_folder(folder)


def test_an_explanation_of_no_query_or_no_image_is_named(tmp_path):
    folder = write(tmp_path / 'a', shapes=[square('mug', 2, 2, 9)])
    write(folder, 'two')  # has no annotations, and is skipped
    write_explanations(
        folder,
        ('one.jpg', 'mug', 'It is hot.'),
        ('one.png', 'cup', 'It is hot.'),
        ('two.png', 'cup', 'It is hot.'),
    )
    errors = []
    (image,) = read_folder(folder, lambda error: errors.append(str(error)))
    assert image.queries[0].explanation == ''
    assert len(errors) == 2
    assert "entry 0 is about 'one.jpg'; expected the name of an image" in errors[0]
    assert "entry 1, about one.png, has the query 'cup'; expected one of 'mug'" in errors[1]


def test_explanations_of_reasonseg_may_be_about_images_that_are_not_copied(tmp_path):
    folder = write(tmp_path / 'train', shapes=[square('target', 5, 5, 9)], text=['Why so?'])
    (tmp_path / 'explanatory').mkdir()
    entries = [
        {'image': f'{name}.png', 'query': 'Why so?', 'outputs': 'Because.'}
        for name in ('one', 'elsewhere')
    ]
    (tmp_path / 'explanatory' / 'train.json').write_text(json.dumps(entries))
    (image,) = read_folder(folder)
    assert image.queries[0].explanation == 'Because.'


def test_object_names_use_the_originals_templates(tmp_path):
    source = AnnotatedImageSampler(
        read_folder(write(tmp_path / 'a', shapes=[square('Red Mug', 5, 5, 9)]))
    )
    turns = [source.draw(np.random.default_rng(seed)).dialogues[0][0] for seed in range(40)]
    assert {turn.answer_raw for turn in turns} == set(ANSWER_TEMPLATES)
    assert len({turn.query for turn in turns}) == 4
    assert all('red mug in this image' in turn.query for turn in turns)


# ---- mixing


class NamedSampler:
    def __init__(self, name):
        self.name = name

    def draw(self, rng):
        return self.name, rng.random()


def test_samplers_are_drawn_by_rate_and_only_by_seed_step_and_part():
    rates = {'semantic': 9, 'referring': 3, 'question_answer': 3, 'reasoning': 1}
    mixture = Mixture({name: NamedSampler(name) for name in rates}, rates, seed=5)
    assert mixture.draw(3, 1, 4) == mixture.draw(3, 1, 4)
    assert mixture.draw(3, 1, 4) != mixture.draw(3, 2, 4)
    assert mixture.draw(3, 1, 4) != mixture.draw(4, 1, 4)
    names = [name for step in range(500) for name, _ in mixture.draw(step, 0, 8)]
    for name, rate in rates.items():
        assert names.count(name) / len(names) == pytest.approx(rate / 16, abs=0.02)


@pytest.mark.parametrize(
    'rates', [{'a': 0.0}, {'a': -1.0}, {'a': float('nan')}, {'a': float('inf')}, {}, {'b': 1.0}]
)
def test_invalid_rates_are_refused(rates):
    with pytest.raises(SettingsError, match='rates are'):
        Mixture({'a': NamedSampler('a')}, rates)


# ---- broken files


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"shapes": [', 'cannot be read as JSON'),
        ('[]', 'expected a JSON object with a list "shapes"'),
        ('{"shapes": [{"label": "a"}]}', "KeyError: 'points'"),
        ('{"shapes": [{"label": "a", "points": [[1, 2], [3]]}]}', 'cannot be read'),
        ('{"shapes": [{"label": "", "points": [[1, 2]]}]}', "label ''"),
        (
            '{"shapes": [{"label": "a", "points": [[1, 2], [3, 4]], "shape_type": "line"}]}',
            'a line with 2 points has no area',
        ),
        (
            '{"shapes": [{"label": "a", "points": [[1, 2]], "shape_type": "mask", "mask": "%"}]}',
            'not a PNG',
        ),
        ('{"shapes": [], "text": [3]}', 'expected a list of instructions'),
        ('{"shapes": [{"label": "target", "points": [[1, 2]]}]}', 'add "text"'),
    ],
)
def test_the_error_of_a_broken_file_says_what_was_expected(content, message, tmp_path):
    folder = write(tmp_path / 'a', 'good', [square('cup', 1, 1, 5)])
    write(folder, 'bad')
    (folder / 'bad.json').write_text(content)
    with pytest.raises(DataError) as caught:
        read_folder(folder)
    assert message in str(caught.value)
    assert str(folder / 'bad.json') in str(caught.value)


def test_a_folder_without_annotations_and_annotations_without_an_image_are_errors(tmp_path):
    with pytest.raises(DataError, match='no such folder'):
        read_folder(tmp_path / 'nowhere')
    Image.new('RGB', (4, 4)).save(tmp_path / 'one.png')
    with pytest.raises(DataError, match=r'1 images, none of them annotated.*labelme'):
        read_folder(tmp_path)
    (tmp_path / 'two.json').write_text('{"shapes": []}')
    with pytest.raises(DataError, match=r'two\.json: there is no image two '):
        read_folder(tmp_path)


def test_a_broken_image_is_an_error(tmp_path):
    folder = write(tmp_path / 'a', shapes=[square('cup', 1, 1, 5)])
    (folder / 'one.png').write_bytes(b'not an image')
    with pytest.raises(DataError, match=r'one\.png cannot be read as an image'):
        validation_sample(read_folder(folder)[0])


# ---- frames of a bag


def test_frames_of_a_bag_become_images_to_annotate(tmp_path, capsys):
    out = tmp_path / 'frames'
    command = ['frames', str(BAG), '--topic', '/camera/color/image_raw', '--out', str(out)]
    assert cli.main([*command, '--every', '1']) == 0
    assert '4 images' in capsys.readouterr().out
    stamps = sorted(int(path.stem) for path in out.iterdir())
    assert (np.diff(stamps) == 1_000_000_000).all()
    images = [np.asarray(Image.open(out / f'{stamp}.png')) for stamp in stamps]
    assert {image.shape for image in images} == {(240, 320, 3)}
    assert (images[0] != images[1]).mean() > 0.1
    (out / f'{stamps[0]}.json').write_text(json.dumps({'shapes': [square('mug', 9, 9, 50)]}))
    (image,) = read_folder(out)  # the others are not annotated yet
    assert image.path.stem == str(stamps[0])


def test_annotated_images_with_other_pixels_are_kept(tmp_path, capsys):
    """Frames of another topic with the same stamps replaced the pixels under the outlines."""
    out = tmp_path / 'frames'
    first, second, third, fourth = bag_frames.extract_frames(BAG, out, COLOUR, 1.0)
    with_json, with_masks = (path.with_suffix('') for path in (first, second))
    (out / f'{with_json.name}.json').write_text('{"shapes": []}')
    with_masks.mkdir()
    third.with_suffix('.json').write_text('{"shapes": []}')
    other = np.zeros((240, 320, 3), np.uint8)
    for path in (first, second, fourth):
        Image.fromarray(other).save(path)
    third.write_bytes(third.read_bytes()[:200])  # the disk was full
    command = ['frames', str(BAG), '--topic', COLOUR, '--every', '1', '--out', str(out)]
    assert cli.main(command) == 1
    printed = capsys.readouterr()
    assert '2 images' in printed.out
    assert f'{first}: {with_json.name}.json belongs to it' in printed.err
    assert f'{second}: {with_masks.name} belongs to it' in printed.err
    kept = [not np.asarray(Image.open(path)).any() for path in (first, second, third, fourth)]
    assert kept == [True, True, False, False]
    assert cli.main([*command, '--skip-broken']) == 0
    first.unlink()
    second.unlink()
    assert len(bag_frames.extract_frames(BAG, out, COLOUR, 1.0)) == 4
    assert len(bag_frames.extract_frames(BAG, out, COLOUR, 1.0)) == 4  # the same pixels


def test_the_error_lists_the_topics_and_names_a_missing_bag(tmp_path):
    expected = '/camera/aligned_depth_to_color/image_raw, /camera/color/image_raw'
    for topic in (None, '/image'):
        with pytest.raises(DataError, match=expected):
            bag_frames.extract_frames(BAG, tmp_path, topic)
    with pytest.raises(DataError, match='no bag at'):
        bag_frames.extract_frames(tmp_path / 'none', tmp_path)
    (tmp_path / 'broken.mcap').write_bytes(b'nothing')
    with pytest.raises(DataError, match='cannot be read as a rosbag2 bag'):
        bag_frames.extract_frames(tmp_path / 'broken.mcap', tmp_path)


# ---- duplicate and missing annotations


def test_shapes_and_masks_of_one_image_are_combined(tmp_path):
    folder = write(tmp_path / 'a', shapes=[square('cup', 5, 5, 9)])
    (folder / 'one').mkdir()
    Image.fromarray(np.full(SIZE, 255, np.uint8)).save(folder / 'one' / 'wall.png')
    (image,) = read_folder(folder)
    assert [query.text for query in image.queries] == ['cup', 'wall']


def test_a_text_without_shapes_is_an_absent_object(tmp_path):
    (image,) = read_folder(write(tmp_path / 'a', text=['the cat'], is_sentence=False))
    assert not image.queries[0].ground_truth(*SIZE).any()


# ---- skipped files


def test_broken_files_are_reported_and_the_rest_is_read(tmp_path):
    target = square('target', 5, 5, 9)
    folder = write(tmp_path / 'a', 'good', [target], text=['it'])
    write(folder, 'outside', [square('target', 500, 5, 9)], text=['it'])
    write(folder, 'ignored', [square('ignore', 5, 5, 9)], text=['it'])
    write(folder, 'empty', [target], text=['it'])
    (folder / 'empty.png').write_bytes(b'')
    (folder / 'alone.json').write_text(json.dumps({'shapes': [target], 'text': ['it']}))
    Image.new('RGB', (9, 9)).save(folder / 'unlabelled.png')
    Image.new('RGB', (9, 9)).save(folder / 'good.jpg')
    errors = []
    assert [image.path.stem for image in read_folder(folder, errors.append)] == ['good']
    messages = {
        'alone': 'there is no image alone', 'empty': 'cannot be read',
        'outside': 'lies outside of the image',
        'ignored': 'only ignored shapes', 'good': 'has the same stem; rename one',
    }  # fmt: skip
    assert len(errors) == len(messages)
    for error in errors:
        (name,) = [name for name in messages if f'{name}.' in str(error).split(':')[0]]
        assert messages[name] in str(error)


@pytest.mark.parametrize('suffix', ['.jpg', '.JPEG', '.tiff', '.gif', '.webp', '.bmp'])
def test_a_mask_that_is_no_png_is_an_error(suffix, tmp_path):
    (tmp_path / 'table').mkdir()
    pixels = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    pixels.save(tmp_path / 'table.png')
    pixels.save(tmp_path / 'table' / 'bowl.png')
    pixels.save(tmp_path / 'table' / f'mug{suffix}')
    with pytest.raises(DataError, match=r'mug.*: a mask as .*; expected PNG: save it as mug\.png'):
        read_folder(tmp_path)
