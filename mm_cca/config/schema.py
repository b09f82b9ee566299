"""What a recipe may say: one typed dataclass per group of keys, with its defaults."""

from dataclasses import dataclass, field
from typing import TypeAlias

from omegaconf import MISSING

from mm_cca.config.metrics import DEFAULT as DEFAULT_METRICS

STAGES = ("prepare", "train", "sample", "eval", "report")
SOURCES = ("base", "cca", "control")
OBJECTIVES = ("cca", "nll", "dpo", "unlearn", "distill")
TEXT_FILES = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Endings of files that hold texts, and the reader of ``datasets`` for each."""
CONTRASTIVE = ("cca", "dpo", "unlearn")
"""Objectives that look at other prompts, and so at a reference."""


@dataclass
class RunConfig:
    """Where the run lives and what ``mm-cca run`` does."""

    dir: str = MISSING
    tokens_dir: str | None = None  # share one token cache between runs; None is DIR/tokens
    reference_dir: str | None = None  # the same for train.reference=cached; None is DIR/reference
    trained: str | None = None  # a finished run whose models are drawn; None trains here
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    sources: list[str] = field(default_factory=lambda: list(SOURCES))  # no others


@dataclass
class ModelConfig:
    """Which checkpoint, read by which adapter."""

    adapter: str = MISSING
    path: str = MISSING
    dtype: str = "bfloat16"
    image_tokenizer: str | None = None  # Chameleon family: vqgan.ckpt, where the folder lacks it


@dataclass
class DataConfig:
    """Captioned images: ``emoji``, a folder with metadata.jsonl, a Parquet file, a hub name."""

    path: str = MISSING
    image_column: str = "image"
    caption_column: str = "caption"
    split_column: str | None = None
    train_split: str = "train"
    heldout_split: str | None = None
    image_size: list[int] = MISSING  # height, width in pixels
    variants: int = 1
    max_zoom: float = 1.0
    max_shift: float = 0.0
    max_bad: int = 0
    attribute_words: str | None = None  # YAML that adds to the shipped colours, numbers ...
    text_path: str | None = None  # texts for loss.text_weight; None: the captions
    encode_batch_size: int = 64
    rows_per_shard: int = 1024


@dataclass
class LossConfig:
    """The objective and its constants; ``lambda_`` and ``beta`` as in the paper."""

    objective: str = "cca"  # or a weighted sum such as "cca + 0.1 nll"
    beta: float = 0.02
    beta_codes: int | None = 576
    lambda_: float = 1.0
    uncond_ratio: float = 0.1
    negatives: str = "shuffle"  # or a mixture such as "0.5 shuffle + 0.3 hard + 0.2 edit"
    num_negatives: int = 1  # other prompts per image
    negatives_embedding: str = "tfidf"  # or sentence-transformers:NAME, open_clip:NAME:PRETRAINED
    hard_candidates: int = 16  # the nearest captions that hard draws from
    max_similarity: float | None = 0.95  # more alike is no wrong prompt; None: not looked at
    distill_scale: float | None = None  # guidance that distill learns; None is the family's own
    text_weight: float = 0.0  # of the mean nats per token of plain text, added to the loss
    whole_vocabulary: bool = False


@dataclass
class TrainConfig:
    """The training loop."""

    seed: int = 0
    max_steps: int = MISSING
    stop_after: int | None = None  # end early; the learning rate still follows max_steps
    batch_size: int = MISSING  # pairs per optimizer step, over all ranks
    micro_batch_size: int = MISSING  # pairs per forward pass on one rank
    learning_rate: float = MISSING
    schedule: str = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    compile: bool = False  # torch.compile of the decoder (objective nll only)
    tuning: str = "full"
    reference: str = "copy"  # or lora (LoRA off), cached (computed once by prepare)
    lora_rank: int = 16
    lora_alpha: int = 32
    control: bool = False  # also train the base with nll on the same batches, for comparison
    save_every: int = 500
    keep_checkpoints: int = 2
    eval_every: int = 0  # held-out loss every so many steps; 0 is never
    keep: str = "last"  # or "best": the weights with the lowest held-out loss
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])


@dataclass
class SampleConfig:
    """The arms and how they are sampled; None means the adapter's default."""

    num_images: int = 256  # prompts per split of the data
    prompts: str | None = None  # a file, a folder or attributes, drawn instead, all of it
    images_per_prompt: int = 1
    guidance_scales: list[float] = field(default_factory=lambda: [1.5, 2.0, 3.0, 5.0, 7.5])
    control_scales: list[float] = field(default_factory=list)
    cca_scales: list[float] = field(default_factory=list)  # guide the trained model too
    dial: list[float] = field(default_factory=list)  # base + a * (trained - base), unguided
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    negative_prompts: list[str] = field(default_factory=lambda: [""])  # for every guided arm
    batch_size: int = 64
    seed: int = 0


@dataclass
class EvalConfig:
    """Scores. ``scorer`` is any open_clip name, ``local-dir:``, ``hf:``, or ``emoji-clip``."""

    scorer: str = MISSING
    scorer_pretrained: str | None = None
    metrics: list[str] = field(default_factory=lambda: list(DEFAULT_METRICS))
    inception_weights: str | None = None  # a file or "download", for fid, kid, inception_score
    inception_sha256: str | None = None  # of that file; None is the published one's
    reference: str | None = None  # folder, Parquet, hub name, .npz; None: the rest of the split
    reference_split: str = "train"  # of a hub name
    image_size: list[int] | None = None  # score at this height, width; None is as drawn
    batch_size: int = 256
    attributes: list[str] = field(default_factory=list)  # such as colour, style: is it right?
    text_nll: str | None = None  # "captions" (held-out) or a text file: nats per token
    bootstrap_samples: int = 1000
    grid_prompts: int = 12  # rows of pictures on one page of the report
    report_megabytes: float = 8.0  # pictures inside the report; the others are read from the run


@dataclass
class Recipe:
    """Fine-tune a unified model and measure it (job: finetune)."""

    job: str = "finetune"
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


@dataclass
class TokenizerConfig:
    """A stock Emu3VQVAE, the tokenizer's text vocabulary and the untrained decoder around it."""

    num_codes: int = 512
    code_dim: int = 8
    base_channels: int = 32
    channel_multiplier: list[int] = field(default_factory=lambda: [1, 2, 2])
    text_vocab_size: int = 2000
    decoder_hidden_size: int = 256
    decoder_intermediate_size: int = 640
    decoder_layers: int = 6
    decoder_heads: int = 8
    steps: int = MISSING
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    warmup_steps: int = 50
    commitment: float = 0.25
    reseed_every: int = 50
    mixed_precision: str = "no"
    seed: int = 0


@dataclass
class TokenizerRecipe:
    """Train the demo's image tokenizer and assemble an untrained Emu3 (job: tokenizer)."""

    job: str = "tokenizer"
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


@dataclass
class ScorerConfig:
    """The two towers of the demo's scorer."""

    patch_size: int = 4
    vision_width: int = 160
    vision_layers: int = 4
    text_width: int = 128
    text_layers: int = 2
    embed_dim: int = 96
    text_vocab_size: int = 2000
    steps: int = MISSING
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.2
    warmup_steps: int = 100
    mixed_precision: str = "no"
    seed: int = 0


@dataclass
class ScorerRecipe:
    """Train the demo's open_clip scorer (job: scorer)."""

    job: str = "scorer"
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)


AnyRecipe: TypeAlias = Recipe | TokenizerRecipe | ScorerRecipe
JOBS: dict[str, type] = {
    "finetune": Recipe,
    "tokenizer": TokenizerRecipe,
    "scorer": ScorerRecipe,
}


PROMPT_FILES = (".txt", ".jsonl", ".csv", ".json")
