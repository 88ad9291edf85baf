"""Starts a comparison in a folder or continues one; refuses a folder that belongs to another recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from weightspace.compare.directory import ARMS_FOLDER, discard_arms, has_finished_runs, strangers
from weightspace.compare.plan import make_slugs
from weightspace.compare.records import COMPARE_FILE, now, read_facts
from weightspace.errors import RunError
from weightspace.files import JsonObject
from weightspace.training.environment import machine
from weightspace.training.recipe import IS_ITS_ROOT, Recipe

_SHOWN = 3  # differences named in a refusal; more of them hide the first
_WITHOUT_EFFECT = {"name", "description", "sweep", "sample"}
_ARMS = ("compare", "arms")
Keys = tuple[str, ...]


def open_comparison(recipe: Recipe, run_dir: Path, session: Mapping[str, Any]) -> JsonObject:
    """Start or continue a comparison in a folder. Deletes half-written runs of arms that the recipe no longer has.

    Args:
        recipe: The recipe.
        run_dir: An empty folder, or one where a comparison of the same recipe was started. Arms may have been added,
            and an arm of which no run has finished may have been changed or removed: that is how a mistake that shows
            in the first run is corrected. A folder that has lost its `compare.json` is taken up again.
        session: `at`, `command`, `versions` and `accelerator` of this call.

    Returns:
        What `compare.json` should hold. Nothing is written yet. Its `recipe` is the one to run: where the folder's
        recipe says the same in other characters (4 for 4.0), it stays as it was, because runs are known by the text of
        their settings.

    Raises:
        RunError: The folder holds something else, or a comparison of another recipe; the sentence names what differs.
    """
    if not (run_dir / COMPARE_FILE).exists():
        return _first_facts(recipe, run_dir, session)
    facts, stored = read_facts(run_dir)
    slugs: dict[str, str] = facts["slugs"]
    wanted = recipe.to_dict()
    arms = wanted["compare"]["arms"]
    begun = {name for name, slug in slugs.items() if has_finished_runs(run_dir, slug)}
    if begun:
        old = stored.to_dict()
        old["compare"]["arms"] = {name: arm for name, arm in old["compare"]["arms"].items() if name in begun}
        _refuse_other_recipe(old, wanted, run_dir)
        facts["recipe"] = same_spelling(old, wanted)
        facts.pop("finished", None)
        facts["resumed"] = [*facts["resumed"], dict(session)]
    else:
        facts = _new_facts(recipe, session)
    discard_arms(run_dir, [slug for name, slug in slugs.items() if name not in arms])
    facts["slugs"] = make_slugs(arms, {name: slug for name, slug in slugs.items() if name in arms})
    return facts


def recipe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What decides numbers and differs between two recipes, as `"path: old -> new"`.

    Names, descriptions and the sweep decide nothing, nor does the place of the data files (their check sum is compared
    instead), unless the place is all that is known of the data. An arm that only the new recipe has is no difference:
    the others' runs stay valid. 4 and 4.0 are the same number.

    >>> recipe_differences({"train": {"epochs": 3}}, {"train": {"epochs": 4}})
    ['train.epochs: 3 -> 4']
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    known_arms = {path[2] for path in before if path[:2] == _ARMS and len(path) > 2}
    is_folder = before.get(("data", "name")) in IS_ITS_ROOT
    found: list[str] = []
    for path in sorted(before.keys() | after.keys()):
        if path[0] in _WITHOUT_EFFECT or (path == ("data", "root") and not is_folder):
            continue
        if path[:2] == _ARMS and len(path) > 2 and path[2] not in known_arms:
            continue
        if not _same(before.get(path, path), after.get(path, path)):
            found.append(f"{'.'.join(path)}: {before.get(path, 'nothing')} -> {after.get(path, 'nothing')}")
    return found


def same_spelling(old: Any, new: Any, path: Keys = ()) -> Any:
    """`new`, with numbers written and keys ordered as in `old` where both say the same. Arms keep the new order.

    The order of the tuned paths numbers the trials, and a run is known by the text of its settings.

    >>> same_spelling({"b": 4.0, "a": 1}, {"a": 2, "b": 4, "c": 0})
    {'b': 4.0, 'a': 2, 'c': 0}
    """
    if isinstance(old, dict) and isinstance(new, dict):
        before, after = cast("dict[str, Any]", old), cast("dict[str, Any]", new)
        keys = after if path == _ARMS else {key: 0 for key in [*before, *after] if key in after}
        return {k: same_spelling(before[k], after[k], (*path, k)) if k in before else after[k] for k in keys}
    if isinstance(old, list) and isinstance(new, list) and len(cast("list[Any]", old)) == len(cast("list[Any]", new)):
        pairs = zip(cast("list[Any]", old), cast("list[Any]", new), strict=True)
        return [same_spelling(before, after, (*path, "")) for before, after in pairs]
    return old if _same(old, new) else new


def _first_facts(recipe: Recipe, run_dir: Path, session: Mapping[str, Any]) -> JsonObject:
    unknown = strangers(run_dir)
    if unknown:
        raise RunError(f"{run_dir} holds {unknown[0]} but no {COMPARE_FILE}: not a comparison; choose an empty folder")
    facts = _new_facts(recipe, session)
    if (run_dir / ARMS_FOLDER).exists():
        facts["recovered"] = now()
    return facts


def _new_facts(recipe: Recipe, session: Mapping[str, Any]) -> JsonObject:
    values = recipe.to_dict()
    return {
        "recipe": values,
        "slugs": make_slugs(values["compare"]["arms"]),
        **{key: value for key, value in session.items() if key != "at"},
        "machine": machine(),
        "data": {"name": recipe.data.name},
        "created": session["at"],
        "resumed": [],
    }


def _refuse_other_recipe(old: Mapping[str, Any], new: Mapping[str, Any], run_dir: Path) -> None:
    differences = recipe_differences(old, new)
    if differences:
        more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise RunError(
            f"{run_dir} holds a comparison of another recipe ({'; '.join(differences[:_SHOWN])}{more}); "
            "choose another folder, or use the recipe that was started there"
        )


def _same(one: object, other: object) -> bool:
    """Equal as settings: 4 is 4.0, but 1 is not true."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _flat(value: object, path: Keys = ()) -> list[tuple[Keys, object]]:
    """All leaves of nested dicts and lists with their paths; an empty dict or list is a leaf."""
    if isinstance(value, Mapping) and value:
        entries = cast("Mapping[object, object]", value).items()
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        entries = list(enumerate(cast("Sequence[object]", value)))
    else:
        return [(path, value)]
    return [leaf for key, inner in entries for leaf in _flat(inner, (*path, str(key)))]
