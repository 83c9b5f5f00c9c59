"""The command line: `cl-mofo run`, `resume`, `tune`, `report`, `compare`, `check-data`, `list`.

Exit codes: 0; 2 for a user's mistake, with one message and no traceback; 1 for a fault; 75 when a
signal (SIGTERM, SIGUSR1) asked to stop and the run can go on, 130 when the user did (SIGINT). Of
several processes of one run, one prints (ending.py).
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import cl_mofo
from cl_mofo import ending
from cl_mofo.errors import LostRankError, StoppedError, TrainingError, UserError
from cl_mofo.options import (
    DataOption,
    ImportOption,
    ModelOption,
    RecipeArgument,
    SetOption,
    examples,
)
from cl_mofo.reading import commands as reading
from cl_mofo.untrusted import printable

if TYPE_CHECKING:
    from cl_mofo.console import Console


app = typer.Typer(
    help=(
        "Fine-tune a causal language model on one task after another, and report what it learned "
        "and forgot.\n\n"
        "  cl-mofo run                              MoFO on the embedded suite, with the embedded "
        "model\n\n"
        "  cl-mofo run --data TRACE --model PATH    TRACE's tasks with a model of yours\n\n"
        "  cl-mofo resume outputs/RUN               go on with a run that was stopped\n\n"
        "  cl-mofo report outputs                   one table over all runs there\n\n"
        "  cl-mofo compare outputs --baseline NAME  which differences there are more than noise"
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = 0,
) -> None:
    # DeepSpeed's launcher gives the rank as an option, too; the environment has it.
    if version:
        print(f"cl-mofo {cl_mofo.__version__}")
        raise typer.Exit


@app.command(
    epilog=examples(
        "cl-mofo run --strategy sequential --set seed=1",
        "cl-mofo run --data ./TRACE-5000 --model ./TinyLlama --set mofo.update_fraction=0.1",
        "cl-mofo run table2-mofo --data ./TRACE-5000 --set 'tasks.only=[FOMC, Py150]'",
        "cl-mofo run --set 'sweep.vary.seed=[1, 2, 3]' --out outputs/seeds",
    )
)
def run(
    recipe: RecipeArgument = None,
    model: ModelOption = None,
    data: DataOption = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="A strategy, or several joined by '+'; of a recipe of several runs, which to run."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The run folder to make; default: a fresh one under outputs/. For a recipe of "
            "several runs, the folder of their folders; default: outputs/RECIPE."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that --out holds.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run that --out holds, and begin anew.")
    ] = False,
    assignments: SetOption = None,
    imports: ImportOption = None,
) -> None:
    """Learn a sequence of tasks with a strategy, scoring after each.

    A recipe of several runs goes on where it was stopped: a finished run is skipped.
    """
    from cl_mofo.recipes import read_request
    from cl_mofo.resolve import resolve_request

    with _shown() as console:
        request = read_request(
            recipe,
            model=model,
            data=data,
            strategy=strategy,
            assignments=assignments or (),
            imports=imports or (),
        )
        if request.several:
            if resume or overwrite:
                raise UserError(
                    "--resume and --overwrite are for one run; a recipe of several goes on with "
                    "what was stopped by itself"
                )
            cl_mofo.run_sweep(request, out=out, observer=console)
        else:
            checked = resolve_request(request)
            cl_mofo.run(checked, out=out, observer=console, resume=resume, overwrite=overwrite)


@app.command(
    epilog=examples(
        "cl-mofo resume outputs/mofo",
        "torchrun --nproc-per-node 2 -m cl_mofo resume outputs/mofo --set engine.kind=fsdp",
    )
)
def resume(
    folder: Annotated[Path, typer.Argument(help="The folder of a run that was stopped.")],
    assignments: SetOption = None,
    imports: ImportOption = None,
) -> None:
    """Go on with a run that was stopped, from its newest checkpoint, to the same results.

    --set changes how it is computed (engine.*, training.micro_batch_size), not what; --import names
    the run's own Python files again, as they are code.
    """
    with _shown() as console:
        cl_mofo.resume(
            folder, observer=console, assignments=assignments or (), imports=imports or ()
        )


@app.command(
    epilog=examples(
        "cl-mofo tune --grid mofo.update_fraction=0.05,0.1,0.15,0.2,0.4,0.8",
        "cl-mofo tune table2 --data ./TRACE-5000 --share 0.1 --grid optimizer.lr=1e-5,2e-5,4e-5 "
        "--grid mofo.update_fraction=0.05,0.1,0.2",
        "cl-mofo run outputs/tune-table2/best.yaml",
    )
)
def tune(
    recipe: RecipeArgument = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES",
            help="A recipe key and the values to try; of several keys, all combinations.",
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Learn a random share of each task's training rows; 0.1 is a tenth."),
    ] = None,
    by: Annotated[str, typer.Option(help="What is best: op, learned or loss.")] = "op",
    model: ModelOption = None,
    data: DataOption = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="The strategy; of a recipe of several runs, which of them to tune."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of the runs and of best.yaml; default: outputs/tune-RECIPE."),
    ] = None,
    assignments: SetOption = None,
    imports: ImportOption = None,
) -> None:
    """Choose hyperparameters on the validation split, the same grid for each strategy.

    Prints what each value scored, and writes best.yaml, the recipe with the best values. The same
    command goes on where it was stopped; also several times at once. --set holds for all runs; of
    what it sets, best.yaml has model, data.path, optimizer, training and strategies' settings only.
    """
    from cl_mofo.grid import read_grid
    from cl_mofo.recipes import read_request

    with _shown() as console:
        request = read_request(
            recipe,
            model=model,
            data=data,
            strategy=strategy,
            assignments=assignments or (),
            imports=imports or (),
        )
        grids = read_grid(grid or ())
        cl_mofo.tune(request, grid=grids, by=by, share=share, out=out, observer=console)


@contextmanager
def _shown() -> Iterator[Console]:
    """Give what shows a run, and let its stop be told once."""
    from cl_mofo.console import Console

    console = Console()
    try:
        yield console
    except KeyboardInterrupt as error:
        console.stop()
        _stop(str(error) or "interrupted", 130, alike=True)
    except StoppedError as error:
        console.stop()
        _stop(str(error), ending.CAN_GO_ON, alike=True)
    finally:
        console.stop()


app.add_typer(reading)


def _stop(message: str, code: int, *, alike: bool = False) -> NoReturn:
    # Errors quote data files, recipes and run folders, which may hold what a terminal acts on.
    told = printable(message)
    ending.end(lambda name: print(f"cl-mofo: {name}{told}", file=sys.stderr), code, alike=alike)


def _fault() -> NoReturn:
    def say(name: str) -> None:
        print(printable(traceback.format_exc()), end="", file=sys.stderr)
        own = any(word.startswith("--import") for word in sys.argv)
        whose = "cl-mofo or in what you import" if own else "cl-mofo, not in what you gave"
        told = f"a fault in {whose}; the traceback above says where"
        print(f"cl-mofo: {name}{told}", file=sys.stderr)

    ending.end(say, 1, named=True)


def main() -> None:
    """Run the command line."""
    # Library chatter is not for the user: what they need to know comes as one message of ours.
    warnings.filterwarnings("ignore")
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if {"run", "resume", "tune"} & {*sys.argv}:
        ending.prepare()
    try:
        code = app(standalone_mode=False)
        ending.leave()
    except StoppedError as error:
        _stop(str(error), ending.CAN_GO_ON, alike=True)
    except UserError as error:
        _stop(str(error), 2, alike=True)
    except (TrainingError, LostRankError) as error:
        _stop(str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        usage: Any = error
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # of an option or an argument
            ending.end(lambda name: usage.show(), usage.exit_code, alike=True)
        _fault()
    raise SystemExit(code)
