# SPDX-License-Identifier: Apache-2.0
"""What a run starts with: vocabulary, weights and sizes, from a model folder or random."""

from dataclasses import replace

import pytest
import torch

from lisa_ros.errors import SettingsError
from lisa_ros.model import checkpoint
from lisa_ros.model.tokenizer import SPACE
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.results import SEG
from lisa_ros.tabletop import answer_text
from lisa_ros.training.tabletop.initialization import resize_position_embedding
from lisa_ros.training.tabletop.pretrain import PretrainTask
from lisa_ros.training.tabletop.vocabulary import remap_vocabulary, write_tokenizer

TOKEN_TABLES = ('llm.model.embed_tokens.weight', 'llm.lm_head.weight')


def test_known_tokens_keep_their_rows_and_new_ones_get_the_mean_of_their_pieces(
    train_set, tmp_path
):
    old, new = (
        write_tokenizer(tmp_path / str(size), train_set.scene_graphs, size, dialogues=2000)
        for size in (700, 1400)
    )
    assert len(old) < len(new)
    state = {name: torch.randn(len(old), 8) for name in TOKEN_TABLES}
    remapped = remap_vocabulary({**state, 'other': torch.ones(3)}, old, new)
    assert torch.equal(remapped['other'], torch.ones(3))
    old_ids = {old.id_to_token(i): i for i in range(len(old))}
    new_ids = {new.id_to_token(i): i for i in range(len(new))}
    added = [i for token, i in new_ids.items() if token not in old_ids]
    assert added
    for name in TOKEN_TABLES:
        assert remapped[name].shape == (len(new), 8)
        for token in (SEG, '<s>', f'{SPACE}the', f'{SPACE}42'):
            row = remapped[name][new_ids[token]]
            assert torch.equal(row, state[name][old_ids[token]]), token
        for i in added:
            pieces = old.encode(new.id_to_token(i).replace(SPACE, ' ').strip())
            assert torch.allclose(remapped[name][i], state[name][pieces].mean(0), atol=1e-6)


def test_number_embeddings_start_similar_to_their_neighbours(trained):
    """Six steps have hardly changed them."""
    lisa, heads = trained.task.lisa, trained.task.heads
    assert len(heads.number_tokens) == len(answer_text.NUMBER_WORDS)
    rows = lisa.llm.get_input_embeddings().weight[heads.number_tokens]
    near = (rows[1:] - rows[:-1]).norm(dim=1)
    far = (rows[10:] - rows[:-10]).norm(dim=1)
    assert near.max() < 0.7 * far.min()


def test_init_vision_from_takes_the_vision_weights_only(trained, config, scene_folder, tmp_path):
    config = replace(config, init_vision_from=trained.model)
    state = PretrainTask(tmp_path, scene_folder, config).lisa.state_dict()
    start = checkpoint.load(trained.model).model.state_dict()
    for name, tensor in start.items():
        if name.startswith(('clip.', 'mm_projector.', 'sam.')):
            assert torch.equal(state[name], tensor), name
        elif tensor.ndim > 1:
            assert not torch.equal(state[name], tensor), name


def test_two_start_models_are_refused(trained, config):
    with pytest.raises(SettingsError, match='--init-from or --init-vision-from'):
        replace(config, init_from=trained.model, init_vision_from=trained.model)


def test_clip_image_size_changes_the_start_model(trained, config, scene_folder, tmp_path):
    larger = replace(config, init_from=trained.model, vision_warmup_steps=0, clip_image_size=320)
    task = PretrainTask(tmp_path, scene_folder, larger)
    assert task.draw(0, 0).inputs.clip_pixels.shape[-2:] == (320, 320)
    task.export(tmp_path)
    segmenter = Segmenter.load(tmp_path / 'model', device='cpu')
    assert segmenter.backend.model.config.clip.image_size == 320
    assert segmenter.segment(task.train_set.images[0], 'find the box').answer
    vision_only = replace(config, init_vision_from=tmp_path / 'model')
    task = PretrainTask(tmp_path / 'vision', scene_folder, vision_only)
    assert task.lisa.config.clip.image_size == 320


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'clip_image_size': 300}, 'multiple of 16 up to 352'),
        ({'clip_image_size': 368}, 'multiple of 16 up to 352'),
        ({'clip_image_size': 320, 'lora_rank': 4}, 'give no --clip-image-size'),
    ],
)
def test_other_clip_image_sizes_are_refused(trained, config, options, message):
    with pytest.raises(SettingsError, match=message):
        replace(config, init_from=trained.model, **options)


def test_a_resized_position_embedding_has_the_old_rows_at_the_old_centres(trained):
    name = 'clip.embeddings.position_embedding.weight'
    state = trained.task.lisa.state_dict()
    side = round(len(state[name][1:]) ** 0.5)
    resized = resize_position_embedding(state, (3 * side) ** 2)[name]
    assert torch.equal(resized[0], state[name][0])
    centres = resized[1:].unflatten(0, (3 * side, 3 * side))[1::3, 1::3].flatten(0, 1)
    assert torch.allclose(centres, state[name][1:], atol=1e-5)
