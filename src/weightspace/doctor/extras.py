"""Which extras of weightspace are installed, and packages that do not fit the torch that is here."""

from __future__ import annotations

from collections.abc import Iterator

from weightspace.doctor.finding import Finding
from weightspace.doctor.packages import (
    Requirement,
    installed_packages,
    installed_version,
    requirements_of,
    satisfies,
    unmet,
)

_OURS = "weightspace"
_FOR_DEVELOPERS = {"test", "dev"}
_BUILT_AGAINST = ("==", "===")


def own_requirements() -> Iterator[Finding]:
    """What weightspace always needs, beside torch."""
    missing, wrong = unmet(r for r in requirements_of(_OURS) if not r.extra and r.name != "torch")
    for requirement in (*missing, *wrong):
        found = installed_version(requirement.name)
        yield Finding(
            requirement.name,
            "problem",
            f"{found or 'not installed'}; weightspace needs {requirement.text}",
            f'pip install "{requirement.text}"',
        )


def extras() -> dict[str, list[Requirement]]:
    """Extras for users, with what each brings."""
    found: dict[str, list[Requirement]] = {}
    for requirement in requirements_of(_OURS):
        if requirement.extra and requirement.extra not in _FOR_DEVELOPERS:
            found.setdefault(requirement.extra, []).append(requirement)
    return found


def extra_findings() -> list[Finding]:
    """A line for each extra. One that is missing is no problem; one that is there in too old a version is."""
    return [_extra(name, needs) for name, needs in extras().items()]


def _extra(name: str, needs: list[Requirement]) -> Finding:
    missing, wrong = unmet(needs)
    title, install = f"extra {name}", f'pip install "weightspace[{name}]"'
    if wrong:
        here = ", ".join(f"{need.name} {installed_version(need.name)} (needs {need.versions})" for need in wrong)
        return Finding(title, "problem", f"outside the range that works: {here}", f"{install} --upgrade")
    if not missing:
        return Finding(title, "ok", "installed")
    absent = ", ".join(need.name for need in missing)
    if len(missing) == len(needs):
        return Finding(title, "note", "not installed", install)
    return Finding(title, "note", f"not complete: {absent} is missing", install)


def companions() -> list[Finding]:
    """Packages that want another torch than the one installed.

    One that names a single version is compiled against it: importing it beside another one crashes, often without
    a word of why.
    """
    torch = installed_version("torch")
    if torch is None:
        return []
    findings: list[Finding] = []
    for package in installed_packages():
        for need in requirements_of(package):
            if need.name != "torch" or need.extra or package == _OURS or satisfies(torch, need.versions):
                continue
            findings.append(_misfit(package, need, torch))
    return findings


def _misfit(package: str, need: Requirement, torch: str) -> Finding:
    is_built = need.versions.startswith(_BUILT_AGAINST)
    found = f"{package} {installed_version(package)} is made for {need.text}, installed is torch {torch}"
    if is_built:
        found += "; whatever imports it crashes or fails"
    cure = f"pip install --upgrade {package} (the one for your torch), or: pip uninstall {package}"
    return Finding(package, "problem" if is_built else "note", found, cure)
