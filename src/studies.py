"""`python -m src.studies`: what came of a study of `hydra/sweeper=optuna`, as a table or as one page with plots."""

import argparse
import math
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from src.files import read_in_part, write_atomically
from src.runs import Row, cell, sentence, text_table
from src.trials import open_storage, storage_file, without_password

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

STORAGE = "runs/studies.db"


def parameters(study: "Study") -> list[str]:
    """The names of what the trials vary, in the order of the call."""
    names = [key.lstrip("+~") for key in study.user_attrs.get("about", {}).get("space", {})]
    return list(dict.fromkeys([*names, *(name for trial in study.get_trials(deepcopy=False) for name in trial.params)]))


def columns(study: "Study") -> list[str]:
    """Of `rows`."""
    return ["trial", "state", score_name(study), *parameters(study), "epochs", "minutes", "run", "error"]


def rows(study: "Study") -> list[Row]:
    """All trials, in their order: `epochs` is how many have a reported score, `state` complete, pruned, failed, running
    or waiting."""
    return [
        {
            **trial.params,
            "trial": trial.number,
            "state": "failed" if trial.state.name == "FAIL" else trial.state.name.lower(),
            score_name(study): trial.value,
            "epochs": len(trial.intermediate_values),
            "minutes": None if trial.duration is None else trial.duration.total_seconds() / 60,
            "run": trial.user_attrs.get("run"),
            "error": trial.user_attrs.get("error"),
        }
        for trial in study.get_trials(deepcopy=False)
    ]


def score_name(study: "Study") -> str:
    """Which score the study is of, such as `val/CIDEr`."""
    return study.user_attrs.get("monitor", "score")


def best_trial(study: "Study") -> "FrozenTrial | None":
    """The best complete trial; None where none is complete."""
    from optuna.trial import TrialState

    return study.best_trial if study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]) else None


def best_command(study: "Study") -> str | None:
    """A call that trains with the best values anew, under a name of its own; None where no trial is complete."""
    best = best_trial(study)
    if best is None or "command" not in study.user_attrs:
        return None
    keys = {key.lstrip("+~"): key for key in study.user_attrs["about"]["space"]}
    given = [line for line in study.user_attrs["given"] if line.partition("=")[0] not in ("name", "run_dir")]
    chosen = [f"{keys[name]}={value}" for name, value in best.params.items()]
    name = re.sub(r"[^\w./-]+", "_", study.study_name).strip("_")
    return f"{study.user_attrs['command']} {shlex.join([*given, *chosen, f'name=best/{name}'])}"


def summary(study: "Study") -> str:
    """How many trials ended how, the best, and its call."""
    states = Counter(row["state"] for row in rows(study))
    counts = ", ".join(f"{number} {state}" for state, number in states.items())
    text = f"study {study.study_name}: {counts or 'no trials yet'}"
    if best := best_trial(study):
        score = cell({score_name(study): best.value}, score_name(study))
        text += f"\nbest {score_name(study)}: {score}, trial {best.number}"
        text += f" ({best.user_attrs['run']})" if "run" in best.user_attrs else ""
    return text + (f"\n{command}" if (command := best_command(study)) else "")


# ---------------------------------------------------------------- the page


def plots(study: "Study") -> list[tuple[str, Markup]]:
    """Optuna's plots, those that there is enough for: a heading, and HTML that needs plotly's script on the page."""
    from optuna import visualization
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    scores = [trial.value for trial in trials if trial.state is TrialState.COMPLETE]
    name = score_name(study)
    found: list[tuple[str, Any]] = []
    if scores:
        found.append(("History", visualization.plot_optimization_history(study, target_name=name)))
    if any(trial.intermediate_values for trial in trials):
        found.append(("Scores by epoch", visualization.plot_intermediate_values(study)))
    if len(set(scores)) > 1 and all(map(math.isfinite, scores)):  # type: ignore[arg-type]
        importance = visualization.plot_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), target_name=name
        )
        found.append(("Importance", importance))
    if scores:
        found.append(("Parallel coordinates", visualization.plot_parallel_coordinate(study, target_name=name)))
    html = []
    for i, (heading, figure) in enumerate(found):
        figure.update_layout(title=None, template="plotly_white", margin={"t": 30, "b": 50, "l": 60, "r": 30})
        part = figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            include_mathjax=False,
            div_id=f"plot{i}",
            config={"displaylogo": False, "responsive": True},
            default_height="26rem",
        )
        html.append((heading, Markup(part)))
    return html


def write_page(study: "Study", path: Path, storage: str) -> str:
    """Write a study's page, whole or not at all; returns its summary and where the page is.

    Args:
        study: which.
        path: the page's file; links to runs are relative to it.
        storage: where the study is kept, for the heading.
    """
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["cell"] = cell
    environment.filters["link"] = lambda run: quote(Path(os.path.relpath(run, path.parent)).as_posix()) + "/"
    best = best_trial(study)
    figures = plots(study)
    html = environment.get_template("studies.html.j2").render(
        name=study.study_name,
        storage=without_password(storage),
        summary=summary(study),
        score=score_name(study),
        direction=study.direction.name.lower(),
        columns=columns(study),
        rows=rows(study),
        best=best.number if best else None,
        plots=figures,
        script=Markup(get_plotlyjs()) if figures else "",
    )
    write_atomically(path, html)
    return f"{summary(study)}\n{path}"


# ---------------------------------------------------------------- the command

EXAMPLES = f"""examples:
  python -m src.studies                                  the studies of {STORAGE}, or its only one's trials
  python -m src.studies --study lr                       a study's trials, and the best as a command
  python -m src.studies runs/studies.db --study lr -o study.html    a page with plots
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m src.studies",
        description="Show what came of a study of hydra/sweeper=optuna.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "storage",
        nargs="?",
        default=STORAGE,
        help="a file (SQLite, or a journal *.log) or a database's URL (%(default)s)",
    )
    result.add_argument("--study", metavar="NAME", help="which of its studies; needed where there are several")
    result.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="write a page with plots instead")
    return result


def _found(storage: str, name: str | None) -> "Study | list[str]":
    """The study that is asked for, or the names of all where none is and there are several."""
    import optuna

    file = storage_file(storage)
    if file is not None and not file.is_file():
        raise ValueError(f"{storage}: no such file; hydra.sweeper.storage says where a sweep keeps its study")
    opened = open_storage(storage)
    names = sorted(optuna.get_all_study_names(opened))
    if name is None and len(names) == 1:
        name = names[0]
    if name is None and names:
        return names
    if name not in names:
        there = f"there are {', '.join(names)}" if names else "there is none"
        raise ValueError(f"{without_password(storage)}: no study{f' {name}' if name else ''}; {there}")
    return optuna.load_study(study_name=name, storage=opened)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 for a wrong call."""
    options = parser().parse_args(arguments)
    try:
        with read_in_part():
            study = _found(options.storage, options.study)
            if isinstance(study, list):
                if options.output:
                    raise ValueError(f"--study NAME is needed: there are {', '.join(study)}")
                print("\n".join(study))
            elif options.output:
                print(write_page(study, options.output, options.storage))
            else:
                print(f"{text_table(columns(study), rows(study))}\n\n{summary(study)}")
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
