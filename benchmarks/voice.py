# SPDX-License-Identifier: Apache-2.0
"""Accuracy of the speech engines: 60 commands, spoken by flite and espeak-ng.

Each command is spoken by one voice of each synthesizer, at different speeds, clean and with pink
noise at 20 and 10 dB below the speech. The transcript goes through the vocabulary of
lisa-tabletop, as in the voice node. Then the engines get a minute of noise and a minute of music.

    words      word error rate of the transcripts
    understood the right command, with enough confidence
    wrong      another command, with enough confidence
    (the others are reported as unsure and not sent)
    time       duration of the recognition, divided by that of the speech

Synthetic speech is harder for these engines than human speech, on which they were trained.

    python benchmarks/voice.py [--engines pocketsphinx moonshine] [--whisper FOLDER] [--json FILE]

Needs flite and espeak-ng, and `pip install '.[voice]'`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein
from tqdm import tqdm

from lisa_ros.voice import engines
from lisa_ros.voice.audio import RATE, read_wav
from lisa_ros.voice.engines import Engine
from lisa_ros.voice.interpreter import Interpreter, Outcome
from lisa_ros.voice.listener import Listener
from lisa_ros.voice.transcript_text import normalize
from lisa_ros.voice.vocabulary import Vocabulary

VOCABULARY = Path(__file__).parents[1] / 'lisa_ros/weights/lisa-tabletop/vocabulary.yaml'
COMMANDS = (
    'segment the mug', 'find the red mug', 'hand me the scissors', 'where is the soda can',
    'give me the banana', 'show me the blue bowl', 'pick up the sponge',
    'bring me the water bottle', 'look for the book', 'i need the plate', 'find the lemon',
    'segment the orange juice', 'hand me the ketchup', 'the milk', 'show me the toy rabbit',
    'find the yellow mug', 'bring me the bread', 'where is the coffee pot',
    'pick up the rubber duck', 'give me the candle', 'find the desk caddy',
    'segment the storage box', 'hand me the wine bottle', 'where is the butter',
    'find the toy brick', 'show me the pudding', 'give me the salad dressing',
    'find the popcorn', 'segment the ramekin', 'pick up the ball', 'the mug left of the milk',
    'find the thing behind the bowl', 'the bowl next to the plate',
    'show me the thing in front of the pan', 'the tallest thing', 'find the nearest mug',
    'the leftmost book', 'find the pan and the bowl', 'hand me the milk and the cereal',
    'all the mugs', 'find all the plates', 'and the bowl', 'what about the red mug',
    'the other one', 'what is it for', 'no the smaller one', 'something to clean this spill',
    'find something to drink from', 'something to fry an egg in', 'i am thirsty',
    'something to read', 'hand me something to cut paper with', 'what comes from a cow',
    'what would a monkey eat', 'something to tidy my desk', 'what goes on a hot dog',
    'something to put in the toaster', 'stop', 'cancel', 'watch the blue mug',
)  # fmt: skip
VOICES = {
    'flite': (('slt', 'rms', 'awb', 'kal16'), (1.0, 0.85, 1.2)),  # stretch of durations
    'espeak-ng': (('en-us', 'en-gb', 'en-gb-scotland'), (150, 130, 170)),  # words a minute
}
NOISES = (None, 20, 10)  # signal-to-noise ratio [dB]; None: clean


def speak(synthesizer: str, voice: str, speed: float, text: str) -> np.ndarray:
    """Return a text spoken by a synthesizer, (n,) float32 at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'speech.wav'
        if synthesizer == 'flite':
            command = ['flite', '-voice', voice, '--setf', f'duration_stretch={speed}', '-t', text]
            subprocess.run([*command, '-o', path], check=True, capture_output=True)  # noqa: S603
        else:
            command = ['espeak-ng', '-v', voice, '-s', str(speed), '-w', path, text]
            subprocess.run(command, check=True, capture_output=True)  # noqa: S603
        return read_wav(path)


def pink(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return pink noise with a standard deviation of one."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum /= np.maximum(1, np.arange(len(spectrum))) ** 0.5
    noise = np.fft.irfft(spectrum, count)
    return (noise / noise.std()).astype(np.float32)


def music(rng: np.random.Generator, seconds: int) -> np.ndarray:
    """Return music: a chord with overtones in each bar, and a drum on each of its four beats."""
    beat = np.arange(RATE // 2) / RATE
    beats = []
    for bar in range(seconds // 2):
        root = 110 * 2 ** (rng.choice([0, 5, 7, 9]) / 12)
        for _ in range(4):
            tone = np.zeros_like(beat)
            for third in (0, 4, 7, 12 + rng.choice([0, 2, 4, 7])):
                pitch = root * 2 ** (third / 12)
                tone += sum(np.sin(2 * np.pi * pitch * k * beat) / k for k in range(1, 7))
            tone *= np.exp(-2 * beat)
            drum = rng.standard_normal(len(beat)) * np.exp(-40 * beat) * (1 + bar % 2)
            beats.append(0.06 * tone + 0.1 * drum)
    return np.concatenate(beats).astype(np.float32)


def utterances(noise: float | None, synthesizer: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (voice, command, samples) of all commands."""
    rng = np.random.default_rng(0)
    voices, speeds = VOICES[synthesizer]
    for i, command in enumerate(COMMANDS):
        voice, speed = voices[i % len(voices)], speeds[i // len(voices) % len(speeds)]
        speech = speak(synthesizer, voice, speed, command)
        power = float((speech[np.abs(speech) > 0.01] ** 2).mean())
        speech = np.pad(speech, (int(0.3 * RATE), int(0.4 * RATE)))
        floor = 5e-4 if noise is None else (power / 10 ** (noise / 10)) ** 0.5
        yield voice, command, speech + floor * pink(rng, len(speech))


def evaluate(
    engine: Engine, vocabulary: Vocabulary, noise: float | None, synthesizer: str
) -> list[dict]:
    """Return the result of each command."""
    interpreter = Interpreter(vocabulary)
    rows = []
    speech = utterances(noise, synthesizer)
    for voice, command, samples in tqdm(speech, f'{engine.name} {synthesizer} {noise}', 60):
        start = time.perf_counter()
        transcript = engine.transcribe(samples)
        seconds = time.perf_counter() - start
        result = interpreter.interpret(transcript)
        is_sure = result.outcome is Outcome.COMMAND
        meaning = vocabulary.meaning(result.command.replace(':', ''))
        is_right = meaning == vocabulary.meaning(command)
        errors = Levenshtein.distance(command.split(), normalize(result.text).split())
        rows.append(
            {
                'voice': voice, 'command': command, 'text': result.text,
                'meant': result.command, 'confidence': result.confidence,
                'understood': is_right and is_sure, 'wrong': is_sure and not is_right,
                'errors': errors, 'words': len(command.split()),
                'seconds': seconds, 'length': len(samples) / RATE,
            }
        )  # fmt: skip
    return rows


def table_row(name: str, rows: list[dict]) -> str:
    """Return a line of the table."""
    keys = ('errors', 'words', 'understood', 'wrong', 'seconds', 'length')
    sums = {key: sum(row[key] for row in rows) for key in keys}
    return (
        f'{name:40} {len(rows):4} {sums["errors"] / sums["words"]:8.2f} '
        f'{sums["understood"] / len(rows):11.0%} {sums["wrong"]:6} '
        f'{sums["seconds"] / sums["length"]:9.2f}'
    )


def false_alarms(
    engine: Engine, vocabulary: Vocabulary, sounds: dict[str, np.ndarray]
) -> dict[str, dict]:
    """Return the number of utterances and the commands in sounds without speech."""
    results = {}
    for name, samples in sounds.items():
        listener = Listener(engine, Interpreter(vocabulary), partial_every=0.7)
        recognitions = [*listener.feed(samples), *listener.finish()]
        commands = [r.command for r in recognitions if r.outcome is Outcome.COMMAND]
        results[name] = {'heard': len(recognitions), 'commands': commands}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--engines',
        nargs='+',
        default=['pocketsphinx', 'moonshine'],
        help='engines to measure (default: pocketsphinx moonshine)',
    )
    parser.add_argument('--whisper', default='', help='folder of the model, for engine whisper')
    parser.add_argument('--json', type=Path, help='write all results to this file')
    options = parser.parse_args()
    vocabulary = Vocabulary.load(VOCABULARY)
    rng = np.random.default_rng(1)
    sounds = {
        'a minute of pink noise': 0.05 * pink(rng, 60 * RATE),
        'a minute of music': music(rng, 60),
    }
    report = {}
    for name in options.engines:
        engine = engines.load_engine(name, vocabulary, '', options.whisper, 'auto')
        rows_by_condition = {
            (synthesizer, noise): evaluate(engine, vocabulary, noise, synthesizer)
            for noise in NOISES
            for synthesizer in VOICES
        }
        print(f'\n{name:40} {"":4} {"words":>8} {"understood":>11} {"wrong":>6} {"time":>9}')
        for (synthesizer, noise), rows in rows_by_condition.items():
            condition = 'clean' if noise is None else f'noise at {noise} dB'
            print(table_row(f'{synthesizer}, {condition}', rows))
            for voice in VOICES[synthesizer][0]:
                print(table_row(f'    {voice}', [row for row in rows if row['voice'] == voice]))
            for row in rows:
                if row['wrong']:
                    print(f'    WRONG: {row["command"]!r} became {row["meant"]!r}')
        alarms = false_alarms(engine, vocabulary, sounds)
        for sound, result in alarms.items():
            print(f'{sound}: {result["heard"]} heard, commands: {result["commands"] or "none"}')
        report[name] = {f'{s} {n}': rows for (s, n), rows in rows_by_condition.items()}
        report[name]['alone'] = alarms
    if options.json:
        options.json.write_text(json.dumps(report))


if __name__ == '__main__':
    main()
