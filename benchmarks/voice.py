# SPDX-License-Identifier: Apache-2.0
"""How well the speech engines understand: 60 commands, spoken by flite and espeak-ng.

Each command is said by one voice of each synthesiser, at changing speeds, in silence and with pink
noise at 20 and 10 dB below the speech. What an engine writes goes through the vocabulary of
lisa-tabletop, as in the voice node. Then a minute each of noise and of music alone.

    words      word error rate of what the engine wrote
    understood what was meant came out, and was sure
    wrong      something else came out, and was sure
    (the rest  was told as unsure, and did nothing)

Synthetic speech is harder for these engines than a person's: they were trained on people.

    python benchmarks/voice.py [--engines pocketsphinx moonshine] [--whisper FOLDER] [--json FILE]

Needs flite and espeak-ng, and `pip install 'lisa_ros[voice]'`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein
from tqdm import tqdm

from lisa_ros.voice import engines
from lisa_ros.voice.audio import RATE, read_wav
from lisa_ros.voice.listener import Listener, Outcome
from lisa_ros.voice.vocabulary import Vocabulary, normalize

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
NOISES = (None, 20, 10)  # of the speech over the noise [dB]


def speak(synthesiser: str, voice: str, speed: float, text: str) -> np.ndarray:
    """Return a text spoken."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'said.wav'
        if synthesiser == 'flite':
            said = ['flite', '-voice', voice, '--setf', f'duration_stretch={speed}', '-t', text]
            subprocess.run([*said, '-o', path], check=True, capture_output=True)  # noqa: S603
        else:
            said = ['espeak-ng', '-v', voice, '-s', str(speed), '-w', path, text]
            subprocess.run(said, check=True, capture_output=True)  # noqa: S603
        return read_wav(path)


def pink(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return noise whose power falls with the frequency, of mean square one."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum /= np.maximum(1, np.arange(len(spectrum))) ** 0.5
    noise = np.fft.irfft(spectrum, count)
    return (noise / noise.std()).astype(np.float32)


def music(rng: np.random.Generator, seconds: int) -> np.ndarray:
    """Return chords with overtones and a beat: four to the bar, a new chord each bar."""
    beat = np.arange(RATE // 2) / RATE
    out = []
    for bar in range(seconds // 2):
        root = 110 * 2 ** (rng.choice([0, 5, 7, 9]) / 12)
        for _ in range(4):
            tone = np.zeros_like(beat)
            for third in (0, 4, 7, 12 + rng.choice([0, 2, 4, 7])):
                pitch = root * 2 ** (third / 12)
                tone += sum(np.sin(2 * np.pi * pitch * k * beat) / k for k in range(1, 7))
            tone *= np.exp(-2 * beat)
            drum = rng.standard_normal(len(beat)) * np.exp(-40 * beat) * (1 + bar % 2)
            out.append(0.06 * tone + 0.1 * drum)
    return np.concatenate(out).astype(np.float32)


def utterances(noise: float | None, synthesiser: str):
    """Yield (voice, command, samples) of all commands."""
    rng = np.random.default_rng(0)
    voices, speeds = VOICES[synthesiser]
    for i, command in enumerate(COMMANDS):
        voice, speed = voices[i % len(voices)], speeds[i // len(voices) % len(speeds)]
        said = speak(synthesiser, voice, speed, command)
        power = float((said[np.abs(said) > 0.01] ** 2).mean())
        said = np.pad(said, (int(0.3 * RATE), int(0.4 * RATE)))
        floor = 5e-4 if noise is None else (power / 10 ** (noise / 10)) ** 0.5
        yield voice, command, said + floor * pink(rng, len(said))


def judge(engine, vocabulary: Vocabulary, noise: float | None, synthesiser: str) -> list[dict]:
    """Return what became of each command."""
    listener = Listener(engine, vocabulary, partial=0)
    rows = []
    said = utterances(noise, synthesiser)
    for voice, command, samples in tqdm(said, f'{engine.name} {synthesiser} {noise}', 60):
        began = time.perf_counter()
        words = engine.hear(samples)
        took = time.perf_counter() - began
        outcome, text, meant, confidence = listener.judge(words)
        sure = outcome is Outcome.COMMAND
        right = vocabulary.meaning(meant.replace(':', '')) == vocabulary.meaning(command)
        errors = Levenshtein.distance(command.split(), normalize(text).split())
        rows.append(
            {
                'voice': voice, 'command': command, 'text': text, 'meant': meant,
                'confidence': confidence, 'understood': right and sure,
                'wrong': sure and not right, 'errors': errors, 'words': len(command.split()),
                'seconds': took, 'length': len(samples) / RATE,
            }
        )  # fmt: skip
    return rows


def row(name: str, rows: list[dict]) -> str:
    """Return a line of the table."""
    of = {key: sum(r[key] for r in rows) for key in ('errors', 'words', 'understood', 'wrong')}
    speed = sum(r['seconds'] for r in rows) / sum(r['length'] for r in rows)
    return (
        f'{name:40} {len(rows):4} {of["errors"] / of["words"]:8.2f} '
        f'{of["understood"] / len(rows):11.0%} {of["wrong"]:6} {speed:9.2f}'
    )


def alone(engine, vocabulary: Vocabulary, sounds: dict[str, np.ndarray]) -> dict[str, dict]:
    """Return how many utterances and commands the listener makes of sounds without speech."""
    found = {}
    for name, samples in sounds.items():
        listener = Listener(engine, vocabulary, partial=0.7)
        heard = [*listener.feed(samples), *listener.finish()]
        commands = [h.command for h in heard if h.outcome is Outcome.COMMAND]
        found[name] = {'heard': len(heard), 'commands': commands}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--engines', nargs='+', default=['pocketsphinx', 'moonshine'])
    parser.add_argument('--whisper', default='', help='folder of the model, for engine whisper')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    vocabulary = Vocabulary.load(VOCABULARY)
    rng = np.random.default_rng(1)
    sounds = {
        'a minute of pink noise': 0.05 * pink(rng, 60 * RATE),
        'a minute of music': music(rng, 60),
    }
    kept = {}
    for name in options.engines:
        engine = engines.load(name, vocabulary, '', options.whisper, 'auto')
        of = {
            (synthesiser, noise): judge(engine, vocabulary, noise, synthesiser)
            for noise in NOISES
            for synthesiser in VOICES
        }
        print(f'\n{name:40} {"":4} {"words":>8} {"understood":>11} {"wrong":>6} {"of time":>9}')
        for (synthesiser, noise), rows in of.items():
            loud = 'clean' if noise is None else f'noise at {noise} dB'
            print(row(f'{synthesiser}, {loud}', rows))
            for voice in VOICES[synthesiser][0]:
                print(row(f'    {voice}', [r for r in rows if r['voice'] == voice]))
            for r in rows:
                if r['wrong']:
                    print(f'    WRONG: {r["command"]!r} became {r["meant"]!r}')
        quiet = alone(engine, vocabulary, sounds)
        for what, told in quiet.items():
            print(f'{what}: {told["heard"]} heard, commands: {told["commands"] or "none"}')
        kept[name] = {f'{s} {n}': rows for (s, n), rows in of.items()} | {'alone': quiet}
    if options.json:
        options.json.write_text(json.dumps(kept))


if __name__ == '__main__':
    main()
