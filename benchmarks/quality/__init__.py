"""Time to quality: what a recipe has learnt after so many seconds of one core."""
