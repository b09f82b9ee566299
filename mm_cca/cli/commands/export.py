"""Export the model of a finished run: weights, generation config, model card."""

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from transformers import GenerationConfig

from mm_cca.config.load import dump
from mm_cca.config.metrics import METRICS
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.schema import Recipe
from mm_cca.config.shipped import shipped
from mm_cca.config.stage_keys import STEPS_DONE
from mm_cca.errors import UserError
from mm_cca.eval.report.panel_text import standing_in_words
from mm_cca.eval.report.tables import score_columns
from mm_cca.eval.summary_types import JudgeEntry, Summary, judged
from mm_cca.modeling.lora import bake_lora
from mm_cca.runs.files import atomic_path
from mm_cca.runs.folder import AVERAGED, open_run, recipe_of_training
from mm_cca.sampling.weights import load_source


def export(args: argparse.Namespace) -> int:
    """Run ``mm-cca export``."""
    export_model(args.run, args.folder, merge=args.merge, dial=args.dial)
    print(f"the model of {args.run} is in {args.folder}")
    return 0


LICENCES = {
    "emu3": "BAAI's Emu3 weights are Apache-2.0.",
    "emu3p5": "BAAI's Emu3.5 weights are Apache-2.0.",
    "chameleon": "Chameleon's weights are under the Chameleon Research License: non-commercial.",
    "lumina-mgpt": "A derivative of Chameleon (Chameleon Research License: non-commercial).",
    "janus": "Janus's weights are under the DeepSeek Model License.",
    "liquid": "Liquid's code is under the MIT licence. Its weights are built on Gemma, whose terms "
    "of use apply too; the image tokenizer is Chameleon's (non-commercial).",
    "simplear": "SimpleAR's code is under the MIT licence. Its weights are built on Qwen2.5 "
    "(Apache-2.0); the image tokenizer is under the NVIDIA Open Model License.",
}
"""Licences of the families' published weights; another base may have another licence."""
WITH_MM_CCA = (
    "Sample it with `mm_cca`: set `model.path` to this folder in a recipe and run "
    "`mm-cca run RECIPE run.stages=[prepare,sample]`."
)
_AS_THE_BASE = (
    "The authors' scripts read this folder as they read the base (set their guidance to 1), and "
    "plain transformers as `{stock}`; codes follow the tokenizer's vocabulary. "
)
HOW = {
    "emu3": "`generation_config.json` is set accordingly; use plain `generate` with a "
    "`prefix_allowed_tokens_fn` for the grid of codes.",
    "emu3p5": "BAAI's own code reads the folder (set `classifier_free_guidance` to 1), and plain "
    "transformers as `Qwen3ForCausalLM`. " + WITH_MM_CCA,
    "janus": "Plain `generate` always uses guidance (it fails with scale 1). " + WITH_MM_CCA,
    "chameleon": "Plain transformers can't generate images with this family. " + WITH_MM_CCA,
    "lumina-mgpt": "Plain transformers can't generate images with this family. " + WITH_MM_CCA,
    "liquid": _AS_THE_BASE.format(stock="GemmaForCausalLM") + WITH_MM_CCA,
    "simplear": _AS_THE_BASE.format(stock="Qwen2ForCausalLM") + WITH_MM_CCA,
}
"""How to sample the exported model."""


def export_model(run_folder: Path, target: Path, *, merge: bool = False, dial: float = 1.0) -> None:
    """Write the CCA model of a run so that plain transformers or peft loads it.

    A full fine-tune becomes a ``save_pretrained`` folder; a LoRA stays an adapter, or with
    ``merge`` becomes such a folder too. ``dial`` is applied to the weights, or to an adapter's
    scale. The folder is written atomically.

    Raises:
        UserError: not a run folder, unfinished training, a target in use, a full fine-tune with
            ``merge``, a dial below 0 or without its base, a full disk.
    """
    if not 0 <= dial < math.inf:
        raise UserError(f"--dial is {dial:g}; allowed: 0 (the base) or more; 1 is as trained.")
    recipe, run = open_run(run_folder)
    trained = run.trained_model("cca")
    is_lora = recipe.train.tuning == "lora"
    if merge and not is_lora:
        raise UserError("--merge is for a LoRA; this run trained all weights. Leave it out.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already; choose another folder or empty it.")
    try:
        with atomic_path(target) as temporary:
            if merge or (not is_lora and dial != 1.0):
                model = load_source(recipe, run, "cca", dial=dial)
                if isinstance(model.module, PeftModel):
                    model.module = model.module.merge_and_unload()
                temporary.mkdir()
                model.save(temporary)
            else:
                shutil.copytree(trained, temporary)
                if dial != 1.0:
                    bake_lora(temporary, dial)
            _write_generation_config(recipe, temporary)
            card = _card(
                recipe_of_training(recipe),
                run_folder,
                is_adapter=is_lora and not merge,
                dial=dial,
                averaged=_averaged(run.trained),
            )
            card.save(temporary / "README.md")
    except OSError as error:
        raise UserError(f"{target} can't be written: {error}") from error


def _write_generation_config(recipe: Recipe, folder: Path) -> None:
    """Write the base's generation config with guidance off.

    Janus keeps its scale, as plain ``generate`` fails without guidance.
    """
    own = (folder / "generation_config.json").exists()
    source = str(folder) if own else shipped(recipe.model.path)
    try:
        config = GenerationConfig.from_pretrained(source)
    except OSError:
        return  # the base has none
    if recipe.model.adapter != "janus":
        config.guidance_scale = 1.0
    config.save_pretrained(folder)


def _averaged(trained: Path) -> str:
    """A paragraph on the runs whose weights were averaged; empty for an ordinary run."""
    path = trained / AVERAGED
    if not path.exists():
        return ""
    runs = json.loads(path.read_text())["runs"]
    listed = "\n".join(
        f"- {run['weight']:.4g}: `{Path(run['run']).name}`, {_short(run['training'])}"
        for run in runs
    )
    return (
        f"\n\n**Average of {len(runs)} trainings** from the same base, by weight (the recipe below "
        f"is that of the first one):\n\n{listed}"
    )


def _short(training: dict[str, Any]) -> str:
    """The settings of a training in few words."""
    if "averaged" in training:
        return f"itself an average of {len(training['averaged'])}"
    return (
        f"objective `{training['loss.objective']}`, seed {training['train.seed']}, "
        f"{training[STEPS_DONE]} steps"
    )


def _card(
    recipe: Recipe, run_folder: Path, *, is_adapter: bool, dial: float, averaged: str
) -> ModelCard:
    data = ModelCardData(
        base_model=recipe.model.path,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-to-image",
        tags=[*LossTerms.of(recipe.loss).weights, "text-to-image", recipe.model.adapter],
        license="other",
    )
    how = HOW.get(recipe.model.adapter, WITH_MM_CCA)
    if dial != 1.0:
        how += (
            f"\n\n**Dial {dial:g}**: the weights are base + {dial:g} * (trained - base); "
            f"the scores below have it as arm `cca+dial{dial:g}`, if it was sampled."
        )
    licence = LICENCES.get(recipe.model.adapter, "See the licence of the base.")
    prompts = _prompts(recipe)
    text = f"""---
{data.to_yaml()}
---

# {Path(recipe.model.path).name}, fine-tuned with mm_cca

`{recipe.model.path}`, fine-tuned on `{recipe.data.path}` {_method(recipe)} {how}{prompts}{averaged}

## Licence

The licence of the base also applies to this model. {licence}

## Scores

{_scores(run_folder)}

## Recipe

```yaml
{dump(recipe).rstrip()}
```
"""
    return ModelCard(text)


def _method(recipe: Recipe) -> str:
    objective = recipe.loss.objective
    terms = LossTerms.of(recipe.loss)
    if terms.is_finetuning:
        return (
            f"with `mm_cca` and the objective `{objective}` (plain fine-tuning). Sample it with "
            "guidance, as the base."
        )
    if not terms.is_cca:
        return f"with `mm_cca` and the objective `{objective}`."
    return (
        f"with `mm_cca` and the objective `{objective}` (CCA: "
        "[arXiv 2410.09347](https://arxiv.org/abs/2410.09347)), which replaces classifier-free "
        "guidance. **Sample it without guidance**: scale 1, one forward pass per token."
    )


def _prompts(recipe: Recipe) -> str:
    """A paragraph on the templates of training and sampling; empty without any."""
    parts = [
        f"{name} were put into the template `{template}`"
        for name, template in (
            ("captions of training", recipe.data.caption_template),
            ("sampled prompts", recipe.sample.prompt_template),
        )
        if template is not None
    ]
    if not parts:
        return ""
    said = " and ".join(parts)
    return f"\n\n**Prompts**: {said}. Put your prompt in the place of `{{prompt}}`."


def _scores(run_folder: Path) -> str:
    path = run_folder / "report.json"
    if not path.exists():
        return "This run was not evaluated."
    report: Summary = json.loads(path.read_text())
    if "judges" not in report:
        return "This run was evaluated by an older mm_cca; its scores are in report.json there."
    lines = ["Same prompts and random numbers in every arm."]
    for judge in report["judges"]:
        lines += ["", *_scores_of_judge(report, judge)]
    return "\n".join(lines)


def _scores_of_judge(report: Summary, judge: JudgeEntry) -> list[str]:
    arms = judged(report["arms"], judge["name"])
    columns = {
        name: column
        for name, column in score_columns(arms).items()
        if name in METRICS and METRICS[name].on_model_card
    }
    headings = ["prompts", "arm", *(column.heading for column in columns.values())]
    lines = [
        f"Judge: {judge['name']}, {standing_in_words(judge)}.",
        "",
        f"| {' | '.join(headings)} | forward passes per image |",
        "|---" * (len(headings) + 1) + "|",
    ]
    for arm in arms:
        for split, scores in arm["scores"].items():
            cells = [column.text(scores[name]["value"]) for name, column in columns.items()]
            row = [split, arm["name"], *cells, str(arm["forwards_per_image"])]
            lines.append(f"| {' | '.join(row)} |")
    return lines
