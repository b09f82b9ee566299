"""Prompts of the COCO-30k protocol, from COCO's caption file."""

import argparse
import json
from pathlib import Path

import numpy as np
from typing_extensions import TypedDict

from mm_cca.config.read_files import fault_of, shaped, text_of
from mm_cca.errors import UserError
from mm_cca.runs.files import write_text

USE = (
    "Use captions_val2014.json of annotations_trainval2014.zip, from "
    "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
)


class _Image(TypedDict):
    id: int
    file_name: str


class _Caption(TypedDict):
    id: int
    image_id: int
    caption: str


class _Annotations(TypedDict):
    images: list[_Image]
    annotations: list[_Caption]


def coco_prompts(args: argparse.Namespace) -> int:
    """Run ``mm-cca coco-prompts``."""
    if args.file.suffix != ".jsonl":
        raise UserError(f"{args.file} must end in .jsonl, so that sample.prompts can read it.")
    write_coco_prompts(args.annotations, args.file, num_images=args.num_images, seed=args.seed)
    print(f"{args.num_images} prompts are in {args.file}")
    return 0


def write_coco_prompts(annotations: Path, target: Path, *, num_images: int, seed: int) -> None:
    """Write one caption each of ``num_images`` images as JSON lines that ``sample.prompts`` reads.

    Images, sorted by id, are shuffled by ``seed``; each of the first ``num_images`` gives one of
    its captions, chosen by the same random stream.

    Args:
        annotations: ``captions_val2014.json`` of COCO's ``annotations_trainval2014.zip``.
        target: the file to write; lines have ``text``, ``image_id``, ``caption_id``, ``file_name``.
        num_images: 30,000 in the literature, of the 40,504 of val2014.
        seed: of the choice of images and captions.

    Raises:
        UserError: not a caption file, too few images, or a target that exists or can't be written.
    """
    if target.exists():
        raise UserError(f"{target} exists already; choose another name or delete it.")
    if seed < 0:
        raise UserError(f"--seed is {seed}; allowed: 0 or more.")
    images, captions = _read(annotations)
    if not 1 <= num_images <= len(captions):
        raise UserError(
            f"--num-images is {num_images}; allowed: 1 to {len(captions)}, the images with a "
            f"caption in {annotations}."
        )
    stream = np.random.default_rng([seed, 0x636F636F])
    lines = []
    for image_id in stream.permutation(sorted(captions))[:num_images].tolist():
        own = captions[image_id]
        caption = own[int(stream.integers(len(own)))]
        lines.append(
            {
                "text": caption["caption"].strip(),
                "image_id": image_id,
                "caption_id": caption["id"],
                "file_name": images[image_id],
            }
        )
    try:
        write_text(target, "".join(json.dumps(line) + "\n" for line in lines))
    except OSError as error:
        raise UserError(f"{target} can't be written: {error}") from error


def _read(annotations: Path) -> tuple[dict[int, str], dict[int, list[_Caption]]]:
    """Image id -> file name, and image id -> its non-empty captions, sorted by id."""
    text = text_of(annotations, USE)
    try:
        content = shaped(json.loads(text), _Annotations)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{annotations} is not a COCO caption file: {fault_of(error)}. {USE}"
        ) from error
    images = {image["id"]: image["file_name"] for image in content["images"]}
    captions: dict[int, list[_Caption]] = {}
    for caption in sorted(content["annotations"], key=lambda caption: caption["id"]):
        if caption["caption"].strip():
            captions.setdefault(caption["image_id"], []).append(caption)
    if missing := captions.keys() - images.keys():
        raise UserError(
            f"{annotations} has captions of images that it does not list, such as {min(missing)}."
        )
    return images, captions
