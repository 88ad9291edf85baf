"""torch: its version, what it was built with, and the devices that it can reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from weightspace.doctor.finding import Finding
from weightspace.doctor.packages import Requirement, release, requirements_of, satisfies

NEWEST_TESTED = "2.15"
_DRIVER = Path("/proc/driver/nvidia/version")
_SELECTOR = "choose the build for your machine at pytorch.org/get-started"


def torch_findings() -> Iterator[Finding]:
    """Version, linear algebra and devices."""
    import torch

    yield version(torch.__version__)
    yield lapack()
    if torch.cuda.is_available():
        yield from (cuda_device(index) for index in range(torch.cuda.device_count()))
    else:
        yield no_cuda(torch.version.cuda, has_driver=_DRIVER.exists())
    if torch.backends.mps.is_available():
        found = "mps; it has no float64 and no exact singular values, which are computed on the processor"
        yield Finding("device", "note", found)


def version(here: str) -> Finding:
    """Whether a version of torch is one that weightspace works with."""
    torch_range = next((r for r in requirements_of("weightspace") if r.name == "torch"), Requirement("torch", ">=2.6"))
    if not satisfies(here, torch_range.versions):
        return Finding("torch", "problem", f"{here}; weightspace needs {torch_range.text}", _install(torch_range))
    if release(here)[:2] > release(NEWEST_TESTED):
        found = f"{here}, newer than any that was tested (up to {NEWEST_TESTED})"
        return Finding("torch", "note", found, f'if something fails: pip install "torch<={NEWEST_TESTED}.*"')
    return Finding("torch", "ok", here)


def lapack() -> Finding:
    """Whether torch has the linear algebra that everything here rests on."""
    import torch

    try:
        torch.linalg.svdvals(torch.eye(2))
    except RuntimeError:  # how torch says that it was built without
        found = "torch has no LAPACK: no singular values, no orthonormal weights"
        return Finding("linear algebra", "problem", found, f"install torch's own wheel: {_SELECTOR}")
    return Finding("linear algebra", "ok", "LAPACK, by MKL" if torch.backends.mkl.is_available() else "LAPACK")


def no_cuda(built_for: str | None, *, has_driver: bool) -> Finding:
    """Why no GPU of NVIDIA is in use: the build, the driver, or there is none."""
    if has_driver and built_for is None:
        found = "the processor only, although a driver of NVIDIA is here: this torch was built without CUDA"
        return Finding("device", "note", found, f"to use the GPU, {_SELECTOR}")
    if has_driver:
        found = f"the processor only, although a driver of NVIDIA is here: torch, for CUDA {built_for}, reaches no GPU"
        cure = "look at CUDA_VISIBLE_DEVICES and nvidia-smi; an old driver wants a torch for an older CUDA"
        return Finding("device", "problem", found, cure)
    return Finding("device", "ok", "the processor; no GPU")


def cuda_device(index: int) -> Finding:
    """A GPU, and whether this torch has code for it."""
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    built = torch.cuda.get_arch_list()
    found = f"cuda:{index}, {torch.cuda.get_device_name(index)} (CUDA {torch.version.cuda})"
    if built and not _runs_on(major, minor, built):
        found += f"; this torch has no code for its generation, sm_{major}{minor}, but for {', '.join(built)}"
        return Finding("device", "problem", found, f"take another build of torch: {_SELECTOR}")
    return Finding("device", "ok", found)


def _runs_on(major: int, minor: int, built: list[str]) -> bool:
    """Machine code runs on its own generation and later minors of it; intermediate code on everything later."""
    for name in built:
        kind, _, digits = name.partition("_")
        number = "".join(c for c in digits if c.isdigit())
        if len(number) < 2:
            continue
        of_major, of_minor = int(number[:-1]), int(number[-1])
        if kind == "sm" and of_major == major and of_minor <= minor:
            return True
        if kind == "compute" and (of_major, of_minor) <= (major, minor):
            return True
    return False


def _install(requirement: Requirement) -> str:
    return f'pip install --upgrade "{requirement.text}"'
