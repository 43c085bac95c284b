"""From saved samples to results, figures and report: files in, files out, no model and no torch."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from rlhf_recipes.collector import no_collection
from rlhf_recipes.evaluation.metrics.reward_model import RewardModelErrors, reward_model_errors
from rlhf_recipes.evaluation.metrics.samples import read_samples
from rlhf_recipes.evaluation.metrics.training_logs import read_training_logs
from rlhf_recipes.evaluation.metrics.typed_json import as_json
from rlhf_recipes.evaluation.output_files import (
    ANALYSIS,
    FINISHED,
    collected_folder,
    put_evaluation_in_place,
)
from rlhf_recipes.evaluation.report import figures
from rlhf_recipes.evaluation.report.caveats import caveats
from rlhf_recipes.evaluation.report.rendering import render_html, render_markdown
from rlhf_recipes.evaluation.results import EvaluationResults, evaluation_results
from rlhf_recipes.folders import REPLACEMENT
from rlhf_recipes.records import write_json, write_text
from rlhf_recipes.training_curves import training_curves_figure


@no_collection()
def analyze(output_dir: Path) -> EvaluationResults:
    """Analyze OUT/samples and return the results, having written them, the figures and the report.

    Reads samples/, models/*/trainer_state.json and run.json and, where the reward model's training
    left it, models/reward_model/scores.json. The same files give the same bytes. Everything is
    written beside what a finished analysis left, and put in its place at the end. Raises
    RecipeError if the samples cannot be compared.

    >>> from rlhf_recipes import analyze
    >>> results = analyze(collected)
    >>> sorted(results.models)
    ['base', 'ppo']
    """
    output_dir = Path(output_dir)
    collection = read_samples(collected_folder(output_dir))
    folder = output_dir / "results" / REPLACEMENT
    if folder.exists():  # of an analysis that was cut off
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    errors = _reward_model(output_dir / "models" / "reward_model" / "scores.json")
    logs = read_training_logs(output_dir / "models")
    report = str(output_dir / "results" / "report.html")
    results, failures = evaluation_results(
        collection, logs, errors.quality if errors else None, report
    )
    results = replace(results, warnings=caveats(results, collection))
    training_curves_figure(
        {stage: log.entries for stage, log in logs.items()}, folder / "training_curves.png"
    )
    figures.win_rates_figure(results, collection, folder / "win_rates.png")
    figures.reward_distributions_figure(results, collection, folder / "reward_distributions.png")
    figures.pareto_frontier_figure(results, collection, folder / "pareto_frontier.png")
    figures.kl_figure(results, collection, folder / "kl.png")
    if errors:
        figures.reward_model_figure(errors.quality, folder / "reward_model.png")
        write_json(folder / "reward_model_errors.json", as_json(errors))
    write_json(folder / "failure_analysis.json", as_json(failures))
    contents = (results, failures, collection, errors.wrong_pairs if errors else [])
    page = render_html(render_markdown(*contents, width=None), results, collection, folder)
    write_text(folder / "report.html", page)
    write_text(folder / ANALYSIS, render_markdown(*contents))
    write_json(folder / FINISHED, as_json(results))
    put_evaluation_in_place(output_dir)
    return results


def _reward_model(scores: Path) -> RewardModelErrors | None:
    """Return the errors of the reward model, if its training left scores."""
    if not scores.is_file():
        return None
    return reward_model_errors(json.loads(scores.read_text(encoding="utf-8")))
