"""Everything a training run works with, loaded and prepared before the first step."""

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from tqdm import tqdm

from mm_cca.adapters import load_checkpoint
from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import LossConfig, Recipe, TrainConfig
from mm_cca.data.long_captions import refuse_long_prompts
from mm_cca.data.texts import TextStream, read_texts
from mm_cca.data.token_cache import TokenCache, open_cache
from mm_cca.errors import UserError
from mm_cca.modeling.logprobs import CodeLogProbs, CodeTerms
from mm_cca.modeling.lora import attach_lora_of
from mm_cca.runs.digests import record_base
from mm_cca.runs.folder import RunFolder
from mm_cca.training import checkpoint
from mm_cca.training.base_measurement import settle_beta
from mm_cca.training.cached_reference import CachedReference, keeps_codes, open_cached
from mm_cca.training.collate import Collator
from mm_cca.training.drawn_pictures import open_drawn
from mm_cca.training.ema import Ema
from mm_cca.training.losses import code_terms_of
from mm_cca.training.optimizer import new_optimizer
from mm_cca.training.plan import plan_of
from mm_cca.training.plan_text import Gpu, plan_text
from mm_cca.training.planned_negatives import PlanWriter
from mm_cca.training.reference import CopyReference, LoraReference, Reference
from mm_cca.training.schedule import Schedule, training_schedule
from mm_cca.training.trackers import name_of_run, start_trackers

WORTH_A_PLAN = 10**7
"""Bytes of weights from which a training begins with its plan."""


@dataclass(frozen=True)
class TrainingSetup:
    """What the steps work with, once everything is loaded and prepared.

    Attributes:
        policy: the model as it is trained, perhaps wrapped.
        reference: None if the objective needs none.
        ema: the moving average that becomes the model; None without train.ema.
        dtypes: of all weights as they were loaded, by name.
    """

    accelerator: Accelerator
    policy: torch.nn.Module
    model: UnifiedModel
    reference: Reference | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    collate: Collator
    terms: LossTerms
    code_terms: CodeTerms
    train: TrainConfig
    dtypes: dict[str, torch.dtype]
    ema: Ema | None = None

    def model_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that will be written: with train.ema, the average."""
        return nullcontext() if self.ema is None else self.ema.applied()


def set_up(
    recipe: Recipe, run: RunFolder, accelerator: Accelerator, loss: LossConfig, folder: Path
) -> TrainingSetup:
    """Load the model, attach a LoRA, make the reference, plan the data.

    Args:
        recipe: a validated recipe.
        run: holds the caches.
        accelerator: from ``new_accelerator``.
        loss: the recipe's, or the control's.
        folder: gets the plan of negatives of every epoch, and the digest of the base.

    Raises:
        UserError: a checkpoint that can't be read, captions that are too long, data too small for
            the batch or for negatives, a reference cache that does not fit, a precision that can't
            be trained, train.ema with FSDP.
    """
    config, terms = recipe.train, LossTerms.of(loss)
    set_seed(config.seed)
    _refuse_rounded_updates(recipe, accelerator)
    _refuse_sharded_kinds(recipe, accelerator)
    _refuse_sharded_average(config, accelerator)
    cache = open_cache(run.tokens / recipe.data.train_split, recipe.data.variants)
    # Before the model is read: fail early if no negatives can be built.
    plan_writer = PlanWriter(folder / "negatives", cache, show=accelerator.is_main_process)
    schedule = training_schedule(recipe, cache, terms, plan_writer)
    model = load_checkpoint(recipe.model)
    if recipe.data.caption_template is not None:  # perhaps set after prepare
        refuse_long_prompts(model, *cache.every_caption(), recipe.data)
    if accelerator.is_main_process:
        record_base(model.module, folder)
    # Their digest is that of the base, without a LoRA.
    drawn = open_drawn(recipe, run, model, cache, schedule) if terms.needs_drawn else None
    cached = None
    if terms.needs_reference and config.reference == "cached":
        cached = open_cached(recipe, run, model)
    policy = new_policy(recipe, model, whole_vocabulary=loss.whole_vocabulary)
    _print_plan(recipe, loss, policy, accelerator, cache)
    policy.to(accelerator.device)
    # Before FSDP shards the weights, and while the policy still is the base.
    loss = settle_beta(recipe, loss, cache, schedule, policy, accelerator, folder)
    terms = LossTerms.of(loss)
    reference = _reference(config, terms, policy, cached)
    dtypes = {name: value.dtype for name, value in policy.state_dict().items()}
    prepared, optimizer = accelerator.prepare(policy, new_optimizer(policy, config))
    ema = None if config.ema is None else Ema(policy, config.ema)
    if ema is not None:
        accelerator.register_for_checkpointing(ema)
    checkpoint.skip_frozen_weights(accelerator)
    if config.trackers:
        start_trackers(accelerator, recipe, name_of_run(run, folder))
    collate = Collator(
        model,
        cache,
        recipe.data.image_size,
        accelerator.device,
        template=recipe.data.caption_template,
        with_unconditional=terms.needs_base,
        texts=_texts(recipe, cache) if terms.needs_text else None,
        drawn=drawn,
    )
    return TrainingSetup(
        accelerator=accelerator,
        policy=prepared,
        model=model,
        reference=reference,
        optimizer=optimizer,
        schedule=schedule,
        collate=collate,
        terms=terms,
        code_terms=code_terms_of(terms, model.defaults.guidance_scale),
        train=config,
        dtypes=dtypes,
        ema=ema,
    )


def new_policy(recipe: Recipe, model: UnifiedModel, *, whole_vocabulary: bool) -> CodeLogProbs:
    """The model as it trains: with a LoRA, checkpointing or compiled, as the recipe asks."""
    config = recipe.train
    if config.tuning == "lora":
        attach_lora_of(model, config)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.compile:
        model.compile()
    layout = model.layout(grid_of(model, recipe.data.image_size))
    return CodeLogProbs(model, layout, whole_vocabulary=whole_vocabulary)


def _reference(
    config: TrainConfig, terms: LossTerms, policy: CodeLogProbs, cached: Path | None
) -> Reference | None:
    if cached is not None:
        device = next(policy.parameters()).device
        return CachedReference(cached, device, per_code=keeps_codes(terms.config))
    if not (terms.needs_reference or terms.needs_base):
        return None
    if config.reference == "lora":
        return LoraReference(policy)
    half = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]
    return CopyReference(policy, half=half, compiled=config.compile)


def _texts(recipe: Recipe, cache: TokenCache) -> TextStream:
    path = recipe.data.text_path
    texts = cache.captions if path is None else read_texts(path, "data.text_path")
    return TextStream(texts, recipe.train.seed)


def _refuse_rounded_updates(recipe: Recipe, accelerator: Accelerator) -> None:
    """Weights kept in half precision would round small updates away."""
    lora = recipe.train.tuning == "lora"
    # Both train float32 copies of the weights.
    copies = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if recipe.model.dtype == "float32" or lora or copies:
        return
    raise UserError(
        f"train.tuning is full and model.dtype is {recipe.model.dtype}: weights in half precision "
        "round most updates away. Use model.dtype=float32 (as fast, with "
        "train.mixed_precision=bf16), train.tuning=lora, or FSDP, which trains float32 copies "
        "(recipe emu3-gen-full)."
    )


def _print_plan(
    recipe: Recipe,
    loss: LossConfig,
    policy: CodeLogProbs,
    accelerator: Accelerator,
    cache: TokenCache,
) -> None:
    """What the training will take; not of sharded weights, nor of models that fit anywhere."""
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    whole = accelerator.distributed_type not in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if accelerator.is_main_process and whole and weights >= WORTH_A_PLAN:
        device = accelerator.device
        size = torch.cuda.mem_get_info(device)[1] / 1e9 if device.type == "cuda" else None
        try:
            text = plan_text(plan_of(recipe, loss, policy, device, cache), Gpu.of_size(size))
        except (RuntimeError, NotImplementedError, TypeError) as error:
            # An adapter may compute with numbers, which a simulated step doesn't have.
            why = next(iter(str(error).splitlines()), "")
            text = f"no plan of the training: {type(error).__name__}: {why}"
        tqdm.write(text, file=sys.stderr)


def _refuse_sharded_kinds(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raises UserError for what was never sharded by FSDP or DeepSpeed here."""
    names = {DistributedType.FSDP: "FSDP", DistributedType.DEEPSPEED: "DeepSpeed"}
    kind, train = accelerator.distributed_type, recipe.train
    if kind not in names:
        return
    sharded = {
        "model.quantization": (recipe.model.quantization, recipe.model.quantization is None),
        "train.optimizer": (train.optimizer, train.optimizer == "adamw"),
        "train.lora_dora": (train.lora_dora, train.tuning != "lora" or not train.lora_dora),
    }
    for key, (value, works) in sharded.items():
        if not works:
            raise UserError(
                f"{key} is {value} with {names[kind]}, which shards plain weights and the state of "
                "adamw only. Use plain data parallelism (accelerate launch --multi_gpu), where "
                "every GPU holds the whole model, or leave the key out."
            )


def _refuse_sharded_average(config: TrainConfig, accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type
    if config.ema is not None and kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        name = {DistributedType.FSDP: "FSDP", DistributedType.DEEPSPEED: "DeepSpeed"}[kind]
        raise UserError(
            f"train.ema is {config.ema} with {name}, whose sharded weights it can't average. Use "
            "plain data parallelism (accelerate launch --multi_gpu), or leave train.ema out and "
            "average finished runs with `mm-cca average`."
        )
