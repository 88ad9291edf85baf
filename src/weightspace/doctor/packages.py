"""Installed packages, read from their metadata: nothing is imported, so a package that would crash cannot.

Versions are compared by their release numbers alone ("2.13.0+cpu" counts as 2.13.0): enough for ranges such as
`torch>=2.6`, and no package is needed for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;()]*)\)?\s*(?:;(.*))?")
_CLAUSE = re.compile(r"\s*(===|==|~=|!=|>=|<=|>|<)\s*([^\s,]+)\s*")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
_PYTHON = re.compile(r"python_version\s*(==|!=|>=|<=|>|<)\s*['\"]([0-9.]+)['\"]")
_PLATFORM = re.compile(r"\b(?:sys_platform|platform_system|platform_machine|os_name|implementation_name)\b")


@dataclass(frozen=True)
class Requirement:
    """A line of `Requires-Dist`.

    Attributes:
        name: Of the package that is needed.
        versions: Its range, such as `">=2.6"`; empty if any will do.
        extra: The extra that needs it; empty if it is always needed.
    """

    name: str
    versions: str
    extra: str = ""

    @property
    def text(self) -> str:
        """The requirement as pip takes it."""
        return f"{self.name}{self.versions}"


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, without local and pre-release parts and without zeros at the end.

    >>> release("2.13.0+cpu"), release("1.0rc1"), release("5")
    ((2, 13), (1,), (5,))
    """
    match = re.match(r"[vV]?(\d+(?:\.\d+)*)", version.strip())
    numbers = [int(number) for number in match[1].split(".")] if match else [0]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def satisfies(version: str, versions: str) -> bool:
    """Whether a version lies in a range.

    >>> satisfies("2.13.0+cpu", ">=2.6,<3"), satisfies("2.5.1", ">=2.6"), satisfies("0.28.1", "==0.28.*")
    (True, False, True)
    """
    return all(_holds(version, sign, bound) for sign, bound in _CLAUSE.findall(versions))


def _holds(version: str, sign: str, bound: str) -> bool:
    here, limit = release(version), release(bound)
    if sign in {"==", "===", "!="}:
        starred = bound.endswith(".*")
        equal = _padded(here, len(limit)) == limit if starred else here == limit
        return equal != (sign == "!=")
    if sign == "~=":
        fixed = tuple(int(n) for n in re.findall(r"\d+", bound)[:-1])
        return here >= limit and _padded(here, len(fixed)) == fixed
    return {">=": here >= limit, "<=": here <= limit, ">": here > limit, "<": here < limit}[sign]


def _padded(numbers: tuple[int, ...], length: int) -> tuple[int, ...]:
    return (*numbers, *[0] * length)[:length]


def parse_requirement(line: str) -> Requirement | None:
    """A line of `Requires-Dist`; None if this Python or this system does not need it.

    >>> parse_requirement("lightning-fabric>=2.4; extra == 'train'")
    Requirement(name='lightning-fabric', versions='>=2.4', extra='train')
    """
    match = _REQUIREMENT.match(line)
    if match is None:
        return None
    name, versions, marker = match[1], re.sub(r"\s+", "", match[2]), match[3] or ""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not all(_holds(here, sign, bound) for sign, bound in _PYTHON.findall(marker)) or _PLATFORM.search(marker):
        return None
    extra = _EXTRA.search(marker)
    return Requirement(name, versions, extra[1] if extra else "")


def requirements_of(package: str) -> list[Requirement]:
    """What an installed package needs, extras included; nothing for a package that is not installed."""
    try:
        lines = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
    return [needed for line in lines if (needed := parse_requirement(line)) is not None]


def installed_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_packages() -> list[str]:
    """Names of all installed packages."""
    return sorted({str(found.metadata["Name"]) for found in metadata.distributions() if found.metadata["Name"]})


def unmet(requirements: Iterable[Requirement]) -> tuple[list[Requirement], list[Requirement]]:
    """Those that are not installed, and those that are installed in a version outside the range."""
    missing: list[Requirement] = []
    wrong: list[Requirement] = []
    for requirement in requirements:
        version = installed_version(requirement.name)
        if version is None:
            missing.append(requirement)
        elif not satisfies(version, requirement.versions):
            wrong.append(requirement)
    return missing, wrong
