# SPDX-License-Identifier: Apache-2.0
"""Masks carried by the video models of transformers, at toy size and with random weights.

Whether they follow anything is for real weights to show; here: that loading is real, that an
answer may come late, and that memory is bounded without changing a mask.
"""

import json

import numpy as np
import pytest
import torch
from transformers import (
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
)

from lisa_ros.errors import CheckpointError, ImageError, SettingsError, TrackingError
from lisa_ros.perception.masks import iou
from lisa_ros.tracking.video_model import VideoTracker, load_video_tracker

SIDE, WIDE, SIZE = 64, 128, (48, 60)  # of the model's pictures, of its layers, of ours (H, W)


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """So small layers are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def vision():
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 4],
        window_size_per_stage=[4, 2, 4, 2],
        global_attention_blocks=[3],
        image_size=[SIDE, SIDE],
        window_positional_embedding_background_size=[4, 4],
    )
    return Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2],
        fpn_hidden_size=WIDE,
    )


def toy(kind):
    """A random model of the released shape, but narrow and shallow."""
    shared = {
        'vision_config': vision(),
        'prompt_encoder_config': {'hidden_size': WIDE, 'image_size': SIDE, 'patch_size': 16},
        'mask_decoder_config': {
            'hidden_size': WIDE,
            'mlp_dim': 32,
            'num_attention_heads': 2,
            'iou_head_hidden_dim': 16,
        },
        'image_size': SIDE,
        'memory_attention_hidden_size': WIDE,
        'memory_attention_num_layers': 1,
        'memory_attention_rope_feat_sizes': [SIDE // 16] * 2,
        'memory_encoder_hidden_size': WIDE,
        'mask_downsampler_embed_dim': WIDE,
        'memory_fuser_embed_dim': WIDE,
        'memory_fuser_intermediate_dim': 32,
        'num_maskmem': 3,
        'max_object_pointers_in_encoder': 4,
    }
    torch.manual_seed(0)
    if kind == 'sam2':
        config = Sam2VideoConfig(**shared, memory_attention_feed_forward_hidden_size=32)
        return Sam2VideoModel(config)
    config = EdgeTamVideoConfig(
        **shared,
        memory_attention_mlp_hidden_size=32,
        memory_attention_rope_k_sizes=[2, 2],
        perceiver_resampler_num_latents=4,
        perceiver_resampler_num_latents_2d=4,
        perceiver_resampler_mlp_intermediate_size=16,
    )
    return EdgeTamVideoModel(config)


def always_there(model):
    """With random weights a thing is there or not at random: let it be there."""
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias += 5
    return model


@pytest.fixture(scope='module', params=['sam2', 'edgetam'])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    always_there(toy(request.param)).save_pretrained(folder)
    return request.param, folder


@pytest.fixture
def tracker(saved):
    return load_video_tracker(*saved, 'cpu')


def frame(i):
    return np.random.default_rng(i).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


def things():
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 8:30, 10:34] = True
    masks[1, 20:44, 30:56] = True
    return masks


def follow(tracker, count, *, late):
    """Ask about frame 0, answer it at once or after the last of `count` frames."""
    tracker.begin(0, frame(0))
    if not late:
        tracker.answered(0, things())
    for i in range(1, count):
        tracker.advance(i * 10**9, frame(i))
    if late:
        assert tracker.now() is None
        tracker.answered(0, things())
    return tracker.now()


def test_the_saved_weights_are_the_loaded_ones(saved, tracker):
    kind, folder = saved
    expected = always_there(toy(kind)).state_dict()
    loaded = tracker._model.state_dict()
    assert loaded.keys() == expected.keys() and (folder / 'model.safetensors').is_file()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())
    assert not tracker._model.training


def test_on_its_own_frame_a_mask_is_itself(tracker):
    now = follow(tracker, 1, late=False)
    assert all(iou(one, other) > 0.85 for one, other in zip(now.masks, things(), strict=True))
    assert now.tracked.all() and (now.drift < 0.01).all() and now.age == 0


def test_a_late_answer_gives_what_an_early_one_gives(saved, tracker):
    late = follow(tracker, 6, late=True)
    early = follow(load_video_tracker(*saved, 'cpu'), 6, late=False)
    assert late.stamp == early.stamp == 5 * 10**9 and late.age == early.age == 5
    assert late.masks.any() and np.array_equal(late.masks, early.masks)
    assert np.array_equal(late.drift, early.drift) and late.drift.dtype == np.float32


def test_what_is_forgotten_is_not_looked_at(saved, tracker, monkeypatch):
    trimmed = follow(tracker, 12, late=False)
    monkeypatch.setattr(VideoTracker, '_forget_old', lambda self: None)
    whole = load_video_tracker(*saved, 'cpu')
    assert np.array_equal(follow(whole, 12, late=False).masks, trimmed.masks)
    outputs = [
        t._session.output_dict_per_obj[0]['non_cond_frame_outputs'] for t in (tracker, whole)
    ]
    assert len(outputs[0]) <= 5 and len(outputs[1]) == 11
    assert len(tracker._session.processed_frames) == 0
    assert len(whole._session.processed_frames) == 12


def test_frames_that_wait_for_an_answer_are_bounded_and_the_newest_is_among_them(saved):
    loaded = load_video_tracker(*saved, 'cpu')
    tracker = VideoTracker(loaded._model, loaded._new_session, kept=4)
    tracker.set_reference(0, frame(0))
    for i in range(1, 30):
        tracker.update(i, frame(i))
        assert len(tracker._since) <= 4 and tracker._since[-1].stamp == i
    assert tracker._since[0].stamp < 25  # left out evenly, not all of the old ones
    tracker.set_masks(0, things())
    assert tracker.state().stamp == 29


def test_a_second_question_while_the_first_answer_is_followed(tracker):
    tracker.begin(0, frame(0))
    tracker.answered(0, things())
    tracker.begin(1, frame(1))
    tracker.advance(2, frame(2))
    assert tracker.now().stamp == 2 and len(tracker.now().masks) == 2
    tracker.answered(1, things()[:1])
    assert tracker.now().stamp == 2 and len(tracker.now().masks) == 1
    assert tracker._since == []  # nobody waits: nothing is kept


def test_an_empty_mask_is_lost_and_no_mask_is_no_thing(tracker):
    tracker.begin(0, frame(0))
    tracker.answered(0, np.zeros((1, *SIZE), bool))
    assert tracker.now().tracked.tolist() == [False] and tracker.now().drift.tolist() == [1]
    tracker.begin(1, frame(1))
    tracker.answered(1, np.zeros((0, *SIZE), bool))
    tracker.advance(2, frame(2))
    assert tracker.now().masks.shape == (0, *SIZE) and tracker.now().stamp == 2


@pytest.mark.parametrize('change', ['size', 'time'])
def test_another_size_and_an_older_frame_forget_all(tracker, change):
    follow(tracker, 2, late=False)
    if change == 'size':
        tracker.advance(9 * 10**9, frame(2)[:40])
    else:
        tracker.advance(-1, frame(2))
    assert tracker.now() is None
    with pytest.raises(TrackingError, match='asked about are: none'):
        tracker.answered(0, things())


def test_masks_of_another_size_are_refused(tracker):
    tracker.begin(0, frame(0))
    with pytest.raises(ImageError, match='48, 60'):
        tracker.answered(0, things()[:, :10])


def test_what_is_not_there_or_of_another_kind_is_named(saved, tmp_path):
    kind, folder = saved
    other = 'edgetam' if kind == 'sam2' else 'sam2'
    with pytest.raises(SettingsError, match='sam2 or edgetam'):
        load_video_tracker('sam3', folder, 'cpu')
    with pytest.raises(CheckpointError, match=f'names the type .{kind}_video'):
        load_video_tracker(other, folder, 'cpu')
    with pytest.raises(CheckpointError, match='names the type None'):
        load_video_tracker(kind, tmp_path, 'cpu')
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': f'{kind}_video'}))
    with pytest.raises(CheckpointError, match='safetensors'):
        load_video_tracker(kind, tmp_path, 'cpu')
