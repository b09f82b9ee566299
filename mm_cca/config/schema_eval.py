"""The keys of ``sample`` and ``eval``."""

from dataclasses import dataclass

from mm_cca.config.keys import (
    ARMS,
    COMPARISON,
    ENGINE,
    EVAL,
    MAX_SEED,
    REPORT,
    SAMPLE,
    Condition,
    is_given,
    key,
)
from mm_cca.config.metrics import DEFAULT as DEFAULT_METRICS
from mm_cca.config.metrics import METRICS
from mm_cca.config.prompt_templates import ALLOWED as TEMPLATES
from mm_cca.config.schema_train import AUTO
from mm_cca.config.shipped import SHIPPED

MIN_IMAGES = 4
"""Precision and recall need three neighbours, the kernel distance two halves."""
REAL, RECONSTRUCTION = "real", "reconstruction"
"""What ``eval.reference`` may name besides a place."""
TEMPLATED = is_given("sample.prompt_template")
FROM_CAPTIONS = Condition("sample.prompts is null", lambda recipe: recipe.sample.prompts is None)


BATCH_SIZE = 64


@dataclass
class SampleConfig:
    """The arms, and how they are sampled."""

    num_images: int = key(
        256, at_least=MIN_IMAGES, at_most=100_000_000, decides=(SAMPLE.given(FROM_CAPTIONS),)
    )
    """Captions sampled per split of the data, at most half of the split; the other rows are the
    real images to compare with. Not used with sample.prompts."""
    prompts: str | None = key(
        None,
        allowed="null (captions of the data), a file .txt, .jsonl, .csv, .json, a folder of them, "
        "or attributes",
        content="texts",
        decides=(SAMPLE,),
    )
    """Prompts to sample instead of captions of the data (all are used): a file, a folder of files,
    or the built-in set attributes; null: captions."""
    prompt_template: str | None = key(
        None, allowed=TEMPLATES, free_text=True, decides=(SAMPLE.given(TEMPLATED), COMPARISON)
    )
    """Text around every prompt that is sampled, in all arms, with {prompt} in the prompt's place,
    such as the words that the model's authors add; negative prompts stay as they are. Images are
    scored by the prompt without it. null: the prompt as it is."""
    images_per_prompt: int = key(1, at_least=1, at_most=100_000, decides=(SAMPLE, COMPARISON))
    """Images per prompt, each with its own random numbers."""
    guidance_scales: list[float] = key(
        [1.5, 2.0, 3.0, 5.0, 7.5], above=1, at_most=100, distinct=True, decides=(ARMS,)
    )
    """Guidance scales of the base, one arm each: the baselines that CCA is compared with."""
    control_scales: list[float] = key([], above=1, at_most=100, distinct=True, decides=(ARMS,))
    """Guidance scales of the control, one arm each."""
    cca_scales: list[float] = key([], above=1, at_most=100, distinct=True, decides=(ARMS,))
    """Guidance scales of the trained model, one arm each, in addition to the unguided arm cca."""
    dial: list[float] = key(
        [],
        at_least=0,
        at_most=100,
        distinct=True,
        allowed="0 to 100, but not 1, which is the arm cca",
        decides=(ARMS,),
    )
    """Dial values a, one unguided arm each with the weights base + a * (trained - base): 0 is the
    base, 1 would be the arm cca, above 1 extrapolates."""
    temperature: float | None = key(None, above=0, at_most=100, decides=(SAMPLE, COMPARISON))
    """Divides the logits before sampling: lower is less varied, higher more; null: the model
    family's default."""
    temperatures: list[float] = key(
        [],
        above=0,
        at_most=100,
        distinct=True,
        allowed="above 0 and at most 100, but not sample.temperature (or the family's default), "
        "which every arm has anyway",
        decides=(ARMS,),
    )
    """More temperatures, such as 0.9 and 1.1: every arm is sampled at each of them too, with the
    same random numbers, as an arm of its own (base+t0.9, cca+t0.9 ...)."""
    top_k: int | None = key(None, at_least=1, at_most=10_000_000, decides=(SAMPLE, COMPARISON))
    """Sample only from the k most likely codes; null: the model family's default."""
    top_p: float | None = key(None, above=0, at_most=1, decides=(SAMPLE, COMPARISON))
    """Sample only from the most likely codes that together have this probability; null: the model
    family's default."""
    negative_prompts: list[str] = key(
        [""],
        items=(1, None),
        distinct=True,
        free_text=True,
        allowed='one or more texts; [""] uses the empty (unconditional) prompt',
        decides=(ARMS,),
    )
    """What guidance steers away from: every guided arm is sampled once per entry; the empty text is
    the unconditional prompt."""
    batch_size: int | str = key(BATCH_SIZE, at_least=1, at_most=100_000, words=(AUTO,))
    """Images sampled per batch; guidance doubles the rows. auto: as many as fit the free memory of
    a GPU, at most 256; 64 on a CPU. When memory runs out, the batch is halved and sampling goes on.
    Every image has its own random numbers, so the images are the same up to rounding."""
    compile: bool | None = key(None)
    """Compile the steps of sampling, which takes a minute or so per arm's kind; images are the same
    up to rounding. null: if an arm has at least 5000 steps (batches times codes per image)."""
    engine: list[str] = key(
        [],
        distinct=True,
        allowed="http:// or https:// addresses, such as http://localhost:8000; with any of them "
        "guidance_scales, cca_scales and control_scales must be []",
        decides=(ENGINE,),
    )
    """Servers of a stock engine (vLLM) that draw the arms without guidance, dials and temperatures
    included. Export an arm with `mm-cca export RUN DIR --for-engine`, start the engine with the
    line that it prints, then sample with sample.engine=http://localhost:8000. Images are divided
    among any number of servers; one that fails is left out. Stock engines can't guide: draw guided
    arms without this key, before or after; finished arms stay as they are. Not needed by eval and
    report. []: our own sampler draws every arm."""
    engine_requests: int = key(128, at_least=1, at_most=100_000)
    """Images that are requested at a time from each server of sample.engine. More than the engine
    draws at a time (--max-num-seqs) wait in its queue; the images are the same."""
    seed: int = key(0, at_least=0, at_most=MAX_SEED, decides=(SAMPLE, COMPARISON))
    """Seed of the choice of captions, of the random numbers of every image, and of the scores'
    resampling."""
    every: int | str | None = key(None, at_least=1, at_most=1_000_000_000, words=(AUTO,))
    """Training steps between previews: pictures that the model in training (not the control) draws
    for a few fixed prompts with fixed random numbers, without guidance and beside it with the first
    of guidance_scales (of none: the family's), also from the base before the first step and at the
    end. They go to train/previews and to train.trackers, and training is the same to the last bit.
    auto: between first and last as often as all together take at most 3 % of the training's time,
    measured at its start; null: none. Not with FSDP or DeepSpeed."""
    preview_prompts: list[str] = key(
        [], free_text=True, allowed="texts that are not empty; [] takes the first eval prompts"
    )
    """Prompts of the previews, drawn in sample.prompt_template; []: the first num_previews prompts
    that are sampled, of the held-out split if there is one."""
    num_previews: int = key(4, at_least=1, at_most=1_000)
    """How many prompts have previews where preview_prompts is []. Each takes two images, of which
    sample.batch_size are drawn at a time."""

    @property
    def batch_size_without_auto(self) -> int:
        """``batch_size``, and 64 for auto, where no memory is looked at."""
        return BATCH_SIZE if self.batch_size == AUTO else int(self.batch_size)


@dataclass
class EvalConfig:
    """The scores, the models and images they need, and the report."""

    scorer: list[str] = key(
        items=(1, None), distinct=True, allowed="one or more models", decides=(EVAL,)
    )
    """The judges: one or more models that compare images with captions, each an open_clip name,
    hf:ORG/NAME, local-dir:FOLDER, or a built-in one: judge-vit, judge-convnet,
    judge-efficientnet, emoji-clip. Each is examined before it may judge; the verdict
    is the least favourable one."""
    scorer_pretrained: str | None = key(None, decides=(EVAL,))
    """open_clip's tag of the weights, such as openai, or a file of weights, for entries of
    eval.scorer that are plain open_clip names; null if they already name them."""
    judge_r_at_5: float | None = key(0.8, at_least=0, at_most=1, decides=(EVAL,))
    """R@5 that reconstructions of the prompts' images must reach on every split by a judge that may
    judge; null: every judge may, examined or not, and a warning says so."""
    examined: str | None = key(None, content="file", decides=(EVAL,))
    """eval/summary.json of an earlier run whose examination of the same judges is used where this
    run can't examine them (prompts of a file, runs without the base); null: none."""
    metrics: list[str] = key(
        list(DEFAULT_METRICS), choices=tuple(METRICS), distinct=True, decides=(EVAL,)
    )
    """The scores to compute; alignment is required, as it decides the best guidance scale. fid, kid
    and inception_score need inception_weights; clip_score needs a published CLIP."""
    inception_weights: str | None = key(None, decides=(EVAL,))
    """Weights of torch-fidelity's Inception, for fid, kid and inception_score: a file, or
    download; null: none."""
    inception_sha256: str | None = key(
        None,
        allowed="null (the published weights), or 8 to 64 hexadecimal digits",
        decides=(EVAL,),
    )
    """First digits of the sha256 that the Inception file must have; null: that of the published
    weights."""
    reference: list[str] | None = key(
        None,
        items=(1, 2),
        distinct=True,
        allowed="null, real, reconstruction, a folder, a Parquet file, a hub name or an .npz; or "
        "reconstruction and one of the others",
        decides=(EVAL,),
    )
    """Images to compare with. Real ones: a folder, a Parquet file, a hub name, or an .npz of mean
    and covariance; null or real: the rows of each split that are not sampled. With reconstruction,
    distances to the image tokenizer's reconstructions of those rows are computed as well."""
    reference_images: int | None = key(
        None, at_least=MIN_IMAGES, at_most=100_000_000, decides=(EVAL,)
    )
    """At most so many rows of each split that are not sampled serve as images to compare with,
    chosen by sample.seed; null: all of them. Fewer are faster, and raise all Frechet distances
    alike."""
    reference_split: str = key("train", decides=(EVAL,))
    """The split of eval.reference, if that is a hub name."""
    image_size: list[int] | None = key(
        None,
        at_least=1,
        at_most=16_384,
        items=(2, 2),
        allowed="null (as sampled), or [height, width], each from 1 to 16,384",
        decides=(EVAL,),
    )
    """Height and width in pixels to which sampled and real images are resized before scoring; null:
    as sampled, or with data.buckets all to data.image_size, as a judge reads one size."""
    batch_size: int = key(256, at_least=1, at_most=100_000)
    """Images scored per batch. Lower it when memory runs out."""
    attributes: list[str] = key([], decides=(EVAL,))
    """Kinds of words, such as colour or style, to score: is the image closer to its caption than
    to the same caption with that word swapped?"""
    text_nll: str | None = key(
        None,
        allowed="null, captions, or a file that ends in .txt, .jsonl, .json, .parquet",
        content="file",
        decides=(EVAL,),
    )
    """Texts whose negative log-likelihood (nats per token) measures language modelling: captions
    (held-out ones) or a file of texts; null: not measured."""
    bootstrap_samples: int = key(1000, at_least=100, at_most=100_000, decides=(EVAL,))
    """Bootstrap resamples of the prompts for intervals of Frechet distances; fewer are used, and
    a caution says so, where images and dimensions are very many."""
    grid_prompts: int = key(12, at_least=1, at_most=10_000, decides=(REPORT,))
    """Rows of images on one page of the report."""
    report_megabytes: float = key(8.0, at_least=0, at_most=100_000, decides=(REPORT,))
    """Most megabytes of images to embed in the report file; the others are read from the run
    folder."""

    @property
    def real_reference(self) -> str | None:
        """The real images that ``reference`` names; None: the rows that are not sampled."""
        named = [name for name in self.reference or [] if name not in (REAL, RECONSTRUCTION)]
        return named[0] if named else None

    @property
    def has_reconstruction_reference(self) -> bool:
        """Whether distances to reconstructions are computed, too."""
        return RECONSTRUCTION in (self.reference or [])

    def pretrained_of(self, scorer: str) -> str | None:
        """The tag of the weights of an entry of ``scorer``; only plain open_clip names have one."""
        is_plain = ":" not in scorer and scorer not in SHIPPED
        return self.scorer_pretrained if is_plain else None
