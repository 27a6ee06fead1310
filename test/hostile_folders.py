# SPDX-License-Identifier: Apache-2.0
"""Model folders that claim more than they hold, or are damaged: small changes of a toy LISA.

Each function changes a folder in place. `RELEASED` changes one in the released layout, `OWN` one
in our own. The values are (change, a pattern of the error that names the fault).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import torch
from golden import DATA
from safetensors.torch import load_file, save_file

BILLION, NAN = 10**9, float('nan')
NORM = 'model.norm.weight'  # (64,)


def make_released(folder: Path) -> Path:
    """Write a LISA in the released layout, with its CLIP inside."""
    shutil.copytree(DATA / 'ckpt_256', folder)
    shutil.copytree(DATA / 'clip_256', folder / 'clip')
    set_keys('config.json', mm_vision_tower='clip')(folder)
    return folder


# ---- JSON


def set_keys(name, part='', **values):
    """Set keys of a JSON file, or of the object `part` in it ("sam.vision_config")."""

    def change(folder):
        content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        target = content
        for key in filter(None, part.split('.')):
            target = target[key]
        target.update(values)
        (folder / name).write_text(json.dumps(content))

    return change


def write(name, content):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)

    return change


def replace(name, make):
    def change(folder):
        (folder / name).unlink()
        make(folder / name)

    return change


# ---- weights in the released layout


def weights(**changes):
    """Set weights of pytorch_model.bin; None removes one."""

    def change(folder):
        path = folder / 'pytorch_model.bin'
        state = torch.load(path, weights_only=True) | {
            k.replace('__', '.'): v for k, v in changes.items()
        }
        torch.save({key: value for key, value in state.items() if value is not None}, path)

    return change


def stride_zero(folder):
    """A weight of 150 GB from one number."""
    weights(**{'model.norm.weight': torch.zeros(1).expand(200_000, 200_000)})(folder)


def rewrite_zip(folder, change_entry, compression=zipfile.ZIP_STORED, extra=()):
    """Write pytorch_model.bin again, with other entries."""
    path = folder / 'pytorch_model.bin'
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name, content in [*entries.items(), *extra]:
            archive.writestr(name, change_entry(name, content))


def compressed(folder):
    """An entry that expands to 50 MB."""
    zeros = bytes(50_000_000)
    rewrite_zip(
        folder,
        lambda name, content: zeros if name.endswith('/0') else content,
        zipfile.ZIP_DEFLATED,
    )


def two_entries(folder):
    rewrite_zip(folder, lambda _, content: content, extra=[('pytorch_model/DATA.pkl', b'.')])


def shifted(folder):
    """A second archive before the first: zipfile reads the last one, another program the first."""
    rewrite_zip(folder, lambda _, content: content)
    path = folder / 'pytorch_model.bin'
    path.write_bytes(path.read_bytes() * 2)


def two_ends(folder):
    """The end record of a large archive that points to another one."""
    path = folder / 'pytorch_model.bin'
    content = path.read_bytes()
    size, offset = struct.unpack_from('<II', content, len(content) - 10)
    record = struct.pack('<IQHHIIQQQQ', 0x06064B50, 44, 45, 45, 0, 0, 9, 9, size, offset)
    locator = struct.pack('<IIQI', 0x07064B50, 0, 0, 1)
    path.write_bytes(content[:-22] + record + locator + content[-22:])


def short_storage(folder):
    rewrite_zip(folder, lambda name, content: content[:4] if name.endswith('/3') else content)


def overlapping(folder):
    """A list of entries of 60 MB that shows the same bytes again and again."""
    path = folder / 'pytorch_model.bin'
    content = path.read_bytes()
    size, start = struct.unpack_from('<II', content, len(content) - 10)
    count = 60_000_000 // size
    end = struct.pack('<IHHHHIIH', 0x06054B50, 0, 0, 9, 9, count * size, start, 0)
    path.write_bytes(content[:start] + content[start : start + size] * count + end)


def damage(name, old, new):
    def change(folder):
        content = (folder / name).read_bytes()
        assert old in content
        (folder / name).write_bytes(content.replace(old, new))

    return change


def cut(name, size):
    def change(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:size])

    return change


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def content(value, **options):
    """Replace the weights by the pickle of a value."""

    def change(folder):
        torch.save(value, folder / 'pytorch_model.bin', **options)

    return change


STORAGE = torch.zeros(4)


def typed_storage():
    untyped = STORAGE.untyped_storage()
    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=torch.float32, _internal=True)


class Oversized:
    """A tensor of 10^11 numbers in a storage of four: torch would enlarge the storage."""

    def __reduce__(self):
        storage = typed_storage()
        size = (10**11,)
        return torch._utils._rebuild_tensor_v2, (storage, 0, size, (1,), False, OrderedDict())


class Hiding:
    """A small tensor whose hooks hide a large one."""

    def __reduce__(self):
        arguments = (typed_storage(), 0, (4,), (1,), False, OrderedDict(hook=Oversized()))
        return torch._utils._rebuild_tensor_v2, arguments


def shared(folder):
    """3000 weights that all show the same 400 kB."""
    tensor = torch.zeros(100_000)
    torch.save({f'w{i}': tensor for i in range(3000)}, folder / 'pytorch_model.bin')


def plain_pickles(main, keys=()):
    """The format before PyTorch 1.6, with this main pickle and list of storages."""

    def change(folder):
        magic = 0x1950A86A20F9469CFC6C
        parts = (magic, 1001, {'little_endian': True}, main, list(keys))
        stream = io.BytesIO()
        for part in parts:
            _StoragePickler(stream, protocol=2).dump(part)
        (folder / 'pytorch_model.bin').write_bytes(stream.getvalue() + bytes(64))

    return change


class PlainTensor:
    """A tensor of 150 GB in the format before PyTorch 1.6; its storage is allocated first."""

    def __reduce__(self):
        storage = ClaimedStorage()
        arguments = (storage, 0, (4 * 10**10,), (1,), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class ClaimedStorage:
    pass


class _StoragePickler(pickle._Pickler):
    def persistent_id(self, value):
        if isinstance(value, ClaimedStorage):
            return 'storage', torch.FloatStorage, '0', 'cpu', 4 * 10**10, None
        return None


def many_names(folder):
    """30000 weights, and one block of numbers for all of them."""
    tensor = torch.zeros(1)
    torch.save({f'w{i}': tensor for i in range(30_000)}, folder / 'pytorch_model.bin')


# ---- safetensors


def safetensors(header, size=8, length=None):
    """Replace the weights by a safetensors file with this header and zeros."""

    def change(folder):
        (folder / 'pytorch_model.bin').unlink()
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        start = struct.pack('<Q', len(text) if length is None else length)
        (folder / 'model.safetensors').write_bytes(start + text + bytes(size))

    return change


def entry(shape, end=8, dtype='F32', start=0):
    return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, end]}


def sparse(folder):
    """A file of 100 GB that is all hole."""
    size = 100 * BILLION
    safetensors({'model.norm.weight': entry([size // 4], size)}, 0)(folder)
    with (folder / 'model.safetensors').open('r+b') as file:
        file.truncate(file.seek(0, 2) + size)


def shards(weight_map=None, **states):
    """Replace the weights by shards with an index."""

    def change(folder):
        (folder / 'pytorch_model.bin').unlink()
        for name, state in states.items():
            save_file(state, folder / f'{name}.safetensors')
        own = {key: f'{name}.safetensors' for name, state in states.items() for key in state}
        index = {'weight_map': own if weight_map is None else weight_map}
        write('model.safetensors.index.json', index)(folder)

    return change


A = {'a': torch.zeros(2)}
B = {'b': torch.zeros(2)}
NESTED = b'[' * 100_000
DEEP = b'{"x":' * 100 + b'1' + b'}' * 100
INSIDE = 'its own folder'


def index_of(name):
    return shards({'a': name}, **{'model-1': A})


RELEASED = {
    # counts and sizes
    'a layer with a huge number': (
        weights(**{'model.layers.999999999.mlp.up_proj.weight': torch.zeros(1)}),
        r'layers\.999999999\.\*, but none of model\.layers\.2\.',
    ),
    'a layer with a number of 5000 digits': (
        weights(**{f'model.layers.{"9" * 5000}.mlp.up_proj.weight': torch.zeros(1)}),
        r'but none of model\.layers\.2\.',
    ),
    'a block of SAM with a huge number': (
        weights(**{'model.visual_model.image_encoder.blocks.123456789.norm1.bias': STORAGE}),
        r'blocks\.123456789\.\*, but none',
    ),
    'a decoder layer with a huge number': (
        weights(**{
            'model.visual_model.mask_decoder.transformer.layers.123456789.norm1.bias': STORAGE
        }),
        r'layers\.123456789\.\*, but none',
    ),
    'a long name': (
        set_keys('config.json', mm_vision_tower='a' * 5000),
        r'mm_vision_tower is .a+\.\.\.a+.; expected a text of at most 1000',
    ),
    'num_hidden_layers': (
        set_keys('config.json', num_hidden_layers=BILLION),
        'num_hidden_layers is 1000000000; expected at most 2',
    ),
    'hidden_size': (set_keys('config.json', hidden_size=BILLION), 'hidden_size is 1000000000'),
    'vocab_size': (set_keys('config.json', vocab_size=10**12), 'vocab_size is 10+;'),
    'intermediate_size': (set_keys('config.json', intermediate_size=10**30), 'intermediate_size'),
    'head_dim': (set_keys('config.json', head_dim=10**15), r'config\.json|another shape'),
    'head_dim beyond 64 bits': (set_keys('config.json', head_dim=10**30), 'config'),
    'max_position_embeddings': (
        set_keys('config.json', max_position_embeddings=10**18),
        'max_position_embeddings is 10+; expected .* at most',
    ),
    'num_key_value_heads': (
        set_keys('config.json', num_key_value_heads=BILLION),
        'num_key_value_heads is 1000000000',
    ),
    'rope_scaling': (
        set_keys('config.json', rope_scaling={'type': 'linear', 'factor': 0}),
        'rope|rotary|config',
    ),
    'rope_theta': (set_keys('config.json', rope_theta=0), 'no finite rotary positions'),
    'layers of CLIP': (
        set_keys('clip/config.json', num_hidden_layers=BILLION),
        r'clip\.num_hidden_layers claims 1000000000 modules, the weights have 3',
    ),
    'image_size of CLIP': (
        set_keys('clip/config.json', image_size=14 * BILLION),
        'image_size is 14000000000; .*max_input_side',
    ),
    'patches of CLIP': (set_keys('clip/config.json', patch_size=1), 'heads over 50176 patches'),
    'width of CLIP': (set_keys('clip/config.json', hidden_size=4 * BILLION), 'no model that can'),
    'channels of CLIP': (
        set_keys('clip/config.json', num_channels=BILLION),
        'num_channels is 1000000000; expected 3',
    ),
    'labels of CLIP': (
        set_keys('clip/config.json', num_labels=BILLION, num_hidden_layers=4),
        'claims 4 modules',
    ),
    'preprocessing': (
        set_keys('clip/preprocessor_config.json', size={'shortest_edge': 1_000_000}),
        'makes images of 1000000 pixels',
    ),
    # the tokenizer
    'the id of a token': (
        write('added_tokens.json', {'[SEG]': BILLION, '<im_start>': 705, '<im_end>': 706}),
        'tokenizer has 1000000001 tokens',
    ),
    'a token without text': (
        write('added_tokens.json', {'[SEG]': 704, '': 705}),
        'an added token has no text',
    ),
    'two tokens of one id': (
        write('added_tokens.json', {'[SEG]': 704, '<im_start>': 704, '<im_end>': 706}),
        'two added tokens have the id 704',
    ),
    'a token of two ids': (
        set_keys('tokenizer_config.json', added_tokens_decoder={'705': {'content': '[SEG]'}}),
        r"added_tokens.json: gives '\[SEG\]' the id 704, and tokenizer_config.json the id 705",
    ),
    'many tokens': (
        write('added_tokens.json', {f't{i}': 704 + i for i in range(20_000)}),
        '20000 added tokens',
    ),
    'no end of an answer': (
        write('special_tokens_map.json', {'eos_token': '<|never|>'}),
        r'eos_token is .<\|never\|>.',
    ),
    'a large tokenizer': (
        lambda folder: os.truncate(folder / 'tokenizer.model', BILLION),
        'tokenizer.model: has 1000000000 bytes',
    ),
    'a damaged tokenizer': (write('tokenizer.model', b'\x0a\xff\xff\x0f'), 'tokenizer.model'),
    'a piece that is not UTF-8': (damage('tokenizer.model', b'object', b'ob\xbd\xbdct'), 'utf-8'),
    'an empty tokenizer': (write('tokenizer.model', b''), 'tokenizer.model'),
    # .bin
    'a stride of 0': (stride_zero, r'claims 160000000000 bytes, its storage has 4'),
    'a size beyond its storage': (content({'a': Oversized()}), 'claims 400000000000 bytes'),
    'a size hidden in hooks': (content({'a': Hiding()}), 'claims 400000000000 bytes'),
    'compressed entries': (compressed, 'is compressed and claims'),
    'two entries of one name': (two_entries, 'two entries of one name'),
    'an archive behind another': (shifted, 'bytes before its beginning'),
    'an archive with two ends': (two_ends, 'the zip archive has two ends'),
    'an entry that is too short': (short_storage, r"storage '3' claims \d+ bytes, .* has 4"),
    'a huge list of entries': (overlapping, 'list of entries of'),
    'a cut archive': (cut('pytorch_model.bin', 900_000), 'zip archive is missing'),
    'weights that share bytes': (shared, r'claim 1200000000 bytes together and share'),
    'many names': (many_names, 'more than 16384 weights|share'),
    'a call of bytearray': (content({'a': Call(bytearray, 10**11)}), r'calls \w+\.bytearray'),
    'a call of Tensor': (content({'a': Call(torch.Tensor, 10**11)}), 'calls torch.*Tensor'),
    'a call of a command': (content({'a': Call(os.mkdir, 'ran')}), 'could run code'),
    'a list': (content([torch.zeros(1)]), 'holds list'),
    'a dict in a dict': (content({'model': {'a': torch.zeros(1)}}), "holds 'model' of type dict"),
    'numbers': (content({'step': 3}), "holds 'step' of type int"),
    'a plain pickle that claims 160 GB': (
        plain_pickles({'a': PlainTensor()}),
        'claim 160000000000 bytes, the file has',
    ),
    'a plain pickle that calls bytearray': (
        plain_pickles({}, keys=[Call(bytearray, 10**11)]),
        r'calls \w+\.bytearray',
    ),
    'a pickle with a huge memo': (
        write('pytorch_model.bin', b'\x80\x02}r\xff\xff\xff\x7f.' * 5),
        'with 0 weights',
    ),
    'a sparse pickle': (
        lambda folder: os.truncate(folder / 'pytorch_model.bin', 100 * BILLION),
        'are holes without data',
    ),
    # safetensors
    'a header of 2^63 bytes': (safetensors({}, length=2**63), r'claims a header of 922\d+ bytes'),
    'a header beyond the file': (safetensors({}, length=1000), 'claims a header of 1000 bytes'),
    'data beyond the file': (
        safetensors({'a': entry([10**9], 4 * 10**9)}),
        'cannot be read as a safetensors file',
    ),
    'a shape beyond 64 bits': (
        safetensors({'a': entry([10**12, 10**12])}),
        'cannot be read as a safetensors file',
    ),
    'overlapping weights': (
        safetensors({'a': entry([2]), 'b': entry([2])}),
        'cannot be read as a safetensors file',
    ),
    'a name that occurs twice': (
        safetensors(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": '
                    b'{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'),
        "the key 'a' occurs twice",
    ),
    'a nested header': (safetensors(NESTED), 'cannot be read as JSON'),
    'a sparse file of 100 GB': (sparse, 'are holes without data'),
    'tied weights that differ': (
        set_keys('config.json', tie_word_embeddings=True),
        'tie_word_embeddings is true, but the weights lm_head and embed_tokens differ',
    ),
    # two sets of weights: transformers would load the whole file, and we the shards
    'weights in one file and in shards': (
        write('pytorch_model.bin.index.json', {'weight_map': {'a': 'pytorch_model-1.bin'}}),
        r'has pytorch_model\.bin and pytorch_model\.bin\.index\.json; expected one of them',
    ),
    'an update that is not merged': (
        write('adapter_config.json', {'peft_type': 'LORA'}),
        'adapter_config.json, of an update that is not merged: merge it',
    ),
    'a vision tower in one file and in shards': (
        write('clip/pytorch_model.bin.index.json', {'weight_map': {'a': 'pytorch_model-1.bin'}}),
        r'clip has pytorch_model\.bin and .*; expected one of them',
    ),
    # shards
    'a shard in the parent folder': (index_of('../model-1.safetensors'), INSIDE),
    'a shard with a full path': (index_of('/etc/passwd'), INSIDE),
    'a shard that is a config': (index_of('config.json'), r'expected the name of a \.safetensors'),
    'a shard of another format': (index_of('pytorch_model.bin'), INSIDE),
    'a shard with a path of Windows': (index_of('..\\model-1.safetensors'), INSIDE),
    'a shard without name': (index_of(''), INSIDE),
    'a shard with a NUL': (index_of('a\0.safetensors'), 'a.*safetensors'),
    'a shard that is a number': (index_of(7), 'weight_map.a is 7; expected a text'),
    'a shard that is missing': (index_of('model-2.safetensors'), 'not there: model-2.safetensors'),
    'an index that is a list': (shards(weight_map=['model-1'], **{'model-1': A}), 'weight_map is'),
    'an index without weights': (shards(weight_map={}), 'not there: none'),
    'a weight that no shard has': (
        shards({'a': 'model-1.safetensors', 'b': 'model-1.safetensors'}, **{'model-1': A}),
        'names weights that no shard has: b',
    ),
    'a weight in two shards': (
        shards({'a': 'x.safetensors', 'b': 'y.safetensors'}, x=A, y=A | B),
        'a is in an earlier shard, too',
    ),
    # JSON
    'nested lists': (write('config.json', NESTED), 'nested too deeply|cannot be read as JSON'),
    'nested objects': (write('config.json', DEEP), 'more than 32 levels'),
    'a key twice': (write('config.json', b'{"a": 1, "a": 2}'), "key 'a' occurs twice"),
    'a config of 9 MB': (write('config.json', {'a': 'x' * 9_000_000}), 'has 9000009 bytes'),
    'NaN': (write('config.json', b'{"rms_norm_eps": NaN}'), 'NaN is not a number in JSON'),
    'not UTF-8': (write('config.json', b'{"a": "\xff\xfe"}'), 'cannot be read as JSON'),
    'a number of 9000 digits': (write('config.json', b'{"a": ' + b'9' * 9000 + b'}'), 'as JSON'),
    # files that are none
    'a config that is a pipe': (replace('config.json', os.mkfifo), 'is a pipe; expected a file'),
    'weights that are a pipe': (replace('pytorch_model.bin', os.mkfifo), 'is a pipe'),
    'a tokenizer that is a pipe': (replace('tokenizer.model', os.mkfifo), 'is a pipe'),
    'weights that are a folder': (replace('pytorch_model.bin', Path.mkdir), 'is a folder'),
    'a config that is a device': (
        replace('config.json', lambda path: path.symlink_to('/dev/zero')),
        'is a device; expected a file',
    ),
    'weights that are a device': (
        replace('pytorch_model.bin', lambda path: path.symlink_to('/dev/zero')),
        'is a device',
    ),
    'a link to nothing': (
        replace('pytorch_model.bin', lambda path: path.symlink_to('/nowhere/x')),
        r'no such file or folder \(a link to /nowhere/x\)',
    ),
    'a link to itself': (
        replace('config.json', lambda path: path.symlink_to(path)),
        'symbolic links',
    ),
    # numbers
    'integers': (weights(**{NORM: torch.zeros(64, dtype=torch.int8)}), 'is torch.int8'),
    'booleans': (weights(**{'lm_head.weight': torch.zeros(707, 64) > 0}), 'is torch.bool'),
    'complex numbers': (
        weights(**{'model.norm.weight': torch.zeros(64, dtype=torch.complex64)}),
        'no block of real numbers',
    ),
    'NaN in a weight': (
        weights(**{'model.norm.weight': torch.full((64,), torch.nan)}),
        'weight model.norm.weight has NaN or infinite numbers',
    ),
    'infinity in a weight': (
        weights(**{'model.mm_projector.bias': torch.full((64,), -torch.inf)}),
        'weight model.mm_projector.bias has NaN or infinite',
    ),
    'numbers beyond float32': (
        weights(**{'model.mm_projector.bias': torch.full((64,), 1e300, dtype=torch.float64)}),
        'overflows as float32: its largest number is',
    ),
    'weights without numbers': (
        weights(**{'lm_head.weight': torch.zeros(10**9, 0)}),
        'weights without numbers: llm.lm_head.weight',
    ),
}  # fmt: skip


# ---- our own layout


def own_weights(name='model.safetensors', **changes):
    def change(folder):
        state = load_file(folder / name) if (folder / name).exists() else {}
        save_file(state | {k.replace('__', '.'): v for k, v in changes.items()}, folder / name)

    return change


config = partial(set_keys, 'config.json')
additions = partial(own_weights, 'model_additions.safetensors')
WEIGHT = 'llm.model.norm.weight'
MATRIX = 'llm.lm_head.weight'  # (707, 64)
CLAIMS = 'claims 1000000000 modules, the weights have'
OWN = {
    'weights in one file and in shards': (
        write('model.safetensors.index.json', {'weight_map': {'a': 'model-1.safetensors'}}),
        r'has model\.safetensors and model\.safetensors\.index\.json; expected one of them',
    ),
    'a config in UTF-16': (
        write('config.json', '{"model_type": "lisa_ros"}'.encode('utf-16')),
        'config.json: cannot be read as JSON .*utf-8.*; save it as UTF-8, or download it again',
    ),
    'layers of LLaMA': (config('llama', num_hidden_layers=BILLION), rf'llama.*{CLAIMS} 2'),
    'layers of CLIP': (config('clip', num_hidden_layers=BILLION), rf'clip.*{CLAIMS} 3'),
    'layers of SAM': (
        config('sam.vision_config', num_hidden_layers=BILLION), rf'sam\.vision.*{CLAIMS}',
    ),
    'layers of the decoder': (
        config('sam.mask_decoder_config', num_hidden_layers=BILLION), rf'decoder.*{CLAIMS} 2',
    ),
    'masks of the decoder': (
        config('sam.mask_decoder_config', num_multimask_outputs=BILLION),
        'num_multimask_outputs claims 1000000001 modules',
    ),
    'layers of the IoU head': (
        config('sam.mask_decoder_config', iou_head_depth=BILLION), 'iou_head_depth claims',
    ),
    'points of the prompt encoder': (
        config('sam.prompt_encoder_config', num_point_embeddings=BILLION), CLAIMS,
    ),
    'no layers': (config('llama', num_hidden_layers=0), 'claims 0 modules, the weights have 2'),
    'width of LLaMA': (config('llama', hidden_size=4 * BILLION), 'another shape|can be built'),
    'no heads': (config('llama', num_attention_heads=0), 'heads is 0; expected 1'),
    'vocabulary': (config('llama', vocab_size=10**12), 'another shape'),
    'image_size of SAM': (
        config('sam.vision_config', image_size=16 * 10**6),
        'image_size is 16000000; .*max_input_side',
    ),
    'image_size of the prompt encoder': (
        config('sam.prompt_encoder_config', image_size=16 * 10**6),
        'image_size is 16000000; expected 256',
    ),
    'windows of SAM': (
        config('sam.vision_config', window_size=10**6), '1000000000000 patches.*max_input_side',
    ),
    'heads of SAM': (config('sam.vision_config', num_attention_heads=10**7), 'heads over'),
    'width of the decoder': (
        config('sam.mask_decoder_config', hidden_size=64), r'hidden_size is 64; expected 32',
    ),
    'a list as image_size': (
        config('clip', image_size=[224, 224]),
        r'clip\.image_size is \[224, 224\]; expected an integer',
    ),
    'a text as width': (config('clip', hidden_size='32'), 'not a config of CLIPVisionConfig'),
    'an epsilon below 0': (config('llama', rms_norm_eps=-1.0), 'rms_norm_eps is -1'),
    'an unknown key': (config(num_labels=BILLION), "the key 'num_labels' is unknown"),
    'a threshold': (config(confidence_threshold=7), 'confidence_threshold is 7; expected 0 to 1'),
    'a calibration': (config(calibration=[1, 2]), 'calibration is .*; expected 4 numbers'),
    'a curve': (config(calibration_curve=[[0.5, 2]]), 'calibration_curve is .*; expected pairs'),
    'a curve that falls': (config(calibration_curve=[[1, 1], [0, 0]]), 'in rising order'),
    'an id as text': (config(seg_token_id='704'), "seg_token_id is '704'; expected an integer"),
    'a template that is a list': (config(template=['plain']), 'template is .*; expected a text'),
    'a missing part': (write('config.json', {'model_type': 'lisa_ros'}), 'clip is missing'),
    'integers': (own_weights(**{WEIGHT: torch.zeros(64, dtype=torch.int32)}), 'is torch.int32'),
    'NaN in a weight': (own_weights(**{WEIGHT: torch.full((64,), NAN)}), f'{WEIGHT} has NaN'),
    'an update of another model': (additions(other=torch.zeros(1)), 'belongs to another model'),
    'an update without shape': (additions(**{f'{MATRIX}.up': torch.zeros(())}), 'expected'),
    'an update without its half': (
        additions(**{f'{MATRIX}.down': torch.zeros(2, 64)}), r'down without llm\.lm_head',
    ),
    'an update of another size': (
        additions(**{f'{MATRIX}.up': torch.zeros(9, 2), f'{MATRIX}.down': torch.zeros(2, 64)}),
        r'is \(9, 2, 2, 64\), expected \(707, 2, 2, 64\)',
    ),
    'NaN in an update': (
        additions(**{WEIGHT: torch.full((64,), torch.nan)}), 'has NaN or infinite numbers',
    ),
    'a damaged update': (write('model_additions.safetensors', b'{}'), 'not a safetensors file'),
    'an update that is a pipe': (
        lambda folder: os.mkfifo(folder / 'model_additions.safetensors'), 'is a pipe',
    ),
    'no preprocessing': (
        lambda folder: (folder / 'preprocessor_config.json').unlink(),
        'no such file',
    ),
}  # fmt: skip
