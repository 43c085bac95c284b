"""The report as sections of text, tables, figures and samples: one content, two renderings."""

from rlhf_recipes.evaluation.metrics.samples import Collection, Results, reward_of
from rlhf_recipes.evaluation.report import sentences as say
from rlhf_recipes.evaluation.report.blocks import Code, Section, Table, Text
from rlhf_recipes.evaluation.report.comparison_sections import (
    frontier_section,
    over_optimisation_section,
    rewards_section,
    win_rates_section,
)
from rlhf_recipes.evaluation.report.evidence import (
    INTERVALS,
    compared,
    curves_section,
    diversity_section,
    failures_section,
    metrics_of,
    policies_of,
    reward_model_section,
)
from rlhf_recipes.evaluation.report.sample_browser import samples_section
from rlhf_recipes.evaluation.report.sentences import gain, number, percent, rate


def document(
    results: Results, failures: Results, collection: Collection, wrong_pairs: list[Results]
) -> list[Section]:
    """The whole report. Sections without anything to say are left out."""
    sections = [
        _verdict(results),
        _identity(results),
        _controls(results),
        win_rates_section(results),
        frontier_section(results),
        rewards_section(results),
        over_optimisation_section(results),
        failures_section(results, failures),
        diversity_section(results),
        reward_model_section(results, wrong_pairs),
        curves_section(results),
        samples_section(results, collection),
        _limits(results),
        _reproduce(results),
    ]
    return [section for section in sections if section.blocks]


def _verdict(results: Results) -> Section:
    metrics, primary = metrics_of(results), results["config"]["primary"]
    lines = [
        say.comparison_sentence(name, "base", model["win_rate"][primary], primary)
        for name, model in policies_of(results).items()
    ]
    rows = []
    for name, model in compared(results).items():
        wins = [model["win_rate"][m] for m in (*metrics, "lc")]
        gains = [reward_of(model, m)["gain"] for m in metrics]
        rows.append(
            [name]
            + [rate(w["value"], w["ci"]) if w else "" for w in wins]
            + ["" if name == "base" else gain(g["value"]) for g in gains]
            + [number(model["kl"]["seq"]), number(model["length"]["mean"])]
            + [model.get("verdict", "reference")]
        )
    columns = ["model", *(f"{m} win rate" for m in metrics), "at equal length"]
    columns += [f"{m} gain" for m in metrics]
    note = f"{INTERVALS} At equal length: {primary} win rate, length adjusted for. Gain: mean "
    note += "reward over base in standard deviations of base. KL: nats per response. Length: "
    note += f"tokens. Verdict: on {primary}, Holm-corrected over the policies."
    return Section(
        "Verdict",
        [Text(lines), Table([*columns, "KL", "length", "verdict"], rows, note)],
    )


def _identity(results: Results) -> Section:
    run, config = results["run"], results["config"]
    facts = {
        "base model": run.get("base"),
        "reward model (proxy)": run.get("reward_model"),
        "gold": run.get("gold") or "none",
        "data": run.get("dataset"),
        "prompts": config["n_prompts"],
        "of these training prompts": run.get("prompts_in_training"),
        "samples per prompt": config["samples_per_prompt"],
        "samples of base": config["base_samples_per_prompt"],
        "generation": _pairs(run.get("generation") or {}),
        "seed": run.get("seed"),
    }
    return Section("What was compared", [_facts(facts)])


def _reproduce(results: Results) -> Section:
    run = results["run"]
    record = run.get("run") or {}
    facts = {
        "code": record.get("git_commit"),
        "collected": record.get("created"),
        "versions": _pairs(record.get("versions") or {}),
    }
    for name, model in run["models"].items():
        fingerprint = model.get("fingerprint")
        adapter = model.get("adapter")
        facts[f"adapter {name}"] = f"{adapter} (sha256 {fingerprint})" if fingerprint else adapter
    return Section("How to reproduce", [Code("make evaluate"), _facts(facts)])


def _facts(facts: Results) -> Table:
    rows = [[name, str(value)] for name, value in facts.items() if value not in (None, "")]
    return Table(["what", "value"], rows)


def _pairs(facts: Results) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _controls(results: Results) -> Section:
    primary = results["config"]["primary"]
    lines = [say.control_sentence(n, c, primary) for n, c in results["controls"].items()]
    agreeing = [f"`{n}`" for n, m in policies_of(results).items() if m["kl"]["k1_agrees"]]
    if agreeing:
        lines.append(
            f"The exact KL agrees with its sampled estimate for {', '.join(agreeing)} "
            "(within three joint standard errors)."
        )
    lines += [say.judge_sentence(name, judge) for name, judge in results["judges"].items()]
    return Section("Controls and warnings", [Text(lines + results["warnings"])])


def _limits(results: Results) -> Section:
    config = results["config"]
    lines = [
        f"Intervals and tests are over {config['n_prompts']} prompts and the sampling of "
        "responses, not over training seeds.",
        "To tell a win rate of "
        + ", ".join(f"{percent(float(s))}" for s in config["prompts_needed"])
        + " from one half with "
        + f"{percent(config['power'])} power takes "
        + ", ".join(str(n) for n in config["prompts_needed"].values())
        + " prompts without ties.",
        "KL and rewards describe sampling as listed above, not greedy decoding.",
        "Failure rules match strings. They can miss a failure and can fire on good text.",
    ]
    if config["primary"] == "gold":
        lines.append("Gold is one stated rule or judge. It is not a person's opinion.")
    return Section("Limits", [Text(lines)])
