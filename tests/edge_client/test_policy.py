"""The owner's policy: how it is read, and what it says of a day's use."""

from pathlib import Path

import pytest

from bnncore.durable import WRITTEN, replace_file
from edge_client.cli import main
from edge_client.daily_use import DailyUse, Use, read_use
from edge_client.errors import PolicyError, TaskDeclinedError
from edge_client.hours import read_hours
from edge_client.policy import Policy, read_policy
from edge_client.settings import ClientSettings

WHOLE = """
[jobs]
allow = ["digits-*", "har-1"]

[task]
max_memory = "64MiB"
max_model = 500_000
max_seconds = 3600
max_steps = 1000
max_pause = 60

[device]
hours = "22:00-06:00"
cpu_share = 50
max_temperature = 70
mains_only = true
unmetered_only = true

[day]
max_down = "1GiB"
max_up = "50MiB"
max_written = "2GiB"

[privacy]
min_cohort = 10
require_secure_aggregation = true
max_epsilon = 8
delta = 1e-6
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text)
    return path


def test_every_rule_is_read(tmp_path: Path) -> None:
    policy = read_policy(write(tmp_path, WHOLE))

    assert policy == Policy(
        jobs=("digits-*", "har-1"),
        max_memory=64 << 20,
        max_model=500_000,
        max_seconds=3600.0,
        max_steps=1000,
        max_pause=60.0,
        hours=read_hours("22:00-06:00"),
        cpu_share=50.0,
        max_temperature=70.0,
        mains_only=True,
        unmetered_only=True,
        max_down=1 << 30,
        max_up=50 << 20,
        max_written=2 << 30,
        min_cohort=10,
        require_secure_aggregation=True,
        max_epsilon=8.0,
        delta=1e-6,
    )
    assert policy.allows_job("digits-0a1b")
    assert not policy.allows_job("faces-0a1b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[task]\nmax_memory = '64 bananas'\n", "line 2: max_memory in .task. must be an amount such as 64MiB"),
        (f"[day]\nmax_up = '{'9' * 400}'\n", "line 2: max_up in .day. must be an amount"),
        ("# mine\n\n[task]\nmax_seconds = 0\n", "line 4: max_seconds in .task. must be seconds, more than 0, got 0"),
        ("[task]\nmax_steps = 1.5\n", "line 2: max_steps in .task. must be a whole number"),
        ("[task]\nmax_steps = true\n", "line 2: max_steps"),
        ("[device]\nhours = '22-6'\n", "line 2: hours in .device. must be spans of the day such as 22:00-06:00"),
        ("[device]\ncpu_share = 0\n", "line 2: cpu_share in .device. must be percent, above 0 and at most 100, got 0"),
        ("[device]\nmax_temperature = '70'\n", "line 2: max_temperature in .device. must be degrees Celsius"),
        ("[jobs]\nallow = 'digits'\n", "line 2: allow in .jobs. must be a list"),
        ("[day]\nmax_down = '1GiB'\nmax_dwon = 1\n", "line 3: max_dwon in .day. is no rule that this version keeps"),
        ("[privacy]\nmax_epsilon = 0\n", "line 2: max_epsilon in .privacy. must be a number above 0, got 0"),
        ("[privacy]\nmax_epsilon = inf\n", "line 2: max_epsilon in .privacy. must be a number above 0, got inf"),
        ("[privacy]\ndelta = 1\n", "line 2: delta in .privacy. must be a number between 0 and 1 such as 1e-5, got 1"),
        ("[privacy]\nmin_noise = 3\n", "line 2: min_noise in .privacy. is no rule that this version keeps"),
        ("[privacy]\nrequire_secure_aggregation = 1\n", "line 2: .* must be true or false, got 1"),
        ("[secrecy]\n", "line 1: there is no section .secrecy.; known are jobs, task, device, day, privacy"),
        ("task.max_steps = -1\n", "line 1: max_steps"),
        ("[task\n", "line 1"),
        ("task = 3\n", "there is no section .task."),
    ],
)
def test_a_bad_policy_is_an_error_with_line_and_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words) as error:
        read_policy(write(tmp_path, text))
    assert str(tmp_path / "policy.toml") in str(error.value)


def test_a_policy_that_is_named_must_be_there_and_the_usual_one_is_found(tmp_path: Path) -> None:
    given, environ = {"server": "h:1", "data": "/d"}, {"XDG_CONFIG_HOME": str(tmp_path)}

    assert ClientSettings.resolve(given, environ).policy is None
    (tmp_path / "bitfleet").mkdir()
    usual = write(tmp_path / "bitfleet", WHOLE)
    assert ClientSettings.resolve(given, environ).policy == usual
    named = ClientSettings.resolve({**given, "policy": "/nowhere.toml"}, environ).policy
    with pytest.raises(PolicyError, match="/nowhere"):
        read_policy(named)


def test_the_rules_that_hold_are_shown_with_what_was_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = ["--state", str(tmp_path / "state")]

    assert main(["policy", "--policy", str(write(tmp_path, WHOLE)), *state]) == 0
    text = capsys.readouterr().out
    assert main(["policy", *state]) == 0
    without = capsys.readouterr().out
    assert main(["policy", "--policy", str(write(tmp_path, "[task]\nmax_steps = -1\n")), *state]) == 3
    error = capsys.readouterr().err

    assert "max_down                   1,073,741,824 a day; 0 today" in text
    assert "digits-*, har-1" in text
    assert "max_seconds                86,400" in without
    assert "require_secure_aggregation true" in text
    assert "max_epsilon                8 over all jobs; 0 is spent" in text
    assert "delta                      1e-06" in text
    assert "max_epsilon                any over all jobs; 0 is spent" in without
    assert "line 2" in error


def test_budgets_hold_over_restarts_and_until_the_day_is_over(tmp_path: Path) -> None:
    path, day = tmp_path / "use.json", ["2026-01-01T10:00:00"]
    policy = Policy(max_down=1000, max_up=500)
    first = DailyUse(path, policy, now=lambda: day[0])
    first.take_down(600)
    first.take_up(400)
    first.save()

    second = DailyUse(path, policy, now=lambda: day[0])
    second.check_task(400)
    with pytest.raises(TaskDeclinedError, match="lets 1000 bytes be downloaded in a day; 600 were today, and 401"):
        second.check_task(401)
    with pytest.raises(TaskDeclinedError, match="sent in a day"):
        second.check_up(101)
    day[0] = "2026-01-02T00:00:01"
    second.check_task(1000)
    second.check_up(500)
    assert second.today == Use("2026-01-02")


def test_a_task_is_expected_to_write_as_much_as_the_largest_of_the_day(tmp_path: Path) -> None:
    use = DailyUse(tmp_path / "use.json", Policy(max_written=100_000))

    with replace_file(tmp_path / "file") as file:
        file.write(bytes(5000))
    use.note_task(use.take_written(by_trainer=30_000))

    assert use.today.written == 8192 + 30_000
    use.check_task(60_000)
    with pytest.raises(TaskDeclinedError, match="written in a day"):
        use.check_task(62_000)
    use.take_written(by_trainer=40_000)
    with pytest.raises(TaskDeclinedError, match="and 38192 more are too many"):
        use.check_task()


@pytest.mark.parametrize("text", ["", "[]", '{"day": 3}', '{"down": -1}', '{"down": "x"}', '{"more": 1}', "[" * 9999])
def test_counts_that_the_disk_damaged_begin_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "use.json"
    path.write_text(text)

    assert read_use(path).down == 0
    assert DailyUse(path, Policy()).today.up == 0


def test_what_is_written_is_counted_in_whole_blocks(tmp_path: Path) -> None:
    before = WRITTEN.num_bytes
    for size in (0, 1, 4096, 4097):
        with replace_file(tmp_path / "file") as file:
            file.write(bytes(size))

    assert WRITTEN.num_bytes - before == 4096 * (0 + 1 + 1 + 2)
