"""A page that draws images from a MODEL of vq-prior on the Hub; MODEL_ID names it."""

import os

import gradio as gr

from vq_prior import VQPriorPipeline

MODEL_ID = os.environ.get("MODEL_ID", "")
if not MODEL_ID:
    raise SystemExit("error: MODEL_ID is not set; give it as owner/name in the Space's settings, under Variables")

pipe = VQPriorPipeline.from_pretrained(MODEL_ID)
names = list(pipe.index.label_names)
sampling = pipe.index.sampling
EVERY_CLASS = "every class in turn"


def draw(label, count, seed, temperature, guidance_scale):
    """Return images of a class, each beside the name of its class."""
    try:
        result = pipe(
            int(count),
            labels=names.index(label) if label in names else None,
            seed=int(seed),
            temperature=temperature,
            guidance_scale=guidance_scale if names else None,
        )
    except ValueError as error:  # a value that the sliders do not offer, sent by a program
        raise gr.Error(str(error)) from None
    captions = [names[label] for label in result.labels] if result.labels else [""] * len(result.images)
    return [(enlarged(image), caption) for image, caption in zip(result.images, captions, strict=True)]


def enlarged(image):
    """Return a small picture at a size that a screen shows, each pixel a square."""
    factor = max(1, 128 // max(image.size))
    return image.resize((image.width * factor, image.height * factor), resample=0)


with gr.Blocks(title=MODEL_ID) as demo:
    gr.Markdown(f"# {MODEL_ID.split('/')[-1]}\n\nNew images, drawn by the model `{MODEL_ID}`.")
    with gr.Row():
        with gr.Column(scale=1):
            label = gr.Dropdown([EVERY_CLASS, *names], value=EVERY_CLASS, label="Class", visible=bool(names))
            count = gr.Slider(1, 64, value=16, step=1, label="Images")
            seed = gr.Number(0, minimum=0, maximum=2**32 - 1, precision=0, label="Seed")
            temperature = gr.Slider(0.1, 2, value=sampling.temperature, step=0.05, label="Temperature")
            guidance = gr.Slider(1, 5, value=sampling.guidance_scale, step=0.1, label="Guidance", visible=bool(names))
            button = gr.Button("Draw", variant="primary")
        gallery = gr.Gallery(label="Images", columns=8, scale=3, format="png")
    inputs = [label, count, seed, temperature, guidance]
    gr.on([demo.load, button.click], draw, inputs, gallery, api_name="draw")

if __name__ == "__main__":
    demo.launch()
