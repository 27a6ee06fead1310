# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import original_sam
import pytest
import torch
from golden import DATA, backend, cases, generated_ids, load_image, segmenter, weight_shapes
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from lisa_ros.errors import CheckpointError, SettingsError
from lisa_ros.model import assembly, checkpoint, export, from_llava, quantization, sam_file
from lisa_ros.model.checkpoint_checks import check_keys
from lisa_ros.model.config_inference import infer_config
from lisa_ros.model.image_processing import ClipPreprocessing
from lisa_ros.model.key_mapping import map_clip_key, map_key, unmap_key
from lisa_ros.model.lisa import LISA
from lisa_ros.perception.backend import InferenceOptions
from lisa_ros.perception.lisa_backend import LisaBackend
from lisa_ros.perception.segmenter import Segmenter

CKPT, CLIP = DATA / 'ckpt_256', DATA / 'clip_256'
CASE = next(case for _, case in cases(256) if case['case'] == 2)  # three [SEG]


def weights() -> dict[str, torch.Tensor]:
    return torch.load(CKPT / 'pytorch_model.bin', weights_only=True)


def write_checkpoint(target: Path, state: dict | None, kind: str = 'bin', shards: int = 1) -> Path:
    """Copy the toy checkpoint with other weights or in another format; None: without weights."""
    shutil.copytree(CKPT, target, ignore=shutil.ignore_patterns('*.bin'))
    if state is None:
        return target
    single, suffix, write = {
        'bin': ('pytorch_model', 'bin', torch.save),
        'safetensors': ('model', 'safetensors', save_file),
    }[kind]
    state = {key: tensor.clone() for key, tensor in state.items()}
    if shards == 1:
        write(state, target / f'{single}.{suffix}')
        return target
    keys = list(state)
    weight_map = {}
    for number in range(shards):
        name = f'{single}-{number + 1:05}-of-{shards:05}.{suffix}'
        shard = keys[number::shards]
        write({key: state[key] for key in shard}, target / name)
        weight_map |= dict.fromkeys(shard, name)
    index = {'metadata': {'total_size': 0}, 'weight_map': weight_map}
    (target / f'{single}.{suffix}.index.json').write_text(json.dumps(index))
    return target


# ---- the released sizes, without their weights

CLIP_L = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
)


@pytest.mark.parametrize(
    ('model', 'config', 'layers', 'vocabulary'),
    [
        ('7b', {'num_attention_heads': 32, 'rms_norm_eps': 1e-6}, 32, 32004),
        ('13b', {'num_attention_heads': 40, 'rms_norm_eps': 1e-5}, 40, 32003),
    ],
)
def test_every_released_weight_maps_to_a_weight_of_the_model(model, config, layers, vocabulary):
    shapes = weight_shapes(model)
    sizes = infer_config(shapes, config, CLIP_L, vocabulary - 1, 'llava_v1')
    with torch.device('meta'):
        lisa = LISA(sizes)
    mapped = {map_key(key): shape for key, shape in shapes.items()}
    assert sum(map_key(key) is None for key in shapes) == layers  # inv_freq of each layer
    assert all(map_key(key) is None or unmap_key(map_key(key)) == key for key in shapes)
    del mapped[None]
    clip = {
        'clip.' + name: tuple(weight.shape)
        for name, weight in lisa.clip.state_dict().items()  # comes from its own folder
    }
    check_keys(lisa, mapped | clip, model)
    assert (sizes.llama.vocab_size, sizes.llama.num_hidden_layers) == (vocabulary, layers)
    assert (sizes.sam_size, sizes.out_dim, sizes.image_tokens) == (1024, 256, 256)
    vision = sizes.sam.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (
        *(1280, 32, 16),
    )
    assert list(vision.global_attn_indexes) == [7, 15, 23, 31]
    assert vision.window_size == 14
    assert sizes.sam.mask_decoder_config.mlp_dim == 2048


def test_of_a_whole_clip_only_the_vision_half_is_mapped():
    names = CLIPModel(
        CLIPConfig(
            text_config={'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 1},
            vision_config={'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 1},
        )
    ).state_dict()
    mapped = {map_clip_key(name) for name in [*names, 'vision_model.embeddings.position_ids']}
    assert 'clip.post_layernorm.weight' in mapped
    assert not any('text' in str(name) or 'projection' in str(name) for name in mapped)


# ---- the same weights in other formats


@pytest.mark.parametrize('kind', ['bin', 'safetensors'])
@pytest.mark.parametrize('shards', [1, 3])
def test_shards_and_formats_give_the_same_weights(kind, shards, tmp_path):
    folder = write_checkpoint(tmp_path / 'lisa', weights(), kind, shards)
    loaded = checkpoint.load(folder, vision_tower=CLIP).model.state_dict()
    expected = backend(256).model.state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_seg_can_have_another_id(tmp_path):
    """The model with [SEG] and <im_end> swapped gives the same answer, with the ids swapped."""
    state, (seg, other) = weights(), (704, 706)
    for key in ('model.embed_tokens.weight', 'lm_head.weight'):
        state[key][[seg, other]] = state[key][[other, seg]]
    folder = write_checkpoint(tmp_path / 'lisa', state, 'safetensors', shards=2)
    added = {'<im_end>': seg, '<im_start>': 705, '[SEG]': other}
    (folder / 'added_tokens.json').write_text(json.dumps(added))
    lisa = Segmenter.load(
        folder, vision_tower=CLIP, device='cpu', template=CASE['template'], precision='fp32'
    )
    assert lisa.backend.model.config.seg_token_id == other
    result = lisa.segment(load_image(CASE['image']), CASE['prompt'])
    swap = {seg: other, other: seg}
    assert [swap.get(index, index) for index in result.token_ids] == generated_ids(256, CASE)
    expected = segmenter(256, CASE['template']).segment(load_image(CASE['image']), CASE['prompt'])
    assert result.mask_logits == pytest.approx(expected.mask_logits, abs=1e-3)


@pytest.mark.parametrize('name', ['as ViT-H in small', 'a window larger than the grid'])
def test_all_sizes_are_inferred_from_the_checkpoint(name, tmp_path):
    """Another LLaMA (grouped heads, more tokens), CLIP (336 px, with its text half) and SAM."""
    size = original_sam.SIZES[name]
    sam = original_sam.build(size)
    torch.manual_seed(1)
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=711,
            rms_norm_eps=1e-6,
            max_position_embeddings=2048,
        )
    )
    vision = {'hidden_size': 24, 'intermediate_size': 40, 'num_hidden_layers': 4}
    vision |= {'num_attention_heads': 3, 'image_size': 336, 'patch_size': 14}
    text = {'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 1}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    state = {key: tensor.clone() for key, tensor in llama.state_dict().items()}
    state |= {
        f'model.visual_model.{key}': tensor
        for key, tensor in sam.state_dict().items()
        if not key.startswith('pixel_')
    }
    state |= {
        'model.mm_projector.weight': torch.randn(48, 24),
        'model.mm_projector.bias': torch.randn(48),
        'model.text_hidden_fcs.0.0.weight': torch.randn(48, 48) / 7,
        'model.text_hidden_fcs.0.0.bias': torch.randn(48),
        'model.text_hidden_fcs.0.2.weight': torch.randn(size.prompt, 48) / 7,
        'model.text_hidden_fcs.0.2.bias': torch.randn(size.prompt),
        'model.layers.0.self_attn.rotary_emb.inv_freq': torch.randn(4),
    }
    folder = write_checkpoint(tmp_path / 'lisa', state, 'bin', shards=4)
    config = json.loads((folder / 'config.json').read_text()) | {
        'hidden_size': 48,
        'intermediate_size': 80,
        'num_hidden_layers': 3,
        'num_attention_heads': 6,
        'num_key_value_heads': 2,
        'vocab_size': 711,
        'rms_norm_eps': 1e-6,
        'mm_vision_select_layer': -3,
        'mm_vision_tower': str(tmp_path / 'clip'),  # found without the argument
        '_name_or_path': 'liuhaotian/LLaVA-Lightning-7B-v1-1',
    }
    (folder / 'config.json').write_text(json.dumps(config))
    clip.save_pretrained(tmp_path / 'clip')
    preprocessing = ClipPreprocessing.of_size(336).to_dict()
    (tmp_path / 'clip' / 'preprocessor_config.json').write_text(json.dumps(preprocessing))

    loaded = checkpoint.load(folder)
    model = loaded.model
    assert model.config.template == 'llava_v1'
    assert model.config.image_tokens == 576
    assert loaded.clip_preprocessing.output == (336, 336)
    with torch.no_grad():
        pixels = torch.randn(1, 3, 336, 336)
        states = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-3][:, 1:]
        torch.testing.assert_close(model.encode_clip(pixels), model.mm_projector(states))
        ids = torch.randint(3, 711, (1, 9))
        torch.testing.assert_close(model.llm(ids).logits, llama.eval()(ids).logits)
        pixels, prompts = torch.randn(1, 3, *2 * [size.image]), torch.randn(2, size.prompt)
        grid, low_res, _ = original_sam.masks(sam, pixels, prompts)
        torch.testing.assert_close(model.encode_sam(pixels), grid, atol=2e-5, rtol=1e-4)
        masks, _ = model.decode_masks(grid, prompts)
        torch.testing.assert_close(masks, low_res, atol=2e-4, rtol=1e-4)
    lisa = Segmenter(
        LisaBackend(model, loaded.tokenizer, loaded.clip_preprocessing),
        InferenceOptions(max_new_tokens=3),
    )
    assert len(lisa.segment(load_image('coffee'), 'where is it').token_ids) <= 3


def test_the_template_follows_from_the_base_model():
    assert backend(256).template == 'llava_llama_2'  # llava-llama-2-13b-chat


# ---- our own layout


@pytest.mark.parametrize('tied', [False, True])
def test_a_saved_model_loads_unchanged(tied, tmp_path):
    source = checkpoint.load(CKPT, vision_tower=CLIP, template='plain')
    model = source.model
    if tied:
        model.config.llama.tie_word_embeddings = True
        model.llm.lm_head.weight = model.llm.model.embed_tokens.weight
    export.save(model, source.tokenizer, source.clip_preprocessing, tmp_path, dtype=torch.float32)
    reloaded = checkpoint.load(tmp_path)
    assert reloaded.model.config.to_dict() == model.config.to_dict()
    assert reloaded.model.config.template == 'plain'
    assert reloaded.clip_preprocessing == source.clip_preprocessing
    expected, loaded = model.state_dict(), reloaded.model.state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    llm = reloaded.model.llm
    assert (llm.lm_head.weight is llm.model.embed_tokens.weight) == tied


def test_a_model_saved_in_fp16_is_half_as_large_and_answers_the_same(tmp_path):
    lisa = backend(256)
    export.save(lisa.model, lisa.tokenizer, lisa.clip_preprocessing, tmp_path)
    count = sum(weight.numel() for weight in lisa.model.parameters())
    assert (tmp_path / 'model.safetensors').stat().st_size < 2.1 * count
    half = Segmenter.load(tmp_path, device='cpu', template=CASE['template'])
    result = half.segment(load_image(CASE['image']), CASE['prompt'])
    assert list(result.token_ids) == generated_ids(256, CASE)


# ---- the released layout, written


def test_the_released_layout_is_written_with_the_originals_keys_types_and_values(tmp_path):
    source = backend(256)
    export.save_original(source.model, source.tokenizer, tmp_path, dtype=torch.bfloat16)
    written, original = torch.load(tmp_path / 'pytorch_model.bin', weights_only=True), weights()
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        assert written[name].dtype == tensor.dtype, name
        assert torch.equal(written[name], tensor), name
    config, expected = (
        json.loads((folder / 'config.json').read_text()) for folder in (tmp_path, CKPT)
    )
    assert {name: config.get(name) for name in expected} == expected
    assert config.keys() - expected.keys() == {'conv_type', 'rope_theta'}
    names = {path.name for path in CKPT.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize(
    ('model', 'config', 'vocabulary'),
    [
        ('7b', {'num_attention_heads': 32, 'rms_norm_eps': 1e-6}, 32004),
        ('13b', {'num_attention_heads': 40, 'rms_norm_eps': 1e-5}, 32003),
    ],
)
def test_the_full_sizes_are_written_with_the_released_keys(model, config, vocabulary, monkeypatch):
    """On the meta device: the weights have no storage."""
    shapes = weight_shapes(model)
    with torch.device('meta'):
        lisa = LISA(infer_config(shapes, config, CLIP_L, vocabulary - 1, 'llava_v1'))
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, 'to', lambda t, *a: to(t, *(x for x in a if x != 'cpu')))
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda t: t)
    state = export.original_state_dict(lisa, torch.bfloat16)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes


def test_a_model_in_the_released_layout_loads_again_bit_by_bit(tmp_path):
    source = checkpoint.load(CKPT, vision_tower=CLIP, template='llava_v1')
    model = source.model
    with torch.no_grad():  # numbers that bfloat16 cannot represent
        model.llm.model.layers[0].self_attn.q_proj.weight += 1e-5
    export.save_original(model, source.tokenizer, tmp_path / 'a', max_shard_bytes=200_000)
    shards = list((tmp_path / 'a').glob('pytorch_model-*-of-*.bin'))
    assert len(shards) > 3
    # views are written without the rest of their storage
    assert max(path.stat().st_size for path in shards) < 400_000
    reloaded = checkpoint.load(tmp_path / 'a', vision_tower=CLIP)
    expected, loaded = model.state_dict(), reloaded.model.state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert reloaded.model.config.to_dict() == model.config.to_dict()
    assert reloaded.tokenizer.encode('a [SEG]', parse_special=True) == source.tokenizer.encode(
        'a [SEG]', parse_special=True
    )
    export.save_original(model, source.tokenizer, tmp_path / 'a')  # removes the old shards
    assert [p.name for p in (tmp_path / 'a').glob('pytorch_model*')] == ['pytorch_model.bin']


def test_a_model_from_tensors_shares_them_and_needs_all_of_them():
    model = backend(256).model
    state = model.state_dict()
    reloaded = assembly.model_from_state_dict(model.config, state)
    weight = reloaded.llm.lm_head.weight
    assert weight.data_ptr() == model.llm.lm_head.weight.data_ptr()
    assert not [name for name, tensor in reloaded.named_buffers() if tensor.is_meta]
    del state['llm.lm_head.weight']
    with pytest.raises(CheckpointError, match=r'1 missing: llm\.lm_head\.weight'):
        assembly.model_from_state_dict(model.config, state)


# ---- a LISA from a LLaVA


def write_llava_and_sam(folder, tokens=704):
    """Write the toy's LLaVA with this number of tokens, and its SAM next to it."""
    prefix = 'model.visual_model.'
    state = {k: t for k, t in weights().items() if 'text_hidden_fcs' not in k}
    sam = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
    rest = {k: t for k, t in state.items() if not k.startswith(prefix)}
    for key in ('model.embed_tokens.weight', 'lm_head.weight'):
        rest[key] = rest[key][:tokens]
    torch.save(sam, folder.parent / 'sam.pth')
    return write_checkpoint(folder, rest, 'safetensors', shards=2), folder.parent / 'sam.pth'


def test_a_llava_with_image_marks_gets_seg_after_them(tmp_path):
    folder, sam = write_llava_and_sam(tmp_path / 'llava', tokens=706)
    (folder / 'added_tokens.json').write_text('{"<im_start>": 704, "<im_end>": 705}')
    lisa = from_llava.load_llava(folder, sam=sam, vision_tower=CLIP)
    assert lisa.tokenizer.encode('<im_start>[SEG]', parse_special=True) == [704, 706]
    assert lisa.model.config.llama.vocab_size == 707
    embeddings = lisa.model.llm.model.embed_tokens.weight
    assert torch.equal(embeddings[:706], weights()['model.embed_tokens.weight'][:706].float())
    mean = embeddings[:706].mean(0)
    torch.testing.assert_close(embeddings[706], mean, atol=1e-3, rtol=1e-2)
    same_seed, other_seed = (
        from_llava.load_llava(folder, sam=sam, vision_tower=CLIP, seed=seed).model.state_dict()
        for seed in (0, 1)
    )
    for name, tensor in lisa.model.state_dict().items():
        assert torch.equal(same_seed[name], tensor)
        assert torch.equal(other_seed[name], tensor) != name.startswith('text_hidden_fcs')


def test_a_folder_that_is_not_a_llava_and_a_file_that_is_not_a_sam_are_refused(tmp_path):
    folder, sam = write_llava_and_sam(tmp_path / 'llava')
    with pytest.raises(CheckpointError, match='is a LISA already'):
        from_llava.load_llava(CKPT, sam=sam, vision_tower=CLIP)
    with pytest.raises(CheckpointError, match=r'no model\.mm_projector'):
        from_llava.load_llava(CLIP, sam=sam)
    with pytest.raises(CheckpointError, match='expected a SAM'):
        from_llava.load_llava(folder, sam=tmp_path / 'none.pth', vision_tower=CLIP)
    torch.save({'weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='not a SAM in'):
        from_llava.load_llava(folder, sam=tmp_path / 'other.pth', vision_tower=CLIP)


# ---- precision and memory


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_keeps_the_mask_decoder_in_float32(precision):
    lisa = Segmenter.load(
        CKPT, vision_tower=CLIP, device='cpu', precision=precision, template=CASE['template']
    )
    dtypes = {name: weight.dtype for name, weight in lisa.backend.model.named_parameters()}
    assert dtypes['llm.lm_head.weight'] == quantization.PRECISIONS[precision]
    assert dtypes['sam.vision_encoder.layers.0.attn.qkv.weight'] == dtypes['llm.lm_head.weight']
    assert dtypes['sam.mask_decoder.iou_token.weight'] == torch.float32
    assert dtypes['sam.vision_encoder.neck.conv1.weight'] == torch.float32
    result = lisa.segment(load_image(CASE['image']), CASE['prompt'])
    assert list(result.token_ids) == generated_ids(256, CASE)
    expected = segmenter(256, CASE['template']).segment(load_image(CASE['image']), CASE['prompt'])
    overlap = (result.masks & expected.masks).sum() / (result.masks | expected.masks).sum()
    assert overlap > 0.9  # a random SAM: the bound cannot be tight


def test_every_loaded_tensor_has_storage():
    model = backend(256).model
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert not [name for name, tensor in tensors if tensor.is_meta]
    assert not model.training


def test_the_weight_file_is_not_needed_after_loading(tmp_path):
    folder = write_checkpoint(tmp_path / 'lisa', weights())
    model = checkpoint.load(folder, vision_tower=CLIP).model
    (folder / 'pytorch_model.bin').write_bytes(b'')  # would break a memory-mapped weight
    expected = backend(256).model.llm.lm_head.weight
    assert torch.equal(model.llm.lm_head.weight, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
@pytest.mark.parametrize('precision', ['bf16', 'fp16', 'int8', 'nf4'])
def test_every_precision_loads_and_answers_on_a_gpu(precision):
    if precision in ('int8', 'nf4'):
        pytest.importorskip('bitsandbytes', reason=f'{precision} needs bitsandbytes')
    lisa = Segmenter.load(
        CKPT, vision_tower=CLIP, device='cuda', precision=precision, template=CASE['template']
    )
    layer = lisa.backend.model.llm.model.layers[0].self_attn.q_proj
    kind = {'int8': 'Linear8bitLt', 'nf4': 'Linear4bit'}.get(precision, 'Linear')
    assert type(layer).__name__ == kind
    tensors = [*lisa.backend.model.named_parameters(), *lisa.backend.model.named_buffers()]
    assert not [name for name, tensor in tensors if tensor.device.type != 'cuda']
    result = lisa.segment(load_image(CASE['image']), CASE['prompt'])
    assert len(result.token_ids) > 0
    assert np.isfinite(result.mask_logits).all()
    if precision == 'bf16':  # a toy's answer may change with fewer bits
        assert list(result.token_ids) == generated_ids(256, CASE)


@pytest.mark.parametrize('precision', ['int8', 'nf4'])
def test_quantization_needs_a_gpu(precision):
    with pytest.raises(SettingsError, match=rf'{precision} needs a CUDA GPU'):
        checkpoint.load(CKPT, vision_tower=CLIP, precision=precision)


@pytest.mark.parametrize(
    ('code', 'message'),
    [
        (
            'import triton_that_has_no_ops',
            r'which cannot be imported \(ModuleNotFoundError: .*ops',
        ),
        ("raise OSError('libcudart.so.13: cannot open')", r'cannot be imported \(OSError: libcud'),
        (None, r'nf4 needs the package bitsandbytes: pip install'),
    ],
)
def test_a_bitsandbytes_that_cannot_be_imported_is_not_called_missing(
    code, message, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, 'bitsandbytes', None)  # as if it were not installed
    if code is not None:
        monkeypatch.delitem(sys.modules, 'bitsandbytes')
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / 'bitsandbytes.py').write_text(code)
    with pytest.raises(SettingsError, match=message) as raised:
        quantization.check_precision('nf4', 'cuda')
    assert ('--upgrade bitsandbytes, or use bf16' in str(raised.value)) == (code is not None)


def test_an_unknown_precision_is_refused():
    with pytest.raises(SettingsError, match=r"'fp8'.*fp32, bf16"):
        checkpoint.load(CKPT, vision_tower=CLIP, precision='fp8')


# ---- folders that are not a LISA


def test_the_error_lists_missing_unexpected_and_misshapen_weights(tmp_path):
    state = weights()
    del state['model.norm.weight'], state['model.visual_model.mask_decoder.iou_token.weight']
    state |= {'model.extra.weight': torch.zeros(1), 'lora_A.weight': torch.zeros(1)}
    state['model.mm_projector.bias'] = torch.zeros(63)
    folder = write_checkpoint(tmp_path / 'lisa', state)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder, vision_tower=CLIP)
    message = str(caught.value)
    missing = 'model.norm.weight, model.visual_model.mask_decoder.iou_token.weight'
    assert f'2 missing: {missing}' in message  # under the names in the user's file
    assert '2 unexpected: lora_A.weight, model.extra.weight' in message
    assert '1 of another shape: model.mm_projector.bias (63,) instead of (64,)' in message


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_weight_file_is_refused_and_not_run(tmp_path):
    folder = write_checkpoint(tmp_path / 'lisa', None)
    torch.save({'weight': Malicious(tmp_path / 'ran')}, folder / 'pytorch_model.bin')
    with pytest.raises(CheckpointError, match='could run code'):
        checkpoint.load(folder, vision_tower=CLIP)
    assert not (tmp_path / 'ran').exists()


LFS_POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 14000000000\n'


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.safetensors'])
def test_a_damaged_weight_file_is_an_error(name, tmp_path):
    folder = write_checkpoint(tmp_path / 'lisa', None)
    for content in (b'not weights', b'', LFS_POINTER):
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf'{name}.*download it again') as caught:
            checkpoint.load(folder, vision_tower=CLIP)
        assert 'could run code' not in str(caught.value)
        assert ('git-lfs pointer?' in str(caught.value)) == (name == 'pytorch_model.bin')


@pytest.mark.parametrize('zipped', [True, False])
def test_a_truncated_or_damaged_sam_file_is_an_error(zipped, tmp_path):
    path = tmp_path / 'sam.pth'
    torch.save({'weight': torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for size in range(2, len(content) // 2, 61):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r'sam\.pth'):
            sam_file.load_sam_pth(path)
    for position in range(2, len(content), 37):
        path.write_bytes(content[:position] + b'\xff' + content[position + 1 :])
        with pytest.raises(CheckpointError):  # if it can be read, it is not a SAM
            sam_file.load_sam_pth(path)


def test_a_missing_shard_is_an_error(tmp_path):
    folder = write_checkpoint(tmp_path / 'lisa', weights(), shards=3)
    (folder / 'pytorch_model-00002-of-00003.bin').unlink()
    with pytest.raises(CheckpointError, match=r'not there: pytorch_model-00002-of-00003\.bin'):
        checkpoint.load(folder, vision_tower=CLIP)


def test_the_error_for_another_folder_says_what_it_is(tmp_path):
    with pytest.raises(CheckpointError, match=r'not a LISA.*CLIPVisionModel.*text_hidden_fcs'):
        checkpoint.load(CLIP)
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(CheckpointError, match=r'no config\.json; found notes\.txt'):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match=r'no such folder.*not a hub id'):
        checkpoint.load(tmp_path / 'nowhere')
    with pytest.raises(CheckpointError, match='is a file'):
        checkpoint.load(tmp_path / 'notes.txt')
    folder = write_checkpoint(tmp_path / 'lisa', None)
    with pytest.raises(CheckpointError, match=r'no weights.*added_tokens\.json'):
        checkpoint.load(folder)


def test_a_vision_tower_that_is_not_a_clip_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / 'lisa', weights())
    with pytest.raises(CheckpointError, match='not a CLIP'):
        checkpoint.load(folder, vision_tower=CKPT)


@pytest.mark.parametrize(
    ('message', 'expected'),
    [
        ('CUDA error: no kernel image is available for execution', 'the device failed'),
        ('CUDA error: unspecified launch failure', 'the device failed'),
        ('HIP error: invalid device function', 'the device failed'),
        ('Error in dlopen: libnvrtc-builtins.so.13.0: cannot open', 'the device failed'),
        ('nvrtc: error: failed to open libnvrtc-builtins.so.12.8.', 'the device failed'),
        ('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "DriverAPI.cpp":9', 'the device failed'),
        (
            'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":995',
            'the memory is full',
        ),
        ('CUDA error: out of memory', 'the memory is full'),
        ("DefaultCPUAllocator: can't allocate memory: you tried to", 'the memory is full'),
        ('shape mismatch in a chip of the relationship', 'its files are damaged'),
    ],
)
def test_a_failure_of_the_device_or_the_memory_is_not_that_of_the_files(
    message, expected, monkeypatch
):
    def failing(*_, **__):
        raise RuntimeError(message)

    monkeypatch.setattr(checkpoint, 'build_model', failing)
    with pytest.raises(CheckpointError, match=expected):
        checkpoint.load(CKPT, vision_tower=CLIP)


def test_a_weight_file_that_the_memory_cannot_hold_is_not_damaged(monkeypatch, tmp_path):
    def failing(*_, **__):
        torch.empty(2**60, dtype=torch.uint8)

    folder = write_checkpoint(tmp_path / 'lisa', weights())
    monkeypatch.setattr(torch, 'load', failing)
    with pytest.raises(CheckpointError, match=r'the memory is full.*DefaultCPUAllocator'):
        checkpoint.load(folder, vision_tower=CLIP)


@pytest.mark.parametrize('error', [OSError('no network'), Exception('no network\nat'), OSError()])
def test_a_failed_download_is_reported_with_a_remedy(error, monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', offline)
    summary = f'{type(error).__name__}: {"no network" if error.args else ""}'
    with pytest.raises(CheckpointError, match=rf'someone/LISA.*\({summary}\).*local folder'):
        checkpoint.load('someone/LISA')


def refusal(name, status):
    """Return an error as huggingface_hub raises it for an answer of the hub."""
    from huggingface_hub import errors

    error = getattr(errors, name).__new__(getattr(errors, name))
    error.args = (f'{status} Client Error. (Request ID: 1)\nCannot access it',)
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    ('name', 'status', 'is_refused'),
    [
        ('GatedRepoError', 401, True),
        ('GatedRepoError', 403, True),
        ('RepositoryNotFoundError', 404, True),
        ('HfHubHTTPError', 401, True),  # of an expired token
        ('HfHubHTTPError', 503, False),
        ('RevisionNotFoundError', 404, False),
    ],
)
@pytest.mark.parametrize('is_wrapped', [False, True])
def test_a_download_that_is_refused_names_the_login(
    name, status, is_refused, is_wrapped, monkeypatch
):
    import huggingface_hub

    def refuse(*_, **__):
        if is_wrapped:  # as snapshot_download does if nothing is in the cache
            raise FileNotFoundError('not in the cache') from refusal(name, status)
        raise refusal(name, status)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', refuse)
    with pytest.raises(CheckpointError, match=r'failed \(.*local folder$') as raised:
        checkpoint.load('someone/LISA')
    text = str(raised.value)
    assert ('huggingface.co/someone/LISA and log in with `hf auth login`' in text) == is_refused
    assert ('unset HF_TOKEN' in text) == is_refused
    assert ('check the name and the network' in text) != is_refused


def test_a_hub_id_is_downloaded_safetensors_first(monkeypatch):
    import huggingface_hub

    requests = []

    def download(name, allow_patterns):
        requests.append((name, allow_patterns[-1]))
        return str(CLIP if 'clip' in name else CKPT)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    checkpoint.load('xinlai/LISA-7B-v1')
    tower = 'openai/clip-vit-large-patch14'
    assert requests == [
        ('xinlai/LISA-7B-v1', 'model*.safetensors'),
        ('xinlai/LISA-7B-v1', 'pytorch_model*'),
        (tower, 'model*.safetensors'),
        (tower, 'pytorch_model*'),
    ]


def test_mixed_files_of_two_checkpoints_are_refused(tmp_path):
    lisa = backend(256)
    export.save(lisa.model, lisa.tokenizer, lisa.clip_preprocessing, tmp_path)
    other = {'[SEG]': 705, '<im_start>': 704, '<im_end>': 706}
    (tmp_path / 'added_tokens.json').write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match=r'is 704 in config\.json and 705 in the tok'):
        checkpoint.load(tmp_path)
    lisa.tokenizer.save(tmp_path)
    preprocessing = ClipPreprocessing.of_size(336).to_dict()
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(preprocessing))
    with pytest.raises(CheckpointError, match=r'224 x 224.*336'):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (None, r'config\.json: holds a list'),
        ({'num_attention_heads': 3}, 'num_attention_heads is 3;'),
        ({'num_attention_heads': 0}, 'num_attention_heads is 0;'),
        ({'num_attention_heads': '4'}, "num_attention_heads is '4'"),
        ({'num_key_value_heads': 3}, 'num_key_value_heads is 3'),
        ({'head_dim': 5}, 'head_dim'),
        ({'rms_norm_eps': 'small'}, "rms_norm_eps is 'small'; expected a number"),
        ({'hidden_act': 'magic'}, 'no model that can be built.*magic'),
        ({'rope_scaling': [1]}, r'rope_scaling is \[1\]; expected an object'),
        ({'mm_vision_select_layer': -9}, 'mm_vision_select_layer is -9; this CLIP has'),
        ({'mm_vision_select_layer': None}, 'mm_vision_select_layer is None'),
        ({'max_position_embeddings': 200}, 'more than the 256 tokens of an image'),
    ],
)
def test_an_impossible_config_is_refused_at_load(change, message, tmp_path):
    folder = write_checkpoint(tmp_path / 'lisa', weights())
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps([] if change is None else config | change))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder, vision_tower=CLIP)


@pytest.mark.parametrize(
    ('part', 'change', 'message'),
    [
        ('llama', {'num_attention_heads': 0}, r'config\.json.*'),
        ('llama', {'num_key_value_heads': 3}, 'num_key_value_heads is 3'),
        ('clip', {'num_attention_heads': 5}, r'config\.json.*'),
        ('sam', None, r'config\.json: sam is None; expected an object'),
        (None, {'mm_vision_select_layer': 8}, 'mm_vision_select_layer is 8'),
    ],
)
def test_an_impossible_config_in_our_layout_is_refused_at_load(part, change, message, tmp_path):
    lisa = backend(256)
    export.save(lisa.model, lisa.tokenizer, lisa.clip_preprocessing, tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    if part is None:
        config |= change
    else:
        config[part] = change if change is None else config[part] | change
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    'key',
    [
        'model.embed_tokens.weight',
        'model.norm.weight',
        'model.layers.0.mlp.gate_proj.weight',
        'model.text_hidden_fcs.0.2.weight',
        'model.visual_model.image_encoder.pos_embed',
        'model.visual_model.image_encoder.blocks.0.attn.rel_pos_h',
    ],
)
@pytest.mark.parametrize('shape', [(), (2, 2, 2, 2, 2)])
def test_a_weight_of_another_rank_is_refused_at_load(key, shape, tmp_path):
    folder = write_checkpoint(tmp_path / 'lisa', weights() | {key: torch.zeros(shape)})
    with pytest.raises(CheckpointError):
        checkpoint.load(folder, vision_tower=CLIP)


def test_a_model_can_have_more_tokens_than_its_tokenizer(tmp_path):
    state = weights()
    for key in ('model.embed_tokens.weight', 'lm_head.weight'):
        state[key] = torch.nn.functional.pad(state[key], (0, 0, 0, 768 - len(state[key])))
    folder = write_checkpoint(tmp_path / 'lisa', state)
    lisa = Segmenter.load(folder, vision_tower=CLIP, device='cpu', template=CASE['template'])
    result = lisa.segment(load_image(CASE['image']), CASE['prompt'])
    assert list(result.token_ids) == generated_ids(256, CASE)
    with torch.no_grad():  # even if it generates one of them
        head = lisa.backend.model.llm.lm_head.weight
        head[767] = head[list(result.token_ids[:1])].squeeze(0) * 100
        head[:767] = 0
    few = Segmenter(lisa.backend, InferenceOptions(max_new_tokens=3))
    result = few.segment(load_image(CASE['image']), CASE['prompt'])
    assert 767 in result.token_ids


def test_a_tokenizer_without_the_image_marks_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / 'lisa', weights())
    (folder / 'added_tokens.json').write_text('{"[SEG]": 704, "<im_start>": 705}')
    with pytest.raises(CheckpointError, match='tokenizer lacks <im_end>'):
        checkpoint.load(folder, vision_tower=CLIP)


def test_missing_sam_weights_come_from_a_segment_anything_file(tmp_path):
    state, prefix = weights(), 'model.visual_model.'
    encoder = [key for key in state if key.startswith(prefix + 'image_encoder.')]
    sam = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
    trained = 'mask_decoder.iou_token.weight'
    torch.save(sam | {trained: torch.zeros_like(sam[trained])}, tmp_path / 'sam.pth')
    rest = {key: tensor for key, tensor in state.items() if key not in encoder}
    folder = write_checkpoint(tmp_path / 'lisa', rest)
    with pytest.raises(CheckpointError, match=r'lacks image_encoder\.pos_embed'):
        checkpoint.load(folder, vision_tower=CLIP)
    lisa = checkpoint.load(folder, vision_tower=CLIP, sam=tmp_path / 'sam.pth')
    expected, loaded = backend(256).model.state_dict(), lisa.model.state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    with pytest.raises(CheckpointError, match='expected a SAM'):
        checkpoint.load(folder, vision_tower=CLIP, sam=tmp_path / 'none.pth')
    export.save(lisa.model, lisa.tokenizer, lisa.clip_preprocessing, tmp_path / 'saved')
    with pytest.raises(SettingsError, match='a SAM of its own'):
        checkpoint.load(tmp_path / 'saved', sam=tmp_path / 'sam.pth')


PEAK = """
import resource, sys
from lisa_ros.model import checkpoint
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB
checkpoint.load(sys.argv[1], vision_tower=sys.argv[3])
before = peak()
checkpoint.load(sys.argv[2], vision_tower=sys.argv[3])
print(peak() - before)
"""


@pytest.mark.parametrize('kind', ['bin', 'safetensors'])
def test_the_peak_memory_of_loading_is_about_one_copy(kind, tmp_path):
    state = weights()
    for layer in range(2, 12):  # 10 more layers of the same, with far wider MLPs
        state |= {
            key.replace('layers.0.', f'layers.{layer}.'): tensor
            for key, tensor in state.items()
            if key.startswith('model.layers.0.')
        }
    for key, tensor in state.items():
        if '.mlp.' in key and key.startswith('model.layers.'):
            wide = (64, 15000) if 'down' in key else (15000, 64)
            state[key] = torch.zeros(wide, dtype=tensor.dtype)
    folder = write_checkpoint(tmp_path / 'lisa', {k: t.float() for k, t in state.items()}, kind)
    copy = sum(tensor.numel() for tensor in state.values()) * 4 / 2**20
    assert copy > 120
    command = [sys.executable, '-c', PEAK, str(CKPT), str(folder), str(CLIP)]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert float(run.stdout) < 1.3 * copy


def test_rounded_weights_are_close_and_compress_better(tmp_path):
    loaded = checkpoint.load(CKPT, vision_tower=CLIP)
    parts = (loaded.model, loaded.tokenizer, loaded.clip_preprocessing)
    export.save(*parts, tmp_path / 'exact')
    export.save(*parts, tmp_path / 'rounded', bits=8)
    paths = [tmp_path / name / 'model.safetensors' for name in ('exact', 'rounded')]
    exact, rounded = (load_file(path) for path in paths)
    assert exact.keys() == rounded.keys()
    name = 'llm.model.layers.0.mlp.up_proj.weight'
    for exact_row, rounded_row in zip(exact[name].float(), rounded[name].float(), strict=True):
        assert len(rounded_row.unique()) < 256
        assert (exact_row - rounded_row).abs().max() <= exact_row.abs().max() / 127
    assert torch.equal(exact['llm.model.norm.weight'], rounded['llm.model.norm.weight'])
    sizes = [len(zlib.compress(path.read_bytes())) for path in paths]
    assert sizes[1] < 0.75 * sizes[0]
