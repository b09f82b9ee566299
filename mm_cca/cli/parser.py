"""The words that ``mm-cca`` understands: verbs, their arguments and their help."""

import argparse
import textwrap
from pathlib import Path

from mm_cca.cli.arguments import add_coco_prompts, add_comparison, add_export_samples

EPILOG = textwrap.dedent(
    """\
    examples:
      mm-cca run emoji                          the whole demo: train, sample, score, report
      mm-cca ls                                 the shipped recipes
      mm-cca cp emu3-gen-lora my.yaml           take one as a start
      mm-cca validate my.yaml loss.lambda_=100  check it without reading data or weights
      mm-cca run my.yaml run.dir=runs/second    run it, with one value changed
      mm-cca tiny janus my_tiny                 a tiny random Janus, to try a recipe on a laptop
      mm-cca suggest my.yaml                    a beta and a lambda to start with, and why
      mm-cca sweep my.yaml 'loss.lambda_=[1,10]'
                                                a run for each value, all on one plot
      mm-cca report my.yaml --serve             the report again, and in a browser
      mm-cca demo runs/second                   draw by hand: base, guided base, CCA at any dial
      mm-cca export runs/second my_model        the tuned model, with a card, for others
      mm-cca export-samples runs/second cca my_samples --format adm-npz
                                                one arm's pictures for another evaluator
      mm-cca coco-prompts captions_val2014.json coco30k.jsonl
                                                the prompts that the recipe coco30k draws
      mm-cca eval --compare runs/a/report.json runs/b/report.json
                                                two runs side by side, if they may be compared
      accelerate launch -m mm_cca.cli train my.yaml
                                                one stage, on as many GPUs as accelerate knows of

    A stage that is done is skipped; one that was interrupted goes on where it stopped.
    """
)
STAGE_HELP = {
    "run": "all stages of the recipe, those already done skipped",
    "prepare": "turn images into codes once (the token cache)",
    "train": "fine-tune, resuming from the newest checkpoint",
    "sample": "draw the images of every arm",
    "eval": "score every arm",
    "report": "write report.html and report.json",
    "validate": "check a recipe without reading data or weights",
}


def parser() -> argparse.ArgumentParser:
    """The argument parser of ``mm-cca``."""
    top = argparse.ArgumentParser(
        prog="mm-cca",
        description="Condition Contrastive Alignment: text-to-image generation without guidance.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, text in STAGE_HELP.items():
        stage = verbs.add_parser(verb, help=text, description=text)
        # mm-cca eval --compare takes two results instead.
        count = "?" if verb == "eval" else None
        stage.add_argument(
            "recipe", nargs=count, help="a YAML file or the name of a shipped recipe"
        )
        stage.add_argument(
            "overrides", nargs="*", metavar="key=value", help="such as train.seed=1 loss.beta=0.1"
        )
        if verb == "report":
            _add_serve(stage)
        if verb == "eval":
            add_comparison(stage)
    verbs.add_parser("ls", help="list the shipped recipes")
    copy = verbs.add_parser("cp", help="copy a shipped recipe to a file of yours")
    copy.add_argument("recipe", help="the name of a shipped recipe")
    copy.add_argument("target", type=Path, help="the file to write; must not exist")
    tiny = verbs.add_parser(
        "tiny",
        help="write a tiny random checkpoint of a model family, to try a recipe on a laptop",
        description="Write a tiny random checkpoint in a family's real layout. Then, for example: "
        "mm-cca train my.yaml model.path=DIR train.max_steps=2",
    )
    tiny.add_argument("family", help="emu3, chameleon, janus or lumina-mgpt")
    tiny.add_argument("folder", type=Path, help="where to write it")
    tiny.add_argument(
        "--side", type=int, help="codes along each side of an image (default: the real family's)"
    )
    export = verbs.add_parser(
        "export",
        help="write the model of a finished run for others, with a model card",
        description="Write the model of a finished run so that plain transformers or peft loads "
        "it, with guidance off in its generation config and a model card.",
    )
    export.add_argument("run", type=Path, help="the run folder (run.dir of the recipe)")
    export.add_argument("folder", type=Path, help="where to write the model; must not exist")
    export.add_argument("--merge", action="store_true", help="merge a LoRA into its base")
    export.add_argument(
        "--dial",
        type=float,
        default=1.0,
        metavar="A",
        help="base + A * (trained - base): 0 is the base, 1 (default) as trained, 1.5 beyond",
    )
    demo = verbs.add_parser(
        "demo",
        help="draw prompts by hand with a finished run: base, guided base and CCA side by side",
        description="A page on this machine with prompt, seed, guidance scale and dial, that shows "
        "base, base with guidance and CCA side by side with seconds and forward passes. Needs "
        'gradio: pip install "mm-cca[demo]".',
    )
    demo.add_argument("run", type=Path, help="the run folder (run.dir of the recipe)")
    demo.add_argument("--port", type=int, help="where to serve (default: a free port from 7860 on)")
    add_export_samples(verbs)
    add_coco_prompts(verbs)
    hint = verbs.add_parser(
        "suggest",
        help="measure the base on a few pairs and name a beta and a lambda to start with",
        description="Measure log p(x|c) - log p(x) and log p(x|c) - log p(x|wrong c) of the base "
        "on a few pairs (prepare runs first), name a beta and a lambda to start with, and say why.",
    )
    hint.add_argument("recipe", help="a YAML file or the name of a shipped recipe")
    hint.add_argument("overrides", nargs="*", metavar="key=value", help="such as model.path=DIR")
    hint.add_argument(
        "--scale", type=float, help="the guidance to replace (default: the model family's own)"
    )
    hint.add_argument("--pairs", type=int, default=256, help="how many pairs (default: 256)")
    sweep = verbs.add_parser(
        "sweep",
        help="train, draw and score a grid of values, beside the base's guided sweep",
        description="Every key that takes one value and is given a list is swept: "
        "mm-cca sweep my.yaml 'loss.lambda_=[1,10,100]' 'loss.beta=[0.01,0.02]' does six runs. "
        "Tokens, base arms and cached reference (train.reference=cached) are shared; what is done "
        "is skipped, so lists may grow. Writes sweep.html and sweep.json into run.dir.",
    )
    sweep.add_argument("recipe", help="a YAML file or the name of a shipped recipe")
    sweep.add_argument(
        "overrides", nargs="+", metavar="key=value", help="lists are swept: 'loss.beta=[0.01,0.02]'"
    )
    verbs.add_parser("env", help="print versions and devices, for bug reports")
    return top


def _add_serve(report: argparse.ArgumentParser) -> None:
    report.add_argument(
        "--serve",
        action="store_true",
        help="then serve the run folder's pictures and report to this machine, and open a browser",
    )
    report.add_argument(
        "--port", type=int, default=0, help="with --serve: where (default: any free port)"
    )
