"""The page of the Space: columns of numbers in, the result out."""

import evaluate
import gradio

COLUMNS = ("kl", "kl_k1", "n_tokens")
METRIC = evaluate.load("policy_kl.py", module_type="measurement")


def compute(*texts: str) -> dict[str, object]:
    """The result for columns of numbers, one to a line."""
    columns = [[float(number) for number in text.split()] for text in texts]
    return METRIC.compute(**dict(zip(COLUMNS, columns, strict=True)))


if __name__ == "__main__":
    boxes = [gradio.Textbox(lines=8, label=f"{name}, one number to a line") for name in COLUMNS]
    page = gradio.Interface(compute, boxes, gradio.JSON(), description=METRIC.description)
    page.launch()
