"""The keys of ``loss`` and ``train``."""

from dataclasses import dataclass
from typing import Literal

from mm_cca.config.keys import (
    ARMS,
    MAX_SEED,
    REFERENCE,
    STEPS,
    TRAIN,
    Condition,
    is_set_to,
    key,
    objective_has,
)

OBJECTIVES = ("cca", "cca_code", "nll", "dpo", "unlearn", "ddo", "distill", "gft")
CONTRASTIVE = ("cca", "dpo", "unlearn")
"""Objectives that need negative captions and a reference."""
WITH_DRAWN = ("ddo",)
"""Objectives that need pictures drawn by the base, and a reference."""
WITH_BASE = ("cca_code", "distill", "gft")
"""Objectives that need the whole distributions of the base along the images."""
Precision = Literal["no", "bf16", "fp16", "auto"]
WITH_REFERENCE = objective_has(*CONTRASTIVE, *WITH_DRAWN, *WITH_BASE)
WITH_NEGATIVES = objective_has(*CONTRASTIVE)
HARD = Condition(
    "loss.negatives has hard and loss.objective has cca, dpo or unlearn",
    lambda recipe: "hard" in recipe.loss.negatives and WITH_NEGATIVES.holds(recipe),
)
DRAWS = objective_has(*WITH_DRAWN)
NEGATIVES = (TRAIN.given(WITH_NEGATIVES), REFERENCE)
LORA = is_set_to("train.tuning", "lora")
AUTO = "auto"
"""In place of a number: measure the base and set it."""
USES_BETA = objective_has("cca", "dpo", "ddo")
RESCALED = Condition(
    f"{USES_BETA.text} and loss.beta is a number",
    lambda recipe: recipe.loss.beta != AUTO and USES_BETA.holds(recipe),
)
FLOORED = Condition(
    "loss.gap_floor is set and loss.objective has cca",
    lambda recipe: recipe.loss.gap_floor is not None and objective_has("cca").holds(recipe),
)
BY_RELEVANCE = Condition(
    "loss.scale_by_relevance is set and loss.objective has cca_code",
    lambda recipe: (
        recipe.loss.scale_by_relevance is not None and objective_has("cca_code").holds(recipe)
    ),
)
"""Keys that are off by default decide only where they are set, so that older runs stay valid."""
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor")
OTHER_OPTIMIZER = Condition(
    "train.optimizer is not adamw", lambda recipe: recipe.train.optimizer != "adamw"
)
DROPOUT = Condition(
    "train.tuning is lora and train.lora_dropout is above 0",
    lambda recipe: LORA.holds(recipe) and recipe.train.lora_dropout > 0,
)
RSLORA = Condition(
    "train.tuning is lora and train.lora_rslora is true",
    lambda recipe: LORA.holds(recipe) and recipe.train.lora_rslora,
)
DORA = Condition(
    "train.tuning is lora and train.lora_dora is true",
    lambda recipe: LORA.holds(recipe) and recipe.train.lora_dora,
)
OWN_TARGETS = Condition(
    "train.tuning is lora and train.lora_targets is not empty",
    lambda recipe: LORA.holds(recipe) and bool(recipe.train.lora_targets),
)
COMPILED = Condition("train.compile is true", lambda recipe: recipe.train.compile)
AVERAGED = Condition("train.ema is set", lambda recipe: recipe.train.ema is not None)


@dataclass
class LossConfig:
    """The objective, its constants and its negatives."""

    objective: str = key(
        "cca",
        allowed=f"{', '.join(OBJECTIVES)}, or a weighted sum of them such as cca + 0.1 nll",
        decides=(TRAIN,),
    )
    """The training objective: cca (the paper's), cca_code (the same contrast at every code, against
    the base without the caption), nll (plain fine-tuning), dpo and unlearn (the paper's baselines),
    ddo (against pictures that the base drew for the same captions), distill (learn the guided
    base's distribution of the next code), gft (guidance-free training), or a weighted sum such as
    cca + 0.1 nll."""
    beta: float | str = key(
        0.02, above=0, at_most=1_000_000, words=(AUTO,), decides=(TRAIN.given(USES_BETA),)
    )
    """Factor on the log-likelihood ratio between model and reference, per image; a smaller beta
    acts like stronger guidance. Must be small enough that the loss on negatives does not saturate;
    raise it when positive_gap falls. auto (with cca or dpo): 1.5
    divided by the nats per image by which the base tells an image's own caption from a negative one
    (from no caption, if that is more), but at least 1 / (1.6 * codes per image); measured on 64
    training pairs before the first step (at least 32) and written to train/beta.json.
    `mm-cca suggest` shows the measurement."""
    beta_codes: int | None = key(
        576, at_least=1, at_most=1_000_000, decides=(TRAIN.given(RESCALED),)
    )
    """Codes per image for which a number in beta was tuned: beta is multiplied by beta_codes /
    codes of your images. Right only where images of more codes say more about their captions in
    proportion, so not from one model to another; without effect with beta: auto. 576 is the
    paper's value; null: no rescaling."""
    lambda_: float = key(
        1.0,
        at_least=0,
        at_most=1_000_000,
        decides=(TRAIN.given(objective_has("cca", "unlearn", "ddo")),),
    )
    """Weight of the loss on negatives (for ddo: on drawn pictures), relative to the loss on the
    images' own captions. Raise it
    for more contrast, lower it when the images get worse."""
    gap_floor: float | None = key(
        None, at_most=0, decides=(TRAIN.given(FLOORED),), allowed="0 or less, or null"
    )
    """Floor under the gap of every code of a negative, for cca, in nats per code: codes that are
    this far below the base give no gradient any more, so that the contrast is spent on codes that
    the model still believes under the wrong caption; null: no floor."""
    uncond_ratio: float = key(0.1, at_least=0, below=1, decides=(TRAIN, REFERENCE))
    """Fraction of the pairs trained with the unconditional prompt instead of a caption, so that
    guidance still works afterwards."""
    negatives: str = key(
        "shuffle",
        allowed="shuffle, hard, edit, or a weighted sum of them such as "
        "0.5 shuffle + 0.3 hard + 0.2 edit, with weights that sum to 1",
        decides=NEGATIVES,
    )
    """Where negative captions come from: shuffle (another image's caption), hard (one of the most
    similar other captions), edit (the own caption with one colour, number, style ... swapped), or a
    mixture such as 0.5 shuffle + 0.5 hard."""
    num_negatives: int = key(1, at_least=1, at_most=1_000, decides=NEGATIVES)
    """Negative captions per image and step; each adds a forward pass per image."""
    negatives_embedding: str = key(
        "tfidf",
        allowed="tfidf, sentence-transformers:NAME_OR_FOLDER, open_clip:NAME, "
        "open_clip:NAME:PRETRAINED, open_clip:local-dir:FOLDER",
        decides=NEGATIVES,
    )
    """The embedding that compares captions, for hard and for max_similarity: shared words (tfidf),
    or the text encoder of a model."""
    hard_candidates: int = key(
        16,
        at_least=1,
        at_most=1_000_000,
        allowed="loss.num_negatives or more",
        decides=(TRAIN.given(HARD), REFERENCE.given(HARD)),
    )
    """How many of the most similar other captions hard chooses from; fewer are harder."""
    max_similarity: float | None = key(0.95, above=0, at_most=1, decides=NEGATIVES)
    """Largest cosine between a caption and its negatives: captions above it are too similar to be
    negatives and are replaced; null: no limit."""
    ddo_images: int = key(
        1, at_least=1, at_most=1_000, decides=(TRAIN.given(DRAWS), REFERENCE.given(DRAWS))
    )
    """Pictures that prepare draws for each caption that training visits, for ddo; every epoch takes
    the next one. They are kept beside the token cache, for all runs that share it."""
    scale: float | None = key(
        None, above=1, at_most=100, decides=(TRAIN.given(objective_has("cca_code", "gft")),)
    )
    """Guidance scale that cca_code and gft learn to do without, whatever the number of codes; null:
    the model family's default."""
    code_lambda: float = key(
        1.0, at_least=0, at_most=1_000_000, decides=(TRAIN.given(objective_has("cca_code")),)
    )
    """Weight of the negative half of cca_code; with 1 its optimum is guidance of loss.scale."""
    scale_by_relevance: float | None = key(
        None, above=0, at_most=1_000_000, decides=(TRAIN.given(BY_RELEVANCE),)
    )
    """Guide less where the caption decides less, for cca_code: a code whose relevance (KL of the
    base with and without the caption) is this multiple of its image's mean or more learns guidance
    of loss.scale, one with less relevance proportionally less, down to scale 1; 1 is a good start,
    null: loss.scale at every code."""
    distill_scale: float | None = key(
        None, above=1, at_most=100, decides=(TRAIN.given(objective_has("distill")),)
    )
    """Guidance scale of the base that distill learns from; null: the model family's default."""
    text_weight: float = key(0.0, at_least=0, at_most=1_000_000, decides=(TRAIN,))
    """Weight of the loss on plain text (mean nats per token), which preserves language modelling;
    0: no text. The texts are data.text_path."""
    whole_vocabulary: bool = key(False, decides=(TRAIN, REFERENCE))
    """Normalise log-probabilities over the whole vocabulary instead of over the image codes:
    slower, and needed only if the model must also learn not to emit text inside an image."""


@dataclass
class TrainConfig:
    """Training: steps, optimizer, precision, checkpoints."""

    seed: int = key(0, at_least=0, at_most=MAX_SEED, decides=(TRAIN, REFERENCE))
    """Seed of the order of the data, of the negatives and of a LoRA's initial weights."""
    max_steps: int = key(
        at_least=1,
        at_most=1_000_000_000,
        decides=(STEPS, TRAIN.given(is_set_to("train.schedule", "cosine"))),
        reason="with train.schedule=cosine the learning rate of the steps already done depends "
        "on it; only with train.schedule=constant can a run be extended",
    )
    """Optimizer steps of the whole training. With train.schedule=constant a larger number extends a
    finished run from its last checkpoint; with cosine the learning rate has fallen to 0, and a
    change needs a new run."""
    stop_after: int | None = key(None, allowed="null, or 1 to train.max_steps", decides=(STEPS,))
    """Stop after this many steps; the learning rate still follows max_steps. If it is raised or
    removed later, training resumes from the last checkpoint; with train.keep=best the weights at
    the earlier stop were measured too. null: stop at max_steps."""
    batch_size: int = key(
        at_least=1,
        at_most=1_000_000,
        allowed="a multiple of train.micro_batch_size times the number of ranks",
        decides=(TRAIN,),
    )
    """Pairs of image and caption per optimizer step, over all ranks."""
    micro_batch_size: int = key(
        at_least=1,
        at_most=1_000_000,
        decides=(REFERENCE,),
    )
    """Pairs per forward pass on one rank; gradients are accumulated up to batch_size. Lower it when
    memory runs out, also before resuming: every step has the same pairs, and the result is the same
    up to rounding. A reference cache of another value is used too; only with the same one are its
    log-probabilities those of training to the last bit."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor"] = key(
        "adamw", decides=(TRAIN.given(OTHER_OPTIMIZER),)
    )
    """The optimizer: adamw; adamw_8bit, whose two moments take 2 instead of 8 bytes a trained
    weight; paged_adamw and paged_adamw_8bit, whose moments move to the CPU's memory when the GPU's
    is full (these three need `pip install "mm-cca[quantization]"`); or adafactor, which keeps
    sums of rows and columns instead of moments. `mm-cca plan RECIPE` says what each saves."""
    learning_rate: float = key(above=0, at_most=1, decides=(TRAIN,))
    """The optimizer's peak learning rate, reached after the warm-up."""
    schedule: Literal["cosine", "constant"] = key("cosine", decides=(TRAIN,))
    """Learning rate after the warm-up: cosine (falls to 0 at max_steps) or constant."""
    warmup_steps: int = key(0, at_least=0, at_most=1_000_000_000, decides=(TRAIN,))
    """Steps over which the learning rate rises linearly from 0."""
    weight_decay: float = key(0.0, at_least=0, at_most=100, decides=(TRAIN,))
    """The optimizer's weight decay, on matrices only."""
    beta1: float = key(0.9, at_least=0, below=1, decides=(TRAIN,))
    """AdamW's decay rate for the mean gradient; adafactor has none."""
    beta2: float = key(0.95, at_least=0, below=1, decides=(TRAIN,))
    """AdamW's decay rate for the mean squared gradient; adafactor has a rule of its own."""
    max_grad_norm: float = key(1.0, above=0, at_most=1_000_000_000, decides=(TRAIN,))
    """Gradients whose norm over all weights is larger are scaled down to it."""
    mixed_precision: Precision = key("no", decides=(TRAIN, REFERENCE))
    """Autocast of the forward pass: bf16 (about twice as fast where the hardware has units for it,
    many times slower on a processor that has none), fp16, no, or auto, which is bf16 where the
    hardware has units for it and otherwise no. The weights stay in model.dtype."""
    gradient_checkpointing: bool = key(False)
    """Recompute activations in the backward pass instead of keeping them: less memory, about a
    third slower, the same result."""
    compile: bool = key(False, decides=(TRAIN, REFERENCE.given(COMPILED)))
    """torch.compile of the decoder's blocks, for speed: some minutes of compiling at the start,
    then the same losses up to rounding."""
    tuning: Literal["full", "lora"] = key("full", decides=(TRAIN,))
    """Train all weights of the decoder (full), or only a low-rank adapter (lora), with a fraction
    of the memory."""
    reference: Literal["copy", "cached", "lora"] = key(
        "copy",
        decides=(TRAIN.given(WITH_REFERENCE),),
        allowed="copy, cached (computed once by prepare), or lora when train.tuning is lora",
    )
    """Where the base's log-probabilities come from: copy, a frozen copy in memory; cached, computed
    once by prepare (no second model, no second pass; not with cca_code, distill, gft); or lora, the
    same weights with the LoRA switched off."""
    lora_rank: int = key(16, at_least=1, at_most=65_536, decides=(TRAIN.given(LORA),))
    """Rank of the LoRA's matrices: a higher rank can learn more and takes more memory."""
    lora_alpha: int = key(32, at_least=1, at_most=1_000_000, decides=(TRAIN.given(LORA),))
    """Scale of the LoRA: its product is multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = key(0.0, at_least=0, below=1, decides=(TRAIN.given(DROPOUT),))
    """Share of the LoRA's inputs that are set to 0 in training, against learning by heart; never in
    the reference, in the held-out loss or in sampling."""
    lora_rslora: bool = key(False, decides=(TRAIN.given(RSLORA),))
    """Rank-stabilised LoRA: multiply by lora_alpha / sqrt(lora_rank) instead, so that high ranks
    learn as fast as low ones."""
    lora_dora: bool = key(False, decides=(TRAIN.given(DORA),))
    """DoRA: also train the length of every row of a tuned weight, apart from its direction. Slower,
    and with more memory; it has no dial."""
    lora_targets: list[str] = key(
        [],
        distinct=True,
        allowed=r"regular expressions of layers' names, such as q_proj or layers\.[0-9]\.mlp\..*",
        decides=(TRAIN.given(OWN_TARGETS),),
    )
    """Layers that get the LoRA: regular expressions, each of a layer's whole name or of its end
    after a dot, such as q_proj, or self_attn\\..*; empty: every linear layer of the decoder's
    blocks. A pattern that matches nothing is an error that lists the layers."""
    control: bool = key(False, decides=(ARMS,))
    """Also train the base with plain nll on the same batches, to measure the effect of the extra
    steps alone."""
    save_every: int = key(500, at_least=1, at_most=1_000_000_000)
    """Steps between checkpoints; a crash loses at most this many."""
    keep_checkpoints: int = key(2, at_least=1, at_most=1_000_000)
    """How many of the newest checkpoints stay on disk."""
    eval_every: int = key(
        0,
        at_least=0,
        at_most=1_000_000_000,
        decides=(TRAIN.given(is_set_to("train.keep", "best")),),
    )
    """Steps between measurements of the held-out loss (nats per code on data.heldout_split); 0:
    never."""
    keep: Literal["last", "best"] = key("last", decides=(TRAIN,))
    """Which weights become the model: the last ones, or those with the lowest held-out loss (best
    needs eval_every and data.heldout_split)."""
    ema: float | None = key(None, above=0, below=1, decides=(TRAIN.given(AVERAGED),))
    """Decay of an exponential moving average of the trained weights, such as 0.99, which starts
    from the base and is updated after every step. The average becomes the model, and the held-out
    loss is measured with it; the last weights stay in the newest checkpoint. Costs float32 memory
    for the trained weights; not with FSDP. null: no average."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = key(["tensorboard"])
    """Where the metrics of every step are logged in addition to metrics.jsonl; may be empty."""
