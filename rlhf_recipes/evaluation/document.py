"""The report as sections of text, tables, figures and samples: one content, two renderings."""

from typing import Any

from rlhf_recipes.evaluation import sentences as say
from rlhf_recipes.evaluation.blocks import Code, Picture, Section, Table, Text
from rlhf_recipes.evaluation.evidence import (
    INTERVALS,
    curves_section,
    failures_section,
    metrics_of,
    reward_model_section,
    samples_section,
)
from rlhf_recipes.evaluation.samples import FIELD, Collection
from rlhf_recipes.evaluation.sentences import gain, number, p_value, percent, rate, signed, span

Results = dict[str, Any]


def document(
    results: Results, failures: Results, collection: Collection, wrong_pairs: list[Results]
) -> list[Section]:
    """The whole report. Sections without anything to say are left out."""
    sections = [
        _verdict(results),
        _identity(results),
        _controls(results),
        _win_rates(results),
        _frontier(results),
        _rewards(results),
        _over_optimisation(results),
        failures_section(results, failures),
        reward_model_section(results, wrong_pairs),
        curves_section(results),
        samples_section(results, collection),
        _limits(results),
        _reproduce(results),
    ]
    return [section for section in sections if section.blocks]


def _policies(results: Results) -> dict[str, Results]:
    return {name: model for name, model in results["models"].items() if name != "base"}


def _verdict(results: Results) -> Section:
    metrics, primary = metrics_of(results), results["config"]["primary"]
    lines = [
        say.comparison_sentence(name, "base", model["win_rate"][primary], primary)
        for name, model in _policies(results).items()
    ]
    rows = []
    for name, model in results["models"].items():
        wins = [model["win_rate"][m] for m in metrics]
        gains = [model[FIELD[m]]["gain"] for m in metrics]
        rows.append(
            [name]
            + [rate(w["value"], w["ci"]) if w else "" for w in wins]
            + ["" if name == "base" else gain(g["value"]) for g in gains]
            + [number(model["kl"]["seq"]), number(model["length"]["mean"])]
            + [model.get("verdict", "reference")]
        )
    columns = ["model", *(f"{m} win rate" for m in metrics), *(f"{m} gain" for m in metrics)]
    note = f"{INTERVALS} Gain: mean reward over base in standard deviations of base. KL: nats per "
    note += f"response. Length: tokens. Verdict: on {primary}, Holm-corrected over the policies."
    return Section(
        "Verdict", [Text(lines), Table([*columns, "KL", "length", "verdict"], rows, note)]
    )


def _identity(results: Results) -> Section:
    run, config = results["run"], results["config"]
    facts = {
        "base model": run.get("base"),
        "reward model (proxy)": run.get("reward_model"),
        "gold": run.get("gold") or "none",
        "data": run.get("dataset"),
        "prompts": config["n_prompts"],
        "samples per prompt": config["samples_per_prompt"],
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
    agreeing = [f"`{n}`" for n, m in _policies(results).items() if m["kl"]["k1_agrees"]]
    if agreeing:
        lines.append(
            f"The exact KL agrees with its sampled estimate for {', '.join(agreeing)} "
            "(within three joint standard errors)."
        )
    return Section("Controls and warnings", [Text(lines + results["warnings"])])


def _win_rates(results: Results) -> Section:
    rows = [
        _win_row(f"{name} vs base", metric, model["win_rate"][metric])
        for metric in metrics_of(results)
        for name, model in _policies(results).items()
    ]
    rows += [
        _win_row(name, metric, pair[metric])
        for metric in metrics_of(results)
        for name, pair in results["pairwise"].items()
    ]
    columns = ["comparison", "by", "win rate", "won", "tied", "lost", "p", "Holm p"]
    note = f"{INTERVALS} A tie counts one half. p: exact sign test on the prompts not tied."
    primary = results["config"]["primary"]
    lines = []
    for name, pair in results["pairwise"].items():
        first, _, second = name.partition(" vs ")
        lines.append(say.comparison_sentence(first, second, pair[primary], primary))
    picture = Picture("win_rates.png", "Forest plot of win rates with 95% intervals and a 50% line")
    return Section("Win rates", [picture, Text(lines), Table(columns, rows, note)])


def _win_row(name: str, metric: str, win: Results) -> list[str]:
    counts = [str(win["wins"]), str(win["ties"]), str(win["losses"])]
    tests = [p_value(win["p"]), p_value(win["p_holm"])]
    return [name, metric, rate(win["value"], win["ci"]), *counts, *tests]


def _frontier(results: Results) -> Section:
    metrics, primary = metrics_of(results), results["config"]["primary"]
    rows = [
        [name, number(m["kl"]["seq"]), span(m["kl"]["ci"]), number(m["kl"]["token"])]
        + [percent(m["frontier"][metric]["probability"]) for metric in metrics]
        for name, m in results["models"].items()
    ]
    lines = [
        say.frontier_sentence(name, m["kl"], m["frontier"][primary], primary)
        for name, m in _policies(results).items()
    ]
    columns = ["model", "KL per response", "interval", "KL per token"]
    columns += [f"on {metric} frontier" for metric in metrics]
    note = "KL in nats, exact over the vocabulary. On the frontier: share of bootstrap draws."
    alt = "Reward gained over base against the square root of KL, with error bars and the frontier"
    picture = Picture("pareto_frontier.png", alt)
    return Section("Reward against KL", [picture, Text(lines), Table(columns, rows, note)])


def _rewards(results: Results) -> Section:
    rows = []
    for metric in metrics_of(results):
        for name, model in results["models"].items():
            reward = model[FIELD[metric]]
            row = [name, metric, f"{number(reward['mean'])} {span(reward['ci'])}"]
            gap = reward["difference"]
            difference = ["", ""]
            if gap:
                difference = [f"{signed(gap['mean'])} {span(gap['ci'])}", p_value(gap["p_holm"])]
            rows.append([*row, number(reward["sd"]), *difference])
    columns = ["model", "by", "mean reward", "sd", "difference to base", "Holm p"]
    note = f"{INTERVALS} p: sign-flip permutation test on the differences by prompt."
    lengths = [
        [
            name,
            f"{number(m['length']['mean'])} {span(m['length']['ci'])}",
            number(m["length"]["median"]),
            number(m["length"]["sd"]),
        ]
        for name, m in results["models"].items()
    ]
    return Section(
        "Rewards and lengths",
        [
            Picture("reward_distributions.png", "Distribution of rewards and differences to base"),
            Table(columns, rows, note),
            Table(["model", "mean length", "median", "sd"], lengths, "Response length in tokens."),
        ],
    )


def _over_optimisation(results: Results) -> Section:
    found = results["over_optimisation"]
    if found is None:
        return Section("Proxy against gold")
    lines = [say.over_optimisation_sentence(n, p) for n, p in found["policies"].items()]
    rows = [["base", _correlation(found["spearman_base"]), "", "", ""]]
    rows += [
        [
            name,
            _correlation(p["spearman"]),
            gain(p["proxy_gain"]),
            gain(p["gold_gain"]),
            f"{gain(p['gap'])} {span(p['gap_ci'])}",
        ]
        for name, p in found["policies"].items()
    ]
    columns = ["model", "Spearman, proxy with gold", "proxy gain", "gold gain", "gap"]
    note = f"{INTERVALS} Gains in standard deviations of base. Over-optimised: the proxy's "
    note += "interval lies above 0 and gold's below."
    return Section("Proxy against gold", [Text(lines), Table(columns, rows, note)])


def _correlation(found: Results) -> str:
    if found["value"] is None:
        return f"undefined: {found['reason']}"
    return f"{number(found['value'])} {span(found['ci'])}"


def _limits(results: Results) -> Section:
    config = results["config"]
    lines = [
        f"Intervals and tests are over {config['n_prompts']} prompts and the sampling of "
        "responses. Each method was trained once: what another training seed would change is not "
        "known.",
        "KL and rewards describe sampling as listed above, not greedy decoding.",
        "Failure rules match strings. They can miss a failure and can fire on good text.",
    ]
    if config["primary"] == "gold":
        lines.append("Gold is one stated rule or judge. It is not a person's opinion.")
    return Section("Limits", [Text(lines)])
