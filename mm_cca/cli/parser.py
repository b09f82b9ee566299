"""The arguments of ``mm-cca``: verbs, options and their help. Imports nothing heavy."""

import argparse
import textwrap
from importlib import metadata

from mm_cca.cli.arguments import (
    Verbs,
    add_average,
    add_bench,
    add_coco_prompts,
    add_export,
    add_export_samples,
    add_push,
    add_recipe,
    add_serve,
    add_watch,
    usable_path,
)
from mm_cca.cli.comparison_arguments import add_compare, add_comparison, add_runs, add_vote
from mm_cca.config.shipped import ADAPTERS

WELCOME = textwrap.dedent(
    """\
    mm-cca: text-to-image generation without guidance, by Condition Contrastive Alignment.

      mm-cca run emoji             the whole demo: train, sample, score, report
      mm-cca cp NAME my.yaml       copy a built-in recipe to your own file (mm-cca ls lists them)
      mm-cca run my.yaml           run it on your model and data

    mm-cca --help shows all commands, mm-cca explain KEY what a key of a recipe does.
    """
)
EPILOG = textwrap.dedent(
    """\
    examples:
      mm-cca run emoji                          the whole demo: train, sample, score, report
      mm-cca ls                                 the built-in recipes
      mm-cca cp emu3-gen-lora my.yaml           copy one to your own file
      mm-cca validate my.yaml loss.lambda_=100  check it without reading data or weights
      mm-cca explain loss.beta                  what a key does, its range and default
      mm-cca plan my.yaml --gpu 24              memory by part, hours, and what saves how much
      mm-cca run my.yaml run.dir=runs/second    run it, with one value changed
      mm-cca tiny janus my_tiny                 a tiny random Janus, to try a recipe on a laptop
      mm-cca suggest my.yaml                    a beta and a lambda to start with, and why
      mm-cca gaps runs/second                   which codes the training changed, and how
      mm-cca sweep my.yaml 'loss.lambda_=[1,10]'
                                                a run for each value, all in one plot
      mm-cca watch runs/second                  curves and previews of a training, while it runs
      mm-cca report my.yaml --serve             write the report again and open it in a browser
      mm-cca demo runs/second                   try prompts: base, guided base, CCA at any dial
      mm-cca bench runs/second                  seconds per image with and without guidance
      mm-cca compare runs/first runs/second     differences with intervals, pictures in pairs
      mm-cca runs                               your runs, best first
      mm-cca vote runs/second cca base+cfg3     a blind choice of left or right, with keys
      mm-cca average runs/a runs/b --into runs/mean
                                                the mean of two runs' weights, as a run
      mm-cca export runs/second my_model        the tuned model with a model card
      mm-cca push runs/second my-org/my-model   the same on the Hugging Face hub, private
      mm-cca serve runs/second --python vllm-env/bin/python
                                                images over HTTP, as OpenAI's clients ask for them
      mm-cca export-samples runs/second cca my_samples --format adm-npz
                                                one arm's images for another evaluator
      mm-cca coco-prompts captions_val2014.json coco30k.jsonl
                                                the prompts of the recipe coco30k
      mm-cca eval --compare runs/a/report.json runs/b/report.json
                                                two runs side by side, if they are comparable
      accelerate launch -m mm_cca.cli train my.yaml
                                                one stage on all GPUs in your accelerate config

    A finished stage is skipped; an interrupted stage resumes where it stopped.
    """
)
STAGE_HELP = {
    "run": "all stages of the recipe; finished ones are skipped",
    "prepare": "encode images once (the token cache)",
    "train": "fine-tune, resuming from the newest checkpoint",
    "sample": "sample the images of every arm",
    "eval": "score every arm",
    "report": "write report.html and report.json",
    "validate": "check a recipe and its checkpoint's files without reading data or weights",
}


def parser() -> argparse.ArgumentParser:
    """The argument parser of ``mm-cca``; ``verb`` is None where none is given."""
    top = argparse.ArgumentParser(
        prog="mm-cca",
        description="Condition Contrastive Alignment: text-to-image generation without guidance.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"mm-cca {metadata.version('mm-cca')}")
    help_debug = "show the traceback behind an error, and the warnings of other libraries"
    top.add_argument("--debug", action="store_true", help=help_debug)
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    _add_stages(verbs)
    _add_recipe_verbs(verbs)
    _add_tiny(verbs)
    _add_plan(verbs)
    add_average(verbs)
    add_export(verbs)
    add_push(verbs)
    add_serve(verbs)
    add_watch(verbs)
    _add_demo(verbs)
    add_bench(verbs)
    add_compare(verbs)
    add_runs(verbs)
    add_vote(verbs)
    add_export_samples(verbs)
    add_coco_prompts(verbs)
    _add_suggest(verbs)
    _add_gaps(verbs)
    _add_sweep(verbs)
    verbs.add_parser("env", help="print versions and devices, for bug reports")
    for verb in verbs.choices.values():
        # SUPPRESS, or its default would overwrite a --debug given before the verb.
        verb.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=help_debug
        )
    return top


def _add_stages(verbs: Verbs) -> None:
    for name, text in STAGE_HELP.items():
        stage = verbs.add_parser(name, help=text, description=text)
        # mm-cca eval --compare takes two results instead of a recipe.
        add_recipe(stage, "such as train.seed=1 loss.beta=0.1", optional=name == "eval")
        if name == "report":
            _add_report_server(stage)
        if name == "eval":
            add_comparison(stage)
        if name == "validate":
            stage.add_argument(
                "--recipe-only",
                action="store_true",
                help="leave out the checkpoint (config, tokenizer, and the names and shapes of the "
                "weights; of a hub name only headers and small files are downloaded)",
            )


def _add_report_server(report: argparse.ArgumentParser) -> None:
    report.add_argument(
        "--serve",
        action="store_true",
        help="then serve the report and its images on this machine and open a browser",
    )
    report.add_argument(
        "--port", type=int, default=0, help="with --serve: the port (default: any free one)"
    )


def _add_recipe_verbs(verbs: Verbs) -> None:
    verbs.add_parser("ls", help="list the built-in recipes")
    copy = verbs.add_parser("cp", help="copy a built-in recipe to your own file")
    copy.add_argument("recipe", help="the name of a built-in recipe")
    copy.add_argument("target", type=usable_path, help="the file to write; must not exist")
    explain = verbs.add_parser(
        "explain",
        help="explain a key of a recipe",
        description="Show a key's type, default, allowed values, the stages it decides, and what "
        "it does.",
    )
    explain.add_argument(
        "key",
        nargs="?",
        help="a key such as loss.beta, or a group such as loss (default: list the groups)",
    )


def _add_tiny(verbs: Verbs) -> None:
    tiny = verbs.add_parser(
        "tiny",
        help="write a tiny random checkpoint of a model family, to try a recipe on a laptop",
        description="Write a tiny random checkpoint in the layout of a family's folder on the hub. "
        "Then, for example: mm-cca train my.yaml model.path=DIR train.max_steps=2",
    )
    tiny.add_argument("family", help=f"one of {', '.join(ADAPTERS)}")
    tiny.add_argument("folder", type=usable_path, help="where to write it")
    tiny.add_argument(
        "--side", type=int, help="codes along each side of an image (default: the family's)"
    )
    tiny.add_argument(
        "--layout",
        choices=["hub", "transformers", "deepseek"],
        default="hub",
        help="the files as the family's folder on the hub has them, as save_pretrained of "
        "today's transformers writes them, or (janus) as DeepSeek's own code does "
        "(default: %(default)s)",
    )
    tiny.add_argument(
        "--head-size",
        type=int,
        help="size of the attention heads (default: 8 to 32; an engine on a CPU needs 32)",
    )


def _add_plan(verbs: Verbs) -> None:
    plan = verbs.add_parser(
        "plan",
        help="what a training will take: memory by part, hours, disk, and what saves how much",
        description="Read the headers of the checkpoint's files, run a step without numbers, and "
        "print the memory of every part of it, operations, hours, tokens and disk; then what other "
        "values of single keys would take. For one GPU that holds the whole model. No weights are "
        "read.",
    )
    add_recipe(plan, "such as train.micro_batch_size=2")
    plan.add_argument(
        "--gpu",
        help="does it fit? Gigabytes such as 24, or a name such as 4090 or A100-80",
    )


def _add_demo(verbs: Verbs) -> None:
    demo = verbs.add_parser(
        "demo",
        help="try prompts with a finished run: base, guided base and CCA side by side",
        description="A page on this machine with prompt, seed, guidance scale and dial. It shows "
        "base, base with guidance and CCA side by side, with seconds and forward passes. Needs "
        'gradio: pip install "mm-cca[demo]".',
    )
    demo.add_argument("run", type=usable_path, help="a run folder, or a recipe that was run")
    demo.add_argument("--port", type=int, help="the port (default: a free one from 7860 on)")


def _add_suggest(verbs: Verbs) -> None:
    suggest = verbs.add_parser(
        "suggest",
        help="measure the base on a few pairs and propose a beta and a lambda",
        description="Measure log p(x|c) - log p(x) and log p(x|c) - log p(x|negative c) of the "
        "base on a few pairs (prepare runs first), propose a beta and a lambda, and explain them.",
    )
    add_recipe(suggest, "such as model.path=DIR")
    suggest.add_argument(
        "--scale", type=float, help="the guidance scale to replace (default: the model family's)"
    )
    suggest.add_argument("--pairs", type=int, default=256, help="how many pairs (default: 256)")


def _add_gaps(verbs: Verbs) -> None:
    gaps = verbs.add_parser(
        "gaps",
        help="show where along the images, and on which codes, training changed the model",
        description="Score real images code by code with the base and the trained model of a "
        "finished run: KL to the base and to guidance, by row of the image; gaps under the own and "
        "under another image's caption, by how much the caption decides the code. Writes "
        "RUN/gaps/SOURCE.SPLIT.json and .png.",
    )
    gaps.add_argument("run", type=usable_path, help="a run folder, or a recipe that was run")
    gaps.add_argument(
        "--source", choices=("cca", "control"), default="cca", help="which model (default: cca)"
    )
    gaps.add_argument(
        "--images", type=int, default=256, help="real images per split (default: 256)"
    )
    gaps.add_argument(
        "--scale", type=float, help="guidance scale to compare with (default: the family's)"
    )


def _add_sweep(verbs: Verbs) -> None:
    sweep = verbs.add_parser(
        "sweep",
        help="train, sample and score a grid of values, next to the base's guidance sweep",
        description="Every key that takes one value and is given a list is swept: "
        "mm-cca sweep my.yaml 'loss.lambda_=[1,10,100]' 'loss.beta=[0.01,0.02]' does six runs. "
        "Tokens, base arms and cached reference (train.reference=cached) are shared; finished "
        "points are skipped, so lists may grow. Writes sweep.html and sweep.json into run.dir.",
    )
    add_recipe(sweep, "lists are swept: 'loss.beta=[0.01,0.02]'", num_overrides="+")
