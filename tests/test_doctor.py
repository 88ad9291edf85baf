from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from test_cli import call
from weightspace.cli import main
from weightspace.cli.doctor import doctor
from weightspace.doctor import data_sets, extras, machine, packages, self_test, torch_build
from weightspace.doctor.examination import Examination
from weightspace.doctor.finding import Finding

# What comes with extras. A bare installation has torch, rich and what these two need.
EXTRAS = (
    *("numpy", "scipy", "sklearn", "pydantic", "yaml", "typer", "click", "safetensors", "lightning_fabric", "PIL"),
    *("matplotlib", "jinja2", "pyarrow", "tensorboard", "arviz", "onnx", "transformers", "packaging"),
)
BARE = f"""
import sys
for name in {EXTRAS!r}:
    sys.modules[name] = None
from importlib import metadata
real = metadata.version
gone = {{"numpy", "scipy", "scikit-learn", "pydantic", "pyyaml", "typer", "safetensors", "lightning-fabric", "arviz"}}
def version(name):
    if name.lower() in gone:
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
from weightspace.cli import main
for words in (["--version"], ["doctor", "--json"], ["train", "quickstart"]):
    try:
        main(words)
    except SystemExit as stopped:
        print("code", stopped.code, flush=True)
"""


@dataclass
class Metadata:
    """Stands in for what is installed: versions by name, and lines of `Requires-Dist`."""

    versions: dict[str, str]
    lines: dict[str, list[str]]

    def version(self, name: str) -> str:
        if name not in self.versions:
            raise packages.metadata.PackageNotFoundError(name)
        return self.versions[name]

    def requires(self, name: str) -> list[str] | None:
        self.version(name)
        return self.lines.get(name)

    def distributions(self):
        return [SimpleNamespace(metadata={"Name": name}) for name in self.versions]


@pytest.fixture
def pretend(monkeypatch):
    def install(versions: dict[str, str], lines: dict[str, list[str]]) -> None:
        fake = Metadata(versions, lines)
        for name in ("version", "requires", "distributions"):
            monkeypatch.setattr(packages.metadata, name, getattr(fake, name))

    return install


OURS = [
    "torch>=2.6",
    "rich>=13.7",
    "numpy>=1.26; extra == 'train'",
    "typer>=0.12 ; extra == 'train'",
    'pyarrow>=15; extra == "parquet"',
    "atheris>=2.3; (python_version < '3.0') and extra == 'fuzz'",
    "ruff>=0.9; extra == 'dev'",
]


# --------------------------------------------------------------------------- versions and requirements


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
    st.lists(st.integers(0, 30), min_size=1, max_size=3),
    st.sampled_from(["==", "!=", ">=", "<=", "<", ">"]),
    st.sampled_from(["", "+cpu", "+cu132"]),
)
def test_ranges_agree_with_packaging(here, bound, sign, local):
    version, limit = ".".join(map(str, here)), ".".join(map(str, bound))
    expected = SpecifierSet(f"{sign}{limit}").contains(Version(version))
    assert packages.satisfies(version + local, f"{sign}{limit}") is expected


@pytest.mark.parametrize(
    ("version", "versions"),
    [
        (version, versions)
        for version in ("2.5.1", "2.6", "2.6.9", "2.13.0", "3.0")
        for versions in ("", ">=2.6,<3", "==2.13.*", "!=2.6.*", "~=2.6", "~=2.6.1", "==2.13", ">=2.6,!=2.13.0")
    ],
)
def test_ranges_of_several_parts_agree_with_packaging(version, versions):
    assert packages.satisfies(version, versions) is SpecifierSet(versions).contains(Version(version))


def test_requirements_of_other_systems_and_pythons_are_left_out():
    parse = packages.parse_requirement
    assert parse("transformers[torch]>=5.0; extra == 'transformers'") == packages.Requirement(
        "transformers", ">=5.0", "transformers"
    )
    assert parse("torch (==2.13.0)") == packages.Requirement("torch", "==2.13.0")
    assert parse("nvidia-x==1; platform_system == 'Linux'") is None
    assert parse("atheris; python_version < '3.0' and extra == 'fuzz'") is None
    assert parse("rich") == packages.Requirement("rich", "")
    assert parse("!!") is None


# --------------------------------------------------------------------------- packages


def test_extras_that_are_there_missing_partial_and_too_old(pretend):
    versions = {"weightspace": "0.1.0", "torch": "2.13.0+cpu", "rich": "13.9", "numpy": "1.20", "ruff": "0.9"}
    pretend(versions, {"weightspace": OURS})
    old, parquet = extras.extra_findings()
    assert (old.name, old.status, old.cure) == ("extra train", "problem", 'pip install "weightspace[train]" --upgrade')
    assert "numpy 1.20 (needs >=1.26)" in old.found
    assert (parquet.status, parquet.found, parquet.cure) == (
        "note",
        "not installed",
        'pip install "weightspace[parquet]"',
    )

    pretend({**versions, "numpy": "2.0", "pyarrow": "15.0.2"}, {"weightspace": OURS})
    partial, parquet = extras.extra_findings()
    assert (partial.status, partial.found) == ("note", "not complete: typer is missing")
    assert (parquet.status, parquet.found, parquet.cure) == ("ok", "installed", "")


def test_the_package_itself_needs_rich(pretend):
    pretend({"weightspace": "0.1.0", "torch": "2.13.0", "rich": "10"}, {"weightspace": OURS})
    (finding,) = extras.own_requirements()
    assert (finding.status, finding.cure) == ("problem", 'pip install "rich>=13.7"')


def test_a_torchvision_for_another_torch_is_a_problem_and_is_not_imported(pretend, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    lines = {
        "torchvision": ["numpy", "torch==2.12.0", "gdown; extra == 'gdown'"],
        "timm": ["torch"],
        "old": ["torch<2"],
        "optional": ["torch==1.0; extra == 'all'"],
    }
    pretend({"torch": "2.13.0+cpu", "torchvision": "0.27.0", "timm": "1", "old": "3", "optional": "1"}, lines)
    old, vision = extras.companions()
    assert (old.name, old.status) == ("old", "note")
    assert (vision.name, vision.status) == ("torchvision", "problem")
    assert "torchvision 0.27.0 is made for torch==2.12.0, installed is torch 2.13.0+cpu" in vision.found
    assert "pip uninstall torchvision" in vision.cure
    pretend({"torch": "2.12.0+cu130", "torchvision": "0.27.0"}, lines)
    assert extras.companions() == []
    pretend({}, {})
    assert extras.companions() == []


# --------------------------------------------------------------------------- torch


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("2.5.1", "problem"),
        ("2.6.0", "ok"),
        ("2.13.0+cpu", "ok"),
        (f"{torch_build.NEWEST_TESTED}.1", "ok"),
        ("2.99", "note"),
    ],
)
def test_the_version_of_torch(version, status):
    assert torch_build.version(version).status == status


def test_an_old_torch_has_its_cure():
    assert torch_build.version("1.13").cure == 'pip install --upgrade "torch>=2.6"'


@pytest.mark.parametrize(
    ("built_for", "has_driver", "status"),
    [(None, False, "ok"), ("13.2", False, "ok"), (None, True, "note"), ("13.2", True, "problem")],
)
def test_why_no_gpu_is_in_use(built_for, has_driver, status):
    finding = torch_build.no_cuda(built_for, has_driver=has_driver)
    assert finding.status == status
    assert bool(finding.cure) is has_driver


@pytest.mark.parametrize(
    ("capability", "built", "status"),
    [
        ((9, 0), ["sm_80", "sm_90"], "ok"),
        ((8, 9), ["sm_80", "sm_90"], "ok"),  # code runs on later minors
        ((8, 0), ["sm_86"], "problem"),
        ((12, 0), ["sm_80", "sm_90a"], "problem"),
        ((12, 0), ["sm_90", "compute_90"], "ok"),  # compiled when it is first used
        ((9, 0), [], "ok"),  # another vendor's build says nothing
    ],
)
def test_a_gpu_that_this_torch_has_no_code_for(monkeypatch, capability, built, status):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    assert torch_build.cuda_device(0).status == status


def test_a_torch_without_lapack(monkeypatch):
    def refuse(_):
        raise RuntimeError("linalg.svd: LAPACK library not found in compilation")

    assert torch_build.lapack().status == "ok"
    monkeypatch.setattr(torch.linalg, "svdvals", refuse)
    assert torch_build.lapack().status == "problem"


# --------------------------------------------------------------------------- the machine


@pytest.mark.parametrize(("here", "status"), [((3, 9), "problem"), ((3, 10), "ok"), ((3, 13), "ok"), ((3, 99), "note")])
def test_the_version_of_python(monkeypatch, here, status):
    monkeypatch.setattr(machine.sys, "version_info", (*here, 0))
    assert machine.python().status == status


@pytest.mark.parametrize(
    ("used", "cores", "variable", "status"),
    [(2, 2, None, "ok"), (1, 8, "1", "ok"), (16, 2, None, "problem"), (2, 2, "two", "problem"), (2, 2, "2,1", "ok")],
)
def test_threads_beside_cores(monkeypatch, used, cores, variable, status):
    monkeypatch.setattr(torch, "get_num_threads", lambda: used)
    monkeypatch.setattr(machine, "cores_allowed", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    finding = machine.threads()
    assert finding.status == status
    assert finding.cure == ("" if status == "ok" else f"export OMP_NUM_THREADS={cores}")


@pytest.mark.parametrize(("limit", "cores"), [("150000 100000", 2), ("20000 100000", 1), ("max 100000", 8), ("", 8)])
def test_a_container_with_a_share_of_the_cores(monkeypatch, tmp_path, limit, cores):
    monkeypatch.setattr("weightspace.training.environment.usable_cores", lambda: 8)
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(machine, "_CPU_LIMIT", tmp_path / "cpu.max")
    assert machine.cores_allowed() == cores


@pytest.mark.parametrize(("free", "status"), [(2**40, "ok"), (2**30, "note"), (2**20, "problem")])
def test_room_on_the_disk(monkeypatch, tmp_path, free, status):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    finding = machine.place("runs", tmp_path / "not" / "there" / "yet", "give another one")
    assert finding.status == status
    assert ("give another one" in finding.cure) is (status != "ok")
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind


def test_a_folder_that_cannot_be_written_to(monkeypatch, tmp_path):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    finding = machine.place("runs", tmp_path, "give another one with --out")
    assert (finding.status, finding.cure) == ("problem", "give another one with --out")
    assert finding.found.endswith("cannot be written to: permission denied")


def test_no_folder_for_temporary_files(monkeypatch, tmp_path):
    def refuse():
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(machine.tempfile, "gettempdir", refuse)
    _, temporary = machine.places(tmp_path)
    assert (temporary.name, temporary.status) == ("temporary files", "problem")


# --------------------------------------------------------------------------- data sets and tests


def test_data_sets_are_found_where_they_lie(monkeypatch, tmp_path):
    for name in ("XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("WEIGHTSPACE_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    first, cache = data_sets.data_sets()
    assert "cifar10" in first.found.partition("Not here")[2]  # an empty folder holds no data
    assert cache.name == "data and cache"
    (tmp_path / "cifar10" / "test_batch.bin").touch()
    first, _ = data_sets.data_sets()
    assert f"cifar10 ({tmp_path / 'cifar10'})" in first.found
    assert "digits (comes along)" in first.found


def test_every_self_test_passes_and_one_that_raises_is_a_problem():
    findings = list(self_test.self_tests())
    assert len(findings) == 5
    assert {finding.status for finding in findings} <= {"ok", "note"}  # a busy machine may show the note on threads

    def broken() -> str:
        raise ValueError("no\nluck")

    finding = self_test.attempt("name", broken)
    assert (finding.status, finding.found) == ("problem", "ValueError: no luck")


def test_wrong_singular_values_are_noticed(monkeypatch):
    monkeypatch.setattr("weightspace.singular_values", lambda *_: torch.full((32,), 2.5))
    finding = self_test.attempt("values", self_test.known_singular_values)
    assert finding.status == "problem"
    assert "5.0e-01" in finding.found


def test_threads_that_are_in_each_others_way_are_told(monkeypatch):
    before = torch.get_num_threads()
    times = iter([1.0, 0.1])
    monkeypatch.setattr(self_test, "_fastest", lambda _: next(times))
    try:
        torch.set_num_threads(2)
        finding = self_test.batched_lapack()
        assert isinstance(finding, Finding)
        assert (finding.status, torch.get_num_threads()) == ("note", 2)
        assert "10 times as long with 2 threads" in finding.found
    finally:
        torch.set_num_threads(before)


# --------------------------------------------------------------------------- the command

ILL = Examination((Finding("Python", "ok", "3.11"), Finding("disk [red]", "problem", "is full", "make room")))


def test_the_table_names_problems_with_their_cure(monkeypatch, capsys):
    monkeypatch.setattr("weightspace.doctor.examine", lambda: ILL)
    assert doctor([]) == 1
    out, err = capsys.readouterr()
    assert "disk [red]" in out  # what was found is no markup
    assert "-> make room" in out
    assert "1 problem(s): disk [red]" in err
    monkeypatch.setattr("weightspace.doctor.examine", lambda: Examination(ILL.findings[:1]))
    assert doctor([]) == 0


def test_json_on_the_screen_and_in_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("weightspace.doctor.examine", lambda: ILL)
    assert doctor(["--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] is False
    assert found["findings"][1] == {"name": "disk [red]", "status": "problem", "found": "is full", "cure": "make room"}
    assert doctor(["--json", str(tmp_path / "all.json")]) == 1
    assert json.loads((tmp_path / "all.json").read_text()) == found
    (tmp_path / "file").touch()
    assert doctor(["--json", str(tmp_path / "file" / "all.json")]) == 2


def test_words_that_are_no_options(capsys):
    with pytest.raises(SystemExit) as stopped:
        doctor(["--jsn"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --jsn" in capsys.readouterr().err


def test_both_ways_to_the_command_are_the_same(monkeypatch, capsys):
    monkeypatch.setattr("weightspace.doctor.examine", lambda: ILL)
    code, out, _ = call("doctor", "--json")
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--json"])
    assert (code, out) == (stopped.value.code, capsys.readouterr().out)
    assert "doctor" in call("--help")[1]


def test_version_and_doctor_answer_without_any_extra(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", BARE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    answers = re.fullmatch(r"weightspace \d.*\ncode 0\n(.*)\ncode 0\ncode 2\n", done.stdout, flags=re.DOTALL)
    assert answers is not None, done.stdout + done.stderr
    findings = {finding["name"]: finding for finding in json.loads(answers[1])["findings"]}
    assert findings["extra train"]["cure"] == 'pip install "weightspace[train]"'
    assert findings["test: a step on Stiefel"]["status"] == "ok"
    assert findings["data sets"]["status"] == "note"
    (line,) = done.stderr.splitlines()  # of train
    assert line.endswith('run: pip install "weightspace[train]"')
    assert list(tmp_path.iterdir()) == []  # it writes nothing
