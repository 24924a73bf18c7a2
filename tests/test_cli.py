import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from t3d import cli, pages
from t3d.data import video
from t3d.data.parts import write_atomically
from t3d.errors import UserError


@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    """Runs `t3d` in an empty folder: (exit code, lines of standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.main([str(a) for a in arguments])
        return code, capfd.readouterr().err.splitlines()

    return call


def complains(result, *words):
    code, lines = result
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("t3d: error: "), lines
    for word in words:
        assert word in lines[0]


def write_clip(path, seconds=1.2, sound=True, fps=25):
    """A video of moving noise with PyAV, with a tone."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        tone = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for _ in range(round(seconds * fps)):
            image = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
        if tone:
            samples = np.sin(np.arange(round(seconds * 16000)) * 0.1).astype(np.float32)[None]
            for start in range(0, samples.shape[1] - 1023, 1024):
                block = np.ascontiguousarray(samples[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, start
                container.mux(tone.encode(frame))
            container.mux(tone.encode(None))
    return path


def left_behind(folder, *known):
    return sorted(set(os.listdir(folder)) - set(known))


def test_text_file(run, tmp_path):
    (tmp_path / "notes.mp4").write_text("this is not a video\n" * 50)
    complains(run("prepare", "notes.mp4", "--out", "new/out", "--prior", "procedural"), "notes.mp4")
    assert not left_behind(tmp_path, "notes.mp4")


def test_empty_file(run, tmp_path):
    (tmp_path / "empty.mp4").touch()
    complains(run("prepare", "empty.mp4", "--out", "out"), "empty.mp4", "is empty", "again")
    assert not left_behind(tmp_path, "empty.mp4")


def test_missing_video(run, tmp_path):
    complains(run("prepare", "none.mp4", "--out", "out"), "none.mp4", "no such file", "check")
    assert not left_behind(tmp_path)


def test_video_without_a_face(run, tmp_path, assets):
    write_clip(tmp_path / "noise.mp4")
    result = run("prepare", "noise.mp4", "--out", "new/out", "--prior", "procedural")
    complains(result, "noise.mp4", "face", "give a video of one person")
    assert not left_behind(tmp_path, "noise.mp4")


def test_damaged_models(run, tmp_path, monkeypatch, assets):
    monkeypatch.setenv("T3D_ASSETS", str(tmp_path / "assets"))
    (tmp_path / "assets").mkdir()
    for name in ("ict_facekit.npz", "face_landmarker.task", "deeplab_v3.tflite"):
        (tmp_path / "assets" / name).touch()
    shown = run("prior", "show", "ict", "--out", "sheet.png")
    complains(shown, "ict_facekit.npz: damaged", "t3d assets import ict_facekit")
    write_clip(tmp_path / "clip.mp4")
    prepared = run("prepare", "clip.mp4", "--out", "out", "--prior", "procedural")
    complains(prepared, "face_landmarker.task: no model", "t3d assets fetch face_landmarker")
    assert not left_behind(tmp_path, "assets", "clip.mp4")


def test_video_without_sound(run, tmp_path):
    write_clip(tmp_path / "mute.mp4", sound=False)
    complains(run("prepare", "mute.mp4", "--out", "out"), "mute.mp4", "no sound", "give")
    assert not left_behind(tmp_path, "mute.mp4")


def test_video_of_half_a_second(run, tmp_path):
    write_clip(tmp_path / "blink.mp4", seconds=0.5)
    complains(run("prepare", "blink.mp4", "--out", "out"), "blink.mp4", "at least 1 s")
    assert not left_behind(tmp_path, "blink.mp4")


def test_unknown_prior(run, tmp_path):
    write_clip(tmp_path / "clip.mp4")
    complains(run("prepare", "clip.mp4", "--out", "out", "--prior", "flame"), "flame", "procedural")
    assert not left_behind(tmp_path, "clip.mp4")


def test_config_name_typo(run, tmp_path):
    result = run("train", "--config", "previw", "--data", "x", "--workdir", "runs/x")
    complains(result, "previw", "preview")
    assert not left_behind(tmp_path)


def test_config_key_typo(run, tmp_path):
    arguments = ["train", "--data", "x", "--workdir", "runs/x", "--config.nerf.sampels=3"]
    complains(run(*arguments), "nerf.sampels", "nerf.samples")
    assert not left_behind(tmp_path)


def test_missing_dataset(run, tmp_path):
    result = run("train", "--config", "tiny", "--data", "data/none", "--workdir", "runs/x")
    complains(result, "data/none", "t3d prepare")
    assert not left_behind(tmp_path)


@pytest.mark.parametrize(
    "command", ["prepare", "train", "render", "synthesize", "info", "evaluate"]
)
def test_no_place_to_write(run, tmp_path, command):
    (tmp_path / "file").touch()
    arguments = {
        "prepare": ["x.mp4", "--out", "file/out"],
        "train": ["--data", "x", "--workdir", "file/out"],
        "render": ["--workdir", "x", "--audio", "x.wav", "--out", "file/out.mp4"],
        "synthesize": ["--out", "file/out"],
        "info": ["x", "--json", "file/x.json"],
        "evaluate": ["--workdir", "x", "--json", "file/x.json"],
    }
    complains(run(command, *arguments[command]), "file/", "choose another place")
    assert not left_behind(tmp_path, "file")


def test_a_folder_where_a_file_is_wanted(run, tmp_path):
    (tmp_path / "there").mkdir()
    complains(run("info", "x", "--json", "there"), "there", "is a folder", "name the file")
    assert not left_behind(tmp_path, "there")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission(run, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    complains(run("synthesize", "--out", "closed/out"), "closed", "permission", "choose another")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["prepar", "x"], ["no 'prepar'", "did you mean prepare?"]),
        (["prepare", "x", "--out", "y", "--pior", "ict"], ["--pior", "did you mean --prior?"]),
        (["info", "x", "--jsn=f"], ["--jsn", "did you mean --json?"]),
        (
            ["render", "--workdir", "x", "--audio", "y", "--out", "z.mp4", "--camera", "up"],
            ["orbit"],
        ),
        (["synthesize", "--out", "x", "--seconds", "0.2"], ["1 to 3600 seconds"]),
        (["synthesize", "--out", "x", "--size", "abc"], ["--size", "abc: is not a number"]),
        (["render", "--workdir", "x", "--audio", "y", "--out", "z.avi"], ["z.avi", "an .mp4"]),
        (["train", "--config.nerf", "--data", "x", "--workdir", "y"], ["--config.nerf", "KEY="]),
        (["train", "--data", "x,", "--workdir", "y"], ["x,", "empty"]),
        (["train", "--data", "x", "--workdir", "y", "--config.nerf.rays=0"], ["rays=0", "1 or"]),
        (["train", "--data", "x", "--workdir", "y", "--config.nerf.rays=1"], ["rays=1", "2 or"]),
        (["train", "--data", "x", "--workdir", "y", "--config.nerf.near=nan"], ["near=nan"]),
        (["train", "--data", "x", "--workdir", "y", "--config.dtype=float8"], ["float32"]),
        (
            ["plan", "--topology", "cpu", "--config.stages.nerf.batch_size=0"],
            ["batch_size=0", "1 or more"],
        ),
        (["bench", "nerf", "--prepare", "x"], ["--prepare", "bench prior"]),
        (["bench", "startup", "--data", "x", "--run", "y"], ["--run", "bench nerf"]),
        (["bench", "nerf", "--run", "x", "--data", "y"], ["--run", "without"]),
        (["bench", "prior", "--out", "x"], ["--out", "bench speech"]),
        (["assets", "ftech"], ["did you mean fetch?"]),
        (["evaluate", "--workdir", "x", "--config.size=3"], ["--config.size=3"]),
        (["prepare"], ["video"]),
        (["prepare", "x"], ["--out", "--report"]),
        ([], ["COMMAND"]),
    ],
)
def test_wrong_word_suggests_the_right_one(run, tmp_path, arguments, words):
    complains(run(*arguments), *words)
    assert not left_behind(tmp_path)


def test_overrides_are_taken_out_in_both_forms():
    rest, overrides = cli.split_overrides(
        ["train", "--config.a.b=3", "--data", "d", "--config.c", "x=y", "--config", "tiny"]
    )
    assert rest == ["train", "--data", "d", "--config", "tiny"]
    assert overrides == ["a.b=3", "c=x=y"]


def test_info_of_nothing(run, tmp_path):
    complains(run("info", "nowhere"), "nowhere", "t3d prepare")
    complains(run("info", tmp_path), "neither", "give a folder")


@pytest.mark.parametrize("record", [[], {"stages": []}, {"config": 3}, {"rows": "many"}])
def test_what_is_no_record_of_a_run(run, tmp_path, record):
    (tmp_path / "run.json").write_text(json.dumps(record))
    for command in (["info", "."], ["evaluate", "--workdir", "."]):
        complains(run(*command), "run.json", "put a copy of it back")


def test_a_record_that_lost_its_config(run, tmp_path):
    from t3d import talker

    for stage in talker.STAGES:
        (tmp_path / "params" / stage).mkdir(parents=True)
    (tmp_path / "run.json").write_text(json.dumps({"stages": {}}))
    complains(
        run("evaluate", "--workdir", "."), "run.json", "has no config", "put a copy of it back"
    )


def test_a_dataset_is_no_place_for_a_run_nor_given_twice(run, untrained, tmp_path):
    place = json.loads((untrained.workdir / "run.json").read_text())["data"][0]["path"]
    before = set(os.listdir(place))
    arguments = ["train", "--config", "tiny", "--data", place, "--workdir", place]
    complains(run(*arguments), place, "is a dataset; name a folder for the run")
    twice = ["train", "--config", "tiny", "--data", f"{place},{place}", "--workdir", "new"]
    complains(run(*twice), "one folder twice")
    assert set(os.listdir(place)) == before


def test_info_of_a_run_tells_stages_and_fingerprints(run, tmp_path):
    from t3d import checkpoint

    params = {"dense": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    checkpoint.save_params(tmp_path / "run" / "params" / "sync", params)
    stages = {"sync": {"steps": 12, "loss_last": 0.5}}
    checkpoint.update_run(tmp_path / "run", config={"size": 64}, stages=stages)
    (tmp_path / "run" / "checkpoints" / "lip" / "7").mkdir(parents=True)
    assert run("info", "run", "--json", "info.json")[0] == 0
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["kind"] == "run" and info["config"] == {"size": 64} and "jax" in info["versions"]
    assert info["stages"]["sync"]["sha256"] == checkpoint.params_sha256(params)
    assert info["stages"]["sync"]["steps"] == 12 and info["stages"]["sync"]["finished"]
    assert info["stages"]["lip"] == {"steps": 7, "finished": False}


def raising(error):
    def command(args):
        raise error

    return lambda module, function: command


@pytest.mark.parametrize(
    "error, code, words",
    [
        (OSError(28, "No space left on device", "big.bin"), 2, "big.bin: no space left"),
        (PermissionError(13, "Permission denied", "x"), 2, "x: no permission"),
        (OSError(30, "Read-only file system", "x"), 2, "read-only"),
        (FileNotFoundError(2, "No such file", "x.npz"), 2, "x.npz: no such file"),
        (UserError("first\nsecond"), 2, "first second"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_trouble_is_one_line_and_debug_shows_where(run, monkeypatch, error, code, words):
    monkeypatch.setattr(cli, "_later", raising(error))
    got, lines = run("info", "x")
    assert got == code and len(lines) == 1 and words in lines[0]
    for arguments in (["--debug", "info", "x"], ["info", "x", "--debug"]):
        got, lines = run(*arguments)
        assert got == code and len(lines) > 3 and words in lines[-1]
        assert any("in command" in line for line in lines)


@pytest.mark.parametrize("command, printed", [("info", 0), ("demo", 9)])
def test_only_long_work_goes_on_when_nobody_reads_its_output(
    monkeypatch, tmp_path, command, printed
):
    read, write = os.pipe()
    os.close(read)
    done = []

    def work(args):
        for number in range(9):
            print(number, flush=True)
            done.append(number)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_later", lambda module, function: work)
    with open(write, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        assert cli.main([command, "x"] if command == "info" else [command]) == 0
    assert len(done) == printed


def test_a_file_is_no_folder_for_results_nor_what_is_no_plain_file_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: is a file; name a folder"):
        cli.check_writable(tmp_path / "file")
    cli.check_writable(tmp_path / "file", file=True)
    (tmp_path / "link").symlink_to("file")
    write_atomically(tmp_path / "link", lambda path: path.write_text("new"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    read, write = os.pipe()
    write_atomically(Path(f"/dev/fd/{write}"), lambda path: path.write_text("figures"))
    os.close(write)
    with open(read) as stream:
        assert stream.read() == "figures"


def test_a_folder_where_a_sheet_is_wanted_is_told_at_once(run, tmp_path):
    (tmp_path / "sheets").mkdir()
    shown = run("prior", "show", "procedural", "--out", "sheets")
    complains(shown, "sheets: is a folder; name the file to write")


def test_a_second_interrupt_ends_a_job_that_waits_and_nohup_is_heeded():
    """The worker ignores what asks it to end, as one does that waits for others."""
    work = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True);"
    script = f"""
import signal, subprocess, sys
from t3d import hosts
signal.signal(signal.SIGHUP, signal.SIG_IGN)
start = subprocess.Popen
work = {work + " time.sleep(60)"!r}
subprocess.Popen = lambda command, **options: start([sys.executable, "-c", work], **options)
sys.exit(hosts.supervise([]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout.readline() == "on\n"
        for number in (signal.SIGHUP, signal.SIGINT):
            supervisor.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                supervisor.wait(0.5)
        for _ in range(20):  # on a busy machine two may come as one
            supervisor.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                supervisor.wait(1)
                break
        assert supervisor.poll() == 130


def test_our_own_mistakes_are_not_hidden(run, monkeypatch):
    monkeypatch.setattr(cli, "_later", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        run("info", "x")


def test_a_program_starts_itself_once_with_huge_pages(monkeypatch, tmp_path):
    started, mode = [], tmp_path / "enabled"
    mode.write_text("always [madvise] never")
    monkeypatch.setattr(pages, "_MODE", mode)
    monkeypatch.setattr(os, "execv", lambda *given: started.append(given))
    monkeypatch.setattr(sys, "argv", ["t3d", "--version"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "t3d.cli", "--version"])
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    monkeypatch.delenv(pages.ASKED, raising=False)
    assert cli.main() == 0 and not started  # called from a program of someone else's
    assert cli.program() == 0  # execv came back: it goes on without
    assert started == [(sys.executable, [sys.executable, "-m", "t3d.cli", "--version"])]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
    monkeypatch.delenv("GLIBC_TUNABLES")  # that something took away again
    assert cli.program() == 0 and len(started) == 1
    monkeypatch.delenv(pages.ASKED)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert cli.program() == 0 and len(started) == 1
    monkeypatch.delenv("GLIBC_TUNABLES")
    mode.write_text("[always] madvise never")
    assert cli.program() == 0 and len(started) == 1
    mode.write_text("always [madvise] never")
    assert cli.program() == 0 and len(started) == 2


def test_a_program_that_started_anew_has_its_arguments_and_exit_code(tmp_path):
    (tmp_path / "enabled").write_text("always [madvise] never")
    (tmp_path / "spy.py").write_text(
        "import os, sys, pathlib\nfrom t3d import cli, pages\n"
        f"pages._MODE = pathlib.Path({str(tmp_path / 'enabled')!r})\n"
        "if 'hugetlb=1' in os.environ.get('GLIBC_TUNABLES', ''): print('huge', sys.argv[1:])\n"
        "sys.exit(cli.program())\n"
    )
    ours = ("GLIBC_TUNABLES", pages.ASKED)
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    command = [sys.executable, str(tmp_path / "spy.py"), "info", "no such place"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "no such place" in done.stderr
    assert done.stdout.splitlines() == ["huge ['info', 'no such place']"]


def test_version_and_help_load_no_library():
    code = (
        "import sys\nfrom t3d import cli\nassert cli.main(['--version']) == 0\n"
        "assert cli.main(['train', '--help']) == 0\n"
        "heavy = {'jax', 'numpy', 'mediapipe', 'av'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("t3d 0.") and "--config.nerf.samples=32" in done.stdout


def test_assets_are_listed(run, capfd):
    assert cli.main(["assets", "list"]) == 0
    assert "face_landmarker" in capfd.readouterr().out


def test_written_clip_is_what_the_tests_think(tmp_path):
    info = video.probe(write_clip(tmp_path / "clip.mp4"))
    assert info.sound_rate == 16000 and abs(info.duration - 1.2) < 0.1
