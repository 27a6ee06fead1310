# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning by LoRA, end to end on the toy LISA: what learns, what stays, what comes out."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden import DATA, picture, segmenter, weight_shapes
from PIL import Image
from transformers import CLIPVisionConfig

from lisa_ros import cli
from lisa_ros.datasets.reasonseg import read_folder
from lisa_ros.errors import CheckpointError, DataError, SettingsError
from lisa_ros.model import checkpoint, export
from lisa_ros.model.config_inference import infer_config
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import WEIGHTS
from lisa_ros.results import Turn
from lisa_ros.training.finetune import batches, memory_estimate, task
from lisa_ros.training.finetune.mixture import Mixture
from lisa_ros.training.finetune.samplers import AnnotatedImageSampler
from lisa_ros.training.trainer import Trainer, TrainerConfig

CKPT, CLIP = DATA / 'ckpt_256', DATA / 'clip_256'
ORIGIN = task.BaseCheckpoint(CKPT, vision_tower=CLIP, template='llava_v1')
PACE = TrainerConfig(
    steps=10,
    learning_rate=3e-3,
    warmup_steps=1,
    accumulate=1,
    validate_every=10,
    save_every=10,
    monitor='val_giou',
    bf16=False,
)
RECIPE = task.FinetuneConfig(pace=PACE)


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    """Two pictures, small, with labels as ReasonSeg and as labelme have them."""
    folder = tmp_path_factory.mktemp('reasonseg')
    for name in ('coffee', 'chelsea'):
        small = Image.fromarray(picture(name)).resize((120, 80))
        small.save(folder / f'{name}.png')
    target = {'label': 'target', 'points': [[30, 10], [90, 12], [85, 60], [35, 62]]}
    ignored = {'label': 'ignore', 'points': [[0, 70], [119, 70], [119, 79], [0, 79]]}
    texts = {'text': ['Where is the drink?', 'What keeps it warm?'], 'is_sentence': True}
    labels = {
        'coffee': {'shapes': [target, ignored], **texts},
        'chelsea': {'shapes': [{**target, 'label': 'animal'}, ignored]},
    }
    for name, plain in labels.items():
        (folder / f'{name}.json').write_text(json.dumps(plain))
    return folder


def pupil_of(folder, recipe=RECIPE, origin=ORIGIN):
    pictures = read_folder(folder)
    source = AnnotatedImageSampler(pictures, recipe.queries_per_image)
    return task.FinetuneTask(origin, Mixture({'own': source}, {'own': 1.0}), pictures, recipe)


@pytest.fixture(scope='module')
def trained(labelled, tmp_path_factory):
    """(pupil, run, losses before, losses after, weights before)."""
    run = tmp_path_factory.mktemp('run')
    pupil = pupil_of(labelled)
    before = {name: tensor.clone() for name, tensor in pupil.lisa.state_dict().items()}
    lesson = pupil.draw(0, 0)
    pupil.module.eval()
    with torch.no_grad():
        first = pupil.losses(lesson, 0)
    Trainer(run, PACE, pupil).train()
    pupil.module.eval()
    with torch.no_grad():
        last = pupil.losses(lesson, 0)
    return pupil, run, first, last, before


def total(losses):
    return sum(batches.WEIGHTS[name] * float(value) for name, value in losses.items())


# ---- what learns


def test_lora_is_on_the_language_models_queries_and_values_alone(trained):
    pupil = trained[0]
    adapted = {
        name.split('.lora_')[0]: tuple(parameter.shape)
        for name, parameter in pupil.lisa.named_parameters()
        if '.lora_B' in name
    }
    assert adapted == {
        f'llm.model.layers.{layer}.self_attn.{part}_proj': (64, 8)
        for layer in range(2)
        for part in 'qv'
    }
    learns = {n for n, p in pupil.lisa.named_parameters() if p.requires_grad and 'lora_' not in n}
    roots = {'.'.join(name.split('.')[:3]) for name in learns if name.startswith('llm')}
    assert roots == {'llm.model.embed_tokens', 'llm.lm_head.weight'}
    others = {'.'.join(n.split('.')[:2]) for n in learns if not n.startswith('llm')}
    assert others == {
        'sam.mask_decoder',
        'text_hidden_fcs.0',
        'text_hidden_fcs.2',
    }


def test_the_loss_falls_and_what_is_frozen_stays_bit_for_bit(trained):
    pupil, _, first, last, before = trained
    assert total(last) < 0.6 * total(first)
    assert float(last['dice']) < float(first['dice'])
    moved = {n for n, t in pupil.lisa.state_dict().items() if not torch.equal(t, before[n])}
    learns = {n for n, p in pupil.lisa.named_parameters() if p.requires_grad}
    assert moved <= learns
    for part in ('embed_tokens', 'lm_head', 'text_hidden_fcs', 'mask_decoder', 'lora_A', 'lora_B'):
        assert any(part in name for name in moved), part


def test_a_new_lora_changes_nothing(labelled):
    pupil, whole = pupil_of(labelled), segmenter(256).model
    lesson = pupil.draw(0, 0)
    pupil.module.eval()
    with torch.no_grad():
        ours, wanted = pupil.losses(lesson, 0), batches.losses(whole, lesson)
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value)


def test_lessons_are_the_same_whenever_they_are_drawn(labelled):
    one, other = pupil_of(labelled), pupil_of(labelled)
    a, b = one.draw(4, 1), other.draw(4, 1)
    assert torch.equal(a.batch.input_ids, b.batch.input_ids)
    assert all(torch.equal(x, y) for x, y in zip(a.truth, b.truth, strict=True))
    different = [other.draw(step, 0).batch.input_ids for step in range(5)]
    assert any(x.shape != a.batch.input_ids.shape or (x != a.batch.input_ids).any()
               for x in different)  # fmt: skip


def test_recomputing_activations_gives_the_same_gradients(labelled):
    gradients = []
    for recompute in (True, False):
        pupil = pupil_of(labelled, replace(RECIPE, recompute=recompute))
        pupil.module.train()
        torch.manual_seed(3)  # dropout
        sum(pupil.losses(pupil.draw(0, 0), 0).values()).backward()
        gradients.append({n: p.grad for n, p in pupil.lisa.named_parameters()})
    assert gradients[0]['llm.model.layers.0.self_attn.q_proj.lora_B.default.weight'].any()
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[1][name], msg=name)


# ---- losses


def test_ignored_pixels_count_neither_way(labelled):
    pupil = pupil_of(labelled)
    sample = AnnotatedImageSampler(read_folder(labelled)[:1]).draw(np.random.default_rng(0))
    lisa, given = pupil.lisa.eval(), pupil._lesson([sample])
    unsure = given.truth[0] == batches.UNSURE
    assert unsure.any()
    assert not unsure.all()

    def of(truth):
        with torch.no_grad():
            return batches.losses(lisa, replace(given, truth=(truth,)))

    wanted = of(given.truth[0])
    out = lisa(given.batch)
    logits = lisa.postprocess(out.mask_logits, given.resized[0], sample.image.shape[:2])
    by_hand = [
        torch.nn.functional.binary_cross_entropy_with_logits(
            one[real != 255], real[real != 255].float()
        )
        for one, real in zip(logits, given.truth[0], strict=True)
    ]
    torch.testing.assert_close(wanted['bce'], torch.stack(by_hand).mean())
    as_target = of(given.truth[0].masked_fill(unsure, 1))
    assert float(as_target['bce']) != pytest.approx(float(wanted['bce']), rel=1e-3)


def test_an_answer_without_a_mask_teaches_words_alone(labelled):
    pupil = pupil_of(labelled)
    sample = AnnotatedImageSampler(read_folder(labelled)[:1]).draw(np.random.default_rng(0))
    quiet = replace(sample, dialogues=((Turn('Is it warm?', 'Yes.'),),), truth=sample.truth[:0])
    losses = pupil.losses(pupil._lesson([quiet]), 0)
    assert float(losses['bce']) == float(losses['dice']) == 0
    assert float(losses['ce'].detach()) > 0
    with pytest.raises(DataError, match=r'have 0 \[SEG\] and 1 masks'):
        pupil._lesson([replace(quiet, truth=sample.truth[:1])])


# ---- what comes out


def test_the_merged_weights_answer_as_the_unmerged_ones(trained, labelled):
    pupil = trained[0]
    pupil.module.eval()
    merged = pupil.merged()
    lesson = pupil.draw(7, 0)
    with torch.no_grad():
        ours, theirs = pupil.lisa(lesson.batch), merged(lesson.batch)
    torch.testing.assert_close(ours.mask_logits, theirs.mask_logits, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(ours.llm_states, theirs.llm_states, atol=1e-4, rtol=1e-4)
    layer = 'llm.model.layers.0.self_attn.q_proj.weight'
    plain = segmenter(256).model.state_dict()[layer]
    assert not torch.equal(merged.state_dict()[layer], plain)  # LoRA is in it


@pytest.mark.parametrize('layout', ['model', 'original'])
def test_both_exports_load_again_and_answer_the_same(layout, trained):
    pupil, run, *_ = trained
    wanted = Segmenter(pupil.merged(), pupil.tokenizer, pupil.clip_recipe, max_new_tokens=12)
    tower = CLIP if layout == 'original' else None
    again = Segmenter.load(
        run / layout, vision_tower=tower, device='cpu', precision='fp32', max_new_tokens=12
    )
    state, found = wanted.model.state_dict(), again.model.state_dict()
    assert state.keys() == found.keys()
    assert all(torch.equal(state[name], found[name]) for name in state)
    assert again.template == 'llava_v1'
    asked = picture('coffee'), 'Where is the drink? Please output segmentation mask.'
    ours, theirs = wanted.segment(*asked), again.segment(*asked)
    assert ours.token_ids == theirs.token_ids
    np.testing.assert_array_equal(ours.mask_logits, theirs.mask_logits)


def test_the_original_layout_has_the_released_keys(trained):
    run = trained[1]
    ours = torch.load(run / 'original' / 'pytorch_model.bin', weights_only=True)
    theirs = torch.load(CKPT / 'pytorch_model.bin', weights_only=True)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].shape == theirs[name].shape for name in theirs)


def test_validation_says_how_good_it_is_and_draws_it(trained, tmp_path):
    pupil = trained[0]
    pupil.module.eval()
    figures = pupil.validate(tmp_path)
    assert figures.keys() == {'val_giou', 'val_ciou'}
    assert 0 <= figures['val_giou'] <= 1
    assert Image.open(tmp_path / 'answers.png').size[0] > 1000
    rows = (trained[1] / 'curves.csv').read_text().splitlines()
    assert 'val_giou' in rows[0]


def test_exporting_does_not_disturb_what_learns(trained):
    pupil = trained[0]
    before = {name: tensor.clone() for name, tensor in pupil.lisa.state_dict().items()}
    pupil.merged()
    after = pupil.lisa.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_run_goes_on_where_it_stopped_as_if_it_had_not(labelled, tmp_path):
    pace = replace(PACE, steps=3, accumulate=2, save_every=2)
    whole, parts = pupil_of(labelled), pupil_of(labelled)
    Trainer(tmp_path / 'a', pace, whole).train()
    Trainer(tmp_path / 'b', pace, parts).train(until=2)
    resumed = pupil_of(labelled)
    Trainer(tmp_path / 'b', pace, resumed).train()
    state = resumed.lisa.state_dict()
    assert all(torch.equal(state[name], t) for name, t in whole.lisa.state_dict().items())


def test_the_original_layout_names_the_clip_that_the_weights_were_trained_with(labelled, tmp_path):
    def original_of(origin, run):
        pupil = pupil_of(labelled, origin=origin)
        pupil.export(tmp_path / run)
        return pupil, tmp_path / run / 'original'

    _, first = original_of(ORIGIN, 'a')
    assert json.loads((first / 'config.json').read_text())['vision_tower'] == str(CLIP)
    # a model of our own layout brings its CLIP along, changed or not
    with torch.no_grad():
        own = checkpoint.load(tmp_path / 'a' / 'model')
        own.model.clip.embeddings.patch_embedding.weight += 1
    export.save(own.model, own.tokenizer, own.clip_recipe, tmp_path / 'own', dtype=None)
    pupil, second = original_of(task.BaseCheckpoint(tmp_path / 'own'), 'b')
    again = checkpoint.load(second, template='llava_v1')
    assert again.clip_recipe == own.clip_recipe
    wanted, found = pupil.merge_lora().state_dict(), again.model.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_model_that_the_released_layout_cannot_hold_is_written_in_ours_alone(labelled, tmp_path):
    pupil = pupil_of(labelled, origin=task.BaseCheckpoint(WEIGHTS / 'lisa-tabletop'))
    pupil.export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['model']
    with pytest.raises(CheckpointError, match='cannot hold a SAM without relative positions'):
        export.save_original(pupil.merge_lora(), pupil.tokenizer, tmp_path / 'original')


# ---- from LLaVA and SAM


def llava_of(folder):
    """The toy's own LLaVA and SAM, apart, without the words that LISA adds."""
    state = torch.load(CKPT / 'pytorch_model.bin', weights_only=True)
    llava, sam = {}, {}
    for name, tensor in state.items():
        if name.startswith('model.visual_model.'):
            sam[name.removeprefix('model.visual_model.')] = tensor
        elif 'text_hidden_fcs' not in name:
            words = name in ('model.embed_tokens.weight', 'lm_head.weight')
            llava[name] = tensor[:704].clone() if words else tensor
    folder.mkdir()
    torch.save(llava, folder / 'pytorch_model.bin')
    torch.save(sam, folder / 'sam.pth')
    plain = json.loads((CKPT / 'config.json').read_text())
    for name in ('out_dim', 'train_mask_decoder'):
        del plain[name]
    (folder / 'config.json').write_text(json.dumps({**plain, 'vocab_size': 704}))
    for name in ('tokenizer.model', 'tokenizer_config.json', 'special_tokens_map.json'):
        (folder / name).write_bytes((CKPT / name).read_bytes())
    return folder


def test_a_lisa_begins_with_a_llava_and_a_sam(labelled, tmp_path):
    folder = llava_of(tmp_path / 'llava')
    origin = task.BaseCheckpoint(
        folder, vision_tower=CLIP, sam=folder / 'sam.pth', is_llava=True, template='llava_v1'
    )
    pupil = pupil_of(labelled, origin=origin)
    assert len(pupil.tokenizer) == pupil.config.llama.vocab_size == 707
    assert pupil.config.seg_token_id == 704
    words = pupil.lisa.llm.model.embed_tokens.weight
    torch.testing.assert_close(words[704], words[:704].mean(0), atol=1e-2, rtol=1e-2)  # bf16 file
    given, whole = pupil.lisa.state_dict(), segmenter(256).model.state_dict()
    for name in ('sam.vision_encoder.neck.conv1.weight', 'llm.model.norm.weight'):
        assert torch.equal(given[name], whole[name])
    Trainer(tmp_path / 'run', replace(PACE, steps=2), pupil).train()
    again = checkpoint.load(tmp_path / 'run' / 'original', vision_tower=CLIP)
    assert again.tokenizer.seg_token_id == 704
    keys = torch.load(CKPT / 'pytorch_model.bin', weights_only=True).keys()
    written = tmp_path / 'run' / 'original' / 'pytorch_model.bin'
    assert torch.load(written, weights_only=True).keys() == keys


# ---- what it takes

CLIP_L = CLIPVisionConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
    image_size=224, patch_size=14,
)  # fmt: skip


def lisa_7b():
    sizes = {'num_attention_heads': 32, 'rms_norm_eps': 1e-6}
    return infer_config(weight_shapes('7b'), sizes, CLIP_L, 32003, 'llava_v1')


def test_seven_billion_weights_in_four_bits_fit_into_24_gb():
    found = memory_estimate.estimate(lisa_7b(), memory_estimate.StepShape())
    assert found.total() < 24e9
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert found.frozen['nf4'] == pytest.approx(linear * 4.127 / 8, rel=1e-3)
    assert found.trained['LoRA'] == 32 * 2 * 8 * (4096 + 4096) * 4
    assert found.trained['embed_tokens'] == found.trained['lm_head'] == 32004 * 4096 * 4
    assert found.optimizer == 2 * found.gradients == 2 * sum(found.trained.values())
    whole = memory_estimate.estimate(
        lisa_7b(), memory_estimate.StepShape(precision='fp32', bf16=False)
    )
    assert whole.total() > 32e9
    table = memory_estimate.table(lisa_7b(), memory_estimate.StepShape())
    assert table in (DATA.parents[2] / 'docs' / 'finetuning.md').read_text()


def test_what_is_counted_is_what_learns(labelled):
    pupil = pupil_of(labelled)
    found = memory_estimate.estimate(
        pupil.config, memory_estimate.StepShape(precision='fp32', bf16=False)
    )
    learns = [p for p in pupil.lisa.parameters() if p.requires_grad]
    stays = [p for p in pupil.lisa.parameters() if not p.requires_grad]
    assert sum(found.trained.values()) == sum(4 * p.numel() for p in learns)
    assert sum(found.frozen.values()) == sum(4 * p.numel() for p in stays)


def kept_by_autograd(pupil, lesson):
    """The bytes that a pass keeps for its backward pass, the parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in pupil.lisa.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)  # held: no address twice
        return tensor

    pupil.module.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pupil.losses(lesson, 0)
    return sum(size for size, _ in kept.values())


def test_the_estimate_of_activations_is_above_what_autograd_keeps(labelled):
    plain = pupil_of(labelled, replace(RECIPE, recompute=False))
    lesson = plain.draw(0, 0)
    asked, length = lesson.batch.input_ids.shape
    plan = memory_estimate.StepShape(
        precision='fp32',
        bf16=False,
        image_size=(80, 120),
        queries_per_image=asked,
        text_tokens=length - 50,
    )  # 50 are the template's, which all queries share
    whole, again = memory_estimate._language(plain.config, plan)
    rest = memory_estimate._words(plain.config, plan) + memory_estimate._masks(plain.config, plan)
    kept = kept_by_autograd(plain, lesson)
    assert 1.0 < (whole + rest) / kept < 3.0
    less = kept_by_autograd(pupil_of(labelled), lesson)
    assert less < 0.6 * kept
    assert again + rest > less


# ---- the command


def arguments(labelled, run):
    return [
        'finetune', '--model', str(CKPT), '--vision-tower', str(CLIP), '--template', 'llava_v1',
        '--data', str(labelled), '--out', str(run), '--device', 'cpu', '--steps', '2',
        '--accumulate', '1', '--save-every', '2',
    ]  # fmt: skip


def test_the_command_tells_memory_and_time_and_leaves_a_model(labelled, tmp_path, capsys):
    assert cli.main([*arguments(labelled, tmp_path / 'run'), '--val', str(labelled)]) == 0
    told = capsys.readouterr().out
    assert '| **sum** |' in told
    assert 'a step takes about' in told
    model = checkpoint.load(tmp_path / 'run' / 'model').model
    assert model.config.seg_token_id == 704
    assert (tmp_path / 'run' / 'original' / 'config.json').is_file()


@pytest.mark.parametrize(
    ('more', 'says'),
    [
        (['--precision', 'nf4'], 'nf4 needs a CUDA GPU'),
        (['--rates', '1', '2'], '2 --rates for 1 data sets'),
        (['--data', 'nowhere'], 'nowhere: there is no such folder'),
    ],
)
def test_what_cannot_be_is_said_in_one_line(more, says, labelled, tmp_path, capsys):
    assert cli.main([*arguments(labelled, tmp_path), *more]) == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count('\n') == 1


def test_a_llava_needs_a_sam(labelled, tmp_path, capsys):
    given = arguments(labelled, tmp_path)
    given[1] = '--llava'
    assert cli.main(given) == 1
    assert 'which has no SAM' in capsys.readouterr().err


def test_without_peft_it_says_what_to_install(labelled, monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(SettingsError, match=r'pip install .*train'):
        pupil_of(labelled)


# ---- the check against the original


@pytest.mark.parity
def test_the_check_agrees_with_the_original_and_notices_another_model(tmp_path, capsys):
    golden = tmp_path / 'golden'
    golden.mkdir()
    for name in ('golden_256.json', 'golden_256.npz', 'ckpt_256', 'clip_256', 'images'):
        (golden / name).symlink_to(DATA / name)
    assert cli.main(['train', '--check', str(golden), '--json']) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['ok']
    assert len(report['cases']) == 3
    for case in report['cases']:
        assert case['tokens']
        assert len(case['losses']) == 5
        assert len(case['gradient_norms']) == 13
        assert case['losses']['loss']['difference'] < 1e-4
    plain = json.loads((DATA / 'golden_256.json').read_text())
    plain['train'][1]['losses']['mask_dice_loss'] *= 1.001
    plain['train'][0]['grad_norm']['model.layers.1'] *= 1.01
    plain['train'][2]['conversations'][0] = plain['train'][2]['conversations'][0].replace(
        'person', 'dog'
    )
    (golden / 'golden_256.json').unlink()
    (golden / 'golden_256.json').write_text(json.dumps(plain))
    assert cli.main(['train', '--check', str(golden), '--json']) == 1
    first, second, third = json.loads(capsys.readouterr().out)['cases']
    assert not first['gradient_norms']['model.layers.1']['ok']
    assert not second['losses']['mask_dice_loss']['ok']
    assert second['losses']['mask_bce_loss']['ok']
    assert not third['tokens']
    assert not (first['ok'] or second['ok'] or third['ok'])


def test_a_folder_that_is_no_golden_set_is_named(tmp_path, capsys):
    assert cli.main(['train', '--check', str(tmp_path)]) == 1
    assert 'no golden set' in capsys.readouterr().err
    assert cli.main(['train']) == 1
    assert 'needs --scenes and --out' in capsys.readouterr().err
