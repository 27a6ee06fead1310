# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning with LoRA, end to end on the toy LISA: trained weights, losses, exports."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden import DATA, backend, load_image, weight_shapes
from PIL import Image
from transformers import CLIPVisionConfig

from lisa_ros import cli
from lisa_ros.datasets.reasonseg import read_folder
from lisa_ros.errors import CheckpointError, DataError
from lisa_ros.evaluation.metrics import Overlap
from lisa_ros.model import checkpoint, export
from lisa_ros.model.config_inference import infer_config
from lisa_ros.model.lora_linear import LoraLinear
from lisa_ros.perception.backend import InferenceOptions
from lisa_ros.perception.lisa_backend import LisaBackend
from lisa_ros.perception.masks import IGNORED_PIXEL
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.resources import WEIGHTS
from lisa_ros.results import Turn
from lisa_ros.training.finetune import batch_losses, memory_estimate
from lisa_ros.training.finetune.base_checkpoint import BaseCheckpoint
from lisa_ros.training.finetune.config import FinetuneConfig
from lisa_ros.training.finetune.memory_estimate import StepShape
from lisa_ros.training.finetune.mixture import Mixture
from lisa_ros.training.finetune.parity_check import format_report
from lisa_ros.training.finetune.samplers import AnnotatedImageSampler
from lisa_ros.training.finetune.task import FinetuneTask, validation_figures
from lisa_ros.training.trainer import Trainer
from lisa_ros.training.trainer_config import TrainerConfig, has_fast_bf16

CKPT, CLIP = DATA / 'ckpt_256', DATA / 'clip_256'
BASE = BaseCheckpoint(CKPT, vision_tower=CLIP, template='llava_v1')
TRAINER = TrainerConfig(
    steps=10,
    learning_rate=3e-3,
    warmup_steps=1,
    accumulate=1,
    validate_every=10,
    save_every=10,
    monitor='val_giou',
    bf16=False,
)
CONFIG = FinetuneConfig(trainer=TRAINER)


@pytest.mark.parametrize(
    ('precision', 'is_fast', 'bf16'),
    [
        ('fp32', False, False),
        ('fp32', True, True),
        ('bf16', False, True),
        ('bf16', True, True),
        ('nf4', False, True),
    ],
)
def test_products_are_in_bfloat16_where_it_is_fast_or_the_weights_need_it(
    precision, is_fast, bf16
):
    config = FinetuneConfig(trainer=replace(TRAINER, bf16=is_fast), precision=precision)
    assert config.trainer == replace(TRAINER, bf16=bf16)
    assert FinetuneConfig(precision=precision).trainer.bf16 is (
        has_fast_bf16() or precision != 'fp32'
    )


def test_weights_in_bf16_can_be_trained_on_every_cpu():
    FinetuneConfig(precision='bf16').check_precision('cpu')


@pytest.fixture(scope='module')
def annotated(tmp_path_factory):
    """A folder of two small images, annotated as ReasonSeg and as labelme do."""
    folder = tmp_path_factory.mktemp('reasonseg')
    for name in ('coffee', 'chelsea'):
        small = Image.fromarray(load_image(name)).resize((120, 80))
        small.save(folder / f'{name}.png')
    target = {'label': 'target', 'points': [[30, 10], [90, 12], [85, 60], [35, 62]]}
    ignored = {'label': 'ignore', 'points': [[0, 70], [119, 70], [119, 79], [0, 79]]}
    texts = {'text': ['Where is the drink?', 'What keeps it warm?'], 'is_sentence': True}
    labels = {
        'coffee': {'shapes': [target, ignored], **texts},
        'chelsea': {'shapes': [{**target, 'label': 'animal'}, ignored]},
    }
    for name, annotation in labels.items():
        (folder / f'{name}.json').write_text(json.dumps(annotation))
    return folder


def make_task(folder, config=CONFIG, base=BASE):
    images = read_folder(folder)
    sampler = AnnotatedImageSampler(images, config.queries_per_image)
    return FinetuneTask(base, Mixture({'own': sampler}, {'own': 1.0}), images, config)


@pytest.fixture(scope='module')
def trained(annotated, tmp_path_factory):
    """(task, run, losses before, losses after, weights before)."""
    run = tmp_path_factory.mktemp('run')
    task = make_task(annotated)
    before = {name: tensor.clone() for name, tensor in task.lisa.state_dict().items()}
    batch = task.draw(0, 0)
    task.module.eval()
    with torch.no_grad():
        first = task.losses(batch, 0)
    Trainer(run, TRAINER, task).train()
    task.module.eval()
    with torch.no_grad():
        last = task.losses(batch, 0)
    return task, run, first, last, before


def total(losses):
    return sum(batch_losses.LOSS_WEIGHTS[name] * float(value) for name, value in losses.items())


# ---- trained weights


def test_lora_is_on_query_and_value_projections_of_the_language_model_only(trained):
    task = trained[0]
    adapted = {
        name.split('.lora_')[0]: tuple(parameter.shape)
        for name, parameter in task.lisa.named_parameters()
        if '.lora_B' in name
    }
    assert adapted == {
        f'llm.model.layers.{layer}.self_attn.{part}_proj': (64, 8)
        for layer in range(2)
        for part in 'qv'
    }
    whole = {n for n, p in task.lisa.named_parameters() if p.requires_grad and 'lora_' not in n}
    llm_parts = {'.'.join(name.split('.')[:3]) for name in whole if name.startswith('llm')}
    assert llm_parts == {'llm.model.embed_tokens', 'llm.lm_head.weight'}
    other_parts = {'.'.join(n.split('.')[:2]) for n in whole if not n.startswith('llm')}
    assert other_parts == {
        'sam.mask_decoder',
        'text_hidden_fcs.0',
        'text_hidden_fcs.2',
    }


def test_the_loss_falls_and_frozen_weights_stay_bit_for_bit(trained):
    task, _, first, last, before = trained
    assert total(last) < 0.6 * total(first)
    assert float(last['dice']) < float(first['dice'])
    changed = {n for n, t in task.lisa.state_dict().items() if not torch.equal(t, before[n])}
    assert changed <= {n for n, p in task.lisa.named_parameters() if p.requires_grad}
    for part in ('embed_tokens', 'lm_head', 'text_hidden_fcs', 'mask_decoder', 'lora_A', 'lora_B'):
        assert any(part in name for name in changed), part


def test_a_new_lora_does_not_change_the_losses(annotated):
    task, base = make_task(annotated), backend(256).model
    batch = task.draw(0, 0)
    task.module.eval()
    with torch.no_grad():
        losses, expected = task.losses(batch, 0), batch_losses.compute_losses(base, batch)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_lora_layer_adds_its_update_to_a_base_of_any_precision(dtype):
    torch.manual_seed(0)
    layer = LoraLinear(torch.nn.Linear(6, 5, dtype=dtype), rank=2, alpha=4, dropout=0.5)
    x = torch.randn(3, 6, dtype=dtype)
    assert torch.equal(layer(x), layer.base_layer(x))  # B begins at zero
    torch.nn.init.normal_(layer.lora_B.weight)
    assert layer(x).dtype == dtype
    layer.eval()  # without dropout
    with torch.no_grad():
        weight = layer.base_layer.weight.float() + layer.delta_weight()
        expected = torch.nn.functional.linear(x.float(), weight, layer.base_layer.bias.float())
    tolerance = 1e-6 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(layer(x).float(), expected, atol=tolerance, rtol=tolerance)
    update = layer.lora_B.weight @ layer.lora_A.weight * 2  # alpha / rank
    assert torch.equal(layer.delta_weight(), update)


def test_batches_depend_on_step_and_part_only(annotated):
    task, same_task = make_task(annotated), make_task(annotated)
    a, b = task.draw(4, 1), same_task.draw(4, 1)
    assert torch.equal(a.inputs.input_ids, b.inputs.input_ids)
    assert all(torch.equal(x, y) for x, y in zip(a.ground_truth, b.ground_truth, strict=True))
    others = [task.draw(step, 0).inputs.input_ids for step in range(5)]
    assert any(not torch.equal(ids, a.inputs.input_ids) for ids in others)


def test_recomputing_activations_gives_the_same_gradients(annotated):
    gradients = []
    for recompute in (True, False):
        task = make_task(annotated, replace(CONFIG, recompute=recompute))
        task.module.train()
        torch.manual_seed(3)  # dropout
        sum(task.losses(task.draw(0, 0), 0).values()).backward()
        gradients.append({n: p.grad for n, p in task.lisa.named_parameters()})
    assert gradients[0]['llm.model.layers.0.self_attn.q_proj.lora_B.weight'].any()
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradient, gradients[1][name], msg=name)


# ---- losses


def test_ignored_pixels_do_not_count_in_the_losses(annotated):
    task = make_task(annotated)
    sample = AnnotatedImageSampler(read_folder(annotated)[:1]).draw(np.random.default_rng(0))
    lisa, batch = task.lisa.eval(), task.make_batch([sample])
    masks = batch.ground_truth[0]
    ignored = masks == IGNORED_PIXEL
    assert ignored.any()
    assert not ignored.all()

    def losses_for(ground_truth):
        with torch.no_grad():
            return batch_losses.compute_losses(lisa, replace(batch, ground_truth=(ground_truth,)))

    losses = losses_for(masks)
    output = lisa(batch.inputs)
    logits = lisa.postprocess(output.mask_logits, batch.resized[0], sample.image.shape[:2])
    by_hand = [
        torch.nn.functional.binary_cross_entropy_with_logits(
            mask_logits[mask != 255], mask[mask != 255].float()
        )
        for mask_logits, mask in zip(logits, masks, strict=True)
    ]
    torch.testing.assert_close(losses['bce'], torch.stack(by_hand).mean())
    as_target = losses_for(masks.masked_fill(ignored, 1))
    assert float(as_target['bce']) != pytest.approx(float(losses['bce']), rel=1e-3)


def test_an_answer_without_a_mask_has_no_mask_losses(annotated):
    task = make_task(annotated)
    sample = AnnotatedImageSampler(read_folder(annotated)[:1]).draw(np.random.default_rng(0))
    dialogues = ((Turn('Is it warm?', 'Yes.'),),)
    text_only = replace(sample, dialogues=dialogues, ground_truth=sample.ground_truth[:0])
    losses = task.losses(task.make_batch([text_only]), 0)
    assert float(losses['bce']) == float(losses['dice']) == 0
    assert float(losses['ce'].detach()) > 0
    with pytest.raises(DataError, match=r'have 0 \[SEG\] and 1 masks'):
        task.make_batch([replace(text_only, ground_truth=sample.ground_truth[:1])])


# ---- merging and exports


def test_merged_weights_compute_the_same_as_unmerged_ones(trained, annotated):
    task = trained[0]
    task.module.eval()
    merged = task.merge_lora()
    batch = task.draw(7, 0)
    with torch.no_grad():
        a, b = task.lisa(batch.inputs), merged(batch.inputs)
    torch.testing.assert_close(a.mask_logits, b.mask_logits, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(a.llm_states, b.llm_states, atol=1e-4, rtol=1e-4)
    layer = 'llm.model.layers.0.self_attn.q_proj.weight'
    base_weight = backend(256).model.state_dict()[layer]
    assert not torch.equal(merged.state_dict()[layer], base_weight)


@pytest.mark.parametrize('layout', ['model', 'original'])
def test_both_exports_load_and_give_the_same_answer(layout, trained):
    task, run, *_ = trained
    merged = LisaBackend(task.merge_lora(), task.tokenizer, task.clip_preprocessing)
    options = InferenceOptions(max_new_tokens=12)
    tower = CLIP if layout == 'original' else None
    exported = Segmenter.load(
        run / layout, vision_tower=tower, device='cpu', precision='fp32', options=options
    )
    state, exported_state = merged.model.state_dict(), exported.backend.model.state_dict()
    assert state.keys() == exported_state.keys()
    assert all(torch.equal(state[name], exported_state[name]) for name in state)
    assert exported.backend.template == 'llava_v1'
    arguments = load_image('coffee'), 'Where is the drink? Please output segmentation mask.'
    expected, answer = Segmenter(merged, options).segment(*arguments), exported.segment(*arguments)
    assert expected.token_ids == answer.token_ids
    np.testing.assert_array_equal(expected.mask_logits, answer.mask_logits)


def test_the_original_format_has_the_released_keys(trained):
    run = trained[1]
    exported = torch.load(run / 'original' / 'pytorch_model.bin', weights_only=True)
    released = torch.load(CKPT / 'pytorch_model.bin', weights_only=True)
    assert exported.keys() == released.keys()
    assert all(exported[name].shape == released[name].shape for name in released)


def test_validation_returns_metrics_and_draws_masks(trained, tmp_path):
    task = trained[0]
    task.module.eval()
    values = task.validate(tmp_path)
    assert values.keys() == {'val_giou', 'val_ciou'}
    assert 0 <= values['val_giou'] <= 1
    assert Image.open(tmp_path / 'answers.png').size[0] > 1000
    rows = (trained[1] / 'curves.csv').read_text().splitlines()
    assert 'val_giou' in rows[0]


def test_the_best_weights_find_nothing_where_nothing_is():
    """NaN would be no best score, and the weights would not be exported."""
    found, denied = Overlap(0, 5), Overlap(0, 0)
    assert validation_figures([denied] * 2) == {'val_giou': 1.0, 'val_ciou': 1.0}
    assert validation_figures([denied, found]) == {'val_giou': 0.5, 'val_ciou': 0.0}


def test_merging_does_not_change_the_trained_model(trained):
    task = trained[0]
    before = {name: tensor.clone() for name, tensor in task.lisa.state_dict().items()}
    task.merge_lora()
    after = task.lisa.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_resumed_run_ends_as_an_uninterrupted_one(annotated, tmp_path):
    config = replace(TRAINER, steps=3, accumulate=2, save_every=2)
    whole, parts = make_task(annotated), make_task(annotated)
    Trainer(tmp_path / 'a', config, whole).train()
    Trainer(tmp_path / 'b', config, parts).train(until=2)
    resumed = make_task(annotated)
    Trainer(tmp_path / 'b', config, resumed).train()
    state = resumed.lisa.state_dict()
    assert all(torch.equal(state[name], t) for name, t in whole.lisa.state_dict().items())


def test_a_run_that_trained_lora_with_peft_resumes(annotated, tmp_path):
    """peft named the matrices `lora_A.default.weight`."""
    config = replace(TRAINER, steps=2)
    whole = make_task(annotated)
    Trainer(tmp_path / 'a', config, whole).train()
    Trainer(tmp_path / 'b', config, make_task(annotated)).train(until=1)
    path = tmp_path / 'b' / 'last.pt'
    state = torch.load(path, weights_only=True)
    state['trained'] = {
        name.replace('lora_A.', 'lora_A.default.').replace('lora_B.', 'lora_B.default.'): tensor
        for name, tensor in state['trained'].items()
    }
    assert sum('.default.' in name for name in state['trained']) == 8
    torch.save(state, path)
    resumed = make_task(annotated)
    Trainer(tmp_path / 'b', config, resumed).train()
    weights = resumed.lisa.state_dict()
    assert all(torch.equal(weights[name], t) for name, t in whole.lisa.state_dict().items())


def test_the_original_format_names_the_clip_of_the_training(annotated, tmp_path):
    def export_run(base, run):
        task = make_task(annotated, base=base)
        task.export(tmp_path / run)
        return task, tmp_path / run / 'original'

    _, first = export_run(BASE, 'a')
    assert json.loads((first / 'config.json').read_text())['vision_tower'] == str(CLIP)
    # a checkpoint in our format has its own CLIP, changed or not
    with torch.no_grad():
        own = checkpoint.load(tmp_path / 'a' / 'model')
        own.model.clip.embeddings.patch_embedding.weight += 1
    export.save(own.model, own.tokenizer, own.clip_preprocessing, tmp_path / 'own', dtype=None)
    task, second = export_run(BaseCheckpoint(tmp_path / 'own'), 'b')
    again = checkpoint.load(second, template='llava_v1')
    assert again.clip_preprocessing == own.clip_preprocessing
    merged, exported = task.merge_lora().state_dict(), again.model.state_dict()
    assert all(torch.equal(exported[name], merged[name]) for name in merged)


def test_a_model_that_the_released_format_cannot_hold_has_one_export(annotated, tmp_path):
    task = make_task(annotated, base=BaseCheckpoint(WEIGHTS / 'lisa-tabletop'))
    task.export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['model']
    with pytest.raises(CheckpointError, match='cannot hold a SAM without relative positions'):
        export.save_original(task.merge_lora(), task.tokenizer, tmp_path / 'original')


# ---- from LLaVA and SAM


def write_llava(folder):
    """The toy's LLaVA and SAM as two checkpoints, without the tokens that LISA adds."""
    state = torch.load(CKPT / 'pytorch_model.bin', weights_only=True)
    llava, sam = {}, {}
    for name, tensor in state.items():
        if name.startswith('model.visual_model.'):
            sam[name.removeprefix('model.visual_model.')] = tensor
        elif 'text_hidden_fcs' not in name:
            has_row_per_token = name in ('model.embed_tokens.weight', 'lm_head.weight')
            llava[name] = tensor[:704].clone() if has_row_per_token else tensor
    folder.mkdir()
    torch.save(llava, folder / 'pytorch_model.bin')
    torch.save(sam, folder / 'sam.pth')
    config = json.loads((CKPT / 'config.json').read_text())
    for name in ('out_dim', 'train_mask_decoder'):
        del config[name]
    (folder / 'config.json').write_text(json.dumps({**config, 'vocab_size': 704}))
    for name in ('tokenizer.model', 'tokenizer_config.json', 'special_tokens_map.json'):
        (folder / name).write_bytes((CKPT / name).read_bytes())
    return folder


def test_a_lisa_is_made_from_a_llava_and_a_sam(annotated, tmp_path):
    folder = write_llava(tmp_path / 'llava')
    base = BaseCheckpoint(
        folder, vision_tower=CLIP, sam=folder / 'sam.pth', is_llava=True, template='llava_v1'
    )
    task = make_task(annotated, base=base)
    assert len(task.tokenizer) == task.lisa.config.llama.vocab_size == 707
    assert task.lisa.config.seg_token_id == 704
    embeddings = task.lisa.llm.model.embed_tokens.weight
    mean = embeddings[:704].mean(0)
    torch.testing.assert_close(embeddings[704], mean, atol=1e-2, rtol=1e-2)  # the file is bf16
    state, toy_state = task.lisa.state_dict(), backend(256).model.state_dict()
    for name in ('sam.vision_encoder.neck.conv1.weight', 'llm.model.norm.weight'):
        assert torch.equal(state[name], toy_state[name])
    Trainer(tmp_path / 'run', replace(TRAINER, steps=2), task).train()
    again = checkpoint.load(tmp_path / 'run' / 'original', vision_tower=CLIP)
    assert again.tokenizer.seg_token_id == 704
    keys = torch.load(CKPT / 'pytorch_model.bin', weights_only=True).keys()
    exported = tmp_path / 'run' / 'original' / 'pytorch_model.bin'
    assert torch.load(exported, weights_only=True).keys() == keys


# ---- memory

CLIP_L = CLIPVisionConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
    image_size=224, patch_size=14,
)  # fmt: skip


def lisa_7b():
    sizes = {'num_attention_heads': 32, 'rms_norm_eps': 1e-6}
    return infer_config(weight_shapes('7b'), sizes, CLIP_L, 32003, 'llava_v1')


def test_lisa_7b_in_nf4_fits_into_24_gb():
    memory = memory_estimate.estimate_memory(lisa_7b(), StepShape())
    assert memory.total() < 24e9
    quantized = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert memory.frozen['nf4'] == pytest.approx(quantized * 4.127 / 8, rel=1e-3)
    assert memory.trained['LoRA'] == 32 * 2 * 8 * (4096 + 4096) * 4
    assert memory.trained['embed_tokens'] == memory.trained['lm_head'] == 32004 * 4096 * 4
    assert memory.optimizer == 2 * memory.gradients == 2 * sum(memory.trained.values())
    in_fp32 = memory_estimate.estimate_memory(lisa_7b(), StepShape(precision='fp32', bf16=False))
    assert in_fp32.total() > 32e9
    table = memory_estimate.format_table(lisa_7b(), StepShape())
    assert table in (DATA.parents[2] / 'docs' / 'finetuning.md').read_text()


def test_the_estimate_counts_the_weights_of_the_task(annotated):
    task = make_task(annotated)
    memory = memory_estimate.estimate_memory(
        task.lisa.config, StepShape(precision='fp32', bf16=False)
    )
    trained = [p for p in task.lisa.parameters() if p.requires_grad]
    frozen = [p for p in task.lisa.parameters() if not p.requires_grad]
    assert sum(memory.trained.values()) == sum(4 * p.numel() for p in trained)
    assert sum(memory.frozen.values()) == sum(4 * p.numel() for p in frozen)


def saved_activations(task, batch):
    """The bytes that autograd saves for the backward pass, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in task.lisa.parameters()}
    saved = {}

    def record(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = (storage.nbytes(), storage)  # alive: unique addresses
        return tensor

    task.module.train()
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        task.losses(batch, 0)
    return sum(size for size, _ in saved.values())


def test_the_estimate_of_activations_is_above_what_autograd_saves(annotated):
    task = make_task(annotated, replace(CONFIG, recompute=False))
    config, batch = task.lisa.config, task.draw(0, 0)
    queries, length = batch.inputs.input_ids.shape
    shape = StepShape(
        precision='fp32',
        bf16=False,
        image_size=(80, 120),
        queries_per_image=queries,
        text_tokens=length - 50,
    )  # the template has 50 tokens, which all queries share
    stored, recomputed = memory_estimate.llm_activations(config, shape)
    rest = memory_estimate.lm_head_activations(config, shape)
    rest += memory_estimate.mask_activations(config, shape)
    saved = saved_activations(task, batch)
    assert 1.0 < (stored + rest) / saved < 3.0
    saved_with_recomputing = saved_activations(make_task(annotated), batch)
    assert saved_with_recomputing < 0.6 * saved
    assert recomputed + rest > saved_with_recomputing


# ---- the command


def arguments(annotated, run):
    return [
        'finetune', '--model', str(CKPT), '--vision-tower', str(CLIP), '--template', 'llava_v1',
        '--data', str(annotated), '--out', str(run), '--device', 'cpu', '--steps', '2',
        '--accumulate', '1', '--save-every', '2',
    ]  # fmt: skip


def test_the_command_prints_memory_and_time_and_exports_a_model(annotated, tmp_path, capsys):
    assert cli.main([*arguments(annotated, tmp_path / 'run'), '--val', str(annotated)]) == 0
    output = capsys.readouterr().out
    assert '| **total** |' in output
    assert 'a step takes about' in output
    model = checkpoint.load(tmp_path / 'run' / 'model').model
    assert model.config.seg_token_id == 704
    assert (tmp_path / 'run' / 'original' / 'config.json').is_file()


@pytest.mark.parametrize(
    ('extra', 'message'),
    [
        (['--precision', 'nf4'], 'nf4 needs a CUDA GPU'),
        (['--rates', '1', '2'], '2 --rates for 1 data sets'),
        (['--data', 'nowhere'], 'nowhere: no such folder'),
        (['--patience', '2'], '--patience needs images to validate on'),
    ],
)
def test_impossible_options_are_an_error_of_one_line(extra, message, annotated, tmp_path, capsys):
    assert cli.main([*arguments(annotated, tmp_path), *extra]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1


def test_a_llava_needs_a_sam(annotated, tmp_path, capsys):
    command = arguments(annotated, tmp_path)
    command[1] = '--llava'
    assert cli.main(command) == 1
    assert 'which has no SAM' in capsys.readouterr().err


# ---- the comparison with the original


@pytest.mark.parity
def test_the_check_agrees_with_the_original_and_detects_differences(tmp_path, capsys):
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
    assert format_report(report).endswith('\nall losses and gradients agree with the original')
    changed = json.loads((DATA / 'golden_256.json').read_text())
    entries = changed['train']
    entries[1]['losses']['mask_dice_loss'] *= 1.001
    entries[0]['grad_norm']['model.layers.1'] *= 1.01
    dialogue = entries[2]['conversations'][0]
    entries[2]['conversations'][0] = dialogue.replace('person', 'dog')
    (golden / 'golden_256.json').unlink()
    (golden / 'golden_256.json').write_text(json.dumps(changed))
    assert cli.main(['train', '--check', str(golden), '--json']) == 1
    report = json.loads(capsys.readouterr().out)
    first, second, third = report['cases']
    assert not first['gradient_norms']['model.layers.1']['ok']
    assert not second['losses']['mask_dice_loss']['ok']
    assert second['losses']['mask_bce_loss']['ok']
    assert not third['tokens']
    assert not (first['ok'] or second['ok'] or third['ok'])
    lines = format_report(report).splitlines()
    assert sum(line.endswith('TOKENS DIFFER') for line in lines) == 1
    assert lines[-1] == 'losses or gradients differ from the original'


def test_a_folder_without_a_golden_set_is_an_error(tmp_path, capsys):
    assert cli.main(['train', '--check', str(tmp_path)]) == 1
    assert 'no golden set' in capsys.readouterr().err
    assert cli.main(['train']) == 1
    assert 'needs --scenes and --out' in capsys.readouterr().err
