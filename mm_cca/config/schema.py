"""The schema of a recipe: one typed dataclass per group of keys, with defaults.

Every key has a docstring; its range, its choices and the stages it decides are declared with it
(see ``keys.py``). ``mm-cca explain KEY`` shows both.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from mm_cca.config.image_sizes import ALLOWED as BUCKETS
from mm_cca.config.keys import (
    ARMS,
    DEMO,
    EVAL,
    REFERENCE,
    SAMPLE,
    SHARDS,
    TOKENS,
    TRAIN,
    Condition,
    is_above_zero,
    is_given,
    is_set_to,
    key,
)
from mm_cca.config.prompt_templates import ALLOWED as TEMPLATES
from mm_cca.config.schema_demo import ScorerConfig, TokenizerConfig
from mm_cca.config.schema_eval import FROM_CAPTIONS, MIN_IMAGES, EvalConfig, SampleConfig
from mm_cca.config.schema_train import (
    CONTRASTIVE,
    OBJECTIVES,
    WITH_BASE,
    WITH_DRAWN,
    WITH_NEGATIVES,
    LossConfig,
    TrainConfig,
)
from mm_cca.config.shipped import ADAPTERS

__all__ = [
    "CONTRASTIVE",
    "JOBS",
    "MIN_IMAGES",
    "OBJECTIVES",
    "PROMPT_FILES",
    "SOURCES",
    "STAGES",
    "TEXT_FILES",
    "WITH_BASE",
    "WITH_DRAWN",
    "AnyRecipe",
    "DataConfig",
    "EvalConfig",
    "LossConfig",
    "ModelConfig",
    "Recipe",
    "RunConfig",
    "SampleConfig",
    "ScorerConfig",
    "ScorerRecipe",
    "Source",
    "StageName",
    "TokenizerConfig",
    "TokenizerRecipe",
    "TrainConfig",
]
StageName = Literal["prepare", "train", "sample", "eval", "report"]
STAGES: tuple[StageName, ...] = get_args(StageName)
Source = Literal["base", "cca", "control"]
SOURCES: tuple[Source, ...] = get_args(Source)
TEXT_FILES = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""File extensions of text files, and the ``datasets`` reader for each."""
PROMPT_FILES = (".txt", ".jsonl", ".csv", ".json")
"""File extensions of ``sample.prompts``."""
EDITS = Condition(
    "loss.negatives has edit and loss.objective has cca, dpo or unlearn",
    lambda recipe: "edit" in recipe.loss.negatives and WITH_NEGATIVES.holds(recipe),
)
ATTRIBUTES = Condition("eval.attributes is not empty", lambda recipe: bool(recipe.eval.attributes))
QUANTIZED = is_given("model.quantization")
BUCKETED = Condition("data.buckets is not empty", lambda recipe: bool(recipe.data.buckets))
HAS_SUBSET = is_given("data.subset")
HAS_REVISION = is_given("data.revision")
TEMPLATED = is_given("data.caption_template")
SEVERAL = Condition(
    "data.more_caption_columns is not empty", lambda recipe: bool(recipe.data.more_caption_columns)
)
KEEPS_BEST = is_set_to("train.keep", "best")
IMAGES = (TOKENS, REFERENCE, TRAIN, DEMO)
FLIPPED = Condition("data.flip is true", lambda recipe: recipe.data.flip)
CAPTIONS = (TOKENS, TRAIN, SAMPLE.given(FROM_CAPTIONS), DEMO)


@dataclass
class RunConfig:
    """The run folder, and what ``mm-cca run`` does."""

    dir: str = key()
    """The run folder, which holds everything the run writes. Another folder is another run."""
    tokens_dir: str | None = key(None)
    """Folder of the token cache, to share it between runs; null: DIR/tokens."""
    reference_dir: str | None = key(None)
    """Folder of the reference cache (train.reference=cached), to share it between runs; null:
    DIR/reference."""
    trained: str | None = key(
        None, allowed="null, or the folder of a finished run (job finetune only)"
    )
    """A finished run whose models are sampled and scored here, with other prompts or scores; null:
    train here."""
    stages: list[StageName] = key(list(STAGES), items=(1, None), distinct=True)
    """The stages of `mm-cca run`, which run in the default order."""
    sources: list[Source] = key(list(SOURCES), items=(1, None), distinct=True, decides=(ARMS,))
    """Models to train, sample and score: the base, the model that the recipe trains (cca), and the
    control (see train.control)."""


@dataclass
class ModelConfig:
    """The checkpoint, and the adapter that reads it."""

    adapter: str = key(
        allowed=f"{', '.join(ADAPTERS)}, or package.module:Class",
        decides=(TOKENS, REFERENCE, TRAIN, SAMPLE),
    )
    """The model family, or your own adapter class for another family (see CONTRIBUTING.md)."""
    path: str = key(decides=(TOKENS, REFERENCE, TRAIN, SAMPLE))
    """The checkpoint: a folder, a hub name, or the built-in model emu3-emoji."""
    dtype: Literal["float32", "bfloat16", "float16"] = key(
        "bfloat16", decides=(TOKENS, REFERENCE, TRAIN, SAMPLE)
    )
    """Precision of the weights in memory. Full fine-tuning needs float32 (half precision rounds
    most updates away) or FSDP; bfloat16 is enough for LoRA and sampling."""
    quantization: Literal["nf4", "int8"] | None = key(
        None, decides=tuple(stage.given(QUANTIZED) for stage in (REFERENCE, TRAIN, SAMPLE))
    )
    """Keep the linear layers of the decoder's blocks in 4 bits (nf4, with double quantisation) or 8
    bits (int8) a weight, by bitsandbytes, under a LoRA in float32 (QLoRA); base, reference and
    trained model share this one copy. The image tokenizer, the embeddings and the output heads stay
    in model.dtype. Needs train.tuning=lora and `pip install "mm-cca[quantization]"`. null: no
    quantisation."""
    image_tokenizer: str | None = key(None, decides=(TOKENS, REFERENCE, TRAIN, SAMPLE))
    """The image tokenizer, if the checkpoint folder lacks it. Chameleon family and Liquid: the path
    of vqgan.ckpt. Emu3.5: BAAI/Emu3.5-VisionTokenizer or its folder. SimpleAR:
    nvidia/Cosmos-1.0-Tokenizer-DV8x16x16, or a folder with its encoder.jit and decoder.jit, of
    which only the weights are read."""
    tokenizer: str | None = key(None, decides=(TOKENS, REFERENCE, TRAIN, SAMPLE))
    """A folder or hub name that holds the text tokenizer, if the checkpoint lacks it; null: its
    own, or where a Lumina-mGPT has none, Alpha-VLLM/Lumina-mGPT-7B-768's."""


@dataclass
class DataConfig:
    """The captioned images, and how they are encoded."""

    path: str = key(decides=(*IMAGES, SAMPLE.given(FROM_CAPTIONS)))
    """Captioned images: a folder or zip with metadata.jsonl or text files, Parquet files,
    WebDataset tars, addresses of such tars (https://host/{00000..00009}.tar, hf://..., s3://...)
    that are streamed, a hub name, or emoji."""
    subset: str | None = key(
        None, decides=tuple(stage.given(HAS_SUBSET) for stage in (*IMAGES, SAMPLE))
    )
    """Configuration (subset) of a data set on the hub or downloaded from it; null: its default."""
    revision: str | None = key(
        None, decides=tuple(stage.given(HAS_REVISION) for stage in (*IMAGES, SAMPLE))
    )
    """Branch, tag or commit of a data set on the hub; null: the newest."""
    image_column: str = key("image", decides=(*IMAGES, SAMPLE.given(FROM_CAPTIONS)))
    """Column of the images."""
    caption_column: str = key("caption", decides=CAPTIONS)
    """Column of the captions; in a folder with metadata.jsonl it is often text. A list of columns,
    [long, short], stands for its first and data.more_caption_columns."""
    more_caption_columns: list[str] = key(
        [],
        distinct=True,
        decides=(TOKENS.given(SEVERAL), REFERENCE.given(SEVERAL), TRAIN.given(SEVERAL)),
    )
    """Columns of other captions of the same images: every epoch trains each image with one of its
    captions, drawn by train.seed and the epoch. A row needs a caption in one of the columns only;
    prompts and scores use the first that it has. []: one caption per image."""
    caption_weights: list[float] = key(
        [],
        above=0,
        at_most=1_000_000,
        decides=(REFERENCE.given(SEVERAL), TRAIN.given(SEVERAL)),
    )
    """How often the captions of each column are drawn, in the order of data.caption_column and
    data.more_caption_columns; the weights need not sum to 1. []: all equally often."""
    caption_template: str | None = key(
        None,
        allowed=TEMPLATES,
        free_text=True,
        decides=(TRAIN.given(TEMPLATED), REFERENCE.given(TEMPLATED)),
    )
    """Text around every caption in training, with {prompt} in the caption's place; negative
    captions get it too, the unconditional prompt does not. Usually the same as
    sample.prompt_template. null: the caption as it is."""
    split_column: str | None = key(None, decides=CAPTIONS)
    """Column that names the split of each row, if one table holds several splits; null: the data
    set's own splits."""
    train_split: str = key("train", decides=(TRAIN, SAMPLE.given(FROM_CAPTIONS), DEMO))
    """The split to train on."""
    heldout_split: str | None = key(
        None, decides=(TRAIN.given(KEEPS_BEST), SAMPLE.given(FROM_CAPTIONS), DEMO)
    )
    """A split that is never trained on: used for the held-out loss (train.eval_every), and sampled
    and scored in addition to the train split."""
    image_size: list[int] = key(
        at_least=1,
        at_most=16_384,
        items=(2, 2),
        allowed="[height, width], each from 1 to 16,384",
        decides=(*IMAGES, SAMPLE),
    )
    """Height and width in pixels: images are resized to it, and sampled at it. Must be a size that
    the model family supports. A list of sizes, [[512, 512], [448, 576]], stands for its first and
    data.buckets."""
    buckets: list[str] = key(
        [],
        distinct=True,
        allowed=BUCKETS,
        decides=tuple(stage.given(BUCKETED) for stage in (TOKENS, REFERENCE, TRAIN, SAMPLE)),
    )
    """More sizes than data.image_size: every image is then encoded at the size of the nearest
    shape, losing at most 5 % (others are bad rows, see data.max_bad), and sampled at the size of
    its own picture; prompts without a picture are sampled at data.image_size, or at the height and
    width that their file gives. Every step trains images of one size. auto: shapes up to 5:2 of the
    area of data.image_size; []: all images are cropped to data.image_size."""
    variants: int = key(1, at_least=1, at_most=1_000, decides=IMAGES[:3])
    """Versions of every image in the token cache: the unchanged image, then augmented ones. More
    variants help small data sets and take proportionally longer to encode."""
    max_zoom: float = key(1.0, at_least=1, at_most=16, decides=IMAGES)
    """Largest zoom factor of an augmented version; 1: no zoom."""
    max_shift: float = key(0.0, at_least=0, below=1, decides=IMAGES)
    """Largest shift of an augmented version, as a fraction of height and width."""
    flip: bool = key(False, decides=tuple(stage.given(FLIPPED) for stage in IMAGES[:3]))
    """Mirror every second augmented version (the 1st, 3rd, ...), left and right exchanged; needs
    data.variants above 1. Not for pictures with text in them, or captions that say left or
    right."""
    min_image_side: int | None = key(
        None,
        at_least=1,
        at_most=100_000,
        decides=tuple(stage.given(is_given("data.min_image_side")) for stage in IMAGES),
    )
    """Leave out images whose shorter side has fewer pixels; null: none. Rows left out by this and
    the next two keys are counted, and listed in left_out.jsonl beside the token cache."""
    min_caption_chars: int | None = key(
        None,
        at_least=1,
        at_most=1_000_000,
        decides=tuple(stage.given(is_given("data.min_caption_chars")) for stage in IMAGES),
    )
    """Leave out captions of fewer characters; null: none. With several captions per image only rows
    without another caption are left out."""
    max_caption_chars: int | None = key(
        None,
        at_least=1,
        at_most=1_000_000,
        decides=tuple(stage.given(is_given("data.max_caption_chars")) for stage in IMAGES),
    )
    """Leave out captions of more characters; null: none."""
    max_bad: int = key(0, at_least=0, at_most=1_000_000_000)
    """How many rows may be left out before prepare fails: unreadable images, empty or too long
    captions (listed in bad_rows.jsonl), and as many that no negative caption can be built for."""
    attribute_words: str | None = key(
        None,
        allowed="null, or a YAML file of word lists",
        content="words",
        decides=(TRAIN.given(EDITS), REFERENCE.given(EDITS), EVAL.given(ATTRIBUTES)),
    )
    """A YAML file that extends the built-in word lists (colours, numbers, styles ...), which
    loss.negatives=edit swaps and eval.attributes scores."""
    text_path: str | None = key(
        None,
        allowed=f"null, or a file that ends in {', '.join(TEXT_FILES)}",
        content="file",
        decides=(TRAIN.given(is_above_zero("loss.text_weight")),),
    )
    """Plain texts for loss.text_weight: one per line, or the column text; null: the captions."""
    num_workers: int | None = key(None, at_least=0, at_most=256)
    """Processes that read and decode pictures while others are encoded, on every rank; the codes
    are the same for any number. null: for 2,000 pictures or more (on Linux) as many as there are
    free cores, up to 8; else none."""
    encode_batch_size: int = key(64, at_least=1, at_most=100_000)
    """Images that prepare encodes per batch. Lower it when memory runs out; the codes are the same
    up to rounding."""
    rows_per_shard: int = key(1024, at_least=1, at_most=1_000_000, decides=(SHARDS,))
    """Rows per file of the token cache; an interruption loses at most one file. Does not change the
    codes."""


@dataclass
class Recipe:
    """Fine-tune a unified model and measure it (job: finetune)."""

    job: str = key("finetune", allowed="finetune, tokenizer, scorer")
    """Which kind of recipe this is: finetune, or the demo's own tokenizer and scorer."""
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass
class TokenizerRecipe:
    """Train the demo's image tokenizer and assemble an untrained Emu3 (job: tokenizer)."""

    job: str = key("tokenizer", allowed="finetune, tokenizer, scorer")
    """Which kind of recipe this is: finetune, or the demo's own tokenizer and scorer."""
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


@dataclass
class ScorerRecipe:
    """Train the demo's open_clip scorer (job: scorer)."""

    job: str = key("scorer", allowed="finetune, tokenizer, scorer")
    """Which kind of recipe this is: finetune, or the demo's own tokenizer and scorer."""
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)


AnyRecipe: TypeAlias = Recipe | TokenizerRecipe | ScorerRecipe
JOBS: dict[str, type] = {
    "finetune": Recipe,
    "tokenizer": TokenizerRecipe,
    "scorer": ScorerRecipe,
}
