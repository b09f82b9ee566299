"""The keys of ``sample`` and ``eval``."""

from dataclasses import dataclass

from mm_cca.config.keys import ARMS, COMPARISON, EVAL, REPORT, SAMPLE, Condition, key
from mm_cca.config.metrics import DEFAULT as DEFAULT_METRICS
from mm_cca.config.metrics import SCORES

MIN_IMAGES = 4
"""Fewer have no three neighbours (precision and recall) and no two halves (kernel distance)."""
FROM_CAPTIONS = Condition("sample.prompts is null", lambda recipe: recipe.sample.prompts is None)


@dataclass
class SampleConfig:
    """The arms, and how they are sampled."""

    num_images: int = key(256, at_least=MIN_IMAGES, decides=(SAMPLE.given(FROM_CAPTIONS),))
    """Captions sampled per split of the data, at most half of it; the other half are the real
    images to compare with. Not used with sample.prompts."""
    prompts: str | None = key(
        None,
        words="null (captions of the data), a file .txt, .jsonl, .csv, .json, a folder of them, or "
        "attributes",
        content="texts",
        decides=(SAMPLE,),
    )
    """Prompts to sample instead of captions of the data, all of them: a file, a folder of files,
    or the built-in set attributes; null: captions."""
    images_per_prompt: int = key(1, at_least=1, decides=(SAMPLE, COMPARISON))
    """Images of every prompt, each with random numbers of its own."""
    guidance_scales: list[float] = key(
        [1.5, 2.0, 3.0, 5.0, 7.5], above=1, distinct=True, decides=(ARMS,)
    )
    """Guidance scales of the base, one arm each: the sweep that CCA is compared with."""
    control_scales: list[float] = key([], above=1, distinct=True, decides=(ARMS,))
    """Guidance scales of the control, one arm each."""
    cca_scales: list[float] = key([], above=1, distinct=True, decides=(ARMS,))
    """Guidance scales of the trained model, one arm each; without guidance it is always
    sampled."""
    dial: list[float] = key(
        [],
        at_least=0,
        distinct=True,
        words="0 or more, but not 1, which is the arm cca",
        decides=(ARMS,),
    )
    """Strengths a of the training, one unguided arm each with the weights
    base + a * (trained - base): 0 is the base, 1 would be the arm cca, above 1 extrapolates."""
    temperature: float | None = key(None, above=0, decides=(SAMPLE, COMPARISON))
    """Divides the logits before sampling: below 1 is safer, above 1 more varied; null is the model
    family's own."""
    top_k: int | None = key(None, at_least=1, decides=(SAMPLE, COMPARISON))
    """Sample among the k most likely codes only; null is the model family's own."""
    top_p: float | None = key(None, above=0, at_most=1, decides=(SAMPLE, COMPARISON))
    """Sample among the most likely codes that together have this probability; null is the model
    family's own."""
    negative_prompts: list[str] = key(
        [""],
        items=(1, None),
        distinct=True,
        words='one or more texts; [""] uses the empty (unconditional) prompt',
        decides=(ARMS,),
    )
    """What guidance leads away from: every guided arm is sampled once for each; the empty text is
    the unconditional prompt."""
    batch_size: int = key(64, at_least=1)
    """Images sampled at once; guidance doubles the rows. Lower it when memory runs out. Every image
    has random numbers of its own, so the images are the same up to rounding."""
    seed: int = key(0, at_least=0, decides=(SAMPLE, COMPARISON))
    """Seed of the choice of captions, of the random numbers of every image, and of the scores'
    resampling."""


@dataclass
class EvalConfig:
    """Scores, what they are measured with, and the report."""

    scorer: str = key(decides=(EVAL,))
    """The model that compares images with captions: an open_clip name, hf:ORG/NAME,
    local-dir:FOLDER, or emoji-clip."""
    scorer_pretrained: str | None = key(None, decides=(EVAL,))
    """open_clip's tag of the weights, such as openai, or a file of weights; null where the name
    says it all."""
    metrics: list[str] = key(
        list(DEFAULT_METRICS), choices=tuple(SCORES), distinct=True, decides=(EVAL,)
    )
    """The scores to compute; alignment must be among them, as it chooses the best guidance scale.
    fid, kid and inception_score need inception_weights; clip_score a published CLIP."""
    inception_weights: str | None = key(None, decides=(EVAL,))
    """Weights of torch-fidelity's Inception, for fid, kid and inception_score: a file, or
    download; null: none."""
    inception_sha256: str | None = key(
        None,
        words="null (the published weights), or 8 to 64 hexadecimal digits",
        decides=(EVAL,),
    )
    """First digits of the sha256 that the Inception file must have; null is the published
    one's."""
    reference: str | None = key(None, decides=(EVAL,))
    """Real images to compare with: a folder, a Parquet file, a hub name, or an .npz of mean and
    covariance; null: the rows of each split that are not sampled."""
    reference_split: str = key("train", decides=(EVAL,))
    """The split of eval.reference, where that is a hub name."""
    image_size: list[int] | None = key(
        None,
        at_least=1,
        items=(2, 2),
        words="null (as drawn), or [height, width]",
        decides=(EVAL,),
    )
    """Height and width in pixels to which drawn and real images are resized before scoring; null:
    as drawn."""
    batch_size: int = key(256, at_least=1)
    """Images scored at once. Lower it when memory runs out."""
    attributes: list[str] = key([], decides=(EVAL,))
    """Kinds of words, such as colour or style, to score: is the image closer to its caption than
    to the same caption with that word swapped?"""
    text_nll: str | None = key(
        None,
        words="null, captions, or a file that ends in .txt, .jsonl, .json, .parquet",
        content="file",
        decides=(EVAL,),
    )
    """Texts to measure the language side on, in nats per token: captions (held-out ones) or a file
    of texts; null: not measured."""
    bootstrap_samples: int = key(1000, at_least=100, decides=(EVAL,))
    """Resamples of the prompts for the 95 % intervals."""
    grid_prompts: int = key(12, at_least=1, decides=(REPORT,))
    """Rows of images on one page of the report."""
    report_megabytes: float = key(8.0, at_least=0, decides=(REPORT,))
    """Images inside the report file, in megabytes at most; the others are read from the run
    folder."""
