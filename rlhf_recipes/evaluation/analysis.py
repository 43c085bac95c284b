"""From saved samples to results, figures and report: files in, files out, no model and no torch."""

import json
from pathlib import Path
from typing import Any

from rlhf_recipes.evaluation.document import document
from rlhf_recipes.evaluation.failures import failure_analysis
from rlhf_recipes.evaluation.figures import (
    pareto_frontier_figure,
    reward_distributions_figure,
    win_rates_figure,
)
from rlhf_recipes.evaluation.report import render_html, render_markdown
from rlhf_recipes.evaluation.results import evaluation_results
from rlhf_recipes.evaluation.samples import read_samples
from rlhf_recipes.evaluation.training_curves import read_logs, training_curves_figure
from rlhf_recipes.records import write_json

Results = dict[str, Any]


def analyse(output_dir: Path) -> Results:
    """Analyse OUT/samples and return the results, having written them, the figures and the report.

    Reads samples/, models/*/trainer_state.json and, where the reward model's training left it,
    results/reward_model_errors.json. The same files give the same bytes. Raises RecipeError if
    the samples cannot be compared.
    """
    output_dir = Path(output_dir)
    folder = output_dir / "results"
    collection = read_samples(output_dir / "samples")
    failures = failure_analysis(collection)
    results = evaluation_results(collection)
    results["reward_model"], wrong_pairs = _reward_model(folder / "reward_model_errors.json")
    folder.mkdir(parents=True, exist_ok=True)
    logs = read_logs(output_dir / "models")
    drawn = training_curves_figure(logs, folder / "training_curves.png")
    results["training_curves"] = list(logs) if drawn else []
    results["report"] = str(folder / "report.html")
    win_rates_figure(results, collection, folder / "win_rates.png")
    reward_distributions_figure(results, collection, folder / "reward_distributions.png")
    pareto_frontier_figure(results, collection, folder / "pareto_frontier.png")
    write_json(folder / "evaluation_results.json", results)
    write_json(folder / "failure_analysis.json", failures)
    sections = document(results, failures, collection, wrong_pairs)
    html = render_html(sections, results, folder)
    (folder / "report.html").write_text(html, encoding="utf-8")
    (output_dir / "ANALYSIS.md").write_text(render_markdown(sections), encoding="utf-8")
    return results


def _reward_model(path: Path) -> tuple[Results | None, list[Results]]:
    """The reward model's accuracy and error rates, if its training left them, and wrong pairs."""
    if not path.is_file():
        return None, []
    errors = json.loads(path.read_text(encoding="utf-8"))
    wrong_pairs = errors.pop("wrong_pairs")
    return errors, wrong_pairs
