"""Arms drawn by an engine: a false one that answers well, wrongly, late, or not at all."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mm_cca.adapters.base import UnifiedModel
from mm_cca.errors import UserError
from mm_cca.runs.folder import RunFolder
from mm_cca.sampling import draw as drawing
from mm_cca.sampling import engine_arms, engine_server, weights
from mm_cca.sampling.engine_requests import ImageTask, codes_of, seed_of
from mm_cca.sampling.engine_server import Patience
from mm_cca.sampling.manifest import read_manifest
from mm_cca.sampling.prompts import prompts_of
from mm_cca.sampling.weights import load_image_parts
from tests.support import runs
from tests.support.fake_engine import Answer, FakeEngine, Fault, completion, draw, fake_engine

NO_GUIDANCE = "sample.guidance_scales=[]"
BOTH = ["run/base", "run/cca"]
DROPPED: Answer = (0, None)
SPAN = 4 * 4 + 3


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    recipe = folder / "recipe.yaml"
    shutil.copy(prepared, recipe)
    runs.do(recipe, f"run.dir={folder / 'run'}", "train.max_steps=1", stages=["train"])
    return recipe


@pytest.fixture
def recipe(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run without samples."""
    shutil.copytree(trained.parent / "run", tmp_path / "run")
    return Path(shutil.copy(trained, tmp_path / "recipe.yaml"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_server, "PATIENCE", Patience(4, first=0.05, longest=0.05))
    monkeypatch.setattr(engine_server, "AT_FIRST", Patience(2, first=0.01))


@pytest.fixture
def start(tiny_model: UnifiedModel) -> Iterator[Callable[..., FakeEngine]]:
    """Starts engines that end with the test."""
    with ExitStack() as stack:

        def tokens(text: str) -> list[int]:
            return tiny_model.text_ids([text])[0][1:]  # without BOS

        def started(**of_engine: Any) -> FakeEngine:
            values = {"served": BOTH, "tokenize": tokens} | of_engine
            return stack.enter_context(fake_engine(**values))

        yield started


def sample(recipe: Path, *engines: FakeEngine | str, options: tuple[str, ...] = ()) -> Path:
    """Draw with the engines and return the folder of samples."""
    urls = [engine if isinstance(engine, str) else engine.url for engine in engines]
    run = recipe.parent / "run"
    changes = (f"run.dir={run}", "train.max_steps=1", NO_GUIDANCE, f"sample.engine={urls}")
    runs.do(recipe, *changes, *options, stages=["sample"])
    return run / "samples"


def refused(recipe: Path, *engines: FakeEngine | str, options: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        sample(recipe, *engines, options=options)
    return str(caught.value)


def pictures(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in runs.files_of(folder).items() if name.endswith(".png")}


def slow(number: int, body: dict[str, Any], right: list[int]) -> None:
    time.sleep(0.02)


def only(number: int, answer: Answer) -> Fault:
    """The fault of one request."""
    return lambda n, body, tokens: answer if n == number else None


def test_images_are_those_of_the_answers(
    recipe: Path, start: Callable[..., FakeEngine], tiny_model: UnifiedModel
):
    engine = start()
    samples = sample(recipe, engine)
    assert {path.name for path in samples.iterdir()} == {"base", "cca"}
    assert {body["model"] for body in engine.requests} == set(BOTH)
    assert len(engine.requests) == 24  # 6 prompts of two splits in two arms
    layout, ids = tiny_model.layout((4, 4)), tiny_model.engine_codes()
    lines = read_manifest(samples / "cca")
    assert [line["index"] for line in lines] == list(range(12))
    for line in lines:
        prompt = tiny_model.prompt_ids([line["prompt"]], (4, 4))[0]
        seed = seed_of(0, line["index"])
        task = ImageTask("run/cca", layout, ids, None)
        codes = codes_of(draw(task.grammar, seed, prompt), task)
        expected = tiny_model.decode(torch.from_numpy(codes)[None], (4, 4))[0]
        found = np.asarray(Image.open(samples / "cca" / f"{line['index']:06d}.png"))
        difference = found.astype(int) - expected.permute(1, 2, 0).numpy()
        assert abs(difference).max() <= 1  # alone, some pixels are rounded to the level beside
        assert line["engine"] == {"kind": "vllm", "version": "0.32.0", "dtype": None}
        assert line["forward_passes"] == SPAN
    stage = json.loads((samples / "cca" / "stage.json").read_text())
    assert stage["done"]
    assert stage["settings"]["engine"] == {"kind": "vllm", "version": "0.32.0", "dtype": None}
    assert not any("sample.engine" in name for name in stage["settings"])  # addresses may change


def test_the_language_model_is_not_loaded(recipe: Path, tiny_model: UnifiedModel):
    model = load_image_parts(runs.load_recipe(recipe))
    own = {id(p) for part in model.frozen() for p in part.parameters()}
    devices = {p.device.type for p in model.module.parameters() if id(p) not in own}
    assert devices == {"meta"}
    codes = torch.arange(16)[None]
    assert torch.equal(model.decode(codes, (4, 4)), tiny_model.decode(codes, (4, 4)))
    prompts = ["red owl", "blue hand"]
    assert model.prompt_ids(prompts, (4, 4)) == tiny_model.prompt_ids(prompts, (4, 4))


def test_dials_and_temperatures(recipe: Path, start: Callable[..., FakeEngine]):
    engine = start(served=[*BOTH, "run/cca+dial0.5"])
    samples = sample(
        recipe, engine, options=("sample.dial=0.5", "sample.temperatures=0.5", "sample.top_k=7")
    )
    names = {"base", "cca", "cca+dial0.5"}
    assert {path.name for path in samples.iterdir()} == names | {f"{n}+t0.5" for n in names}
    asked = {(body["model"], body["temperature"], body["top_k"]) for body in engine.requests}
    assert asked == {(f"run/{name}", t, 7) for name in names for t in (0.5, 1.0)}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        # A server without grammars or token ids answers with text.
        ((200, {"choices": [{"text": "a red owl"}]}), "answers image . without token ids"),
        ((200, completion([40, 41, 42], text="a red owl")), "slot 0 of 19 holds the token 40"),
        ((200, b"<html>"), "is no JSON object"),
        ((400, {"message": "Token id 9999 is out of vocabulary"}), "HTTP 400.*Token id 9999"),
        ((404, {"message": "no such model"}), "HTTP 404.*no such model"),
    ],
)
def test_a_wrong_answer_stops_with_its_reason(
    recipe: Path, start: Callable[..., FakeEngine], answer: Answer, told: str
):
    engine = start(fault=only(3, answer))
    message = refused(recipe, engine, options=("sample.engine_requests=1",))
    assert re.search(told, message, re.DOTALL), message
    samples = recipe.parent / "run" / "samples"
    kept = pictures(samples / "base")
    assert len(kept) == 3  # what was drawn before is not lost
    engine.fault = None
    before = len(engine.requests)
    sample(recipe, engine)
    assert len(engine.requests) - before == 24 - 3
    assert {name: pictures(samples / "base")[name] for name in kept} == kept


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda right: right[:7], "it ends at slot 7 of 19"),
        (lambda right: [*right[:3], right[4], right[3], *right[5:]], "slot 3 of 19"),
        (lambda right: [right[0] - 1000, *right[1:]], "slot 0 of 19"),
    ],
)
def test_an_answer_in_another_form_is_refused(
    recipe: Path, start: Callable[..., FakeEngine], change: Callable[..., list[int]], told: str
):
    def fault(number: int, body: dict[str, Any], right: list[int]) -> Answer | None:
        return (200, completion(change(right))) if number == 2 else None

    message = refused(recipe, start(fault=fault))
    assert told in message
    assert "run/base" in message
    assert "image " in message


@pytest.mark.parametrize("answer", [(500, {"error": "out of memory"}), (503, b""), DROPPED])
def test_a_failure_that_passes_is_not_noticed(
    recipe: Path, start: Callable[..., FakeEngine], answer: Answer
):
    engine = start(fault=lambda n, body, right: answer if n % 3 == 0 else None)
    samples = sample(recipe, engine, options=("sample.engine_requests=1",))
    assert len(pictures(samples / "cca")) == 12


def test_images_do_not_depend_on_servers_or_order(recipe: Path, start: Callable[..., FakeEngine]):
    options = ("sample.batch_size=5",)
    samples = sample(recipe, start(), options=(*options, "sample.engine_requests=1"))
    alone = pictures(samples)
    shutil.rmtree(samples)
    two = start(fault=slow), start(fault=slow)
    sample(recipe, *two, options=options)
    assert all(engine.requests for engine in two)
    assert pictures(samples) == alone


def test_a_server_that_dies_is_left_out(
    recipe: Path, start: Callable[..., FakeEngine], caplog: pytest.LogCaptureFixture
):
    def dies(number: int, body: dict[str, Any], right: list[int]) -> Answer | None:
        return None if number < 2 else DROPPED

    dying, other = start(fault=dies), start()
    samples = sample(recipe, dying, other, options=("sample.engine_requests=2",))
    assert len(pictures(samples / "base")) == len(pictures(samples / "cca")) == 12
    assert len(read_manifest(samples / "base")) == 12
    told = [r.message for r in caplog.records if "is left out" in r.message]
    assert len(told) == 1  # once, though two requests of two arms failed
    assert dying.url in told[0]
    assert f"go to {other.url}" in told[0]


def test_nothing_is_lost_when_all_servers_die(recipe: Path, start: Callable[..., FakeEngine]):
    def dies(number: int, body: dict[str, Any], right: list[int]) -> Answer | None:
        return None if number < 5 else (502, b"bad gateway")

    first, second = start(fault=dies), start(fault=dies)
    message = refused(recipe, first, second, options=("sample.engine_requests=1",))
    assert "no engine is left" in message
    assert "HTTP 502: bad gateway" in message
    assert "run the same command to resume" in message
    samples = recipe.parent / "run" / "samples"
    kept = pictures(samples / "base")
    assert len(kept) == 10
    healthy = start()
    sample(recipe, healthy)
    drawn = [body["model"] for body in healthy.requests]
    assert (drawn.count("run/base"), drawn.count("run/cca")) == (2, 12)
    assert kept.items() <= pictures(samples / "base").items()


def test_one_request_that_always_fails_is_not_the_servers_death(
    recipe: Path, start: Callable[..., FakeEngine], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine_server, "PATIENCE", Patience(4, first=0.1, longest=0.1))

    def fault(number: int, body: dict[str, Any], right: list[int]) -> Answer | None:
        if body["seed"] == seed_of(0, 0):
            return 500, {"error": "this prompt"}
        time.sleep(0.06)
        return None

    engine = start(fault=fault)
    message = refused(recipe, engine, options=("sample.engine_requests=2",))
    assert "fails at this request only" in message
    assert "this prompt" in message


def test_servers_that_can_not_be_reached(
    recipe: Path, start: Callable[..., FakeEngine], caplog: pytest.LogCaptureFixture
):
    nobody = "http://127.0.0.1:9"
    assert f"can be reached: {nobody}" in refused(recipe, nobody)
    assert not (recipe.parent / "run" / "samples").exists()
    sample(recipe, nobody, start())
    assert any(f"can't be reached: {nobody}" in r.message for r in caplog.records)


def test_addresses_with_a_path(recipe: Path, start: Callable[..., FakeEngine]):
    samples = sample(recipe, f"{start().url}/v1/")
    assert len(pictures(samples / "cca")) == 12


def test_something_else_that_answers(recipe: Path, start: Callable[..., FakeEngine]):
    message = refused(recipe, start(kind="llamacpp"))
    assert "owned by 'llamacpp'; allowed: servers of vllm, sglang" in message


def test_names_that_nobody_serves(recipe: Path, start: Callable[..., FakeEngine]):
    engine = start(served=["other/base", "other/cca"])
    message = refused(recipe, engine)
    assert "serves run/base, run/cca" in message
    assert f"{engine.url} serves other/base, other/cca" in message
    assert not engine.requests


def test_an_arm_that_nobody_serves_is_told_after_the_others(
    recipe: Path, start: Callable[..., FakeEngine]
):
    """With one GPU, base and cca are served one after the other."""
    message = refused(recipe, start(served=["run/base"]))
    assert message.startswith("all arms but cca are drawn")
    samples = recipe.parent / "run" / "samples"
    assert len(pictures(samples / "base")) == 12
    assert not (samples / "cca").exists()
    then = start(served=["run/cca"])
    sample(recipe, then)
    assert {body["model"] for body in then.requests} == {"run/cca"}
    assert len(pictures(samples / "cca")) == 12


def test_each_arm_goes_to_the_servers_that_serve_it(recipe: Path, start: Callable[..., FakeEngine]):
    one, other = start(served=["run/base"]), start(served=["run/cca"])
    sample(recipe, one, other)
    assert {body["model"] for body in one.requests} == {"run/base"}
    assert {body["model"] for body in other.requests} == {"run/cca"}


def test_too_little_room(recipe: Path, start: Callable[..., FakeEngine], tiny_model: UnifiedModel):
    loaded = runs.load_recipe(recipe, f"run.dir={recipe.parent / 'run'}")
    captions = [prompt.caption for prompt in prompts_of(loaded, RunFolder.of(loaded))]
    longest = max(len(ids) for ids in tiny_model.prompt_ids(captions, (4, 4)))
    engine = start(max_model_len=longest + SPAN - 1)
    message = refused(recipe, engine)
    assert f"{longest} tokens, with its image {longest + SPAN}" in message
    assert f"at most {longest + SPAN - 1}" in message
    assert not engine.requests
    engine.max_model_len = longest + SPAN
    sample(recipe, engine)


def test_a_prompt_of_thousands_of_tokens(recipe: Path, start: Callable[..., FakeEngine]):
    """Told before anything is drawn, although it is the last."""
    file = recipe.parent / "prompts.txt"
    file.write_text("red owl\nblue hand\n" + "red owl " * 2400 + "\n")
    engine = start()
    options = (f"sample.prompts={file}", "run.stages=[sample]", "eval.metrics=[alignment]")
    message = refused(recipe, engine, options=options)
    assert "'red owl red owl" in message
    assert "Shorten the prompt" in message
    assert not engine.requests


def test_another_tokenizer(recipe: Path, start: Callable[..., FakeEngine]):
    engine = start(tokenize=lambda text: list(range(40, 60)))
    message = refused(recipe, engine)
    assert "serves run/base with another tokenizer" in message
    assert "[40, 41, 42" in message
    assert not engine.requests


def test_a_tokenizer_that_can_not_be_asked(
    recipe: Path, start: Callable[..., FakeEngine], caplog: pytest.LogCaptureFixture
):
    sample(recipe, start(tokenize=None))
    assert any("its tokenizer was not compared" in r.message for r in caplog.records)


def test_servers_of_unlike_versions(recipe: Path, start: Callable[..., FakeEngine]):
    message = refused(recipe, start(), start(version="0.33.0"))
    assert "are not the same engine" in message
    assert "vllm 0.33.0" in message


def test_another_version_does_not_finish_an_arm(recipe: Path, start: Callable[..., FakeEngine]):
    refused(recipe, start(fault=only(3, (400, {}))))
    message = refused(recipe, start(version="0.33.0"))
    assert "engine: version: was '0.32.0', is now '0.33.0'" in message
    runs_here = ("sample.guidance_scales=[]", "train.max_steps=1")
    with pytest.raises(UserError, match="engine: kind: was 'vllm', is now not used"):
        runs.do(recipe, f"run.dir={recipe.parent / 'run'}", *runs_here, stages=["sample"])


def test_finished_arms_need_no_server_and_stay(
    recipe: Path, start: Callable[..., FakeEngine], caplog: pytest.LogCaptureFixture
):
    samples = sample(recipe, start())
    before = runs.mtimes_of(samples)
    sample(recipe, "http://127.0.0.1:9")
    assert runs.mtimes_of(samples) == before
    # Guided arms are drawn here afterwards, and the others are not touched.
    changes = (f"run.dir={recipe.parent / 'run'}", "train.max_steps=1")
    runs.do(recipe, *changes, stages=["sample"])
    after = runs.mtimes_of(samples)
    assert {name: after[name] for name in before} == before
    assert len(pictures(samples / "base+cfg2")) == 12
    assert not caplog.records


def test_an_arm_that_was_drawn_here_is_kept_and_told(
    recipe: Path, start: Callable[..., FakeEngine], caplog: pytest.LogCaptureFixture
):
    changes = (f"run.dir={recipe.parent / 'run'}", "train.max_steps=1", NO_GUIDANCE)
    runs.do(recipe, *changes, "run.sources=[base]", stages=["sample"])
    engine = start()
    sample(recipe, engine)
    assert {body["model"] for body in engine.requests} == {"run/cca"}
    assert any("base was drawn by our own sampler and is kept" in r.message for r in caplog.records)


def test_no_more_requests_at_a_time_than_asked_for(recipe: Path, start: Callable[..., FakeEngine]):
    engine = start(fault=slow)
    sample(recipe, engine, options=("sample.engine_requests=3",))
    assert engine.most_at_once == 3


def test_two_ranks_divide_the_images(
    recipe: Path, start: Callable[..., FakeEngine], monkeypatch: pytest.MonkeyPatch
):
    ranks = runs.TwoRanks()
    ranks.device = torch.device("cpu")
    for module in (drawing, engine_arms, weights):
        monkeypatch.setattr(module, "PartialState", ranks)
    engine = start()
    loaded = runs.load_recipe(
        recipe, f"run.dir={recipe.parent / 'run'}", "train.max_steps=1", NO_GUIDANCE
    )
    loaded.sample.engine = [engine.url]
    ranks.run(lambda: drawing.sample_arms(loaded, RunFolder.of(loaded)))
    assert len(engine.requests) == 24
    assert len(read_manifest(recipe.parent / "run" / "samples" / "cca")) == 12


def test_sglang_gives_the_same_images(recipe: Path, start: Callable[..., FakeEngine]):
    samples = sample(recipe, start())
    from_vllm = pictures(samples)
    shutil.rmtree(samples)
    sample(recipe, start(kind="sglang", version="0.5.23", dtype="bfloat16"))
    assert pictures(samples) == from_vllm
    facts = read_manifest(samples / "cca")[0]["engine"]
    assert facts == {"kind": "sglang", "version": "0.5.23", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["sample.guidance_scales=[2]"], "sample.guidance_scales is [2.0]; allowed: [] with"),
        ([NO_GUIDANCE, "sample.cca_scales=[2]"], "sample.cca_scales is [2.0]; allowed: []"),
        (
            [NO_GUIDANCE, "sample.control_scales=[3]", "train.control=true"],
            "sample.control_scales is [3.0]; allowed: []",
        ),
        (
            ["sample.guidance_scales=[2]", "sample.negative_prompts=[ugly]"],
            "sample.guidance_scales is [2.0]",
        ),
    ],
)
def test_guided_arms_are_refused_with_the_reason(tmp_path: Path, options: list[str], told: str):
    path = runs.unread_recipe(tmp_path)
    message = runs.message_of(path, "sample.engine=http://a:8000", *options)
    assert told in message
    assert "a stock engine can't guide" in message


def test_keys_that_name_no_arm_are_not_refused(tmp_path: Path):
    path = runs.unread_recipe(tmp_path)
    engine = "sample.engine=[http://a:8000, https://b/v1]"
    loaded = runs.load_recipe(
        path, engine, "run.sources=[cca]", "sample.guidance_scales=[2]", "sample.control_scales=[3]"
    )
    assert loaded.sample.engine == ["http://a:8000", "https://b/v1"]
    # Without guided arms it is the prompt of none.
    negative = "sample.negative_prompts=[ugly]"
    assert runs.load_recipe(path, "sample.engine=http://a:8000", NO_GUIDANCE, negative)


@pytest.mark.parametrize("url", ["a:8000", "localhost", "ftp://a", "http://"])
def test_no_address(tmp_path: Path, url: str):
    path = runs.unread_recipe(tmp_path)
    message = runs.message_of(path, f"sample.engine=['{url}']", NO_GUIDANCE)
    assert f"sample.engine is '{url}'" in message
