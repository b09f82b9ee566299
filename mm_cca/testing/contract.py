"""Checks that every adapter must pass; run them on your own.

    from mm_cca.adapters.contract import check_adapter
    check_adapter("my_package.liquid:Liquid", "path/to/a/small/checkpoint", image_size=[64, 64])

Each check is a function with a plain assertion; ``check_adapter`` runs them all and returns the
differences it measured. Use a tiny random checkpoint: every result is also computed the slow way.

Shapes: see ``adapters/base.py``.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mm_cca.adapters import load_adapter
from mm_cca.adapters.base import (
    FOR_ENGINES,
    FREE,
    Grid,
    UnifiedModel,
    grid_of,
    missing_parts,
)
from mm_cca.modeling.chunked_head import head_logits
from mm_cca.modeling.inputs import left_pad, positions
from mm_cca.modeling.logprobs import CodeLogProbs
from mm_cca.modeling.lora import attach_lora
from mm_cca.modeling.sampler import SamplingSettings, image_stream, sample_codes
from mm_cca.modeling.text_nll import text_nll
from mm_cca.testing.naive_sampler import sample_naively

PROMPTS = ("a red owl", "a small green hand that waves at three friends", "owl")
TOLERANCE = 1e-3
"""Largest difference between two ways to compute the same in float32, in nats per image."""


def check_adapter(
    name: str,
    path: str,
    image_size: Sequence[int],
    image_tokenizer: str | None = None,
    tokenizer: str | None = None,
) -> dict[str, float]:
    """Run every check.

    Args:
        name: the adapter, as in a recipe's ``model.adapter``.
        path: a small checkpoint in the family's real layout.
        image_size: height and width in pixels that the checkpoint can draw.
        image_tokenizer: as in a recipe's ``model.image_tokenizer``.
        tokenizer: as in a recipe's ``model.tokenizer``.

    Returns:
        largest difference by check, in nats per image.

    Raises:
        AssertionError: a check failed; the message says what is wrong.
    """

    def load(folder: str = path) -> UnifiedModel:
        model = load_adapter(name, folder, image_tokenizer=image_tokenizer, tokenizer=tokenizer)
        model.module.eval()
        return model

    model = load()
    grid = grid_of(model, image_size)
    check_parts(model)
    check_layout(model, grid)
    check_codes(model, grid)
    check_images(model, grid, image_size)
    check_unconditional(model, grid)
    measured = {
        "log-probs against the naive forward": check_logps(model, grid),
        "whole vocabulary against the naive forward": check_logps(model, grid, whole=True),
    }
    measured["padded prompts against each alone"] = check_padding(model, grid)
    measured["nats per token of text against the naive forward"] = check_text(model)
    check_cached_sampling(model, grid)
    check_save_and_load(model, grid, load)
    check_engine_folder(model, grid)
    check_training_step(load(), grid, lora=False)
    check_training_step(load(), grid, lora=True)
    return measured


def check_parts(model: UnifiedModel) -> None:
    """No part of the protocol is missing."""
    assert not missing_parts(model), f"missing: {missing_parts(model)}"


def check_layout(model: UnifiedModel, grid: Grid) -> None:
    """As many free slots as codes, the last slot free, forced tokens inside the vocabulary."""
    layout = model.layout(grid)
    assert layout.num_codes == grid[0] * grid[1], (
        f"{layout.num_codes} free slots for {grid[0]} x {grid[1]} codes"
    )
    assert layout.tokens[-1] == FREE, "the last slot must be a code, without tokens after it"
    longest = max(len(ids) for ids in model.prompt_ids(PROMPTS, grid))
    assert longest + len(layout.tokens) <= model.max_tokens, "the image does not fit the context"


@torch.no_grad()
def check_codes(model: UnifiedModel, grid: Grid) -> None:
    """Every code has its own row of the head and its own input embedding."""
    size = model.codebook_size
    for whole in (False, True):
        head = model.image_head(whole_vocabulary=whole)
        rows = head.row_of_code
        assert len(rows) == size == len(rows.unique()), "codes share rows of the head"
        assert 0 <= int(rows.min()) <= int(rows.max()) < len(head.weight), "a row beyond the head"
    assert len(model.image_head().weight) == size, "more rows than codes"
    own = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    assert model.image_head().weight.untyped_storage().data_ptr() in own, "the head is a copy"
    embedded = model.embed_codes(torch.arange(size))
    assert len(embedded.unique(dim=0)) == size, "codes share an embedding"


@torch.no_grad()
def check_images(model: UnifiedModel, grid: Grid, image_size: Sequence[int]) -> None:
    """Images become codes of the codebook, and codes become images of the same size.

    Whether both go row by row can't be checked on random weights: look at a reconstruction once.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, *image_size), generator=generator).to(torch.uint8)
    codes = model.encode(pixels)
    assert codes.shape == (4, grid[0] * grid[1]), f"{tuple(codes.shape)} codes of 4 images"
    size = model.codebook_size
    assert 0 <= int(codes.min()) <= int(codes.max()) < size, "a code beyond the codebook"
    assert torch.equal(model.encode(pixels[1:2]), codes[1:2]), "codes depend on the batch"
    assert len(codes.unique()) > 1, "all codes of all images are the same"
    images = model.decode(codes, grid)
    assert images.shape == pixels.shape, f"decoded images have shape {tuple(images.shape)}"
    assert images.dtype == torch.uint8
    assert (model.decode(codes.flip(1), grid) != images).any(), "decoding ignores the codes"


def check_unconditional(model: UnifiedModel, grid: Grid) -> None:
    """The unconditional prompt ignores the prompt's words; a negative prompt replaces it."""
    first, second = model.prompt_ids(["owl owl owl", "red red red"], grid)
    unconditional = model.unconditional_ids(first, grid)
    assert unconditional != first, "the unconditional prompt is the prompt itself"
    if len(first) == len(second):
        assert unconditional == model.unconditional_ids(second, grid), "it depends on the prompt"
    other = model.unconditional_ids(first, grid, "blurry")
    assert other not in (unconditional, first), "a negative prompt changes nothing"


@torch.no_grad()
def check_logps(model: UnifiedModel, grid: Grid, whole: bool = False) -> float:
    """Batched, padded and chunked log-probabilities equal those of one row at a time."""
    layout = model.layout(grid)
    policy = CodeLogProbs(model, layout, whole_vocabulary=whole).eval()
    codes = _random_codes(model, layout.num_codes, seed=1)
    rows = model.prompt_ids(PROMPTS, grid)
    ours = policy(*left_pad(rows, model.pad_id), codes).per_code
    worst = 0.0
    for row, ids in enumerate(rows):
        naive = _naive_logps(model, grid, ids, codes[row], whole)
        worst = max(worst, float((naive - ours[row]).sum().abs()))
        assert worst <= TOLERANCE, f"prompt {PROMPTS[row]!r}: the difference is {worst:.3g} nats"
    return worst


@torch.no_grad()
def check_padding(model: UnifiedModel, grid: Grid) -> float:
    """Prompts padded on the left, as in sampling, expect the codes that each alone expects.

    Training pads on the right and so never shows whether mask and positions are obeyed.
    """
    head = model.image_head()

    def expected(rows: list[list[int]]) -> torch.Tensor:
        ids, mask = left_pad(rows, model.pad_id, multiple=1)
        last = model.hidden_states(model.embed_text(ids), mask, positions(mask))[:, -1]
        return head_logits(last, head.weight, head.bias).log_softmax(dim=-1)

    rows = model.prompt_ids(PROMPTS, grid)
    alone = torch.cat([expected([row]) for row in rows])
    worst = float((expected(rows) - alone).abs().max())
    assert worst <= TOLERANCE, f"padding changes a prompt: the difference is {worst:.3g} nats"
    return worst


def _random_codes(model: UnifiedModel, num_codes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.codebook_size, (len(PROMPTS), num_codes), generator=generator)


def _naive_logps(
    model: UnifiedModel, grid: Grid, ids: list[int], codes: torch.Tensor, whole: bool
) -> torch.Tensor:
    """[N] from all logits at once: tokens embedded one by one, no padding, no chunks."""
    head = model.image_head(whole_vocabulary=whole)
    embedded = [model.embed_text(torch.tensor(token)) for token in ids]
    targets, number = [], 0
    for token in model.layout(grid).tokens.tolist():
        if token == FREE:
            targets.append((len(embedded) - 1, int(head.row_of_code[codes[number]])))
            embedded.append(model.embed_codes(codes[number]))
            number += 1
        else:
            embedded.append(model.embed_text(torch.tensor(token)))
    embeds = torch.stack(embedded)[None]
    position_ids = torch.arange(embeds.shape[1])[None]
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
    hidden = model.hidden_states(embeds, mask, position_ids)[0]
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logps = logits.log_softmax(dim=-1)
    return torch.stack([logps[position, row] for position, row in targets])


@torch.no_grad()
def check_text(model: UnifiedModel) -> float:
    """A padded batch of plain texts gets the same scores as one row at a time."""
    rows = model.text_ids(PROMPTS)
    assert len({tuple(row) for row in rows}) == len(PROMPTS), "different texts have the same ids"
    head = model.text_head()
    ours = text_nll(model, *left_pad(rows, model.pad_id))
    worst = 0.0
    for row, batched in zip(rows, ours, strict=True):
        ids = torch.tensor([row])
        states = model.text_states(
            ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(len(row))[None]
        )
        logps = head(states[0]).log_softmax(dim=-1)
        naive = -sum(float(logps[i, token]) for i, token in enumerate(row[1:])) / (len(row) - 1)
        worst = max(worst, abs(naive - float(batched)))
    assert worst <= TOLERANCE, f"the difference is {worst:.3g} nats per token"
    return worst


@torch.no_grad()
def check_cached_sampling(model: UnifiedModel, grid: Grid) -> None:
    """Sampling gives the codes of one that recomputes every prefix, guided or not."""
    num_codes = model.layout(grid).num_codes
    uniforms = np.stack([image_stream(0, index, num_codes) for index in range(len(PROMPTS))])
    for scale in (1.0, 3.0):
        settings = SamplingSettings(guidance_scale=scale)
        cached, passes = sample_codes(model, PROMPTS, grid, uniforms, settings)
        plain = sample_naively(model, PROMPTS, grid, uniforms, settings)
        differing = int((cached != plain).sum())
        assert differing == 0, f"{differing} codes differ with the cache at scale {scale}"
        assert passes == num_codes * (2 if scale != 1.0 else 1)


def check_save_and_load(
    model: UnifiedModel, grid: Grid, load: Callable[[str], UnifiedModel]
) -> None:
    """``load`` reads what ``save`` wrote: the same weights bit for bit, prompts and decoding."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        again = load(folder)
        before, after = model.module.state_dict(), again.module.state_dict()
        assert before.keys() == after.keys(), (
            f"these weights are saved or loaded, not both: {before.keys() ^ after.keys()}"
        )
        changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
        assert not changed, f"weights changed: {changed[:3]}"
        assert again.prompt_ids(PROMPTS, grid) == model.prompt_ids(PROMPTS, grid)
        codes = torch.arange(grid[0] * grid[1])[None] % model.codebook_size
        assert torch.equal(again.decode(codes, grid), model.decode(codes, grid))


def check_engine_folder(model: UnifiedModel, grid: Grid) -> None:
    """Codes have ids of their own in the folder for engines, where the family has one.

    Whether an engine loads it, only an engine can say.
    """
    if any(name not in dir(model) for name in FOR_ENGINES):
        return  # written before engines were served
    ids, forced = model.engine_codes(), model.layout(grid).tokens
    assert ids.shape == (model.codebook_size,), f"{ids.shape} ids of {model.codebook_size} codes"
    assert len(np.unique(ids)) == len(ids), "codes share ids of the engine's vocabulary"
    assert not np.isin(forced[forced != FREE], ids).any(), "a forced token is a code"
    with tempfile.TemporaryDirectory() as folder:
        model.save_for_engine(Path(folder))
        config = json.loads((Path(folder) / "config.json").read_text())
    rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    assert rows is not None, "the engine folder's config.json has no vocab_size"
    assert int(ids.max()) < rows, f"the id {ids.max()} of a code is beyond {rows} rows"


def check_training_step(model: UnifiedModel, grid: Grid, lora: bool) -> None:
    """One optimizer step changes the trained weights and none of the frozen ones."""
    if lora:
        attach_lora(model, rank=2, alpha=4)
    layout = model.layout(grid)
    policy = CodeLogProbs(model, layout, whole_vocabulary=False).train()
    frozen = {id(p) for part in model.frozen() for p in part.parameters()}
    buffers = [b for part in model.frozen() for b in part.buffers()]
    assert not any(m.training for part in model.frozen() for m in part.modules())
    assert not any(p.requires_grad for p in policy.parameters() if id(p) in frozen)
    before = {name: value.clone() for name, value in policy.named_parameters()}
    buffers_before = [buffer.clone() for buffer in buffers]
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-2)
    codes = _random_codes(model, layout.num_codes, seed=2)
    prompts = left_pad(model.prompt_ids(PROMPTS, grid), model.pad_id)
    (-policy(*prompts, codes).logps.mean()).backward()
    optimizer.step()
    changed = [n for n, p in policy.named_parameters() if not torch.equal(p, before[n])]
    frozen_changed = [n for n, p in policy.named_parameters() if id(p) in frozen and n in changed]
    assert not frozen_changed, f"frozen weights changed: {frozen_changed[:3]}"
    assert all(torch.equal(a, b) for a, b in zip(buffers_before, buffers, strict=True)), (
        "frozen buffers changed"
    )
    # DistributedDataParallel stops with an error if a trainable parameter gets no gradient.
    unused = [n for n, p in policy.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, (
        f"these parameters are trainable but get no gradient (add their part to frozen()): {unused}"
    )
    assert changed, "no weight changed"
    if lora:
        assert all("lora_" in name for name in changed), "training a LoRA changed other weights"
