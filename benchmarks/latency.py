# SPDX-License-Identifier: Apache-2.0
"""Measure the time from a command to its mask and to the end of its answer, at the size of LISA.

    python benchmarks/latency.py --size small [--device D] [--precision P] [--json] [--out FOLDER]

All paths run on the same random weights, in one process and in turns. The answer is forced to a
reply of LISA: short is "It is [SEG]." with </s>, long has 64 tokens; [SEG] is the third.

    upstream  the original algorithm: no cache, CLIP again for each token, logits of all positions,
              SAM after the answer, with transformers' modules
    plain     transformers' cache, one token after the other, SAM at the first [SEG]
    ours      `LisaBackend`
    floor     one CLIP pass, one prefill, one SAM encoding and one mask decoder call by
              transformers' modules, without anything between them

`--json` prints one JSON object; `--out` keeps it with a plot.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import endurance_report as report
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from lisa_ros import native_settings
from lisa_ros.model.image_processing import ClipPreprocessing, clip_pixels, sam_input
from lisa_ros.model.language_model import LanguageModel
from lisa_ros.model.lisa import LISA
from lisa_ros.model.lisa_config import LisaConfig, sam_config
from lisa_ros.model.quantization import (
    PRECISIONS,
    QUANTIZED_BITS,
    is_quantized,
    quantize_linear,
    storage_dtype,
)
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception.backend import InferenceOptions, Query
from lisa_ros.perception.lisa_backend import LisaBackend
from lisa_ros.perception.prompts import prompt_ids
from lisa_ros.resources import DEFAULT_MODEL, WEIGHTS
from lisa_ros.results import Done, MaskReady

VOCABULARY = 32004  # of LLaMA, with the tokens of LISA
LONG = 64  # tokens of the long reply
QUESTION = 'something to clean this spill {}? Please output segmentation mask.'
EXPLANATION = (
    '. It is a roll of paper, which takes up water, milk and oil, and it is next to the cup that '
    'fell over. A cloth would do as well, but the only one in this image is under a plate, so a '
    'robot would have to move that plate first, and may break it. The sponge near the sink is wet.'
)
_SHAPE = 'hidden_size', 'intermediate_size', 'num_hidden_layers'
_BASE = 64
SIZES = {  # LLaMA: width, MLP, layers, heads; CLIP: the same, image, patch; SAM: see sam_config
    'tiny': ((64, 128, 2, 4), (32, 64, 2, 2, 56, 14), (128, 48, 2, 3, (1,))),
    'small': ((512, 1376, 8, 8), (768, 3072, 12, 12, 224, 14), (1024, 768, 12, 12, (2, 5, 8, 11))),
    '7b': (
        (4096, 11008, 32, 32),
        (1024, 4096, 24, 16, 224, 14),
        (1024, 1280, 32, 16, (7, 15, 23, 31)),
    ),
    '13b': (
        (5120, 13824, 40, 40),
        (1024, 4096, 24, 16, 224, 14),
        (1024, 1280, 32, 16, (7, 15, 23, 31)),
    ),
}


class ForcedLanguageModel(LanguageModel):
    """Computes everything and chooses the tokens of a given reply.

    Two numbers of each state are replaced by its position, so that `scores` knows it.
    """

    def __init__(self, llm: torch.nn.Module):
        super().__init__(llm)
        # on the device, where a captured step reads them
        self._reply = torch.zeros(LONG, dtype=torch.long, device=self.device)
        self._prompt_length = torch.zeros(1, dtype=torch.long, device=self.device)

    def force(self, reply: list[int], prompt_length: int) -> None:
        """Answer the next prompt, of so many positions, with a reply of at most LONG tokens."""
        padded = reply + reply[-1:] * (LONG - len(reply))
        self._reply.copy_(torch.tensor(padded))
        self._prompt_length.fill_(prompt_length)

    def read(
        self, embeddings: Tensor, key_values, *, positions=None, mask=None, last=None
    ) -> Tensor:
        """Note which positions are read; see LanguageModel."""
        start = key_values.length
        states = super().read(embeddings, key_values, positions=positions, mask=mask, last=last)
        if positions is None:
            positions = torch.arange(start, start + embeddings.shape[1], device=self.device)[None]
        positions = positions[:, positions.shape[1] - states.shape[1] :]
        # whole numbers up to 256 are exact in bf16
        states[..., -1] = (positions // _BASE).to(states.dtype)
        states[..., -2] = (positions % _BASE).to(states.dtype)
        return states

    def scores(self, states: Tensor) -> Tensor:
        """Return scores whose largest is that of the reply's next token."""
        scores = super().scores(states)
        positions = _BASE * states[..., -1].long() + states[..., -2].long()
        following = (positions - self._prompt_length + 1).clamp(0, LONG - 1)
        return scores.scatter(-1, self._reply[following][..., None], 1000.0)


class Bench:
    """A random LISA of a size, an image source, and the four paths."""

    def __init__(self, size: str, device: str, precision: str):
        self.device, self.size = torch.device(device), size
        self.dtype = PRECISIONS[precision]  # of weights that are not quantized
        self.tokenizer = Tokenizer.load(WEIGHTS / DEFAULT_MODEL)
        self.config = lisa_config(size, self.tokenizer.seg_token_id)
        self.model = random_lisa(self.config, self.device, precision)
        self.preprocessing = ClipPreprocessing.of_size(self.config.clip.image_size)
        self.language_model = ForcedLanguageModel(self.model.llm)
        self.backend = LisaBackend(
            self.model, self.tokenizer, self.preprocessing, language_model=self.language_model
        )
        self._random = np.random.default_rng(0)
        self._questions = 0

    def new_image(self) -> np.ndarray:
        """Return an image that no path has seen, (480, 640, 3) uint8 RGB."""
        return self._random.integers(0, 256, (480, 640, 3), np.uint8)

    def reply(self, length: int) -> list[int]:
        """Return the token ids of a reply with [SEG] at the third place and </s> at the end."""
        start = self.tokenizer.encode('It is', parse_special=False)[:2]
        tokens = [*start, self.config.seg_token_id]
        more = self.tokenizer.encode(EXPLANATION, parse_special=False)[: length - 4]
        assert len(more) == length - 4, len(more)
        return [*tokens, *more, self.tokenizer.eos_token_id]

    def ask(self, number: int | None = None) -> tuple[str, list[int]]:
        """Return a question that no path has had, and the ids of its prompt.

        Args:
            number: that is in no other question; None: the next one.
        """
        self._questions += 1
        text = QUESTION.format(self._questions if number is None else number)
        return text, prompt_ids(self.tokenizer, self.backend.template, text)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    # ---- the paths: each yields when the mask is ready, and ends with the answer

    def ours(self, image: np.ndarray, reply: list[int]) -> Iterator[None]:
        """Answer as the package does."""
        text, ids = self.ask()
        self.language_model.force(reply, len(ids) - 1 + self.config.image_tokens)
        options = InferenceOptions(max_new_tokens=len(reply))
        for event in self.backend.stream(image, Query(text), options, threading.Event()):
            if isinstance(event, MaskReady):
                yield
            if isinstance(event, Done):
                assert len(event.result.token_ids) == len(reply), event.result.answer_raw

    def plain(self, image: np.ndarray, reply: list[int]) -> Iterator[None]:
        """Answer with transformers' own cache."""
        model, (_, ids) = self.model, self.ask()
        embeddings = model.embed(self._tensor(ids), self._clip(image))
        cache = DynamicCache(config=model.llm.config)
        states = self._read(embeddings[None], cache)
        for token in reply:
            self._choose(states[0, -1:])
            if token == self.config.seg_token_id:
                self._mask(image, states[0, -1:])
                yield
            embedding = model.llm.get_input_embeddings()(self._tensor([[token]]))
            states = self._read(embedding, cache)

    def upstream(self, image: np.ndarray, reply: list[int]) -> Iterator[None]:
        """Answer as dvlab-research/LISA does: evaluate() of model/LISA.py."""
        model, (_, ids) = self.model, self.ask()
        seg_state = None
        for count, token in enumerate(reply):
            tokens = self._clip(image)
            embeddings = model.embed(self._tensor([*ids, *reply[:count]]), tokens)
            states = model.llm.model(inputs_embeds=embeddings[None], use_cache=False)
            states = states.last_hidden_state[0]
            model.llm.lm_head(states).float()[-1].argmax().item()
            if token == self.config.seg_token_id:
                seg_state = states[-1:]
        self._mask(image, seg_state)
        yield

    def floor(self, image: np.ndarray) -> dict[str, float]:
        """Return the seconds of each part on its own."""
        model, (_, ids) = self.model, self.ask()
        seconds = {}
        pixels = self._pixels(clip_pixels(image, self.preprocessing))
        tokens, seconds['clip'] = self._timed(lambda: model.encode_clip(pixels)[0])
        embeddings = model.embed(self._tensor(ids), tokens)[None]
        cache = DynamicCache(config=model.llm.config)
        states, seconds['prefill'] = self._timed(lambda: self._read(embeddings, cache))
        pixels = self._pixels(sam_input(image, self.config.sam_size).pixels).to(self.dtype)
        encoder = model.sam.vision_encoder
        grid, seconds['sam'] = self._timed(lambda: encoder(pixels).last_hidden_state)
        prompts = model.project_seg(states[0, -1:])
        _, seconds['mask'] = self._timed(lambda: model.decode_masks(grid, prompts))
        _, seconds['our sam'] = self._timed(lambda: model.encode_sam(pixels))
        return seconds

    # ---- parts of the paths

    def _tensor(self, ids: list) -> Tensor:
        return torch.tensor(ids, device=self.device)

    def _pixels(self, pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(pixels)[None].to(self.device)

    def _clip(self, image: np.ndarray) -> Tensor:
        pixels = clip_pixels(image, self.preprocessing)
        return self.model.encode_clip(self._pixels(pixels))[0]

    def _read(self, embeddings: Tensor, cache: DynamicCache) -> Tensor:
        # by position: transformers 5.24 renamed past_key_values to cache
        states = self.model.llm.model(None, None, None, cache, embeddings, use_cache=True)
        return states.last_hidden_state

    def _choose(self, state: Tensor) -> None:
        scores = self.model.llm.lm_head(state).float()
        float(scores.softmax(-1)[0, int(scores.argmax())])

    def _mask(self, image: np.ndarray, state: Tensor) -> None:
        padded = sam_input(image, self.config.sam_size)
        encoder = self.model.sam.vision_encoder
        grid = encoder(self._pixels(padded.pixels).to(self.dtype)).last_hidden_state
        low_res, _ = self.model.decode_masks(grid, self.model.project_seg(state))
        self.model.postprocess(low_res, padded.resized, padded.original)[0].cpu().numpy()

    def _timed(self, run: Callable[[], Tensor]) -> tuple[Tensor, float]:
        self.synchronize()
        start = time.perf_counter()
        result = run()
        self.synchronize()
        return result, time.perf_counter() - start

    @torch.inference_mode()
    def times(
        self, path: Callable[..., Iterator[None]], *arguments: object
    ) -> tuple[float, float]:
        """Return the seconds of a path to its mask and to the end of its answer."""
        self.synchronize()
        start, mask = time.perf_counter(), None
        for _ in path(*arguments):
            self.synchronize()
            mask = time.perf_counter() - start
        self.synchronize()
        return mask, time.perf_counter() - start


def lisa_config(size: str, seg_token_id: int) -> LisaConfig:
    """Return the config of a size."""
    llama, clip, sam = SIZES[size]
    return LisaConfig(
        clip=CLIPVisionConfig(
            **dict(zip(_SHAPE, clip, strict=False)),
            num_attention_heads=clip[3],
            image_size=clip[4],
            patch_size=clip[5],
        ),
        llama=LlamaConfig(
            **dict(zip(_SHAPE, llama, strict=False)),
            num_attention_heads=llama[3],
            num_key_value_heads=llama[3],
            vocab_size=VOCABULARY,
            max_position_embeddings=2048,
        ),
        sam=sam_config(
            image_size=sam[0],
            width=sam[1],
            depth=sam[2],
            heads=sam[3],
            global_layers=sam[4],
            prompt_width=256,
        ),
        seg_token_id=seg_token_id,
    )


def random_lisa(config: LisaConfig, device: torch.device, precision: str) -> LISA:
    """Return a LISA with random weights, made on the device, in a precision as `load` makes it."""
    with torch.device('meta'):
        model = LISA(config)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in model.state_dict().items():
        dtype = storage_dtype(name, precision) if weight.is_floating_point() else weight.dtype
        tensor = torch.ones(weight.shape, dtype=dtype, device=device)
        if weight.is_floating_point() and not ('norm' in name and name.endswith('weight')):
            tensor.normal_(0, 0.02, generator=generator)
        _set_weight(model, name, tensor, precision)
    rebuilt = dict(LISA(_without_layers(config)).named_buffers())
    for name, _ in list(model.named_buffers()):  # computed: rotary frequencies, position ids
        if name in rebuilt:
            path, _, leaf = name.rpartition('.')
            buffer = rebuilt[name].to(device)
            setattr(model.get_submodule(path), leaf, buffer)
    return model.eval().requires_grad_(False)


def _set_weight(model: LISA, name: str, tensor: Tensor, precision: str) -> None:
    """Put a weight into a model without storage; quantize it if the precision asks for that."""
    path, _, leaf = name.rpartition('.')
    module = model.get_submodule(path)
    if precision in QUANTIZED_BITS and is_quantized(name, module):
        layer = quantize_linear(module, tensor, tensor.device, precision)
        model.set_submodule(path, layer)
    elif leaf in module._parameters:  # of torch's own, as its documentation names it
        setattr(module, leaf, torch.nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(module, leaf, tensor)


def _without_layers(config: LisaConfig) -> LisaConfig:
    """Return the config of a LISA whose language model has one layer."""
    import copy
    import dataclasses

    llama = copy.deepcopy(config.llama)
    llama.num_hidden_layers = 1
    llama.vocab_size = 8
    return dataclasses.replace(config, llama=llama)


def measure(bench: Bench, rounds: int, has_upstream: bool) -> dict[str, float]:
    """Return all times, as medians over rounds in which the paths take turns [s].

    Args:
        bench: the paths.
        rounds: number of them.
        has_upstream: measure `upstream`, too; its long answer, which takes minutes, only once.
    """
    short, long = bench.reply(5), bench.reply(LONG)
    image = bench.new_image()
    for path in (bench.ours, bench.plain):  # warm up
        bench.times(path, image, short)
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    for round_number in tqdm(range(rounds), desc='latency', unit='round'):
        bench.backend.clear_cache()
        fresh, further = bench.new_image(), bench.new_image()
        with torch.inference_mode():
            for part, seconds in bench.floor(bench.new_image()).items():
                note(f'floor {part}', seconds)
        for name, reply in (('short', short), ('long', long)):
            if name == 'long':
                bench.backend.clear_cache()
                fresh = bench.new_image()
            mask, end = bench.times(bench.ours, fresh, reply)
            note(f'ours {name} mask', mask)
            note(f'ours {name} answer', end)
            mask, end = bench.times(bench.ours, fresh, reply)
            note(f'ours {name} same frame mask', mask)
            note(f'ours {name} same frame answer', end)
            mask, end = bench.times(bench.plain, further, reply)
            note(f'plain {name} mask', mask)
            note(f'plain {name} answer', end)
            if has_upstream and (round_number == 0 or name == 'short'):
                mask, _ = bench.times(bench.upstream, further, reply)
                note(f'upstream {name}', mask)
    return {name: statistics.median(values) for name, values in rows.items()}


def figures(times: dict[str, float]) -> dict[str, float]:
    """Return the ratios of the times."""
    floor = sum(times[f'floor {part}'] for part in ('clip', 'prefill', 'sam', 'mask'))
    ratios = {
        'mask_over_floor': times['ours short mask'] / floor,
        'sam_encoder_speedup': times['floor sam'] / times['floor our sam'],
        'same_frame_over_fresh': times['ours short same frame mask'] / times['ours short mask'],
        'plain_mask_speedup': times['plain short mask'] / times['ours short mask'],
    }
    if 'upstream long' not in times:
        return ratios
    return ratios | {
        'upstream_same_frame_speedup': times['upstream short']
        / times['ours short same frame mask'],
        'upstream_mask_speedup': times['upstream long'] / times['ours long mask'],
        'upstream_answer_speedup': times['upstream long'] / times['ours long answer'],
    }


def plot(times: dict[str, float], path: Path, title: str) -> None:
    """Draw the time to the mask and to the end of the answer, by path and reply."""
    from matplotlib.figure import Figure

    floor = {part: times[f'floor {part}'] for part in ('clip', 'prefill', 'sam', 'mask')}
    figure = Figure(figsize=(9, 5), layout='constrained')
    axes = figure.subplots()
    rows = {
        'floor': sum(floor.values()),
        'ours, further question, mask': times['ours short same frame mask'],
        'ours, mask': times['ours short mask'],
        'plain, mask': times['plain short mask'],
        'upstream, mask': times.get('upstream short'),
        f'ours, {LONG} tokens': times['ours long answer'],
        f'plain, {LONG} tokens': times['plain long answer'],
        f'upstream, {LONG} tokens': times.get('upstream long'),
    }
    rows = {name: seconds for name, seconds in rows.items() if seconds}
    names, values = list(rows)[::-1], np.array(list(rows.values())[::-1])
    colors = ['tab:green' if 'ours' in name else 'tab:gray' for name in names]
    axes.barh(names, 1000 * values, color=colors)
    for row, value in enumerate(values):
        axes.text(1000 * value * 1.05, row, f'{1000 * value:.0f} ms', va='center')
    axes.set(xscale='log', xlabel='time [ms]', title=title, xlim=(None, 4000 * values.max()))
    figure.savefig(path, dpi=100)


def peak_memory(path: str, options: argparse.Namespace) -> int:
    """Return the peak memory of one path in a process of its own [bytes]."""
    command = [sys.executable, __file__, '--size', options.size, '--device', options.device]
    command += ['--precision', options.precision, '--memory-of', path]
    return int(subprocess.check_output(command, text=True).split()[-1])  # noqa: S603


def print_memory(bench: Bench, path: str) -> None:
    """Answer once and print the peak memory of this process, weights included [bytes]."""
    with contextlib.suppress(OSError, AttributeError):  # Linux: forget how the weights were made
        ctypes.CDLL(None).malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
    if bench.device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(bench.device)
    bench.times(getattr(bench, path), bench.new_image(), bench.reply(5))
    if bench.device.type == 'cuda':
        print(torch.cuda.max_memory_allocated(bench.device))
        return
    from lisa_ros.perception.process_memory import process_memory

    print(process_memory().peak)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add size, device, precision and threads."""
    parser.add_argument('--size', choices=SIZES, default='small', help='(default: small)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda (default: cpu)')
    parser.add_argument(
        '--precision', choices=PRECISIONS, default=None, help='(default: fp32 on a CPU, else bf16)'
    )
    parser.add_argument('--threads', type=int, default=2, help='of a CPU (default: 2)')


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    parser.add_argument('--rounds', type=int, default=3, help='(default: 3)')
    parser.add_argument(
        '--no-upstream', dest='upstream', action='store_false', help='leave the slowest path out'
    )
    parser.add_argument('--json', action='store_true', help='print JSON (default: a table)')
    parser.add_argument('--out', type=Path, help='folder for JSON and plot (default: none)')
    parser.add_argument('--memory-of', help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precision = options.precision or ('fp32' if options.device == 'cpu' else 'bf16')
    torch.set_num_threads(options.threads)
    native_settings.apply()  # as the node and the command line do, for all paths
    bench = Bench(options.size, options.device, options.precision)
    if options.memory_of:
        print_memory(bench, options.memory_of)
        return
    times = measure(bench, options.rounds, options.upstream)
    ratios = figures(times)
    del bench
    device = report.machine() if options.device == 'cpu' else torch.cuda.get_device_name()
    paths = ('upstream', 'ours') if options.upstream else ('ours',)
    memory = {path: peak_memory(path, options) for path in paths}
    if options.upstream:
        ratios['peak_memory_over_upstream'] = memory['ours'] / memory['upstream']
    result = {
        **{name: round(value, 4) for name, value in ratios.items()},
        'seconds': {name: round(value, 5) for name, value in times.items()},
        'peak_memory': memory,
        'size': options.size,
        'device': device,
        'precision': options.precision,
        'threads': options.threads,
        'torch': torch.__version__,
    }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in times.items():
            print(f'{name:36}{1000 * value:12.1f} ms')
        for name, value in ratios.items():
            print(f'{name:36}{value:12.3f}')
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        name = f'latency_{options.size}_{options.precision}.json'
        path = options.out / name
        path.write_text(json.dumps(result, indent=2), encoding='utf-8')
        plot(times, path.with_suffix('.png'), f'{options.size}, {options.precision}, {device}')


if __name__ == '__main__':
    main()
