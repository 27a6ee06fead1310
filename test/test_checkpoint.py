# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import original_sam
import pytest
import torch
from golden import DATA, cases, new_ids, picture, segmenter, view, weight_shapes
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from lisa_ros.errors import CheckpointError, SettingsError
from lisa_ros.model import checkpoint, export, from_llava, quantization
from lisa_ros.model.checkpoint_checks import check_keys
from lisa_ros.model.config_inference import infer_config
from lisa_ros.model.image_processing import ClipPreprocessing
from lisa_ros.model.key_mapping import map_clip_key, map_key, unmap_key
from lisa_ros.model.lisa import LISA
from lisa_ros.perception.segmenter import Segmenter

CKPT, CLIP = DATA / 'ckpt_256', DATA / 'clip_256'
CASE = next(case for _, case in cases(256) if case['case'] == 2)  # three [SEG]


def weights() -> dict[str, torch.Tensor]:
    return torch.load(CKPT / 'pytorch_model.bin', weights_only=True)


def folder_like(target: Path, state: dict | None, kind: str = 'bin', shards: int = 1) -> Path:
    """Write a released checkpoint again, with other weights or in another form."""
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
    index = {}
    for number in range(shards):
        name = f'{single}-{number + 1:05}-of-{shards:05}.{suffix}'
        own = keys[number::shards]
        write({key: state[key] for key in own}, target / name)
        index |= dict.fromkeys(own, name)
    plain = {'metadata': {'total_size': 0}, 'weight_map': index}
    (target / f'{single}.{suffix}.index.json').write_text(json.dumps(plain))
    return target


# ---- the full sizes, without their weights

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
def test_every_weight_of_the_released_models_has_its_place(model, config, layers, vocabulary):
    shapes = weight_shapes(model)
    sizes = infer_config(shapes, config, CLIP_L, vocabulary - 1, 'llava_v1')
    with torch.device('meta'):
        lisa = LISA(sizes)
    ours = {map_key(key): shape for key, shape in shapes.items()}
    assert sum(map_key(key) is None for key in shapes) == layers  # inv_freq of each layer
    assert all(map_key(key) is None or unmap_key(map_key(key)) == key for key in shapes)
    del ours[None]
    clip = {
        'clip.' + name: tuple(weight.shape)
        for name, weight in lisa.clip.state_dict().items()  # comes from its own folder
    }
    check_keys(lisa, ours | clip, model)
    assert (sizes.llama.vocab_size, sizes.llama.num_hidden_layers) == (vocabulary, layers)
    assert (sizes.sam_size, sizes.out_dim, sizes.image_tokens) == (1024, 256, 256)
    vision = sizes.sam.vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (
        *(1280, 32, 16),
    )
    assert list(vision.global_attn_indexes) == [7, 15, 23, 31]
    assert vision.window_size == 14
    assert sizes.sam.mask_decoder_config.mlp_dim == 2048


def test_a_whole_clip_gives_its_vision_half():
    names = CLIPModel(
        CLIPConfig(
            text_config={'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 1},
            vision_config={'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 1},
        )
    ).state_dict()
    kept = {map_clip_key(name) for name in [*names, 'vision_model.embeddings.position_ids']}
    assert 'clip.post_layernorm.weight' in kept
    assert not any('text' in str(name) or 'projection' in str(name) for name in kept)


# ---- the same weights in other forms


@pytest.mark.parametrize('kind', ['bin', 'safetensors'])
@pytest.mark.parametrize('shards', [1, 3])
def test_shards_and_formats_give_the_same_weights(kind, shards, tmp_path):
    folder = folder_like(tmp_path / 'lisa', weights(), kind, shards)
    loaded = checkpoint.load(folder, vision_tower=CLIP).model.state_dict()
    wanted = segmenter(256).model.state_dict()
    assert all(torch.equal(loaded[key], wanted[key]) for key in wanted)


def test_seg_may_have_another_id(tmp_path):
    """The same model with [SEG] and <im_end> swapped answers the same, but for the id."""
    state, (seg, other) = weights(), (704, 706)
    for key in ('model.embed_tokens.weight', 'lm_head.weight'):
        state[key][[seg, other]] = state[key][[other, seg]]
    folder = folder_like(tmp_path / 'lisa', state, 'safetensors', shards=2)
    added = {'<im_end>': seg, '<im_start>': 705, '[SEG]': other}
    (folder / 'added_tokens.json').write_text(json.dumps(added))
    lisa = Segmenter.load(
        folder, vision_tower=CLIP, device='cpu', template=CASE['template'], precision='fp32'
    )
    assert lisa.model.config.seg_token_id == other
    result = lisa.segment(picture(CASE['image']), CASE['prompt'])
    swap = {seg: other, other: seg}
    assert [swap.get(index, index) for index in result.token_ids] == new_ids(256, CASE)
    wanted = view(256, template=CASE['template']).segment(picture(CASE['image']), CASE['prompt'])
    assert result.mask_logits == pytest.approx(wanted.mask_logits, abs=1e-3)


@pytest.mark.parametrize('name', ['as ViT-H in small', 'a window larger than the grid'])
def test_every_size_is_read_off_the_checkpoint(name, tmp_path):
    """Another LLaMA (grouped heads, more words), CLIP (336 px, a whole one) and SAM."""
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
    words = {'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 1}
    clip = CLIPModel(CLIPConfig(text_config=words, vision_config=vision, projection_dim=8))
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
    folder = folder_like(tmp_path / 'lisa', state, 'bin', shards=4)
    plain = json.loads((folder / 'config.json').read_text()) | {
        'hidden_size': 48,
        'num_attention_heads': 6,
        'num_key_value_heads': 2,
        'vocab_size': 711,
        'rms_norm_eps': 1e-6,
        'mm_vision_select_layer': -3,
        'mm_vision_tower': str(tmp_path / 'clip'),  # found without being asked for
        '_name_or_path': 'liuhaotian/LLaVA-Lightning-7B-v1-1',
    }
    (folder / 'config.json').write_text(json.dumps(plain))
    clip.save_pretrained(tmp_path / 'clip')
    recipe = ClipPreprocessing.of_size(336).to_dict()
    (tmp_path / 'clip' / 'preprocessor_config.json').write_text(json.dumps(recipe))

    loaded = checkpoint.load(folder)
    model = loaded.model
    assert model.config.template == 'llava_v1'
    assert model.config.image_tokens == 576
    assert loaded.clip_recipe.output == (336, 336)
    with torch.no_grad():
        pixels = torch.randn(1, 3, 336, 336)
        seen = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-3][:, 1:]
        torch.testing.assert_close(model.encode_clip(pixels), model.mm_projector(seen))
        ids = torch.randint(3, 711, (1, 9))
        torch.testing.assert_close(model.llm(ids).logits, llama.eval()(ids).logits)
        pixels, prompts = torch.randn(1, 3, *2 * [size.image]), torch.randn(2, size.prompt)
        grid, low_res, _ = original_sam.masks(sam, pixels, prompts)
        torch.testing.assert_close(model.encode_sam(pixels), grid, atol=2e-5, rtol=1e-4)
        ours, _ = model.decode_masks(grid, prompts)
        torch.testing.assert_close(ours, low_res, atol=2e-4, rtol=1e-4)
    lisa = Segmenter(model, loaded.tokenizer, loaded.clip_recipe, max_new_tokens=3)
    assert len(lisa.segment(picture('coffee'), 'where is it').token_ids) <= 3


def test_the_template_is_told_by_what_lisa_was_trained_from():
    assert segmenter(256).template == 'llava_llama_2'  # llava-llama-2-13b-chat


# ---- our own layout


@pytest.mark.parametrize('tied', [False, True])
def test_what_is_saved_is_loaded_again(tied, tmp_path):
    source = checkpoint.load(CKPT, vision_tower=CLIP, template='plain')
    model = source.model
    if tied:
        model.config.llama.tie_word_embeddings = True
        model.llm.lm_head.weight = model.llm.model.embed_tokens.weight
    export.save(model, source.tokenizer, source.clip_recipe, tmp_path, dtype=torch.float32)
    again = checkpoint.load(tmp_path)
    assert again.model.config.to_dict() == model.config.to_dict()
    assert again.model.config.template == 'plain'
    assert again.clip_recipe == source.clip_recipe
    wanted, found = model.state_dict(), again.model.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    head, words = again.model.llm.lm_head.weight, again.model.llm.model.embed_tokens.weight
    assert (head is words) == tied


def test_a_saved_model_is_half_as_large_in_fp16_and_answers_the_same(tmp_path):
    lisa = segmenter(256)
    export.save(lisa.model, lisa.tokenizer, lisa.clip_recipe, tmp_path)
    count = sum(weight.numel() for weight in lisa.model.parameters())
    assert (tmp_path / 'model.safetensors').stat().st_size < 2.1 * count
    half = Segmenter.load(tmp_path, device='cpu', template=CASE['template'])
    result = half.segment(picture(CASE['image']), CASE['prompt'])
    assert list(result.token_ids) == new_ids(256, CASE)


# ---- the released layout, written


def test_what_is_written_as_the_original_has_its_keys_types_and_values(tmp_path):
    source = segmenter(256)
    export.save_original(source.model, source.tokenizer, tmp_path, dtype=torch.bfloat16)
    ours, theirs = torch.load(tmp_path / 'pytorch_model.bin', weights_only=True), weights()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    config, wanted = (
        json.loads((folder / 'config.json').read_text()) for folder in (tmp_path, CKPT)
    )
    assert {name: config.get(name) for name in wanted} == wanted
    assert config.keys() - wanted.keys() == {'conv_type', 'rope_theta'}
    names = {path.name for path in CKPT.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize(
    ('model', 'config', 'vocabulary'),
    [
        ('7b', {'num_attention_heads': 32, 'rms_norm_eps': 1e-6}, 32004),
        ('13b', {'num_attention_heads': 40, 'rms_norm_eps': 1e-5}, 32003),
    ],
)
def test_the_full_sizes_are_written_in_shards_with_the_released_keys(
    model, config, vocabulary, tmp_path, monkeypatch
):
    """Without their storage: what torch would write is looked at instead."""
    shapes, written = weight_shapes(model), {}
    with torch.device('meta'):
        lisa = LISA(infer_config(shapes, config, CLIP_L, vocabulary - 1, 'llava_v1'))
    monkeypatch.setattr(export, '_write_shards', lambda state, folder: written.update(state))
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, 'to', lambda t, *a: to(t, *(x for x in a if x != 'cpu')))
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda t: t)
    export.save_original(lisa, segmenter(256).tokenizer, tmp_path, dtype=torch.bfloat16)
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == shapes


def test_a_model_in_the_released_layout_loads_again_bit_by_bit(tmp_path, monkeypatch):
    source = checkpoint.load(CKPT, vision_tower=CLIP, template='llava_v1')
    model = source.model
    with torch.no_grad():  # numbers that bfloat16 does not have
        model.llm.model.layers[0].self_attn.q_proj.weight += 1e-5
    monkeypatch.setattr(export, '_SHARD', 200_000)
    export.save_original(model, source.tokenizer, tmp_path / 'a')
    shards = list((tmp_path / 'a').glob('pytorch_model-*-of-*.bin'))
    assert len(shards) > 3
    assert max(path.stat().st_size for path in shards) < 400_000  # no view with its storage
    again = checkpoint.load(tmp_path / 'a', vision_tower=CLIP)
    wanted, found = model.state_dict(), again.model.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert again.model.config.to_dict() == model.config.to_dict()
    assert again.tokenizer.encode('a [SEG]', specials=True) == source.tokenizer.encode(
        'a [SEG]', specials=True
    )
    monkeypatch.setattr(export, '_SHARD', 10**9)  # written over: nothing old is left
    export.save_original(model, source.tokenizer, tmp_path / 'a')
    assert [p.name for p in (tmp_path / 'a').glob('pytorch_model*')] == ['pytorch_model.bin']


def test_tensors_are_put_together_without_a_copy_and_all_of_them():
    model = segmenter(256).model
    state = model.state_dict()
    again = checkpoint.model_from_state_dict(model.config, state)
    weight = again.llm.lm_head.weight
    assert weight.data_ptr() == model.llm.lm_head.weight.data_ptr()
    assert not [name for name, tensor in again.named_buffers() if tensor.is_meta]
    del state['llm.lm_head.weight']
    with pytest.raises(CheckpointError, match=r'1 missing: llm\.lm_head\.weight'):
        checkpoint.model_from_state_dict(model.config, state)


# ---- a LISA that begins


def parts_of_llava(folder, words=704):
    """The toy's LLaVA, of so many words, and its SAM beside it."""
    prefix = 'model.visual_model.'
    state = {k: t for k, t in weights().items() if 'text_hidden_fcs' not in k}
    sam = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
    rest = {k: t for k, t in state.items() if not k.startswith(prefix)}
    for key in ('model.embed_tokens.weight', 'lm_head.weight'):
        rest[key] = rest[key][:words]
    torch.save(sam, folder.parent / 'sam.pth')
    return folder_like(folder, rest, 'safetensors', shards=2), folder.parent / 'sam.pth'


def test_a_llava_with_marks_of_its_own_gets_seg_after_them(tmp_path):
    folder, sam = parts_of_llava(tmp_path / 'llava', words=706)
    (folder / 'added_tokens.json').write_text('{"<im_start>": 704, "<im_end>": 705}')
    begun = from_llava.load_llava(folder, sam=sam, vision_tower=CLIP)
    assert begun.tokenizer.encode('<im_start>[SEG]', specials=True) == [704, 706]
    assert begun.model.config.llama.vocab_size == 707
    words = begun.model.llm.model.embed_tokens.weight
    assert torch.equal(words[:706], weights()['model.embed_tokens.weight'][:706].float())
    mean = words[:706].mean(0)
    torch.testing.assert_close(words[706], mean, atol=1e-3, rtol=1e-2)
    same = from_llava.load_llava(folder, sam=sam, vision_tower=CLIP).model.state_dict()
    other = from_llava.load_llava(folder, sam=sam, vision_tower=CLIP, seed=1).model.state_dict()
    for name, tensor in begun.model.state_dict().items():
        assert torch.equal(same[name], tensor)
        assert torch.equal(other[name], tensor) != name.startswith('text_hidden_fcs')


def test_what_is_no_llava_or_no_sam_is_refused(tmp_path):
    folder, sam = parts_of_llava(tmp_path / 'llava')
    with pytest.raises(CheckpointError, match='is a LISA already'):
        from_llava.load_llava(CKPT, sam=sam, vision_tower=CLIP)
    with pytest.raises(CheckpointError, match=r'no model\.mm_projector'):
        from_llava.load_llava(CLIP, sam=sam)
    with pytest.raises(CheckpointError, match='expected a SAM'):
        from_llava.load_llava(folder, sam=tmp_path / 'none.pth', vision_tower=CLIP)
    torch.save({'weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='no SAM in'):
        from_llava.load_llava(folder, sam=tmp_path / 'other.pth', vision_tower=CLIP)


# ---- precision and memory


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_spares_what_draws_the_edges(precision):
    lisa = Segmenter.load(
        CKPT, vision_tower=CLIP, device='cpu', precision=precision, template=CASE['template']
    )
    dtypes = {name: weight.dtype for name, weight in lisa.model.named_parameters()}
    assert dtypes['llm.lm_head.weight'] == quantization.PRECISIONS[precision]
    assert dtypes['sam.vision_encoder.layers.0.attn.qkv.weight'] == dtypes['llm.lm_head.weight']
    assert dtypes['sam.mask_decoder.iou_token.weight'] == torch.float32
    assert dtypes['sam.vision_encoder.neck.conv1.weight'] == torch.float32
    result = lisa.segment(picture(CASE['image']), CASE['prompt'])
    assert list(result.token_ids) == new_ids(256, CASE)
    wanted = view(256, template=CASE['template']).segment(picture(CASE['image']), CASE['prompt'])
    overlap = (result.masks & wanted.masks).sum() / (result.masks | wanted.masks).sum()
    assert overlap > 0.9  # a random SAM: no basis for a tight bound


def test_loading_leaves_nothing_behind_without_storage():
    model = segmenter(256).model
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert not [name for name, tensor in tensors if tensor.is_meta]
    assert not model.training


def test_nothing_of_the_file_is_needed_after_loading(tmp_path):
    folder = folder_like(tmp_path / 'lisa', weights())
    model = checkpoint.load(folder, vision_tower=CLIP).model
    (folder / 'pytorch_model.bin').write_bytes(b'')  # a mapped file would be gone now
    wanted = segmenter(256).model.llm.lm_head.weight
    assert torch.equal(model.llm.lm_head.weight, wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')
@pytest.mark.parametrize('precision', ['bf16', 'fp16', 'int8', 'nf4'])
def test_every_precision_loads_and_answers_on_a_gpu(precision):
    if precision in ('int8', 'nf4'):
        pytest.importorskip('bitsandbytes', reason=f'{precision} needs bitsandbytes')
    lisa = Segmenter.load(
        CKPT, vision_tower=CLIP, device='cuda', precision=precision, template=CASE['template']
    )
    layer = lisa.model.llm.model.layers[0].self_attn.q_proj
    kind = {'int8': 'Linear8bitLt', 'nf4': 'Linear4bit'}.get(precision, 'Linear')
    assert type(layer).__name__ == kind
    tensors = [*lisa.model.named_parameters(), *lisa.model.named_buffers()]
    assert not [name for name, tensor in tensors if tensor.device.type != 'cuda']
    result = lisa.segment(picture(CASE['image']), CASE['prompt'])
    assert len(result.token_ids) > 0
    assert np.isfinite(result.mask_logits).all()
    if precision == 'bf16':  # a toy's words may change with fewer bits
        assert list(result.token_ids) == new_ids(256, CASE)


@pytest.mark.parametrize('precision', ['int8', 'nf4'])
def test_fewer_bits_need_a_gpu(precision):
    with pytest.raises(SettingsError, match=rf'{precision} needs a CUDA GPU'):
        checkpoint.load(CKPT, vision_tower=CLIP, precision=precision)


def test_an_unknown_precision_is_named():
    with pytest.raises(SettingsError, match=r"'fp8'.*fp32, bf16"):
        checkpoint.load(CKPT, vision_tower=CLIP, precision='fp8')


# ---- what is no LISA


def test_missing_unexpected_and_misshapen_weights_are_all_named(tmp_path):
    state = weights()
    del state['model.norm.weight'], state['model.visual_model.mask_decoder.iou_token.weight']
    state |= {'model.extra.weight': torch.zeros(1), 'lora_A.weight': torch.zeros(1)}
    state['model.mm_projector.bias'] = torch.zeros(63)
    folder = folder_like(tmp_path / 'lisa', state)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder, vision_tower=CLIP)
    message = str(caught.value)
    lost = 'model.norm.weight, model.visual_model.mask_decoder.iou_token.weight'
    assert f'2 missing: {lost}' in message  # by the names of the user's file
    assert '2 unexpected: lora_A.weight, model.extra.weight' in message
    assert '1 of another shape: model.mm_projector.bias (63,) instead of (64,)' in message


class Malicious:
    """Unpickled by an unwary loader, it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_of_weights_is_refused_and_not_run(tmp_path):
    folder = folder_like(tmp_path / 'lisa', None)
    torch.save({'weight': Malicious(tmp_path / 'ran')}, folder / 'pytorch_model.bin')
    with pytest.raises(CheckpointError, match='could run code'):
        checkpoint.load(folder, vision_tower=CLIP)
    assert not (tmp_path / 'ran').exists()


LFS_POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 14000000000\n'


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.safetensors'])
def test_a_broken_file_is_named(name, tmp_path):
    folder = folder_like(tmp_path / 'lisa', None)
    for content in (b'not weights', b'', LFS_POINTER):
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf'{name}.*download it again') as caught:
            checkpoint.load(folder, vision_tower=CLIP)
        assert 'could run code' not in str(caught.value)
        assert ('git-lfs pointer?' in str(caught.value)) == (name == 'pytorch_model.bin')


@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_that_was_cut_or_damaged_is_named(zipped, tmp_path):
    path = tmp_path / 'sam.pth'
    torch.save({'weight': torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in range(2, len(whole) // 2, 61):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r'sam\.pth'):
            checkpoint.load_sam_pth(path)
    for place in range(2, len(whole), 37):
        path.write_bytes(whole[:place] + b'\xff' + whole[place + 1 :])
        with pytest.raises(CheckpointError):  # if it can be read, it is no SAM
            checkpoint.load_sam_pth(path)


def test_a_missing_shard_is_named(tmp_path):
    folder = folder_like(tmp_path / 'lisa', weights(), shards=3)
    (folder / 'pytorch_model-00002-of-00003.bin').unlink()
    with pytest.raises(CheckpointError, match=r'not there: pytorch_model-00002-of-00003\.bin'):
        checkpoint.load(folder, vision_tower=CLIP)


def test_of_a_folder_that_is_no_lisa_it_is_said_what_it_is(tmp_path):
    with pytest.raises(CheckpointError, match=r'not a LISA.*CLIPVisionModel.*text_hidden_fcs'):
        checkpoint.load(CLIP)
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(CheckpointError, match=r'no config\.json; found notes\.txt'):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match=r'no such folder.*no hub id'):
        checkpoint.load(tmp_path / 'nowhere')
    with pytest.raises(CheckpointError, match='is a file'):
        checkpoint.load(tmp_path / 'notes.txt')
    folder = folder_like(tmp_path / 'lisa', None)
    with pytest.raises(CheckpointError, match=r'no weights.*added_tokens\.json'):
        checkpoint.load(folder)


def test_a_vision_tower_that_is_no_clip_is_refused(tmp_path):
    folder = folder_like(tmp_path / 'lisa', weights())
    with pytest.raises(CheckpointError, match='not a CLIP'):
        checkpoint.load(folder, vision_tower=CKPT)


@pytest.mark.parametrize('error', [OSError('no network'), Exception('no network\nat'), OSError()])
def test_a_hub_that_cannot_be_reached_is_reported_with_the_cure(error, monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', offline)
    said = f'{type(error).__name__}: {"no network" if error.args else ""}'
    with pytest.raises(CheckpointError, match=rf'someone/LISA.*\({said}\).*local folder'):
        checkpoint.load('someone/LISA')


def test_a_hub_id_is_downloaded_safetensors_first(monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns[-1]))
        return str(CLIP if 'clip' in name else CKPT)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    checkpoint.load('xinlai/LISA-7B-v1')
    tower = 'openai/clip-vit-large-patch14'
    assert asked == [
        ('xinlai/LISA-7B-v1', 'model*.safetensors'),
        ('xinlai/LISA-7B-v1', 'pytorch_model*'),
        (tower, 'model*.safetensors'),
        (tower, 'pytorch_model*'),
    ]


def test_parts_of_two_checkpoints_are_not_mixed(tmp_path):
    lisa = segmenter(256)
    export.save(lisa.model, lisa.tokenizer, lisa.clip_recipe, tmp_path)
    other = {'[SEG]': 705, '<im_start>': 704, '<im_end>': 706}
    (tmp_path / 'added_tokens.json').write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match=r'\[SEG\] is 704, the tokenizer that it is 705'):
        checkpoint.load(tmp_path)
    lisa.tokenizer.save(tmp_path)
    recipe = ClipPreprocessing.of_size(336).to_dict()
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(recipe))
    with pytest.raises(CheckpointError, match=r'224 x 224.*336'):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (None, r'config\.json: holds a list'),
        ({'num_attention_heads': 3}, 'num_attention_heads is 3 '),
        ({'num_attention_heads': 0}, 'num_attention_heads is 0 '),
        ({'num_attention_heads': '4'}, "num_attention_heads is '4'"),
        ({'num_key_value_heads': 3}, 'num_key_value_heads is 3'),
        ({'head_dim': 5}, 'head_dim'),
        ({'rms_norm_eps': 'small'}, 'no language model.*rms_norm_eps'),
        ({'hidden_act': 'magic'}, 'no model that can be built.*magic'),
        ({'rope_scaling': [1]}, 'no language model'),
        ({'mm_vision_select_layer': -9}, 'mm_vision_select_layer is -9; this CLIP has'),
        ({'mm_vision_select_layer': None}, 'mm_vision_select_layer is None'),
        ({'max_position_embeddings': 200}, 'a picture alone takes 256'),
    ],
)
def test_a_config_that_makes_no_model_is_refused_at_load(change, said, tmp_path):
    folder = folder_like(tmp_path / 'lisa', weights())
    plain = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps([] if change is None else plain | change))
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(folder, vision_tower=CLIP)


@pytest.mark.parametrize(
    ('part', 'change', 'said'),
    [
        ('llama', {'num_attention_heads': 0}, r'config\.json.*'),
        ('llama', {'num_key_value_heads': 3}, 'num_key_value_heads is 3'),
        ('clip', {'num_attention_heads': 5}, r'config\.json.*'),
        ('sam', None, r'config\.json: not what lisa_ros writes'),
        (None, {'mm_vision_select_layer': 8}, 'mm_vision_select_layer is 8'),
    ],
)
def test_a_config_of_ours_that_makes_no_model_is_refused_at_load(part, change, said, tmp_path):
    lisa = segmenter(256)
    export.save(lisa.model, lisa.tokenizer, lisa.clip_recipe, tmp_path)
    plain = json.loads((tmp_path / 'config.json').read_text())
    if part is None:
        plain |= change
    else:
        plain[part] = change if change is None else plain[part] | change
    (tmp_path / 'config.json').write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match=said):
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
    folder = folder_like(tmp_path / 'lisa', weights() | {key: torch.zeros(shape)})
    with pytest.raises(CheckpointError):
        checkpoint.load(folder, vision_tower=CLIP)


def test_a_model_may_have_more_words_than_its_tokenizer(tmp_path):
    state = weights()
    for key in ('model.embed_tokens.weight', 'lm_head.weight'):
        state[key] = torch.nn.functional.pad(state[key], (0, 0, 0, 768 - len(state[key])))
    folder = folder_like(tmp_path / 'lisa', state)
    lisa = Segmenter.load(folder, vision_tower=CLIP, device='cpu', template=CASE['template'])
    result = lisa.segment(picture(CASE['image']), CASE['prompt'])
    assert list(result.token_ids) == new_ids(256, CASE)
    with torch.no_grad():  # and if it says one of those
        head = lisa.model.llm.lm_head.weight
        head[767] = head[list(result.token_ids[:1])].squeeze(0) * 100
        head[:767] = 0
    lisa.max_new_tokens = 3
    result = lisa.segment(picture(CASE['image']), CASE['prompt'])
    assert 767 in result.token_ids


def test_a_tokenizer_that_lost_the_pictures_marks_is_refused(tmp_path):
    folder = folder_like(tmp_path / 'lisa', weights())
    (folder / 'added_tokens.json').write_text('{"[SEG]": 704, "<im_start>": 705}')
    with pytest.raises(CheckpointError, match='tokenizer lacks <im_end>'):
        checkpoint.load(folder, vision_tower=CLIP)


def test_what_a_lisa_lacks_of_its_sam_comes_from_sams_own_file(tmp_path):
    state, prefix = weights(), 'model.visual_model.'
    encoder = [key for key in state if key.startswith(prefix + 'image_encoder.')]
    whole = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
    trained = 'mask_decoder.iou_token.weight'
    torch.save(whole | {trained: torch.zeros_like(whole[trained])}, tmp_path / 'sam.pth')
    rest = {key: tensor for key, tensor in state.items() if key not in encoder}
    folder = folder_like(tmp_path / 'lisa', rest)
    with pytest.raises(CheckpointError, match=r'lacks image_encoder\.pos_embed'):
        checkpoint.load(folder, vision_tower=CLIP)
    lisa = checkpoint.load(folder, vision_tower=CLIP, sam=tmp_path / 'sam.pth')
    wanted, found = segmenter(256).model.state_dict(), lisa.model.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    with pytest.raises(CheckpointError, match='expected a SAM'):
        checkpoint.load(folder, vision_tower=CLIP, sam=tmp_path / 'none.pth')
    export.save(lisa.model, lisa.tokenizer, lisa.clip_recipe, tmp_path / 'ours')
    with pytest.raises(SettingsError, match='a SAM of its own'):
        checkpoint.load(tmp_path / 'ours', sam=tmp_path / 'sam.pth')


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
def test_loading_peaks_at_about_one_copy(kind, tmp_path):
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
    folder = folder_like(tmp_path / 'lisa', {k: t.float() for k, t in state.items()}, kind)
    copy = sum(tensor.numel() for tensor in state.values()) * 4 / 2**20
    assert copy > 120
    command = [sys.executable, '-c', PEAK, str(CKPT), str(folder), str(CLIP)]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert float(run.stdout) < 1.3 * copy


def test_rounded_weights_keep_near_and_pack_small(tmp_path):
    loaded = checkpoint.load(CKPT, vision_tower=CLIP)
    parts = (loaded.model, loaded.tokenizer, loaded.clip_recipe)
    export.save(*parts, tmp_path / 'whole')
    export.save(*parts, tmp_path / 'rounded', bits=8)
    whole, rounded = (load_file(tmp_path / n / 'model.safetensors') for n in ('whole', 'rounded'))
    assert whole.keys() == rounded.keys()
    name = 'llm.model.layers.0.mlp.up_proj.weight'
    for one, other in zip(whole[name].float(), rounded[name].float(), strict=True):
        assert len(other.unique()) < 256
        assert (one - other).abs().max() <= one.abs().max() / 127
    assert torch.equal(whole['llm.model.norm.weight'], rounded['llm.model.norm.weight'])
    sizes = [
        len(zlib.compress((tmp_path / n / 'model.safetensors').read_bytes()))
        for n in ('whole', 'rounded')
    ]
    assert sizes[1] < 0.75 * sizes[0]
