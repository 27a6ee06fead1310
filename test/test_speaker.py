# SPDX-License-Identifier: Apache-2.0
"""The speaker with a program in place of espeak-ng, which ends when the test says so."""

import time

import pytest

from lisa_ros.voice.speaker import Speaker

LIMIT = 30.0  # [s], also on a busy machine


def wait(condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Espeak:
    """The program: it writes each text to a file, and speaks until `finish`."""

    def __init__(self, folder):
        self._log, self._silence = folder / 'log', folder / 'silence'
        program = folder / 'espeak-ng'
        program.write_text(
            f'#!/bin/sh\necho "$2" >> {self._log}\n'
            f'while [ ! -e {self._silence} ]; do sleep 0.02; done\n'
        )
        program.chmod(0o755)

    @property
    def texts(self):
        return self._log.read_text().splitlines() if self._log.exists() else []

    def begin(self):
        """Let the next text be spoken until `finish`."""
        self._silence.unlink()

    def finish(self):
        """End the text that is being spoken, and each later one at once."""
        self._silence.touch()


@pytest.fixture
def espeak(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    return Espeak(tmp_path)


@pytest.fixture
def speaker():
    """Return a speaker of short pauses that fails on a warning."""
    speaker = Speaker(pytest.fail, pause=0.05, repeat_after=1e6)
    yield speaker
    speaker.stop()


def test_only_the_newest_text_is_spoken_after_the_current_one(espeak, speaker):
    speaker.say('text 0')
    wait(lambda: espeak.texts)
    assert speaker.is_speaking
    for number in range(1, 30):
        speaker.say(f'text {number}')
    espeak.finish()
    wait(lambda: len(espeak.texts) == 2 and not speaker.is_speaking)
    assert espeak.texts == ['text 0', 'text 29']


def test_a_text_that_comes_again_and_again_is_spoken_once(espeak, speaker):
    for _ in range(3):
        speaker.say('The mug.')
    wait(lambda: espeak.texts)
    speaker.say('The bowl.')
    speaker.say('The mug.')  # the newest is the one that is being spoken
    espeak.finish()
    wait(lambda: not speaker.is_speaking)
    speaker.say('The mug.')
    speaker.say('The pan.')
    wait(lambda: len(espeak.texts) == 2)
    assert espeak.texts == ['The mug.', 'The pan.']


def test_the_same_answer_to_a_new_question_is_spoken(espeak, speaker):
    espeak.finish()
    for count in (1, 2):
        speaker.forget()
        speaker.say('The mug.')
        wait(lambda count=count: len(espeak.texts) == count and not speaker.is_speaking)


def test_the_same_text_after_a_while_is_spoken(espeak):
    espeak.finish()
    speaker = Speaker(pytest.fail, pause=0.0, repeat_after=0.0)
    for count in (1, 2):
        speaker.say('The mug.')
        wait(lambda count=count: len(espeak.texts) == count and not speaker.is_speaking)
    speaker.stop()


def test_it_pauses_between_two_texts(espeak):
    espeak.finish()
    speaker = Speaker(pytest.fail, pause=0.5)
    speaker.say('first')
    wait(lambda: espeak.texts and not speaker.is_speaking)
    spoke_at = speaker.spoke_at
    speaker.say('second')
    wait(lambda: len(espeak.texts) == 2)
    assert time.monotonic() - spoke_at >= 0.5
    speaker.stop()


def test_each_text_waits_for_a_person_who_speaks(espeak):
    espeak.finish()
    person = {'speaks': True}
    speaker = Speaker(pytest.fail, lambda: person['speaks'], pause=0.05, max_wait=1e6)
    for count, text in enumerate(('first', 'second')):
        person['speaks'] = True
        speaker.say(text)
        time.sleep(0.3)
        assert len(espeak.texts) == count
        person['speaks'] = False
        wait(lambda text=text: espeak.texts[-1:] == [text] and not speaker.is_speaking)
    speaker.stop()


def test_a_text_does_not_wait_for_ever_for_a_sound_that_goes_on(espeak):
    espeak.finish()
    speaker = Speaker(pytest.fail, lambda: True, pause=0.0, max_wait=0.5)
    for count in (1, 2):
        start = time.monotonic()
        speaker.say(f'text {count}')
        wait(lambda count=count: len(espeak.texts) == count)
        assert time.monotonic() - start >= 0.5
    speaker.stop()


def test_an_answer_that_waits_is_dropped_when_a_new_question_comes(espeak):
    espeak.finish()
    person = {'speaks': True}
    speaker = Speaker(pytest.fail, lambda: person['speaks'], pause=0.0, max_wait=1e6)
    speaker.say('The old answer.')
    speaker.forget()
    person['speaks'] = False
    time.sleep(0.3)
    assert not espeak.texts
    speaker.say('The new answer.')
    wait(lambda: espeak.texts == ['The new answer.'])
    speaker.stop()


def test_an_utterance_between_two_texts_is_not_during_one(espeak, speaker):
    assert not speaker.spoke_during(0.0, time.monotonic())
    espeak.finish()
    speaker.say('first')
    wait(lambda: espeak.texts and not speaker.is_speaking)
    espeak.begin()
    first_end = speaker.spoke_at
    pause_start, pause_end = first_end + 1e-3, first_end + 4e-2  # the pause is 0.05 s
    speaker.say('second')
    wait(lambda: len(espeak.texts) == 2)
    assert speaker.is_speaking
    assert not speaker.spoke_during(pause_start, pause_end)
    assert speaker.spoke_during(first_end - 1e-3, pause_end)
    assert speaker.spoke_during(pause_start, time.monotonic())
    espeak.finish()


def test_a_text_with_a_null_byte_is_a_warning_and_the_next_is_spoken(espeak):
    warnings = []
    espeak.finish()
    speaker = Speaker(warnings.append, pause=0.0)
    speaker.say('a\0b')
    wait(lambda: warnings)
    speaker.say('The mug.')
    wait(lambda: espeak.texts == ['The mug.'])
    speaker.stop()


def test_without_espeak_a_warning_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    warnings = []
    speaker = Speaker(warnings.append)
    speaker.say('The mug.')
    wait(lambda: warnings)
    assert 'apt install espeak-ng' in warnings[0]
    speaker.stop()
