"""The parts of a report to look into: failures, wrong pairs, training curves."""

from rlhf_recipes.evaluation.metrics.samples import Results
from rlhf_recipes.evaluation.report import sentences as say
from rlhf_recipes.evaluation.report.blocks import (
    Block,
    Excerpt,
    Excerpts,
    Picture,
    Section,
    Table,
    Text,
)
from rlhf_recipes.evaluation.report.sentences import number, optional, percent, rate, span

INTERVALS = "Square brackets: 95% intervals over prompts."


def metrics_of(results: Results) -> list[str]:
    """The metrics there are, the one that claims are made on first."""
    return list(reversed(results["config"]["metrics"]))


def finals_of(results: Results) -> list[str]:
    """The policies that claims are made on."""
    return [name for family in results["families"].values() for name in family["finals"]]


def policies_of(results: Results) -> dict[str, Results]:
    """The policies that claims are made on."""
    return {name: results["models"][name] for name in finals_of(results)}


def compared(results: Results) -> dict[str, Results]:
    """Base, and the policies that claims are made on."""
    return {"base": results["models"]["base"], **policies_of(results)}


def failures_section(results: Results, failures: Results) -> Section:
    """How often each failure was found, what its rule is, and where to look."""
    names = ["base", *finals_of(results)]
    rows = [
        [detector] + [rate(e["rate"], e["ci"]) for e in (found["per_model"][n] for n in names)]
        for detector, found in failures.items()
    ]
    examples = [
        f"`{detector}` in {name}: " + ", ".join(f"`{example}`" for example in entry["examples"])
        for detector, found in failures.items()
        for name, entry in found["per_model"].items()
        if name in names and entry["examples"]
    ]
    meaning = [f"`{detector}`: {found['definition']}." for detector, found in failures.items()]
    note = f"{INTERVALS} Share of responses on which a rule fires."
    blocks: list[Block] = [Text(say.failure_sentences(failures, results["config"]["n_prompts"]))]
    blocks += [Table(["failure", *names], rows, note), Text(meaning)]
    blocks += [Text(["Examples, by sample id:"], bullets=False), Text(examples)] if examples else []
    return Section("Failures", blocks)


def reward_model_section(results: Results, wrong_pairs: list[Results]) -> Section:
    """How often the proxy agrees with the labels, on what it errs, and wrong pairs to read."""
    model = results["reward_model"]
    if model is None:
        return Section("Reward model")
    accuracy = model["accuracy"]
    line = f"On {model['n']} held-out pairs the reward model agrees with the label on "
    line += f"{rate(accuracy['value'], accuracy['ci'])} ({accuracy['right']} right, "
    line += f"{accuracy['ties']} tied, {accuracy['wrong']} wrong)."
    rows = [
        [s["slice"], s["value"], str(s["n"]), str(s["wrong"]), rate(s["error_rate"], s["ci"])]
        for s in model["slices"]
    ]
    blocks: list[Block] = [
        Picture("reward_model.png", "Reliability and accuracy by margin, length")
    ]
    blocks += [Text([line], bullets=False), Table(["quantity", "value"], _quality(model))]
    note = "Square brackets: 95% intervals over pairs. A tie counts as half an error."
    blocks.append(Table(["slice", "value", "pairs", "wrong", "error rate"], rows, note))
    if wrong_pairs:
        blocks.append(Text([f"Wrong pairs shown: {model['rule']}."], bullets=False))
    for pair in wrong_pairs:
        facts = [pair["selection"], *pair["flags"]]
        texts = [
            Excerpt(side, [f"reward {number(pair[f'{side}_reward'])}"], pair[side])
            for side in ("chosen", "rejected")
        ]
        title = f"margin {number(pair['margin'])} ({', '.join(facts)})"
        blocks.append(Excerpts(title, pair["prompt"], texts, folded=True))
    return Section("Reward model", blocks)


def _quality(model: Results) -> list[list[str]]:
    """Calibration and length bias as rows of a table."""
    found, length = model["calibration"], model["length_bias"]
    rows = [
        [
            f"negative log-likelihood (chance: {number(found['nll_of_chance'])})",
            f"{number(found['nll']['value'])} {span(found['nll']['ci'])}",
        ],
        ["Brier score", f"{number(found['brier']['value'])} {span(found['brier']['ci'])}"],
        ["expected calibration error, folded", percent(found["ece"])],
        ["temperature that fits best", optional(found["temperature"])],
        ["Spearman, margin with length difference", say.correlation(length["spearman"])],
    ]
    for name in ("longer_wins", "longer_is_chosen"):
        share = length[name]
        text = rate(share["value"], share["ci"]) if share else "undefined"
        rows.append([name.replace("_", " "), text])
    for name, accuracy in length["accuracy"].items():
        text = rate(accuracy["value"], accuracy["ci"]) if accuracy else "undefined"
        rows.append([f"accuracy, {name.replace('_', ' ')}", text])
    return rows


def diversity_section(results: Results) -> Section:
    """How varied the responses are."""
    rows = []
    for name in ["base", *finals_of(results)]:
        found = results["models"][name]["diversity"]
        rows.append(
            [name]
            + [optional(found["distinct"][n]) for n in ("1", "2", "3")]
            + [_with_span(found["self_bleu_within"]), optional(found["self_bleu_across"])]
            + [_with_span(found["entropy"])]
        )
    columns = ["model", "distinct-1", "distinct-2", "distinct-3", "self-BLEU within a prompt"]
    columns += ["self-BLEU across prompts", "entropy"]
    budget = results["models"]["base"]["diversity"]
    note = f"distinct-n over {budget['budget_words']} words of each model. "
    note += f"Entropy: nats per token. {INTERVALS}"
    lines = say.diversity_sentences(results)
    return Section("Diversity", [Text(lines), Table(columns, rows, note)])


def _with_span(found: Results | None) -> str:
    return f"{number(found['value'])} {span(found['ci'])}" if found else "undefined"


def curves_section(results: Results) -> Section:
    """The training curves, if any run left its log, and the automatic checks of them."""
    curves = results["training_curves"]
    if not curves:
        return Section("Training curves")
    alt = "Training curves of " + ", ".join(curves)
    rows = [
        [stage, check["check"], check["quantity"], _looked_at(check), _outcome(check)]
        for stage, run in curves.items()
        for check in run["checks"]
    ]
    rules = {check["check"]: check["rule"] for run in curves.values() for check in run["checks"]}
    meaning = [f"{name}: {rule}." for name, rule in rules.items()]
    blocks: list[Block] = [Picture("training_curves.png", alt)]
    if rows:
        blocks.append(Table(["run", "check", "quantity", "value", "outcome"], rows))
        blocks.append(Text(meaning))
    return Section("Training curves", blocks)


def _looked_at(check: Results) -> str:
    return "too few values" if check["value"] is None else f"{check['value']:.2g}"


def _outcome(check: Results) -> str:
    if check["value"] is None:
        return ""
    return "raised" if check["raised"] else "fine"
