"""``mm-cca gaps``: where along the images, and on which codes, a trained model left its base."""

import argparse

import torch
from accelerate import PartialState
from tqdm import tqdm

from mm_cca.adapters.base import Grid, UnifiedModel, grid_of
from mm_cca.cli.commands.quiet import quiet_libraries
from mm_cca.config.prompt_templates import filled
from mm_cca.config.schema import Recipe
from mm_cca.data.token_cache import TokenCache, open_cache
from mm_cca.errors import UserError
from mm_cca.eval.report.gap_figure import draw_gaps
from mm_cca.modeling.code_gap_bands import band_by_relevance, band_by_row
from mm_cca.modeling.code_gaps import (
    CodeGaps,
    by_relevance,
    by_row,
    code_kls,
    correlation,
    joined,
    per_image,
    wrong_gap_by_quarter,
)
from mm_cca.modeling.guidance import BaseStates
from mm_cca.modeling.inputs import PaddedTokens, right_pad
from mm_cca.modeling.logprobs import CodeLogProbs, Scored
from mm_cca.runs.files import write_json
from mm_cca.runs.folder import RunFolder, open_run
from mm_cca.sampling.prompts import splits_of
from mm_cca.sampling.weights import load_source

BINS = 12
MIN_IMAGES = 2


def gaps(args: argparse.Namespace) -> int:
    """Run ``mm-cca gaps``."""
    if args.images < MIN_IMAGES:
        raise UserError(
            f"--images is {args.images}; allowed: {MIN_IMAGES} or more, as every image is also "
            "scored with the caption of another one."
        )
    if args.scale is not None and args.scale <= 1:
        raise UserError(f"--scale is {args.scale:g}; it must be above 1 (1 means no guidance).")
    quiet_libraries()
    recipe, run = open_run(args.run)
    measure_gaps(recipe, run, args.source, args.images, args.scale)
    return 0


def measure_gaps(
    recipe: Recipe, run: RunFolder, source: str, num_images: int, scale: float | None
) -> None:
    """Write ``gaps/SOURCE.SPLIT.json`` and ``.png`` in the run folder, split by split.

    Raises:
        UserError: an unfinished training, no token cache, a split of one image, or prompts from a
            file, which have no images.
    """
    if recipe.sample.prompts is not None:
        raise UserError(
            f"sample.prompts is {recipe.sample.prompts!r}: gaps are measured on real images. Give "
            "the run folder of a recipe that samples captions of its data."
        )
    if recipe.data.buckets:
        raise UserError(
            "data.buckets is set: gaps are told by place in the image, and need images of one "
            "size. Compare the gaps of each size in the report (training)."
        )
    run.trained_model(source)  # refuse before the base is loaded
    base = load_source(recipe, run, "base")
    tuned = load_source(recipe, run, source)
    scale = base.defaults.guidance_scale if scale is None else scale
    grid = grid_of(base, recipe.data.image_size)
    for split in splits_of(recipe):
        cache = open_cache(run.tokens / split, recipe.data.variants)
        count = min(num_images, len(cache))
        if count < MIN_IMAGES:
            raise UserError(f"split {split!r} has {count} images; at least {MIN_IMAGES} needed.")
        found = _gaps_of(recipe, (base, tuned), cache, grid, count, scale)
        rows, bins = by_row(found, grid[1]), by_relevance(found, BINS)
        bands = band_by_row(found, grid[1]), band_by_relevance(found, BINS)
        path = run.root / "gaps" / f"{source}.{split}.json"
        write_json(
            path,
            {
                "source": source,
                "split": split,
                "num_images": count,
                "num_codes": grid[0] * grid[1],
                "guidance_scale": scale,
                "unit": "nats; per_image sums over codes, the others are means per code; "
                "intervals: 95 %, bootstrap over images",
                "per_image": per_image(found),
                "by_row": rows,
                "by_row_intervals": bands[0],
                "by_relevance": bins,
                "by_relevance_intervals": bands[1],
                "wrong_gap_by_quarter_of_relevance": wrong_gap_by_quarter(found),
                "correlation_of_relevance_and_lowering": correlation(found),
            },
        )
        title = f"{source}, {split}, {count} images (shade: 95 % intervals over images)"
        draw_gaps(path.with_suffix(".png"), (rows, bins), bands, title)
        print(_summary(split, found, scale), f"  {path} and .png", sep="\n")


@torch.no_grad()
def _gaps_of(
    recipe: Recipe,
    models: tuple[UnifiedModel, UnifiedModel],
    cache: TokenCache,
    grid: Grid,
    count: int,
    scale: float,
) -> CodeGaps:
    """The first ``count`` images; each image's wrong caption is that of the next one."""
    base, tuned = models
    device, size = PartialState().device, recipe.train.micro_batch_size
    whole, template = recipe.loss.whole_vocabulary, recipe.data.caption_template
    policies = [CodeLogProbs(m, m.layout(grid), whole_vocabulary=whole).eval() for m in models]
    parts = []
    with tqdm(total=count, desc="gaps of codes", unit="img") as bar:
        for start in range(0, count, size):
            rows = list(range(start, min(start + size, count)))
            codes = cache.codes(torch.tensor(rows), torch.zeros(len(rows), dtype=torch.long))
            own, wrong = (
                base.prompt_ids(
                    filled(template, (cache.captions[(i + shift) % count] for i in rows)), grid
                )
                for shift in (0, 1)
            )
            without = [base.unconditional_ids(ids, grid) for ids in own]
            prompts = [right_pad(ids, base.pad_id).to(device) for ids in (own, wrong, without)]
            parts.append(_batch_gaps(policies, tuned, prompts, codes.to(device), base, scale=scale))
            bar.update(len(rows))
    return joined(parts)


def _batch_gaps(
    policies: list[CodeLogProbs],
    tuned: UnifiedModel,
    prompts: list[PaddedTokens],
    codes: torch.Tensor,
    base: UnifiedModel,
    *,
    scale: float,
) -> CodeGaps:
    own, wrong, without = prompts
    of_base, of_tuned = policies
    logps = {
        name: [_scored(policy, prompt, codes).per_code for policy in policies]
        for name, prompt in (("own", own), ("wrong", wrong))
    }
    head = base.image_head()
    states = BaseStates(
        _states(of_base, own, codes), _states(of_base, without, codes), head.weight, head.bias
    )
    return CodeGaps(
        own=logps["own"][1] - logps["own"][0],
        wrong=logps["wrong"][1] - logps["wrong"][0],
        relevance=logps["own"][0] - logps["wrong"][0],
        kls=code_kls(_states(of_tuned, own, codes), tuned.image_head(), states, scale=scale),
    )


def _scored(policy: CodeLogProbs, prompt: PaddedTokens, codes: torch.Tensor) -> Scored:
    scored: Scored = policy(*prompt, codes)
    return scored


def _states(policy: CodeLogProbs, prompt: PaddedTokens, codes: torch.Tensor) -> torch.Tensor:
    scored: Scored = policy(*prompt, codes, only_states=True)
    assert scored.states is not None
    return scored.states


def _summary(split: str, found: CodeGaps, scale: float) -> str:
    sums = per_image(found)
    quarters = " ".join(f"{value:.1f}" for value in wrong_gap_by_quarter(found))
    lines = (
        f"{split}, nats per image:",
        f"tuned minus base: own caption {sums['own_gap']:.1f}, wrong {sums['wrong_gap']:.1f}",
        f"KL to the base: {sums['kl_model_to_base']:.1f}; "
        f"of guidance {scale:g}: {sums['kl_guidance_to_base']:.1f}",
        f"KL from guidance {scale:g} to the tuned model: {sums['kl_guidance_to_model']:.1f}",
        f"wrong caption, by quarters of relevance (most first): {quarters}",
        f"correlation of relevance and lowering: {correlation(found):.3f}",
    )
    return "\n  ".join(lines)
