"""The doctor: what it finds on this machine, and what it says where things are broken."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def doctor():
    spec = importlib.util.spec_from_file_location("doctor", ROOT / "scripts/doctor.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["doctor"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["doctor"]


def versions(monkeypatch, doctor, **packages):
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: packages.get(name.replace("-", "_"), real(name)))


def test_the_report_is_one_json_document_and_the_exit_code_follows_it():
    command = [sys.executable, str(ROOT / "scripts/doctor.py"), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT.parent)
    report = json.loads(run.stdout)
    status = {check["name"]: check["status"] for check in report["checks"]}
    assert {"python", "torch pair", "lightning", "mujoco pair", "rendering", "cpu", "disk", "video"} <= set(status)
    assert run.returncode == (0 if report["ok"] else 1) == int("FAIL" in status.values())
    rendering = next(check["found"] for check in report["checks"] if check["name"] == "rendering")
    if status["rendering"] != "FAIL":
        assert all(f"{quality} " in rendering for quality in ("full", "fast", "lean"))
    assert all(check["fix"] for check in report["checks"] if check["status"] != "ok")


@pytest.mark.parametrize("release", ["2.6.2", "2.6.3"])
def test_malware_is_named(monkeypatch, doctor, release):
    versions(monkeypatch, doctor, lightning=release)
    (check,) = doctor.lightning()
    assert check.status == "FAIL" and "malware" in check.fix


def test_mujoco_4_is_refused_with_the_cure(monkeypatch, doctor):
    versions(monkeypatch, doctor, mujoco="4.0.0")
    (check,) = doctor.mujoco_pair()
    assert check.status == "FAIL" and "mujoco>=3.3,<4" in check.fix


def test_a_machine_that_cannot_render_fails_with_the_apt_line(monkeypatch, doctor):
    from worldmodels.envs import gl

    def nothing():
        raise gl.RenderingError("no GL library renders here")

    monkeypatch.setattr(gl, "probe", lambda backend: gl.Probe(backend, None, f"lib{backend} is missing"))
    monkeypatch.setattr(gl, "choose_backend", nothing)
    *probes, rendering = doctor.rendering()
    assert rendering.status == "FAIL" and rendering.fix == gl.APT_LINE
    assert probes and all(probe.status == "warn" and "is missing" in probe.fix for probe in probes)


def test_a_broken_check_is_a_finding_and_makes_the_exit_code_1(monkeypatch, doctor, capsys):
    def sight():
        raise KeyError("eyes")

    monkeypatch.setattr(doctor, "EXAMINATIONS", (doctor.interpreter, sight, doctor.disk))
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  sight           KeyError: 'eyes'" in printed and "disk" in printed


def test_a_healthy_machine_makes_the_exit_code_0(monkeypatch, doctor, capsys):
    monkeypatch.setattr(doctor, "EXAMINATIONS", (doctor.interpreter,))
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.startswith("ok    python")


def test_little_disk_is_a_warning(monkeypatch, doctor):
    monkeypatch.setattr(doctor, "LOW_DISK_GB", 1e9)
    assert doctor.disk()[0].status == "warn"


def test_an_mp4_is_really_written(doctor):
    (check,) = doctor.video()
    assert check.status == "ok", check
