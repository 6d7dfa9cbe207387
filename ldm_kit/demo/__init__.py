"""The demo: train a text-to-image model on the built-in data set, generate pictures for prompts, and measure them."""
