"""Files of trajectories: written before the weights are, continued, damaged, torn and forged."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trajectory_runs import build, loss_at, model_of, record, train

import zotune.trajectory.writer as writer
from zotune import MeZO, digest
from zotune.optimizer import ZerothOrder
from zotune.trajectory import Recorder, Step, TrajectoryError, read, replay
from zotune.trajectory.frames import FIRST, MAGIC, Frames, encode, packed


def small(path: Path, steps: int = 4, events: bool = True) -> list[int]:
    """A file with every kind of record; and where its steps and events end."""
    model = model_of()
    optimizer = build("MeZO", model, queries=2, clip=None)
    ends = [0]
    with Recorder(path, optimizer) as recorder:
        ends.append(path.stat().st_size)
        for step in range(steps):
            model[0].requires_grad_(step != 2)
            optimizer.param_groups[0]["lr"] = 1e-3 if step < 2 else 2e-3
            optimizer.tell([1.0 + step, 1.5])
            ends.append(path.stat().st_size)
            if events and step == 1:
                recorder.event("evaluation", accuracy=0.5)
                ends.append(path.stat().st_size)
    return ends


def frames_of(path: Path) -> list[tuple[str, bytes]]:
    with path.open("rb") as file:
        return [(f.kind, f.payload) for f in Frames(file, path.stat().st_size)]


def forge(path: Path, frames: list[tuple[str, bytes]]) -> Path:
    """A file of these frames, with the right checksums."""
    data, checksum = bytearray(MAGIC), FIRST
    for kind, payload in frames:
        frame, checksum = encode(kind, payload, checksum)
        data += frame
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------------------------------------ write-ahead


def test_a_step_is_in_the_file_before_a_weight_is_touched(tmp_path: Path) -> None:
    model = model_of()
    optimizer = build("MeZO", model)
    before, path = digest(model.parameters()), tmp_path / "run.zo"
    with Recorder(path, optimizer):
        seen: list[tuple[int, int]] = []
        optimizer.register_tell_hook(lambda *_: seen.append((read(path).steps, digest(model.parameters()))), last=True)
        train(optimizer, model, 1)
    assert seen == [(1, before)]
    assert digest(model.parameters()) != before


def test_a_program_killed_in_the_middle_of_an_update(tmp_path: Path) -> None:
    """Its weights are lost; the file has the step, and its losses rebuild what the weights were to be."""
    code = """
        import os, signal, sys
        from trajectory_runs import build, model_of, train
        from zotune.rules import SGD
        from zotune.trajectory import Recorder
        step = SGD.step
        def kill(self, slot, terms, **options):
            step(self, slot, terms, **options)
            if optimizer.t == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        SGD.step = kill
        model = model_of()
        optimizer = build("MeZO", model)
        Recorder(sys.argv[1], optimizer)
        train(optimizer, model, 9)
    """
    path = tmp_path / "run.zo"
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], env={**os.environ, "PYTHONPATH": here}, check=False
    )
    assert ended.returncode == -9
    model, again = model_of(), model_of()
    train(build("MeZO", model), model, 4)
    assert read(path).problem is None
    assert replay(path, again.named_parameters()).t == 4
    assert digest(again.parameters()) == digest(model.parameters())


def full_disk(recorder: Recorder, monkeypatch: pytest.MonkeyPatch, room: int, part: bool) -> list[int]:
    """The disk takes so many bytes more, of the last record a part or nothing."""
    file, left = recorder._file, [room]

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def write(self, data: memoryview) -> int:
            if len(data) > left[0] and (not part or left[0] == 0):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = file.write(data[: left[0]])
            left[0] -= written
            return written

    monkeypatch.setattr(recorder, "_file", Full())
    return left


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("room", [0, 1, 20, 60])
def test_a_full_disk_stops_the_step_and_it_goes_on_later(
    room: int, part: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.zo"
    model, straight = model_of(), model_of()
    train(build("MeZO", straight), straight, 12)
    optimizer = build("MeZO", model)
    with Recorder(path, optimizer) as recorder:
        train(optimizer, model, 8)  # the next record has three frames
        whole, weights = path.read_bytes(), digest(model.parameters())
        left = full_disk(recorder, monkeypatch, room, part)
        model[0].requires_grad_(False)
        optimizer.param_groups[0]["lr"] = 1.0  # settings that are set back before it goes on
        optimizer.estimate(loss_at(model, 8))
        for _ in range(2):
            with pytest.raises(TrajectoryError, match=r"cannot be written \(No space left on device\): make room"):
                optimizer.step()
        assert (path.read_bytes(), digest(model.parameters()), optimizer.t) == (whole, weights, 8)
        with pytest.raises(TrajectoryError, match="No space"):
            recorder.event("evaluation", text="x" * 100)
        assert path.read_bytes() == whole
        left[0] = 10**6
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"]
        optimizer.step()
        train(optimizer, model, 12)
    assert digest(model.parameters()) == digest(straight.parameters())
    again = model_of()
    replay(path, again.named_parameters())
    assert digest(again.parameters()) == digest(model.parameters())


@pytest.mark.parametrize("other", [False, True], ids=["the same", "other losses"])
def test_a_step_that_was_recorded_and_not_made(other: bool, tmp_path: Path) -> None:
    """Only what is made in the end counts."""
    model, again = model_of(), model_of()
    optimizer = build("MeZO", model)
    with Recorder(tmp_path / "run.zo", optimizer):
        train(optimizer, model, 3)

        def refuse(*_: Any) -> None:
            raise KeyboardInterrupt

        handle = optimizer.register_tell_hook(refuse, last=True)
        with pytest.raises(KeyboardInterrupt):
            train(optimizer, model, 4)
        assert (read(tmp_path / "run.zo").steps, optimizer.t) == (4, 3)
        handle.remove()
        if other:
            optimizer._sums = []
            optimizer.estimate(loss_at(model, 77))
        optimizer.step()
        train(optimizer, model, 6)
    assert read(tmp_path / "run.zo").steps == 6
    replay(tmp_path / "run.zo", again.named_parameters())
    assert digest(again.parameters()) == digest(model.parameters())


def test_a_new_file_has_its_name_only_with_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(writer.os, "fsync", fail)
    with pytest.raises(TrajectoryError, match=r"cannot be written \(broken\)"):
        Recorder(tmp_path / "run.zo", build("MeZO", model_of()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["no/such/folder/run.zo", "."])
def test_a_file_that_cannot_be(place: str, tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match=r"cannot be written|is no file"):
        Recorder(tmp_path / place, build("MeZO", model_of()))


def test_recording_begins_before_the_first_step_with_all_parameters(tmp_path: Path) -> None:
    model = model_of()
    late = torch.nn.Parameter(torch.ones(3))
    optimizer = MeZO(model.named_parameters(), lr=1e-3)
    with Recorder(tmp_path / "run.zo", optimizer):
        train_one = loss_at(model, 0)
        optimizer.step(train_one)
        optimizer.add_param_group({"params": [("late", late)]})
        with pytest.raises(TrajectoryError, match="parameters have come to the optimizer since recording began"):
            optimizer.step(train_one)
        assert (optimizer.t, read(tmp_path / "run.zo").steps) == (1, 1)
    with pytest.raises(TrajectoryError, match="begin recording before the first step"):
        Recorder(tmp_path / "other.zo", optimizer)
    twice = MeZO([("a", torch.nn.Parameter(torch.ones(2))), ("b", late)], lr=1.0)
    twice.param_groups[0]["param_names"] = ["a", "a"]
    with pytest.raises(TrajectoryError, match="two parameters of the optimizer have one name"):
        Recorder(tmp_path / "other.zo", twice)


# ------------------------------------------------------------------------------------------------ continued


@pytest.mark.parametrize("cut", range(61))
def test_a_file_torn_anywhere_is_continued(cut: int, tmp_path: Path) -> None:
    """From the checkpoint before; the file is in the end what it would have been."""
    path = tmp_path / "run.zo"
    model, _ = record(path, steps=10)
    whole = path.read_bytes()
    ends = [at for at in _ends(path) if at <= len(whole) - cut]
    os.truncate(path, len(whole) - cut)
    torn = read(path)
    assert torn.size == ends[-1]
    assert (torn.problem is None) == (torn.cut == 0)
    assert torn.torn == (torn.cut > 0)
    again = model_of()
    optimizer = build("MeZO", again)
    train(optimizer, again, 4)
    with Recorder(path, optimizer) as recorder:
        recorder.event("evaluation", not_written="since the file holds this step")
        train(optimizer, again, 10)
    assert path.read_bytes() == whole
    assert digest(again.parameters()) == digest(model.parameters())


def _ends(path: Path) -> list[int]:
    with path.open("rb") as file:
        return [f.end for f in Frames(file, path.stat().st_size) if f.kind not in "AG"]


def test_what_is_made_again_must_be_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.zo"
    record(path, steps=10)

    def resumed(change: Callable[[torch.nn.Sequential, ZerothOrder], object], **options: Any) -> None:
        model = model_of()
        optimizer = build("MeZO", model, **options)
        train(optimizer, model, 4)
        with Recorder(path, optimizer):
            train(optimizer, model, 7)
            change(model, optimizer)
            optimizer.step(loss_at(model, 7))

    whole = path.read_bytes()
    resumed(lambda *_: None)
    for change in (
        lambda model, _: model[2].bias.data.add_(1.0),
        lambda _, optimizer: optimizer.param_groups[0].update(lr=0.5),
        lambda _, optimizer: optimizer.param_groups[1].update(weight_decay=0.5),
        lambda model, _: model[0].requires_grad_(False),
    ):
        with pytest.raises(TrajectoryError, match="step 7 differs from the one that"):
            resumed(change)
    with pytest.raises(TrajectoryError, match="other arguments"):
        resumed(lambda *_: None, seed=8)
    model = model_of()
    optimizer = build("MeZO", model)
    train(optimizer, model, 11)
    with pytest.raises(TrajectoryError, match="ends with step 10, the optimizer has made 11"):
        Recorder(path, optimizer)
    for other, field in (("FZOO", "method"), ("MeZO", "parameters")):
        with pytest.raises(TrajectoryError, match=f"other {field}"):
            Recorder(path, build(other, model_of(wide=5) if field == "parameters" else model_of()))
    assert path.read_bytes() == whole


def test_an_optimizer_that_is_set_back_while_it_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "run.zo"
    model = model_of()
    optimizer = build("MeZO", model)
    with Recorder(path, optimizer):
        train(optimizer, model, 3)
        state, weights = optimizer.state_dict(), [p.detach().clone() for p in model.parameters()]
        for _ in range(2):
            train(optimizer, model, 9)
            late = optimizer.state_dict()
            optimizer.load_state_dict(state)
            for p, saved in zip(model.parameters(), weights, strict=True):
                p.data.copy_(saved)
        assert read(path).steps == 9
        with pytest.raises(TrajectoryError, match="step 3 differs"):
            optimizer.step(loss_at(model, 50))
        late["zotune"]["t"] = 12
        optimizer.load_state_dict(late)
        with pytest.raises(TrajectoryError, match="ends with step 9, the optimizer has made 12"):
            optimizer.step(loss_at(model, 12))


# ------------------------------------------------------------------------------------------------ damage


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """In the header the file is refused; behind it, what comes before the damage counts, and no more."""
    path = tmp_path / "run.zo"
    ends = small(path)
    whole, sound = path.read_bytes(), list(read(path).items())
    for at in range(len(whole)):
        for bit in range(8) if at >= ends[1] else (at % 8,):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            try:
                found = read(path)
            except TrajectoryError:
                assert at < ends[1]
                continue
            assert at >= ends[1]
            assert found.size == max(end for end in ends if end <= at)
            assert not found.torn, (at, bit)
            assert "is damaged at byte" in (found.problem or "")
            items = list(found.items())
            assert items == sound[: len(items)]
            assert len(items) == ends.index(found.size) - 1


def test_every_torn_end_is_told_from_damage(tmp_path: Path) -> None:
    path = tmp_path / "run.zo"
    ends = small(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size < ends[1]:
            with pytest.raises(TrajectoryError, match=r"is empty|is not a trajectory|is not whole"):
                read(path)
            continue
        found = read(path)
        assert found.size == max(end for end in ends if end <= size)
        assert found.torn == (size not in ends)
        assert ("of a step that was being written" in (found.problem or "")) == found.torn


def test_whole_frames_lost_doubled_exchanged_or_from_another_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one.zo", tmp_path / "two.zo"
    ends = small(one, events=False)
    model = model_of()
    with Recorder(two, build("MeZO", model, queries=2, clip=None, seed=8)) as recorder:
        for step in range(4):
            recorder._optimizer.tell([1.0 + step, 1.5])
    data, other = one.read_bytes(), two.read_bytes()
    cuts = [data[a:b] for a, b in zip([0, *ends[1:]], [*ends[1:], len(data)], strict=True)][:-1]
    step = other[read(two).header and _ends(two)[0] : _ends(two)[1]]
    header, first, second, *rest = cuts
    cases = {
        "lost": [header, second, *rest],
        "doubled": [header, first, first, second, *rest],
        "exchanged": [header, second, first, *rest],
        "of another file": [header, step, second, *rest],
        "behind another header": [other[: _ends(two)[0]], first, second, *rest],
    }
    for name, parts in cases.items():
        one.write_bytes(b"".join(parts))
        found = read(one)
        assert found.steps == (1 if name == "doubled" else 0), name
        assert found.problem is not None, name
        assert not found.torn, name


# ------------------------------------------------------------------------------------------------ what is no trajectory


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(TrajectoryError, match="is no file"):
            read(path)
    with pytest.raises(TrajectoryError, match=r"cannot be read \(No such file"):
        read(tmp_path / "nothing")
    with pytest.raises(TrajectoryError, match="cannot be read"):
        read("a\0b")
    with pytest.raises(TrajectoryError, match="is no file"):
        Recorder("/dev/null", build("MeZO", model_of()))
    assert Path("/dev/null").is_char_device()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", MAGIC]))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, begin: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.zo"
    path.write_bytes(begin + data)
    with pytest.raises(TrajectoryError):
        read(path)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner), max_leaves=5
)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # losses beyond all float32
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_headers_and_frames(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """With right checksums: refused, or replayed as they say; no other error."""
    base = tmp_path_factory.getbasetemp() / "base.zo"
    if not base.exists():
        small(base)
    frames = frames_of(base)
    path = tmp_path_factory.getbasetemp() / "forged.zo"
    place = data.draw(st.integers(0, len(frames) - 1))
    kind, payload = frames[place]
    if kind in "HGE" and data.draw(st.booleans()):
        content = json.loads(payload)
        field = data.draw(st.sampled_from(sorted(content)))
        inner = content[field]
        if isinstance(inner, dict) and inner and data.draw(st.booleans()):
            inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(JSON)
        else:
            content[field] = data.draw(JSON)
        frames[place] = kind, json.dumps(content).encode()
    else:
        losses = st.lists(st.floats(), max_size=4).map(lambda values: packed(*values))
        other = st.binary(max_size=40) | losses | JSON.map(lambda content: json.dumps(content).encode())
        frames[place] = data.draw(st.sampled_from("HSRGAE")), data.draw(other)
    forge(path, frames)
    with contextlib.suppress(TrajectoryError):
        replay(path, model_of().named_parameters())


def forgeries(path: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Files that a right recorder never writes, by what is wrong with them."""
    small(path, events=False)
    (_, head), *frames = frames_of(path)
    good = json.loads(head)

    def changed(**fields: Any) -> list[tuple[str, bytes]]:
        return [("H", json.dumps({**good, **fields}).encode()), *frames]

    def arguments(**own: Any) -> list[tuple[str, bytes]]:
        return changed(arguments={**good["arguments"], **own})

    def sized(shape: Any) -> list[tuple[str, bytes]]:
        return changed(
            parameters=[[*good["parameters"][0][:1], shape, *good["parameters"][0][2:]], *good["parameters"][1:]]
        )

    def step(*own: tuple[str, bytes]) -> list[tuple[str, bytes]]:
        return [("H", head), *own, *frames]

    deep = b"[" * 200_000 + b"]" * 200_000
    return {
        "two headers": step(("H", head)),
        "no header": frames,
        "deep header": [("H", deep), *frames],
        "deep event": step(("E", deep)),
        "long number": step(("E", b'{"kind":"x","y":' + b"9" * 5000 + b"}")),
        "long group number": step(("G", b'{"' + b"9" * 5000 + b'":{}}')),
        "no losses": step(("S", b"")),
        "odd losses": step(("S", b"1234567")),
        "rate without losses": step(("R", packed(1.0))),
        "NaN loss": step(("S", packed(float("nan"), 1.0))),
        "infinite rate": step(("R", packed(float("inf"), 1.0, 1.0))),
        "negative rate": step(("R", packed(-1.0, 1.0, 1.0))),
        "three losses": step(("S", packed(1.0, 1.0, 1.0))),
        "unknown group": step(("G", b'{"2":{"lr":1}}')),
        "params of a group": step(("G", b'{"0":{"params":[]}}')),
        "list as a setting": step(("G", b'{"0":{"lr":[1]}}')),
        "true as a rate": step(("G", b'{"0":{"lr":true}}')),
        "text as eps": step(("G", b'{"0":{"eps":"a"}}')),
        "NaN as eps": step(("G", b'{"0":{"eps":NaN}}')),
        "unknown parameter": step(("A", b'["nobody"]')),
        "nobody takes part": step(("A", b"[]")),
        "event within a step": step(("A", b'["0.bias"]'), ("E", b'{"kind":"x"}')),
        "event without a kind": step(("E", b"{}")),
        "unknown method": changed(method="SGD"),
        "true as first step": changed(start=True),
        "negative first step": changed(start=-1),
        "late first step": changed(start=5),
        "other format": changed(format=2),
        "other noise": changed(noise="mt19937"),
        "unknown field": changed(more=1),
        "unknown argument": arguments(colour="red"),
        "params as an argument": arguments(params=[]),
        "backend as an argument": arguments(backend="reference"),
        "many queries": arguments(queries=10**9),
        "endless queries": arguments(queries=1e400),
        "wrong noise": arguments(noise=["gaussian"]),
        "wrong seed": arguments(seed="a"),
        "params in a group": changed(groups=[{"params": []}, {}]),
        "unknown setting": changed(groups=[{"colour": 1}, {}]),
        "negative shape": sized([-1, 2]),
        "huge shape": sized([2**40, 2**40]),
        "many dimensions": sized([2**61] * 100_000),
        "true as a size": sized([True, 8]),
        "text as a shape": sized("ab"),
        "same name": changed(parameters=[good["parameters"][0]] * 4),
        "no parameters": changed(parameters=[]),
        "group out of range": changed(parameters=[[*row[:4], 7] for row in good["parameters"]]),
        "huge number": changed(parameters=[[*row[:3], 2**24 + i, row[4]] for i, row in enumerate(good["parameters"])]),
        "a list": [("H", b"[]"), *frames],
        "no JSON": [("H", b"\xff{"), *frames],
    }


def test_forged_contents_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.zo"
    cases = forgeries(path)
    for name, frames in cases.items():
        forge(path, frames)
        try:
            replay(path, model_of().named_parameters())
        except TrajectoryError:
            continue
        raise AssertionError(f"{name} was not refused")


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux bounds the memory of a process.")
@pytest.mark.parametrize("part", [b"[],", b"{},", b'{"a":1},'])
def test_forged_lists_without_end_take_no_memory(tmp_path: Path, part: bytes) -> None:
    """More lists than any run writes; the parser would take forty times their size."""
    payload = b'{"parameters":[' + part * ((1 << 24) // len(part) - 9) + b"1]}"
    (tmp_path / "forged.zo").write_bytes(MAGIC + encode("H", payload, FIRST)[0])
    tracemalloc.start()
    try:
        with pytest.raises(TrajectoryError):
            read(tmp_path / "forged.zo")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(payload)


def test_forged_lengths_take_no_memory(tmp_path: Path) -> None:
    """A length is believed only as far as the file reaches, even that of a file of holes."""
    path = tmp_path / "run.zo"
    ends = small(path)
    data = path.read_bytes()
    lengths = [b"\xff\xff\xff\x1f", b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01", b"\x80\x80\x80\x08"]
    for number, length in enumerate(lengths):
        (tmp_path / f"short {number}").write_bytes(data[: ends[2]] + b"S" + length + b"x" * 50)
        (tmp_path / f"first {number}").write_bytes(MAGIC + b"H" + length)
        for kind in (b"S", b"H"):
            holes = tmp_path / f"holes {kind!r} {number}"
            holes.write_bytes((MAGIC if kind == b"H" else data[: ends[2]]) + kind + length)
            os.truncate(holes, 1 << 34)
    code = """
        import resource, sys
        from pathlib import Path
        from zotune.trajectory import TrajectoryError, read
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                print(path.name, read(path).steps)
            except TrajectoryError:
                print(path.name, "refused")
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 17
    assert all(
        line.endswith("refused" if "first" in line or "b'H'" in line else (" 4" if "run" in line else " 1"))
        for line in lines
    )


def test_a_file_that_changes_while_it_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "run.zo"
    small(path)
    trajectory = read(path)
    os.truncate(path, trajectory.size - 30)
    with pytest.raises(TrajectoryError, match="has changed while it was read"):
        list(trajectory.items())
    path.unlink()
    with pytest.raises(TrajectoryError, match="cannot be read"):
        list(trajectory.items())


def test_records_that_no_reader_would_take_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "run.zo"
    with Recorder(path, build("MeZO", model_of())) as recorder:
        with pytest.raises(TrajectoryError, match="too long for a trajectory"):
            recorder.event("x", text="x" * (1 << 24))
        recorder.event("x", text="x" * ((1 << 24) - 100))
    assert [type(item) for item in read(path).items()] != [Step]
    assert read(path).problem is None
