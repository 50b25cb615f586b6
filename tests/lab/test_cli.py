"""The command line of the numbered scripts: flags, folders, and how a run ends."""

import dataclasses
import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from lab import cli
import pytest

from dreamer import Config

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "02_dreamer_cartpole.py"
SCRIPTS = sorted(ROOT.glob("0[0-9]_*.py"))


def parse(*words, config=None, **kwargs):
    return cli.parse(SCRIPT, "What it teaches.", config or Config(), list(words), **kwargs)


def refused(capsys, *words):
    """What is said of a command line that is refused, on stderr alone."""
    with pytest.raises(SystemExit) as end:
        parse(*words)
    assert end.value.code == 2
    out, error = capsys.readouterr()
    assert not out
    return error


# ---------------------------------------------------------------- flags


def other(value):
    """A valid value of a field, unlike its default."""
    if isinstance(value, str):
        return "pathwise"
    return value / 2 if isinstance(value, float) else value + 1


def test_every_config_field_is_a_flag():
    changed = {f.name: other(f.default) for f in dataclasses.fields(Config)}
    changed["steps"] = 3 * changed["action_repeat"]
    words = [f"--{name.replace('_', '-')}={value}" for name, value in changed.items()]
    assert parse(*words).config == Config(**changed)
    for name, word in zip(changed, words, strict=True):
        if name not in ("steps", "action_repeat"):  # either alone need not fit the other's default
            assert parse(word).config == dataclasses.replace(Config(), **{name: changed[name]})


def test_without_flags_a_script_s_own_config_holds():
    own = Config(steps=77, train_ratio=3.5)
    args = parse(config=own)
    assert args.config == own
    assert (args.device, args.resume, args.smoke, args.tensorboard) == ("auto", *[False] * 3)


def test_smoke_makes_all_tiny_and_the_user_s_flags_win():
    own = Config(steps=60_000, hidden=512, gamma=0.5)
    args = parse("--hidden", "24", "--smoke", config=own)
    assert args.config == Config(**{**cli.SMOKE, "hidden": 24, "gamma": 0.5})
    assert args.smoke and args.final_episodes < parse(config=own).final_episodes == 100


@pytest.mark.parametrize("word", ["--stepz", "--config.steps", "steps"])
def test_an_unknown_flag_names_what_exists(word, capsys):
    message = refused(capsys, word, "3")
    assert f"no flag {word}" in message
    assert (word != "--stepz") or "did you mean --steps?" in message
    names = [field.name.replace("_", "-") for field in dataclasses.fields(Config)]
    for name in (*names, "device", "resume", "smoke", "out", "tensorboard"):
        assert f"--{name}" in message


def test_a_flag_of_one_script_is_shown_by_that_one_alone(capsys):
    visualize = importlib.import_module("04_visualize")
    assert parse("--shipped", kind=visualize.Args).shipped
    assert not parse(kind=visualize.Args).shipped
    assert "--shipped," not in refused(capsys, "--shipped").partition(";")[2]
    with pytest.raises(SystemExit):
        parse("--shiped", kind=visualize.Args)
    assert "did you mean --shipped?" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["1e4", "10000", "10000.0", "1_0e3"])
def test_whole_numbers_as_people_write_them(word):
    args = parse("--steps", word)
    assert args.steps == args.config.steps == 10_000 and type(args.steps) is int


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "-3"], "error: Config.steps must be a whole number from 1"),
        (["--steps", "1.5"], "error: Config.steps must be a whole number from 1"),
        (["--seed", "nan"], "error: Config.seed must be a whole number from 0"),
        (["--steps", "3", "--action-repeat", "2"], "error: Config.steps must be a multiple"),
        (["--tensorboard"], "error: --tensorboard needs `pip install tensorboard`"),
    ],
)
def test_a_bad_value_is_one_sentence(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no TensorBoard
    error = refused(capsys, *words, "--out", str(tmp_path / "out"))
    assert error.startswith(message) and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_says_what_the_script_teaches_and_what_each_flag_means(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help", config=Config(steps=4321))
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("What it teaches.", "--train-ratio", "4321", "replayed rows per environment"):
        assert words in text
    assert "go on from the run's checkpoint" in text


@pytest.mark.scripts
@pytest.mark.parametrize(
    "change", [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}, {"COLUMNS": "5"}]
)
@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "train_all.py"], ids=lambda path: path.stem)
def test_help_is_printed_everywhere(script, change):
    command = [sys.executable, str(script), "--help"]
    process = subprocess.run(command, env={**os.environ, **change}, capture_output=True, timeout=60)
    assert process.returncode == 0 and b"--out" in process.stdout
    assert process.stderr.split() == [b"loading", b"PyTorch", b"..."]


# ---------------------------------------------------------------- folders


def test_where_things_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "02_dreamer_cartpole"
    assert parse().run_dir == ROOT / "runs" / name / "seed0"
    assert parse("--seed", "4").run_dir == ROOT / "runs" / name / "seed4"
    assert parse("--smoke").run_dir == ROOT / "runs" / "smoke" / name / "seed0"
    for words in (["--out", "here"], ["--out", "here", "--smoke"]):
        assert parse(*words).run_dir == tmp_path / "here" / name / "seed0"
    assert list(tmp_path.iterdir()) == []  # nothing is made yet
    assert cli.ASSETS == ROOT / "assets"


@pytest.mark.parametrize("word", ["", " ", "~nobody-of-this-name/out"])
def test_a_folder_that_is_none_is_refused(word, capsys):
    error = refused(capsys, "--out", word)
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "a path is empty" in error or word.strip()


@pytest.mark.skipif(os.name != "posix", reason="links need a right on this system")
def test_a_folder_of_links_in_a_circle_is_refused(tmp_path, capsys):
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(SystemExit) as end:  # by parse, or from Python 3.13 on when it is made
        cli.run(lambda args: args.run_dir.mkdir(parents=True), parse("--out", str(tmp_path / "a")))
    assert end.value.code and str(tmp_path / "a") in capsys.readouterr().err


def test_home_is_known_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert parse("--out=~/here").base == tmp_path / "here"


def test_paths_are_shown_as_one_would_type_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.short(tmp_path / "a" / "b.png") == Path("a/b.png")
    assert cli.short(tmp_path.parent / "b.png") == tmp_path.parent / "b.png"


def test_the_command_that_resumes_is_the_one_that_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    words = ["--steps", "300", "--out", "my out"]
    monkeypatch.setattr(sys, "argv", ["../02_dreamer_cartpole.py", *words])
    command = cli.parse(SCRIPT, None, Config()).resume_command
    expected = [os.path.join(".venv", "bin", "python"), "../02_dreamer_cartpole.py", *words]
    assert shlex.split(command) == [*expected, "--resume"]
    monkeypatch.setattr(sys, "argv", [sys.argv[0], "--resume", *words])
    command = cli.parse(SCRIPT, None, Config()).resume_command
    assert shlex.split(command) == [*expected[:2], "--resume", *words]


# ---------------------------------------------------------------- begin and end


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "train_all.py"], ids=lambda path: path.stem)
def test_something_is_said_before_torch_is_imported(script, tmp_path):
    """This torch ends the process at once, and what was not yet written is lost."""
    (tmp_path / "torch.py").write_text("import os; os._exit(77)")
    process = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (process.returncode, process.stdout) == (77, "")
    assert process.stderr == "loading PyTorch ...\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [(OSError("no space left"), 1), (KeyboardInterrupt(), 130), (KeyboardInterrupt(15), 143)],
)
def test_how_a_run_ends(error, status, tmp_path, capsys):
    args = parse("--out", str(tmp_path))

    def main(args):
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run(main, args)
    assert end.value.code == status
    out, error_text = capsys.readouterr()
    if status > 1:
        assert out.splitlines()[-1].strip() == args.resume_command and not error_text
    else:
        assert error_text == "error: no space left\n" and not out


def test_a_refusal_of_the_package_is_a_sentence_and_a_defect_a_traceback(tmp_path, capsys):
    args = parse("--out", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        cli.run(lambda args: Config(steps=-1), args)
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: Config.steps must be")
    with pytest.raises(ValueError, match="invalid literal"):
        cli.run(lambda args: int("x"), args)


def test_a_damaged_results_file_is_named_before_anything_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "ASSETS", tmp_path)
    path = tmp_path / "results" / "more" / "cartpole.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"runs": [')
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: pytest.fail("it has begun"))
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {path} is damaged")
    assert path.read_text() == '{"runs": ['
    path.write_text("{}")
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: 3)
    assert end.value.code == 3


@pytest.mark.parametrize("script", SCRIPTS[:6], ids=lambda path: path.stem)
def test_a_refused_command_leaves_the_result_of_the_run_before(script, tmp_path, monkeypatch):
    """Here it asks for a GPU that is not there."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    module = importlib.import_module(script.stem)
    words = ["--smoke", "--device", "cuda", "--out", str(tmp_path)]
    args = cli.parse(script, None, module.CONFIG, words, getattr(module, "Args", cli.Args))
    path = args.run_dir / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text("of before")
    with pytest.raises(SystemExit) as end:
        cli.run(module.main, args)
    assert end.value.code == 1 and path.read_text() == "of before"


@pytest.mark.scripts
def test_a_run_that_cannot_go_on_leaves_the_result_of_the_run_before(tmp_path):
    def call(*words):
        command = [sys.executable, str(SCRIPT), "--smoke", "--out", str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)

    assert call().returncode == 0
    path = tmp_path / SCRIPT.stem / "seed0" / "result.json"
    before = path.read_bytes()
    for words in (["--steps", "200"], ["--hidden", "24"]):
        process = call("--resume", *words)
        assert process.returncode == 1 and "error: " in process.stderr.splitlines()[-1]
        assert path.read_bytes() == before and json.loads(before)["config"]["steps"] == 300


# ---------------------------------------------------------------- where nobody can read

SPEAKS = """
import pathlib, sys
import lab
for _ in range(3):
    print("\u0141" * 100_000, flush=True)
    print("\u0141", file=sys.stderr)
pathlib.Path("result.json").touch()
"""


@pytest.mark.faults
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, and a shell")
@pytest.mark.parametrize(
    "how",
    ["{} >/dev/full 2>&1", "{} >&- 2>&-", "{} 2>&-", "{} 2>&1 | head -1", "{} 2>&1 | false"],
)
def test_what_cannot_be_printed_stops_nothing(how, tmp_path):
    shell = "set -o pipefail; " + how.format('"$PYTHON" -c "$SOURCE"') + "; exit ${PIPESTATUS[0]}"
    env = {**os.environ, "PYTHON": sys.executable, "SOURCE": SPEAKS, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(["bash", "-c", shell], env=env, cwd=tmp_path, capture_output=True)
    assert process.returncode == 0 and b"Error" not in process.stderr
    assert (tmp_path / "result.json").exists()


@pytest.mark.faults
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_letters_that_a_terminal_lacks_are_replaced(encoding, tmp_path):
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", SPEAKS], env=env, cwd=tmp_path, capture_output=True
    )
    assert process.returncode == 0 and process.stderr.split()[3:] == [b"?"] * 3
    assert process.stdout.split() == [b"?" * 100_000] * 3
