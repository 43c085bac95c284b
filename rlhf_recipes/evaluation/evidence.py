"""The parts of a report to look into: failures, wrong pairs, training curves, samples."""

from typing import Any

from rlhf_recipes.evaluation import sentences as say
from rlhf_recipes.evaluation.blocks import Block, Excerpt, Excerpts, Picture, Section, Table, Text
from rlhf_recipes.evaluation.samples import FIELD, Collection
from rlhf_recipes.evaluation.sentences import number, rate

Results = dict[str, Any]

INTERVALS = "Square brackets: 95% intervals over prompts."


def metrics_of(results: Results) -> list[str]:
    """The metrics there are, the one that claims are made on first."""
    return ["gold", "proxy"] if results["config"]["primary"] == "gold" else ["proxy"]


def failures_section(results: Results, failures: Results) -> Section:
    """How often each failure was found, what its rule is, and where to look."""
    names = list(results["models"])
    rows = [
        [detector] + [rate(e["rate"], e["ci"]) for e in (found["per_model"][n] for n in names)]
        for detector, found in failures.items()
    ]
    examples = [
        f"`{detector}` in {name}: " + ", ".join(f"`{example}`" for example in entry["examples"])
        for detector, found in failures.items()
        for name, entry in found["per_model"].items()
        if entry["examples"]
    ]
    meaning = [f"`{detector}`: {found['definition']}." for detector, found in failures.items()]
    note = f"{INTERVALS} Share of responses on which a rule fires."
    blocks: list[Block] = [Text(say.failure_sentences(failures))]
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
    blocks: list[Block] = [Text([line], bullets=False)]
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


def curves_section(results: Results) -> Section:
    """The training curves, if any run left its log."""
    if not results["training_curves"]:
        return Section("Training curves")
    alt = "Training curves of " + ", ".join(results["training_curves"])
    return Section("Training curves", [Picture("training_curves.png", alt)])


def samples_section(results: Results, collection: Collection) -> Section:
    """Responses of all models to the same prompts, chosen by the stated rule."""
    shown = results["samples_shown"]
    blocks: list[Block] = [Text([f"Selection: {shown['rule']}."], bullets=False)]
    for choice in shown["prompts"]:
        row = choice["row"]
        texts = []
        for name, sample in choice["samples"].items():
            facts = [f"{m} {number(sample[FIELD[m]])}" for m in metrics_of(results)]
            facts += [f"KL {number(sample['kl'])}"] if name != "base" else []
            facts += [f"{sample['n_tokens']} tokens", *sample["flags"]]
            response = collection.models[name].records[row][0]["response"]
            texts.append(Excerpt(name, facts, response))
        title = f"Prompt {choice['prompt_id']} ({choice['reason']})"
        blocks.append(Excerpts(title, collection.base.records[row][0]["prompt"], texts))
    return Section("Samples", blocks)
