"""The parts of a report that compare: win rates, frontier, rewards, proxy against gold."""

from rlhf_recipes.evaluation.metrics.samples import Results, reward_of
from rlhf_recipes.evaluation.report import sentences as say
from rlhf_recipes.evaluation.report.blocks import Block, Picture, Section, Table, Text
from rlhf_recipes.evaluation.report.evidence import INTERVALS, compared, metrics_of, policies_of
from rlhf_recipes.evaluation.report.sentences import (
    gain,
    number,
    p_value,
    percent,
    rate,
    signed,
    span,
)

CONTROLS = {"control": "base again vs base", "best_of_n": "best of {n} of base vs base"}


def win_rates_section(results: Results) -> Section:
    """Who wins how often against whom, as it is and at equal length."""
    rows = [
        _win_row(f"{name} vs base", metric, model["win_rate"][metric])
        for metric in metrics_of(results)
        for name, model in policies_of(results).items()
    ]
    rows += [
        _win_row(f"{name} vs base", judge, model["win_rate"][judge])
        for judge in results["config"]["judges"]
        for name, model in policies_of(results).items()
        if model["win_rate"][judge]
    ]
    rows += [
        _win_row(name, metric, pair[metric])
        for metric in metrics_of(results)
        for name, pair in results["pairwise"].items()
    ]
    rows += [
        _win_row(CONTROLS[name].format(n=each.get("n")), metric, each["win_rate"][metric])
        for metric in metrics_of(results)
        for name, each in results["controls"].items()
    ]
    columns = ["comparison", "by", "win rate", "pairs won", "tied", "lost", "prompts won"]
    columns += ["tied", "lost", "p", "Holm p"]
    note = f"{INTERVALS} Pairs: a completion of each side to one prompt; the win rate is the "
    note += "fraction of pairs won, a tie one half, and a prompt is won if more than half of its "
    note += "pairs are. Verdicts that cannot be read are left out. p: exact sign test on the "
    note += "prompts not tied; with several completions per prompt, sign-flip test."
    primary = results["config"]["primary"]
    lines = []
    for name, pair in results["pairwise"].items():
        first, _, second = name.partition(" vs ")
        lines.append(say.comparison_sentence(first, second, pair[primary], primary))
    lines += [
        say.comparison_sentence(name, "base", model["win_rate"][judge], judge)
        for judge in results["config"]["judges"]
        for name, model in policies_of(results).items()
        if model["win_rate"][judge]
    ]
    picture = Picture("win_rates.png", "Forest plot of win rates with 95% intervals and a 50% line")
    return Section(
        "Win rates", [picture, Text(lines), Table(columns, rows, note), _adjusted(results)]
    )


def _adjusted(results: Results) -> Table:
    """Win rates at equal length."""
    primary = results["config"]["primary"]
    rows = [
        [
            name,
            rate(rates["lc"]["raw"], rates[primary]["ci"]),
            rate(rates["lc"]["value"], rates["lc"]["ci"]),
            percent(rates["lc"]["longer"]),
        ]
        for name, rates in ((n, m["win_rate"]) for n, m in policies_of(results).items())
    ]
    columns = ["model", f"{primary} win rate", "at equal length", "longer than base"]
    note = (
        "At equal length: logistic regression on the length difference, refitted on bootstrap "
        "draws; an adjustment, not a proof of what length caused. Longer: share of prompts."
    )
    return Table(columns, rows, note)


def _win_row(name: str, metric: str, win: Results) -> list[str]:
    kinds = ("wins", "ties", "losses")
    counts = ["" if win["pairs"] is None else str(win["pairs"][kind]) for kind in kinds]
    counts += [str(win[kind]) for kind in kinds]
    tests = [p_value(win["p"]), p_value(win["p_holm"])]
    return [name, metric, rate(win["value"], win["ci"]), *counts, *tests]


def frontier_section(results: Results) -> Section:
    """What each policy gains, and what it pays for it in KL."""
    metrics, primary = metrics_of(results), results["config"]["primary"]
    prompts = results["config"]["n_prompts"]
    blocks: list[Block] = []
    rows = [
        [name, number(m["kl"]["seq"]), span(m["kl"]["ci"]), number(m["kl"]["token"])]
        + [percent(m["frontier"][metric]["probability"]) for metric in metrics]
        for name, m in results["models"].items()
    ]
    lines = [
        say.frontier_sentence(name, m["kl"], m["frontier"][primary], primary, prompts)
        for name, m in policies_of(results).items()
    ]
    matched = results["frontier"][primary]["matched"]
    lines += [say.matched_sentence(pair, primary, prompts) for pair in matched]
    lines += [
        say.seeds_sentence(name, family["between_seeds"], primary)
        for name, family in results["families"].items()
        if family["between_seeds"]
    ]
    columns = ["model", "KL per response", "interval", "KL per token"]
    columns += [f"on {metric} frontier" for metric in metrics]
    note = "KL in nats, exact over the vocabulary. On the frontier: share of bootstrap draws."
    if results["best_of_n"]:
        blocks.append(_best_of_n(results, metrics))
    if any(model["kl"]["by_position"] for model in results["models"].values()):
        blocks.append(Picture("kl.png", "KL by token position, and KL against response length"))
    alt = "Reward gained over base against the square root of KL, with error bars and the frontier"
    picture = Picture("pareto_frontier.png", alt)
    table = Table(columns, rows, note)
    return Section("Reward against KL", [picture, Text(lines), table, *blocks])


def _best_of_n(results: Results, metrics: list[str]) -> Table:
    rows = [
        [str(row["n"]), number(row["kl_bound"])]
        + [f"{gain(row[m]['gain'])} [{', '.join(map(gain, row[m]['gain_ci']))}]" for m in metrics]
        for row in results["best_of_n"]
    ]
    note = (
        "Best of n of base by the proxy: what choosing gains without training. Its KL is at most "
    )
    note += "the one given. Gains in standard deviations of base."
    return Table(["n", "KL at most", *(f"{m} gain" for m in metrics)], rows, note)


def rewards_section(results: Results) -> Section:
    """Mean rewards, paired differences, lengths."""
    rows = []
    for metric in metrics_of(results):
        for name, model in compared(results).items():
            reward = reward_of(model, metric)
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
        for name, m in compared(results).items()
    ]
    return Section(
        "Rewards and lengths",
        [
            Picture("reward_distributions.png", "Distribution of rewards and differences to base"),
            Table(columns, rows, note),
            Table(["model", "mean length", "median", "sd"], lengths, "Response length in tokens."),
        ],
    )


def over_optimisation_section(results: Results) -> Section:
    """Whether gold followed the proxy."""
    found = results["over_optimisation"]
    if found is None:
        return Section("Proxy against gold")
    prompts = results["config"]["n_prompts"]
    lines = [
        say.over_optimisation_sentence(name, found["policies"][name], prompts)
        for name in policies_of(results)
    ]
    rows = [["base", say.correlation(found["spearman_base"]), "", "", ""]]
    rows += [
        [
            name,
            say.correlation(p["spearman"]),
            gain(p["proxy_gain"]),
            gain(p["gold_gain"]),
            f"{gain(p['gap'])} {span(p['gap_ci'])}",
        ]
        for name, p in found["policies"].items()
    ]
    columns = ["model", "Spearman, proxy with gold", "proxy gain", "gold gain", "gap"]
    note = f"{INTERVALS} Gains in standard deviations of base. Over-optimized: the proxy's "
    note += "interval lies above 0 and gold's below, both with a Holm-corrected p under 0.05."
    return Section("Proxy against gold", [Text(lines), Table(columns, rows, note)])
