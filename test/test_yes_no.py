# SPDX-License-Identifier: Apache-2.0
"""Yes/no questions: the probability of "yes" against "no", from how the model would begin."""

import dataclasses
import json
import math
import threading

import pytest
import torch
from golden import backend, load_image
from PIL import Image
from scripted_backend import ScriptedBackend
from toy_qwen import save_scripted
from toy_sam2 import toy_image, toy_model

from lisa_ros import cli
from lisa_ros.errors import ModelError, QueryError
from lisa_ros.evaluation.known_answer import KnownAnswer
from lisa_ros.model import generation
from lisa_ros.model.packing import IMAGE_TOKEN_INDEX
from lisa_ros.model.phrase_probability import phrase_probabilities
from lisa_ros.perception.answer_checks import check_result
from lisa_ros.perception.backend import InferenceOptions, LoadOptions, Query
from lisa_ros.perception.image_encoder import StageTimer
from lisa_ros.perception.prompts import TEMPLATES, answer_ids, prompt_ids, training_ids
from lisa_ros.perception.registry import load_backend
from lisa_ros.perception.roi import stream_in_region
from lisa_ros.perception.segmenter import Segmenter
from lisa_ros.perception.yes_no import YesNoWords
from lisa_ros.resources import DEFAULT_MODEL, SELF_TEST
from lisa_ros.results import Dialogue, Status, Token, Turn, unanswered

QUESTION = 'is there a mug?'
IMAGE = load_image('astronaut')


def ask(lisa, question=QUESTION, image=IMAGE, cancel=None, **query):
    query = Query(question, yes_no=True, **query)
    cancel = cancel or threading.Event()
    return list(stream_in_region(lisa, image, query, InferenceOptions(), cancel))


@pytest.fixture
def lisa(monkeypatch):
    """A LISA at toy size, to which "It" and "Sure" mean yes, and "the" no.

    Each is one token. The last layer is restored afterwards.
    """
    words = YesNoWords(('It', 'Sure'), ('the',))
    template = dataclasses.replace(TEMPLATES['llava_v1'], yes_no=words)
    monkeypatch.setitem(TEMPLATES, 'toy', template)
    lisa = backend.__wrapped__(256, 'toy')
    weight = lisa.model.llm.lm_head.weight
    before = weight.detach().clone()
    yield lisa
    with torch.no_grad():
        weight.copy_(before)
    lisa.clear_cache()


def embeddings_of(lisa, ids):
    encoded = lisa.encoder.encode(IMAGE, StageTimer(torch.device('cpu')))
    return lisa.model.embed(torch.tensor(ids), encoded.clip_tokens)


def decide(lisa, scores):
    """Change the last layer: these words get these scores after a question, all others zero."""
    request = TEMPLATES[lisa.template].yes_no.request
    ids = prompt_ids(lisa.tokenizer, lisa.template, f'{QUESTION} {request}')
    with torch.inference_mode():
        output = lisa.model.llm.model(inputs_embeds=embeddings_of(lisa, ids)[None])
    state = output.last_hidden_state[0, -1].clone()
    weight = lisa.model.llm.lm_head.weight
    with torch.no_grad():
        weight.zero_()
        for word, score in scores.items():
            (token,) = answer_ids(lisa.tokenizer, lisa.template, word)
            weight[token] = score * state / state.square().sum()
    lisa.clear_cache()


# ---- LISA


@torch.inference_mode()
def test_the_probability_of_a_phrase_is_that_of_its_tokens(lisa):
    ids = prompt_ids(lisa.tokenizer, lisa.template, QUESTION)
    embeddings, language_model = embeddings_of(lisa, ids), lisa._language_model
    phrases = [answer_ids(lisa.tokenizer, lisa.template, text) for text in ('It', 'Yes')]
    assert [len(phrase) > 1 for phrase in phrases] == [False, True]
    prompt = generation.prefill(language_model, embeddings)
    own = phrase_probabilities(language_model, prompt, phrases)
    for phrase, probability in zip(phrases, own, strict=True):
        tokens = lisa.model.llm.get_input_embeddings()(torch.tensor(phrase))
        whole = torch.cat([embeddings, tokens])[None]
        scores = lisa.model.llm(inputs_embeds=whole).logits[0, len(ids_of(lisa, ids)) - 1 : -1]
        chosen = scores.float().log_softmax(-1).gather(1, torch.tensor(phrase)[:, None])
        assert probability == pytest.approx(float(chosen.sum().exp()), rel=1e-4)
    again = phrase_probabilities(language_model, prompt, phrases)
    assert again == pytest.approx(own, rel=1e-5)  # the cache is as before


def ids_of(lisa, ids):
    """Return the positions of a prompt: the image takes several."""
    return [position for position in ids if position != IMAGE_TOKEN_INDEX] + [
        IMAGE_TOKEN_INDEX
    ] * lisa.model.config.image_tokens


@pytest.mark.parametrize('template', TEMPLATES)
def test_the_ids_of_a_beginning_are_those_of_training(template):
    tokenizer = backend(256).tokenizer
    prompt = prompt_ids(tokenizer, template, QUESTION)
    beginning = [*prompt, *answer_ids(tokenizer, template, 'Yes')]
    ids, _ = training_ids(tokenizer, template, [Turn(QUESTION, 'Yes, it is.')])
    assert ids[: len(beginning)] == beginning


@pytest.mark.parametrize(('yes', 'no', 'answer'), [(16, 15, 'Yes.'), (14, 16, 'No.')])
def test_yes_is_weighed_against_no(lisa, yes, no, answer):
    decide(lisa, {'It': yes, 'the': no})
    token, done = ask(lisa)
    result = done.result
    assert result.yes_probability == pytest.approx(1 / (1 + math.exp(no - yes)), abs=1e-3)
    assert (token, result.answer, result.answer_raw) == (Token(answer), answer, answer)
    assert (result.status, result.reason, result.query) == (Status.NOT_FOUND, '', QUESTION)
    assert result.masks.shape == (0, *IMAGE.shape[:2])
    assert 'prompt' in result.timings


def test_all_words_for_yes_count_together(lisa):
    decide(lisa, {'It': 15, 'Sure': 15, 'the': 14})
    expected = 2 / (2 + math.exp(-1))
    assert ask(lisa)[-1].result.yes_probability == pytest.approx(expected, abs=1e-3)


def test_a_model_that_says_something_else_has_not_decided(lisa):
    decide(lisa, {'It': 15, 'the': 13, 'is': 16})
    (done,) = ask(lisa)
    result = done.result
    assert (result.status, result.yes_probability, result.answer) == (Status.FAILED, None, '')
    assert 'neither with yes nor with no (together 29% of its answers)' in result.reason


def test_numbers_that_are_none_are_a_failure(lisa):
    decide(lisa, {'It': math.nan})
    (done,) = ask(lisa)
    assert done.result.status is Status.FAILED
    assert 'NaN' in done.result.reason


def test_a_question_leaves_other_answers_as_they_are(lisa):
    model = Segmenter(lisa)
    before = model.segment(IMAGE, QUESTION)
    assert before.yes_probability is None
    ask(lisa)
    after = model.segment(IMAGE, QUESTION)
    assert (after.token_ids, after.answer_raw) == (before.token_ids, before.answer_raw)


def test_an_empty_question_is_refused(lisa):
    with pytest.raises(QueryError, match='the query is empty'):
        ask(lisa, ' ')


# ---- lisa-tabletop, with its real weights


@pytest.fixture(scope='module')
def tabletop():
    return Segmenter.load(DEFAULT_MODEL)


@pytest.fixture(scope='module')
def table():
    return KnownAnswer.read(SELF_TEST).image


def test_lisa_tabletop_knows_what_is_there(tabletop, table):
    assert tabletop.backend.capabilities.yes_no
    present = tabletop.segment(table, 'is there a mug?', yes_no=True)
    absent = tabletop.segment(table, 'Can you see a book?', yes_no=True)
    assert present.yes_probability > 0.95
    assert absent.yes_probability < 0.05
    for result, question in ((present, 'is there a mug?'), (absent, 'Can you see a book?')):
        # it says so, too
        assert tabletop.segment(table, question).answer.startswith('Yes') == (
            result.yes_probability > 0.5
        )


def test_lisa_tabletop_has_learnt_no_other_questions(tabletop, table):
    for question in ('how many mugs are there?', 'the mug'):
        result = tabletop.segment(table, question, yes_no=True)
        assert (result.status, result.yes_probability) == (Status.FAILED, None), question


def test_a_region_a_dialogue_and_a_batch_have_yes_and_no_too(tabletop, table):
    whole = (0, 0, table.shape[1], table.shape[0])
    plain = tabletop.segment(table, QUESTION, yes_no=True)
    in_region = tabletop.segment(table, QUESTION, yes_no=True, region=whole)
    assert in_region.yes_probability == pytest.approx(plain.yes_probability, abs=1e-5)
    dialogue = Dialogue().extended(plain)
    assert tabletop.segment(table, 'is there a book?', dialogue, yes_no=True).answer == 'No.'
    words, asked = tabletop.segment_batch(
        [(table, QUESTION), (table, Query(QUESTION, yes_no=True))]
    )
    assert words.yes_probability is None
    assert asked.yes_probability == pytest.approx(plain.yes_probability, abs=1e-5)


def test_a_cancel_is_noticed(tabletop, table):
    cancel = threading.Event()
    cancel.set()
    result = tabletop.segment(table, QUESTION, cancel=cancel, yes_no=True)
    assert (result.status, result.yes_probability) == (Status.CANCELLED, None)


def test_the_command_prints_answer_and_probability(table, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(table).save('table.png')
    assert cli.main(['segment', 'table.png', QUESTION, '--yes-no']) == 0
    assert capsys.readouterr().out.startswith('Yes. (1.00 yes, ')
    assert cli.main(['segment', 'table.png', 'is there a book?', '--yes-no', '--json']) == 0
    assert json.loads(capsys.readouterr().out)['yes_probability'] < 0.05
    assert not (tmp_path / 'lisa-out').exists()
    assert cli.main(['segment', 'table.png', 'the mug', '--yes-no']) == 1
    assert 'neither with yes nor with no' in capsys.readouterr().err


# ---- a vision-language model


@pytest.fixture(scope='module')
def vlm(tmp_path_factory):
    """Return a function that makes a model that begins each answer with a word."""
    root = tmp_path_factory.mktemp('vlm')
    toy_model().save_pretrained(root / 'sam2')
    options = LoadOptions(device='cpu', segmenter_model=root / 'sam2', max_input_side=1024)

    def model(word):
        folder = root / word / 'VisionReasoner-toy'
        folder.mkdir(parents=True)
        save_scripted(folder, word, ' indeed')
        return load_backend(f'vlm+sam:{folder}', options)

    return model


@pytest.mark.parametrize(
    ('word', 'answer', 'probability'),
    [('Yes', 'Yes.', 1), ('no', 'No.', 0), ('Perhaps', '', None)],
)
def test_a_vision_language_model_says_yes_or_no(vlm, word, answer, probability):
    backend, image = vlm(word), toy_image('coffee')
    assert backend.capabilities.yes_no
    result = ask(backend, image=image)[-1].result
    assert result.answer == answer
    if probability is None:
        assert (result.status, result.yes_probability) == (Status.FAILED, None)
        return
    assert result.yes_probability == pytest.approx(probability, abs=0.05)
    assert ask(backend, image=image, region=(4, 4, 60, 60))[-1].result.answer == answer
    with pytest.raises(QueryError, match='the query is empty'):
        ask(backend, ' ', image)
    cancel = threading.Event()
    cancel.set()
    assert ask(backend, image=image, cancel=cancel)[-1].result.status is Status.CANCELLED


# ---- others


def test_a_model_that_cannot_is_not_asked():
    scripted = ScriptedBackend()
    with pytest.raises(QueryError, match='this model gives no probability of yes and no'):
        ask(scripted)
    (result,) = Segmenter(scripted).segment_batch([(IMAGE, Query(QUESTION, yes_no=True))])
    assert (result.status, scripted.calls) == (Status.FAILED, [])


@pytest.mark.parametrize('probability', [1.5, -0.1, math.nan])
def test_a_probability_that_is_none_is_refused(probability):
    result = unanswered(QUESTION, Status.NOT_FOUND, '')
    check_result(dataclasses.replace(result, yes_probability=0.5), (0, 0))
    with pytest.raises(ModelError, match='expected a number of 0 to 1'):
        check_result(dataclasses.replace(result, yes_probability=probability), (0, 0))
