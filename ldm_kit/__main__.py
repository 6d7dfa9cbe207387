"""The program `ldm-kit` as a module, for `accelerate launch -m ldm_kit train-ldm CONFIG`."""

from ldm_kit.cli import main

if __name__ == "__main__":
    main()
