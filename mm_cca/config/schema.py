"""The schema of a recipe: one typed dataclass per group of keys, with defaults.

Every key has a docstring; its range, its choices and the stages it decides are declared with it
(see ``keys.py``). ``mm-cca explain KEY`` shows both.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

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
TEMPLATED = is_given("data.caption_template")
KEEPS_BEST = is_set_to("train.keep", "best")
IMAGES = (TOKENS, REFERENCE, TRAIN, DEMO)
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
    stages: list[StageName] = key(list(STAGES))
    """The stages of `mm-cca run`, which run in the default order."""
    sources: list[Source] = key(list(SOURCES), decides=(ARMS,))
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
    """Captioned images: a folder with metadata.jsonl, a Parquet file, a hub name, or emoji."""
    image_column: str = key("image", decides=(*IMAGES, SAMPLE.given(FROM_CAPTIONS)))
    """Column of the images."""
    caption_column: str = key("caption", decides=CAPTIONS)
    """Column of the captions; in a folder with metadata.jsonl it is often text."""
    caption_template: str | None = key(
        None,
        allowed=TEMPLATES,
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
        items=(2, 2),
        allowed="[height, width]",
        decides=(*IMAGES, SAMPLE),
    )
    """Height and width in pixels: images are resized to it, and sampled at it. Must be a size that
    the model family supports."""
    variants: int = key(1, at_least=1, decides=IMAGES[:3])
    """Versions of every image in the token cache: the unchanged image, then augmented ones. More
    variants help small data sets and take proportionally longer to encode."""
    max_zoom: float = key(1.0, at_least=1, decides=IMAGES)
    """Largest zoom factor of an augmented version; 1: no zoom."""
    max_shift: float = key(0.0, at_least=0, below=1, decides=IMAGES)
    """Largest shift of an augmented version, as a fraction of height and width."""
    max_bad: int = key(0, at_least=0)
    """How many unreadable rows are skipped before prepare fails; all are listed in
    bad_rows.jsonl."""
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
    encode_batch_size: int = key(64, at_least=1)
    """Images that prepare encodes per batch. Lower it when memory runs out; the codes are the same
    up to rounding."""
    rows_per_shard: int = key(1024, at_least=1, decides=(SHARDS,))
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
