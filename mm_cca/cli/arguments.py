"""Arguments that several verbs share, and those of verbs with many arguments."""

import argparse
from pathlib import Path
from typing import TypeAlias

from mm_cca.config.read_files import fault_of

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def usable_path(text: str) -> Path:
    """An argument that names a file or a folder, which need not exist.

    Raises:
        argparse.ArgumentTypeError: no file can have such a name.
    """
    try:
        if not text.strip():
            raise ValueError("it is empty")
        Path(text).lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # the command tells what it needs
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} can't be a path: {fault_of(error)}"
        ) from error
    return Path(text)


def add_recipe(
    verb: argparse.ArgumentParser,
    example: str,
    *,
    optional: bool = False,
    num_overrides: str = "*",
) -> None:
    """``RECIPE key=value ...``; ``num_overrides`` as argparse's nargs."""
    recipe_help = "a YAML file, the name of a built-in recipe, or a run folder"
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
        "runs",
        nargs="+",
        type=usable_path,
        metavar="RUN",
        help="two or more run folders, or recipes that were run",
    )
    average.add_argument(
        "--into", required=True, type=usable_path, metavar="DIR", help="a new run folder"
    )
    average.add_argument(
        "--weights",
        nargs="+",
        type=float,
        metavar="W",
        help="one above 0 for every run, divided by their sum (default: all equal)",
    )


def add_watch(verbs: Verbs) -> None:
    """``mm-cca watch RUN``."""
    watch = verbs.add_parser(
        "watch",
        help="show the curves and previews of a training in a browser, while it runs",
        description="A page on this machine with the training curves and the previews "
        "(sample.every), which reloads by itself. Trackers (train.trackers) show the same.",
    )
    watch.add_argument("run", type=usable_path, help="a run folder, or a recipe that was run")
    watch.add_argument("--port", type=int, default=0, help="the port (default: any free one)")


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
    bench.add_argument("run", type=usable_path, help="a run folder, or a recipe that was run")
    bench.add_argument("--images", type=int, default=8, help="images per batch (default: 8)")
    bench.add_argument("--rounds", type=int, default=5, help="times each arm is timed (default: 5)")


def add_export(verbs: Verbs) -> None:
    """``mm-cca export RUN DIR``."""
    export = verbs.add_parser(
        "export",
        help="write the model of a finished run for sharing, with a model card",
        description="Write the model of a finished run so that plain transformers or peft loads "
        "it, with guidance off in its generation config and a model card. With --for-engine: one "
        "arm as a folder that a stock engine (vLLM) serves, and the line that serves it.",
    )
    export.add_argument("run", type=usable_path, help="a run folder, or a recipe that was run")
    export.add_argument("folder", type=usable_path, help="where to write the model; must not exist")
    export.add_argument("--merge", action="store_true", help="merge a LoRA into its base")
    _add_dial(export)
    export.add_argument(
        "--for-engine",
        action="store_true",
        help="for a stock engine: a LoRA is merged, and the layout of images, a chat template and "
        "the sampling values are written beside the weights",
    )
    export.add_argument(
        "--source",
        choices=("cca", "base", "control"),
        default="cca",
        help="with --for-engine: whose weights (default: cca)",
    )


def _add_dial(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--dial",
        type=float,
        default=1.0,
        metavar="A",
        help="base + A * (trained - base): 0 = base, 1 = trained weights (default), above 1 "
        "extrapolates",
    )


def add_push(verbs: Verbs) -> None:
    """``mm-cca push RUN OWNER/NAME``."""
    push = verbs.add_parser(
        "push",
        help="upload the model of a finished run to the hub, private unless --public",
        description="Upload what mm-cca export writes (weights, generation config, model card with "
        "scores and pictures) to a repository of the Hugging Face hub, which is made if it does "
        "not exist. Log in first with: hf auth login. Repeat the command to resume.",
    )
    push.add_argument("run", type=usable_path, help="a run folder, or a recipe that was run")
    push.add_argument("repository", help="OWNER/NAME on the hub")
    push.add_argument("--public", action="store_true", help="for everybody (default: private)")
    push.add_argument("--merge", action="store_true", help="merge a LoRA into its base")
    _add_dial(push)


def add_serve(verbs: Verbs) -> None:
    """``mm-cca serve RUN``."""
    serve = verbs.add_parser(
        "serve",
        help="draw images over HTTP with a finished run and a stock engine",
        description="Export an arm of a finished run for a stock engine (vLLM, in an environment "
        "of its own), start the engine, and answer /v1/images/generations as OpenAI's clients ask "
        "it, with PNGs: prompt, n, size, seed. No guidance: one forward pass per token.",
    )
    serve.add_argument("run", type=usable_path, help="a run folder, or a recipe that was run")
    serve.add_argument(
        "--python",
        type=usable_path,
        help="the Python of an environment with vllm (default: MM_CCA_VLLM_PYTHON, or this one)",
    )
    serve.add_argument(
        "--source",
        choices=("cca", "base", "control"),
        default="cca",
        help="whose weights (default: cca)",
    )
    serve.add_argument(
        "--dial", type=float, default=1.0, metavar="A", help="of cca, as in mm-cca export"
    )
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine only; there are no "
        "passwords)",
    )
    serve.add_argument("--port", type=int, default=8000, help="0: any (default: %(default)s)")
    serve.add_argument(
        "--engine-args",
        nargs=argparse.REMAINDER,
        default=[],
        help="all that follows goes to vLLM's server, such as --engine-args --max-model-len 9216",
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
    samples.add_argument("run", type=usable_path, help="a run folder, or a recipe that was run")
    samples.add_argument("arm", help="such as cca, base or base+cfg3")
    samples.add_argument("folder", type=usable_path, help="where to write; must not exist")
    samples.add_argument(
        "--format",
        required=True,
        dest="form",
        choices=("adm-npz", "geneval", "dpg", "t2i-compbench", "hpsv2"),
        help="which evaluator",
    )
    samples.add_argument(
        "--prompts",
        type=usable_path,
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
        "annotations",
        type=usable_path,
        help="captions_val2014.json of annotations_trainval2014.zip",
    )
    coco.add_argument("file", type=usable_path, help="the .jsonl to write; must not exist")
    coco.add_argument("--num-images", type=int, default=30_000, help="how many (default: 30,000)")
    coco.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")
