import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.service.conftest import RedisServer
from training import doctor as module
from training.__main__ import main
from training.config import read_config
from training.doctor import damaged, findings
from training.doctor import redis as redis_found


@pytest.fixture
def guarded_redis(tmp_path: Path) -> Iterator[str]:
    """Host and port of a real Redis that wants a password."""
    with RedisServer(tmp_path) as server:
        with Redis(port=server.port) as client:
            client.config_set("requirepass", "geheim")
        yield f"127.0.0.1:{server.port}"


def test_redis_is_asked_with_the_password_of_its_address_which_is_not_shown(
    guarded_redis: str,
) -> None:
    right = redis_found(f"redis://:geheim@{guarded_redis}/0")
    wrong = redis_found(f"redis://:falsch@{guarded_redis}/0")
    none = redis_found(f"redis://{guarded_redis}/0")

    assert right == ("OK", "Redis", f"{guarded_redis} answers")
    assert [wrong.grade, none.grade] == ["problem", "problem"]
    assert "mend user and password" in wrong.told
    assert "geheim" not in right.told
    assert "falsch" not in wrong.told


@pytest.mark.parametrize(
    ("url", "grade", "told"),
    [
        (None, "OK", "is not set"),
        ("redis://127.0.0.1:1/0", "problem", "127.0.0.1:1 does not answer"),
        ("http://127.0.0.1:1", "problem", "is no address such as redis://host:6379/0"),
        ("redis://127.0.0.1:port", "problem", "cannot be read"),
        ("unix:///nowhere/redis.sock", "problem", "/nowhere/redis.sock does not answer"),
    ],
)
def test_a_redis_that_does_not_answer_is_a_problem_and_none_at_all_is_not(
    url: str | None, grade: str, told: str
) -> None:
    found = redis_found(url)

    assert found.grade == grade
    assert told in found.told


def test_the_files_of_an_llm_are_looked_through_for_what_is_missing_or_cut(
    tiny_llm: Path, tmp_path: Path
) -> None:
    assert damaged(tiny_llm) is None

    folder = shutil.copytree(tiny_llm, tmp_path / "llm")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert "model.safetensors is damaged" in str(damaged(folder))
    weights.write_bytes(whole)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "second.safetensors"}})
    )
    assert str(damaged(folder)).endswith("second.safetensors is missing")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "config.json").write_text("{")
    assert str(damaged(folder)).endswith("config.json is no JSON")
    (folder / "config.json").unlink()
    assert str(damaged(folder)).endswith("config.json is missing")


def test_another_version_than_was_tested_is_a_warning_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "constraints.txt"
    path.write_text("# tested\nnumpy==0.0.1\nno-such-package==1\n")

    (found,) = module._packages(path)

    assert found.grade == "warning"
    assert "(tested: 0.0.1)" in found.told
    assert "no-such-package" not in found.told


def test_little_memory_and_disk_are_problems_that_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "free_disk", lambda _: 1 << 30)
    monkeypatch.setattr(module, "memory", lambda: (8 << 30, 1 << 30))

    told = {found.what: found for found in findings(None, {})}

    assert told["disk"].grade == told["memory"].grade == "problem"
    assert "make room" in told["disk"].told
    assert "1.0 of 8.0 GiB free" in told["memory"].told


@pytest.mark.parametrize(
    ("flags", "grade", "told"),
    [
        ("avx512_vnni", "OK", "int8, which the CPU multiplies at once"),
        ("avx2", "problem", "llm.dtype is int8: int8 needs a CPU with AVX512_VNNI"),
    ],
)
def test_int8_is_a_problem_where_the_cpu_cannot_multiply_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, grade: str, told: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}")
    monkeypatch.setattr("models.cpu.CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = read_config(Path("training/configs/ml-100k.toml"), ["llm.dtype=int8"], None)

    found = module._dtype(config)

    assert found.grade == grade
    assert told in found.told


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    monkeypatch.setattr(module, "cores", lambda: 1)

    found = module._threads()

    assert found.grade == "warning"
    assert "set OMP_NUM_THREADS=1" in found.told


def test_the_doctor_says_a_line_a_check_and_exits_with_1_where_there_is_a_problem(
    tmp_path: Path,
    tiny_llm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        f'name = "t"\nfolder = "{tmp_path}/run"\ncache = "{tmp_path}/cache"\n'
        f'[data]\nsource = "movielens"\npath = "ml-100k"\n[llm]\npath = "{tiny_llm}"\n'
    )
    monkeypatch.delenv("LLMEMB_REDIS_URL", raising=False)
    monkeypatch.setattr(module, "memory", lambda: (8 << 30, 8 << 30))
    command = ["doctor", "--config", str(config)]

    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines[:-2]} >= {
        "python", "packages", "hardware", "dtype", "threads", "memory", "disk", "LLM", "Redis",
    }  # fmt: skip
    assert lines[-1] == "fit for it"
    assert not list(tmp_path.glob("run*/*"))

    assert main([*command, "--set", "llm.path=/nowhere/llm"]) == 1
    told = capsys.readouterr().out
    assert "problem  LLM         llm.path: there is no folder /nowhere/llm" in told
    assert told.endswith("1 problem to mend first\n")
