"""Seconds, memory and report size of scoring n pictures. Run it by hand.

    python -m tests.bench_scoring [n ...]

Pictures of 32x32, which extractors enlarge, are drawn by a tiny random Emu3 for n captions of the
demo's data and compared with n real drawings. Scorers are the demo's, and CLIP ViT-B/32 with the
Inception of FID, whose random weights take as long as real ones.
"""

import hashlib
import sys
import tempfile
import time
from pathlib import Path

import datasets

from mm_cca.config.metrics import DEFAULT
from mm_cca.config.shipped import shipped
from mm_cca.testing.tiny import write_tiny
from tests.support.processes import measured
from tests.support.towers import write_inception

ON_SCORER = ",".join([*DEFAULT, "density", "coverage", "cmmd"])


def bench(count: int, folder: Path, model: Path, inception: Path) -> None:
    """Print a line for every pair of extractors."""
    rows = datasets.load_dataset("parquet", data_files=shipped("emoji"), split="train")
    rows = rows.shuffle(seed=0).select(range(count))
    (folder / "prompts.txt").write_text("\n".join(rows["caption"]) + "\n")
    rows.to_parquet(str(folder / "real.parquet"))
    common = [
        f"run.dir={folder / 'run'}",
        "run.sources=[base]",
        f"model.path={model}",
        f"sample.prompts={folder / 'prompts.txt'}",
        "sample.guidance_scales=[]",
        f"eval.reference={folder / 'real.parquet'}",
        "eval.attributes=[]",
    ]
    measured(["sample", "emoji", *common, "eval.metrics=[alignment]"])
    large = [
        "eval.scorer=ViT-B-32",
        f"eval.metrics=[{ON_SCORER},fid,kid]",
        f"eval.inception_weights={inception}",
        f"eval.inception_sha256={hashlib.sha256(inception.read_bytes()).hexdigest()}",
        "eval.batch_size=32",
    ]
    for name, keys in (
        ("emoji-clip", [f"eval.metrics=[{ON_SCORER}]"]),
        ("ViT-B/32, Inception", large),
    ):
        seconds, megabytes = _timed(["eval", "emoji", *common, *keys])
        report, _ = _timed(["report", "emoji", *common, *keys])
        size = (folder / "run" / "report.html").stat().st_size / 1e6
        print(f"{count:6} {name:20} {seconds:8.0f} {megabytes:7.0f} {report:8.0f} {size:6.1f}")
        (folder / "run" / "eval").rename(folder / f"eval of {name.replace('/', '-')}")


def _timed(words: list[str]) -> tuple[float, float]:
    started = time.perf_counter()
    megabytes = measured(words)
    return time.perf_counter() - started, megabytes


def main(counts: list[int]) -> None:
    print(f"{'n':>6} {'extractors':20} {'eval s':>8} {'MB':>7} {'report s':>8} {'MB':>6}")
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            write_tiny("emu3", Path(name) / "model", side=4)
            bench(count, Path(name), Path(name) / "model", write_inception(Path(name) / "i.pth"))


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [1000])
