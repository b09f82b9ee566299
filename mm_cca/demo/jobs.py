"""The jobs of the demo's own recipes: training the image tokenizer and the scorer."""

import functools
from pathlib import Path

import open_clip
import torch
from tqdm import tqdm
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from mm_cca.adapters import load_adapter
from mm_cca.config.keys import DEMO
from mm_cca.config.schema import (
    DataConfig,
    ScorerConfig,
    ScorerRecipe,
    TokenizerConfig,
    TokenizerRecipe,
)
from mm_cca.config.stage_keys import settings_of
from mm_cca.data.images import images_of, load_split
from mm_cca.demo import scorer_images, scorer_towers, small_emu3
from mm_cca.demo import train_scorer as scorer
from mm_cca.demo import train_tokenizer as tokenizer
from mm_cca.runs.files import replace_folder, write_json
from mm_cca.runs.folder import RunFolder
from mm_cca.runs.stage import Stage


def train_demo_part(recipe: TokenizerRecipe | ScorerRecipe, run: RunFolder) -> None:
    """Train and write ``model/`` (and the tokenizer's ``metrics.json``), unless already done.

    These two jobs take minutes and start from the beginning after an interruption.
    """
    # Unfinished, it holds nothing: these jobs start from the beginning.
    stage = Stage(run.root / "stage", settings_of(DEMO, recipe), results=("unfinished",))
    if stage.is_done():
        print(f"{run.root / 'model'} is already trained.")
        return
    run.begin(stage, recipe)
    if isinstance(recipe, TokenizerRecipe):
        _train_tokenizer(recipe, run)
    else:
        _train_scorer(recipe, run)
    stage.finish()


def _pixels(data: DataConfig, split: str) -> tuple[torch.Tensor, list[str]]:
    return images_of(load_split(data, split), data)


def _autocast(mixed_precision: str) -> functools.partial[torch.autocast]:
    dtype = torch.float16 if mixed_precision == "fp16" else torch.bfloat16
    return functools.partial(torch.autocast, "cpu", dtype, enabled=mixed_precision != "no")


def _train_tokenizer(recipe: TokenizerRecipe, run: RunFolder) -> None:
    config = recipe.tokenizer
    pixels, captions = _pixels(recipe.data, recipe.data.train_split)
    torch.manual_seed(config.seed)
    vq = _new_vq(config)
    settings = tokenizer.VqSettings(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        commitment=config.commitment,
        reseed_every=config.reseed_every,
        max_zoom=recipe.data.max_zoom,
        max_shift=recipe.data.max_shift,
        seed=config.seed,
    )
    with tqdm(total=settings.steps, desc="training the tokenizer", unit="step") as bar:
        for step in tokenizer.train_vq(vq, pixels, settings, _autocast(config.mixed_precision)):
            bar.update()
            bar.set_postfix(l1=f"{step.l1:.4f}", codes=step.codes_in_use, refresh=False)
    metrics = {"train": tokenizer.measure(vq, pixels[:2000])}
    if recipe.data.heldout_split is not None:
        heldout, _ = _pixels(recipe.data, recipe.data.heldout_split)
        metrics["heldout"] = tokenizer.measure(vq, heldout)
    write_json(run.root / "metrics.json", metrics)
    print(metrics)
    _write_emu3(recipe, run, vq, captions)


def _new_vq(config: TokenizerConfig) -> Emu3VQVAE:
    return Emu3VQVAE(
        Emu3VQVAEConfig(
            codebook_size=config.num_codes,
            embed_dim=config.code_dim,
            latent_channels=config.code_dim,
            temporal_downsample_factor=1,
            base_channels=config.base_channels,
            channel_multiplier=list(config.channel_multiplier),
            num_res_blocks=1,
            attn_resolutions=[],
            hidden_size=config.base_channels * config.channel_multiplier[-1],
        )
    )


def _write_emu3(
    recipe: TokenizerRecipe, run: RunFolder, vq: Emu3VQVAE, captions: list[str]
) -> None:
    """Write an Emu3 checkpoint with the trained tokenizer and a random decoder."""
    config = recipe.tokenizer
    words = small_emu3.build_tokenizer(captions, config.text_vocab_size, config.num_codes)
    shape = small_emu3.DecoderShape(
        hidden_size=config.decoder_hidden_size,
        intermediate_size=config.decoder_intermediate_size,
        num_layers=config.decoder_layers,
        num_heads=config.decoder_heads,
    )
    model = small_emu3.assemble(vq, words, shape, config.seed)
    processor = small_emu3.build_processor(
        words, recipe.data.image_size[0], vq.spatial_scale_factor
    )

    def write(folder: Path) -> None:
        small_emu3.save(model, processor, folder, torch.float32)

    replace_folder(run.root / "model", write)


SCORER_DTYPE = torch.bfloat16
"""Of the scorers' files."""


def _train_scorer(recipe: ScorerRecipe, run: RunFolder) -> None:
    config = recipe.scorer
    pixels, captions = _scorer_rows(recipe)
    words = scorer_towers.scorer_tokenizer(captions, config.text_vocab_size)
    shape = _scorer_shape(recipe)
    model = scorer_towers.build(shape, words, config.seed)
    if config.frozen is not None:
        scorer_towers.load_frozen(model, config.frozen, SCORER_DTYPE)
    if config.architecture != scorer_towers.VIT:
        model.to(memory_format=torch.channels_last)  # convolutions are faster
    tokens = words(
        captions,
        truncation=True,
        max_length=scorer_towers.CONTEXT_LENGTH,
        padding="max_length",
        return_tensors="pt",
    )["input_ids"]
    settings = scorer.ScorerSettings(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        seed=config.seed,
    )
    images = _scorer_images(recipe, model, pixels)
    autocast = _autocast(config.mixed_precision)
    with tqdm(total=settings.steps, desc="training the scorer", unit="step") as bar:
        for step in scorer.train_scorer(model, images, tokens, settings, autocast):
            bar.update()
            bar.set_postfix(loss=f"{step.loss:.3f}", refresh=False)

    def write(folder: Path) -> None:
        scorer_towers.save(model, words, shape, folder, SCORER_DTYPE)

    replace_folder(run.root / "model", write)


def _scorer_rows(recipe: ScorerRecipe) -> tuple[torch.Tensor, list[str]]:
    pixels, captions = _pixels(recipe.data, recipe.data.train_split)
    if recipe.scorer.rows == "all" and recipe.data.heldout_split is not None:
        more_pixels, more_captions = _pixels(recipe.data, recipe.data.heldout_split)
        return torch.cat([pixels, more_pixels]), captions + more_captions
    return pixels, captions


def _scorer_shape(recipe: ScorerRecipe) -> scorer_towers.ScorerShape:
    config = recipe.scorer
    return scorer_towers.ScorerShape(
        image_size=_scorer_side(recipe),
        patch_size=config.patch_size,
        vision_width=config.vision_width,
        vision_layers=config.vision_layers,
        text_width=config.text_width,
        text_layers=config.text_layers,
        embed_dim=config.embed_dim,
        vocab_size=config.text_vocab_size,
        architecture=config.architecture,
        head=config.head,
    )


def _scorer_side(recipe: ScorerRecipe) -> int:
    size = recipe.scorer.input_size
    return recipe.data.image_size[0] if size is None else size


def _scorer_images(
    recipe: ScorerRecipe, model: open_clip.CLIP, pixels: torch.Tensor
) -> scorer_images.TrainingImages:
    """Reconstructions, and the features of a frozen network, are computed here."""
    config, data = recipe.scorer, recipe.data
    size = _scorer_side(recipe)
    augmentation = scorer_images.Augmentation(data.max_zoom, data.max_shift, config.seed)
    reconstructions = _reconstructions(config, pixels, augmentation)
    if config.frozen is None:
        return scorer_images.Drawings(pixels, reconstructions, augmentation, size)
    drawings = torch.empty(config.variants, *pixels.shape, dtype=torch.uint8)
    for variant, indices, images in scorer_images.variants_of(
        pixels, augmentation, config.variants
    ):
        drawings[variant, indices] = images
    variants = [*drawings] if reconstructions is None else [*drawings, *reconstructions]
    with tqdm(total=len(variants) * len(pixels), desc="frozen features", unit="image") as bar:
        features = scorer_images.frozen_features(
            model.visual.trunk, variants, size, _autocast(config.mixed_precision), bar.update
        )
    return scorer_images.FrozenFeatures(features, config.seed)


def _reconstructions(
    config: ScorerConfig, pixels: torch.Tensor, augmentation: scorer_images.Augmentation
) -> torch.Tensor | None:
    if config.reconstructions is None:
        return None
    model = load_adapter(config.adapter, config.reconstructions)
    total = config.variants * len(pixels)
    autocast = _autocast(config.mixed_precision)
    with tqdm(total=total, desc="reconstructions", unit="image") as bar, autocast():
        return scorer_images.reconstruct_variants(
            model, pixels, augmentation, config.variants, bar.update
        )
