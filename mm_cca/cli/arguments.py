"""Arguments that several verbs share, and those of verbs with many arguments."""

import argparse
from pathlib import Path
from typing import TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_recipe(
    verb: argparse.ArgumentParser,
    example: str,
    *,
    optional: bool = False,
    num_overrides: str = "*",
) -> None:
    """``RECIPE key=value ...``; ``num_overrides`` as argparse's nargs."""
    recipe_help = "a YAML file or the name of a built-in recipe"
    verb.add_argument("recipe", nargs="?" if optional else None, help=recipe_help)
    verb.add_argument("overrides", nargs=num_overrides, metavar="key=value", help=example)


def add_average(verbs: Verbs) -> None:
    """``mm-cca average RUN RUN ... --into DIR``."""
    average = verbs.add_parser(
        "average",
        help="average the trained weights of finished runs of one base",
        description="Write the mean of the trained weights of finished runs of one base as a run "
        "folder, which `mm-cca run DIR/recipe.yaml` samples and scores, any recipe with "
        "run.trained=DIR samples, and `mm-cca export DIR` exports.",
    )
    average.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="two or more run folders"
    )
    average.add_argument("--into", required=True, type=Path, metavar="DIR", help="a new run folder")
    average.add_argument(
        "--weights",
        nargs="+",
        type=float,
        metavar="W",
        help="one above 0 for every run, divided by their sum (default: all equal)",
    )


def add_bench(verbs: Verbs) -> None:
    """``mm-cca bench RUN``."""
    bench = verbs.add_parser(
        "bench",
        help="measure the seconds per image of a finished run's arms",
        description="Measure the seconds per image of a finished run: base, CCA and control, each "
        "without guidance and with it where the recipe has scales. The same prompts are sampled "
        "in turns after a warm-up, with all models in memory. Scale, dial and temperature cost "
        "nothing, so one arm stands for all.",
    )
    bench.add_argument("run", type=Path, help="the run folder (run.dir of the recipe)")
    bench.add_argument("--images", type=int, default=8, help="images per batch (default: 8)")
    bench.add_argument("--rounds", type=int, default=5, help="times each arm is timed (default: 5)")


def add_export(verbs: Verbs) -> None:
    """``mm-cca export RUN DIR``."""
    export = verbs.add_parser(
        "export",
        help="write the model of a finished run for sharing, with a model card",
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
        help="base + A * (trained - base): 0 = base, 1 = trained weights (default), above 1 "
        "extrapolates",
    )


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """``mm-cca eval --compare A.json B.json --allow KEY``."""
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A.json", "B.json"),
        help="instead of scoring: print two runs' report.json or eval/summary.json side by side; "
        "refused, with the fields that differ, if they were not scored in the same way",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KEY",
        help="a field of the protocol that may differ, such as device or versions.torch; may be "
        "repeated",
    )


def add_export_samples(verbs: Verbs) -> None:
    """``mm-cca export-samples RUN ARM DIR --format FORM``."""
    samples = verbs.add_parser(
        "export-samples",
        help="write one arm's images in the layout of another evaluator",
        description="Write the images of one arm in the layout that another evaluator reads: "
        "adm-npz (OpenAI's FID, IS, precision and recall), geneval, dpg (DPG-Bench), "
        "t2i-compbench, hpsv2. Sample the evaluator's prompts with sample.prompts; geneval, dpg "
        "and hpsv2 also need its prompt files (--prompts), which decide the file names.",
    )
    samples.add_argument("run", type=Path, help="the run folder (run.dir of the recipe)")
    samples.add_argument("arm", help="such as cca, base or base+cfg3")
    samples.add_argument("folder", type=Path, help="where to write; must not exist")
    samples.add_argument(
        "--format",
        required=True,
        dest="form",
        choices=("adm-npz", "geneval", "dpg", "t2i-compbench", "hpsv2"),
        help="which evaluator",
    )
    samples.add_argument(
        "--prompts",
        type=Path,
        help="geneval: evaluation_metadata.jsonl; dpg: the folder dpg_bench/prompts; "
        "hpsv2: the folder of anime.json and the like",
    )
    samples.add_argument("--split", help="only this split of the data (default: all)")
    samples.add_argument(
        "--size",
        type=int,
        help="adm-npz: side in pixels (default: as sampled), bicubic, antialiased",
    )


def add_coco_prompts(verbs: Verbs) -> None:
    """``mm-cca coco-prompts ANNOTATIONS FILE``."""
    coco = verbs.add_parser(
        "coco-prompts",
        help="write the prompts of the COCO-30k protocol, for sample.prompts",
        description="Write one caption each of 30,000 images of COCO val2014, chosen by a seed, as "
        "JSON lines for sample.prompts. The recipe coco30k describes the next steps.",
    )
    coco.add_argument(
        "annotations", type=Path, help="captions_val2014.json of annotations_trainval2014.zip"
    )
    coco.add_argument("file", type=Path, help="the .jsonl to write; must not exist")
    coco.add_argument("--num-images", type=int, default=30_000, help="how many (default: 30,000)")
    coco.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")
