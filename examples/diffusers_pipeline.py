"""Restore the faces of what a diffusers pipeline generates.

    python examples/diffusers_pipeline.py MODEL "a portrait of an old sailor" --out faces

MODEL is a folder or a name on the Hub, of images or videos. Writes each image or frame as it was
and restored.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from musetalk_enhance import FaceEnhancer
from musetalk_enhance.hosts.diffusers import PostProcessor


def main(words: list[str] | None = None) -> None:
    """Generate, restore, save."""
    from diffusers import DiffusionPipeline

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("--restorer", default="lite", help="see `musetalk-enhance models`")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("faces"))
    args = parser.parse_args(words)

    process = PostProcessor(FaceEnhancer(args.restorer, download=True))
    pipe = DiffusionPipeline.from_pretrained(args.model)
    output = pipe(args.prompt, num_inference_steps=args.steps)
    restored = process(output)
    # or, where other code calls the pipeline: attach(pipe, enhancer)

    args.out.mkdir(parents=True, exist_ok=True)
    for name, result in (("generated", output), ("restored", restored)):
        for index, image in enumerate(getattr(result, "images", None) or result.frames[0]):
            image.save(args.out / f"{index:04}_{name}.png")


if __name__ == "__main__":
    main()
