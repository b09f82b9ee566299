"""Previews: pictures that the model in training draws of the same prompts again and again.

They go to ``previews`` in the folder of the training and to its trackers, and change nothing in the
training. ``preview_drawing.py`` draws them, ``preview_schedule.py`` says when.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter
from typing import Self

from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftModel
from PIL import Image
from tqdm import tqdm

from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.modeling.lora import without_lora
from mm_cca.runs.files import replace_folder
from mm_cca.runs.preview_record import (
    PREVIEWS,
    PreviewRecord,
    picture_of,
    read_record,
    sheet_of,
)
from mm_cca.training.contact_sheet import contact_sheet
from mm_cca.training.preview_drawing import PreviewArtist, Stopped, refuse_long
from mm_cca.training.preview_schedule import PreviewSchedule
from mm_cca.training.setup import TrainingSetup
from mm_cca.training.trackers import log_picture

SHARDED = {DistributedType.FSDP: "FSDP", DistributedType.DEEPSPEED: "DeepSpeed"}


def refuse_sharded(recipe: Recipe, accelerator: Accelerator) -> None:
    """Raises UserError for previews where weights are spread over ranks."""
    name = SHARDED.get(accelerator.distributed_type)
    if recipe.sample.every is not None and name is not None:
        raise previews_of_shards(recipe, name)


def previews_of_shards(recipe: Recipe, name: str) -> UserError:
    """The message; ``name`` is what spreads the weights."""
    return UserError(
        f"sample.every is {recipe.sample.every} with {name}, whose weights the sampler can't "
        "draw with while they are trained. Use sample.every=null, or plain data parallelism "
        "(accelerate launch --multi_gpu)."
    )


class Previews:
    """Draws, keeps and logs the previews of one training; the main rank has the only one."""

    def __init__(
        self,
        recipe: Recipe,
        setup: TrainingSetup,
        folder: Path,
        prompts: Sequence[tuple[int, str]],
        num_steps: int,
    ) -> None:
        """Use ``of``, which checks the prompts."""
        self._setup, self._folder = setup, folder
        self._artist = PreviewArtist(recipe, setup, prompts)
        settings = self._artist.settings
        wanted = PreviewRecord(
            [text for _, text in prompts],
            settings.guidance_scale,
            {
                "prompt_template": recipe.sample.prompt_template,
                "seeds": [[recipe.sample.seed, index] for index, _ in prompts],
                "temperature": settings.temperature,
                "top_k": settings.top_k,
                "top_p": settings.top_p,
                "negative_prompt": settings.negative_prompt,
            },
        )
        self._record = _continued(folder, wanted)
        self._schedule = PreviewSchedule(
            recipe.sample.every, num_steps, self._artist.num_pictures, self._record
        )
        self._stopped: Callable[[], bool] = lambda: False

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        setup: TrainingSetup,
        folder: Path,
        prompts: Sequence[tuple[int, str]],
        num_steps: int,
    ) -> Self | None:
        """The previews of a training; None without ``sample.every``, and on all other ranks.

        Args:
            recipe: a validated recipe.
            setup: of the training.
            folder: of the training.
            prompts: number of the random stream, and text.
            num_steps: of the whole training.

        Raises:
            UserError: a prompt that leaves no room for the image, or a damaged record.
        """
        if recipe.sample.every is None or not prompts:
            return None
        refuse_long(recipe, setup.model, [text for _, text in prompts])
        if not setup.accelerator.is_main_process:
            return None
        return cls(recipe, setup, folder, prompts, num_steps)

    def begin(self, done: int, stopped: Callable[[], bool]) -> None:
        """Before the first step of this process: the base, or what an interruption left out.

        A resumed training with a LoRA draws the base with the LoRA switched off; with other weights
        the base is gone.

        Args:
            done: steps of the training so far.
            stopped: whether a signal to stop has come, which also ends drawing.
        """
        self._stopped = stopped
        module = self._setup.model.module
        if done and 0 not in self._record.drawn and isinstance(module, PeftModel):
            self._draw(0, without_lora(module))
        if self._schedule.is_due(done):
            self._draw(done)

    def after(self, done: int, seconds: float) -> None:
        """After an optimizer step of so many seconds, the ``done``-th of the training."""
        self._schedule.see(seconds, self._folder)
        if self._schedule.is_due(done):
            self._draw(done)

    def _draw(self, done: int, weights: AbstractContextManager[None] | None = None) -> None:
        """Draw, write and log the pictures of the current weights (train.ema's average).

        Args:
            done: steps that these weights have been trained.
            weights: switched to them meanwhile.
        """
        if not self._record.drawn:
            tqdm.write(
                f"drawing the first previews: {self._artist.num_pictures} pictures", sys.stderr
            )
        started = perf_counter()
        weights = self._setup.model_weights() if weights is None else weights
        try:
            pictures = self._artist.draw(weights, self._stopped)
        except Stopped:
            return  # training ends after its next step, and a resumed one draws what is missing
        except UserError as error:
            raise UserError(f"previews: {error} Or go on with sample.every=null.") from error
        sheet = contact_sheet(
            pictures,
            self._record.prompts,
            ["no guidance", f"guidance {self._record.guidance_scale:g}"],
            "base" if done == 0 else f"step {done}",
        )
        self._write(done, pictures, sheet)
        for tracker in self._setup.accelerator.trackers:
            log_picture(tracker, PREVIEWS, sheet, done)
        self._record.drawn[done] = perf_counter() - started
        self._record.write(self._folder)

    def _write(self, done: int, pictures: list[list[Image.Image]], sheet: Image.Image) -> None:
        place = sheet_of(self._folder, done)

        def fill(folder: Path) -> None:
            for row, pair in enumerate(pictures):
                for picture, guided in zip(pair, (False, True), strict=True):
                    name = picture_of(self._folder, done, row, guided=guided).name
                    picture.save(folder / name)
            sheet.save(folder / place.name)

        replace_folder(place.with_suffix(""), fill)
        (place.with_suffix("") / place.name).replace(place)


def _continued(folder: Path, wanted: PreviewRecord) -> PreviewRecord:
    """The record of the same pictures so far; those of other prompts or settings are put aside."""
    stored = read_record(folder)
    if stored is None:
        return wanted
    if stored.has_same_pictures(wanted):
        return stored
    number = 1
    while (aside := folder / f"{PREVIEWS}-{number}").exists():
        number += 1
    (folder / PREVIEWS).rename(aside)
    tqdm.write(
        f"the previews so far have other prompts or settings and are kept in {aside}",
        file=sys.stderr,
    )
    return wanted
