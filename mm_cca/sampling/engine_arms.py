"""Arms that a stock engine draws: who serves them, what is checked first, and codes to pixels.

Shapes: S slots of the image span, B images, H x W pixels.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import PartialState

from mm_cca.adapters.base import UnifiedModel, grid_of
from mm_cca.config.prompt_templates import filled
from mm_cca.config.schema import Recipe
from mm_cca.errors import UserError
from mm_cca.modeling.sampler import SamplingSettings
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling.arms import Arm
from mm_cca.sampling.engine_pool import draw_codes
from mm_cca.sampling.engine_requests import ImageRequest, ImageTask, seed_of
from mm_cca.sampling.engine_server import PROBE, EngineServer, ServerLost
from mm_cca.sampling.manifest import Drawn, EngineFacts
from mm_cca.sampling.prompts import Prompt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmEngine:
    """Who draws an arm.

    Attributes:
        served: the name of its model.
        servers: those that serve it, one or more.
    """

    served: str
    servers: list[EngineServer]

    @property
    def facts(self) -> EngineFacts:
        return self.servers[0].facts


def served_name(run: RunFolder, arm: Arm) -> str:
    """What a server calls an arm's model: ``RUN/ARM``; temperatures are the same model."""
    return f"{run.trained.resolve().name}/{replace(arm, temperature=None).name}"


def engines_of(recipe: Recipe, run: RunFolder, arms: Sequence[Arm]) -> dict[Arm, ArmEngine]:
    """Who draws each of the arms; those whose model nobody serves are left out.

    Args:
        recipe: with ``sample.engine``.
        run: its folder.
        arms: that are not finished, guidance-free or not; guided ones are left out.

    Raises:
        UserError: no server can be reached, one is no engine, servers of one arm differ, or none
            of the arms is served.
    """
    wanted = {arm: served_name(run, arm) for arm in arms if not arm.is_guided}
    if not wanted:
        return {}
    servers = _connect(recipe.sample.engine, connections=_in_flight(recipe))
    found = {
        arm: ArmEngine(name, [server for server in servers if name in server.served])
        for arm, name in wanted.items()
    }
    engines = {arm: engine for arm, engine in found.items() if engine.servers}
    for engine in engines.values():
        _refuse_different(engine)
    if not engines:
        raise UserError(not_served(wanted, servers))
    unserved = {arm: name for arm, name in wanted.items() if arm not in engines}
    if unserved:
        log.warning("%s\nThe other arms are drawn now.", not_served(unserved, servers))
    return engines


def not_served(missing: Mapping[Arm, str], servers: Sequence[EngineServer]) -> str:
    """What must be served, and what is."""
    listed = "\n".join(f"  - {server.url} serves {', '.join(server.served)}" for server in servers)
    return (
        f"no server of sample.engine serves {', '.join(missing.values())}:\n{listed}\nExport each "
        "arm with `mm-cca export RUN DIR --for-engine`, start the engine with the line that it "
        "prints, and run the same command again."
    )


def _connect(urls: Sequence[str], *, connections: int) -> list[EngineServer]:
    servers, lost = [], {}
    for url in urls:
        try:
            servers.append(EngineServer(url, connections=connections))
        except ServerLost as error:
            lost[url] = str(error)
    listed = "; ".join(f"{url} ({problem})" for url, problem in lost.items())
    if not servers:
        raise UserError(
            f"no server of sample.engine can be reached: {listed}. Start one, or set "
            "sample.engine=[] to draw here."
        )
    if lost:
        log.warning("left out, because they can't be reached: %s", listed)
    return servers


def _refuse_different(engine: ArmEngine) -> None:
    facts = {server.url: str(server.facts) for server in engine.servers}
    if len(set(facts.values())) > 1:
        listed = ", ".join(f"{url}: {what}" for url, what in facts.items())
        raise UserError(
            f"the servers of {engine.served} are not the same engine ({listed}), so one arm's "
            "images would be drawn in different ways. Use one version and dtype for all."
        )


def _in_flight(recipe: Recipe) -> int:
    """Of this process, for each server."""
    return max(1, recipe.sample.engine_requests // PartialState().num_processes)


class EngineSampler:
    """Prompts to requests, and codes to pixels; the language model is the engine's.

    Attributes:
        model: with its image tokenizer only (see ``weights.load_image_parts``).
    """

    def __init__(self, model: UnifiedModel, recipe: Recipe, prompts: Sequence[Prompt]) -> None:
        self.model = model
        self._recipe = recipe
        self._grid = grid_of(model, recipe.data.image_size)
        self._layout = model.layout(self._grid)
        self._code_ids = model.engine_codes()
        captions = list(dict.fromkeys(prompt.caption for prompt in prompts))
        texts = filled(recipe.sample.prompt_template, captions)
        self._ids = dict(zip(captions, model.prompt_ids(texts, self._grid), strict=True))

    def check(self, engine: ArmEngine) -> None:
        """Compare a served model with ours, before anything is drawn.

        Raises:
            UserError: a prompt and its image are longer than it allows, or it has another
                tokenizer.
        """
        span = len(self._layout.tokens)
        longest = max(self._ids, key=lambda caption: len(self._ids[caption]))
        length = len(self._ids[longest])
        for server in engine.servers:
            room = server.served[engine.served]
            if room is not None and length + span > room:
                raise UserError(
                    f"the prompt {longest[:60]!r} has {length} tokens, with its image "
                    f"{length + span}, but {server.url} serves {engine.served} with at most "
                    f"{room}. Shorten the prompt, or start the server with --max-model-len "
                    f"{length + span} (this checkpoint has positions for {self.model.max_tokens})."
                )
            self._refuse_other_tokenizer(server, engine.served)

    def _refuse_other_tokenizer(self, server: EngineServer, served: str) -> None:
        try:
            theirs = server.tokens_of(served, PROBE)
        except ServerLost:  # it may come back while others draw
            return
        if theirs is None:
            log.warning(
                "%s does not answer /tokenize, so its tokenizer was not compared.", server.url
            )
            return
        # Ours may start with BOS, and the first word's token may know that a text starts there.
        ours = self.model.text_ids([PROBE])[0]
        if len(theirs) < 2 or ours[1 - len(theirs) :] != theirs[1:]:
            raise UserError(
                f"{server.url} serves {served} with another tokenizer than that of "
                f"{self._recipe.model.path}: {PROBE!r} is {theirs[:8]} ... there and {ours[:8]} "
                "... here. Serve the folder that `mm-cca export RUN DIR --for-engine` wrote for "
                "this run."
            )

    def draw(
        self, engine: ArmEngine, settings: SamplingSettings, prompts: Sequence[Prompt]
    ) -> Iterator[Drawn]:
        """Draw images of prompts, in the order in which they are answered.

        They are decoded while other requests are in flight, ``sample.batch_size`` at once.

        Raises:
            UserError: as ``draw_codes``; what was drawn before is given first.
        """
        sample = self._recipe.sample
        task = ImageTask(engine.served, self._layout, self._code_ids, settings)
        by_index = {prompt.index: prompt for prompt in prompts}
        requests = [
            ImageRequest(p.index, self._ids[p.caption], seed_of(sample.seed, p.index))
            for p in prompts
        ]
        most = min(sample.batch_size_without_auto, len(prompts))
        groups = draw_codes(
            engine.servers,
            task,
            requests,
            in_flight=_in_flight(self._recipe),
            most=most,
        )
        started = time.perf_counter()
        for group in groups:
            pixels = self._decode(np.stack([drawn.codes for drawn in group]), most)
            now = time.perf_counter()
            yield Drawn(
                [by_index[drawn.request.index] for drawn in group],
                pixels,
                forward_passes=len(task.layout.tokens),
                # Many are drawn at once: the seconds of all images add up to the arm's.
                seconds=(now - started) / len(group),
                engine=engine.facts,
            )
            started = now

    @torch.no_grad()
    def _decode(self, codes: np.ndarray, size: int) -> torch.Tensor:
        """[B, N] codes -> [B, 3, H, W] uint8 on the CPU.

        Always ``size`` at once: another number would round some pixels to the level beside, and
        which images are the last depends on who answered when.
        """
        padded = np.concatenate([codes, codes[:1].repeat(size - len(codes), axis=0)])
        device = PartialState().device
        pixels = self.model.decode(torch.from_numpy(padded).to(device), self._grid)
        return pixels[: len(codes)].cpu()
