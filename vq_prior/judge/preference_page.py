"""The page of a preference study: two pictures, three buttons, and a result on request (needs gradio)."""

from typing import Any

import gradio as gr

from stage1_vqvae.modalities.sheets import to_picture
from vq_prior.core.errors import VQPriorError
from vq_prior.judge.preference import Choice, Study

SHOWN, MOST_WAITING = 384, 32
ALONE: dict[str, Any] = {"concurrency_id": "study", "concurrency_limit": 1}  # one vote at a time, whoever gives it
WORDS: dict[Choice, str] = {"left": "Left looks better", "equal": "Equal", "right": "Right looks better"}


def preference_page(study: Study) -> gr.Blocks:
    """Return the page on which a person votes; which model is which is told with the result alone."""
    with gr.Blocks(title="Which looks better?", analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown("# Which looks better?\n\nTwo models drew these of the same class and seed.")
        heading, pair = gr.Markdown(elem_id="pair"), gr.State(0)
        with gr.Row():
            pictures = [_picture(name) for name in ("left", "right")]
        with gr.Row():
            kinds: dict[Choice, Any] = {"left": "primary", "equal": "secondary", "right": "primary"}
            buttons = {
                choice: gr.Button(words, variant=kinds[choice], elem_id=f"vote-{choice}")
                for choice, words in WORDS.items()
            }
        gr.Markdown("Every vote is kept at once. Settle how many you give before you look at the result.")
        look = gr.Button("Show the result", elem_id="look")
        result = gr.Textbox(label="Result", lines=4, interactive=False, elem_id="result")

        def shown() -> tuple[Any, ...]:
            number = study.number
            label = f" of class {study.label(number)}" if study.label(number) else ""
            try:
                left, right = (_enlarged(pixels) for pixels in study.pair(number))
            except VQPriorError as error:
                raise gr.Error(str(error), duration=None, print_exception=False) from None
            return f"### Pair {number + 1}{label}; {number} votes so far", number, left, right

        def voted(choice: Choice) -> Any:
            def vote(number: int) -> tuple[Any, ...]:
                if not study.vote(number, choice):
                    gr.Warning("That pair has its vote already; here is the next one.")
                return shown()

            return vote

        places = [heading, pair, *pictures]
        blocks.load(shown, None, places, api_visibility="private", **ALONE)
        for choice, button in buttons.items():
            button.click(voted(choice), pair, places, api_name=choice, **ALONE)
        look.click(study.in_words, None, result, api_name="result", **ALONE)
    blocks.queue(max_size=MOST_WAITING)
    return blocks


def _picture(name: str) -> gr.Image:
    return gr.Image(show_label=False, format="png", interactive=False, buttons=[], height=SHOWN, elem_id=name)


def _enlarged(pixels: Any) -> Any:
    """Return a picture at a whole multiple of its size, near 384 pixels, each pixel a square."""
    factor = max(1, SHOWN // max(pixels.shape[:2]))
    return to_picture(pixels.repeat(factor, axis=0).repeat(factor, axis=1))
