"""Batches past the deaths, ends and changes of servers and of disks: no line is lost, and none asked twice."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.batch_files import SECONDS, ended, hand_in, jsonl, line, metric, rows, said, with_answers
from tests.serving import Served, serve

WORDS = "one two three four five six seven eight nine ten"
SLOW: dict[str, Any] = {"slow": {"source": "builtin:echo", "slots": 5, "options": {"echo": {"decode_rate": 200}}}}
LINES = 40


def lines(count: int = LINES, text: str = WORDS) -> bytes:
    return jsonl(line(str(number), f"{number} {text}", "slow") for number in range(count))


def whole(client: openai.OpenAI, id: str, count: int = LINES) -> None:
    batch = ended(client, id)
    assert (batch.status, batch.errors) == ("completed", None)
    answers = rows(client, batch.output_file_id)
    assert {row["custom_id"]: said(row) for row in answers} == {str(n): f"{n} {WORDS}" for n in range(count)}
    assert len(answers) == count
    assert not rows(client, batch.error_file_id)


def written(cache: Path) -> int:
    """Whole lines of answers that are on the disk."""
    return sum(path.read_bytes().count(b"batch_req_") // 2 for path in (cache / "files").iterdir())


def change(served: Served, to: Callable[[dict[str, Any]], Any]) -> None:
    """The config, in one step."""
    port = served.root.rpartition(":")[2]
    file = served.cache.parent / f"config-{port}.yaml"
    config = json.loads(file.read_text())
    to(config)
    (file.parent / "new").write_text(json.dumps(config))
    (file.parent / "new").rename(file)


def test_after_a_kill_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    with serve(tmp_path, SLOW) as killed:
        id = hand_in(killed.client, lines()).id
        with_answers(killed.client, id, 5)
        os.kill(killed.process.pid, signal.SIGKILL)
        killed.process.wait()
    before = written(tmp_path / "cache")
    output = next(path for path in (tmp_path / "cache" / "files").iterdir() if b"batch_req_" in path.read_bytes())
    with output.open("ab") as file:
        file.write(b'{"id":"batch_req_1","custom_id":"39","respon')  # as far as a kill may let it come
    with serve(tmp_path, SLOW) as served:
        whole(served.client, id)
        assert metric(served, "requests_total", "slow") == LINES - before < LINES


def test_it_ends_as_it_was_to_end_whenever_the_server_is_killed(tmp_path: Path) -> None:
    """In each of these moments: before it was checked, while it was cancelled."""
    with serve(tmp_path, SLOW) as killed:
        first = hand_in(killed.client, lines(1000)).id
        with_answers(killed.client, first, 2)
        second = hand_in(killed.client, lines(3)).id
        killed.client.batches.cancel(first)
        os.kill(killed.process.pid, signal.SIGKILL)
        killed.process.wait()
    with serve(tmp_path, SLOW) as served:
        batch = ended(served.client, first)
        assert batch.status == "cancelled"
        assert len(rows(served.client, batch.output_file_id)) >= 2
        whole(served.client, second, 3)
        assert not list((tmp_path / "cache" / "locks").iterdir())


def test_a_server_that_is_told_to_stop_leaves_the_rest_to_the_next(tmp_path: Path) -> None:
    with serve(tmp_path, SLOW) as served:
        id = hand_in(served.client, lines()).id
        with_answers(served.client, id, 5)
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(SECONDS)
        served.wait_for("Application shutdown complete", SECONDS)
        assert f"batch '{id}' is left for later: the server is shutting down" in "".join(served.log)
        assert not [one for one in served.log if "Traceback" in one]
    before = written(tmp_path / "cache")
    with serve(tmp_path, SLOW) as served:
        whole(served.client, id)
        assert metric(served, "requests_total", "slow") == LINES - before


def test_of_two_servers_on_one_cache_one_runs_a_batch_and_the_other_inherits_it(tmp_path: Path) -> None:
    with serve(tmp_path, SLOW) as heir, serve(tmp_path, SLOW) as killed:
        id = hand_in(killed.client, lines(200)).id
        with_answers(killed.client, id, 60)  # some looks for batches of the other
        assert heir.client.batches.retrieve(id).status == "in_progress"
        assert metric(heir, "requests_total", "slow") == 0
        os.kill(killed.process.pid, signal.SIGKILL)
        killed.process.wait()
        before = written(tmp_path / "cache")
        whole(heir.client, id, 200)
        assert metric(heir, "requests_total", "slow") == 200 - before


def test_a_batch_is_cancelled_at_any_server(tmp_path: Path) -> None:
    with serve(tmp_path, SLOW) as other, serve(tmp_path, SLOW) as runs:
        id = hand_in(runs.client, lines(2000)).id
        with_answers(runs.client, id, 1)
        other.client.batches.cancel(id)
        assert ended(other.client, id).status == "cancelled"


def test_a_batch_waits_for_a_model_or_a_key_that_the_config_has_lost(tmp_path: Path) -> None:
    with serve(tmp_path, SLOW | {"echo": {"source": "builtin:echo"}}, api_keys=["mine", "root"]) as served:
        mine = openai.OpenAI(base_url=f"{served.root}/v1", api_key="mine", max_retries=0)
        id = hand_in(mine, lines()).id
        with_answers(mine, id, 2)
        change(served, lambda config: config["models"].pop("slow"))
        served.wait_for("is left for later", SECONDS)
        assert mine.batches.retrieve(id).status == "in_progress"
        change(served, lambda config: config["models"].update(SLOW))
        with_answers(mine, id, LINES // 2)
        change(served, lambda config: config["server"].update(api_keys=["root"]))
        served.wait_for("the API key that made it is no longer one", SECONDS)
        change(served, lambda config: config["server"].update(api_keys=["mine", "root"]))
        served.wait_for("1 keys before, 2 now", SECONDS)
        whole(mine, id)


def test_a_full_disk_ends_a_batch_and_loses_nothing(tmp_path: Path) -> None:
    """The limit on a file's size stands in for the disk's: the write fails in the middle, as on a full one."""
    text = "a" * 3000
    models = {"slow": {"source": "builtin:echo"}}
    with serve(tmp_path, models) as served:
        id = hand_in(served.client, lines(400, text)).id
        with_answers(served.client, id, 2)
        process = psutil.Process(served.process.pid)
        process.rlimit(psutil.RLIMIT_FSIZE, (300_000, psutil.RLIM_INFINITY))
        batch = ended(served.client, id)
        assert batch.status == "failed"
        assert batch.errors and batch.errors.data
        assert batch.errors.data[0].code == "disk_failed"
        assert "answers cannot be written" in (batch.errors.data[0].message or "")
        answers = rows(served.client, batch.output_file_id)
        assert batch.request_counts and batch.request_counts.completed == len(answers)
        assert all(said(row) == f"{row['custom_id']} {text}" for row in answers)
        assert sum(len(json.dumps(row)) for row in answers) > 250_000
        process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        assert ended(served.client, hand_in(served.client, lines(3)).id).status == "completed"


def test_files_take_no_more_room_than_the_config_gives(tmp_path: Path) -> None:
    text = "a" * 100_000
    models = {"slow": {"source": "builtin:echo", "context": 200_000}}
    with serve(tmp_path, models) as served:
        change(served, lambda config: config.update(batch_disk="1MiB"))
        served.wait_for("batch_disk", SECONDS)
        with pytest.raises(openai.BadRequestError, match="'batch_disk', 1MiB"):
            hand_in(served.client, lines(11, text))
        id = hand_in(served.client, lines(6, text)).id
        batch = ended(served.client, id)
        assert batch.status == "failed"
        assert batch.errors and batch.errors.data
        assert batch.errors.data[0].code == "storage_full"
        assert 0 < len(rows(served.client, batch.output_file_id)) < 6
        assert sum(path.stat().st_size for path in (tmp_path / "cache" / "files").iterdir()) < 1 << 20


def test_what_a_kill_left_of_an_upload_is_no_file(tmp_path: Path) -> None:
    with serve(tmp_path, SLOW) as killed:
        id = killed.client.files.create(file=("a", b"whole\n"), purpose="batch").id
        host, port = killed.root.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as uploading:
            head = (
                "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=x\r\n"
                "content-length: 10000000\r\n\r\n--x\r\n"
                'content-disposition: form-data; name="file"; filename="half"\r\n\r\n'
            )
            uploading.sendall(head.encode() + b"a" * 5_000_000)
            folder = tmp_path / "cache" / "files"
            while sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000:
                pass
            os.kill(killed.process.pid, signal.SIGKILL)
            killed.process.wait()
    with serve(tmp_path, SLOW) as served:
        assert [one.id for one in served.client.files.list()] == [id]
