"""The command line: verbs, help, exit statuses, and messages without a traceback."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mm_cca import cli
from mm_cca.config.load import dump, load_config
from mm_cca.config.shipped import shipped_recipes
from mm_cca.errors import UserError
from mm_cca.testing.tiny import write_tiny
from tests.support import runs

VERBS = (
    "run",
    "prepare",
    "train",
    "sample",
    "eval",
    "report",
    "validate",
    "ls",
    "cp",
    "env",
    "demo",
    "explain",
)


def python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    values = runs.tiny_recipe(tmp_path, tmp_path / "no-model", tmp_path / "no-data.parquet")
    return runs.write_recipe(tmp_path / "recipe.yaml", values)


@pytest.mark.parametrize(
    "statement",
    [
        "import mm_cca.cli",
        "import mm_cca.cli; mm_cca.cli.main(['validate', 'emoji'])",
        "import mm_cca.cli; mm_cca.cli.main(['ls'])",
        "import mm_cca.cli; mm_cca.cli.main(['explain', 'loss.beta'])",
        "import mm_cca.cli; mm_cca.cli.main(['run', 'emojy'])",
        "import mm_cca.cli; mm_cca.cli.main(['run', 'emoji', 'train.max_steps=0'])",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement: str):
    heavy = "{'torch', 'transformers', 'datasets', 'accelerate'}"
    done = python(f"import sys; {statement}; print('heavy:', sorted({heavy} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: mm-cca {verb}")
    if verb not in ("ls", "env", "demo", "explain"):
        assert "recipe" in shown


def test_help_names_every_verb_and_shows_examples(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    for verb in VERBS:
        assert f"\n    {verb} " in shown


@pytest.mark.parametrize("argv", [["dance"], ["cp", "emoji"], ["run"]])
def test_wrong_usage_is_exit_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: mm-cca" in capsys.readouterr().err


def test_without_a_verb_three_commands_are_shown(capsys: pytest.CaptureFixture[str]):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    commands = [line.split("  ")[1] for line in shown.splitlines() if line.startswith("  mm-cca")]
    assert commands == ["mm-cca run emoji", "mm-cca cp NAME my.yaml", "mm-cca run my.yaml"]


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"mm-cca {metadata.version('mm-cca')}\n"


@pytest.mark.parametrize("argv", [["--debug", "run", "emojy"], ["run", "emojy", "--debug"]])
def test_debug_shows_the_traceback(argv: list[str]):
    with pytest.raises(UserError, match="no recipe 'emojy'"):
        cli.main(argv)


def test_a_reader_that_ends_early_sees_no_traceback():
    code = "import sys, mm_cca.cli; sys.exit(mm_cca.cli.main(['explain', 'loss']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_ls_names_every_shipped_recipe(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["ls"]) == 0
    shown = capsys.readouterr().out
    for name in shipped_recipes():
        assert any(line.split()[:1] == [name] for line in shown.splitlines())


def test_cp_writes_a_recipe_that_loads_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "mine.yaml"
    assert cli.main(["cp", "emu3-gen-lora", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    assert target.read_text().startswith("# ")
    assert dump(load_config(str(target))) == dump(load_config("emu3-gen-lora"))


def test_cp_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "mine.yaml"
    target.write_text("mine")
    assert cli.main(["cp", "emoji", str(target)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert target.read_text() == "mine"


def test_validate_says_how_to_make_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["validate", "emoji64-anneal"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "emoji64-anneal is valid.",
        "Note: data.path runs/emoji64-data/emoji.parquet is not there yet. "
        "Make it with: python -m mm_cca.demo.build_emoji --size 64",
        "Note: model.path runs/emoji64-pretrain/train/model is not there yet. "
        "Make it with: mm-cca run emoji64-pretrain",
    ]
    (tmp_path / "runs" / "emoji64-data").mkdir(parents=True)
    (tmp_path / "runs" / "emoji64-data" / "emoji.parquet").touch()
    assert cli.main(["validate", "emoji64-tokenizer"]) == 0
    assert capsys.readouterr().out == "emoji64-tokenizer is valid.\n"


def test_a_run_says_how_to_make_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "emoji64-tokenizer"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("Make it with: python -m mm_cca.demo.build_emoji --size 64\n")
    assert cli.main(["run", "emoji-anneal"]) == 2
    assert capsys.readouterr().err.endswith("Make it with: mm-cca run emoji-pretrain\n")


def test_validate_says_where_luminas_tokenizer_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["validate", "--recipe-only", "lumina-mgpt-7b-512-lora", "data.path=x"]
    assert cli.main(words) == 0
    told = "that of Alpha-VLLM/Lumina-mGPT-7B-768 is used then. model.tokenizer names another one."
    assert "-512 has none" in (said := capsys.readouterr().out)
    assert told in said
    write_tiny("lumina-mgpt", tmp_path / "hub", side=2)
    assert cli.main([*words, f"model.path={tmp_path / 'hub'}"]) == 0
    assert f"model.path {tmp_path / 'hub'} has no tokenizer: {told}" in capsys.readouterr().out
    write_tiny("lumina-mgpt", tmp_path / "own", side=2, layout="transformers")
    assert cli.main([*words, f"model.path={tmp_path / 'own'}"]) == 0
    assert cli.main([*words, f"model.tokenizer={tmp_path}"]) == 0
    assert "tokenizer" not in capsys.readouterr().out


def test_validate_reads_neither_data_nor_weights(recipe: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["validate", str(recipe), "train.seed=3"]) == 0
    assert "is valid" in capsys.readouterr().out
    assert list(recipe.parent.iterdir()) == [recipe]


def test_env_names_versions(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["env"]) == 0
    names = {line.split(":")[0] for line in capsys.readouterr().out.splitlines()}
    assert {"mm_cca", "python", "torch", "transformers", "accelerate", "device"} <= names


MISTAKES = {
    "unknown recipe": ["run", "no-such-recipe"],
    "unknown key": ["validate", "RECIPE", "train.sed=1"],
    "bad override": ["validate", "RECIPE", "train.seed"],
    "value out of range": ["train", "RECIPE", "train.max_steps=0"],
    "missing data": ["prepare", "RECIPE"],
    "nothing prepared": ["train", "RECIPE"],
    "unknown recipe to copy": ["cp", "no-such-recipe", "FOLDER/x.yaml"],
    "no folder to copy to": ["cp", "emoji", "FOLDER/none/x.yaml"],
    "folder that can't be written": ["prepare", "RECIPE", "run.dir=/proc/none/run"],
    "stage that a job lacks": ["sample", "emoji-scorer", "run.dir=FOLDER/scorer"],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_message_and_exit_status_2(
    mistake: str, recipe: Path, capfd: pytest.CaptureFixture[str]
):
    argv = [
        word.replace("RECIPE", str(recipe)).replace("FOLDER", str(recipe.parent))
        for word in MISTAKES[mistake]
    ]
    assert cli.main(argv) == 2
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    assert shown.count("error: ") == 1
    assert any(line.startswith("error: ") for line in shown.splitlines())


def test_mistake_from_the_shell(recipe: Path):
    with runs.start("train", recipe, "train.max_steps=0", "loss.lambda=1") as process:
        out, shown = process.communicate()
    assert process.returncode == 2
    assert out == ""
    assert shown.startswith("error: ")
    assert "Traceback" not in shown
    assert "train.max_steps" in shown
    assert "loss.lambda" in shown


def test_ctrl_c_is_exit_status_130(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mm_cca.cli.commands.run.run_job", interrupted)
    assert cli.main(["run", str(recipe)]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["prepare", "train", "sample", "eval", "report"])
def test_verb_runs_its_stage_alone(verb: str, recipe: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []
    monkeypatch.setattr(
        "mm_cca.cli.commands.run.run_job", lambda _, stages: asked.append(list(stages))
    )
    assert cli.main([verb, str(recipe)]) == 0
    assert cli.main(["run", str(recipe), "run.stages=[train, sample]"]) == 0
    assert asked == [[verb], ["train", "sample"]]


@pytest.fixture
def stage_that_raises(monkeypatch: pytest.MonkeyPatch):
    def use(error: BaseException) -> None:
        def stages(_: object) -> int:
            raise error

        monkeypatch.setattr("mm_cca.cli.commands.stages.stages", stages)

    return use


def test_an_unforeseen_error_is_one_sentence_and_a_log(
    stage_that_raises, recipe: Path, capsys: pytest.CaptureFixture[str]
):
    stage_that_raises(RuntimeError("shapes differ\nmany more lines"))
    assert cli.main(["train", str(recipe)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: unexpected RuntimeError: shapes differ\n")
    assert "Traceback" not in message
    log = Path(message.split("its traceback is in ")[1].split(",")[0])
    text = log.read_text()
    assert "many more lines" in text
    assert "Traceback" in text
    log.unlink()


def test_debug_shows_the_traceback_of_an_unforeseen_error(stage_that_raises, recipe: Path):
    stage_that_raises(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["--debug", "train", str(recipe)])


def test_out_of_memory_names_the_keys_that_help(
    stage_that_raises, recipe: Path, capsys: pytest.CaptureFixture[str]
):
    import torch

    stage_that_raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert cli.main(["train", str(recipe)]) == 1
    message = capsys.readouterr().err
    assert "train.micro_batch_size" in message
    assert "traceback is in" not in message


def test_sigterm_is_told(recipe: Path):
    code = (
        "import os, signal, sys; from mm_cca.cli.commands import stages; "
        "from mm_cca.cli import main; "
        "stages.stages = lambda args: os.kill(os.getpid(), signal.SIGTERM) or input(); "
        "sys.exit(main(['train', sys.argv[1]]))"
    )
    done = python(code, str(recipe))
    assert done.returncode == 143
    assert done.stderr == "terminated; run the same command again to resume\n"


def test_a_terminal_without_unicode_is_no_error(tmp_path: Path):
    code = "import sys; from mm_cca.cli import main; sys.exit(main(['ls']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": "ascii", "PATH": "", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr.decode()


SPEAKS = """
import logging, sys, warnings
from mm_cca.cli import main
main()
import transformers
logger = transformers.utils.logging.get_logger("transformers.models.auto")
logger.warning_once("Requested torchvision backend is not available.")
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU kernel")
warnings.warn("not for users")
"""


@pytest.mark.parametrize(("words", "told"), [([], 0), (["--debug"], 3)])
def test_a_process_shows_no_warnings_of_other_libraries(words: list[str], told: int):
    """But with --debug."""
    done = python(SPEAKS, *words, "ls")
    assert done.returncode == 0, done.stderr
    phrases = ("Requested torchvision", "Failed to load CPU kernel", "not for users")
    assert sum(phrase in done.stderr for phrase in phrases) == told
    assert told or done.stderr == ""


def test_a_call_from_python_leaves_the_warnings_of_its_process_alone():
    done = python(
        "import os, warnings; from mm_cca.cli import main; main(['ls']); warnings.warn('mine'); "
        "print('TRANSFORMERS_VERBOSITY' in os.environ)"
    )
    assert "mine" in done.stderr
    assert done.stdout.splitlines()[-1] == "False"
