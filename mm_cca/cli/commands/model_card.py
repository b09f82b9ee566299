"""The model card of an exported run: what it is, how to draw with it, its scores and its recipe."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from typing_extensions import TypedDict

from mm_cca.adapters.checkpoint_files import is_hub_name
from mm_cca.cli.commands.base_licence import OTHER, licence_of
from mm_cca.config.load import dump
from mm_cca.config.metrics import METRICS
from mm_cca.config.mixtures import LossTerms
from mm_cca.config.read_files import is_there, json_of
from mm_cca.config.schema import Recipe
from mm_cca.config.stage_keys import STEPS_DONE
from mm_cca.eval.report.panel_text import standing_in_words
from mm_cca.eval.report.tables import score_columns
from mm_cca.eval.summary_files import scored_by_judges
from mm_cca.eval.summary_types import JudgeEntry, Summary, judged
from mm_cca.runs.folder import AVERAGED


class _Part(TypedDict):
    run: str
    weight: float
    training: dict[str, Any]


class _Average(TypedDict):
    runs: list[_Part]


def averaged_from(trained: Path) -> str:
    """A paragraph on the runs whose weights were averaged; empty for an ordinary run."""
    path = trained / AVERAGED
    if not is_there(path):
        return ""
    runs = json_of(path, _Average, "Restore it, or average the runs again.")["runs"]
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


def dial_in_words(dial: float) -> str:
    return (
        f"**Dial {dial:g}**: the weights are base + {dial:g} * (trained - base); "
        f"the scores below have it as arm `cca+dial{dial:g}`, if it was sampled."
    )


def card_of(
    recipe: Recipe,
    run_folder: Path,
    *,
    source: str,
    library: str,
    how: str,
    averaged: str,
    pictures: str = "",
) -> ModelCard:
    """The card of an exported model.

    Args:
        recipe: that trained it.
        run_folder: whose scores are shown.
        source: one of ``schema.SOURCES``.
        library: what loads it, in the hub's words.
        how: to draw with it.
        averaged: from ``averaged_from``.
        pictures: from ``copy_pictures``.
    """
    licence = licence_of(recipe.model.path)
    told = licence.sentences(recipe.model.path, recipe.model.adapter)
    data = ModelCardData(
        base_model=recipe.model.path if is_hub_name(recipe.model.path) else None,
        library_name=library,
        pipeline_tag="text-to-image",
        tags=[*LossTerms.of(recipe.loss).weights, "text-to-image", recipe.model.adapter],
        license=licence.id or OTHER,
        license_name=licence.name,
        license_link=licence.link,
    )
    heading, what = _what(recipe, source)
    text = f"""---
{data.to_yaml()}
---

# {Path(recipe.model.path).name}, {heading}

{what}{pictures}

{how}{_prompts(recipe)}{averaged}

## Licence

The licence of the base also applies to this model. {told}

## Scores

{_scores(run_folder)}

## Recipe

```yaml
{dump(recipe).rstrip()}
```
"""
    return ModelCard(text)


def _what(recipe: Recipe, source: str) -> tuple[str, str]:
    """Heading and first sentence."""
    model, data = f"`{recipe.model.path}`", f"`{recipe.data.path}`"
    if source == "base":
        return "the base of an mm_cca run", f"{model} as it is, an arm of the run below."
    if source == "control":
        return (
            "the control of an mm_cca run",
            f"{model}, fine-tuned on {data} by plain `nll`, to compare with the run below.",
        )
    return "fine-tuned with mm_cca", f"{model}, fine-tuned on {data} {_method(recipe)}"


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
    if not is_there(path):
        return "This run was not evaluated."
    again = "Delete it, and run `mm-cca report RECIPE` again for a card with scores."
    if "judges" not in json_of(path, dict[str, Any], again):
        return "This run was evaluated by an older mm_cca; its scores are in report.json there."
    report = scored_by_judges(path, again)
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
