"""The demo: from nothing to pictures for prompts, on the built-in data set."""
