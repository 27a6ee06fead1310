# SPDX-License-Identifier: Apache-2.0
"""Masks propagated by video models of transformers, at toy size with random weights.

Only real weights can track an object. Tested here: weights are loaded, masks may come late, and
memory is bounded without a change of any mask.
"""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from test_scheduler import found_result
from transformers import (
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
)

from lisa_ros.errors import (
    CheckpointError,
    ImageError,
    ModelError,
    SettingsError,
    TrackingError,
)
from lisa_ros.perception.masks import iou
from lisa_ros.tracking.requery import RequeryPolicy, RequeryRule
from lisa_ros.tracking.video_model import MODELS, VideoTracker, load_video_tracker
from lisa_ros.tracking.worker import TrackerFrame, TrackingWorker

SIDE, WIDTH, SIZE = 64, 128, (48, 60)  # model input [px], hidden size, image (H, W)


pytestmark = pytest.mark.usefixtures('one_thread')


def vision_config():
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
        fpn_hidden_size=WIDTH,
    )


def toy_model(kind):
    """Return a random model with the structure of the released ones, but narrow and shallow."""
    shared = {
        'vision_config': vision_config(),
        'prompt_encoder_config': {'hidden_size': WIDTH, 'image_size': SIDE, 'patch_size': 16},
        'mask_decoder_config': {
            'hidden_size': WIDTH,
            'mlp_dim': 32,
            'num_attention_heads': 2,
            'iou_head_hidden_dim': 16,
        },
        'image_size': SIDE,
        'memory_attention_hidden_size': WIDTH,
        'memory_attention_num_layers': 1,
        'memory_attention_rope_feat_sizes': [SIDE // 16] * 2,
        'memory_encoder_hidden_size': WIDTH,
        'mask_downsampler_embed_dim': WIDTH,
        'memory_fuser_embed_dim': WIDTH,
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


def with_presence(model):
    """Make a random model see every object: otherwise objects are present at random."""
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias += 5
    return model


@pytest.fixture(scope='module', params=['sam2', 'edgetam'])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with_presence(toy_model(request.param)).save_pretrained(folder)
    return request.param, folder


@pytest.fixture
def tracker(saved):
    return load_video_tracker(*saved, 'cpu')


def image(i):
    return np.random.default_rng(i).integers(0, 255, (*SIZE, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Moment:
    """A camera frame, `image(moment)`."""

    moment: int


class Sink:
    """A `TrackingSink` that notes what is published: (moment, number of masks)."""

    def __init__(self):
        self.newest, self.published, self.reports = None, [], []

    def newest_frame(self):
        return self.newest

    def convert(self, frame):
        return TrackerFrame(frame.moment, image(frame.moment))

    def has_subscribers(self):
        return True

    def publish(self, frame, tracker_frame, result, state):
        self.published.append((frame.moment, len(result.masks)))

    def report(self, message):
        self.reports.append(message)


def found(masks):
    return replace(found_result('it'), masks=masks, mask_logits=np.where(masks, 2.0, -2.0))


def two_masks():
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 8:30, 10:34] = True
    masks[1, 20:44, 30:56] = True
    return masks


def track(tracker, count, *, late):
    """Return the state on the last of `count` frames; the masks of frame 0 come first or last."""
    tracker.set_reference(0, image(0))
    if not late:
        tracker.set_masks(0, two_masks())
    for i in range(1, count):
        tracker.update(i * 10**9, image(i))
    if late:
        assert tracker.state() is None
        tracker.set_masks(0, two_masks())
    return tracker.state()


def record_calls(model):
    """Return a list that gets (session, frame index, mean of the input) of each model call."""
    calls = []

    def record(_, args, kwargs):
        calls.append((args[0], kwargs['frame_idx'], float(kwargs['frame'].mean())))

    model.register_forward_pre_hook(record, with_kwargs=True)
    return calls


def test_the_saved_weights_are_loaded(saved, tracker):
    kind, folder = saved
    expected = with_presence(toy_model(kind)).state_dict()
    loaded = tracker.model.state_dict()
    assert loaded.keys() == expected.keys() and (folder / 'model.safetensors').is_file()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())
    assert not tracker.model.training


def test_on_its_reference_frame_a_mask_is_unchanged(tracker):
    state = track(tracker, 1, late=False)
    pairs = zip(state.masks, two_masks(), strict=True)
    assert all(iou(mask, prompt) > 0.85 for mask, prompt in pairs)
    assert state.tracked.all() and (state.drift < 0.01).all() and state.age == 0


def test_late_masks_end_where_early_masks_end(saved, tracker):
    late = track(tracker, 6, late=True)
    early = track(load_video_tracker(*saved, 'cpu'), 6, late=False)
    assert late.stamp == early.stamp == 5 * 10**9 and late.age == early.age == 5
    assert late.masks.any() and np.array_equal(late.masks, early.masks)
    assert np.array_equal(late.drift, early.drift) and late.drift.dtype == np.float32


def test_dropped_outputs_are_those_that_the_model_does_not_use(saved, tracker, monkeypatch):
    trimmed_calls = record_calls(tracker.model)
    trimmed = track(tracker, 12, late=False)
    monkeypatch.setattr(VideoTracker, '_drop_old_outputs', lambda self: None)
    untrimmed_tracker = load_video_tracker(*saved, 'cpu')
    untrimmed_calls = record_calls(untrimmed_tracker.model)
    untrimmed = track(untrimmed_tracker, 12, late=False)
    assert np.array_equal(untrimmed.masks, trimmed.masks)
    sessions = [calls[-1][0] for calls in (trimmed_calls, untrimmed_calls)]
    outputs = [s.output_dict_per_obj[0]['non_cond_frame_outputs'] for s in sessions]
    assert len(outputs[0]) <= 5 and len(outputs[1]) == 11
    assert [len(session.processed_frames) for session in sessions] == [0, 12]


@pytest.mark.parametrize('count', range(5, 30, 4))
def test_the_buffer_is_bounded_and_holds_the_newest_frame(saved, count):
    kind, folder = saved
    model = MODELS[kind].model.from_pretrained(folder).eval()
    calls = record_calls(model)
    tracker = VideoTracker(model, MODELS[kind].session, max_buffered=4)
    for i in range(count):
        flat = np.full((*SIZE, 3), 8 * i, np.uint8)  # its brightness tells the frame's number
        (tracker.update if i else tracker.set_reference)(i, flat)
    tracker.set_masks(0, two_masks())
    assert tracker.state().stamp == count - 1
    brightness = [mean for _, _, mean in calls]
    assert len(calls) <= 1 + 4 and brightness == sorted(brightness)
    first = (brightness[1] - brightness[0]) / (brightness[-1] - brightness[0]) * (count - 1)
    assert first < 0.86 * count  # frames are dropped evenly, not the old ones first


def test_a_second_reference_is_set_while_the_first_masks_are_tracked(tracker):
    calls = record_calls(tracker.model)
    tracker.set_reference(0, image(0))
    tracker.set_masks(0, two_masks())
    tracker.set_reference(1, image(1))
    tracker.update(2, image(2))
    assert tracker.state().stamp == 2 and len(tracker.state().masks) == 2
    tracker.set_masks(1, two_masks()[:1])
    assert tracker.state().stamp == 2 and len(tracker.state().masks) == 1
    calls.clear()
    tracker.update(3, image(3))  # no reference waits for masks: nothing is buffered
    tracker.set_reference(3, image(3))
    tracker.set_masks(3, two_masks()[:1])
    assert [index for _, index, _ in calls] == [2, 0]  # frame 3 of the old and the new session


def test_an_empty_mask_is_lost_and_no_mask_is_no_object(tracker):
    tracker.set_reference(0, image(0))
    tracker.set_masks(0, np.zeros((1, *SIZE), bool))
    assert tracker.state().tracked.tolist() == [False] and tracker.state().drift.tolist() == [1]
    tracker.set_reference(1, image(1))
    tracker.set_masks(1, np.zeros((0, *SIZE), bool))
    tracker.update(2, image(2))
    assert tracker.state().masks.shape == (0, *SIZE) and tracker.state().stamp == 2


@pytest.mark.parametrize('change', ['size', 'time'])
def test_a_frame_of_another_size_and_an_older_frame_reset_the_tracker(tracker, change):
    track(tracker, 2, late=False)
    if change == 'size':
        tracker.update(9 * 10**9, image(2)[:40])
    else:
        tracker.update(-1, image(2))
    assert tracker.state() is None
    with pytest.raises(TrackingError, match='reference frames are: none'):
        tracker.set_masks(0, two_masks())


def test_after_nan_no_masks_are_tracked_until_the_next_ones(saved):
    tracker = load_video_tracker(*saved, 'cpu')  # its weights are damaged here
    tracker.set_reference(1, image(0))
    tracker.set_masks(1, two_masks())
    tracker.update(2, image(1))
    assert len(tracker.state().masks) == 2
    tracker.set_reference(3, image(2))
    tracker.update(4, image(3))
    bias = tracker.model.mask_decoder.pred_obj_score_head.proj_out.bias
    healthy = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(math.nan)
    with pytest.raises(ModelError, match='scores of the tracked objects'):
        tracker.set_masks(3, two_masks()[:1])
    assert tracker.state() is None
    with torch.no_grad():
        bias.copy_(healthy)
    tracker.update(5, image(4))
    assert tracker.state() is None
    tracker.set_reference(6, image(5))
    tracker.set_masks(6, two_masks()[:1])
    assert len(tracker.state().masks) == 1


def test_after_nan_in_a_frame_the_reference_of_a_running_query_stays(saved):
    tracker = load_video_tracker(*saved, 'cpu')  # its weights are damaged here
    tracker.set_reference(1, image(0))
    tracker.set_masks(1, two_masks())
    tracker.set_reference(2, image(1))
    bias = tracker.model.mask_decoder.pred_obj_score_head.proj_out.bias
    healthy = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(math.nan)
    with pytest.raises(ModelError, match='scores of the tracked objects'):
        tracker.update(3, image(2))
    assert tracker.state() is None
    tracker.update(4, image(3))
    with torch.no_grad():
        bias.copy_(healthy)
    tracker.set_masks(2, two_masks()[:1])
    assert len(tracker.state().masks) == 1


def test_a_running_query_keeps_its_reference_while_the_last_answer_is_tracked_again(saved):
    """After NaN; with the worker, and the weights damaged for one frame."""
    tracker = load_video_tracker(*saved, 'cpu')
    bias = tracker.model.mask_decoder.pred_obj_score_head.proj_out.bias
    healthy = bias.detach().clone()
    resets, reset = [], tracker.reset
    tracker.reset = lambda: (resets.append(len(sink.published)), reset())
    sink = Sink()
    worker = TrackingWorker(tracker, sink, RequeryPolicy(RequeryRule.NEVER, 1.0, 0.5))
    worker.start()

    def show(stamp):
        sink.newest = Moment(stamp)
        worker.notify()
        assert worker.idle.wait(20)

    worker.on_query(Moment(1))
    worker.on_answer(Moment(1), found(two_masks()))
    show(2)
    worker.on_query(Moment(3))
    show(4)
    with torch.no_grad():
        bias.fill_(math.nan)
    show(5)
    with torch.no_grad():
        bias.copy_(healthy)
    show(6)
    show(7)
    worker.on_answer(Moment(3), found(two_masks()[:1]))
    show(8)
    assert worker.close()
    assert sink.published == [(2, 2), (4, 2), (6, 2), (7, 2), (8, 1)]
    assert set(resets) == {0, 2}  # at the start and after NaN, not at the answer
    assert len(sink.reports) == 1


def test_masks_of_another_size_are_refused(tracker):
    tracker.set_reference(0, image(0))
    with pytest.raises(ImageError, match='48, 60'):
        tracker.set_masks(0, two_masks()[:, :10])


def test_a_missing_model_and_one_of_another_type_are_errors(saved, tmp_path):
    kind, folder = saved
    other_kind = 'edgetam' if kind == 'sam2' else 'sam2'
    with pytest.raises(SettingsError, match='sam2 or edgetam'):
        load_video_tracker('sam3', folder, 'cpu')
    with pytest.raises(CheckpointError, match=f'names the type .{kind}_video'):
        load_video_tracker(other_kind, folder, 'cpu')
    with pytest.raises(CheckpointError, match='names the type None'):
        load_video_tracker(kind, tmp_path, 'cpu')
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': f'{kind}_video'}))
    with pytest.raises(CheckpointError, match='safetensors'):
        load_video_tracker(kind, tmp_path, 'cpu')
