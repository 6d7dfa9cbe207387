"""Plan both trainings for a folder of pictures and a time (`ldm-kit new`), and run them (`ldm-kit train`)."""
