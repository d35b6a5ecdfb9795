"""`prepare arm` and `--device qemu:CPU` where something is missing."""

from __future__ import annotations

import pytest
from small_graphs import integer_graph

import qwtv2_edge as qe


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QWTV2_ARM_PREFIX", str(tmp_path / "arm"))
    return tmp_path / "arm"


def test_verify_on_an_emulated_core_says_how_to_get_it(cli, tmp_path):
    qe.save(integer_graph(), tmp_path / "net.qir")
    done = cli("verify", tmp_path / "net.qir", "--device", "qemu:cortex-a76")
    assert done.code == 3
    assert "qwtv2-edge prepare arm" in done.err


@pytest.mark.parametrize(
    ("what", "said"), [(("leg",), "'leg' is not one of 'arm'"), (("arm", "--runtimes", "tensorflow"), "one of: litert")]
)
def test_prepare_refuses_what_it_does_not_know(cli, home, what, said):
    done = cli("prepare", *what)
    assert done.code == 2
    assert said in done.err
    assert not home.exists()


def test_prepare_without_apt(cli, home, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = cli("prepare", "arm", "--runtimes", "litert", "--json")
    assert (done.code, done.document["exit_code"]) == (3, 3)
    assert "apt-get is missing" in done.document["error"]["message"]
    assert [p.name for p in home.iterdir()] == ["lock"]
