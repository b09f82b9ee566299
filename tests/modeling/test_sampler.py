"""Sampling: with and without guidance, any batch size, with and without a cache."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import Emu3ForConditionalGeneration, Emu3Processor
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from mm_cca.adapters.base import UnifiedModel
from mm_cca.modeling.draws import draw, fixed_point, image_stream, truncate
from mm_cca.modeling.guidance import guide
from mm_cca.modeling.sampler import Sampler, SamplingSettings, sample_codes
from mm_cca.testing.naive_sampler import sample_naively
from tests.support import naive
from tests.support.closeness import assert_close

GRID = (4, 4)
PROMPTS = [
    "red owl, noto style",
    "grinning face with big eyes, twemoji style",
    "a",
    "small waving hand",
    "green owl",
    "smiling owl, noto style",
    "",
    "red red red red red owl",
]


def _streams(count: int, num_codes: int = 16) -> np.ndarray:
    return np.stack([image_stream(0, index, num_codes) for index in range(count)])


def _argmax(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


@torch.no_grad()
def _sample(model: UnifiedModel, prompts: list[str], streams: np.ndarray, **options: object):
    return sample_codes(model, prompts, GRID, streams, SamplingSettings(**options))


def test_scale_one_is_guidance_free_bit_for_bit(
    tiny_model: UnifiedModel, monkeypatch: pytest.MonkeyPatch
):
    """The unconditional prompt is not even built."""
    plain, forward_passes = _sample(tiny_model, PROMPTS, _streams(8))

    def forbidden(*args: object) -> list[int]:
        raise AssertionError("the unconditional prompt was built")

    monkeypatch.setattr(tiny_model, "unconditional_ids", forbidden)
    scale_one, _ = _sample(tiny_model, PROMPTS, _streams(8), guidance_scale=1.0)
    assert torch.equal(plain, scale_one)
    assert forward_passes == 16
    with pytest.raises(AssertionError, match="prompt was built"):
        _sample(tiny_model, PROMPTS, _streams(8), guidance_scale=1.5)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_batch_of_one_equals_batch_of_eight(tiny_model: UnifiedModel, scale: float):
    together, _ = _sample(tiny_model, PROMPTS, _streams(8), guidance_scale=scale)
    for index, prompt in enumerate(PROMPTS):
        alone, _ = _sample(
            tiny_model, [prompt], _streams(8)[index : index + 1], guidance_scale=scale
        )
        assert torch.equal(alone[0], together[index]), prompt


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 3.0},
        {"temperature": 1.5, "top_k": 5},
        {"guidance_scale": 2.0, "top_k": 20, "top_p": 0.8},
        {"guidance_scale": 2.0, "negative_prompt": "green owl"},
    ],
    ids=str,
)
def test_codes_are_those_of_the_naive_sampler(tiny_model: UnifiedModel, options: dict[str, float]):
    """No cache, no padding, every prefix anew, float64; several prompts occur twice."""
    prompts = [*PROMPTS[:3], PROMPTS[0]]
    codes, passes = _sample(tiny_model, prompts, _streams(4), **options)
    naively = sample_naively(tiny_model, prompts, GRID, _streams(4), SamplingSettings(**options))
    assert torch.equal(codes, naively)
    assert passes == (16 if "guidance_scale" not in options else 32)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_greedy_tokens_are_those_of_stock_generate(
    tiny8_folder, tiny8_model: UnifiedModel, scale: float
):
    """Stock guidance processor and prefix constraint, as in the documentation of Emu3.

    Both of its passes get the same prompts as ours; the negative one ends with ``boi H*W img`` too.
    """
    stock = Emu3ForConditionalGeneration.from_pretrained(tiny8_folder).eval()
    processor = Emu3Processor.from_pretrained(tiny8_folder)
    height, width = 3, 3
    options = {"return_for_image_generation": True, "ratio": "1:1", "image_area": 24 * 24}
    mapping = stock.vocabulary_mapping
    for prompt in PROMPTS[:3]:
        inputs = processor(text=prompt, return_tensors="pt", **options)
        negative = processor(text="", return_tensors="pt", **options)
        start = inputs["input_ids"].shape[1]

        def allowed(row: int, ids: torch.Tensor, start: int = start) -> list[int]:
            slot = len(ids) - start
            end_of_line = (slot + 1) % (width + 1) == 0
            return [mapping.eol_token_id] if end_of_line else mapping.image_tokens

        generated = stock.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=height * (width + 1),
            min_new_tokens=height * (width + 1),
            do_sample=False,
            guidance_scale=scale,
            negative_prompt_ids=negative["input_ids"],
            negative_prompt_attention_mask=negative["attention_mask"],
            prefix_allowed_tokens_fn=allowed,
        )
        tokens = generated[0, start:].view(height, width + 1)[:, :-1].flatten()
        expected = [mapping.bpe2img[token] for token in tokens.tolist()]
        with torch.no_grad():
            ours, _ = sample_codes(
                tiny8_model,
                [prompt],
                (height, width),
                _streams(1, 9),
                SamplingSettings(guidance_scale=scale),
                pick=_argmax,
            )
        assert ours[0].tolist() == expected, prompt


def test_guidance_formula():
    """log-softmax of both, then uncond + scale * (cond - uncond)."""
    cond, uncond = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    log_cond = [-np.log1p(np.exp(-2)), -2 - np.log1p(np.exp(-2))]
    log_uncond = -np.log(2)
    expected = [[log_uncond + 3 * (value - log_uncond) for value in log_cond]]
    assert_close(guide(cond, uncond, 3.0), torch.tensor(expected), 1e-5)
    assert_close(guide(cond, uncond, 1.0), cond.log_softmax(-1), 1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.5, 7.5])
def test_guidance_equals_the_naive_formula(scale: float):
    cond, uncond = torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(0))
    rows = zip(cond.tolist(), uncond.tolist(), strict=True)
    expected = torch.tensor([naive.guided(c, u, scale) for c, u in rows])
    assert_close(guide(cond, uncond, scale), expected, 1e-4)


def test_draws_follow_the_softmax():
    """Chi-square of 200,000 draws from one stream against the probabilities."""
    logits = torch.tensor([1.5, 0.0, -1.0, 0.7, -torch.inf, 2.0])
    uniforms = fixed_point(image_stream(3, 4, 200_000))
    drawn = draw(logits.expand(len(uniforms), -1), uniforms)
    counts = torch.bincount(drawn, minlength=6).numpy()
    expected = logits.double().softmax(0).numpy() * len(uniforms)
    assert counts[4] == 0
    possible = expected > 0
    assert chisquare(counts[possible], expected[possible]).pvalue > 1e-3


def test_draw_at_the_edges():
    logits = torch.log(torch.tensor([[0.25, 0.25, 0.5]])).expand(4, -1)
    uniforms = fixed_point(np.array([0.0, 0.2499, 0.2501, np.nextafter(1.0, 0.0)]))
    assert draw(logits, uniforms).tolist() == [0, 0, 1, 2]


def test_an_impossible_code_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    uniforms = fixed_point(np.array([0.0, 0.5, np.nextafter(1.0, 0.0)]))
    assert draw(logits, uniforms).tolist() == [1, 1, 1]


def test_draws_are_those_of_float64():
    """Of 200,000 draws from 512 codes at most 20 differ, and those lie at a boundary."""
    logits = torch.randn(200_000, 512, generator=torch.Generator().manual_seed(0)) * 2
    uniforms = image_stream(5, 6, len(logits))
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1).numpy()
    expected = [
        np.searchsorted(row, u * row[-1], "right")
        for row, u in zip(cumulative, uniforms, strict=True)
    ]
    drawn = draw(logits, fixed_point(uniforms)).numpy()
    (other,) = np.nonzero(drawn != expected)
    assert len(other) <= 20
    boundary = np.abs(cumulative[other] - uniforms[other, None]).min(axis=1)
    assert (boundary < 1e-6).all()


def test_the_integer_arithmetic_is_exact_for_the_largest_vocabulary():
    """2^18 equally likely codes: code and uniform are the same number."""
    codes = [0, 1, 2**17, 2**18 - 1]
    logits = torch.zeros(1, 2**18).expand(len(codes), -1)
    at = fixed_point(np.array(codes) / 2**18)
    assert draw(logits, at).tolist() == codes
    assert draw(logits, (at - 1).clamp(min=0)).tolist() == [0, 0, 2**17 - 1, 2**18 - 2]


def test_sampled_first_codes_follow_the_model(tiny_model: UnifiedModel):
    """The first codes of 2,000 images of one prompt against the model's softmax."""
    model = tiny_model
    count, temperature = 2000, 1.3
    settings = SamplingSettings(temperature=temperature)
    seen: list[torch.Tensor] = []

    def note(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        return draw(logits, uniforms)

    with torch.no_grad():
        codes, _ = sample_codes(
            model, ["red owl"] * count, (1, 1), _streams(count, 1), settings, pick=note
        )
        ids = torch.tensor(model.prompt_ids(["red owl"], (1, 1)))
        logits = model.module(input_ids=ids).logits[0, -1]
    mapping = model.module.vocabulary_mapping
    image_ids = torch.tensor([mapping.img2bpe[c] for c in range(32)])
    probabilities = (logits[image_ids] / temperature).double().softmax(0)
    assert_close(seen[0][0].double().softmax(0), probabilities, 1e-5)
    counts = torch.bincount(codes[:, 0], minlength=32).numpy()
    common = probabilities.numpy() * count >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(probabilities.numpy()[common], probabilities.numpy()[~common].sum())
    keep = expected > 0
    assert chisquare(observed[keep], expected[keep] * count).pvalue > 1e-3


@pytest.mark.parametrize("top_k", [1, 5, 40])
def test_top_k_is_transformers(top_k: int):
    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    expected = TopKLogitsWarper(min(top_k, 20))(None, logits.clone())
    assert torch.equal(truncate(logits, top_k, None), expected)


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 1.0])
def test_top_p_is_transformers(top_p: float):
    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    expected = logits if top_p == 1.0 else TopPLogitsWarper(top_p)(None, logits.clone())
    assert torch.equal(truncate(logits, None, top_p), expected)


def test_truncation_is_of_the_tempered_logits_first_k_then_p():
    """The order in which transformers' ``generate`` warps."""
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)) / 0.5
    expected = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(4)(None, logits.clone()))
    alone = truncate(logits, None, 0.8)
    assert not torch.equal(expected, alone), "the test needs a case in which k matters"
    assert torch.equal(truncate(logits, 4, 0.8), expected)


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_settings_reach_the_draw(tiny_model: UnifiedModel, narrow: dict[str, float]):
    """Each of these leaves only the most likely code."""
    with torch.no_grad():
        greedy, _ = sample_codes(
            tiny_model, PROMPTS, GRID, _streams(8), SamplingSettings(), pick=_argmax
        )
    free, _ = _sample(tiny_model, PROMPTS, _streams(8))
    drawn, _ = _sample(tiny_model, PROMPTS, _streams(8), **narrow)
    assert not torch.equal(free, greedy)
    assert torch.equal(drawn, greedy)


def test_images_with_and_without_guidance_share_a_batch(tiny_model: UnifiedModel):
    streams, prompts = _streams(4), ["red owl", "red owl", "small face", "green hand"]
    scales = [1.0, 3.0, 1.0, 1.5]
    sampler = Sampler(tiny_model, GRID)
    together, passes = sampler.sample(prompts, streams, SamplingSettings(), scales=scales)
    assert passes == 2 * streams.shape[1]
    for number, scale in enumerate(scales):
        one = slice(number, number + 1)
        alone, _ = _sample(tiny_model, prompts[one], streams[one], guidance_scale=scale)
        assert torch.equal(together[one], alone)
    assert not torch.equal(together[0], together[1])


def test_guidance_is_away_from_the_negative_prompt(tiny_model: UnifiedModel):
    """With the prompt itself as negative prompt, both passes agree and guidance cancels out."""
    prompt = PROMPTS[:1]
    plain, _ = _sample(tiny_model, prompt, _streams(1))
    itself, _ = _sample(
        tiny_model, prompt, _streams(1), guidance_scale=3.0, negative_prompt=prompt[0]
    )
    empty, _ = _sample(tiny_model, prompt, _streams(1), guidance_scale=3.0)
    assert torch.equal(itself, plain)
    assert not torch.equal(empty, plain)


def test_a_stream_belongs_to_its_image():
    assert (image_stream(0, 5, 64) == _streams(8, 64)[5]).all()
    assert (image_stream(0, 5, 64) != image_stream(1, 5, 64)).any()
    assert (image_stream(0, 5, 64) != image_stream(0, 6, 64)).any()
