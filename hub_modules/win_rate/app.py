"""Page of the Space: compute the result from columns of numbers."""

import evaluate
import gradio

COLUMNS = ("predictions", "references")
METRIC = evaluate.load("win_rate.py", module_type="metric")


def compute(*texts: str) -> dict[str, object]:
    """Compute the result from columns of numbers, one number per line."""
    columns = [[float(number) for number in text.split()] for text in texts]
    return METRIC.compute(**dict(zip(COLUMNS, columns, strict=True)))


if __name__ == "__main__":
    boxes = [gradio.Textbox(lines=8, label=f"{name}, one number per line") for name in COLUMNS]
    page = gradio.Interface(compute, boxes, gradio.JSON(), description=METRIC.description)
    page.launch()
