"""What a reader must know before trusting the results, each said only where it holds."""

from rlhf_recipes.evaluation.comparisons import TIE
from rlhf_recipes.evaluation.samples import Collection, Results

MANY_CUT_OFF = 0.3
FEW_PROMPTS = 50


def caveats(results: Results, collection: Collection) -> list[str]:
    """All that limits what the results can show, in sentences."""
    return [
        *_of_the_design(results, collection),
        *_of_the_samples(results, collection),
        *_of_the_controls(results),
    ]


def _of_the_design(results: Results, collection: Collection) -> list[str]:
    found = []
    prompts = results["config"]["n_prompts"]
    if prompts < FEW_PROMPTS:
        found.append(
            f"{prompts} prompts are few: only large differences can be seen "
            "(`detectable` says how large)."
        )
    if overlap := collection.facts.get("prompts_in_training"):
        found.append(
            f"{overlap} of the prompts are training prompts: results on them are flattered."
        )
    if collection.primary == "proxy":
        found.append(
            "No gold judge: gold is null, and claims rest on the reward that was trained on."
        )
    if not any(family["between_seeds"] for family in results["families"].values()):
        found.append(
            "One training seed a method: the intervals do not cover what another seed would change."
        )
    return found


def _of_the_samples(results: Results, collection: Collection) -> list[str]:
    found = []
    primary = collection.primary
    for name, model in results["models"].items():
        if not model["kl"]["k1_agrees"]:
            found.append(
                f"{name}: the exact KL and its sampled estimate differ by more than three joint "
                "standard errors. The samples may not come from the policy whose logits were used."
            )
        if model["failures"]["empty"]["rate"] == 1:
            found.append(f"{name}: every response is empty. Its rewards are those of nothing.")
        rate, lc = model["win_rate"][primary], model["win_rate"]["lc"]
        if rate and rate["ties"] == rate["n"]:
            found.append(
                f"{name}: all {rate['n']} prompts tie with base by {primary} (differences up to "
                f"{TIE:g} are ties). Either nothing changed, or the judge does not see it."
            )
        if lc and lc["extreme"]:
            found.append(
                f"{name}: at equal length the win rate is {100 * lc['value']:.0f}%, and "
                f"{100 * lc['raw']:.0f}% as it is. Much of the difference goes with length."
            )
        if lc and not lc["overlaps"]:
            found.append(
                f"{name}: its answers are longer than base's on {100 * lc['longer']:.0f}% of the "
                "prompts. The win rate at equal length is an extrapolation."
            )
    cut_off = {n: m["failures"]["truncated"]["rate"] for n, m in results["models"].items()}
    if max(cut_off.values()) > MANY_CUT_OFF:
        shares = ", ".join(f"{name} {100 * rate:.0f}%" for name, rate in cut_off.items())
        found.append(
            f"Many responses were cut off at the length limit ({shares}): rewards and KL are those "
            "of the cut-off text."
        )
    return found


def _of_the_controls(results: Results) -> list[str]:
    found = []
    controls = results["controls"]
    if "control" not in controls:
        found.append(
            "No control: base was not sampled twice, so the pipeline is not checked by A/A."
        )
    elif not controls["control"]["passed"]:
        found.append(
            "control: the A/A control failed. Base against itself must win half and have no KL; by "
            "chance alone one control in twenty fails."
        )
    if "best_of_n" in controls and not controls["best_of_n"]["passed"]:
        found.append(
            "best_of_n: the positive control failed. The best of base's own samples by the proxy "
            "does not win by the proxy: there are too few prompts or the proxy does not vary."
        )
    return found
