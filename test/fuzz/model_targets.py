# SPDX-License-Identifier: Apache-2.0
"""Targets: the files of a model folder."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save
from target import Target, write_documents

from lisa_ros.model import checkpoint
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.model.weight_files import WeightFiles

FOLDER = Path(__file__).parents[1] / 'data' / 'reference' / 'ckpt_256'
WEIGHTS = {'layers.0.weight': torch.arange(6.0).reshape(2, 3), 'bias': torch.ones(2)}
LEGACY = b'\x8a'  # the third byte of a file as PyTorch before 1.6 wrote it
TOKENIZER_FILES = ('tokenizer_config.json', 'added_tokens.json', 'special_tokens_map.json')


def read_weights(folder):
    for name, tensor in WeightFiles.of_folder(folder).tensors():
        assert isinstance(name, str)
        float(tensor.double().sum())  # reads every byte


def safetensors_seeds():
    half = {'a': torch.ones(3, dtype=torch.bfloat16), 'b': torch.zeros(0)}
    return [save(WEIGHTS), save(half)]


def read_safetensors(content, folder):
    (folder / 'model.safetensors').write_bytes(content)
    read_weights(folder)


def pickled(legacy=False):
    stream = io.BytesIO()
    torch.save(WEIGHTS, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def pickle_seeds():
    """Return whole files, and the pickle of one alone: a zip has checksums of its parts."""
    with zipfile.ZipFile(io.BytesIO(pickled())) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith('data.pkl')]
        part = archive.read(name)
    return [part, pickled(), pickled(legacy=True)]


def read_pickle(content, folder):
    file = folder / 'pytorch_model.bin'
    if content[:2] == b'\x80\x02' and content[2:3] != LEGACY:
        with zipfile.ZipFile(file, 'w') as archive:
            archive.writestr('archive/data.pkl', content)
            for number, tensor in enumerate(WEIGHTS.values()):
                archive.writestr(f'archive/data/{number}', bytes(tensor.nbytes))
            archive.writestr('archive/version', '3\n')
    else:
        file.write_bytes(content)
    read_weights(folder)


def index_seeds():
    names = dict.fromkeys(WEIGHTS, 'model-00001-of-00001.safetensors')
    return [json.dumps({'metadata': {'total_size': 32}, 'weight_map': names}).encode()]


def read_index(content, folder):
    (folder / 'model-00001-of-00001.safetensors').write_bytes(save(WEIGHTS))
    (folder / 'model.safetensors.index.json').write_bytes(content)
    read_weights(folder)


# ---- texts of a model folder: one document {file name: content} for all of them


def documents(*names):
    return json.dumps({name: json.loads((FOLDER / name).read_text()) for name in names}).encode()


def read_tokenizer(content, folder):
    shutil.copy(FOLDER / 'tokenizer.model', folder)
    write_documents(content, folder, TOKENIZER_FILES)
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode('the red [SEG] mug', parse_special=True)
    tokenizer.decode(ids)
    assert len(tokenizer) > max(ids, default=0)


def read_pieces(content, folder):
    for name in TOKENIZER_FILES:
        shutil.copy(FOLDER / name, folder)
    (folder / 'tokenizer.model').write_bytes(content)
    tokenizer = Tokenizer.load(folder)
    tokenizer.decode(tokenizer.encode('the red mug'))


def read_config(content, folder):
    """Load the toy checkpoint with another config.json."""
    for path in FOLDER.iterdir():
        if path.name != 'config.json':
            (folder / path.name).symlink_to(path)
    (folder / 'config.json').write_bytes(content)
    checkpoint.load(folder, vision_tower=str(FOLDER.with_name('clip_256')))


TARGETS = {
    'safetensors': Target(read_safetensors, safetensors_seeds),
    'pickle': Target(read_pickle, pickle_seeds),
    'weight_index': Target(read_index, index_seeds, is_json=True),
    'tokenizer': Target(read_tokenizer, lambda: [documents(*TOKENIZER_FILES)], is_json=True),
    'tokenizer_pieces': Target(read_pieces, lambda: [(FOLDER / 'tokenizer.model').read_bytes()]),
    'model_config': Target(
        read_config, lambda: [(FOLDER / 'config.json').read_bytes()], is_json=True
    ),
}
