"""`weightspace compress`: prune, fine-tune, shrink, store; a table of what each brought, all measured."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from weightspace.cli.compress_options import (
    ArgumentOption,
    BitsOption,
    CheckpointArgument,
    FactoryOption,
    FineTuneOption,
    ForceOption,
    GroupsOption,
    InputOption,
    JsonOption,
    MaxLossOption,
    OnnxOption,
    OutputOption,
    ProgramOption,
    RatioOption,
    ScopeOption,
    ShrinkOption,
    ThresholdOption,
)
from weightspace.cli.compress_subject import Subject, fine_tuned, share_right, subject_of_run, users_subject
from weightspace.cli.compress_table import Row, Stage, as_table, batch_size, in_bytes, legend, measured, summary
from weightspace.cli.console import print_note, stdout
from weightspace.cli.options import AcceleratorOption, SetOption, command_line
from weightspace.errors import CompressError, RunError
from weightspace.files import ensure_writable_folder, write_json_atomically

if TYPE_CHECKING:
    from torch import nn

    from weightspace.compress import Exported, Masks, Shrunk

SPARSE_FILE = "model.sparse.safetensors"
SMALL_FILE = "model.small.safetensors"
REPORT_FILE = "compress.json"
_GROUPS = ("out", "kernel", "in")
_ROUNDING = 1e-5  # of the largest output: equal weights in another memory format sum in another order


@dataclass(frozen=True)
class Request:
    """The options that say what to do."""

    threshold: float | None
    ratio: float | None
    max_loss: float | None
    groups: Literal["out", "kernel", "in"] | None
    scope: Literal["global", "layer"]
    fine_tune: int | None
    shrink: bool
    bits: Literal[8] | None
    force: bool
    accelerator: str


def compress(
    target: CheckpointArgument,
    *,
    threshold: ThresholdOption = None,
    ratio: RatioOption = None,
    max_loss: MaxLossOption = None,
    groups: GroupsOption = None,
    scope: ScopeOption = None,
    fine_tune: FineTuneOption = None,
    shrink: ShrinkOption = False,
    bits: BitsOption = None,
    onnx: OnnxOption = None,
    program: ProgramOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    json_: JsonOption = None,
    model: FactoryOption = None,
    option: ArgumentOption = None,
    input_: InputOption = None,
    set_: SetOption = None,
    accelerator: AcceleratorOption = "auto",
) -> None:
    """Make a trained network smaller, and measure what that brought.

    Prints a line for each stage: zeros, bytes of real files, multiply-adds, time and accuracy, always measured after
    the stage. Without --threshold, --ratio or --max-loss it takes the zeros that training left.
    """
    request = Request(
        *(threshold, ratio, max_loss, cast("Any", groups)),
        # Norms of groups of different layers are no measure of each other.
        scope=cast("Any", scope or ("global" if groups is None else "layer")),
        fine_tune=fine_tune,
        shrink=shrink,
        bits=cast("Any", bits),
        force=force,
        accelerator=accelerator,
    )
    _check(request, has_recipe=model is None)
    subject = _subject(target, model, tuple(option or ()), input_, tuple(set_ or ()))
    if output is not None:
        ensure_writable_folder(output)
    print_note(f"compressing {subject.words}")
    made = _stages(subject, request)
    rows = measured(made.stages, subject)
    with tempfile.TemporaryDirectory() as temporary:
        folder = output if output is not None else Path(temporary)
        read_back = _write_and_read_back(made, subject, folder, request)
        exports = _exports(made.stages[-1].model, subject, onnx, program)
    stdout().print(as_table(rows))
    print_note(legend(subject, rows))
    _tell(made, rows, read_back, exports, output)
    figures = _figures(subject, request, made, rows, read_back)
    for path in (output / REPORT_FILE if output is not None else None, json_):
        if path is not None:
            write_json_atomically(path, figures)
            print_note(f"wrote {path}")


@dataclass(eq=False)
class _Made:
    """What the stages left behind: models, and what is told about how they came about."""

    stages: list[Stage]
    full: nn.Module  # before shrinking and rounding: what the sparse file is made of
    notes: list[str]
    shrunk: Shrunk | None = None
    masks: Masks | None = None


def _stages(subject: Subject, request: Request) -> _Made:
    """Prune, fine-tune, shrink and round, as far as asked for."""
    from weightspace import compress as library

    current = copy.deepcopy(subject.model)
    made = _Made([Stage("as trained", subject.model)], current, [])
    made.masks = _pruned(subject, current, request, made.notes)
    if made.masks is not None:
        made.stages.append(Stage("pruned", current))
    if request.fine_tune is not None:
        masks = made.masks if made.masks is not None else library.masks_of(current)
        current = fine_tuned(subject, current, masks, request.fine_tune, request.accelerator)
        made.stages.append(Stage("fine-tuned", current))
    made.full = current
    if request.shrink:
        made.shrunk = library.shrink(current, subject.example)
        current = made.shrunk.model.eval()
        made.stages.append(Stage("shrunk", current))
        made.notes += [f"kept: {entry}" for entry in made.shrunk.kept]
    if request.bits is not None:
        made.stages.append(Stage(f"{request.bits}-bit", _rounded(current), request.bits, source=current))
    return made


def _pruned(subject: Subject, model: nn.Module, request: Request, notes: list[str]) -> Masks | None:
    """Set weights of `model` to zero; None if the zeros that are there are taken."""
    import weightspace
    from weightspace import compress as library

    # A class is no channel that may go.
    weights = weightspace.on.convs | weightspace.on.linears
    on = weights & ~weightspace.on.head if request.groups == "out" else None
    if request.max_loss is not None:
        held = subject.held_out()
        facts = held.describe()
        unit = str(facts.get("unit", "images"))
        masks = library.prune_to(
            model,
            lambda network: share_right(network, held),
            loss=request.max_loss / 100,
            groups=request.groups,
            scope=request.scope,
            on=on,
        )
        if masks.search is not None:
            found = masks.search
            notes.append(
                f"--max-loss: ratio {found.ratio:.4f} of {len(found.trials)} tried, by accuracy on {facts['test']:,} "
                f"training {unit} ({100 * found.baseline:.2f} % -> {100 * found.accuracy:.2f} "
                f"%); no test {unit[:-1]} was looked at, and on test {unit} the loss may differ"
            )
        return masks
    if request.threshold is None and request.ratio is None:
        zero, total = library.zeros(model)
        notes.append(
            f"no --threshold, --ratio or --max-loss: the zeros that training left, {100 * zero / max(total, 1):.1f} %"
        )
        return None
    options = {"scope": request.scope, "groups": request.groups, "on": on, "force": request.force}
    try:
        return library.prune(model, threshold=request.threshold, ratio=request.ratio, **cast("Any", options))
    except CompressError as error:
        raise CompressError(_in_words_of_the_command(str(error))) from error


def _in_words_of_the_command(sentence: str) -> str:
    """An error of `prune` with the names that its arguments have here.

    >>> _in_words_of_the_command("ratio=0.9 empties it; take a smaller one, leave it out with on=, or pass force=True.")
    '--ratio 0.9 empties it; take a smaller one, or give --force.'
    """
    for theirs, ours in (
        ("pass scope='layer'", "give --scope layer"),
        (", leave it out with on=", ""),
        ("pass force=True", "give --force"),
        ("ratio=", "--ratio "),
        ("threshold=", "--threshold "),
    ):
        sentence = sentence.replace(theirs, ours)
    return sentence


def _rounded(model: nn.Module) -> nn.Module:
    """A copy with the weights that an 8-bit sparse file holds."""
    from weightspace import compress as library

    twin = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SPARSE_FILE
        library.save_sparse(twin, path, bits=8)
        twin.load_state_dict(library.load_sparse(path))
    return twin


def _write_and_read_back(made: _Made, subject: Subject, folder: Path, request: Request) -> dict[str, Any]:
    """Write the files and prove them: read them, compare outputs, measure accuracy again."""
    from weightspace import compress as library

    twin = copy.deepcopy(subject.model)
    library.save_sparse(made.full, folder / SPARSE_FILE, bits=request.bits)
    twin.load_state_dict(library.load_sparse(folder / SPARSE_FILE))
    wanted = made.full if request.bits is None else _rounded(made.full)
    found: dict[str, Any] = {SPARSE_FILE: _compared(folder / SPARSE_FILE, twin, wanted, subject)}
    if made.shrunk is not None:
        last = made.stages[-1].model
        library.save_shrunk(made.shrunk.model, subject.model, folder / SMALL_FILE, bits=request.bits)
        small = library.load_shrunk(subject.model, folder / SMALL_FILE)
        found[SMALL_FILE] = _compared(folder / SMALL_FILE, small, last, subject)
    return found


def _compared(path: Path, read: nn.Module, wanted: nn.Module, subject: Subject) -> dict[str, Any]:
    import torch

    from weightspace.compress._equality import as_inputs, outputs, relative_difference

    state, target = read.state_dict(), wanted.state_dict()
    given = [as_inputs(subject.example)]
    models = (copy.deepcopy(model).eval() for model in (read, wanted))
    found, right = (outputs(model, given, double=False) for model in models)
    difference = relative_difference(right, found)
    same = state.keys() == target.keys() and all(torch.equal(state[name], target[name]) for name in target)
    if not same or difference > _ROUNDING:
        raise CompressError(f"{path.name}, read back, gives other outputs than the model that was written to it")
    return {"bytes": path.stat().st_size, "difference": difference, "accuracy": subject.accuracy(read)}


def _exports(model: nn.Module, subject: Subject, onnx: Path | None, program: Path | None) -> list[Exported]:
    from weightspace import compress as library

    asked = ((library.export_onnx, onnx), (library.export_program, program))
    return [write(model, subject.example, path) for write, path in asked if path is not None]


def _tell(
    made: _Made, rows: list[Row], read_back: dict[str, Any], exports: list[Exported], output: Path | None
) -> None:
    """What happened on the way, what was written, and what it comes to."""
    for note in made.notes:
        print_note(note)
    for name, proof in read_back.items():
        accuracy = "" if proof["accuracy"] is None else f", accuracy {100 * proof['accuracy']:.2f} %"
        where = f"wrote {output / name}" if output is not None else name
        print_note(f"{where}: {in_bytes(proof['bytes'])}; read back, weights bit for bit and outputs equal{accuracy}")
    for export in exports:
        print_note(
            f"wrote {export.path}: {in_bytes(export.bytes)}; read back, its outputs differ by {export.difference:.1e} "
            f"of the largest, on batches of {', '.join(map(str, export.batch_sizes))}"
        )
    if len(rows) > 1:
        print_note(summary(rows))
    if output is None:
        print_note("no model was written: give --output DIR to keep the files")


def _figures(
    subject: Subject, request: Request, made: _Made, rows: list[Row], read_back: dict[str, Any]
) -> dict[str, Any]:
    search = made.masks.search if made.masks is not None else None
    return {
        "source": subject.words,
        "command": command_line(),
        "options": vars(request),
        "batch": batch_size(subject.example),
        "stages": [row.to_json() for row in rows],
        "search": None if search is None else asdict(search),
        "files": read_back,
        "load": {
            SPARSE_FILE: "model.load_state_dict(weightspace.compress.load_sparse(path))",
            SMALL_FILE: "small = weightspace.compress.load_shrunk(model, path)",
        },
        "layers": [] if made.shrunk is None else [asdict(layer) for layer in made.shrunk.layers],
        "kept": [] if made.shrunk is None else [asdict(entry) for entry in made.shrunk.kept],
        "notes": made.notes,
    }


def _subject(
    target: Path, factory: str | None, options: tuple[str, ...], size: str | None, overrides: tuple[str, ...]
) -> Subject:
    """What the arguments name."""
    if not target.exists():
        raise RunError(f"{target} does not exist; give a run's folder, its model.safetensors or a checkpoint")
    if factory is not None:
        if overrides:
            raise CompressError("--set changes a recipe; with --model give arguments of the factory with --option")
        return users_subject(target, factory, options, size)
    for given, name in ((options, "--option"), (size, "--input")):
        if given:
            raise CompressError(f"{name} goes with --model module:factory; {target} knows its own model and data")
    return subject_of_run(target, overrides)


def _check(request: Request, *, has_recipe: bool) -> None:
    """Refuse what cannot be done before anything is loaded."""
    given = [
        name
        for name, value in (
            ("--threshold", request.threshold),
            ("--ratio", request.ratio),
            ("--max-loss", request.max_loss),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise CompressError(f"{' and '.join(given)} were given; give one of them")
    if request.groups is not None and request.groups not in _GROUPS:
        raise CompressError(f"--groups is {request.groups!r}; choose out, kernel or in")
    if request.scope not in {"global", "layer"}:
        raise CompressError(f"--scope is {request.scope!r}; choose global or layer")
    if request.groups is not None and not given:
        raise CompressError("--groups says what is pruned; give --threshold, --ratio or --max-loss as well")
    if request.max_loss is not None and not 0 <= request.max_loss < 100:
        raise CompressError(f"--max-loss is {request.max_loss:g}; give points of accuracy, such as 0.5")
    if request.bits not in (None, 8):
        raise CompressError(f"--bits is {request.bits}; 8 is what there is")
    for name, value in (("--fine-tune", request.fine_tune), ("--max-loss", request.max_loss)):
        if value is not None and not has_recipe:
            raise CompressError(f"{name} needs the data of a run's recipe, which a model of --model does not have")
