"""The benchmark: what it times, how, and the file that it writes."""

import json
from dataclasses import replace

from conftest import tiny_config

from lab import benchmark

NUMBERS = benchmark.NUMBERS


def test_numbers_go_to_a_file_and_tables_to_the_screen(tmp_path, monkeypatch, capsys):
    threads_used = []
    shapes = {"matched": (NUMBERS, tiny_config(hidden=20))}
    shapes["image"] = replace(NUMBERS, images=((8, 8, 1),)), tiny_config(depth=2)
    monkeypatch.setattr(benchmark, "SHAPES", shapes)
    monkeypatch.setattr(benchmark, "measure_acting", lambda _, config, __: 40.0 * config.envs)
    monkeypatch.setattr(benchmark, "tune_cpu", threads_used.append)
    benchmark.main(json=tmp_path / "benchmark.json")
    data = json.loads((tmp_path / "benchmark.json").read_text())
    assert threads_used == [2, 1]  # acting is measured on one
    for shape in shapes:
        times = data["shapes"][shape]
        assert set(times["update_ms"]) == set(times["cpu_ms"]) == {"1", "2"}
        assert all(ms > 0 for ms in times["update_ms"].values())
    assert data["cpu"] and "torch" in data["versions"]

    printed = capsys.readouterr().out
    ms, cpu = (data["shapes"]["matched"][key]["1"] for key in ("update_ms", "cpu_ms"))
    assert f"| matched | 1 | {ms:.1f} | {cpu:.1f} | {data['gflops']['1']:.1f} |" in printed
    assert "| 8 sync | 320 | 8.0 x |" in printed
    assert "40 environment steps per second" in printed
