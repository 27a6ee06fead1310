# SPDX-License-Identifier: Apache-2.0
"""Targets: image files, masks, bags, labels, files of an evaluation, and sound."""

import contextlib
import functools
import io
import json
import pickle
import struct
import tempfile
import wave
from pathlib import Path
from types import SimpleNamespace

import bag_kinds
import numpy as np
from message_targets import COLOURS, DEPTH, HEIGHT, MAX_PIXELS, WIDTH, encoded
from PIL import Image
from target import Target, write_documents

from lisa_ros.datasets.coco import read_coco
from lisa_ros.datasets.llava import read_llava
from lisa_ros.datasets.reasonseg import read_folder
from lisa_ros.datasets.refer import read_refer
from lisa_ros.errors import LisaError
from lisa_ros.evaluation.command_file import read_commands
from lisa_ros.evaluation.report_files import read_cases, read_report
from lisa_ros.images.image_file import decode_rgb
from lisa_ros.images.mask_file import read_mask
from lisa_ros.messages.bag import read_images
from lisa_ros.voice.audio import read_wav

DATA = Path(__file__).parents[1] / 'data'

# ---- images and masks


def image_file_seeds():
    kinds = ('JPEG', 'PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM', 'JPEG2000')
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    return [
        *(encoded(COLOURS, kind) for kind in kinds),
        encoded(COLOURS, 'JPEG', exif=exif),
        encoded(DEPTH, 'PNG'),
        encoded(DEPTH / np.float32(1000), 'TIFF'),
    ]


def read_image_file(content, folder):
    pixels = decode_rgb(content, 'image', max_pixels=MAX_PIXELS)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)


def mask_seeds():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:7, 3:9] = 1
    palette = Image.fromarray(mask)
    palette.putpalette([0, 0, 0, 200, 30, 30])
    stream = io.BytesIO()
    palette.save(stream, 'PNG')
    cut_out = np.dstack([COLOURS, mask * 255])
    return [
        encoded(mask * 255, 'PNG'),
        encoded(mask.astype(np.uint16) * 300, 'PNG'),
        encoded(np.dstack([mask * 255] * 3), 'PNG'),
        encoded(cut_out, 'PNG'),
        stream.getvalue(),
    ]


def read_mask_file(content, folder):
    image = read_mask(content, 'mask', MAX_PIXELS)
    for read in (image.mask, image.ids):
        with contextlib.suppress(LisaError):
            assert read().ndim == 2


# ---- bags


def frames():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    return [SimpleNamespace(stamp=10**9 * n, pixels=pixels + n) for n in range(1, 4)]


@functools.cache
def bag_seed(kind, pattern):
    with tempfile.TemporaryDirectory() as folder:
        bag = bag_kinds.KINDS[kind](Path(folder) / f'bag_{kind}', frames())
        (file,) = bag.glob(pattern) if bag.is_dir() else [bag]
        return file.read_bytes()


def bag_seeds(suffix, *kinds):
    return [bag_seed(kind, f'*{suffix}') for kind in kinds]


def read_bag(suffix, content, folder):
    bag = folder / f'bag{suffix}'
    bag.write_bytes(content)
    for on_error in ([].append, None):
        arguments = {} if on_error is None else {'on_error': on_error}
        with contextlib.suppress(LisaError):
            for frame in read_images(bag, **arguments):
                assert frame.pixels.dtype == np.uint8


def bag_target(suffix, *kinds):
    return Target(
        functools.partial(read_bag, suffix), functools.partial(bag_seeds, suffix, *kinds)
    )


# ---- labels


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_jpeg())


@functools.cache
def _jpeg():
    return encoded(COLOURS, 'JPEG')


def ground_truths(images):
    """Paint the masks of all queries, as evaluation and training do after their check."""
    for image in images:
        for query in image.queries:
            with contextlib.suppress(LisaError):
                query.check(HEIGHT, WIDTH)
                query.ground_truth(HEIGHT, WIDTH)


def in_both_modes(read):
    """Read with --skip-broken, and without."""
    skipped = []
    try:
        result = read(skipped.append)
    except LisaError:
        result = []
    for error in skipped:
        assert '\n' not in str(error)

    def stop(error):
        raise error

    read(stop)
    return result


INSTANCES = {
    'images': [{'id': 7, 'file_name': '7.jpg', 'height': HEIGHT, 'width': WIDTH}],
    'categories': [{'id': 3, 'name': 'cup'}],
    'annotations': [
        {'id': 1, 'image_id': 7, 'category_id': 3, 'segmentation': [[2, 2, 9, 2, 9, 8, 2, 8]]},
        {
            'id': 2,
            'image_id': 7,
            'category_id': 3,
            'iscrowd': 1,
            'segmentation': {'size': [HEIGHT, WIDTH], 'counts': [20, 12, HEIGHT * WIDTH - 32]},
        },
        {
            'id': 3,
            'image_id': 7,
            'category_id': 3,
            'segmentation': {'size': [HEIGHT, WIDTH], 'counts': 'V166000000000b2'},
        },
    ],
}


def read_coco_file(content, folder):
    write_image(folder / '7.jpg')
    (folder / 'instances.json').write_bytes(content)
    ground_truths(
        in_both_modes(
            lambda on_error: read_coco(folder / 'instances.json', folder, on_error=on_error)
        )
    )


LABELME = {
    'version': '5.5.0',
    'flags': {},
    'imagePath': 'one.png',
    'imageHeight': HEIGHT,
    'imageWidth': WIDTH,
    'text': ['what holds the coffee'],
    'is_sentence': True,
    'shapes': [
        {'label': 'target', 'shape_type': 'polygon', 'points': [[2, 2], [9, 2], [9, 8]]},
        {'label': 'ignore', 'shape_type': 'rectangle', 'points': [[2, 2], [9, 7]]},
        {'label': 'target', 'shape_type': 'circle', 'points': [[7, 6], [9, 6]]},
    ],
}


def read_labelme(content, folder):
    write_image(folder / 'one.jpg')
    (folder / 'one.json').write_bytes(content)
    ground_truths(in_both_modes(lambda on_error: read_folder(folder, on_error)))


REFS = [
    {
        'ref_id': 0,
        'image_id': 7,
        'ann_id': 1,
        'category_id': 3,
        'split': 'train',
        'sentences': [{'sent': 'the left cup', 'sent_id': 0}],
    }
]


def refer_seeds():
    pickles = [pickle.dumps(REFS, protocol=protocol) for protocol in (0, 2, 4)]
    return [json.dumps(REFS).encode(), *pickles]


def read_refer_folder(content, folder):
    root = folder / 'refer_seg' / 'refcoco'
    root.mkdir(parents=True)
    (root / 'instances.json').write_text(json.dumps(INSTANCES))
    name = 'refs(unc).json' if content[:1] in b'[{' else 'refs(unc).p'
    (root / name).write_bytes(content)
    write_image(folder / 'refer_seg/images/mscoco/images/train2014/7.jpg')
    ground_truths(in_both_modes(lambda on_error: read_refer(root, on_error=on_error)))


DIALOGUES = [
    {
        'id': '1',
        'image': '7.jpg',
        'conversations': [
            {'from': 'human', 'value': '<image>\nWhat is this?'},
            {'from': 'gpt', 'value': 'A cup.'},
        ],
    }
]


def read_llava_file(content, folder):
    write_image(folder / '7.jpg')
    (folder / 'dialogues.json').write_bytes(content)
    in_both_modes(
        lambda on_error: read_llava(folder / 'dialogues.json', folder, on_error=on_error)
    )


# ---- evaluation


COMMANDS = [
    {'text': 'the red mug', 'at': 1.5, 'targets': [1, 2]},
    {'text': 'the mug', 'frame': 2, 'absent': True, 'category': 'absent'},
    {'text': 'the other one', 'dialogue': 1, 'label': 'mug'},
    'the blue bowl',
]


def commands_seeds():
    import yaml

    return [json.dumps(COMMANDS).encode(), yaml.safe_dump(COMMANDS).encode()]


def read_commands_file(content, folder):
    (folder / 'commands.yaml').write_bytes(content)
    read_commands(folder / 'commands.yaml')


CASE = {
    'name': 'a',
    'group': '',
    'category': 'command',
    'expression': '',
    'query': 'the mug',
    'answer': 'Sure',
    'status': 'FOUND',
    'present': True,
    'found': True,
    'iou': 0.5,
    'intersection': 5,
    'union': 10,
    'boundary_f': None,
    'scores': [0.5],
    'image': 'images/a.jpg',
}
REPORT = {
    'title': 'test',
    'mode': 'images',
    'settings': {'model': 'lisa-tabletop'},
    'figures': {'all': {'count': 1}},
    'broken': [],
    'cases': [CASE],
}
TIMINGS = {'machine': {'cpu': 'x'}, 'cases': {'a': {'total': 0.1}}, 'to_mask': {'a': 0.1}}


def read_report_folder(content, folder):
    write_documents(content, folder, ('report.json', 'timings.json'))
    write_image(folder / 'images/a.jpg')
    read_cases(read_report(folder), folder, 'a/')


# ---- sound


PCM = struct.pack('<H', 1)


def wav_seeds():
    stream = io.BytesIO()
    with wave.open(stream, 'wb') as file:
        file.setparams((2, 2, 22050, 0, 'NONE', ''))
        file.writeframes(bytes(range(200)))
    plain = stream.getvalue()
    subformat = struct.pack('<HI', 16, 0) + PCM + bytes.fromhex('000000001000800000aa00389b71')
    form = (
        struct.pack('<HHIIHH', 0xFFFE, 1, 16000, 32000, 2, 16) + struct.pack('<H', 22) + subformat
    )
    body = b'WAVEfmt ' + struct.pack('<I', len(form)) + form + b'data' + struct.pack('<I', 100)
    extensible = b'RIFF' + struct.pack('<I', len(body) + 100) + body + bytes(100)
    return [plain, extensible, (DATA / 'voice/stop.wav').read_bytes()[:1000]]


def read_wav_bytes(content, folder):
    (folder / 'a.wav').write_bytes(content)
    samples = read_wav(folder / 'a.wav')
    assert samples.ndim == 1
    assert samples.dtype == np.float32


def json_seeds(*documents):
    return [json.dumps(document).encode() for document in documents]


TARGETS = {
    'image_file': Target(read_image_file, image_file_seeds),
    'mask_file': Target(read_mask_file, mask_seeds),
    'bag_mcap': bag_target('.mcap', 'mcap', 'compressed_chunks'),
    'bag_sqlite': bag_target('.db3', 'sqlite3'),
    'bag_ros1': bag_target('.bag', 'ros1.bag'),
    'coco': Target(read_coco_file, functools.partial(json_seeds, INSTANCES), is_json=True),
    'labelme': Target(read_labelme, functools.partial(json_seeds, LABELME), is_json=True),
    'refer': Target(read_refer_folder, refer_seeds, is_json=True),
    'llava': Target(read_llava_file, functools.partial(json_seeds, DIALOGUES), is_json=True),
    'commands_file': Target(read_commands_file, commands_seeds, is_json=True),
    'report': Target(
        read_report_folder,
        functools.partial(json_seeds, {'report.json': REPORT, 'timings.json': TIMINGS}),
        is_json=True,
    ),
    'wav': Target(read_wav_bytes, wav_seeds),
}
