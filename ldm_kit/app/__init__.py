"""The web page of `ldm-kit app`: sample, edit and inpaint with saved models in a browser."""
