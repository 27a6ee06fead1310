# SPDX-License-Identifier: Apache-2.0
"""Masks are confirmed by the model that pointed at them, or there are none."""

import dataclasses
import threading

import numpy as np
import pytest
from scripted_backend import ScriptedBackend

from lisa_ros.perception.backend import InferenceOptions, Query
from lisa_ros.perception.stopping import Deadline, StopCondition
from lisa_ros.perception.verification import verified_events
from lisa_ros.results import Done, MaskReady, Status, Token

IMAGE = np.zeros((60, 80, 3), np.uint8)
IMAGE[20:40, 30:60] = 255


class Chooser:
    """Gives "none" a probability, and keeps what it was asked."""

    def __init__(self, none, number=1.0, cancel=None):
        self.none, self.number, self.cancel, self.asked = none, number, cancel, []

    def __call__(self, image, request, choices, stop):
        self.asked.append((image, request, choices))
        if self.cancel is not None:
            self.cancel.set()
        rest = (1 - self.none) / (len(choices) - 1)
        return [self.number * p for p in [self.none] + [rest] * (len(choices) - 1)]


def answer(none, masks='bright all', cancelled=False, number=1.0, threshold=0.0, cancels=False):
    backend = ScriptedBackend({'': {'masks': masks}})
    cancel = threading.Event()
    if cancelled:
        cancel.set()
    events = backend.stream(IMAGE, Query('the mug'), InferenceOptions(), cancel)
    chooser = Chooser(none, number, cancel if cancels else None)
    stop = StopCondition(cancel, Deadline(None))
    return list(verified_events(events, IMAGE, 'the mug', chooser, threshold, stop)), chooser


def test_confirmed_masks_come_after_the_words_with_lower_scores():
    events, chooser = answer(none=0.2)
    assert [type(event) for event in events] == [Token, MaskReady, MaskReady, Done]
    result = events[-1].result
    assert result.status is Status.FOUND
    assert result.scores == pytest.approx([0.8, 0.8])
    assert [event.score for event in events[1:3]] == pytest.approx([0.8, 0.8])
    assert 'verify' in result.timings
    ((shown, request, choices),) = chooser.asked
    assert choices == ['0', '1', '2']
    assert 'Which number is on "the mug"?' in request
    assert shown.shape[2] == 3
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 2  # masks and numbers are drawn


def test_masks_that_the_model_rejects_are_not_found():
    events, _ = answer(none=0.9)
    assert [type(event) for event in events] == [Token, Done]
    result = events[-1].result
    assert (result.status, len(result.masks), len(result.scores)) == (Status.NOT_FOUND, 0, 0)
    assert result.reason == 'asked again, the model says that none of its objects is right (90%)'


def test_at_most_nine_objects_are_numbered():
    events, chooser = answer(none=0.0, masks='bright ' * 12)
    assert len(events[-1].result.masks) == 12
    assert chooser.asked[0][2] == list('0123456789')


def test_nothing_is_asked_about_no_masks():
    events, chooser = answer(none=0.9, masks='')
    assert events[-1].result.status is Status.NOT_FOUND
    assert not chooser.asked


def test_a_cancelled_answer_has_no_confirmed_masks():
    events, chooser = answer(none=0.0, cancelled=True)
    assert [type(event) for event in events] == [Token, Done]
    assert (events[-1].result.status, len(events[-1].result.masks)) == (Status.CANCELLED, 0)
    assert not chooser.asked


@pytest.mark.parametrize('none', [0.1, 0.9])
def test_an_answer_may_be_cancelled_while_the_model_is_asked(none):
    events, _ = answer(none, cancels=True)
    result = events[-1].result
    assert (result.status, len(result.masks)) == (Status.CANCELLED, 0)
    assert result.reason == 'cancelled during the answer'


def test_a_model_that_gives_no_number_has_decided_nothing():
    events, _ = answer(none=0.9, number=0.01)
    result = events[-1].result
    assert (result.status, result.scores.tolist()) == (Status.FOUND, [1.0, 1.0])


def test_scores_that_fall_below_the_threshold_are_dropped():
    events, _ = answer(none=0.4, threshold=0.7)
    assert [type(event) for event in events] == [Token, Done]
    result = events[-1].result
    assert (result.status, len(result.masks)) == (Status.NOT_FOUND, 0)
    assert result.reason == (  # the threshold, not the model, says no
        'after the model was asked again (none is right: 40%), every score is below '
        'confidence_threshold (0.7)'
    )


def test_names_stay_with_the_masks_that_are_kept():
    backend = ScriptedBackend({'': {'masks': 'bright all all', 'names': 'mug pan bowl'}})
    cancel = threading.Event()
    *events, done = backend.stream(IMAGE, Query('it'), InferenceOptions(), cancel)
    scores = np.array([1.0, 0.5, 0.9], np.float32)
    events = [*events, Done(dataclasses.replace(done.result, scores=scores))]
    for none, names in ((0.0, ('mug', 'pan', 'bowl')), (0.3, ('mug', 'bowl')), (0.9, ())):
        stop = StopCondition(cancel, Deadline(None))
        verified = list(verified_events(iter(events), IMAGE, 'it', Chooser(none), 0.5, stop))
        assert verified[-1].result.names == names
        assert len(verified[-1].result.masks) == len(names)
        assert tuple(e.name for e in verified if isinstance(e, MaskReady)) == names


def test_a_model_that_says_none_is_the_reason_also_below_the_threshold():
    events, _ = answer(none=0.9, threshold=0.7)
    reason = events[-1].result.reason
    assert reason == 'asked again, the model says that none of its objects is right (90%)'
