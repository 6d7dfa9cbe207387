"""The GPU plan: tests, speed beside diffusers and a training to quality, in a few minutes on one GPU (`make gpu`)."""
