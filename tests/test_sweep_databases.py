"""The database of `zotune sweep`: folders of any name, files that are damaged, locked or cannot be written."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from command_runs import shelf, workshop
from test_full_disk import disk, fill
from test_sweep import SHARED, sweep

from zotune.cli import main
from zotune.config import ConfigError
from zotune.config.sweep import SweepConfig

optuna = pytest.importorskip("optuna", reason="zotune sweep needs optuna; install zotune[sweep].")
from zotune.sweep import database, sharing  # noqa: E402
from zotune.sweep.database import FILE, at_failure, storage_of  # noqa: E402

__all__ = ["disk", "shelf", "workshop"]
SHORT = ("--algorithms", "ZO", "--lr", "1e-3", "--runs", "1", "--budget_queries", "32", "--prune", "none")
NAMES = ("q?1", "a b", "a'b", 'a"b', "a#b", "a%b", "%41", "größe", "-x", "{x}", "x?mode=ro&uri=true", "file:x", "a@b:c")


@pytest.mark.parametrize("name", NAMES)
def test_the_database_is_in_its_folder_whatever_that_is_called(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name
    folder.mkdir()
    for place in (folder, folder.relative_to(tmp_path)):
        optuna.create_study(storage=storage_of(SweepConfig(), place), study_name="a", load_if_exists=True)
    with closing(sqlite3.connect(folder / FILE)) as file:
        assert file.execute("SELECT study_name FROM studies").fetchall() == [("a",)]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_two_searches_in_folders_with_a_question_mark_share_nothing(workshop, capfd, jobs):
    for name in ("q?1", "q?2"):
        assert main(["sweep", *SHARED, *SHORT, "--confirmations", "0", "--jobs", jobs, "--out", name]) == 0
        assert (workshop / name / FILE).is_file()
    assert sorted(path.name for path in workshop.iterdir()) == ["q?1", "q?2"]
    capfd.readouterr()


def change(path, *statements):
    with closing(sqlite3.connect(path)) as file:
        for statement in statements:
            file.execute(statement)
        file.commit()


def as_dead(path):
    """Let the running trials be those of a process that is no more, as the one that failed would be."""
    storage = optuna.storages.get_storage(f"sqlite:///{path}")
    for trial in optuna.load_study(study_name="model/sst2/ZO", storage=storage).trials:
        if trial.state.name == "RUNNING":
            storage.set_trial_user_attr(trial._trial_id, "process", f"{sharing._MACHINE}:{2**22 + 1}:0")


@pytest.mark.parametrize(
    ("jobs", "table"),
    [("1", "trial_intermediate_values"), ("1", "trial_user_attributes"), ("2", "trial_intermediate_values")],
)
def test_a_database_that_fails_during_a_run_is_named_and_the_search_goes_on(workshop, capfd, jobs, table):
    words = ["sweep", *SHARED, *SHORT, "--confirmations", "0", "--out", "out", "--jobs", jobs]
    assert main(words) == 0
    lost = "BEGIN INSERT INTO nowhere VALUES (1); END"
    change(workshop / "out" / FILE, f"CREATE TRIGGER lost BEFORE INSERT ON {table} {lost}")
    capfd.readouterr()
    words[words.index("--runs") + 1] = "2"
    assert main(words) == 1
    err = capfd.readouterr().err
    sentence = (
        "The database out/sweep.db cannot be read (no such table: main.nowhere). Restore it, or give another --out."
    )
    assert sentence in err
    assert "Traceback" not in err
    change(workshop / "out" / FILE, "DROP TRIGGER lost")
    as_dead(workshop / "out" / FILE)
    assert main(words) == 0
    assert "[2/2]" in capfd.readouterr().err


def test_a_database_on_a_full_disk_is_named_and_the_search_goes_on(workshop, disk, capsys, monkeypatch):
    from zotune.sweep import watching

    words = (*SHORT, "--out", str(disk / "out"))
    sweep(capsys, *words)
    words = tuple("3" if word == "1" else word for word in words)
    real = watching.executed

    def executed(*given):
        real(*given)
        fill(disk)

    with monkeypatch.context() as patch:
        patch.setattr(watching, "executed", executed)
        _, err = sweep(capsys, *words, code=1)
    assert "sweep.db cannot be written (" in err
    assert "the same command goes on." in err
    (disk / "filler").unlink()
    as_dead(disk / "out" / FILE)
    sweep(capsys, *words)


def test_a_database_that_is_damaged_inside_is_named(workshop, capsys):
    words = (*SHORT, "--out", "out")
    sweep(capsys, *words)
    path = workshop / "out" / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    code = main(["sweep", *SHARED, *words])
    err = capsys.readouterr().err
    assert code in (1, 2)
    assert "The database out/sweep.db cannot be" in err
    assert "(database disk image is malformed). Restore it, or give another --out." in err


@pytest.mark.parametrize("content", [b"x" * 5000, b"SQLite format 3\0" + b"x" * 5000, b"SQLite format 3\0"])
def test_a_file_that_is_no_database_is_named(workshop, capsys, content):
    (workshop / "out").mkdir()
    (workshop / "out" / FILE).write_bytes(content)
    _, err = sweep(capsys, *SHORT, "--out", "out", code=2)
    assert (
        "The database out/sweep.db cannot be opened (file is not a database). Restore it, or give another --out." in err
    )


def test_a_database_that_lost_its_end_is_named(workshop, capsys):
    sweep(capsys, *SHORT, "--out", "out")
    path = workshop / "out" / FILE
    path.write_bytes(path.read_bytes()[:20_000])
    code = main(["sweep", *SHARED, *SHORT, "--out", "out"])
    err = capsys.readouterr().err
    assert code in (1, 2)
    assert "(database disk image is malformed). Restore it, or give another --out." in err


def test_a_locked_database_is_named(workshop, capsys):
    sweep(capsys, *SHORT, "--out", "out")
    with closing(sqlite3.connect(workshop / "out" / FILE)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        _, err = sweep(capsys, *SHORT, "--out", "out", code=2)
    sentence = "The database out/sweep.db cannot be opened (database is locked). Another program holds it; try again."
    assert sentence in err


def test_the_first_error_is_not_buried_by_one_of_a_note():
    def note():
        noted.append(1)
        raise optuna.exceptions.StorageInternalError("second")

    noted = []
    with pytest.raises(optuna.exceptions.StorageInternalError, match="first"), at_failure(note):
        raise optuna.exceptions.StorageInternalError("first")
    with pytest.raises(KeyboardInterrupt), at_failure(note):
        raise KeyboardInterrupt
    with at_failure(note):
        pass
    assert len(noted) == 2


def test_many_that_make_the_tables_of_one_new_database_at_once_all_get_it(tmp_path):
    config = SweepConfig(storage=f"sqlite:///{tmp_path / 'shared.db'}")
    with ThreadPoolExecutor(8) as many:
        found = list(many.map(lambda _: storage_of(config, tmp_path), range(8)))
    assert len(found) == 8
    assert all(one.get_all_studies() == [] for one in found)


def test_a_table_that_another_machine_has_just_made_is_no_failure(tmp_path, monkeypatch):
    tried = []

    def late(url):
        tried.append(url)
        if len(tried) == 1:
            raise ValueError("UNIQUE constraint failed: alembic_version.version_num")
        return optuna.storages.InMemoryStorage()

    monkeypatch.setattr(optuna.storages, "get_storage", late)
    monkeypatch.setattr(database, "_PAUSE", 0.0)
    config = SweepConfig(storage="mysql://there/db")
    assert storage_of(config, tmp_path).get_all_studies() == []
    assert len(tried) == 2
    tried.clear()
    monkeypatch.setattr(optuna.storages, "get_storage", lambda _: late(tried.clear()))
    with pytest.raises(ConfigError, match="cannot be opened"):
        storage_of(config, tmp_path)


def test_processes_that_end_a_shared_search_at_once_all_write_what_they_found(workshop):
    words = ["-m", "zotune", "sweep", *SHARED, *SHORT, "--confirmations", "0", "--out", "out"]
    processes = [
        subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ends = [(process.communicate(), process.returncode) for process in processes]
    assert [code for _, code in ends] == [0, 0, 0], ends
    assert all(out.strip() == "out/best.json" for (out, _), _ in ends)
