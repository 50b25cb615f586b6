"""The command lines of the numbered scripts: flags, folders, and how a run ends."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from dreamer import Config
from lab import cli

NAME = "02_dreamer_cartpole"


def parse(*words, config=None):
    return cli.parse(str(ROOT / f"{NAME}.py"), "What it teaches.", config or Config(), list(words))


def test_a_script_s_own_config_holds_unless_a_flag_is_given():
    own = Config(steps=60_000, hidden=512, gamma=0.5)
    args = parse("--steps", "1e4", "--seed", "3", config=own)
    assert args.config == Config(steps=10_000, hidden=512, gamma=0.5, seed=3)
    small = parse("--hidden", "24", "--smoke", config=own)
    assert small.config == Config(**{**cli.SMOKE, "hidden": 24, "gamma": 0.5})
    assert small.final_episodes < args.final_episodes == 100


def test_where_things_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse().run_dir == ROOT / "runs" / NAME / "seed0"
    assert parse("--smoke", "--seed", "4").run_dir == ROOT / "runs" / "smoke" / NAME / "seed4"
    for words in (["--out", "here"], ["--out", "here", "--smoke"]):
        assert parse(*words).run_dir == tmp_path / "here" / NAME / "seed0"
    assert cli.short(tmp_path / "a" / "b.png") == Path("a/b.png")
    assert cli.short(tmp_path.parent / "b.png") == tmp_path.parent / "b.png"
    assert cli.JobFlags(smoke=True).base == ROOT / "runs" / "smoke"
    assert cli.JobFlags(smoke=True, out=tmp_path).base == tmp_path


def end(main, args, monkeypatch, *words):
    """Exit status of a script that was called with these words."""
    monkeypatch.setattr(sys, "argv", ["02_dreamer_cartpole.py", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run(main, args)
    return ended.value.code


def test_ctrl_c_prints_the_command_that_resumes(monkeypatch, capsys):
    def main(args):
        raise KeyboardInterrupt

    words = ["--out", "my out"]
    assert end(main, parse(*words), monkeypatch, "--resume", *words) == 130
    _, script, *again = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (script, again) == ("02_dreamer_cartpole.py", [*words, "--resume"])
    assert end(main, cli.JobFlags(), monkeypatch, "--fresh", "--jobs", "2") == 130
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[2:] == ["--jobs", "2"]


def test_a_refusal_is_a_sentence_and_a_defect_a_traceback(monkeypatch):
    code = end(lambda args: args.config, parse("--steps", "-1"), monkeypatch)
    assert code.startswith("error: Config.steps must be")
    code = end(lambda args: open("/none/such"), parse(), monkeypatch)
    assert code.startswith("error: ") and "/none/such" in code
    with pytest.raises(ValueError, match="invalid literal"):
        cli.run(lambda args: int("x"), parse())


WITHOUT = """
import runpy, sys
sys.modules["stable_baselines3"] = sys.modules["distributed"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("stem", ["07_sample_efficiency", "08_ablations", "train_all"])
def test_help_needs_neither_stable_baselines_nor_dask(stem):
    command = [sys.executable, "-c", WITHOUT, f"{stem}.py", "--help"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (0, "")
    for flag in ("--seeds", "--scheduler", "--jobs", "--publish"):
        assert flag in process.stdout
